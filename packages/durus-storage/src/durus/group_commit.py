"""Group commit: the threads that commit at the same time share one sync.

`FileStorage` has one.  Whoever comes first becomes the leader, and commits for all who wait; who
comes while it syncs waits for the next group.  Invariant: when `commit` returns or raises, its
transaction is in no queue any more, and what is said of it is final.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

from durus.error import CommitOutcomeUnknownError, StorageError, StorageLockedError
from durus.interfaces import CommitResult
from durus.log_batch import PreparedTransaction

__all__ = ["GroupCommit", "PendingCommit"]


class PendingCommit:
    """A transaction that somebody waits for."""

    def __init__(self, prepared: PreparedTransaction) -> None:
        self.prepared = prepared
        self.result: CommitResult | None = None
        self.error: BaseException | None = None

    @property
    def is_settled(self) -> bool:
        return self.result is not None or self.error is not None


class GroupCommit:
    """Commits for the threads of one process, one group at a time.

    commit_group: commits several transactions; it settles each that it can tell about, and with
        what it raises the others were not committed (unless it is CommitOutcomeUnknownError).
    """

    def __init__(self, commit_group: Callable[[list[PendingCommit]], None]) -> None:
        self._commit_group = commit_group
        self._waiting: deque[PendingCommit] = deque()
        self._leading = threading.Lock()

    @contextlib.contextmanager
    def exclude(self) -> Iterator[None]:
        """Nobody commits meanwhile."""
        with self._leading:
            yield

    @contextlib.contextmanager
    def exclude_now(self) -> Iterator[bool]:
        """Nobody commits meanwhile, if nobody does now: yields whether that is so."""
        is_excluded = self._leading.acquire(blocking=False)
        try:
            yield is_excluded
        finally:
            if is_excluded:
                self._leading.release()

    def commit(self, prepared: PreparedTransaction) -> CommitResult:
        """Wait until the transaction is committed; what `Storage.commit` raises."""
        pending = PendingCommit(prepared)
        self._waiting.append(pending)
        is_leader = False
        try:
            with self._leading:
                if not pending.is_settled:
                    is_leader = True
                    self._lead(pending)
        except BaseException as error:
            if pending.error is not None and isinstance(error, StorageError):
                raise pending.error from error  # it was refused before the others failed
            id = prepared.transaction.id
            if isinstance(error, CommitOutcomeUnknownError):
                raise CommitOutcomeUnknownError(id, error.reason) from error
            # An interrupt: of the leader when all is done, or of who was waiting for another one.
            if pending.result is not None or not (is_leader or self._is_withdrawn(pending)):
                raise CommitOutcomeUnknownError(id, "the thread was interrupted") from error
            raise
        if pending.error is not None:
            raise pending.error
        assert pending.result is not None
        return pending.result

    def _is_withdrawn(self, pending: PendingCommit) -> bool:
        """Take a transaction back, after an interrupt: whether no leader had taken it."""
        try:
            self._waiting.remove(pending)
        except ValueError:
            return False
        return True

    def _lead(self, mine: PendingCommit) -> None:
        group: list[PendingCommit] = []
        try:
            while self._waiting:
                group.append(self._waiting.popleft())
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
