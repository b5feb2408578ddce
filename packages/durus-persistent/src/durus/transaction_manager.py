"""A `Database` in transactions of the `transaction` package, which Pyramid and Zope use.

    bank = join(db, request.tm)  # the root, until the manager commits or aborts

It needs the extra `transaction`.  Of the calls in which a manager commits, the one that stores our
changes is `tpc_vote`.  Invariants:

    * What comes before it stores nothing, and what comes after it cannot fail.
    * We vote when all have voted that could still give up afterwards: hence the `~` of the key.
"""

import logging
from typing import Any, Generic, Protocol

from durus.changes import Savepoint
from durus.connection import R
from durus.database import Database
from durus.error import ConflictError, WriteConflictError
from durus.logger import logger
from durus.session import Transaction

try:
    import transaction
    from transaction.interfaces import (
        IDataManagerSavepoint,
        IRetryDataManager,
        ISavepointDataManager,
        TransientError,
    )
    from zope.interface import classImplements, implementer
except ImportError as error:
    raise ImportError(
        "durus.transaction_manager needs the package 'transaction': "
        "python -m pip install 'durus-persistent[transaction]'",
        name=error.name,
    ) from error

__all__ = ["TransactionManager", "TransientConflictError", "join", "join_transaction"]

classImplements(Savepoint, IDataManagerSavepoint)


class TransactionManager(Protocol):
    """As `transaction.manager`, or the `tm` of a Pyramid request."""

    def get(self) -> Any:
        """The current transaction."""


class TransientConflictError(WriteConflictError, TransientError):  # type: ignore[misc]  # Any
    """A conflict that was found when a manager committed: whoever retries shall know it as such.

    (By its class, because after a commit the manager can no longer be asked.)
    """


def join(db: Database[R], manager: TransactionManager | None = None) -> R:
    """The root of a database, in the current transaction of a manager, which commits or aborts it.

    manager: by default `transaction.manager`, that of the thread.
    A second call in the same transaction gives the same root.  Its user and description become our
    user and note.  What is refused with a ConflictError is tried again by whoever does that for the
    manager: `pyramid_retry`, `manager.attempts()`, `manager.run()`.
    """
    return join_transaction(db, manager).root


def join_transaction(db: Database[R], manager: TransactionManager | None = None) -> Transaction[R]:
    """As `join`; but the transaction, for its `on_commit`, `get` and `copy`.

    Leave it to the manager to end it.
    """
    if manager is None:
        manager = transaction.manager
    current = manager.get()
    try:
        joined: _DataManager[R] = current.data(db)
    except KeyError:
        pass
    else:
        if not joined.ours._is_over:
            return joined.ours
    joined = _DataManager(db.transaction(), manager)
    joined.ours.__enter__()
    try:
        current.join(joined)
        current.set_data(db, joined)
    except BaseException:
        joined.ours.abort()
        raise
    return joined.ours


@implementer(ISavepointDataManager, IRetryDataManager)
class _DataManager(Generic[R]):
    """What a manager calls, for one transaction of ours.

    In these calls `transaction` is that of the manager.
    """

    def __init__(self, ours: Transaction[R], manager: TransactionManager) -> None:
        self.ours = ours
        self.transaction_manager = manager
        self._calls_are_due = False

    def sortKey(self) -> str:  # noqa: N802 - the name that managers call
        """After all that do not begin with `~`: these have voted by then, and can still abort.

        Of those that store in their vote, as we do, it is better to be the first, for a conflict is
        no rare reason to refuse, and what was stored before it cannot be taken back.
        """
        return f"~durus:{id(self.ours.database)}"

    def savepoint(self) -> Savepoint:
        return self.ours.savepoint()

    def tpc_begin(self, transaction: Any) -> None:
        pass

    def commit(self, transaction: Any) -> None:
        pass

    def tpc_vote(self, transaction: Any) -> None:
        ours = self.ours
        ours.user = transaction.user or ours.user
        ours.note = transaction.description or ours.note
        try:
            ours._commit()
        except ConflictError as error:
            transient = TransientConflictError(error.oids)
            transient.conflicts = error.conflicts
            raise transient from error
        self._calls_are_due = True

    def tpc_finish(self, transaction: Any) -> None:
        self._call_all()

    def tpc_abort(self, transaction: Any) -> None:
        if self.ours.tid is None:
            self.ours.abort()
            return
        logger.critical(
            "%s is stored, with tid %d, but after its vote another participant of the same "
            "transaction has failed, and may have stored nothing",
            self.ours,
            self.ours.tid,
        )
        self._call_all()

    def abort(self, transaction: Any) -> None:
        self.ours.abort()

    def should_retry(self, error: BaseException) -> bool:
        return isinstance(error, ConflictError)

    def _call_all(self) -> None:
        """Make the calls that were to follow the commit, once; no error may come from here."""
        are_due, self._calls_are_due = self._calls_are_due, False
        if are_due:
            try:
                self.ours._call_all()
            except Exception as error:
                logger.log(logging.ERROR, "an on_commit call failed", exc_info=error)
