"""Workers that make random transactions, for `tests.serializability` to check.

What they do is in `tests.transaction_steps`.

A worker is a generator, which stops after every step: so one thread can do the steps of several
workers in an order that a seed decides, and threads and processes can run them for themselves.
"""

import contextvars
import os
import pickle
import random
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

from durus.changes import Savepoint as MadeSavepoint
from durus.class_pickle import name_in_class_pickle
from durus.database import Database, Transaction
from durus.database_connection import PooledConnection
from durus.error import ConflictError, HistoryUnavailableError, StorageLockedError, UndoError
from durus.file_storage import FileStorage
from durus.interfaces import CommitResult, HistoryStorage, PackableStorage, Tid
from durus.interfaces import Transaction as StoredTransaction
from tests.serializability import Attempt, Rollback, Savepoint, Undo
from tests.transaction_steps import ChangeInside, Mark, Root, choose_step

__all__ = [
    "Witness",
    "Worker",
    "interleave",
    "run_in_threads",
    "switching_often",
]


class Worker:
    """Makes random transactions, one after the other.

    number: tells apart the workers on one database, of all processes.
    marks: whether it writes its mark with each transaction: else the tids tell the order.
    undoes: whether it also undoes transactions of its own.
    """

    def __init__(
        self,
        database: Database[Root],
        number: int,
        seed: int,
        *,
        marks: bool = False,
        undoes: bool = False,
    ) -> None:
        self.attempts: list[Attempt] = []
        self._database = database
        self._number = number
        self._choose = random.Random(f"{seed} {number}")
        self._marks = marks
        self._undoes = undoes
        self._packs = isinstance(database.storage, PackableStorage)
        self._has_past = isinstance(database.storage, HistoryStorage)
        self._last_value = number << 32

    def work(self, count: int) -> Generator[None]:
        """Make so many transactions and snapshots, stopping after each step."""
        choose = self._choose
        for _ in range(count):
            chance = choose.random()
            if chance < 0.12:
                yield from self._look(is_past=choose.random() < 0.2)
            elif chance < 0.3:
                yield from self._run_again()
            elif chance < 0.4 and self._undoes:
                yield from self._undo()
            else:
                yield from self._transact()
            if self._packs and choose.random() < 0.004:
                self._pack(timedelta(milliseconds=50) if choose.random() < 0.5 else None)

    def _pack(self, keep: timedelta | None) -> None:
        try:
            self._database.pack(keep=keep)
        except HistoryUnavailableError:  # not every storage can keep a part of the past
            assert keep is not None
            self._database.pack()
        except StorageLockedError as error:  # somebody else is at it
            if "is being packed" not in str(error):
                raise

    def _new_value(self) -> int:
        self._last_value += 1
        return self._last_value

    def _begin(self) -> Attempt:
        name = f"{self._number}.{len(self.attempts)}"
        attempt = Attempt(name, time.monotonic_ns())
        self.attempts.append(attempt)
        return attempt

    def _see(self, attempt: Attempt, root: Root) -> None:
        """Note which state of the database it sees."""
        connection = cast(PooledConnection[Root], root._p_connection)
        attempt.seen = None if self._marks else connection.tid

    def _do_one(self, attempt: Attempt, root: Root, *, reads_only: bool = False) -> None:
        step = choose_step(self._choose, self._new_value, reads_only=reads_only)
        attempt.steps.append((step, step.do(root)))

    def _mark(self, attempt: Attempt, root: Root) -> None:
        if self._marks:
            attempt.mark = root.marks[self._number].value = self._new_value()

    def _look(self, *, is_past: bool) -> Iterator[None]:
        """Read in a snapshot."""
        tids = [attempt.tid for attempt in self.attempts if attempt.tid is not None]
        at: Tid | None = None
        if is_past and tids and self._has_past:
            at = self._choose.choice(tids)
        attempt = self._begin()
        attempt.is_past = at is not None
        try:
            with self._database.snapshot(at) as root:
                for _ in range(self._choose.randint(1, 8)):
                    self._do_one(attempt, root, reads_only=True)
                    yield
                self._see(attempt, root)
        except HistoryUnavailableError:
            assert at is not None
        except ConflictError:  # of a storage without history
            assert not self._has_past
            attempt.outcome = "conflict"
            attempt.steps.clear()
        attempt.ended_ns = time.monotonic_ns()

    def _transact(self) -> Iterator[None]:
        """A transaction with savepoints, which may be aborted or conflict."""
        choose = self._choose
        attempt = self._begin()
        transaction = self._database.transaction(note=attempt.name)
        root = transaction.root
        savepoints: list[MadeSavepoint] = []
        try:
            for _ in range(choose.randint(1, 7)):
                chance = choose.random()
                if chance < 0.08:
                    savepoints.append(transaction.savepoint())
                    attempt.steps.append((Savepoint(), None))
                elif chance < 0.14 and savepoints:
                    number = choose.randrange(len(savepoints))
                    savepoints[number].rollback()
                    del savepoints[number + 1 :]
                    attempt.steps.append((Rollback(number), None))
                elif chance < 0.2:
                    evict(root)
                else:
                    self._do_one(attempt, root)
                yield
            if choose.random() < 0.1:
                self._see(attempt, root)
            else:
                self._mark(attempt, root)
                self._see(attempt, root)
                attempt.committing_ns = time.monotonic_ns()
                attempt.tid = transaction.commit()
                attempt.outcome = "committed"
        except ConflictError:
            attempt.outcome = "conflict"
            self._see(attempt, root)
        finally:
            transaction.abort()  # if it has not ended
        attempt.ended_ns = time.monotonic_ns()

    def _undo(self) -> Iterator[None]:
        """Undo one of its last transactions, if nobody has changed the same since.

        None that has changed only what is inside of a tree: it can be undone when the tree leads
        there no more, and of such objects the model knows nothing.
        """
        own = [attempt for attempt in self.attempts if attempt.tid is not None][-3:]
        own = [a for a in own if not any(isinstance(step, ChangeInside) for step, _ in a.steps)]
        if not own:
            return
        undone = self._choose.choice(own)
        assert undone.tid is not None
        attempt = self._begin()
        attempt.committing_ns = time.monotonic_ns()
        try:
            attempt.tid = self._database.undo(undone.tid)
        except UndoError:
            pass
        except ConflictError:
            attempt.outcome = "conflict"
        else:
            attempt.steps.append((Undo(undone), None))
            attempt.outcome = "committed"
        attempt.ended_ns = time.monotonic_ns()
        yield

    def _run_again(self) -> Iterator[None]:
        """Let the database try a transaction until it is committed."""
        count = self._choose.randint(1, 4)
        made: list[tuple[Attempt, Transaction[Root]]] = []
        begun_ns = time.monotonic_ns()

        def attempt_it(root: Root) -> int:
            nonlocal begun_ns
            attempt = self._begin()
            attempt.begun_ns = begun_ns  # it has its snapshot already
            connection = cast(PooledConnection[Root], root._p_connection)
            transaction = connection._session  # nothing else tells its tid
            assert isinstance(transaction, Transaction)
            made.append((attempt, transaction))
            try:
                for _ in range(count):
                    self._do_one(attempt, root)
                    os.sched_yield()
                self._mark(attempt, root)
            finally:
                self._see(attempt, root)
                begun_ns = attempt.committing_ns = time.monotonic_ns()
            return len(made)

        try:
            assert self._database.run(attempt_it) == len(made)
            attempt, transaction = made[-1]
            attempt.outcome, attempt.tid = "committed", transaction.tid
        finally:
            for attempt, _ in made:
                attempt.ended_ns = time.monotonic_ns()
            for attempt, _ in made[:-1]:
                attempt.outcome = "conflict"
        yield


