"""Several processes on one log file, without a server: real ones, that commit, pack, stop."""

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from durus.connection import Connection
from durus.error import ConflictError, ReadConflictError, StorageLockedError, WriteConflictError
from durus.file_storage import FileStorage
from durus.file_system import OperatingSystem
from durus.interfaces import Oid
from durus.log_header import decode_file_header
from durus.log_verify import verify_file
from durus.persistent_dict import PersistentDict
from tests.processes import Process, hear, running, say
from tests.seeds import Seeds

PROCESSES = 4


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A database whose root has three dicts, `a`, `b` and `c`, each with a value 0."""
    path = tmp_path / "shared.durus"
    with closing(FileStorage(path)) as storage, Connection(storage) as connection:
        for key in "abc":
            connection.root[key] = PersistentDict(value=0)
        connection.commit()
    yield path
    assert list(verify_file(str(path))) == []


@pytest.fixture
def storage(path: Path) -> Iterator[FileStorage]:
    with closing(FileStorage(path)) as storage:
        yield storage


@pytest.fixture
def connection(storage: FileStorage) -> Iterator[Connection]:
    with Connection(storage) as connection:
        yield connection


def obey(path: str) -> None:
    """A program that does what it is told, and says when that is done."""
    with closing(FileStorage(path)) as storage, Connection(storage) as connection:
        say("ready")
        while command := hear():
            match command.split():
                case ["set", value, *keys]:
                    connection.abort()
                    for key in keys:
                        connection.root[key]["value"] = int(value)
                    connection.commit()
                    say("done")
                case ["get", key]:
                    connection.abort()
                    say(connection.root[key]["value"])
                case ["pack"]:
                    connection.pack()
                    say("done")


@pytest.fixture
def other(path: Path) -> Iterator[Process]:
    """Another process that has the file open, and obeys."""
    with running(obey, path) as (process,):
        yield process
        assert process.finish() == []


def oid_of(connection: Connection, key: str) -> Oid:
    obj = connection.root[key]
    assert isinstance(obj, PersistentDict)
    oid = obj._p_oid
    assert oid is not None
    return oid


# Who sees what, and when


def increment(path: str, times: str) -> None:
    acknowledged = 0
    with closing(FileStorage(path)) as storage, Connection(storage) as connection:
        say("ready")
        hear()
        for number in range(int(times)):
            counters = [connection.root["a"], connection.root["bc"[number % 2]]]
            while True:
                try:
                    for counter in counters:
                        counter["value"] += 1
                    connection.commit()
                    acknowledged += 1
                    break
                except ConflictError:
                    connection.abort()
    say(acknowledged)


def test_processes_that_increment_the_same_numbers_lose_no_update(
    path: Path, connection: Connection
) -> None:
    with running(increment, path, 50, count=PROCESSES) as processes:
        for process in processes:
            process.tell()
        acknowledged = [int(line) for process in processes for line in process.finish()]
    assert acknowledged == [50] * PROCESSES
    connection.abort()
    values = [connection.root[key]["value"] for key in "abc"]
    assert values == [50 * PROCESSES, 25 * PROCESSES, 25 * PROCESSES]


def test_everybody_sees_at_the_next_boundary_what_others_committed(
    connection: Connection, other: Process
) -> None:
    root = connection.root
    assert root["a"]["value"] == 0
    other.ask("set 1 a b")
    assert root["a"]["value"] == 0
    assert root["b"]["value"] == 0  # loaded only now, and no newer than a
    connection.abort()
    assert [root["a"]["value"], root["b"]["value"]] == [1, 1]
    connection.abort()
    other.ask("set 2 a")
    root["c"]["value"] = 2
    connection.commit()
    assert root["a"]["value"] == 2
    assert other.ask("get c") == "2"
    other.ask("set 3 a")
    connection.commit()  # of nothing
    assert root["a"]["value"] == 3
    with Connection(connection.storage) as another:
        assert another.root["a"]["value"] == 3


def test_a_write_conflict_is_found_across_processes(connection: Connection, other: Process) -> None:
    root = connection.root
    root["b"]["value"] = root["a"]["value"] + 1
    other.ask("set 7 a")
    with pytest.raises(WriteConflictError) as caught:
        connection.commit()
    assert caught.value.oids == [oid_of(connection, "a")]
    assert other.ask("get b") == "0"
    connection.abort()
    root["b"]["value"] = root["a"]["value"] + 1
    connection.commit()
    assert other.ask("get b") == "8"


def test_what_was_not_accessed_is_no_conflict(connection: Connection, other: Process) -> None:
    connection.root["b"]["value"] = 1
    other.ask("set 7 a")
    connection.commit()
    assert [other.ask("get a"), other.ask("get b")] == ["7", "1"]
    assert connection.root["a"]["value"] == 7


def test_a_read_conflict_is_found_across_processes(
    storage: FileStorage, connection: Connection, other: Process
) -> None:
    assert connection.root["a"]["value"] == 0
    other.ask("set 1 a b")
    storage.snapshot().close()  # somebody in this process comes to a boundary
    with pytest.raises(ReadConflictError) as caught:
        connection.root["b"]["value"]
    assert caught.value.oids == [oid_of(connection, "b")]
    assert connection.root["c"]["value"] == 0
    connection.abort()
    assert [connection.root[key]["value"] for key in "ab"] == [1, 1]


class Recording(OperatingSystem):
    """It knows what was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> object:
        if hasattr(OperatingSystem, name) and not name.startswith("_"):
            self.calls.append(name)
        return super().__getattribute__(name)


