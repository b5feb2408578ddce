"""The past: storages that keep it, and the view of a connection that stands still in it.

`Connection(storage, at=...)` and `durus.history` are built on these.  Invariant: *nothing changes
in this view*, neither by others nor by the program, until it is moved.
"""

from collections.abc import Callable
from os import PathLike
from typing import NoReturn, Protocol, runtime_checkable

from durus.classic import as_storage
from durus.classic_storage import Storage as ClassicStorage
from durus.error import (
    DurusKeyError,
    HistoryUnavailableError,
    ReadOnlyError,
    StorageClosedError,
)
from durus.interfaces import NO_TID, ROOT_OID, HistoryStorage, Oid, Storage, Tid
from durus.opening import open_storage
from durus.persistent import PersistentObject
from durus.times import When, tid_at
from durus.view import SnapshotView

__all__ = ["PastView", "open_history", "open_past", "require_history"]


@runtime_checkable
class _FileWithHistory(Protocol):
    """A classic storage whose file has the transactions since its last pack in it."""

    def open_history(self) -> HistoryStorage:
        """Open the file once more, to read them."""
        ...


def require_history(storage: Storage | ClassicStorage, what: str = "") -> HistoryStorage:
    """The storage, if it keeps history; else HistoryUnavailableError.

    what: it is needed for, if that is more than to look at it.
    """
    found = as_storage(storage)
    if not isinstance(found, HistoryStorage):
        named = getattr(found, "classic", storage)
        lacking = f"cannot {what}" if what else "keeps no history, so there is only what is newest"
        raise HistoryUnavailableError(
            f"{named} {lacking}.  That takes a log or an SQLite file, and 'durus convert' makes "
            "one of any other"
        )
    return found


def open_history(
    storage: str | PathLike[str] | Storage | ClassicStorage,
) -> tuple[HistoryStorage, bool]:
    """The storage whose past a path, a URI or a storage stands for; and whether it was opened here.

    Then whoever asked closes it.  A path is opened read-only, and nothing is made.  For a file of
    Durus 4.x it is a storage of the transactions since its last pack.

    Raises StorageOpenError, HistoryUnavailableError.
    """
    if isinstance(storage, str | PathLike):
        opened = open_storage(storage, readonly=True, create=False)
        try:
            history, _ = open_history(opened)
        except BaseException:
            opened.close()
            raise
        if history is not opened:
            opened.close()
        return history, True
    classic = getattr(as_storage(storage), "classic", None)
    if isinstance(classic, _FileWithHistory):
        return classic.open_history(), True
    return require_history(storage), False


def open_past(
    storage: str | PathLike[str] | Storage | ClassicStorage,
    forget: Callable[[frozenset[Oid] | None], None],
    at: When | None,
) -> "tuple[PastView, bool]":
    """A view of the past of what `open_history` finds, and whether that was opened here."""
    history, is_opened = open_history(storage)
    try:
        return PastView(history, forget, at), is_opened
    except BaseException:
        if is_opened:
            history.close()
        raise


class PastView(SnapshotView):
    """What a connection sees that stands at one transaction, and changes nothing.

    at: None for the newest transaction.  Raises HistoryUnavailableError when that past is not kept,
    or there was no root yet.
    """

    def __init__(
        self,
        storage: HistoryStorage,
        forget: Callable[[frozenset[Oid] | None], None],
        at: When | None,
    ) -> None:
        super().__init__(storage, forget, storage.snapshot(None if at is None else tid_at(at)))
        self.history = storage
        try:
            self.snapshot.load(ROOT_OID)
        except DurusKeyError:
            self.close()
            self._refuse_without_root()

    def _refuse_without_root(self) -> NoReturn:
        first = next(iter(self.history.transactions()), None)
        since = "it is empty" if first is None else f"the first transaction has tid {first.tid}"
        raise HistoryUnavailableError(f"{self.storage} had no root at tid {self.tid}: {since}")

    def _renew(self) -> None:
        if self._closed:
            raise StorageClosedError(f"the connection to {self.storage} is closed")
        if self._snapshot is None or self.is_inherited:
            self._use(self.history.snapshot(self.tid))

    def move(self, at: Tid) -> None:
        """Stand at the newest transaction that is not newer than `at`.

        Raises HistoryUnavailableError when there is none, or it is not kept.
        """
        here = self.snapshot.tid
        snapshot = self.history.snapshot(at)
        if snapshot.tid == NO_TID:
            snapshot.close()
            raise HistoryUnavailableError(f"{self.storage} has no transaction up to tid {at}")
        since, until = sorted((here, snapshot.tid))
        self._forget(self.history.changes(since, until))
        self._use(snapshot)
        self._reset()

    def note_change(self, obj: PersistentObject, *, is_blind: bool = False) -> NoReturn:
        raise ReadOnlyError(
            f"<{obj._p_identity()}> cannot be changed: this connection shows {self.storage} as it "
            f"was at tid {self.tid}; change the object in a Connection without at="
        )

    @property
    def is_writable(self) -> bool:
        return False

    def check_writable(self) -> NoReturn:
        raise ReadOnlyError(
            f"this connection shows {self.storage} as it was at tid {self.tid}, and changes "
            "nothing; use a Connection without at="
        )
