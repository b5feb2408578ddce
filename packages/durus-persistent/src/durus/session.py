"""What a program sees of a `Database`: a transaction, or a snapshot, which only reads.

Both are sessions: they take a connection from the pool when they are first used, and give it back
when they end.  Invariant: *all that is seen in a session is of one moment*, but for what it changes
itself.  (Over a storage without history it is the classic rule that holds; see `durus.view`.)
"""

import logging
import threading
import warnings
import weakref
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, overload

from durus.changes import Savepoint
from durus.connection import P, R
from durus.copying import copy_subgraph
from durus.database_connection import PooledConnection
from durus.error import (
    ConflictError,
    NestedTransactionError,
    ReadOnlyError,
    TransactionEndedError,
    TransactionInUseError,
)
from durus.interfaces import Tid
from durus.logger import logger
from durus.persistent import PersistentObject
from durus.times import When

if TYPE_CHECKING:
    from durus.database import Database

__all__ = ["Session", "Snapshot", "Transaction", "open_in_this_context"]


class Session(Generic[R]):
    """A transaction or a snapshot.  It may go from thread to thread, but not be in two at once."""

    _connection: PooledConnection[R] | None = None
    """While it is open."""

    def __init__(self, database: "Database[R]") -> None:
        self.database = database
        self._is_over = False
        self._begin_lock = threading.Lock()

    def _lease(self) -> PooledConnection[R]:
        return self.database._lease(self)

    def _use(self) -> PooledConnection[R]:
        """Its connection.  TransactionEndedError after its end."""
        if self._is_over:
            raise TransactionEndedError(f"{self} has ended; begin another one")
        self.database._check_open()
        connection = self._connection
        return self._begin() if connection is None else connection

    def _begin(self) -> PooledConnection[R]:
        with self._begin_lock:
            connection = self._connection
            if connection is None:
                connection = self._connection = self._lease()
            return connection

    @property
    def root(self) -> R:
        """The root object, as this session sees it."""
        return self._use().root

    @overload
    def get(self, obj: P) -> P: ...

    @overload
    def get(self, obj: bytes | int, cls: type[P]) -> P: ...

    @overload
    def get(self, obj: bytes | int) -> PersistentObject | None: ...

    def get(
        self, obj: PersistentObject | bytes | int, cls: type[Any] | None = None
    ) -> PersistentObject | None:
        """This session's own instance of a stored object.

        obj: an object of another session of the same database, or an oid.
        Raises ForeignReferenceError for an object that is not of this database.  For an oid: as
        `Connection.get`.
        """
        connection = self._use()
        with connection.used(self):
            if not isinstance(obj, PersistentObject):
                return connection.get(obj) if cls is None else connection.get(obj, cls)
            self.database._connection_of(obj)
            assert obj._p_oid is not None
            return connection.get(obj._p_oid, type(obj))

    @property
    def _may_write(self) -> bool:
        """Whether a change can be stored."""
        raise NotImplementedError

    def _check_may_change(self, obj: PersistentObject) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        self._is_over = True
        connection = vars(self).pop("_connection", None)  # in one step, so that nobody else has it
        if connection is not None:
            self.database._give_back(connection)

    def _give_up(self) -> None:
        """End without a commit, also after an error in here, unless another thread is at work."""
        connection = self._connection
        if connection is None:
            return
        try:
            if connection.serves(self):  # else a commit was interrupted in its last steps
                connection.abort_and_rest(self)
        finally:
            if not connection.serves(self):
                self._end()

    def __enter__(self) -> R:
        try:
            return self.root
        except BaseException:  # an interrupt: nobody will call __exit__
            self._give_up()
            raise

    def __del__(self) -> None:
        if self._connection is not None and not self._is_over:
            warnings.warn(
                f"{self} was neither committed nor aborted nor closed",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )


