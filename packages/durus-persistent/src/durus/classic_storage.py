"""The calls of a classic storage, those of Durus 4.x: the base class, and a mixin that has them.

`Storage` is the base class that programs written for Durus 4.x subclass; it serves one caller.
The storages of Durus 5 implement `durus.interfaces.Storage` instead, and `ClassicCalls` gives them
the classic calls as well.  (`durus.classic` goes the other way.)  Programs import both from
`durus.storage`.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import ClassVar, Self

from durus import interfaces
from durus.crawl import crawl
from durus.interfaces import ROOT_OID, Oid, Record, Tid, Transaction
from durus.record import record_from_classic, record_to_classic, unpack_record

__all__ = ["ClassicCalls", "Storage"]


class Storage:
    """The classic storage of Durus 4.x, for one caller: subclass it, and implement the calls.

    Its records are bytes, as `durus.serialize.pack_record` makes them.  A `Connection` takes an
    instance as it takes any other storage.
    """

    is_remote: ClassVar[bool] = False
    """Its records come from a server: a connection then imports no modules because of them."""

    def __init__(self) -> None:
        raise RuntimeError("Storage is abstract")

    def load(self, oid: bytes) -> bytes:
        """The record of this oid.

        Raises KeyError when there is none, and ReadConflictError when somebody else changed it
        and `sync()` has not said so yet.
        """
        raise NotImplementedError

    def begin(self) -> None:
        """Begin a commit; what was stored for one that did not end is forgotten."""
        raise NotImplementedError

    def store(self, oid: bytes, record: bytes) -> None:
        """Add a record to the commit."""
        raise NotImplementedError

    def end(self, handle_invalidations: Callable[[Sequence[bytes]], object] | None = None) -> None:
        """Conclude the commit.

        `handle_invalidations` is called with the oids that others changed since the last
        `sync()`, if there are any; it may raise ConflictError, and then nothing is stored.
        """
        raise NotImplementedError

    def sync(self) -> Sequence[bytes]:
        """The oids that others changed since the last call."""
        raise NotImplementedError

    def new_oid(self) -> bytes:
        """An oid that is not in use."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what the storage holds open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def get_packer(self) -> Iterator[object] | None:
        """An iterator that packs a little at each step, or None when there is no such thing."""
        return None

    def pack(self) -> None:
        """Remove the records that are no longer needed, if this storage can do that."""

    def bulk_load(self, oids: Iterable[bytes]) -> Iterator[bytes]:
        """The records of several oids, in their order; KeyError when there is no such record."""
        for oid in oids:
            yield self.load(oid)

    def gen_oid_record(
        self, start_oid: bytes | None = None, batch_size: int = 100
    ) -> Iterator[tuple[bytes, bytes]]:
        """The oids and records that can be reached from `start_oid`, breadth first.

        Without `start_oid` from the root; a storage may then yield what is unreachable as well.
        """
        start_oid = ROOT_OID if start_oid is None else start_oid
        return crawl(self._load_with_oids, _refs_of_classic, Oid(start_oid), batch_size)

    def _load_with_oids(self, oids: list[Oid]) -> Iterator[tuple[Oid, bytes]]:
        return ((unpack_record(record)[0], record) for record in self.bulk_load(oids))


def _refs_of_classic(record: bytes) -> bytes:
    return unpack_record(record)[2]


@dataclass(slots=True)
class _ClassicCaller:
    """What a storage remembers of the one caller of its classic calls."""

    tid: Tid
    """The caller was told of all changes up to this tid."""
    writes: dict[Oid, Record] = field(default_factory=dict)
    unreported: list[Oid] = field(default_factory=list)
    """Changed before `tid`, but there was no `handle_invalidations` to say it to."""


class _AllExcept:
    """Accessed is everything but `handled`: the changes that the caller has agreed to."""

    def __init__(self, handled: set[Oid]) -> None:
        self._handled = handled

    def overlap(self, oids: Iterable[Oid]) -> list[Oid]:
        return [oid for oid in oids if oid not in self._handled]


class ClassicCalls(Storage, interfaces.Storage):
    """Gives a storage of the new interface the classic calls, for one caller.

    A subclass implements `durus.interfaces.Storage`, and nothing more; the state of the classic
    caller is made when it first calls.
    """

    _classic: _ClassicCaller | None = None

    @property
    def _caller(self) -> _ClassicCaller:
        if self._classic is None:
            self._classic = _ClassicCaller(self.tid)
        return self._classic

    def load(self, oid: bytes) -> bytes:
        """The newest record of this oid; DurusKeyError when there is none."""
        (record,) = self.bulk_load([oid])
        return record

    def bulk_load(self, oids: Iterable[bytes]) -> Iterator[bytes]:
        assert self._caller  # what is read from now on is what sync() must speak of
        snapshot = self.snapshot()
        try:
            for oid in map(Oid, oids):
                yield record_to_classic(oid, snapshot.load(oid).record)
        finally:
            snapshot.close()

    def begin(self) -> None:
        self._caller.writes = {}

    def store(self, oid: bytes, record: bytes) -> None:
        """Add a record to the commit; ValueError when it is the record of another oid."""
        found, new = record_from_classic(record)
        if found != oid:
            raise ValueError(f"the record for oid {oid!r} says that its oid is {found!r}")
        self._caller.writes[found] = new

    def end(self, handle_invalidations: Callable[[Sequence[bytes]], object] | None = None) -> None:
        """Commit what was stored, if anything; in any case it is no longer pending.

        Raises WriteConflictError, besides what `handle_invalidations` raises, when one of the
        records was changed by somebody else since the last `sync()`.
        """
        caller = self._caller
        writes = caller.writes
        self.begin()
        if not writes:
            return
        snapshot = self.snapshot()
        try:
            existing = {oid for oid, _ in snapshot.load_many(writes)}
        finally:
            snapshot.close()
        others = self._changed_since_sync(snapshot.tid)
        if others:
            (handle_invalidations or caller.unreported.extend)(others)
        result = self.commit(
            Transaction(
                id=int.from_bytes(os.urandom(8), "big"),
                snapshot_tid=caller.tid,
                accessed=_AllExcept(set(others) - writes.keys()),
                created=frozenset(writes.keys() - existing),
                writes=writes,
                time_ns=time.time_ns(),
            )
        )
        caller.tid = result.tid

    def sync(self) -> list[Oid]:
        """The oids that others changed since the last `sync()` or `end()`."""
        caller = self._caller
        snapshot = self.snapshot()
        snapshot.close()
        changed = self._changed_since_sync(snapshot.tid)
        if caller.unreported:
            changed = sorted({*caller.unreported, *changed})
            caller.unreported.clear()
        caller.tid = snapshot.tid
        return changed

    def _changed_since_sync(self, until: Tid) -> list[Oid]:
        changed = self.changes(self._caller.tid, until)
        if changed is None:  # the classic calls cannot say "everything" in any other way
            return [Oid(oid) for oid, _ in self.gen_oid_record()]
        return sorted(changed)

    def new_oid(self) -> Oid:
        return self.reserve_oids(1)[0]