def test_a_boundary_costs_one_stat_while_nothing_happens(path: Path, other: Process) -> None:
    system = Recording()
    with closing(FileStorage(path, system=system)) as storage, Connection(storage) as connection:
        system.calls.clear()
        storage.snapshot().close()
        assert system.calls == ["path_status"]
        for boundary in (connection.abort, connection.commit):
            system.calls.clear()
            boundary()
            assert system.calls == ["path_status"]
        other.ask("set 5 a")
        connection.abort()
        assert connection.root["a"]["value"] == 5


@pytest.mark.parametrize("readonly", [True, False])
def test_who_reads_takes_no_lock(path: Path, readonly: bool, other: Process) -> None:
    system = Recording()
    with (
        closing(FileStorage(path, readonly=readonly, system=system)) as storage,
        Connection(storage) as connection,
    ):
        other.ask("set 1 a")
        connection.abort()
        assert connection.root["a"]["value"] == 1
        other.ask("pack")
        connection.abort()
        assert [connection.root[key]["value"] for key in "abc"] == [1, 0, 0]
    assert "read" in system.calls
    assert "lock" not in system.calls


# One that is stopped, or ends, while it has the lock


class StopsInSync(OperatingSystem):
    """Once; a commit has the lock then, and stands in the file, and no mark follows."""

    has_stopped = False

    def sync(self, fd: int) -> None:
        if not self.has_stopped:
            self.has_stopped = True
            os.kill(os.getpid(), signal.SIGSTOP)
        super().sync(fd)


def set_a_and_stop(path: str) -> None:
    with (
        closing(FileStorage(path, system=StopsInSync())) as storage,
        Connection(storage) as connection,
    ):
        say("ready")
        connection.root["a"]["value"] = "stopped"
        connection.commit()
    say("done")


def test_a_stopped_process_is_named_to_those_that_wait_and_goes_on_later(path: Path) -> None:
    with (
        closing(FileStorage(path, lock_timeout_s=0.05)) as storage,
        Connection(storage) as connection,
    ):
        connection.root["b"]["value"] = 1
        with running(set_a_and_stop, path) as (process,):
            process.wait_until_stopped()
            with pytest.raises(StorageLockedError, match=r"for 0\.05 s") as caught:
                connection.commit()
            if sys.platform == "linux":
                assert f"process {process.pid} (which is stopped: continue" in str(caught.value)
            with pytest.raises(StorageLockedError):
                connection.commit()
            process.go_on()
            assert process.finish() == ["done"]
        connection.commit()
        assert [connection.root[key]["value"] for key in "ab"] == ["stopped", 1]


def test_who_reads_does_not_wait_for_a_stopped_process(path: Path, connection: Connection) -> None:
    with running(set_a_and_stop, path) as (process,):
        process.wait_until_stopped()
        connection.abort()
        assert connection.root["a"]["value"] == 0  # and not what may still be lost
        with (
            closing(FileStorage(path, readonly=True)) as storage,
            Connection(storage) as another,
        ):
            assert [another.root[key]["value"] for key in "abc"] == [0, 0, 0]
        process.go_on()
        assert process.finish() == ["done"]
    connection.abort()
    assert connection.root["a"]["value"] == "stopped"


# Making a file


