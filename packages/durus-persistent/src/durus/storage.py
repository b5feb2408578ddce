"""Storages as programs name them: the classic base class, memory, and what counts objects.

`Storage` is the base class that programs written for Durus 4.x subclass; it serves one caller.
The storages of Durus 5 implement `durus.interfaces.Storage` instead, and `ClassicCalls` gives them
the classic calls as well.  (`durus.classic` goes the other way.)  `MemoryStorage` is the whole of
the new interface in the fewest lines: the model of all others.
"""

import contextlib
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from types import TracebackType
from typing import ClassVar, Self

from durus import interfaces
from durus.crawl import crawl, crawl_snapshot
from durus.error import (
    DanglingReferenceError,
    DurusKeyError,
    HistoryUnavailableError,
    StorageClosedError,
    StorageOpenError,
    WriteConflictError,
)
from durus.interfaces import (
    CHANGES_MAX,
    NO_TID,
    ROOT_OID,
    CommitResult,
    CommittedTransaction,
    Oid,
    Record,
    Revision,
    Tid,
    Transaction,
    check_created,
)
from durus.opening import open_storage
from durus.record import (
    extract_class_name,
    record_from_classic,
    record_to_classic,
    split_oids,
    unpack_record,
)

__all__ = [
    "ClassicCalls",
    "MemoryStorage",
    "Storage",
    "gen_oid_class",
    "gen_referring_oid_record",
    "get_census",
    "get_reference_index",
    "open_memory",
    "open_storage",
]


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


_tid_of = attrgetter("tid")


class _MemorySnapshot:
    """Reads lists of revisions, oldest first, that are only ever appended to: it needs no lock."""

    def __init__(self, storage: "MemoryStorage", tid: Tid) -> None:
        self.tid = tid
        self._storage = storage
        # A pack puts a new dictionary into the storage's place, and leaves this one alone.
        self._revisions: dict[Oid, list[Revision]] | None = storage._revisions

    def load(self, oid: Oid) -> Revision:
        self._storage._check_open()
        if self._revisions is None:
            raise StorageClosedError("the snapshot is closed")
        revisions = self._revisions.get(oid, ())
        count = bisect_right(revisions, self.tid, key=_tid_of)
        if not count:
            raise DurusKeyError(oid)
        return revisions[count - 1]

    def load_many(self, oids: Iterable[Oid]) -> Iterator[tuple[Oid, Revision]]:
        for oid in oids:
            with contextlib.suppress(DurusKeyError):
                yield oid, self.load(oid)

    def close(self) -> None:
        self._revisions = None


