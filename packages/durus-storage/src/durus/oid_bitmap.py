"""A set of oids, a bit for each: how whole databases are walked over in bounded memory.

Pack and conversion find with it what can be reached from the root.  `durus.oid_set` is the other
set, which is small and may be a superset; this one is exact, and its size goes with the database:
some 2 bits for each oid, as oids are dense, and some 300 bytes for one that has no neighbours.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from durus.interfaces import ROOT_OID, Oid
from durus.record import split_oids

__all__ = ["OidBitmap", "OidRanks", "find_reachable"]

_BLOCK_BITS: Final = 11
_BLOCK_MASK: Final = (1 << _BLOCK_BITS) - 1
_BATCH_SIZE_MIN: Final = 256

_number = int.from_bytes  # big-endian by default


def _split_block(key: int, bits: int) -> Iterator[int]:
    first = key << _BLOCK_BITS
    while bits:
        lowest = bits & -bits
        yield first + lowest.bit_length() - 1
        bits ^= lowest


class OidBitmap:
    """An exact set of oids: blocks of 2,048 neighbours, each a number with a bit for each oid."""

    def __init__(self, oids: Iterable[Oid] = ()) -> None:
        self._blocks: dict[int, int] = {}
        for oid in oids:
            self.add(oid)

    def __contains__(self, oid: Oid) -> bool:
        number = _number(oid)
        block = self._blocks.get(number >> _BLOCK_BITS)
        return block is not None and bool(block >> (number & _BLOCK_MASK) & 1)

    def __len__(self) -> int:
        return sum(block.bit_count() for block in self._blocks.values())

    def __iter__(self) -> Iterator[Oid]:
        """The oids, ascending; none may be added meanwhile."""
        for key in sorted(self._blocks):
            for number in _split_block(key, self._blocks[key]):
                yield Oid(number.to_bytes(8))

    def add(self, oid: Oid) -> None:
        self.add_number(_number(oid))

    def add_number(self, number: int) -> None:
        """Add the oid that is this number."""
        key = number >> _BLOCK_BITS
        self._blocks[key] = self._blocks.get(key, 0) | 1 << (number & _BLOCK_MASK)

    def discard(self, oid: Oid) -> None:
        """Take the oid out, if it is in."""
        number = _number(oid)
        key = number >> _BLOCK_BITS
        rest = self._blocks.get(key, 0) & ~(1 << (number & _BLOCK_MASK))
        if rest:
            self._blocks[key] = rest
        else:
            self._blocks.pop(key, None)

    def take_all(self) -> Iterator[list[Oid]]:
        """Take out everything, some hundred neighbours at a time, and what is added meanwhile."""
        for numbers in self.take_all_numbers():
            yield [Oid(number.to_bytes(8)) for number in numbers]

    def take_all_numbers(self) -> Iterator[list[int]]:
        """The same, as numbers."""
        while self._blocks:
            batch: list[int] = []
            for key in sorted(self._blocks):
                batch += _split_block(key, self._blocks.pop(key))
                if len(batch) >= _BATCH_SIZE_MIN:
                    yield batch
                    batch = []
            if batch:
                yield batch

    def ranks(self) -> "OidRanks":
        """What the place of each oid is, as they are now."""
        return OidRanks(self._blocks)


class OidRanks:
    """The places of the oids of a bitmap in their order: the first has 0."""

    def __init__(self, blocks: dict[int, int]) -> None:
        self._blocks: dict[int, tuple[int, int]] = {}
        """By key: how many oids are in lower blocks, and the block."""
        before = 0
        for key in sorted(blocks):
            self._blocks[key] = before, blocks[key]
            before += blocks[key].bit_count()

    def __getitem__(self, oid: Oid) -> int:
        """The place of the oid; KeyError when it is not in the bitmap."""
        number = _number(oid)
        before, block = self._blocks[number >> _BLOCK_BITS]
        place = number & _BLOCK_MASK
        if not block >> place & 1:
            raise KeyError(oid)
        return before + (block & ((1 << place) - 1)).bit_count()


def find_reachable(
    load_refs: Callable[[list[Oid]], Iterable[tuple[Oid, bytes]]],
) -> tuple[OidBitmap, OidBitmap]:
    """What can be reached from the root: the objects that there are, and those that are missing.

    load_refs: gives the packed references of those of several objects that there are.
    """
    reached = OidBitmap([ROOT_OID])
    missing = OidBitmap()
    todo = OidBitmap([ROOT_OID])
    for batch in todo.take_all():
        absent = set(batch)
        for oid, refs in load_refs(batch):
            absent.discard(oid)
            for ref in split_oids(refs):
                if ref not in reached:
                    reached.add(ref)
                    todo.add(ref)
        for oid in absent:
            missing.add(oid)
    for oid in missing:
        reached.discard(oid)
    return reached, missing
