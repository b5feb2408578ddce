"""What a transaction has changed and not committed: objects and savepoints, and storing them.

A connection has one of these.  A savepoint is a commit into memory: the records of what was changed
up to it are kept in the view (`View.saved`), so the objects count as saved again; a rollback takes
the records of later savepoints away, and makes ghosts of what was changed since.  Invariants:

    * A commit or a savepoint that fails leaves objects and storage as before: no object is marked
      saved before the storage has said yes, and new objects get their oids taken back.
    * What is changed is in `changed`, or in the records of a savepoint, or in both.
"""

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from durus.blob import BlobChunk
from durus.blob_upload import ChunkUpload
from durus.error import (
    CommitOutcomeUnknownError,
    ConflictError,
    DanglingReferenceError,
    DurusError,
    ProtocolError,
    TransactionEndedError,
    UnstorableError,
    WriteConflictError,
)
from durus.interfaces import NO_TID, CommitResult, Oid, Record, Revision, Transaction
from durus.merging import commit_merging
from durus.persistent import PersistentObject, _setattribute
from durus.serialize import ObjectWriter

if TYPE_CHECKING:
    from durus.connection import Connection

__all__ = ["Changes"]

_PICKLED_AGAIN_MAX: Final = 10
_ATTEMPTS_MAX: Final = 10
"""So often a commit is tried, if packs come in between it and what it has stored ahead."""


@dataclass(slots=True, eq=False)
class _Step:
    """What a savepoint has added to the records of those before it."""

    before: dict[Oid, Revision | None]
    """What they held of the objects that it has saved."""
    created: list[PersistentObject]
    """The new objects, parts of blobs included, which got their oids."""
    stored_ahead: set[Oid]
    """The parts of blobs that are in the storage already."""


@dataclass(slots=True)
class _Written:
    """Records that were made, and not stored."""

    objects: dict[Oid, tuple[PersistentObject, Record]]
    created: list[PersistentObject]
    chunks: dict[Oid, Record]
    """The parts of blobs that are not stored ahead."""
    stored_ahead: set[Oid]


