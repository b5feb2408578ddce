"""What one transaction sees of a storage, and what it has accessed there.

A view reads from a snapshot at a tid S, and keeps the oids accessed (reading or writing), apart
from any cache.  What savepoints hold comes before what the snapshot has.  There are two ways to
read:

    View           the classic rule of Durus: an object that was changed after S is never loaded
                   next to what was accessed at S.  Either nothing accessed has changed, then S
                   moves on to the newest transaction and `forget` is called with what changed; or
                   ReadConflictError.
    SnapshotView   S stays for as long as the transaction does, so reading never conflicts.

`durus.past` has the view that is never moved on, and changes nothing.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress

from durus.crawl import crawl, refs_of_revision
from durus.error import (
    DurusKeyError,
    ReadConflictError,
    ReadOnlyError,
    StorageClosedError,
    StorageError,
)
from durus.interfaces import ROOT_OID, CommitResult, Oid, Revision, Snapshot, Storage, Tid
from durus.oid_set import OidSet
from durus.persistent import PersistentObject

__all__ = ["SnapshotView", "View"]


class View:
    """The view of a connection, from one transaction to the next.

    forget: called with the oids that others changed, or None for all, before they are read anew.
    snapshot: the one to begin with, if it is not the newest.
    """

    def __init__(
        self,
        storage: Storage,
        forget: Callable[[frozenset[Oid] | None], None],
        snapshot: Snapshot | None = None,
    ) -> None:
        self.storage = storage
        self.accessed = OidSet()
        self.blind: set[Oid] = set()
        """What was changed without being accessed (see `durus.mergeable`)."""
        self.saved: dict[Oid, Revision] = {}
        """What savepoints of the transaction hold."""
        self._forget = forget
        self._closed = False
        self._snapshot: Snapshot | None = None
        self._use(storage.snapshot() if snapshot is None else snapshot)

    @property
    def tid(self) -> Tid:
        """The newest transaction that the connection sees."""
        return self._tid

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot; StorageClosedError after close(), StorageError in a forked child."""
        self.check_process()
        if self._snapshot is None:
            self._renew()
            assert self._snapshot is not None
        return self._snapshot

    def _use(self, snapshot: Snapshot) -> None:
        self._drop_snapshot()
        self._snapshot = snapshot
        self._pid = os.getpid()
        self._tid = snapshot.tid
        """What the connection's objects are up to date with: S, or what it committed after it."""
        # What others committed after S, as far as it was asked for (None: too much to tell).
        self._changed: frozenset[Oid] | None = frozenset()
        self._changed_until = snapshot.tid

    @property
    def is_inherited(self) -> bool:
        """Whether this process was forked after the transaction was begun."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """Raises StorageError in a process that was forked after the transaction was begun."""
        if self.is_inherited:
            raise StorageError(
                f"this transaction was begun by process {self._pid} before it forked this one, and "
                "cannot go on here: abort() begins a new one"
            )

    def _drop_snapshot(self) -> None:
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None

    def _renew(self) -> None:
        if self._closed:
            raise StorageClosedError(f"the connection to {self.storage} is closed")
        newest = self.storage.snapshot()
        if newest.tid != self._tid:
            self._forget(self.storage.changes(self._tid, newest.tid))
        self._use(newest)

    def begin(self) -> None:
        """Begin a new transaction, on the newest snapshot; StorageClosedError after close()."""
        self._renew()
        self._reset()

    def finish(self, result: CommitResult) -> None:
        """End a transaction that was committed; this does not fail, for the commit did not."""
        self.rest()
        self._forget(result.changed)
        self._tid = result.tid

    def rest(self) -> None:
        """End a transaction, and hold no snapshot until the next one needs it."""
        self._drop_snapshot()
        self._reset()

    def _reset(self) -> None:
        self.accessed = OidSet()
        self.blind = set()
        self.saved = {}

    def load(self, oid: Oid) -> Revision:
        """The revision of `oid` to read.  ReadConflictError, DurusKeyError, CorruptionError."""
        saved = self.saved.get(oid)
        if saved is not None:
            return saved
        self._check(oid)
        try:
            return self.snapshot.load(oid)
        except ReadConflictError:  # a storage without history has just learned of a change
            self._check(oid)
            return self.snapshot.load(oid)

    def load_referenced(self, oid: Oid) -> Revision:
        """As `load`, for an object that others refer to: so only a pack can have removed it."""
        try:
            return self.load(oid)
        except DurusKeyError as error:
            raise ReadConflictError([oid]) from error

    def note_change(self, obj: PersistentObject, *, is_blind: bool = False) -> None:
        """An object is about to be changed.  ReadOnlyError when this is the past."""
        self.check_process()
        assert obj._p_oid is not None
        if is_blind:
            self.blind.add(obj._p_oid)
        else:
            self.accessed.add(obj._p_oid)

    @property
    def is_writable(self) -> bool:
        return not self.storage.readonly

    def check_writable(self) -> None:
        """ReadOnlyError when nothing can be changed here."""
        if self.storage.readonly:
            raise ReadOnlyError(f"{self.storage} is open read-only")

    def crawl(
        self, start_oid: Oid = ROOT_OID, batch_size: int = 100
    ) -> Iterator[tuple[Oid, Revision]]:
        """Everything that can be reached from `start_oid`, breadth first."""
        return crawl(self._load_many, refs_of_revision, start_oid, batch_size)

    def _load_many(self, oids: list[Oid]) -> Iterator[tuple[Oid, Revision]]:
        saved = {oid: self.saved[oid] for oid in oids if oid in self.saved}
        stored = [oid for oid in oids if oid not in saved]
        for oid in stored:
            self._check(oid)
        snapshot = self.snapshot
        found = list(snapshot.load_many(stored))
        yield from saved.items()
        for oid, revision in found:
            if self._snapshot is snapshot:
                yield oid, revision
            else:  # while we yielded, somebody went on to a newer one
                with suppress(DurusKeyError):
                    yield oid, self.load(oid)

    def _check(self, oid: Oid) -> None:
        """Move on, or conflict, if `oid` was changed after S."""
        self.check_process()
        until = self.storage.tid
        if self._changed_until != until:
            more = self.storage.changes(self._changed_until, until)
            known = self._changed
            self._changed = None if more is None or known is None else known | more
            self._changed_until = until
        if self._changed is not None and oid not in self._changed:
            return
        newest = self.storage.snapshot()
        changed = self.storage.changes(self.snapshot.tid, newest.tid)
        if self._has_used(changed):
            newest.close()
            raise ReadConflictError([oid])
        self._forget(changed)
        self._use(newest)

    def _has_used(self, changed: frozenset[Oid] | None) -> bool:
        """Whether something was used that is among these (None: all there is)."""
        if changed is None:
            return bool(self.accessed or self.blind)
        return bool(self.accessed.overlap(changed)) or not self.blind.isdisjoint(changed)

    @property
    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Let the storage forget what only this view sees."""
        self._closed = True
        self._drop_snapshot()


class SnapshotView(View):
    """Sees what there was when the transaction began.  The storage must keep history."""

    def _check(self, oid: Oid) -> None:
        self.check_process()

    def load_referenced(self, oid: Oid) -> Revision:
        """As `load`: a pack does not take away what the snapshot sees."""
        return self.load(oid)
