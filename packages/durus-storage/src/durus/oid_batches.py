"""Oids that a storage has reserved in its file, a batch at a time, and not handed out yet.

`FileStorage` and `SqliteStorage` have one each.  The invariant: *an oid is handed out once, and
only after its reservation is durable*.
"""

from collections.abc import Callable
from typing import Final

from durus.interfaces import Oid

__all__ = ["OidBatches"]

_BATCH_MIN: Final = 64
_BATCH_MAX: Final = 1024


class OidBatches:
    """The caller holds the lock of its storage.  Batches grow while they are used up."""

    def __init__(self) -> None:
        self._spare = range(0)
        self._batch = _BATCH_MIN

    def take(
        self, count: int, reserve: Callable[[int], range], exists: Callable[[Oid], bool]
    ) -> list[Oid]:
        """`count` oids that are in no use.

        reserve: reserves so many numbers, or more, in the file: numbers that are greater than those
            of all objects, so they are in no use at that moment; what it raises passes through.
        exists: is asked of those alone that were reserved earlier.
        """
        oids: list[Oid] = []
        while len(oids) < count:
            missing = count - len(oids)
            is_new = not self._spare
            if is_new:
                self._spare = reserve(max(missing, self._batch))
                self._batch = min(2 * self._batch, _BATCH_MAX)
            taken, self._spare = self._spare[:missing], self._spare[missing:]
            found = [Oid(number.to_bytes(8)) for number in taken]
            # Since then, a commit may have created one that was not handed out to it: the root.
            oids += found if is_new else [oid for oid in found if not exists(oid)]
        return oids