class MemoryStorage(ClassicCalls):
    """Keeps everything in memory: for tests, and for what need not last.

    It implements `HistoryStorage` and `PackableStorage`.
    """

    def __repr__(self) -> str:
        return f"<MemoryStorage @{id(self):x}>"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._revisions: dict[Oid, list[Revision]] = {}
        self._transactions: list[CommittedTransaction] = []
        self._tid = NO_TID
        self._horizon = NO_TID
        """No snapshot is older: pack dropped what it would see."""
        self._forgotten_tid = NO_TID
        """Pack dropped the transactions up to this one, so changes since before are unknown."""
        self._next_oid = 0
        self._closed = False

    @property
    def tid(self) -> Tid:
        return self._tid

    @property
    def readonly(self) -> bool:
        return False

    def snapshot(self, at: Tid | None = None) -> interfaces.Snapshot:
        with self._lock:
            self._check_open()
            if at is None or at >= self._tid:
                return _MemorySnapshot(self, self._tid)
            if at < self._horizon:
                raise HistoryUnavailableError(
                    f"there is no snapshot at tid {at}: what was before tid {self._horizon} has "
                    "been packed away"
                )
            count = bisect_right(self._transactions, at, key=_tid_of)
            tid = self._transactions[count - 1].tid if count else self._horizon
            return _MemorySnapshot(self, tid)

    def commit(self, transaction: Transaction) -> CommitResult:
        writes, created = transaction.writes, transaction.created
        with self._lock:
            self._check_open()
            since = transaction.snapshot_tid
            if since < self._forgotten_tid:  # a pack and very many changes came in between
                raise WriteConflictError()
            check_created(created)
            # Set operators with a dictionary's keys would visit every object there is.
            conflicts = {oid for oid in writes if (oid in self._revisions) == (oid in created)}
            conflicts.update(transaction.accessed.overlap(self._written(since, self._tid)))
            if conflicts:
                raise WriteConflictError(sorted(conflicts))
            refs = {ref for record in writes.values() for ref in split_oids(record.refs)}
            dangling = [r for r in refs if r not in writes and r not in self._revisions]
            if dangling:
                raise DanglingReferenceError(sorted(dangling))
            changed = self._changes(since, self._tid)
            # Oids need not come from reserve_oids(): a connection just takes that of the root.
            self._next_oid = max(self._next_oid, int.from_bytes(max(writes)) + 1)
            tid = Tid(max(time.time_ns(), self._tid + 1))
            for oid, record in writes.items():
                self._revisions.setdefault(oid, []).append(Revision(tid, record))
            self._transactions.append(
                CommittedTransaction(
                    tid=tid,
                    id=transaction.id,
                    time_ns=transaction.time_ns,
                    user=transaction.user,
                    note=transaction.note,
                    oids=tuple(writes),
                )
            )
            self._tid = tid  # last: this is what makes the transaction visible
            return CommitResult(tid, changed)

    def changes(self, since: Tid, until: Tid) -> frozenset[Oid] | None:
        with self._lock:
            self._check_open()
            return self._changes(since, until)

    def _changes(self, since: Tid, until: Tid) -> frozenset[Oid] | None:
        if since < self._forgotten_tid:
            return None
        changed = self._written(since, until)
        return None if len(changed) > CHANGES_MAX else frozenset(changed)

    def _written(self, since: Tid, until: Tid) -> set[Oid]:
        start = bisect_right(self._transactions, since, key=_tid_of)
        stop = bisect_right(self._transactions, until, key=_tid_of)
        return {oid for transaction in self._transactions[start:stop] for oid in transaction.oids}

    def reserve_oids(self, count: int) -> Sequence[Oid]:
        if count < 1:
            raise ValueError(f"{count} oids cannot be reserved")
        with self._lock:
            self._check_open()
            first = self._next_oid
            self._next_oid += count
        return [Oid(number.to_bytes(8)) for number in range(first, first + count)]

    def transactions(
        self, start: Tid | None = None, stop: Tid | None = None
    ) -> Iterator[CommittedTransaction]:
        with self._lock:
            self._check_open()
            start = max(self._horizon, NO_TID if start is None else start)
            return iter(
                [t for t in self._transactions if t.tid >= start and (stop is None or t.tid < stop)]
            )

    def revisions(self, oid: Oid) -> Iterator[Revision]:
        with self._lock:
            self._check_open()
            if oid not in self._revisions:
                raise DurusKeyError(oid)
            return iter(self._revisions[oid][::-1])

    def find(self, transaction_id: int) -> Tid | None:
        with self._lock:
            self._check_open()
            return next((t.tid for t in self._transactions if t.id == transaction_id), None)

    def pack(self) -> None:
        """Forget history, and the objects that cannot be reached from the root.

        Open snapshots go on seeing what they saw.  Without a root nothing happens.
        """
        with self._lock:
            self._check_open()
            if ROOT_OID not in self._revisions:
                return
            kept: dict[Oid, list[Revision]] = {}
            todo = [ROOT_OID]
            while todo:
                oid = todo.pop()
                if oid not in kept:
                    newest = self._revisions[oid][-1]
                    kept[oid] = [newest]
                    todo.extend(split_oids(newest.record.refs))
            # Connections still ask what changed since their snapshots, and for transaction ids.
            room = CHANGES_MAX
            for index in reversed(range(len(self._transactions))):
                room -= len(self._transactions[index].oids)
                if room < 0:
                    self._forgotten_tid = self._transactions[index].tid
                    del self._transactions[: index + 1]
                    break
            self._revisions = kept
            self._horizon = self._tid

    def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StorageClosedError("the memory storage is closed; what it held is gone")


# What is in a storage.


def _gen_oid_record(storage: Storage | interfaces.Storage) -> Iterator[tuple[bytes, bytes]]:
    if isinstance(storage, Storage):
        yield from storage.gen_oid_record()
        return
    with contextlib.closing(storage.snapshot()) as snapshot:
        for oid, revision in crawl_snapshot(snapshot):
            yield oid, record_to_classic(oid, revision.record)


def gen_referring_oid_record(
    storage: Storage | interfaces.Storage, referred_oid: bytes
) -> Iterator[tuple[bytes, bytes]]:
    """The oids and classic records of the objects that refer to `referred_oid`."""
    for oid, record in _gen_oid_record(storage):
        if referred_oid in split_oids(unpack_record(record)[2]):
            yield oid, record


def gen_oid_class(
    storage: Storage | interfaces.Storage, *classes: bytes | str
) -> Iterator[tuple[bytes, bytes]]:
    """The oids and class names (without module) of all objects, or of those of some classes."""
    wanted = {name.encode() if isinstance(name, str) else name for name in classes}
    for oid, record in _gen_oid_record(storage):
        class_name = extract_class_name(record)
        if not wanted or class_name in wanted:
            yield oid, class_name


def get_census(storage: Storage | interfaces.Storage) -> dict[bytes, int]:
    """How many objects there are of each class: {b"PersistentDict": 1, ...}."""
    census: dict[bytes, int] = {}
    for _, class_name in gen_oid_class(storage):
        census[class_name] = census.get(class_name, 0) + 1
    return census


def get_reference_index(storage: Storage | interfaces.Storage) -> dict[bytes, list[bytes]]:
    """For each oid that is referred to, the oids of the objects that do.  It may be large."""
    index: dict[bytes, list[bytes]] = {}
    for oid, record in _gen_oid_record(storage):
        for ref in split_oids(unpack_record(record)[2]):
            index.setdefault(ref, []).append(oid)
    return index


def open_memory(uri: str, *, readonly: bool, create: bool) -> MemoryStorage:
    """A new storage in memory: the opener of the scheme `memory`."""
    if readonly or not create:
        raise StorageOpenError(
            uri, "a storage in memory is always a new one: open it with create, and not read-only"
        )
    return MemoryStorage()
