"""What is kept in memory about a log, to find things fast: derived from it, never the truth.

`LogIndex` says where the newest revision of an object is.  `RecentChanges` keeps the last
transactions for the conflict check; its invariant: what it answers is complete, or None.
"""

import heapq
import itertools
import threading
from array import array
from collections import deque
from collections.abc import Iterator
from typing import Final

from durus.index_file import IndexFile
from durus.interfaces import CHANGES_MAX, Oid, Tid
from durus.log_format import LoggedTransaction
from durus.log_record import SLOT_HEAD_SIZE

__all__ = ["LayeredIndex", "LogIndex", "RecentChanges"]

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
        return self.find_number(_number(oid))

    def find_number(self, number: int) -> int:
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
        put = self.put
        slot = transaction.head.slots_offset
        for number, _, size in transaction.raw_entries():
            put(number, slot)
            slot += SLOT_HEAD_SIZE + size

    def oids(self) -> Iterator[Oid]:
        """The oids of all objects, ascending; another thread may be adding some."""
        return (Oid(number.to_bytes(8)) for number, _ in self.items())

    def items(self, start: int = 0) -> Iterator[tuple[int, int]]:
        """The numbers of oids from `start` on, ascending, and their slots."""
        for key in sorted(self._blocks.copy()):
            first = key << _BLOCK_BITS
            if first + _BLOCK_SIZE <= start:
                continue
            block = self._blocks[key]
            places = sorted(block.copy()) if type(block) is dict else range(_BLOCK_SIZE)
            for place in places:
                if block[place] and first + place >= start:
                    yield first + place, block[place]


class LayeredIndex:
    """An index file, and in memory what came after it.

    `base` and `recent` are replaced together, so that a thread which reads sees two that fit.
    """

    def __init__(self, base: IndexFile | None = None) -> None:
        self._layers = (LogIndex(), base)

    @property
    def base(self) -> IndexFile | None:
        return self._layers[1]

    @property
    def recent(self) -> LogIndex:
        return self._layers[0]

    def replace(self, recent: LogIndex, base: IndexFile | None) -> None:
        self._layers = (recent, base)

    def find(self, number: int) -> tuple[int, bool]:
        """The slot of an oid, or 0, and whether memory knows it, so that it is certain.

        Raises IndexDamagedError and StorageError.
        """
        recent, base = self._layers
        slot = recent.find_number(number)
        if slot or base is None:
            return slot, True
        return base.find(number), False

    def items(self, start: int = 0) -> Iterator[tuple[int, int]]:
        """The numbers of oids from `start` on, ascending, and their slots.

        Raises IndexDamagedError and StorageError.
        """
        recent, base = self._layers
        if base is None:
            yield from recent.items(start)
            return
        last = -1
        # Of two with the same number the one in memory comes first.
        both = heapq.merge(recent.items(start), base.items(start), key=lambda item: item[0])
        for number, slot in both:
            if number != last:
                yield number, slot
            last = number


class RecentChanges:
    """The last transactions, as many as have up to `CHANGES_MAX` records together."""

    def __init__(self, since: Tid) -> None:
        self._transactions: deque[LoggedTransaction] = deque()
        self._since = since
        """All transactions after this one are here."""
        self.newest = since
        """All up to this one are here, or not wanted."""
        self._weight = 0
        self._lock = threading.Lock()

    def copy(self) -> "RecentChanges":
        """Another one, which knows the same."""
        copy = RecentChanges(self._since)
        with self._lock:
            copy._transactions = self._transactions.copy()
            copy._since = self._since
            copy.newest = self.newest
            copy._weight = self._weight
        return copy

    def add(self, transaction: LoggedTransaction) -> None:
        """Remember the transaction, unless it is here already (a packed file tells it again)."""
        with self._lock:
            if transaction.tid <= self.newest:
                return
            self.newest = transaction.tid
            self._transactions.append(transaction)
            self._weight += 1 + transaction.head.record_count
            while self._weight > CHANGES_MAX:
                oldest = self._transactions.popleft()
                self._since = oldest.tid
                self._weight -= 1 + oldest.head.record_count

    def find(self, since: Tid, until: Tid) -> frozenset[Oid] | None:
        """The oids written by transactions with since < tid <= until, if all these are known."""
        with self._lock:
            if since < self._since:
                return None
            if since >= self.newest:
                return frozenset()
            transactions = list(
                itertools.takewhile(
                    lambda transaction: transaction.tid > since, reversed(self._transactions)
                )
            )
        changed: set[Oid] = set()
        for transaction in transactions:
            if transaction.tid <= until:
                changed.update(transaction.oids)
        return frozenset(changed)
