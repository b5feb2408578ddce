"""What is kept in memory about a log, to find things fast: derived from it, never the truth.

`LogIndex` says where the newest revision of an object is.  `RecentChanges` keeps the last
transactions for the conflict check; its invariant: what it answers is complete, or None.
"""

from collections import deque
from collections.abc import Iterator

from durus.interfaces import CHANGES_MAX, NO_TID, Oid, Tid
from durus.log_format import LoggedTransaction

__all__ = ["LogIndex", "RecentChanges"]


class LogIndex:
    """Where the record slot of the newest revision of each object is."""

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}

    def __contains__(self, oid: Oid) -> bool:
        return int.from_bytes(oid) in self._slots

    def find(self, oid: Oid) -> int:
        """The offset of the slot, or 0 when there is no such object."""
        return self._slots.get(int.from_bytes(oid), 0)

    def add(self, transaction: LoggedTransaction) -> None:
        self._slots.update((entry.oid, entry.slot) for entry in transaction.entries())

    def oids(self) -> Iterator[Oid]:
        """The oids of all objects that there are now; another thread may be adding some."""
        return iter([Oid(number.to_bytes(8)) for number in list(self._slots)])


class RecentChanges:
    """The last transactions, as many as have up to `CHANGES_MAX` records together."""

    def __init__(self, since: Tid) -> None:
        self._transactions: deque[LoggedTransaction] = deque()
        self._since = since
        """All transactions after this one are here."""
        self._newest = NO_TID
        self._weight = 0

    def add(self, transaction: LoggedTransaction) -> None:
        """Remember the transaction, unless it is here already (a packed file tells it again)."""
        if transaction.tid <= self._newest:
            return
        self._newest = transaction.tid
        self._transactions.append(transaction)
        self._weight += 1 + transaction.head.record_count
        while self._weight > CHANGES_MAX:
            oldest = self._transactions.popleft()
            self._since = oldest.tid
            self._weight -= 1 + oldest.head.record_count

    def find(self, since: Tid, until: Tid) -> frozenset[Oid] | None:
        """The oids written by transactions with since < tid <= until, if all these are known."""
        if since < self._since:
            return None
        changed: set[Oid] = set()
        for transaction in reversed(self._transactions):
            if transaction.tid <= since:
                break
            if transaction.tid <= until:
                changed.update(transaction.oids)
        return frozenset(changed)
