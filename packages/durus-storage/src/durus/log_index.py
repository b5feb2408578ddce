"""What is kept in memory about a log, to find things fast: derived from it, never the truth.

`LogIndex` says where the newest revision of an object is.  `RecentChanges` keeps the last
transactions for the conflict check; its invariant: what it answers is complete, or None.
"""

from array import array
from collections import deque
from collections.abc import Iterator
from typing import Final

from durus.interfaces import CHANGES_MAX, NO_TID, Oid, Tid
from durus.log_format import LoggedTransaction

__all__ = ["LogIndex", "RecentChanges"]

_BLOCK_BITS: Final = 8
_BLOCK_SIZE: Final = 1 << _BLOCK_BITS
_SPARSE_MAX: Final = 16
"""A block with more objects than this is an array, which takes as much room as 16 in a dict."""

_number = int.from_bytes  # big-endian by default


class LogIndex:
    """Where the record slot of the newest revision of each object is.

    Oids are dense, being handed out one after the other.  So it is a dict of blocks of 256
    neighbours each, which are arrays: 8 bytes for an object.  A block of few objects is a dict,
    lest a file whose oids are far apart take much more memory than it has bytes.

    One thread may add while others read: a block is replaced as a whole when it becomes an array.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, array[int] | dict[int, int]] = {}

    def __contains__(self, oid: Oid) -> bool:
        return self.find(oid) != 0

    def find(self, oid: Oid) -> int:
        """The offset of the slot, or 0 when there is no such object."""
        number = _number(oid)
        block = self._blocks.get(number >> _BLOCK_BITS)
        if block is None:
            return 0
        if type(block) is dict:
            return block.get(number % _BLOCK_SIZE, 0)
        return block[number % _BLOCK_SIZE]

    def put(self, number: int, slot: int) -> None:
        """The newest revision of the oid with this number is in the slot at this offset."""
        key, place = number >> _BLOCK_BITS, number % _BLOCK_SIZE
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = {}
        elif type(block) is dict and len(block) == _SPARSE_MAX and place not in block:
            dense = array("Q", bytes(8 * _BLOCK_SIZE))
            for other, its_slot in block.items():
                dense[other] = its_slot
            block = self._blocks[key] = dense
        block[place] = slot

    def add(self, transaction: LoggedTransaction) -> None:
        for entry in transaction.entries():
            self.put(entry.oid, entry.slot)

    def oids(self) -> Iterator[Oid]:
        """The oids of all objects, ascending; another thread may be adding some."""
        for key in sorted(self._blocks.copy()):
            block = self._blocks[key]
            places = sorted(block.copy()) if type(block) is dict else range(_BLOCK_SIZE)
            first = key << _BLOCK_BITS
            for place in places:
                if block[place]:
                    yield Oid((first + place).to_bytes(8))


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
