"""`Database`: transactions, snapshots and history of one storage, for any number of threads.

It is what a new program uses; the classic way is a `durus.connection.Connection`, and the
transactions here are made of these.

    with Database("app.durus", root_class=Bank) as db:
        with db.transaction(note="signup", user="ann") as bank:
            bank.accounts["ann"] = Account("Ann")
        balance = db.run(lambda bank: bank.accounts["ann"].balance)
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Self, TypeVar, overload

from durus.classic import ClassicAdapter, as_storage
from durus.connection import P, R
from durus.database_connection import PooledConnection
from durus.database_statistics import DatabaseStatistics, StatisticsCollector
from durus.error import ForeignReferenceError, ReadOnlyError, StorageClosedError, StorageError
from durus.history import ObjectRevision, follow, revisions
from durus.interfaces import BackupStorage, CommittedTransaction, HistoryStorage, Progress, Tid
from durus.opening import open_storage
from durus.packing import pack_storage
from durus.past import require_history
from durus.persistent import PersistentObject
from durus.persistent_dict import PersistentDict
from durus.retrying import Cancellation, run_with_retries
from durus.session import Session, Snapshot, Transaction, open_in_this_context
from durus.times import When, tid_at, time_of
from durus.undo import undo

if TYPE_CHECKING:
    from os import PathLike

    from durus.classic_storage import Storage as ClassicStorage
    from durus.interfaces import Storage

__all__ = ["Database", "Revision", "Snapshot", "Transaction"]

T = TypeVar("T")

_IDLE_MAX: Final = 16
"""So many connections wait for the next transactions; more are there only while they are used."""


class Database(Generic[R]):
    """A database, shared by the threads of a process, and by the children that it forks."""

    strict_by_default: ClassVar[bool] = False
    """Whether databases are strict that are opened without `strict=` (see `durus.testing`)."""

    @overload
    def __init__(
        self: "Database[PersistentDict[str, Any]]",
        storage: "str | PathLike[str] | Storage | ClassicStorage",
        *,
        root_class: None = None,
        create: bool = True,
        readonly: bool = False,
        strict: bool | None = None,
        allow: Iterable[str] = (),
        aliases: Mapping[str, str] | None = None,
        cache_size: int = 100_000,
        cache_bytes: int = 64 << 20,
    ) -> None: ...

    @overload
    def __init__(
        self,
        storage: "str | PathLike[str] | Storage | ClassicStorage",
        *,
        root_class: type[R],
        create: bool = True,
        readonly: bool = False,
        strict: bool | None = None,
        allow: Iterable[str] = (),
        aliases: Mapping[str, str] | None = None,
        cache_size: int = 100_000,
        cache_bytes: int = 64 << 20,
    ) -> None: ...

    def __init__(
        self,
        storage: "str | PathLike[str] | Storage | ClassicStorage",
        *,
        root_class: type[Any] | None = None,
        create: bool = True,
        readonly: bool = False,
        strict: bool | None = None,
        allow: Iterable[str] = (),
        aliases: Mapping[str, str] | None = None,
        cache_size: int = 100_000,
        cache_bytes: int = 64 << 20,
    ) -> None:
        """Open a database: its path, a URI, or a storage, which then stays open in `close()`.

        root_class: the class of the root, or an alias such as BTree[str, Account]; by default
          PersistentDict.  If there is no root yet, one is made by calling it; WrongClassError if it
          is of another class.
        create: whether a database that is not there is made.
        readonly: nothing is changed, made or locked; ReadOnlyError for who tries.
        strict: for tests: a commit raises UnnotedChangeError when an object was changed in place
          without being noted, such as a plain list in an attribute, and an object that is used
          after its transaction raises TransactionEndedError however late; None for
          `strict_by_default`.
        allow: packages, modules or names of which records may make objects; see docs/security.md.
        aliases: {"old.Old": "new.New"} for classes that were renamed.
        cache_size, cache_bytes: how many objects each connection aims at, and how many bytes of
          records, also in the middle of a long transaction.  There are as many connections as
          transactions and snapshots are open at the same time.
        """
        if cache_bytes <= 0:
            raise ValueError(f"cache_bytes must be > 0, not {cache_bytes!r}")
        self.root_class = root_class
        self.strict = self.strict_by_default if strict is None else strict
        self.allow = tuple(allow)
        self.aliases = aliases
        self.cache_size = cache_size
        self.cache_bytes = cache_bytes
        self._idle: list[PooledConnection[R]] = []
        self._packs = 0
        """How many there were: a connection from before one is not used again after it."""
        self._statistics = StatisticsCollector()
        self._is_closed = False
        self._opened = isinstance(storage, str | os.PathLike)
        self.name = os.fspath(storage) if isinstance(storage, str | os.PathLike) else str(storage)
        opened = (
            open_storage(storage, readonly=readonly, create=create)
            if isinstance(storage, str | os.PathLike)
            else storage
        )
        self.storage: Storage = as_storage(opened)
        self.readonly = readonly or self.storage.readonly
        try:
            self._idle.append(PooledConnection(self))  # makes the root, or says why not
        except BaseException:
            if self._opened:
                self.storage.close()
            raise

    def __repr__(self) -> str:
        return f"Database({self.name!r})"

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
        """Close the storage, if the database was opened by its path or a URI.

        Transactions and snapshots that are open can no longer be used.
        """
        self._is_closed = True
        self._close_idle()
        if self._opened:
            self.storage.close()

    # Transactions and snapshots

    def transaction(self, *, note: str = "", user: str = "") -> Transaction[R]:
        """A transaction, which begins when it is first used, or entered by `with`.

        note, user: are stored with it; both can be set later.
        """
        return Transaction(self, note=note, user=user)

    def snapshot(self, at: When | None = None) -> Snapshot[R]:
        """The database as it is when this is first used, or as it was: to read only.

        at: a tid, an aware datetime, or a timedelta that counts back from now.
            HistoryUnavailableError, at its first use, if the storage does not keep that past.
        """
        return Snapshot(self, at)

    def run(
        self,
        fn: Callable[[R], T],
        *,
        timeout_s: float = 30.0,
        attempts: int | None = None,
        note: str = "",
        user: str = "",
    ) -> T:
        """Call fn(root) in a transaction, commit, and return what it returned.

        After a ConflictError it is done again, with pauses that grow and vary, so `fn` must change
        nothing but objects of the database.
        timeout_s: after so long, or so many `attempts`, the ConflictError is raised, which then
            knows the number of attempts.
        What `fn` returns must be no persistent object: TypeError, and nothing is stored.
        """
        return run_with_retries(
            lambda: self.transaction(note=note, user=user), fn, timeout_s, attempts, Cancellation()
        )

    async def arun(
        self,
        fn: Callable[[R], T],
        *,
        timeout_s: float = 30.0,
        attempts: int | None = None,
        note: str = "",
        user: str = "",
    ) -> T:
        """As `run`, in a thread, for asyncio: the event loop goes on meanwhile.

        If it is cancelled nothing is committed any more.  A commit that is under way then is waited
        for: it may have happened.
        """
        from durus.asyncio_run import run_in_thread

        cancellation = Cancellation()
        outer = open_in_this_context(self)
        return await run_in_thread(
            lambda: run_with_retries(
                lambda: Transaction(self, note=note, user=user, outer=outer),
                fn,
                timeout_s,
                attempts,
                cancellation,
            ),
            cancellation,
        )

    def _lease(self, session: Session[R], at: When | None = None) -> PooledConnection[R]:
        """A connection for a session, which has begun with what is newest."""
        self._check_open()
        connection = (self._take_idle() if at is None else None) or PooledConnection(self, at)
        connection.begin_for(session)
        return connection

    def _take_idle(self) -> PooledConnection[R] | None:
        try:
            return self._idle.pop()  # the one used last: most of its objects are up to date
        except IndexError:
            return None

    def _give_back(self, connection: PooledConnection[R]) -> None:
        if self._is_closed or not connection.is_reusable or len(self._idle) >= _IDLE_MAX:
            connection.close()
        else:
            self._idle.append(connection)

    def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StorageClosedError(f"{self} is closed")

    def _check_writable(self) -> None:
        self._check_open()
        if self.readonly:
            raise ReadOnlyError(f"{self} is open read-only")

    def _connection_of(self, obj: PersistentObject) -> PooledConnection[R]:
        """ForeignReferenceError if an object is none of this database."""
        owner = obj._p_connection
        if obj._p_oid is None:
            raise ForeignReferenceError(
                f"<{obj._p_identity()}> was never stored: this is the only one, without history"
            )
        if not isinstance(owner, PooledConnection) or owner.database is not self:
            raise ForeignReferenceError(
                f"<{obj._p_identity()}> is an object of {owner!r}, and not of {self}; the copy() "
                "of a transaction takes what is of another database"
            )
        return owner

    # History

    def transactions(
        self, start: When | None = None, stop: When | None = None
    ) -> Iterator[CommittedTransaction]:
        """The committed transactions with start <= tid < stop, oldest first, as far as kept."""
        return self._history.transactions(
            None if start is None else tid_at(start), None if stop is None else tid_at(stop)
        )

    def history(self, obj: P) -> "Iterator[Revision[P]]":
        """The states that an object had, newest first, as far back as they are kept.

        obj: an object of a transaction or snapshot of this database.
        ForeignReferenceError if it is none, or was never stored.
        """
        with self._connection_of(obj).used(obj):
            return map(Revision, revisions(obj))

    def changes(
        self, since: When, *, timeout_s: float | None = 0.0
    ) -> Iterator[CommittedTransaction]:
        """The transactions after `since`, oldest first: for caches and indexes outside.

        timeout_s: so long it waits for another one before it ends; None for ever.
        Of what a pack has forgotten comes one transaction in the place of all: the last of them,
        with the oids of all that they wrote and that is still there.  HistoryUnavailableError when
        that is not known any more.
        """
        return follow(self._history, since, timeout_s=timeout_s)

    def undo(self, tid: Tid, *, note: str | None = None, user: str = "") -> Tid:
        """Undo a transaction by a new one, whose tid is returned.  UndoError says why not."""
        self._check_writable()
        return undo(self._history, tid, user=user, note=note)

    @property
    def _history(self) -> HistoryStorage:
        self._check_open()
        return require_history(self.storage)

    # Care

    def pack(
        self,
        *,
        keep: When | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Forget history, and the objects that nothing leads to.  Open transactions go on.

        keep: the history since this tid, aware datetime, or so long ago (a timedelta) stays.
        progress: is called with what is done and what there is to do (0: not known); there are
            several stages.
        """
        self._check_writable()
        pack_storage(self.storage, keep, _call_progress(progress))
        self._packs += 1
        self._close_idle()

    def backup(
        self,
        folder: "str | PathLike[str]",
        *,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Bring the backups in a folder up to date; it is made if it is not there.

        progress: is called with the bytes that are done, and those to do.
        StorageError if the storage is no log file.  docs/backup.md says how to restore.
        """
        self._check_open()
        storage = self.storage.classic if isinstance(self.storage, ClassicAdapter) else self.storage
        if not isinstance(storage, BackupStorage):
            raise StorageError(
                f"{self} cannot be backed up so: that is for log files.  'durus convert' copies "
                "any database into one"
            )
        storage.backup(folder, progress=_call_progress(progress))

    def stats(self) -> DatabaseStatistics:
        """What happened in this process since the database was opened."""
        idle = list(self._idle)
        counted = self._statistics
        return DatabaseStatistics(
            commits=counted.commits,
            reads=counted.reads,
            aborts=counted.aborts,
            conflicts=counted.conflicts,
            conflicts_by_class=counted.by_class(),
            hottest=counted.hottest(),
            connections=len(idle),
            cached_objects=sum(connection.get_cache_count() for connection in idle),
            cached_bytes=sum(connection.cache.recent_objects.size_bytes for connection in idle),
            loads=sum(connection.get_load_count() for connection in idle),
        )


@dataclass(frozen=True, slots=True)
class Revision(Generic[P]):
    """One of the states that an object had."""

    _found: ObjectRevision[P]

    @property
    def tid(self) -> Tid:
        """The transaction that wrote it."""
        return self._found.tid

    @property
    def time(self) -> datetime:
        """When that was, in UTC."""
        by = self._found.transaction
        return time_of(self.tid if by is None else by.time_ns)

    @property
    def note(self) -> str:
        """The note of that transaction; empty if a pack has dropped it."""
        return "" if self._found.transaction is None else self._found.transaction.note

    @property
    def user(self) -> str:
        """The user of that transaction; empty if a pack has dropped it."""
        return "" if self._found.transaction is None else self._found.transaction.user

    def load(self) -> P:
        """The object with that state: a copy that belongs to no connection.

        It refers to objects of the session of the object that was asked for.  An old state is
        upgraded; what the upgrade changes in other objects is left out.
        """
        return self._found.obj


def _call_progress(
    progress: Callable[[int, int], object] | None,
) -> Callable[[Progress], None] | None:
    if progress is None:
        return None

    def tell(told: Progress) -> None:
        progress(told.done, told.total)

    return tell
