"""Undo: a new transaction that writes again what stood there before an old one.

Nothing is taken out of the log, so an undo can be undone like any other transaction.  Invariant:
*what others did since then stays*: where that is not possible, nothing happens.
"""

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import closing

from durus.classic_storage import Storage as ClassicStorage
from durus.error import (
    DanglingReferenceError,
    HistoryUnavailableError,
    UndoError,
    WriteConflictError,
)
from durus.interfaces import (
    ROOT_OID,
    CommittedTransaction,
    HistoryStorage,
    Oid,
    Record,
    Snapshot,
    Storage,
    Tid,
    Transaction,
)
from durus.past import require_history

__all__ = ["undo"]


class _Oids(frozenset[Oid]):
    """Exactly these; an `OidSet` of many would be a superset, and conflict without a reason."""

    def overlap(self, oids: Iterable[Oid]) -> list[Oid]:
        return [oid for oid in oids if oid in self]


def undo(
    storage: Storage | ClassicStorage, tid: Tid, *, user: str = "", note: str | None = None
) -> Tid:
    """Undo a transaction, by a new one; returns the tid of that.

    Each object that it changed gets the state back that it had before.  What it created is left
    where it is, and if nothing else refers to it the next pack removes it.

    user, note: of the new transaction; the note says what is undone, unless another one is given.

    Raises UndoError, and nothing has happened: when a later transaction has changed one of its
    objects, when a revision that is needed was packed away, when objects would refer to one that a
    pack has removed, or when it created the root.  HistoryUnavailableError if the storage keeps no
    history, and what commits raise.
    """
    if not isinstance(tid, int):
        raise TypeError(f"a tid is a number, as transactions() has it, and not {tid!r}")
    history = require_history(storage, "undo")
    undone = next(iter(history.transactions(tid, Tid(tid + 1))), None)
    if undone is None:
        raise UndoError(tid, "there is no such transaction, or a pack has dropped it")
    writes = _find_older_records(history, undone)
    note = f"undo of {undone.note or tid}" if note is None else note
    while True:
        with closing(history.snapshot()) as newest:
            _check_unchanged(newest, undone, writes)
        transaction = Transaction(
            id=int.from_bytes(os.urandom(8)),
            snapshot_tid=newest.tid,
            accessed=_Oids(undone.oids),
            created=frozenset(),
            writes=writes,
            time_ns=time.time_ns(),
            user=user,
            note=note,
        )
        try:
            return history.commit(transaction).tid
        except WriteConflictError:  # somebody was faster: now it is seen who
            continue
        except DanglingReferenceError as error:
            reason = "what was there before refers to objects that a pack has removed"
            raise UndoError(tid, reason, error.oids) from error


def _find_older_records(history: HistoryStorage, undone: CommittedTransaction) -> dict[Oid, Record]:
    """What stood before it in the place of what it changed."""
    tid = undone.tid
    try:
        before = history.snapshot(Tid(tid - 1))
    except HistoryUnavailableError as error:
        raise UndoError(tid, f"what was there before it was packed away ({error})") from error
    with closing(before):
        records = {oid: revision.record for oid, revision in before.load_many(undone.oids)}
    if ROOT_OID in undone.oids and ROOT_OID not in records:
        raise UndoError(tid, "it created the root, and without one there is no database")
    if not records:
        raise UndoError(
            tid, "it changed nothing: what it created is removed by a pack if nothing refers to it"
        )
    return records


def _check_unchanged(
    newest: Snapshot, undone: CommittedTransaction, writes: Mapping[Oid, Record]
) -> None:
    """UndoError if a later transaction wrote what this one did, or a pack has removed it."""
    found = {oid: revision.tid for oid, revision in newest.load_many(undone.oids)}
    later = {oid: tid for oid, tid in found.items() if tid != undone.tid}
    if later:
        raise UndoError(
            undone.tid,
            f"some of its objects were changed later, last by transaction {max(later.values())}; "
            "undo the later ones first",
            sorted(later),
        )
    removed = sorted(writes.keys() - found.keys())
    if removed:
        raise UndoError(undone.tid, "a pack has removed some of its objects", removed)
