"""Group commit: the threads that commit at the same time share one sync.

`FileStorage` has one.  Whoever comes first becomes the leader, and commits for all who wait; who
comes while it syncs waits for the next group.  Invariant: when `commit` returns or raises, its
transaction is in no queue any more, and what is said of it is final.
"""

import threading
from collections.abc import Callable

from durus.error import CommitOutcomeUnknownError, StorageError, StorageLockedError
from durus.interfaces import CommitResult
from durus.log_batch import Batch, PreparedTransaction

__all__ = ["GroupCommit", "PendingCommit"]


class PendingCommit:
    """A transaction that somebody waits for."""

    def __init__(self, prepared: PreparedTransaction) -> None:
        self.prepared = prepared
        self.batch: Batch | None = None
        """With what it is committed, if it is."""
        self.result: CommitResult | None = None
        """What its committer will be told when the batch is appended."""
        self.error: Exception | None = None

    @property
    def is_committed(self) -> bool:
        return self.batch is not None and self.batch.is_appended

    @property
    def is_settled(self) -> bool:
        return self.error is not None or self.is_committed


class GroupCommit:
    """Commits for the threads of one process, one group at a time.

    commit_group: commits several transactions; it settles each that it can tell about, and with
        what it raises the others were not committed (unless it is CommitOutcomeUnknownError).
    """

    def __init__(self, commit_group: Callable[[list[PendingCommit]], None]) -> None:
        self._commit_group = commit_group
        self._waiting: list[PendingCommit] = []
        self.leading = threading.Lock()
        """Who has it commits for those who wait."""

    def commit(self, prepared: PreparedTransaction) -> CommitResult:
        """Wait until the transaction is committed; what `Storage.commit` raises."""
        pending = PendingCommit(prepared)
        is_leader = False
        try:
            self._waiting.append(pending)
            with self.leading:
                if not pending.is_settled:
                    is_leader = True
                    self._lead(pending)
        except BaseException as error:
            was_waiting = self._take_back(pending)
            if pending.error is not None and isinstance(error, StorageError):
                raise pending.error from error  # it was refused before the others failed
            id = prepared.transaction.id
            if isinstance(error, CommitOutcomeUnknownError):
                raise CommitOutcomeUnknownError(id, error.reason) from error
            # An interrupt: of the leader when all is done, or of who was waiting for another one.
            if pending.is_committed or not (is_leader or was_waiting):
                raise CommitOutcomeUnknownError(id, "the thread was interrupted") from error
            raise
        if pending.error is not None:
            raise pending.error
        assert pending.result is not None
        return pending.result

    def _take_back(self, pending: PendingCommit) -> bool:
        """Let nobody commit it any more; whether that was in time."""
        try:
            self._waiting.remove(pending)
        except ValueError:
            return False
        return True

    def _lead(self, mine: PendingCommit) -> None:
        # An interrupt may leave here what is settled, or take from here what is not: everybody who
        # waits looks for himself when he has the lock.
        group = [pending for pending in self._waiting[:] if not pending.is_settled]
        if mine not in group:
            group.append(mine)
        for pending in group:
            self._take_back(pending)
        try:
            self._commit_group(group)
        except BaseException as error:
            for pending in group:
                if not pending.is_settled and pending is not mine:
                    pending.error = _say_to(pending, error)
            raise


def _say_to(pending: PendingCommit, error: BaseException) -> StorageError:
    """What another one of a group is told of an error of their leader: each has its own."""
    if isinstance(error, CommitOutcomeUnknownError):
        told: StorageError = CommitOutcomeUnknownError(
            pending.prepared.transaction.id, error.reason
        )
    elif isinstance(error, StorageLockedError):
        told = StorageLockedError(str(error))
    elif isinstance(error, StorageError):
        told = StorageError(str(error))
    else:
        told = StorageError(
            f"the transaction was not committed: the thread that wrote it was stopped by {error!r}"
        )
    told.__cause__ = error
    return told