def make_and_commit(name: str) -> None:
    """For each path that it is told: open it, commit, and say which database that is."""
    say("ready")
    while path := hear():
        with closing(FileStorage(path)) as storage, Connection(storage) as connection:
            while True:
                try:
                    connection.root[name] = PersistentDict()
                    connection.commit()
                    break
                except ConflictError:
                    connection.abort()
        with open(path, "rb") as file:
            header = decode_file_header(file.read(104))
        assert header is not None
        say(header.database_id.hex())


@pytest.mark.parametrize("is_empty", [False, True])
def test_processes_that_make_a_file_at_once_get_one_database(
    tmp_path: Path, is_empty: bool
) -> None:
    processes = [Process(make_and_commit, name) for name in "abcd"]
    try:
        for process in processes:
            assert process.read_line() == "ready"
        for number in range(20):
            path = tmp_path / f"{number}.durus"
            if is_empty:
                path.write_bytes(b"")
            for process in processes:
                process.tell(path)
            assert len({process.read_line() for process in processes}) == 1
            with (
                closing(FileStorage(path, readonly=True)) as storage,
                Connection(storage) as connection,
            ):
                assert sorted(connection.root) == ["a", "b", "c", "d"]
            assert list(verify_file(str(path))) == []
        assert len(os.listdir(tmp_path)) == 20
        for process in processes:
            process.finish()
    finally:
        for process in processes:
            process.close()


# Oids


def reserve(path: str, seed: str) -> None:
    """Reserve oids in several threads, commit and pack meanwhile, and say which they were."""
    say("ready")
    hear()
    seeds = [f"{seed}-{number}" for number in range(4)]
    with closing(FileStorage(path)) as storage, ThreadPoolExecutor(len(seeds)) as pool:

        def work(seed: str) -> list[Oid]:
            choose = random.Random(seed)
            oids: list[Oid] = []
            for _ in range(40):
                oids += storage.reserve_oids(choose.choice([1, 1, 2, 10, 100]))
                if not choose.randrange(20):
                    with suppress(StorageLockedError):  # another one is at it
                        storage.pack()
            return oids

        for oids in pool.map(work, seeds):
            say(*(int.from_bytes(oid) for oid in oids))


def test_processes_and_threads_reserve_no_oid_twice(path: Path, seeds: Seeds) -> None:
    (seed,) = seeds.take(1, 1)
    processes = [Process(reserve, path, f"{seed}-{number}") for number in range(PROCESSES)]
    try:
        for process in processes:
            assert process.read_line() == "ready"
        for process in processes:
            process.tell()
        lines = [line for process in processes for line in process.finish()]
    finally:
        for process in processes:
            process.close()
    assert len(lines) == 4 * PROCESSES
    oids = [int(oid) for line in lines for oid in line.split()]
    assert len(set(oids)) == len(oids)
    with closing(FileStorage(path)) as storage:
        assert int.from_bytes(storage.reserve_oids(1)[0]) > max(oids)


# Another process packs


def test_a_transaction_goes_on_reading_the_file_that_another_process_packs(
    path: Path, connection: Connection, other: Process
) -> None:
    assert connection.root["a"]["value"] == 0
    other.ask("set 1 a b")
    inode = path.stat().st_ino
    other.ask("pack")
    assert path.stat().st_ino != inode
    assert connection.root["b"]["value"] == 0  # read only now, from the old file
    connection.abort()
    assert [connection.root[key]["value"] for key in "abc"] == [1, 1, 0]


def test_a_commit_after_a_pack_of_another_process_goes_to_the_new_file(
    path: Path, connection: Connection, other: Process
) -> None:
    connection.root["a"]["value"] = 1
    other.ask("set 2 b")
    other.ask("pack")
    other.ask("set 3 c")
    connection.commit()
    assert other.ask("get a") == "1"
    assert [connection.root[key]["value"] for key in "abc"] == [1, 2, 3]
    with closing(FileStorage(path)) as storage, Connection(storage) as another:
        assert another.root["a"]["value"] == 1


@pytest.mark.parametrize("commands", [["set 7 a", "pack"], ["pack", "set 7 a"]])
def test_a_conflict_is_found_although_another_process_has_packed(
    connection: Connection, other: Process, commands: list[str]
) -> None:
    connection.root["a"]["value"] += 1
    for command in commands:
        other.ask(command)
    with pytest.raises(WriteConflictError) as caught:
        connection.commit()
    assert caught.value.oids == [oid_of(connection, "a")]
    connection.abort()
    assert connection.root["a"]["value"] == 7


