"""The connections of a `Database`: each serves one transaction or snapshot after the other.

Between two of them a connection is idle: it keeps its objects, so that the next one finds them
loaded, and holds no snapshot.  Invariants:

    * An object of an idle connection cannot be used: the serial of its connection has moved on, so
      that the first touch comes here, and is refused.
    * Two threads that come here at the same moment are refused; one after the other may.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any

from durus.classic import as_storage
from durus.classic_storage import Storage as ClassicStorage
from durus.connection import Connection, R
from durus.error import TransactionEndedError, TransactionInUseError
from durus.interfaces import HistoryStorage, Storage, Tid
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
        self._session: Session[Any] | None = None
        self._is_idle = False
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

    def __repr__(self) -> str:
        return repr(self.database if self._session is None else self._session)

    # One session after the other.

    def begin_for(self, session: "Session[Any]") -> None:
        """Begin with what is newest."""
        self._begin()
        self._session = session
        self._is_idle = False

    def commit_and_rest(self) -> Tid | None:
        """Commit, and be idle; after an error nothing has changed."""
        with self.used():
            self._check_unnoted()
            if self.database.readonly:
                self._changes.roll_back()  # what upgrades have changed
            result = self._store() if self._changes else None
            if result is None:
                self._view.rest()
            else:
                self._view.finish(result)
            self._rest()
        return None if result is None else result.tid

    def abort_and_rest(self) -> None:
        """Give up all changes, and be idle."""
        with self.used():
            self._changes.roll_back()
            self._view.rest()
            self._rest()

    def _rest(self) -> None:
        self._session = None
        self._is_idle = True
        self.transaction_serial += 1
        if self._guard is not None:
            self._guard.clear()
        self.shrink_cache()
        if self.cache.is_too_large():
            self.cache.evict()

    # Who may use it.

    @contextmanager
    def used(self) -> Iterator[None]:
        """For one thread at a time."""
        self._enter(None)
        try:
            yield
        finally:
            self._in_use.release()

    def _enter(self, obj: PersistentObject | None) -> None:
        if self._is_idle:
            what = "this transaction" if obj is None else f"<{obj._p_identity()}>"
            raise TransactionEndedError(
                f"{what} was used after the end of its transaction or snapshot.  Use it inside of "
                "one, and take values out, or its oid, oid_of(obj), for get() in the next"
            )
        if not self._in_use.acquire(blocking=False):
            raise TransactionInUseError(
                f"{self._session} is used by two threads at the same moment.  It may go from one "
                "to another; for two at once, give each a transaction or snapshot of its own"
            )

    def note_access(self, obj: PersistentObject) -> None:
        self._enter(obj)
        try:
            super().note_access(obj)
        finally:
            self._in_use.release()

    def note_change(self, obj: PersistentObject) -> None:
        self._enter(obj)
        try:
            if self._session is not None and not self._is_upgrading:
                self._session._check_may_change(obj)
            super().note_change(obj)
        finally:
            self._in_use.release()

    def load_state(self, obj: PersistentObject) -> None:
        self._enter(obj)
        try:
            super().load_state(obj)
            if self._guard is None and self.cache.is_too_large():
                self.cache.evict()
        finally:
            self._in_use.release()

    @contextmanager
    def changing_blindly(self, obj: PersistentObject) -> Iterator[None]:
        self._enter(obj)
        try:
            with super().changing_blindly(obj):
                yield
        finally:
            self._in_use.release()
