"""Transactions are serializable, over every storage: random ones, checked step by step.

`tests.serializability` says what is checked; `tests.random_transactions` what is done.  The rules
that make them so are also broken on purpose, to see that this is found.
"""

import contextvars
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from durus.btree import BNode
from durus.changes import Changes
from durus.classic import as_storage
from durus.client_storage import ClientStorage
from durus.connection import Connection
from durus.counter import Counter
from durus.database import Database
from durus.error import ConflictError
from durus.file_storage import FileStorage
from durus.formats import find_format
from durus.interfaces import CommitResult, Oid, Snapshot, Storage, Tid, Transaction
from durus.merging import commit_merging
from durus.oid_set import OidSet
from durus.persistent import PersistentObject
from durus.socket_address import HostPortAddress
from durus.sqlite_storage import SqliteStorage
from durus.storage import MemoryStorage
from durus.storage_server import StorageServer
from durus.view import SnapshotView, View
from tests.processes import hear, running, say
from tests.random_transactions import (
    Witness,
    Worker,
    interleave,
    run_in_threads,
)
from tests.seeds import Seeds
from tests.serializability import Attempt, Step, Undo, check
from tests.storages import KINDS, DictStorage, File, Kind, Memory, Sqlite
from tests.transaction_steps import INITIAL, ReadCell, Root, WriteCell, state_of

WORKERS = 6
THREADS = 4
PROCESSES = 3

BROKEN_RUNS_MAX = 20
"""In so many runs a broken rule must be found; in most cases the first one is enough."""


@contextmanager
def serving(storage: Storage) -> Iterator[str]:
    """A server of a storage in this process: its port."""
    server = StorageServer(storage, port=0)
    address = server.listen()
    assert isinstance(address, HostPortAddress)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield str(address.port)
    finally:
        server.stop()
        thread.join()


def open_database(storage: Storage, seed: int) -> Database[Root]:
    """Every other one has a cache from which everything falls out at once."""
    return Database(storage, root_class=Root, cache_size=100_000 if seed % 2 else 1)


def make_workers(database: Database[Root], count: int, seed: int) -> list[Worker]:
    return [Worker(database, number, seed) for number in range(count)]


def check_newest(database: Database[Root], attempts: Iterable[Attempt]) -> None:
    """The database holds what the model holds at the end."""
    state = dict(INITIAL)
    for attempt in sorted((a for a in attempts if a.tid is not None), key=lambda a: a.tid or 0):
        assert list(attempt.replay(state)) == []
    with database.snapshot() as root:
        assert state_of(root) == state


# Zero anomalies


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_interleaved_transactions_are_serializable(
    kind: Kind, seeds: Seeds, tmp_path: Path
) -> None:
    for seed in seeds.take(2, long=24):
        path = tmp_path / str(seed)
        storage = kind.open(path)
        with open_database(storage, seed) as database:
            attempts = interleave(make_workers(database, WORKERS, seed), 50, seed)
            assert check(attempts, INITIAL) == [], f"--seed {seed}"
            check_newest(database, attempts)
        storage.close()
        kind.check(path)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_transactions_of_threads_are_serializable(kind: Kind, seeds: Seeds, tmp_path: Path) -> None:
    for seed in seeds.take(1, long=12):
        path = tmp_path / str(seed)
        storage = kind.open(path)
        with open_database(storage, seed) as database:
            attempts = run_in_threads(make_workers(database, THREADS, seed), 100)
            assert check(attempts, INITIAL) == [], f"--seed {seed}"
            check_newest(database, attempts)
        storage.close()
        kind.check(path)


@pytest.mark.parametrize("kind", [Memory(), File(), Sqlite()], ids=lambda kind: type(kind).__name__)
def test_undos_among_them_are_serializable(kind: Kind, seeds: Seeds, tmp_path: Path) -> None:
    undone = 0
    for run, seed in enumerate(seeds.take(2, long=24)):
        storage = kind.open(tmp_path / str(seed))
        with open_database(storage, seed) as database:
            workers = [Worker(database, number, seed, undoes=True) for number in range(THREADS)]
            attempts = run_in_threads(workers, 60) if run % 2 else interleave(workers, 60, seed)
            assert check(attempts, INITIAL) == [], f"--seed {seed}"
            check_newest(database, attempts)
        undone += sum(isinstance(step, Undo) for attempt in attempts for step, _ in attempt.steps)
        storage.close()
    assert undone


