"""`MemoryStorage`: the whole of the storage interface in the fewest lines, the model of all others.

Programs import it from `durus.storage`.
"""

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from operator import attrgetter

from durus import interfaces
from durus.classic_storage import ClassicCalls
from durus.error import (
    DanglingReferenceError,
    DurusKeyError,
    HistoryUnavailableError,
    StorageClosedError,
    StorageOpenError,
    WriteConflictError,
)
from durus.fork_locks import renew_lock_in_children
from durus.interfaces import (
    CHANGES_MAX,
    NO_TID,
    ROOT_OID,
    CommitResult,
    CommittedTransaction,
    Oid,
    Progress,
    Revision,
    Tid,
    Transaction,
    check_created,
)
from durus.record import split_oids
from durus.times import When, tid_at

__all__ = ["MemorySnapshot", "MemoryStorage", "open_memory"]

_tid_of = attrgetter("tid")


class MemorySnapshot:
    """Reads lists of revisions, oldest first, that are only ever appended to: it needs no lock."""

    def __init__(self, storage: "MemoryStorage", tid: Tid) -> None:
        self.tid = tid
        self._storage = storage
        # A pack puts a new dictionary into the storage's place, and leaves this one alone.
        self._revisions: dict[Oid, list[Revision]] | None = storage._revisions

    def find(self, oid: Oid) -> Revision | None:
        """As `load`, but None when there is no such object."""
        self._storage._check_open()
        if self._revisions is None:
            raise StorageClosedError("the snapshot is closed")
        revisions = self._revisions.get(oid, ())
        count = bisect_right(revisions, self.tid, key=_tid_of)
        return revisions[count - 1] if count else None

    def load(self, oid: Oid) -> Revision:
        revision = self.find(oid)
        if revision is None:
            raise DurusKeyError(oid)
        return revision

    def load_many(self, oids: Iterable[Oid]) -> Iterator[tuple[Oid, Revision]]:
        for oid in oids:
            revision = self.find(oid)
            if revision is not None:
                yield oid, revision

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
        self._unfinished: Collection[Oid] = ()
        """What the last commit has written, which an interrupt may have ended in the middle."""
        self._closed = False
        renew_lock_in_children(self)

    @property
    def tid(self) -> Tid:
        return self._tid

    @property
    def readonly(self) -> bool:
        return False

    def snapshot(self, at: Tid | None = None) -> interfaces.Snapshot:
        with self._lock:
            self._begin_call()
            if at is None or at >= self._tid:
                return self._snapshot_of(self._tid)
            if at < self._horizon:
                raise HistoryUnavailableError(
                    f"there is no snapshot at tid {at}: what was before tid {self._horizon} has "
                    "been packed away, or was never kept"
                )
            count = bisect_right(self._transactions, at, key=_tid_of)
            tid = self._transactions[count - 1].tid if count else self._horizon
            return self._snapshot_of(tid)

    def _snapshot_of(self, tid: Tid) -> interfaces.Snapshot:
        return MemorySnapshot(self, tid)

    def commit(self, transaction: Transaction) -> CommitResult:
        writes, created = transaction.writes, transaction.created
        with self._lock:
            self._begin_call()
            since = transaction.snapshot_tid
            written = self._written(since, self._tid)
            if written is None:  # a pack and very many changes came in between
                raise WriteConflictError()
            check_created(created)
            refs = {ref for record in writes.values() for ref in split_oids(record.refs)}
            existing = self._find_existing({*writes, *refs})
            conflicts = {oid for oid in writes if (oid in existing) == (oid in created)}
            conflicts.update(transaction.accessed.overlap(written))
            if conflicts:
                raise WriteConflictError(sorted(conflicts))
            dangling = [r for r in refs if r not in writes and r not in existing]
            if dangling:
                raise DanglingReferenceError(sorted(dangling))
            # Oids need not come from reserve_oids(): a connection just takes that of the root.
            self._next_oid = max(self._next_oid, int.from_bytes(max(writes)) + 1)
            tid = Tid(max(time.time_ns(), self._tid + 1))
            self._unfinished = writes.keys()
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
            self._unfinished = ()
            return CommitResult(tid, _limit(written))

    def changes(self, since: Tid, until: Tid) -> frozenset[Oid] | None:
        with self._lock:
            self._begin_call()
            return _limit(self._written(since, until))

    def _find_existing(self, oids: Collection[Oid]) -> set[Oid]:
        # Set operators with a dictionary's keys would visit every object there is.
        return {oid for oid in oids if oid in self._revisions}

    def _written(self, since: Tid, until: Tid) -> set[Oid] | None:
        """What the transactions with since < tid <= until wrote; None if it is not known."""
        if since < self._forgotten_tid:
            return None
        start = bisect_right(self._transactions, since, key=_tid_of)
        stop = bisect_right(self._transactions, until, key=_tid_of)
        return {oid for transaction in self._transactions[start:stop] for oid in transaction.oids}

    def reserve_oids(self, count: int) -> Sequence[Oid]:
        if count < 1:
            raise ValueError(f"{count} oids cannot be reserved")
        with self._lock:
            self._begin_call()
            first = self._next_oid
            self._next_oid += count
        return [Oid(number.to_bytes(8)) for number in range(first, first + count)]

    def transactions(
        self, start: Tid | None = None, stop: Tid | None = None
    ) -> Iterator[CommittedTransaction]:
        with self._lock:
            self._begin_call()
            start = max(self._horizon, NO_TID if start is None else start)
            return iter(
                [t for t in self._transactions if t.tid >= start and (stop is None or t.tid < stop)]
            )

    def revisions(self, oid: Oid) -> Iterator[Revision]:
        with self._lock:
            self._begin_call()
            if oid not in self._revisions:
                raise DurusKeyError(oid)
            return iter(self._revisions[oid][::-1])

    def find(self, transaction_id: int) -> Tid | None:
        with self._lock:
            self._begin_call()
            return next((t.tid for t in self._transactions if t.id == transaction_id), None)

    def pack(
        self,
        *,
        keep: When | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Forget history, and the objects that nothing leads to which is kept.

        keep: the history since this tid, time, or so long ago stays; by default none.
        progress: is told at the end how many objects were kept.

        Open snapshots go on seeing what they saw.  Without a root nothing happens.
        """
        keep = None if keep is None else tid_at(keep)
        with self._lock:
            self._begin_call()
            if not self._find_existing([ROOT_OID]):
                return
            count = len(self._transactions)
            if keep is not None:
                count = bisect_right(self._transactions, keep, key=_tid_of)
            horizon = self._transactions[count - 1].tid if count else NO_TID
            if horizon < self._horizon:
                return
            later = self._transactions[count:]
            kept: dict[Oid, list[Revision]] = {}
            todo = [*self._find_roots(), *(oid for t in later for oid in t.oids)]
            while todo:
                oid = todo.pop()
                revisions = self._revisions.get(oid)
                if revisions and oid not in kept:
                    older = bisect_right(revisions, horizon, key=_tid_of)
                    kept[oid] = revisions[max(0, older - 1) :]
                    todo.extend(ref for _, record in kept[oid] for ref in split_oids(record.refs))
            # Connections still ask what changed since their snapshots, and for transaction ids.
            room = CHANGES_MAX - sum(len(transaction.oids) for transaction in later)
            for index in reversed(range(count)):
                room -= len(self._transactions[index].oids)
                if room < 0:
                    self._forgotten_tid = self._transactions[index].tid
                    del self._transactions[: index + 1]
                    break
            self._revisions = kept
            self._horizon = horizon
        if progress:
            progress(Progress("packing", len(kept), len(kept)))

    def _find_roots(self) -> set[Oid]:
        """The objects that a pack keeps whether anything leads to them or not."""
        return {ROOT_OID}

    def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StorageClosedError(f"{self} is closed; what it held is gone")

    # What follows is called with the lock held.

    def _begin_call(self) -> None:
        self._check_open()
        self._take_back_unfinished()

    def _take_back_unfinished(self) -> None:
        """Remove what an interrupt, or a fork, has left of a commit."""
        for oid in self._unfinished:
            revisions = self._revisions.get(oid, [])
            while revisions and revisions[-1].tid > self._tid:
                revisions.pop()
            if not revisions:
                self._revisions.pop(oid, None)
        while self._transactions and self._transactions[-1].tid > self._tid:
            self._transactions.pop()
        self._unfinished = ()


def _limit(oids: set[Oid] | None) -> frozenset[Oid] | None:
    return None if oids is None or len(oids) > CHANGES_MAX else frozenset(oids)


def open_memory(uri: str, *, readonly: bool, create: bool) -> MemoryStorage:
    """A new storage in memory: the opener of the scheme `memory`."""
    if readonly or not create:
        raise StorageOpenError(
            uri, "a storage in memory is always a new one: open it with create, and not read-only"
        )
    return MemoryStorage()