class Interrupted(OperatingSystem):
    """Something happens just before the file is locked, or when another one has it locked."""

    before_lock: Callable[[], object] | None = None
    while_locked: Callable[[], object] | None = None

    def lock(self, fd: int, *, shared: bool = False) -> bool:
        call, self.before_lock = self.before_lock, None
        if call is not None:
            call()
        return super().lock(fd, shared=shared)

    def pause(self, seconds: float) -> None:
        call, self.while_locked = self.while_locked, None
        if call is not None:
            call()
        super().pause(seconds)


def test_a_commit_that_locks_a_file_just_packed_goes_to_the_new_one(
    path: Path, other: Process
) -> None:
    system = Interrupted()
    with closing(FileStorage(path, system=system)) as storage, Connection(storage) as connection:
        connection.root["a"]["value"] = 1
        system.before_lock = lambda: other.ask("pack")
        connection.commit()
        assert other.ask("get a") == "1"
        connection.root["a"]["value"] = 2
        system.before_lock = lambda: [other.ask("set 7 a"), other.ask("pack")]
        with pytest.raises(WriteConflictError):
            connection.commit()
        connection.abort()
        (oid,) = storage.reserve_oids(1)
        system.before_lock = lambda: other.ask("pack")
        assert oid not in storage.reserve_oids(1000)


class StopsAtRename(OperatingSystem):
    """While the process has the lock, and the packed file is ready to take the place of the log."""

    def rename(self, source: str, target: str) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        super().rename(source, target)


STOPS = {"in the middle": StopsInSync, "at its end": StopsAtRename}


def pack_and_stop(path: str, where: str) -> None:
    with closing(FileStorage(path, system=STOPS[where]())) as storage:
        say("ready")
        storage.pack()
    say("done")


def test_a_commit_during_a_pack_is_in_the_new_file(
    path: Path, connection: Connection, other: Process
) -> None:
    connection.root["a"]["value"] = 1
    with running(pack_and_stop, path, "in the middle") as (process,):
        process.wait_until_stopped()
        connection.commit()
        assert other.ask("get a") == "1"
        process.go_on()
        assert process.finish() == ["done"]
    connection.abort()
    assert connection.root["a"]["value"] == 1
    assert other.ask("get a") == "1"


def test_a_commit_that_waited_for_a_pack_goes_to_the_new_file(path: Path, other: Process) -> None:
    system = Interrupted()
    with closing(FileStorage(path, system=system)) as storage, Connection(storage) as connection:
        connection.root["a"]["value"] = 1
        with running(pack_and_stop, path, "at its end") as (process,):
            process.wait_until_stopped()
            system.while_locked = process.go_on
            connection.commit()
            assert process.finish() == ["done"]
        assert storage.statistics.lock_waits == 1
    assert other.ask("get a") == "1"


@pytest.mark.parametrize("where", STOPS)
def test_a_killed_pack_blocks_nobody(
    path: Path, connection: Connection, other: Process, where: str
) -> None:
    with running(pack_and_stop, path, where) as (process,):
        process.wait_until_stopped()
        process.kill()
        connection.root["a"]["value"] = 1
        connection.commit()
        assert other.ask("get a") == "1"
        other.ask("pack")
        connection.abort()
    assert connection.root["a"]["value"] == 1
    assert os.listdir(path.parent) == [path.name]


def count(path: str, times: str) -> None:
    """Increment a number of its own, of which it is told the name."""
    with closing(FileStorage(path)) as storage:
        say("ready")
        _count(storage, hear(), int(times))


def _count(storage: FileStorage, name: str, times: int) -> None:
    connection: Connection = Connection(storage)
    for _ in range(times):
        connection.root[name]["value"] += 1
        connection.commit()


def test_threads_and_processes_lose_nothing_while_a_thread_packs(
    path: Path, storage: FileStorage, connection: Connection, seeds: Seeds
) -> None:
    times, names = 100, ["thread 1", "thread 2", "thread 3", "process 1", "process 2"]
    for done, _ in enumerate(seeds.take(3, long=30)):
        for name in names:
            connection.root.setdefault(name, PersistentDict(value=0))
        connection.commit()
        with ThreadPoolExecutor() as threads, running(count, path, times, count=2) as processes:
            for process, name in zip(processes, names[3:], strict=True):
                process.tell(name)
            counting = [threads.submit(_count, storage, name, times) for name in names[:3]]
            while not all(future.done() for future in counting):
                storage.pack()
            for future in counting:
                future.result()
            for process in processes:
                process.finish()
        connection.abort()
        values = {connection.root[name]["value"] for name in names}
        assert values == {(done + 1) * times}