class Snapshot(Session[R]):
    """The database at one moment.  Reading never conflicts, and nothing can be changed.

    As a context manager it gives the root.
    """

    def __init__(self, database: "Database[R]", at: When | None = None) -> None:
        super().__init__(database)
        self._at = at

    def __repr__(self) -> str:
        when = "" if self._at is None else f" at {self._at}"
        return f"<snapshot of {self.database}{when}>"

    def _lease(self) -> PooledConnection[R]:
        return self.database._lease(self, self._at)

    @property
    def tid(self) -> Tid:
        """The newest transaction that it sees."""
        return self._use().tid

    def close(self) -> None:
        """End it.  Closing twice is no error.

        UnnotedChangeError, in strict mode, if an object was changed in place.
        """
        connection = self._connection
        self._is_over = True
        try:
            if connection is not None and connection.serves(self):
                connection._check_unnoted()
        finally:
            self._give_up()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.close()
        else:  # goes on, whatever the block has changed in place
            self._is_over = True
            self._give_up()

    @property
    def _may_write(self) -> bool:
        return False

    def _check_may_change(self, obj: PersistentObject) -> None:
        raise ReadOnlyError(
            f"<{obj._p_identity()}> cannot be changed: {self} is read-only; change the object in a "
            "transaction"
        )


_Open: TypeAlias = tuple["weakref.ref[Transaction[Any]]", ...]

_open: ContextVar[_Open] = ContextVar("durus_transactions")
"""The transactions that were begun in this context, or in one that it is a copy of."""


def open_in_this_context(database: "Database[Any]") -> _Open:
    """The transactions of a database that were begun in this very context, some still open."""
    return tuple(
        ref
        for ref in _open.get(())
        if (other := ref()) and other.database is database and other._was_begun_in_this_context()
    )


