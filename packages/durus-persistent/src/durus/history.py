"""History: moving through the transactions of a database, following them, undoing them.

All of it reads `durus.interfaces.HistoryStorage`, a log of transactions; no storage has machinery
of its own for it.  A past that stands still is `Connection(storage, at=...)`.
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import takewhile
from os import PathLike
from typing import Final, Generic, cast

from durus.classic_storage import Storage as ClassicStorage
from durus.connection import Connection, P, R
from durus.error import DurusKeyError, ForeignReferenceError, HistoryUnavailableError
from durus.interfaces import CommittedTransaction, HistoryStorage, Oid, Revision, Storage, Tid
from durus.past import PastView, open_past, require_history
from durus.persistent import UNSAVED, PersistentBase, PersistentObject, _setattribute
from durus.times import When, tid_at
from durus.undo import undo
from durus.view import View

__all__ = ["HistoryConnection", "ObjectRevision", "follow", "revisions", "undo"]

_PAUSE_MIN_S: Final = 0.001
_PAUSE_MAX_S: Final = 0.5


class HistoryConnection(Connection[R]):
    """A read-only connection that is moved from transaction to transaction.

    It begins at the newest one, or at that of `at`; neither abort() nor what others commit moves
    it.  An object that does not exist where it is moved to raises DurusKeyError when it is used; it
    is there again when it is moved back.
    """

    _view: PastView

    def _open_view(
        self, storage: str | PathLike[str] | Storage | ClassicStorage, at: When | None
    ) -> tuple[View, bool]:
        return open_past(storage, self._forget, at)

    def previous(self) -> bool:
        """Move to the previous transaction; False, and no move, if none is kept."""
        return self._move(Tid(self.tid - 1))

    def next(self) -> bool:
        """Move to the next transaction; False, and no move, if there is none yet."""
        return self._move_on(Tid(self.tid + 1))

    def previous_instance(self, obj: PersistentObject) -> bool:
        """Move back to the nearest transaction in which `obj` differs.

        That is the one before the one that has written what is seen of it here: it has an older
        revision of `obj` there, or does not exist yet.  False, and no move, if none is kept.
        """
        oid = self._oid_of(obj)
        try:
            tid = self._view.load(oid).tid
        except DurusKeyError:
            return False  # oids are not used again, so it did not exist before either
        return self._move(Tid(tid - 1))

    def next_instance(self, obj: PersistentObject) -> bool:
        """Move on to the next transaction that has written `obj`; False, and no move, if none."""
        oid = self._oid_of(obj)
        try:
            found = self._view.history.revisions(oid)
            later = [tid for tid, _ in takewhile(lambda revision: revision.tid > self.tid, found)]
        except DurusKeyError:  # a pack has removed it
            return False
        return bool(later) and self._move_on(later[-1])

    def _move_on(self, start: Tid) -> bool:
        """Move to the first transaction from `start` on that can be seen: a pack may be later."""
        transactions = self._view.history.transactions(start)
        return any(self._move(transaction.tid) for transaction in transactions)

    def _move(self, at: Tid) -> bool:
        self._changes.roll_back()  # what upgrades have changed
        try:
            self._view.move(at)
        except HistoryUnavailableError:
            return False
        self.transaction_serial += 1  # so that each object is looked at anew
        self.shrink_cache()
        return True

    def _oid_of(self, obj: PersistentObject) -> Oid:
        if obj._p_oid is None or obj._p_connection is not self:
            raise ForeignReferenceError(
                f"<{obj._p_identity()}> does not belong to this connection: take the object from "
                "this one's root, or with its get()"
            )
        return obj._p_oid


@dataclass(frozen=True, slots=True)
class ObjectRevision(Generic[P]):
    """One of the states that an object had."""

    tid: Tid
    transaction: CommittedTransaction | None
    """The one that wrote it; None if a pack has dropped it."""
    obj: P
    """The object with that state: a copy that belongs to no connection."""


def revisions(obj: P) -> Iterator[ObjectRevision[P]]:
    """The states that a stored object had, newest first, as far back as they are kept.

    The first is the newest committed one, whatever its connection sees.  The copies refer to the
    objects of that connection, which are as they are there: to see other objects as they were, too,
    use `Connection(storage, at=revision.tid)`.

    Raises HistoryUnavailableError if the storage keeps no history, and DurusKeyError.
    """
    connection, oid = obj._p_connection, obj._p_oid
    if oid is None or not isinstance(connection, Connection):
        raise ForeignReferenceError(f"<{obj._p_identity()}> was never stored, so it has no history")
    history = require_history(connection._view.storage)
    return (
        ObjectRevision(
            revision.tid,
            next(iter(history.transactions(revision.tid, Tid(revision.tid + 1))), None),
            cast(P, _make_copy(connection, oid, revision)),
        )
        for revision in history.revisions(oid)
    )


def _make_copy(connection: Connection, oid: Oid, revision: Revision) -> PersistentObject:
    reader = connection.reader
    cls = reader.policy.load_class(revision.record.class_pickle, oid)
    copy = PersistentBase.__new__(cls)
    _setattribute(copy, "_p_oid", oid)
    version = reader.load_state(copy, revision.record)
    _setattribute(copy, "_p_status", UNSAVED)
    connection._upgrades.upgrade_copy(copy, version)
    _setattribute(copy, "_p_oid", None)
    return copy


def follow(
    storage: Storage | ClassicStorage, since: When, *, timeout_s: float | None = 0.0
) -> Iterator[CommittedTransaction]:
    """The transactions after `since`, oldest first: for caches and indexes outside.

    Begin with what a snapshot holds, or a connection, and follow from its tid; then note the tid of
    each transaction when it has been dealt with, to go on from there the next time.

    since: a tid, an aware datetime, or a timedelta that counts back from now.
    timeout_s: so long it waits for another transaction before it ends; None for ever.  It looks
        every half second when nothing happens, more often after something did.

    Of what a pack has forgotten before it was seen comes one transaction in the place of all: the
    last of them, with the oids of all that they wrote and that is still there.

    Raises HistoryUnavailableError if the storage keeps no history, or when it is not known any more
    what a pack has forgotten; StorageClosedError when the storage is closed meanwhile.
    """
    if timeout_s is not None and math.isnan(timeout_s):
        raise ValueError(f"timeout_s is a number of seconds, or None, not {timeout_s!r}")
    return _follow(require_history(storage), tid_at(since), timeout_s)


def _follow(
    history: HistoryStorage, seen: Tid, timeout_s: float | None
) -> Iterator[CommittedTransaction]:
    while True:
        for transaction in _list_after(history, seen):
            yield transaction
            seen = transaction.tid
        if not _wait(history, seen, timeout_s):
            return


def _list_after(history: HistoryStorage, tid: Tid) -> Iterable[CommittedTransaction]:
    """Transactions after `tid`, perhaps not all of them; HistoryUnavailableError."""
    found = history.transactions(Tid(tid + 1))
    try:  # after that, so that no pack comes in between
        history.snapshot(tid).close()
    except HistoryUnavailableError as error:
        joined = _join_forgotten(history, tid)
        if joined is None:
            raise HistoryUnavailableError(
                f"{history}: it is not known any more what was changed since tid {tid}, because it "
                "was packed; build anew what follows it from a snapshot, and follow from the "
                "snapshot's tid"
            ) from error
        return [joined]
    return found


def _join_forgotten(history: HistoryStorage, tid: Tid) -> CommittedTransaction | None:
    """The first transaction after `tid` that can still be looked at, and in it those before it.

    None if it is not known what these have changed.
    """
    for transaction in history.transactions(Tid(tid + 1)):
        try:
            snapshot = history.snapshot(transaction.tid)
        except HistoryUnavailableError:
            continue
        with closing(snapshot):
            changed = history.changes(tid, transaction.tid)
            if changed is None:
                return None
            found = sorted(oid for oid, _ in snapshot.load_many(changed))
            return replace(transaction, oids=found)
    return None


def _wait(history: HistoryStorage, seen: Tid, timeout_s: float | None) -> bool:
    """Wait for a transaction after `seen`; False if there is none in time."""
    end = None if timeout_s is None else time.monotonic() + timeout_s
    pause_s = _PAUSE_MIN_S
    while True:
        with closing(history.snapshot()) as newest:
            if newest.tid > seen:
                return True
        if end is not None:
            pause_s = min(pause_s, end - time.monotonic())
            if pause_s <= 0:
                return False
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _PAUSE_MAX_S)
