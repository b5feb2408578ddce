"""Chunks of blobs on their way into a storage, most of them ahead of the commit that needs them.

A connection uses it in commit().  They go in transactions of their own, which are small, so that
nobody else waits for a large blob; until the commit nothing refers to them, and if it fails, pack
removes them.  Invariant: an oid that was in such a transaction is never used again.
"""

import os
import time
from collections.abc import Callable, Iterable
from typing import Final

from durus.blob import BlobChunk
from durus.error import CommitOutcomeUnknownError, StorageError, WriteConflictError
from durus.interfaces import Oid, Record, Transaction
from durus.view import View

__all__ = ["ChunkUpload"]

_BYTES_AT_ONCE: Final = 2 << 20
_ATTEMPTS_MAX: Final = 100


class ChunkUpload:
    """The chunks of one commit, of what was read in a view."""

    def __init__(self, view: View, user: str) -> None:
        self._view = view
        self._user = user
        self.oids: set[Oid] = set()
        """Those that were stored ahead."""

    def store(
        self, chunks: Iterable[BlobChunk], make_record: Callable[[BlobChunk], Record]
    ) -> dict[Oid, Record]:
        """Store chunks, except for a small rest, which is for the commit itself."""
        records: dict[Oid, Record] = {}
        size_bytes = 0
        for chunk in chunks:
            record = make_record(chunk)
            assert chunk._p_oid is not None
            records[chunk._p_oid] = record
            size_bytes += len(record.state_pickle)
            if size_bytes >= _BYTES_AT_ONCE:
                self._commit(records)
                records, size_bytes = {}, 0
        return records

    def _commit(self, records: dict[Oid, Record]) -> None:
        self.oids.update(records)
        self._view.accessed.exclude(records)
        for attempts_left in reversed(range(_ATTEMPTS_MAX)):
            try:
                self._view.storage.commit(
                    Transaction(
                        id=int.from_bytes(os.urandom(8)),
                        # If the commit will be a conflict, that is found before all is stored.
                        snapshot_tid=self._view.snapshot.tid,
                        accessed=self._view.accessed,
                        created=frozenset(records),
                        writes=records,
                        time_ns=time.time_ns(),
                        user=self._user,
                        note="part of a blob",
                    )
                )
                return
            except WriteConflictError as error:
                # To the client of a server any commit by others is a conflict, with no oids.
                if error.oids is not None or not attempts_left:
                    raise
            except CommitOutcomeUnknownError as error:
                # Its id is not that of the transaction for which the caller would look.
                raise StorageError(
                    f"nothing was committed, because a part of a blob could not be stored: {error}"
                ) from error
