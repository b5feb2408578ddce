"""A connection: objects in and out of a storage, one transaction after the other.

A transaction lasts from one `commit()` or `abort()` to the next.  The view (`durus.view`, in
the past `durus.past`) is what it sees of the storage; the cache holds the objects.  Invariants:

    * Every saved object in the cache is as the view's snapshot has it.
    * commit() is refused when an accessed object was changed by somebody else after the snapshot.
    * A failed commit() leaves objects and storage as before: no object is marked saved before the
      storage has said yes, and new objects get their oids taken back.

A connection serves one thread; the storage below it is shared.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, overload

from durus.blob import BlobChunk
from durus.cache import Cache, ObjectDictionary, ReferenceContainer
from durus.changes import Changes, Savepoint
from durus.classic import ClassicAdapter, as_storage
from durus.conflicts import find_conflicts
from durus.error import ConflictError as ConflictError  # as in 4.3
from durus.error import (
    DurusKeyError,
    ObjectError,
    ReadConflictError,
    StorageError,
    WriteConflictError,
    WrongClassError,
)
from durus.instances import gen_every_instance, touch_every_reference
from durus.interfaces import (
    ROOT_OID,
    CommitResult,
    CommittedTransaction,
    HistoryStorage,
    Oid,
    Record,
    Revision,
    Tid,
)
from durus.missing import MissingObject
from durus.opening import open_storage
from durus.packing import pack_storage
from durus.past import open_past
from durus.persistent import (
    GHOST,
    ConnectionBase,
    PersistentObject,
    _setattribute,
)
from durus.persistent_dict import PersistentDict
from durus.policy import LoadingPolicy
from durus.record import join_record
from durus.root import open_root
from durus.schema_versions import has_upgrades
from durus.serialize import ObjectReader
from durus.serialize import ObjectWriter as ObjectWriter  # as in 4.3
from durus.strict import MutationGuard
from durus.times import When
from durus.undo import undo
from durus.upgrading import Upgrades
from durus.view import View

if TYPE_CHECKING:
    from os import PathLike

    from typing_extensions import TypeVar

    from durus.classic_storage import Storage as ClassicStorage
    from durus.interfaces import Storage

    R = TypeVar("R", bound=PersistentObject, default=PersistentDict[str, Any])
else:
    from typing import TypeVar

    R = TypeVar("R", bound=PersistentObject)

P = TypeVar("P", bound=PersistentObject)

__all__ = [
    "ROOT_OID",
    "Cache",
    "Connection",
    "ObjectDictionary",
    "ReferenceContainer",
    "gen_every_instance",
    "touch_every_reference",
]


def _as_oid(oid: bytes | int) -> Oid:
    """The oid in 8 bytes.  DurusKeyError for one that no object can have."""
    if isinstance(oid, int) and 0 <= oid < 2**64:
        return Oid(oid.to_bytes(8))
    if isinstance(oid, bytes | bytearray | memoryview) and len(oid) == 8:
        return Oid(bytes(oid))
    if isinstance(oid, int | bytes):
        raise DurusKeyError(oid)
    raise TypeError(f"an oid is 8 bytes, or a number, and not {oid!r}")


class Connection(ConnectionBase, Generic[R]):
    """The objects of a storage, and the transaction that is under way on them.

    Attributes for applications:
      root: the root object
      user, note: stored with the next commit; the note is cleared by it
    """

    @overload
    def __init__(
        self: "Connection[PersistentDict[str, Any]]",
        storage: "str | PathLike[str] | Storage | ClassicStorage",
        cache_size: int = 100_000,
        root_class: None = None,
        *,
        at: When | None = None,
        allow: Iterable[str] = (),
        aliases: Mapping[str, str] | None = None,
        import_classes: bool | None = None,
        strict: bool = False,
    ) -> None: ...

    @overload
    def __init__(
        self,
        storage: "str | PathLike[str] | Storage | ClassicStorage",
        cache_size: int = 100_000,
        *,
        root_class: type[R],
        at: When | None = None,
        allow: Iterable[str] = (),
        aliases: Mapping[str, str] | None = None,
        import_classes: bool | None = None,
        strict: bool = False,
    ) -> None: ...

    def __init__(
        self,
        storage: "str | PathLike[str] | Storage | ClassicStorage",
        cache_size: int = 100_000,
        root_class: type[Any] | None = None,
        *,
        at: When | None = None,
        allow: Iterable[str] = (),
        aliases: Mapping[str, str] | None = None,
        import_classes: bool | None = None,
        strict: bool = False,
    ) -> None:
        """Connect to a storage, given as such, as a path or as a URI.

        storage: a path is opened for writing, and made if it is not there; what the connection
          opened itself it closes with `close()`.
        cache_size: the number of objects that the cache aims at.
        root_class: the class of the root object, by default PersistentDict.  If there is no root
          yet, one is made by calling it; if there is one of another class,
          WrongClassError.
        at: see what there was at this tid, at this aware datetime, or so long ago (a timedelta),
          and nothing else.  Changing an object raises ReadOnlyError.  A path is opened read-only.
          HistoryUnavailableError if the storage does not keep that past.
        allow: packages, modules or names of which records may make objects; see docs/security.md.
        aliases: {"old.Old": "new.New"} for classes that were renamed.
        import_classes: whether records may import the modules of their classes, as in 4.x; by
          default those of local storages may, and those that a server sends may not.
        strict: for tests: commit() and savepoint() raise UnnotedChangeError when an object was
          changed in place without being noted, such as a plain list in an attribute.
        """
        self._changes = Changes(self)
        self.changed = self._changes.changed
        self._changed_blindly: PersistentObject | None = None
        self._upgrades = Upgrades(self)
        self._is_changed_by_program = False
        """Not by upgrades alone."""
        self._guard = MutationGuard() if strict else None
        self.cache = Cache(cache_size)
        self.cache.kept = self.changed
        self.user = ""
        self.note = ""
        self._spare_oids: list[Oid] = []
        self._loading: set[Oid] = set()
        self._view, self._opened = self._open_view(storage, at)
        found = self._storage = self._view.storage
        # A program of 4.x that opened a file by its path calls the classic storage of that file.
        self.storage = found.classic if isinstance(found, ClassicAdapter) else found
        try:
            if import_classes is None:
                import_classes = not getattr(self.storage, "is_remote", False)
            policy = LoadingPolicy(allow=allow, aliases=aliases, import_classes=import_classes)
            self.reader = ObjectReader(self, policy)
            self.root: R = open_root(self, root_class)
        except BaseException:
            self.close()
            raise

    def _open_view(
        self, storage: "str | PathLike[str] | Storage | ClassicStorage", at: When | None
    ) -> tuple[View, bool]:
        """What the connection sees of a storage, and whether that was opened here."""
        if at is not None:
            return open_past(storage, self._forget, at)
        if not isinstance(storage, str | os.PathLike):
            return View(as_storage(storage), self._forget), False
        opened = open_storage(storage)
        try:
            return View(as_storage(opened), self._forget), True
        except BaseException:
            opened.close()
            raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__} @{id(self):x} to {self.storage}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up uncommitted changes, and close the storage if this connection opened it.

        Its objects can no longer be used.
        """
        self._view.close()
        self._changes.discard()
        self.transaction_serial += 1  # so that a later touch of an object comes to note_access
        if self._opened:
            self._storage.close()

    def get_storage(self) -> "Storage | ClassicStorage":
        """The storage, as it was given."""
        return self.storage

    def get_cache(self) -> Cache:
        """The cache."""
        return self.cache

    def get_cache_count(self) -> int:
        """The number of objects in the cache, ghosts included."""
        return self.cache.get_count()

    def get_cache_size(self) -> int:
        """The number of objects that the cache aims at."""
        return self.cache.get_size()

    def set_cache_size(self, size: int) -> None:
        """Set the number of objects that the cache aims at."""
        self.cache.set_size(size)

    def get_transaction_serial(self) -> int:
        """A number that grows with every transaction of this connection."""
        return self.transaction_serial

    def get_load_count(self) -> int:
        """How many times the state of an object was loaded."""
        return self.reader.get_load_count()

    def get_root(self) -> R:
        """The root object."""
        return self.root

    @property
    def tid(self) -> Tid:
        """The newest transaction that this connection sees."""
        return self._view.tid

    @property
    def transaction(self) -> CommittedTransaction | None:
        """That transaction, with its time, user and note; None if it is not kept."""
        if not isinstance(self._storage, HistoryStorage):
            return None
        return next(iter(self._storage.transactions(self.tid, Tid(self.tid + 1))), None)

    # Objects in.

    @overload
    def get(self, oid: bytes | int) -> PersistentObject | None: ...

    @overload
    def get(self, oid: bytes | int, cls: type[P]) -> P: ...

    def get(self, oid: bytes | int, cls: type[P] | None = None) -> PersistentObject | P | None:
        """The object with this oid (8 bytes, or a number).

        Without `cls`: None when there is no such object.  With it: the object, typed;
        DurusKeyError when there is none, WrongClassError when it is of another class.
        """
        try:
            key = _as_oid(oid)
            obj = self.cache.get(key)
            if obj is None:
                obj = self._instance(key, self._view.load(key))
        except DurusKeyError:
            if cls is not None:
                raise
            return None
        if cls is not None and not isinstance(obj, cls):
            raise WrongClassError(
                f"<{obj._p_identity()}> is no {cls.__module__}.{cls.__qualname__}"
            )
        return obj

    def __getitem__(self, oid: bytes | int) -> PersistentObject | None:
        return self.get(oid)

    def get_crawler(
        self, start_oid: Oid = ROOT_OID, batch_size: int = 100
    ) -> Iterator[PersistentObject]:
        """Every object that can be reached from `start_oid`, breadth first, loaded.

        Loads `batch_size` records at a time: a quick way to fill the cache.  It keeps no contents
        of blobs.
        """
        for oid, revision in self._view.crawl(start_oid, batch_size):
            yield self._instance(oid, revision)

    def _instance(self, oid: Oid, revision: Revision) -> PersistentObject:
        """The object with this oid, loaded from `revision` unless its state is here."""
        obj = self.cache.get(oid)
        if obj is None:
            cls = self.reader.policy.load_class(revision.record.class_pickle, oid)
            obj = self.cache.get_instance(oid, cls, self)
        if obj._p_is_ghost() and not isinstance(obj, MissingObject | BlobChunk):
            self.cache.note_records([(obj, self._fill(obj, revision))])
        return obj

    def get_stored_pickle(self, oid: bytes) -> bytes:
        """The class and state pickles of an object, one after the other; DurusKeyError."""
        return join_record(self._view.load(Oid(oid)).record)

    def load_state(self, obj: PersistentObject) -> None:
        """Load the state of a ghost.  ReadConflictError when it cannot be had any more."""
        oid = obj._p_oid
        assert oid is not None
        assert obj._p_is_ghost()
        if oid in self._loading:
            raise ObjectError(
                f"the state of <{obj._p_identity()}> is needed to load itself: it is a key in a "
                "dict or set of its own state, and its __hash__ or __eq__ uses its attributes"
            )
        try:
            self._loading.add(oid)
            record = self._fill(obj, self._view.load_referenced(oid))
        except ReadConflictError as error:
            error.conflicts = find_conflicts(self._storage, self.cache, error.oids or ())
            raise
        finally:
            self._loading.discard(oid)
        if not isinstance(obj, BlobChunk):  # which keeps nothing
            self.cache.note_records([(obj, record)])

    def _fill(self, obj: PersistentObject, revision: Revision) -> Record:
        """Load the state of a ghost: from which record."""
        if self._guard is not None:
            self._guard.forget(obj)
        assert obj._p_oid is not None
        snapshot = self._view.snapshot
        version = self.reader.load_state(obj, revision.record)
        while self._view.snapshot is not snapshot:
            # A __setstate__ has loaded other objects, and the view moved on to newer ones.
            snapshot = self._view.snapshot
            revision = self._view.load(obj._p_oid)
            version = self.reader.load_state(obj, revision.record)
        _setattribute(obj, "_p_tid", revision.tid)
        obj._p_set_status_saved()
        if version != 1 or has_upgrades():
            self._upgrades.upgrade(obj, version)
        return revision.record

    @property
    def _is_readonly(self) -> bool:
        return self._storage.readonly

    @property
    def _may_write(self) -> bool:
        """Whether this transaction could store a change."""
        return self._view.is_writable

    # Transactions.

    def note_access(self, obj: PersistentObject) -> None:
        """An object is accessed for the first time in this transaction: load it, remember it."""
        self._view.snapshot  # noqa: B018 - raises if this connection was closed
        if obj._p_status == GHOST:
            obj._p_load_state()
        oid = obj._p_oid
        assert oid is not None
        _setattribute(obj, "_p_serial", self.transaction_serial)
        self._upgrades.note_access(obj)
        self._view.accessed.add(oid)
        self.cache.recent_objects.add(obj)
        self._note_unchanged(obj)

    def _note_unchanged(self, obj: PersistentObject) -> None:
        """If this connection is strict: the object is as it was loaded or saved."""
        if self._guard is not None and obj._p_is_saved() and not self._guard.knows(obj):
            self._guard.note(obj)

    def note_change(self, obj: PersistentObject) -> None:
        """An object is about to be changed for the first time in this transaction."""
        oid = obj._p_oid
        assert oid is not None
        if self._upgrades:  # in the past, too: it is undone at the end of the transaction
            self._view.accessed.add(oid)
            self._upgrades.note_change(obj)
        else:
            self._view.note_change(obj, is_blind=obj is self._changed_blindly)
            self._is_changed_by_program = True
        self.changed[oid] = obj

    @contextmanager
    def changing_blindly(self, obj: PersistentObject) -> Iterator[None]:
        """What is done in this context with a mergeable object is no access (`durus.mergeable`)."""
        self._view.snapshot  # noqa: B018 - as in note_access
        if obj._p_status == GHOST:
            obj._p_load_state()
        self._note_unchanged(obj)
        _setattribute(obj, "_p_serial", self.transaction_serial)
        outer, self._changed_blindly = self._changed_blindly, obj
        try:
            yield
        finally:
            self._changed_blindly = outer
            _setattribute(obj, "_p_serial", 0)  # so that the next access is one

    def commit(self) -> Tid | None:
        """Store all changes, as a whole and durably; then start a new transaction.

        Returns the tid, or None if there was nothing to store: that never fails.  Raises
        WriteConflictError when an object that was accessed was changed by somebody else
        meanwhile: abort() and start again.  UnstorableError and ForeignReferenceError name the
        object; after any error everything is as before, and once the cause is mended the next
        commit() stores it all.
        """
        self._check_unnoted()
        if not (self._is_changed_by_program or self._may_write):
            self._changes.roll_back()  # what upgrades have changed, and cannot be stored here
        result = self._store() if self._changes else None
        self._begin(result)
        return None if result is None else result.tid

    def _store(self, objects: Iterable[PersistentObject] | None = None) -> CommitResult:
        """Commit all changes, or just these objects and the new ones that they lead to."""
        try:
            return self._changes.commit(objects)
        except WriteConflictError as error:
            error.conflicts = find_conflicts(self._storage, self.cache, error.oids or ())
            raise

    def savepoint(self) -> Savepoint:
        """A state of this transaction that its `rollback()` goes back to.

        New objects get their oids; nothing is stored.  Savepoints can be nested.
        Raises UnstorableError and ForeignReferenceError, as commit().
        """
        self._check_unnoted()
        return self._changes.save()

    def _check_unnoted(self) -> None:
        """UnnotedChangeError, if this connection is strict and there is such a change."""
        if self._guard is not None:
            self._guard.check()

    def new_oid(self) -> Oid:
        """An oid for a new object."""
        return self._spare_oids.pop() if self._spare_oids else self._storage.reserve_oids(1)[0]

    def abort(self) -> None:
        """Give up all changes, see what others committed, and start a new transaction."""
        self._changes.roll_back()
        self._begin()

    def _begin(self, result: CommitResult | None = None) -> None:
        """Begin the next transaction, after a commit with `result`."""
        if result is None:
            if self._view.is_inherited:
                self._spare_oids.clear()  # they are the parent's
            self._view.begin()
        else:
            self._view.finish(result)
            with suppress(StorageError, OSError):  # then it is tried again when it is needed
                self._view.snapshot  # noqa: B018 - takes one
        self.note = ""
        self._is_changed_by_program = False
        self.transaction_serial += 1
        if self._guard is not None:
            self._guard.clear()
        self.shrink_cache()

    def _forget(self, oids: Iterable[Oid] | None) -> None:
        """Make ghosts of the objects that others changed (None: of all saved ones)."""
        if oids is None:
            self._spare_oids.clear()  # a server that was lost may give them to somebody else
        for obj in list(self.cache) if oids is None else map(self.cache.get, oids):
            if obj is not None and obj._p_is_saved():
                obj._p_set_status_ghost()

    def shrink_cache(self) -> None:
        """Make ghosts of objects that were not used for long, if the cache is too large."""
        self.cache.shrink(self)

    def pack(self, *, keep: When | None = None) -> None:
        """Give up uncommitted changes, and let the storage drop what is no longer needed.

        keep: the history since this tid, aware datetime, or so long ago (a timedelta) stays, if
          the storage has any; by default none.
        """
        self._view.check_writable()
        self.abort()
        pack_storage(self._storage, keep)
        self._forget(None)  # what was removed shall not look as if it were still there
        self.abort()

    def undo(self, tid: Tid) -> Tid:
        """Undo a transaction by a new one, give up uncommitted changes, and see the result.

        The user is that of this connection, and so is the note, if there is one.  Returns the tid
        of the new transaction, and raises UndoError, as `durus.undo.undo`; then uncommitted changes
        are still there.
        """
        self._view.check_writable()
        self._view.snapshot  # noqa: B018 - as in note_access
        undone = undo(self._storage, tid, user=self.user, note=self.note or None)
        self.abort()
        return undone
