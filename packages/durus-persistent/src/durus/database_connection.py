"""The connections of a `Database`: each serves one transaction or snapshot after the other.

Between two of them a connection is idle: it keeps its objects, so that the next one finds them
loaded, and holds no snapshot.  Invariants:

    * An object of an idle connection cannot be used: the serial of its connection has moved on, so
      that the first touch comes here, and is refused.
    * Two threads that come here at the same moment are refused; one after the other may.
    * Only the session that a connection serves ends that: it was given away at most once.
    * After an interrupt (Ctrl-C) in the middle of its work a connection serves no other session.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any

from durus.changes import Savepoint
from durus.classic import as_storage
from durus.classic_storage import Storage as ClassicStorage
from durus.connection import Connection, R
from durus.error import TransactionEndedError, TransactionInUseError
from durus.interfaces import HistoryStorage, Oid, Revision, Storage, Tid
from durus.persistent import PersistentObject
from durus.times import When
from durus.view import SnapshotView, View

if TYPE_CHECKING:
    from durus.database import Database
    from durus.session import Session

__all__ = ["PooledConnection"]


class PooledConnection(Connection[R]):
    """A connection of a database, for one session (a transaction or a snapshot) at a time."""

    def __init__(self, database: "Database[R]", at: When | None = None) -> None:
        """at: the past for which it is, and for nothing else."""
        self.database = database
        self._is_past = at is not None
        self._packs = database._packs
        self._session: Session[Any] | None = None
        self._is_idle = False
        self._was_interrupted = False
        self._in_use = threading.RLock()
        root_class: Any = database.root_class
        super().__init__(
            database.storage,
            database.cache_size,
            root_class=root_class,
            at=at,
            allow=database.allow,
            aliases=database.aliases,
            strict=database.strict,
        )
        self.cache.size_bytes_max = database.cache_bytes
        self._changes.roll_back()  # what an upgrade of the root has changed: nobody would check it
        self._view.rest()
        self._is_idle = True

    def _open_view(
        self, storage: str | PathLike[str] | Storage | ClassicStorage, at: When | None
    ) -> tuple[View, bool]:
        if at is not None or isinstance(storage, str | PathLike):
            return super()._open_view(storage, at)
        found = as_storage(storage)
        kind = SnapshotView if isinstance(found, HistoryStorage) else View
        return kind(found, self._forget), False

    @property
    def _is_readonly(self) -> bool:
        return self.database.readonly or self._is_past

    def __repr__(self) -> str:
        return repr(self.database if self._session is None else self._session)

    # One session after the other.

    def begin_for(self, session: "Session[Any]") -> None:
        """Begin with what is newest."""
        self._in_use = threading.RLock()  # an interrupt may have left the old one with a thread
        self._begin()
        self._session = session
        self._is_idle = False

    def serves(self, session: "Session[Any]") -> bool:
        """Whether this session has begun here, and not ended."""
        return self._session is session

    @property
    def is_reusable(self) -> bool:
        """Whether another session may have it: it sees what is newest, and was not closed.

        What a pack has removed shall not look as if it were still there.  In a strict database
        none is used again, so that objects which a program keeps never become usable again.
        """
        is_over = self._is_past or self._view.is_closed or self._was_interrupted
        is_over |= self.database.strict
        return not is_over and self._packs == self.database._packs

    def commit_and_rest(self, session: "Session[Any]", user: str, note: str) -> Tid | None:
        """Commit, and be idle; after an error nothing has changed."""
        with self.used(session):
            self.user, self.note = user, note
            self._check_unnoted()
            if not self._is_changed_by_program and not session._may_write:
                self._changes.roll_back()  # what upgrades have changed
            result = self._store() if self._changes else None
            if result is None:
                self._view.rest()
            else:
                self._view.finish(result)
            self._rest()
        return None if result is None else result.tid

    def abort_and_rest(self, session: "Session[Any]") -> None:
        """Give up all changes, and be idle; after an error it is idle, too, and closed."""
        with self.used(session):
            try:
                self._changes.roll_back()
                self._view.rest()
            except BaseException:
                self.close()
                raise
            finally:
                self._rest()

    def _rest(self) -> None:
        self._session = None
        self._is_idle = True
        self.transaction_serial += 1
        if self._guard is not None:
            self._guard.clear()
        self.shrink_cache()
        self.cache.trim(is_idle=True)

    # Who may use it.

    @contextmanager
    def used(self, user: "PersistentObject | Session[Any]") -> Iterator[None]:
        """For one thread at a time, and the session that it serves, or an object of that."""
        self._enter(user)
        try:
            yield
        finally:
            self._leave()

    def _enter(self, user: "PersistentObject | Session[Any]") -> None:
        if not self._in_use.acquire(blocking=False):
            raise TransactionInUseError(
                f"{self._session} is used by two threads at the same moment.  It may go from one "
                "to another; for two at once, give each a transaction or snapshot of its own"
            )
        if isinstance(user, PersistentObject):
            if self._is_idle:
                self._in_use.release()
                raise TransactionEndedError(
                    f"<{user._p_identity()}> was used after the end of its transaction or "
                    "snapshot.  Use it inside of one, and take values out, or its oid, "
                    "oid_of(obj), for get() in the next"
                )
        elif self._session is not user:
            self._in_use.release()
            raise TransactionEndedError(f"{user} has ended; begin another one")

    def _leave(self) -> None:
        """Called in a `finally`."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, Exception):
            self._was_interrupted = True
        self._in_use.release()

    def note_access(self, obj: PersistentObject) -> None:
        self._enter(obj)
        try:
            self.database._check_open()
            super().note_access(obj)
        finally:
            self._leave()

    def note_change(self, obj: PersistentObject) -> None:
        self._enter(obj)
        try:
            self.database._check_open()
            if self._session is not None and not self._upgrades:
                self._session._check_may_change(obj)
            super().note_change(obj)
        finally:
            self._leave()

    @property
    def _may_write(self) -> bool:
        return self._session._may_write if self._session is not None else not self._is_readonly

    def load_state(self, obj: PersistentObject) -> None:
        self._enter(obj)
        try:
            super().load_state(obj)
            self._trim_cache()
        finally:
            self._leave()

    def savepoint(self) -> Savepoint:
        savepoint = super().savepoint()
        self._trim_cache()
        return savepoint

    def _instance(self, oid: Oid, revision: Revision) -> PersistentObject:
        obj = super()._instance(oid, revision)
        self._trim_cache()
        return obj

    def _trim_cache(self) -> None:
        """In the middle of a transaction.

        Not when records are made, for then what is changed counts as saved; and not if it is
        strict, for what was changed in place would go, and not be found.
        """
        if self._guard is None and not self._changes.needs_all_loaded:
            self.cache.trim()

    @contextmanager
    def changing_blindly(self, obj: PersistentObject) -> Iterator[None]:
        self._enter(obj)
        try:
            self.database._check_open()
            with super().changing_blindly(obj):
                yield
        finally:
            self._leave()