OPENERS: dict[str, Callable[[str], Any]] = {
    "FileStorage": FileStorage,
    "SqliteStorage": SqliteStorage,
    "ClientStorage": lambda port: ClientStorage(port=int(port)),
}


def work_in_process(kind: str, place: str, number: str, seed: str, count: str, out: str) -> None:
    """A program: two threads that share a database, which other processes use as well."""
    marks = kind == "ClientStorage"
    with closing(OPENERS[kind](place)) as storage, open_database(storage, int(seed)) as database:
        numbers = (2 * int(number), 2 * int(number) + 1)
        workers = [Worker(database, i, int(seed), marks=marks) for i in numbers]
        say("ready")
        hear()
        attempts = run_in_threads(workers, int(count))
    Path(out).write_bytes(pickle.dumps(attempts))


def run_processes(kind: str, place: object, seed: int, folder: Path) -> list[Attempt]:
    """What the workers of several processes have done."""
    outs = [folder / f"{seed}.{number}" for number in range(PROCESSES)]
    with ExitStack() as stack:
        processes = []
        for number, out in enumerate(outs):
            arguments = (kind, place, number, seed, 60, out)
            processes += stack.enter_context(running(work_in_process, *arguments))
        for process in processes:
            process.tell()
        for process in processes:
            process.finish()
    return [attempt for out in outs for attempt in pickle.loads(out.read_bytes())]


@pytest.mark.parametrize("kind", ["FileStorage", "SqliteStorage"])
def test_transactions_of_processes_are_serializable(
    kind: str, seeds: Seeds, tmp_path: Path
) -> None:
    for seed in seeds.take(1, long=10):
        path = tmp_path / f"{seed}.durus"
        with closing(OPENERS[kind](str(path))) as storage, open_database(storage, seed) as database:
            attempts = run_processes(kind, path, seed, tmp_path)
            assert check(attempts, INITIAL) == [], f"--seed {seed}"
            check_newest(database, attempts)
        assert list(find_format(path).verify(str(path))) == []


def test_transactions_of_clients_are_serializable(seeds: Seeds, tmp_path: Path) -> None:
    """Each process has a client of the same server."""
    for seed in seeds.take(1, long=10):
        witness = Witness(tmp_path / f"{seed}.durus")
        with open_database(witness, seed):
            pass  # makes the root
        with serving(witness) as port:
            attempts = run_processes("ClientStorage", port, seed, tmp_path)
        witness.tell_tids(attempts)
        assert check(attempts, INITIAL) == [], f"--seed {seed}"


# Rules that are broken


def do(database: Database[Root], name: str, *steps: Step) -> Iterator[Attempt]:
    """A transaction of these steps, which stops before its commit."""
    attempt = Attempt(name, time.monotonic_ns())
    transaction = database.transaction()
    attempt.steps += [(step, step.do(transaction.root)) for step in steps]
    yield attempt
    attempt.committing_ns = time.monotonic_ns()
    try:
        attempt.tid = transaction.commit()
        attempt.outcome = "committed"
    except ConflictError:
        attempt.outcome = "conflict"
        transaction.abort()
    attempt.ended_ns = time.monotonic_ns()


class UnvalidatedStorage(MemoryStorage):
    """Does not look whether what a transaction has only read was changed."""

    def commit(self, transaction: Transaction) -> CommitResult:
        return super().commit(replace(transaction, accessed=OidSet(transaction.writes)))


@pytest.mark.parametrize("storage_class", [MemoryStorage, UnvalidatedStorage])
def test_write_skew_is_found(storage_class: type[MemoryStorage]) -> None:
    with Database(storage_class(), root_class=Root) as database:
        one = do(database, "one", ReadCell(0), ReadCell(1), WriteCell(0, 10))
        other = do(database, "other", ReadCell(0), ReadCell(1), WriteCell(1, 20))
        attempts = [contextvars.Context().run(next, begun) for begun in (one, other)]
        for begun in (one, other):
            assert next(begun, None) is None
    anomalies = check(attempts, INITIAL)
    if storage_class is MemoryStorage:
        assert [attempt.outcome for attempt in attempts] == ["committed", "conflict"]
        assert anomalies == []
    else:
        assert anomalies == [
            f"other (tid {attempts[1].tid}): ReadCell(number=0) has seen -1, not 10",
            "cycle: one --rw cell 1--> other --rw cell 0--> one",
        ]


