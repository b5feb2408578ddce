"""The commit of a client that speaks protocol 1: what it says with records alone, said in full.

Such a client does not say what it has accessed, nor what it creates.  So any commit after what it
has seen is a conflict; and what it stores is created if it is not there.
"""

import os
import time
from collections.abc import Mapping, Set
from contextlib import closing
from typing import Final, NamedTuple

from durus.error import StorageError, WriteConflictError, format_oid
from durus.interfaces import Oid, Record, Snapshot, Storage, Tid, Transaction
from durus.oid_set import OidSet
from durus.server_requests import ClientError

__all__ = ["CREATED_OID_MAX", "Stored", "store"]

_ATTEMPTS_MAX: Final = 10

CREATED_OID_MAX: Final = 2**40
"""Oids go on from the largest that there is.  One that nobody has handed out must leave room."""

_EVERYTHING: Final = OidSet()
_EVERYTHING.add_everything()


class Stored(NamedTuple):
    """A transaction that was committed."""

    tid: Tid
    removed: frozenset[Oid]
    """What a pack has removed after what the client has seen."""
    snapshot: Snapshot | None
    """One in which it is visible; None if that could not be had."""


def store(
    storage: Storage, seen: Tid, handed_out: Set[Oid], writes: Mapping[Oid, Record]
) -> Stored:
    """Commit what a client writes who has seen the database at the tid `seen`.

    handed_out: those oids in `writes` that are the client's for new objects.  Of the others, what
    is not there is created as well: a client of 4.x may copy objects with their oids, or change
    one that a pack has removed.

    Raises what `Storage.commit` raises, and ClientError.
    """
    for _ in range(_ATTEMPTS_MAX):
        with closing(storage.snapshot()) as snapshot:
            removed = _find_removed(storage, snapshot, seen)
            if conflicts := removed & writes.keys():
                raise WriteConflictError(sorted(conflicts))
            rest = writes.keys() - handed_out
            created = writes.keys() - {oid for oid, _ in snapshot.load_many(rest)}
        for oid in created - handed_out:
            if int.from_bytes(oid) > CREATED_OID_MAX:
                raise ClientError(
                    f"it creates object {format_oid(oid)}, the oid of which nobody has handed out"
                )
        transaction = Transaction(
            id=int.from_bytes(os.urandom(8)),
            snapshot_tid=snapshot.tid,
            accessed=_EVERYTHING,
            created=frozenset(created),
            writes=writes,
            time_ns=time.time_ns(),
        )
        try:
            tid = storage.commit(transaction).tid
        except WriteConflictError:
            if storage.tid == snapshot.tid:
                raise
            continue  # something has come in between; perhaps it was the end of a pack
        try:
            return Stored(tid, removed, storage.snapshot())
        except (StorageError, OSError):  # the commit has not failed because of that
            return Stored(tid, removed, None)
    raise WriteConflictError()


def _find_removed(storage: Storage, snapshot: Snapshot, seen: Tid) -> frozenset[Oid]:
    """What has changed since, if all of it is just not there any more.

    Some storages report as changed what a pack has removed.  That is no commit by anybody: nobody
    could reach those objects.  WriteConflictError if there was another change.
    """
    if snapshot.tid == seen:
        return frozenset()
    changed = storage.changes(seen, snapshot.tid)
    if changed is None:
        raise WriteConflictError()
    for oid, _ in snapshot.load_many(changed):
        raise WriteConflictError([oid])
    return changed
