"""Storages of Durus 4.x behind the new interface.

`ClassicAdapter` makes an `interfaces.Storage` of any `durus.storage.Storage`: those of programs
written for 4.x, and ours for the formats and the protocol of 4.x.  A classic storage has neither
tids nor history: it loads what is newest, and says which oids others changed.  So the adapter
gives every batch of changes that it learns of a tid of its own, and remembers the recent ones.
The invariant: *a snapshot never answers with a record that was changed after its tid*; it raises
ReadConflictError instead.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, Protocol, runtime_checkable

from durus import interfaces, serialize
from durus.classic_storage import Storage
from durus.error import (
    CommitOutcomeUnknownError,
    ConflictError,
    DanglingReferenceError,
    DurusError,
    DurusKeyError,
    ProtocolError,
    ReadConflictError,
    ReadOnlyError,
    StorageClosedError,
    StorageError,
    WriteConflictError,
)
from durus.fork_locks import renew_lock_in_children
from durus.interfaces import (
    CHANGES_MAX,
    NO_TID,
    ROOT_OID,
    CommitResult,
    Oid,
    Record,
    Revision,
    Tid,
    Transaction,
    check_created,
)
from durus.record import record_from_classic, record_to_classic, split_oids, unpack_record

__all__ = ["ClassicAdapter"]

_LOADED_AT_ONCE: Final = 100
_PACK_TURN_S: Final = 0.005
_PACK_PAUSE_S: Final = 0.0005


@runtime_checkable
class _ReconnectingStorage(Protocol):
    """A classic storage whose server may go away, and come back."""

    @property
    def is_cut_off(self) -> bool: ...

    def reconnect(self) -> None: ...


class _AdapterSnapshot:
    def __init__(self, adapter: "ClassicAdapter", tid: Tid) -> None:
        self.tid = tid
        self._adapter = adapter

    def load(self, oid: Oid) -> Revision:
        return self._adapter._load_at(self.tid, oid)

    def load_many(self, oids: Iterable[Oid]) -> Iterator[tuple[Oid, Revision]]:
        remaining = iter(oids)
        while batch := list(islice(remaining, _LOADED_AT_ONCE)):
            yield from self._adapter._load_many_at(self.tid, batch)

    def close(self) -> None:
        pass  # the storage keeps nothing for it


class ClassicAdapter:
    """One classic storage, for any number of connections and threads, without history.

    The storage, `classic`, serves one caller, which is the adapter: nobody else may use it
    meanwhile.  All calls to it happen under one lock.
    """

    def __init__(self, storage: Storage) -> None:
        self.classic = self._storage = storage
        self._lock = threading.Lock()
        renew_lock_in_children(self)
        self._closed = False
        self._tid = Tid(time.time_ns())
        self._recent: deque[tuple[Tid, Collection[Oid]]] = deque()
        """The changes with tids above `_forgotten_tid`, oldest first: up to CHANGES_MAX oids."""
        self._recent_count = 0
        self._forgotten_tid = self._tid
        self._changed_at: dict[Oid, Tid] = {}
        """The newest tid of each oid in `_recent`."""
        self._spare_oids: list[Oid] = []
        self._reserved: set[Oid] = set()
        """Handed out and not yet stored: known not to exist, without asking for them."""
        self._removed: set[Oid] = set()
        """Packed away: not handed out again by us, since somebody may still hold a reference."""

    def __repr__(self) -> str:
        return f"ClassicAdapter({self._storage})"

    @property
    def tid(self) -> Tid:
        return self._tid

    @property
    def readonly(self) -> bool:
        return bool(getattr(self._storage, "readonly", False))

    def snapshot(self) -> interfaces.Snapshot:
        with self._lock:
            self._check_open()
            self._sync_or_reconnect()
            return _AdapterSnapshot(self, self._tid)

    def changes(self, since: Tid, until: Tid) -> frozenset[Oid] | None:
        with self._lock:
            self._check_open()
            return self._changes(since, until)

    def reserve_oids(self, count: int) -> Sequence[Oid]:
        if count < 1:
            raise ValueError(f"{count} oids cannot be reserved")
        with self._lock:
            self._check_writable()
            oids = [self._new_oid() for _ in range(count)]
            self._reserved.update(oids)
            return oids

    def commit(self, transaction: Transaction) -> CommitResult:
        """Store the transaction with the classic calls.

        To check that they exist, the old records of the objects are loaded, and those objects that
        are referred to newly and are not written along.  References that stood there
        before are not checked: databases of 4.x may have dangling ones.  A server does this
        itself, so a remote storage is not asked, unless it refuses the transaction.
        """
        compress = serialize.WRITE_COMPRESSED_STATE_PICKLES  # asked each time: users may set it
        writes = transaction.writes
        since = transaction.snapshot_tid
        with self._lock:
            self._check_writable()
            check_created(transaction.created)
            existing = self._load_existing(transaction.created - self._reserved)
            is_remote = self._storage.is_remote
            find_absent = self._find_never_stored if is_remote else self._find_absent
            absent, dangling = find_absent(writes, transaction.created)
            # After the loads, which may have brought more changes to light.
            changed = self._changes(since, self._tid)
            if changed is None:
                raise WriteConflictError()
            if conflicts := {*existing, *absent, *transaction.accessed.overlap(changed)}:
                raise WriteConflictError(sorted(conflicts))
            if dangling:
                raise DanglingReferenceError(sorted(dangling))
            reported: set[Oid] = set()

            def handle_invalidations(oids: Iterable[bytes]) -> None:
                reported.update(map(Oid, oids))
                if conflicts := transaction.accessed.overlap(sorted(reported)):
                    raise WriteConflictError(conflicts)

            self._take_root_oid(transaction.created)
            records = {
                oid: record_to_classic(oid, record, compress=compress)
                for oid, record in writes.items()
            }
            try:
                self._storage.begin()
                for oid, classic in records.items():
                    self._storage.store(oid, classic)
            except BaseException as error:
                self._storage.begin()  # forget them
                if isinstance(error, DurusError) or not isinstance(error, Exception):
                    raise
                raise self._not_committed(error) from error
            try:
                self._storage.end(handle_invalidations)
            except ConflictError as error:
                self._storage.begin()
                self._note_changes(reported)
                is_unexplained = is_remote and error.oids is None
                if is_unexplained and (oids := self._find_dangling_now(transaction)):
                    raise DanglingReferenceError(oids) from error
                if isinstance(error, WriteConflictError):
                    raise
                raise WriteConflictError(error.oids) from error
            except CommitOutcomeUnknownError as error:
                self._doubt(transaction, reported)
                raise CommitOutcomeUnknownError(transaction.id, error.reason) from error
            except ProtocolError:  # a server has answered, but nobody knows what
                self._doubt(transaction, reported)
                raise
            except StorageError:
                self._note_changes(reported)
                raise
            except BaseException as error:
                if isinstance(error, Exception) and self._holds_none_of(records):
                    self._storage.begin()
                    self._note_changes(reported)
                    raise self._not_committed(error) from error
                self._doubt(transaction, reported)
                if not isinstance(error, Exception):
                    raise
                raise CommitOutcomeUnknownError(
                    transaction.id, f"{type(error).__name__}: {error}"
                ) from error
            try:
                self._reserved -= writes.keys()
                self._note_changes(reported)
                changed = self._changes(since, self._tid)
                self._note_changes(writes.keys())
            except BaseException:  # an interrupt: it is stored, and all shall hear of it
                self._doubt(transaction, reported)
                raise
            return CommitResult(self._tid, changed)

    def pack(self) -> None:
        """Pack the classic storage; what it then reports as removed counts as changed.

        If the storage packs in steps, others are served between them.
        """
        with self._lock:
            self._check_writable()
            packer = self._storage.get_packer()
            if packer is None:
                self._storage.pack()
                self._removed |= self._sync()
        if packer is None:
            return
        try:
            while self._pack_for_a_while(packer):
                time.sleep(_PACK_PAUSE_S)  # a lock that is taken again at once lets nobody else in
        finally:
            if isinstance(packer, Generator):
                with self._lock:  # what it does at its end is a call to the storage, too
                    packer.close()

    def _pack_for_a_while(self, packer: Iterator[object]) -> bool:
        """Whether there is more to pack."""
        until = time.monotonic() + _PACK_TURN_S
        with self._lock:
            self._check_open()
            try:
                return any(time.monotonic() >= until for _ in packer)
            finally:  # here, where no snapshot of another thread can come before
                self._removed |= self._sync()

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._storage.close()

    # What follows is called with the lock held.

    def _check_open(self) -> None:
        if self._closed:
            raise StorageClosedError(f"{self._storage} is closed")

    def _check_writable(self) -> None:
        self._check_open()
        if self.readonly:
            raise ReadOnlyError(f"{self._storage} is open read-only")

    def _sync(self) -> set[Oid]:
        """Learn of what others changed, since when this was last asked."""
        changed = {Oid(oid) for oid in self._storage.sync()}
        self._note_changes(changed)
        return changed

    def _sync_or_reconnect(self) -> None:
        """As `_sync`; if the storage was cut off from its server, connect again."""
        storage = self._storage
        if not isinstance(storage, _ReconnectingStorage):
            self._sync()
            return
        if not storage.is_cut_off:
            try:
                self._sync()
                return
            except DurusError:
                if not storage.is_cut_off:
                    raise
        storage.reconnect()
        self._forget_everything()

    def _forget_everything(self) -> None:
        """Anything may have changed, and oids that were handed out may be handed out again."""
        self._tid = self._forgotten_tid = Tid(max(time.time_ns(), self._tid + 1))
        self._recent.clear()
        self._recent_count = 0
        self._changed_at.clear()
        self._spare_oids.clear()
        self._reserved.clear()

    def _not_committed(self, error: Exception) -> StorageError:
        return StorageError(f"{self._storage}: the transaction was not committed: {error}")

    def _doubt(self, transaction: Transaction, reported: set[Oid]) -> None:
        """It may have been stored: everybody shall look again, the committer included."""
        self._reserved -= transaction.created
        self._note_changes(reported | transaction.writes.keys())

    def _note_changes(self, oids: Collection[Oid]) -> None:
        """Give these changes a tid."""
        if not oids:
            return
        self._tid = Tid(max(time.time_ns(), self._tid + 1))
        self._recent.append((self._tid, frozenset(oids)))
        self._recent_count += len(oids)
        self._changed_at.update(dict.fromkeys(oids, self._tid))
        while self._recent_count > CHANGES_MAX:
            tid, forgotten = self._recent.popleft()
            self._recent_count -= len(forgotten)
            self._forgotten_tid = tid
            for oid in forgotten:
                if self._changed_at[oid] == tid:
                    del self._changed_at[oid]

    def _changes(self, since: Tid, until: Tid) -> frozenset[Oid] | None:
        if since < self._forgotten_tid:
            return None
        found: set[Oid] = set()
        for tid, oids in reversed(self._recent):
            if tid <= since:
                break
            if tid <= until:
                found.update(oids)
        return frozenset(found)

    def _load(self, oid: Oid, tid: Tid | None = None) -> bytes:
        """The newest classic record of `oid`; with `tid`, it must not be newer than that."""
        if tid is not None:
            self._check_unchanged(tid, [oid])
        try:
            try:
                return self._storage.load(oid)
            except ReadConflictError:
                self._sync()  # it may have been changed, and we were not told yet
                if tid is not None:
                    self._check_unchanged(tid, [oid])
                return self._storage.load(oid)
        except DurusKeyError:
            raise
        except KeyError as error:
            raise DurusKeyError(oid) from error

    def _load_existing(self, oids: Collection[Oid]) -> dict[Oid, bytes]:
        """The newest classic records of those of `oids` that exist."""
        found: dict[Oid, bytes] = {}
        if oids:
            try:
                return dict(zip(oids, self._storage.bulk_load(oids), strict=True))
            except (KeyError, ReadConflictError):  # one by one, to find out which
                pass
        for oid in oids:
            with contextlib.suppress(DurusKeyError):
                found[oid] = self._load(oid)
        return found

    def _check_unchanged(self, tid: Tid, oids: Iterable[Oid]) -> None:
        for oid in oids:
            if tid < self._forgotten_tid or tid < self._changed_at.get(oid, NO_TID):
                raise ReadConflictError([oid])

    def _load_at(self, tid: Tid, oid: Oid) -> Revision:
        with self._lock:
            self._check_open()
            return self._revision(self._load(oid, tid))[1]

    def _load_many_at(self, tid: Tid, oids: Sequence[Oid]) -> list[tuple[Oid, Revision]]:
        with self._lock:
            self._check_open()
            self._check_unchanged(tid, oids)
            try:
                records = list(self._storage.bulk_load(oids))
            except (KeyError, ReadConflictError):  # one by one, to find out which
                records = []
                for oid in oids:
                    with contextlib.suppress(DurusKeyError):
                        records.append(self._load(oid, tid))
            return [self._revision(record) for record in records]

    def _revision(self, classic: bytes) -> tuple[Oid, Revision]:
        oid, record = record_from_classic(classic)
        return oid, Revision(self._changed_at.get(oid, NO_TID), record)

    def _holds_none_of(self, records: Mapping[Oid, bytes]) -> bool:
        """Whether it is certain that none of these records is stored."""
        for oid, record in records.items():
            try:
                if self._storage.load(oid) == record:
                    return False
            except KeyError:
                continue
            except Exception:
                return False
        return True

    def _find_absent(
        self, writes: Mapping[Oid, Record], created: frozenset[Oid]
    ) -> tuple[set[Oid], set[Oid]]:
        """What the transaction changes, and what it newly refers to, that does not exist."""
        changed = writes.keys() - created
        old_records = self._load_existing(changed)
        suspects: set[Oid] = set()
        for oid, record in writes.items():
            refs = {ref for ref in split_oids(record.refs) if ref not in writes}
            if oid in old_records:
                refs -= set(split_oids(unpack_record(old_records[oid])[2]))
            suspects |= refs
        return changed - old_records.keys(), suspects - self._find_existing(suspects)

    def _find_existing(self, oids: Iterable[Oid]) -> set[Oid]:
        """Those of `oids` that exist; few of their records, which may be large, are in memory."""
        found: set[Oid] = set()
        remaining = iter(oids)
        while batch := list(islice(remaining, _LOADED_AT_ONCE)):
            found.update(self._load_existing(batch))
        return found

    def _find_never_stored(
        self, writes: Mapping[Oid, Record], created: frozenset[Oid]
    ) -> tuple[set[Oid], set[Oid]]:
        """As `_find_absent`, as far as it is known without asking."""
        refs = {ref for record in writes.values() for ref in split_oids(record.refs)}
        return (writes.keys() - created) & self._reserved, (refs - writes.keys()) & self._reserved

    def _find_dangling_now(self, transaction: Transaction) -> list[Oid]:
        """Why a server has refused a transaction, if it is not that somebody has committed.

        That it reports changes says nothing: perhaps they are what a pack has removed.
        """
        try:
            if transaction.accessed.overlap(self._sync()):
                return []
            return sorted(self._find_absent(transaction.writes, transaction.created)[1])
        except (DurusError, OSError):
            return []

    def _new_oid(self) -> Oid:
        if self._spare_oids:
            return self._spare_oids.pop()
        while (oid := Oid(self._storage.new_oid())) in self._removed:
            pass
        return oid

    def _take_root_oid(self, created: frozenset[Oid]) -> None:
        """Let the storage hand out the oid of the root before it is stored.

        A connection takes that oid for granted; to a classic storage an oid that is not from
        new_oid() may be a surprise, and it would hand the same one out later.
        """
        if ROOT_OID in created - self._reserved:
            oid = Oid(self._storage.new_oid())
            if oid != ROOT_OID:
                self._spare_oids.append(oid)