Break = Callable[[pytest.MonkeyPatch], Storage]


def reads_are_not_validated(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    return UnvalidatedStorage()


def snapshots_move_on(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    def move(view: SnapshotView, oid: Oid) -> None:
        view._use(view.storage.snapshot())

    monkeypatch.setattr(SnapshotView, "_check", move)
    return MemoryStorage()


def snapshots_are_old(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    calls = count()

    class LateStorage(MemoryStorage):
        def snapshot(self, at: Tid | None = None) -> Snapshot:
            if at is None and len(self._transactions) > 1 and next(calls) % 3 == 0:
                at = self._transactions[-2].tid
            return super().snapshot(at)

    return LateStorage()


def caches_keep_what_others_changed(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    monkeypatch.setattr(Connection, "_forget", lambda self, oids: None)
    return MemoryStorage()


def nodes_are_no_access(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    note_access = Connection.note_access

    def note(connection: Connection[Any], obj: PersistentObject) -> None:
        view = connection._view
        accessed = view.accessed
        if isinstance(obj, BNode):
            view.accessed = OidSet()
        note_access(connection, obj)
        view.accessed = accessed

    monkeypatch.setattr(Connection, "note_access", note)
    return MemoryStorage()


def merges_forget_what_was_read(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    def merge(connection: Connection[Any], *arguments: Any) -> Any:
        if connection._view.blind:
            connection._view.accessed = OidSet()
        return commit_merging(connection, *arguments)

    monkeypatch.setattr("durus.changes.commit_merging", merge)
    return MemoryStorage()


def merges_take_my_state(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    monkeypatch.setattr(Counter, "_p_resolve_conflict", lambda self, old, committed, mine: mine)
    return MemoryStorage()


def blind_changes_hide_reads(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    changing_blindly = Connection.changing_blindly

    @contextmanager
    def change(connection: Connection[Any], obj: PersistentObject) -> Iterator[None]:
        with changing_blindly(connection, obj):
            yield
        object.__setattr__(obj, "_p_serial", connection.transaction_serial)

    monkeypatch.setattr(Connection, "changing_blindly", change)
    return MemoryStorage()


def rollbacks_forget_what_was_read(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    roll_back_to = Changes.roll_back_to

    def roll_back(changes: Changes, step: Any) -> None:
        roll_back_to(changes, step)
        changes._connection._view.accessed = OidSet()

    monkeypatch.setattr(Changes, "roll_back_to", roll_back)
    return MemoryStorage()


def rollbacks_do_nothing(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    monkeypatch.setattr(Changes, "roll_back_to", lambda self, step: None)
    return MemoryStorage()


def aborts_leave_changes(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    monkeypatch.setattr(Changes, "roll_back", lambda self, count=0: self.changed.clear())
    return MemoryStorage()


def classic_views_always_move_on(monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(View, "_has_used", lambda self, changed: False)
    return as_storage(DictStorage())


BREAKS: list[Break] = [
    reads_are_not_validated,
    snapshots_move_on,
    snapshots_are_old,
    caches_keep_what_others_changed,
    nodes_are_no_access,
    merges_forget_what_was_read,
    merges_take_my_state,
    blind_changes_hide_reads,
    rollbacks_forget_what_was_read,
    rollbacks_do_nothing,
    aborts_leave_changes,
    classic_views_always_move_on,
]


@pytest.mark.parametrize("break_rule", BREAKS, ids=lambda rule: rule.__name__)
def test_a_broken_rule_is_found(
    break_rule: Break, seeds: Seeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in seeds.take(BROKEN_RUNS_MAX, long=BROKEN_RUNS_MAX):
        with monkeypatch.context() as patched:
            storage = break_rule(patched)
            with Database(storage, root_class=Root) as database:
                workers = make_workers(database, WORKERS, seed)
                with suppress(Exception):  # of trees that do not hold together any more
                    interleave(workers, 50, seed)
                attempts = [attempt for worker in workers for attempt in worker.attempts]
        if check(attempts, INITIAL):
            return
    raise AssertionError("it was not found")
