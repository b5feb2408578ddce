"""Commits of what was changed blindly: merged with what others committed meanwhile.

`durus.mergeable` says what a blind change is.  It counts as accessed for the storage, which so
refuses the commit when somebody else has changed the object.  Then, outside of any lock, the
object's `_p_resolve_conflict` makes one state of three: that of the transaction's snapshot, the
newest one, and that of the transaction; and the commit is tried again.  Invariant: *all that was
accessed is still as the transaction has seen it at the tid from which it commits*; when it is not,
the conflict stands.
"""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from durus.error import DurusKeyError, UnstorableError, WriteConflictError
from durus.interfaces import (
    AccessedOids,
    CommitResult,
    HistoryStorage,
    Oid,
    Record,
    Transaction,
)
from durus.mergeable import Mergeable
from durus.persistent import PersistentBase
from durus.schema_versions import VERSION_KEY, take_version, version_of
from durus.serialize import ObjectWriter

if TYPE_CHECKING:
    from durus.connection import Connection

__all__ = ["commit_merging"]

_ATTEMPTS_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class _Either:
    """The oids that were accessed, and those that were changed blindly."""

    accessed: AccessedOids
    blind: frozenset[Oid]

    def overlap(self, oids: Iterable[Oid]) -> list[Oid]:
        oids = list(oids)
        accessed = set(self.accessed.overlap(oids))
        return [oid for oid in oids if oid in accessed or oid in self.blind]


def commit_merging(
    connection: "Connection[Any]", transaction: Transaction, writer: ObjectWriter
) -> CommitResult:
    """Commit a transaction; what was merged is among what the answer says that others changed.

    Raises what commits raise; WriteConflictError when something cannot be merged.
    """
    view = connection._view
    storage = view.storage
    blind = frozenset(view.blind.intersection(transaction.writes))
    if not blind:
        return storage.commit(transaction)
    mine = transaction.writes
    transaction = replace(transaction, accessed=_Either(view.accessed, blind))
    since = transaction.snapshot_tid
    for _ in range(_ATTEMPTS_MAX):
        try:
            tid, changed = storage.commit(transaction)
        except WriteConflictError as error:
            if not isinstance(storage, HistoryStorage):
                raise
            with closing(storage.snapshot()) as newest:
                changed = storage.changes(since, newest.tid)
                if changed is None or newest.tid == transaction.snapshot_tid:
                    raise  # it is no change of others that is in the way
                if conflicts := view.accessed.overlap(changed):
                    raise WriteConflictError(sorted(conflicts)) from error
                try:
                    merged = {
                        oid: _merge(connection, writer, oid, newest.load(oid).record, mine[oid])
                        for oid in blind & changed
                    }
                except (DurusKeyError, NotImplementedError):  # it was removed; it cannot merge
                    merged = {}
                if not merged:
                    raise
            transaction = replace(transaction, snapshot_tid=newest.tid, writes={**mine, **merged})
        else:
            if transaction.snapshot_tid == since:
                return CommitResult(tid, changed)
            before = storage.changes(since, transaction.snapshot_tid)
            if before is None or changed is None:
                return CommitResult(tid, None)
            return CommitResult(tid, before | changed)
    raise WriteConflictError(sorted(blind))


def _merge(
    connection: "Connection[Any]", writer: ObjectWriter, oid: Oid, committed: Record, mine: Record
) -> Record:
    """The record of what the object makes of three states."""
    old = connection._view.snapshot.load(oid).record
    obj = connection.get(oid)  # after a savepoint it may have left the cache
    assert isinstance(obj, Mergeable)
    states = [connection.reader.read_state(record, obj) for record in (old, committed, mine)]
    if any(take_version(state) != version_of(type(obj)) for state in states):
        raise NotImplementedError  # upgrades are for objects, not for states
    changed = len(connection.changed)
    state = obj._p_resolve_conflict(*states)
    if len(connection.changed) > changed:
        raise UnstorableError(
            f"the _p_resolve_conflict of <{obj._p_identity()}> has changed objects, which a commit "
            "that is under way cannot store: it may only look at the states"
        )
    if type(state) is not type(states[-1]):
        raise UnstorableError(
            f"_p_resolve_conflict of <{obj._p_identity()}> returned {type(state)}, and no "
            f"{type(states[-1])}, as the states are"
        )
    _check_loadable(obj, state)
    known = len(writer.new_objects)
    record = writer.make_record(obj, state)
    if len(writer.new_objects) > known:
        raise UnstorableError(
            f"the _p_resolve_conflict of <{obj._p_identity()}> has made new persistent objects: it "
            "may only use those that are in the states"
        )
    return record


def _check_loadable(obj: Mergeable, state: Any) -> None:
    """UnstorableError if the object could not be loaded from this state."""
    try:
        if isinstance(state, dict) and VERSION_KEY in state:
            raise ValueError(f"the key {VERSION_KEY!r} is not its own")
        PersistentBase.__new__(type(obj)).__setstate__(state)
    except Exception as error:
        raise UnstorableError(
            f"_p_resolve_conflict of <{obj._p_identity()}> returned what cannot be loaded: {error}"
        ) from error
