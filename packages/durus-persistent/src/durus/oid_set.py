"""The set of the oids that a transaction accessed, in bounded memory.

A `Connection` adds to it at each first access of an object; `commit()` hands it to the storage as
the transaction's `accessed`.  It lives apart from the cache, because an object that is evicted
was read all the same.

It keeps blocks of 2**shift neighbouring oids, at most `BLOCKS_MAX` of them.  When there are more,
the blocks grow; at shift 64 the only block is everything.  The invariant: *it is always a superset
of what was added*, and exactly that while at most `BLOCKS_MAX` oids were added.  A superset only
adds conflicts; but not with the transaction itself, which excludes what it has stored already.
"""

from collections.abc import Iterable
from typing import Final

from durus.interfaces import Oid

__all__ = ["BLOCKS_MAX", "OidSet"]

BLOCKS_MAX: Final = 8_192
"""64 KiB, at 8 bytes each."""

_OID_BITS: Final = 64
_number = int.from_bytes  # big-endian by default


class OidSet:
    """A set of oids, or a superset of it when it became large."""

    __slots__ = ("_blocks", "_excluded", "_shift")

    def __init__(self, oids: Iterable[Oid] = ()) -> None:
        self._blocks: set[int] = set()
        self._excluded: set[Oid] = set()
        self._shift = 0
        for oid in oids:
            self.add(oid)

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def add(self, oid: Oid) -> None:
        """Add one oid (8 bytes)."""
        blocks = self._blocks
        blocks.add(_number(oid) >> self._shift)
        if len(blocks) > BLOCKS_MAX:
            self._coarsen()

    def add_everything(self) -> None:
        """Add all oids that there can be: for scans over the whole database."""
        self._blocks, self._shift = {0}, _OID_BITS

    def exclude(self, oids: Iterable[Oid]) -> None:
        """Some oids are not in it, however large it grows; nobody has added them, or will."""
        self._excluded.update(oids)

    def overlap(self, oids: Iterable[Oid]) -> list[Oid]:
        """Those of `oids` that are in the set, in their order."""
        blocks, shift, excluded = self._blocks, self._shift, self._excluded
        found = [oid for oid in oids if _number(oid) >> shift in blocks]
        return [oid for oid in found if oid not in excluded] if excluded else found

    def clear(self) -> None:
        """Forget everything, and be exact again."""
        self._blocks, self._excluded, self._shift = set(), set(), 0

    def _coarsen(self) -> None:
        """Let the blocks grow until half of the room is free, so that this stays rare."""
        while len(self._blocks) > BLOCKS_MAX // 2:
            self._shift += 1
            self._blocks = {block >> 1 for block in self._blocks}