def evict(root: Root) -> None:
    """Let all that is not changed leave the cache, as in a long transaction."""
    cache = cast(PooledConnection[Root], root._p_connection).cache
    for obj in cache:
        if obj._p_is_saved():
            obj._p_set_status_ghost()
            cache.recent_objects.discard(obj)


def interleave(workers: Iterable[Worker], count: int, seed: int) -> list[Attempt]:
    """Do the steps of several workers in this thread, in an order that the seed decides.

    count: how many transactions each of them makes.  Returns what was done.
    """
    choose = random.Random(seed)
    workers = list(workers)
    going = [(contextvars.Context(), worker.work(count)) for worker in workers]
    nothing = object()
    try:
        while going:
            number = choose.randrange(len(going))
            context, steps = going[number]
            if context.run(next, steps, nothing) is nothing:
                del going[number]
    finally:
        for _, steps in going:
            steps.close()
    return [attempt for worker in workers for attempt in worker.attempts]


def run_in_threads(workers: Iterable[Worker], count: int) -> list[Attempt]:
    """Let each worker do its steps in a thread."""
    workers = list(workers)
    barrier = threading.Barrier(len(workers))

    def work(worker: Worker) -> list[Attempt]:
        barrier.wait()
        for _ in worker.work(count):
            os.sched_yield()  # let the others come in between the steps
        return worker.attempts

    with ThreadPoolExecutor(len(workers)) as pool, switching_often():
        return [attempt for attempts in pool.map(work, workers) for attempt in attempts]


@contextmanager
def switching_often() -> Iterator[None]:
    """Let threads take turns in the middle of everything."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Witness(FileStorage):
    """The storage of a server, which knows in which transaction each mark was written.

    To a client of protocol 1 the tids of its own storage say nothing of what others did.
    """

    def __init__(self, path: Any) -> None:
        super().__init__(path)
        self.tids: dict[int, Tid] = {}

    def commit(self, transaction: StoredTransaction) -> CommitResult:
        result = super().commit(transaction)
        for record in transaction.writes.values():
            if name_in_class_pickle(record.class_pickle) == (Mark.__module__, Mark.__qualname__):
                self.tids[pickle.loads(record.state_pickle)["value"]] = result.tid
        return result

    def tell_tids(self, attempts: Iterable[Attempt]) -> None:
        """Give the attempts the tids that they have here."""
        for attempt in attempts:
            if attempt.tid is not None:
                assert attempt.mark is not None
                attempt.tid = self.tids[attempt.mark]