class Changes:
    """What the current transaction of a connection has changed."""

    def __init__(self, connection: "Connection[Any]") -> None:
        self.changed: dict[Oid, PersistentObject] = {}
        """What was changed since the last savepoint."""
        self._connection = connection
        self._steps: list[_Step] = []
        self._writer: ObjectWriter | None = None
        self._is_rolling_back = False

    def __bool__(self) -> bool:
        return bool(self.changed or self._connection._view.saved)

    @property
    def needs_all_loaded(self) -> bool:
        """Whether nothing may be evicted now: what is changed counts as saved while records are
        made, and what was new is loaded before a rollback takes its records away."""
        return self._writer is not None or self._is_rolling_back

    def discard(self) -> None:
        """Know nothing more of what was changed: the connection is closed."""
        self.changed.clear()
        self._steps.clear()

    # Storing

    def commit(self, objects: Iterable[PersistentObject] | None = None) -> CommitResult:
        """Store all that is changed, or just these objects, and the new ones that they lead to."""
        objects = self.changed.values() if objects is None else objects
        saved = {oid for step in self._steps for oid in step.stored_ahead}
        for attempts_left in reversed(range(_ATTEMPTS_MAX)):
            ahead: set[Oid] = set()
            try:
                return self._commit(objects, ahead)
            except DanglingReferenceError as error:
                if not (ahead | saved).issuperset(error.oids):
                    raise
                # A pack has removed parts of blobs, as nothing referred to them yet.
                if not attempts_left or not ahead.issuperset(error.oids):
                    raise WriteConflictError(error.oids) from error
        raise AssertionError

    def _commit(self, objects: Iterable[PersistentObject], ahead: set[Oid]) -> CommitResult:
        """ahead: is told which parts of blobs are stored ahead."""
        connection, view = self._connection, self._connection._view
        with self._writing(objects) as (writer, written):
            ahead |= written.stored_ahead
            writes = {oid: revision.record for oid, revision in view.saved.items()}
            writes |= written.chunks
            writes |= {oid: record for oid, (_, record) in written.objects.items()}
            created = {cast(Oid, obj._p_oid) for obj in written.created}
            for step in self._steps:
                created.update(cast(Oid, obj._p_oid) for obj in step.created)
            transaction = Transaction(
                id=int.from_bytes(os.urandom(8)),
                snapshot_tid=view.snapshot.tid,
                accessed=view.accessed,
                created=frozenset(created.intersection(writes)),
                writes=writes,
                time_ns=time.time_ns(),
                user=connection.user,
                note=connection.note,
            )
            result = commit_merging(connection, transaction, writer)
        # With the new objects among the changed ones, an interrupt in here loses nothing: what is
        # still marked as changed conflicts with this commit, and abort() makes it a ghost.
        self.changed.update((oid, obj) for oid, (obj, _) in written.objects.items())
        cache = connection.cache
        for oid, (obj, _) in written.objects.items():
            cache[oid] = obj
            _setattribute(obj, "_p_tid", result.tid)
            obj._p_set_status_saved()
        cache.note_records(written.objects.values())
        for oid in view.saved:
            saved = cache.get(oid)
            if saved is not None:
                _setattribute(saved, "_p_tid", result.tid)
        created_before = [obj for step in self._steps for obj in step.created]
        for obj in written.created + created_before:
            if isinstance(obj, BlobChunk):
                cache[cast(Oid, obj._p_oid)] = obj
                obj._p_set_status_ghost()
        self.changed.clear()
        self._steps.clear()
        return result

    @contextmanager
    def _writing(
        self, objects: Iterable[PersistentObject]
    ) -> Iterator[tuple[ObjectWriter, _Written]]:
        """Make the records of these objects and the new ones that they lead to.

        If what follows fails, the new objects are as they were.
        """
        if self._writer is not None:
            raise UnstorableError("commit() was called by a __getstate__, in the middle of another")
        connection = self._connection
        connection._view.check_process()
        writer = ObjectWriter(connection, connection.reader.policy)
        upload = ChunkUpload(connection._view, connection.user)
        try:
            self._writer = writer
            made = self._make_records(writer, objects)
            chunks = [obj for obj in writer.new_objects if isinstance(obj, BlobChunk)]
            rest = upload.store(chunks, writer.make_record)
            yield writer, _Written(made, list(writer.new_objects), rest, upload.oids)
        except BaseException as error:
            for obj in writer.new_objects:
                connection.cache.recent_objects.discard(obj)
                self.changed.pop(cast(Oid, obj._p_oid), None)
            oids = [oid for oid in writer.forget_new_objects() if oid not in upload.oids]
            if _nothing_happened(error, oids):
                connection._spare_oids.extend(reversed(oids))
            raise
        finally:
            self._writer = None

    def _make_records(
        self, writer: ObjectWriter, objects: Iterable[PersistentObject]
    ) -> dict[Oid, tuple[PersistentObject, Record]]:
        """Pickle these objects and the new ones that they lead to, but for new parts of blobs.

        Their status stays as it is.
        """
        written: dict[Oid, tuple[PersistentObject, Record]] = {}
        queue = deque(objects)
        try:
            for _ in range(_PICKLED_AGAIN_MAX):
                while queue:
                    obj = queue.popleft()
                    known = len(writer.new_objects)
                    record = self._make_record(writer, obj)
                    assert obj._p_oid is not None
                    written[obj._p_oid] = obj, record
                    # For now, so that a change by the __getstate__ of another one is noticed.
                    obj._p_set_status_saved()
                    queue.extend(
                        new
                        for new in writer.new_objects[known:]
                        if new is not obj and not isinstance(new, BlobChunk)
                    )
                queue.extend(obj for obj in self.changed.values() if obj._p_is_unsaved())
                if not queue:
                    return written
            raise UnstorableError(
                f"<{queue[0]._p_identity()}> was changed again and again by the __getstate__ of "
                "objects that were being stored"
            )
        finally:
            for obj, _ in written.values():
                obj._p_set_status_unsaved()

    def _make_record(self, writer: ObjectWriter, obj: PersistentObject) -> Record:
        if obj._p_oid not in self._connection._view.blind:
            return writer.make_record(obj)
        serial = obj._p_serial
        _setattribute(obj, "_p_serial", self._connection.transaction_serial)
        try:
            return writer.make_record(obj)  # to pickle what was changed blindly is no access
        finally:
            _setattribute(obj, "_p_serial", serial)

    # Savepoints

    def save(self) -> "Savepoint":
        """Make a savepoint.  UnstorableError and ForeignReferenceError, as a commit."""
        connection, saved = self._connection, self._connection._view.saved
        with self._writing(self.changed.values()) as (_, written):
            pass
        self.changed.update((oid, obj) for oid, (obj, _) in written.objects.items())
        revisions = {oid: Revision(NO_TID, record) for oid, record in written.chunks.items()}
        for oid, (obj, record) in written.objects.items():
            revisions[oid] = Revision(obj._p_tid or NO_TID, record)
        for obj in written.created:  # parts of blobs, too: no oid shall be two objects
            connection.cache[cast(Oid, obj._p_oid)] = obj
        step = _Step(
            {oid: saved.get(oid) for oid in revisions}, written.created, written.stored_ahead
        )
        self._steps.append(step)
        saved.update(revisions)
        for obj, _ in written.objects.values():
            obj._p_set_status_saved()
        connection.cache.note_records(written.objects.values())
        if connection._guard is not None:
            for obj, _ in written.objects.values():
                connection._guard.note(obj)
        self.changed.clear()
        return Savepoint(self, step)

    def roll_back(self, count: int = 0) -> None:
        """Forget all changes but those that the first savepoints, so many, have saved.

        The objects that were new then are new again, as they are now, without oid and connection.
        """
        connection, view = self._connection, self._connection._view
        steps = self._steps[count:]
        created = {id(obj): obj for step in steps for obj in step.created}
        self._is_rolling_back = True
        try:
            for obj in created.values():
                if obj._p_is_ghost():
                    obj._p_load_state()
        finally:
            self._is_rolling_back = False
        changed = dict(self.changed)
        for step in reversed(steps):
            for oid, before in step.before.items():
                obj_saved = connection.cache.get(oid)
                if obj_saved is not None:
                    changed.setdefault(oid, obj_saved)
                if before is None:
                    view.saved.pop(oid, None)
                else:
                    view.saved[oid] = before
        for obj in changed.values():
            if id(obj) not in created:
                obj._p_set_status_ghost()
        spare: list[Oid] = []
        ahead = {oid for step in steps for oid in step.stored_ahead}
        for obj in created.values():
            if obj._p_oid is None:
                continue
            oid = obj._p_oid
            connection.cache.forget(oid, obj)
            obj._p_set_status_unsaved()
            _setattribute(obj, "_p_connection", None)
            _setattribute(obj, "_p_tid", None)
            _setattribute(obj, "_p_oid", None)
            if oid not in ahead:
                spare.append(oid)
        # Last, so that after an interrupt in here the next call does all of it.
        self.changed.clear()
        del self._steps[count:]
        connection._spare_oids.extend(reversed(spare))
        if connection._guard is not None:
            connection._guard.take_back()

    def roll_back_to(self, step: _Step) -> None:
        if step not in self._steps:
            raise TransactionEndedError(
                "this savepoint is gone: its transaction has ended, or was rolled back to an "
                "earlier savepoint"
            )
        self.roll_back(self._steps.index(step) + 1)


class Savepoint:
    """A state of a transaction that it can go back to.

    As a context manager it goes back when its block ends by an exception, which goes on.
    """

    def __init__(self, changes: Changes, step: _Step) -> None:
        self._changes = changes
        self._step = step

    def rollback(self) -> None:
        """Undo what was changed since, as often as you like.

        Changed objects are as they were, also those inside of containers; new ones have neither
        oid nor connection.  What was read since still counts as accessed.
        Raises TransactionEndedError after the end of the transaction, and when it was rolled back
        to an earlier savepoint.
        """
        self._changes.roll_back_to(self._step)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: object,
    ) -> None:
        if exc_type is not None and self._step in self._changes._steps:  # else it is undone already
            self.rollback()


def _nothing_happened(error: BaseException, created: list[Oid]) -> bool:
    """Whether a commit that failed like this has certainly not stored the created objects."""
    if isinstance(error, ConflictError):  # when an oid was taken, it must not be tried again
        return error.oids is not None and not set(created).intersection(error.oids)
    unknown = CommitOutcomeUnknownError | ProtocolError
    return isinstance(error, DurusError) and not isinstance(error, unknown)