class Transaction(Session[R]):
    """Reads and changes that become visible to others together, or not at all.

    As a context manager it gives the root, commits at the end of the block, and aborts when an
    exception ends it.  Attributes for applications:

      user, note: stored with the commit
    """

    _has_conflicted = False
    """Then it will never commit, and to forget it is as good as abort()."""

    def __init__(
        self, database: "Database[R]", *, note: str = "", user: str = "", outer: _Open = ()
    ) -> None:
        """outer: those that are open where this is called from another context and waited for."""
        super().__init__(database)
        self.note = note
        self.user = user
        self._tid: Tid | None = None
        self._calls: list[Callable[[], object]] = []
        self._outer = outer
        """Those in which nothing can happen before this has ended: it must not write."""
        self._token: Token[_Open] | None = None
        """It can be used in the context in which this was begun, and in no copy of that."""

    def __repr__(self) -> str:
        note = f" {self.note!r}" if self.note else ""
        user = f" by {self.user!r}" if self.user else ""
        return f"<transaction{note}{user} of {self.database}>"

    @property
    def tid(self) -> Tid | None:
        """That of the commit; None before it, and if there was nothing to store."""
        return self._tid

    def _lease(self) -> PooledConnection[R]:
        connection = super()._lease()
        self._outer += open_in_this_context(self.database)
        still_open = [ref for ref in _open.get(()) if (other := ref()) and other._is_open]
        self._token = _open.set((*still_open, weakref.ref(self)))
        return connection

    def _was_begun_in_this_context(self) -> bool:
        if self._token is None:
            return False
        current = _open.get()
        try:
            _open.reset(self._token)
        except (ValueError, RuntimeError):  # RuntimeError: just now, in a thread of that context
            return False
        self._token = _open.set(current)
        return True

    @property
    def _is_open(self) -> bool:
        """Whether it may still commit; that of a process before a fork may not."""
        connection = self._connection
        may_commit = connection is not None and not connection._view.is_inherited
        return may_commit and not self._has_conflicted and not self._is_over

    def commit(self) -> Tid | None:
        """Store all changes, as a whole and durably, and end.

        Returns the tid, or None if there was nothing to store: that never fails.  Raises
        WriteConflictError when something that was accessed was changed by somebody else meanwhile,
        and what `Connection.commit` raises; then nothing is stored and the transaction goes on:
        abort() it, or mend the cause.  What was given to `on_commit` is called at the end.
        """
        self._commit()
        self._call_all()
        return self._tid

    def _commit(self) -> None:
        connection = self._use()
        try:
            self._tid = connection.commit_and_rest(self, self.user, self.note)
        except ConflictError as error:
            self._note_conflict(error)
            raise
        self.database._statistics.note_commit(self._tid)
        self._end()

    def _note_conflict(self, error: ConflictError) -> None:
        if not self._has_conflicted:
            self._has_conflicted = True
            self.database._statistics.note_conflict(error)

    def _abort_after(self, error: BaseException | None) -> None:
        if isinstance(error, ConflictError):
            self._note_conflict(error)
        self.abort()

    def _call_all(self) -> None:
        """Make the calls that were to follow the commit; all, even if one fails."""
        failed: BaseException | None = None
        for call in self._calls:
            try:
                call()
            except BaseException as error:
                error.add_note(f"raised by an on_commit call; transaction {self._tid} is stored")
                is_first = failed is None or not isinstance(error, Exception)  # an interrupt is
                failed, other = (error, failed) if is_first else (failed, error)
                if other is not None:
                    logger.log(logging.ERROR, "an on_commit call failed", exc_info=other)
        if failed is not None:
            raise failed

    def abort(self) -> None:
        """Give up all changes, and end; no error if it has ended already."""
        self._is_over = True  # whatever interrupts what follows
        if self._connection is not None:
            try:
                self._give_up()
            except TransactionInUseError:
                self._is_over = False
                raise
            self.database._statistics.note_abort()

    def savepoint(self) -> Savepoint:
        """A state of this transaction that its `rollback()` goes back to; they can be nested.

        A rollback undoes changes, also in containers, forgets what `on_commit` was told since, and
        leaves objects that were new without oid and connection.  What was read still counts.
        Raises UnstorableError and ForeignReferenceError, as commit().
        """
        connection = self._use()
        with connection.used(self):
            return _TransactionSavepoint(self, connection.savepoint())

    def on_commit(self, call: Callable[[], object]) -> None:
        """Have something called once, after the commit, when all is stored durably.

        It is not called if the transaction is aborted.  When calls fail all are made even so, and
        the first error is raised: what is stored stays stored.
        """
        self._use()
        self._calls.append(call)

    def copy(self, obj: P) -> P:
        """A new object like `obj`, with copies of all that it leads to.

        obj: an object of another database, or of this one.  What it has is loaded.  The copy is
        stored as soon as something of this transaction refers to it.
        """
        connection = self._use()
        with connection.used(self):
            return copy_subgraph(obj)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_over:
            return
        if exc_type is not None:
            self._abort_after(exc)
            return
        try:
            self._commit()
        except BaseException:
            self.abort()
            raise
        self._call_all()

    def __del__(self) -> None:
        if not self._has_conflicted:
            super().__del__()

    @property
    def _open_outer(self) -> "Transaction[Any] | None":
        return next((found for ref in self._outer if (found := ref()) and found._is_open), None)

    @property
    def _may_write(self) -> bool:
        return not self.database.readonly and self._open_outer is None

    def _check_may_change(self, obj: PersistentObject) -> None:
        if self.database.readonly:
            raise ReadOnlyError(
                f"<{obj._p_identity()}> cannot be changed: {self.database} is open read-only"
            )
        outer = self._open_outer
        if outer is not None:
            raise NestedTransactionError(
                f"<{obj._p_identity()}> cannot be changed in {self}: {outer} is open in the same "
                "context, and would not see it, or conflict with it.  Change the object there, "
                "after a savepoint() if that may have to be undone, or when the other one has ended"
            )


class _TransactionSavepoint(Savepoint):
    """A savepoint that also knows which calls were to follow the commit."""

    def __init__(self, transaction: Transaction[Any], savepoint: Savepoint) -> None:
        super().__init__(savepoint._changes, savepoint._step)
        self._transaction = transaction
        self._count = len(transaction._calls)

    def rollback(self) -> None:
        with self._transaction._use().used(self._transaction):
            super().rollback()
            del self._transaction._calls[self._count :]
