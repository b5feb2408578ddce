"""Forks of a process that has a log file open: parent and child both go on, and harm nobody."""

import gc
import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from durus.connection import Connection
from durus.error import ConflictError, StorageError, StorageLockedError
from durus.file import File
from durus.file_storage import FileStorage, TempFileStorage
from durus.file_system import OperatingSystem
from durus.interfaces import ROOT_OID
from durus.log_file import LogFile
from durus.log_verify import verify_file
from durus.persistent_dict import PersistentDict
from tests.processes import fork, run_alone, say, wait_for_child


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A database whose root has two dicts, `a` and `b`, each with a value 0."""
    path = tmp_path / "forked.durus"
    with closing(FileStorage(path)) as storage, Connection(storage) as connection:
        for key in "ab":
            connection.root[key] = PersistentDict(value=0)
        connection.commit()
    yield path
    assert list(verify_file(str(path))) == []


def values(connection: Connection) -> list[object]:
    return [connection.root[key]["value"] for key in "ab"]


def in_child(call: Callable[[], object]) -> None:
    """Call something in a forked child, and wait until that has ended well."""
    wait_for_child(fork(call))


# Each of these functions is the program of the test after it: nothing else is in its process.


def go_on_in_both(path: str) -> None:
    with closing(FileStorage(path)) as storage, Connection(storage) as connection:
        assert values(connection) == [0, 0]

        def child() -> None:
            connection.abort()
            assert values(connection) == [0, 0]
            connection.root["a"]["value"] = "child"
            connection.commit()
            assert values(connection) == ["child", 0]
            storage.close()

        in_child(child)
        assert values(connection) == [0, 0]
        connection.root["b"]["value"] = "parent"
        connection.abort()
        connection.root["b"]["value"] = "parent"
        connection.commit()
        assert values(connection) == ["child", "parent"]


def test_a_connection_goes_on_in_the_child_after_abort_and_in_the_parent(path: Path) -> None:
    run_alone(go_on_in_both, path)


def end_the_transaction(path: str) -> None:
    with closing(FileStorage(path)) as storage, Connection(storage) as connection:
        a, b = connection.root["a"], connection.root["b"]
        assert a["value"] == 0
        a["value"] = "parent"

        def child() -> None:
            for call in (lambda: b["value"], connection.commit, lambda: connection.get(1234)):
                with pytest.raises(StorageError, match=f"process {os.getppid()} before it forked"):
                    call()
            connection.abort()
            assert values(connection) == [0, 0]

        in_child(child)
        connection.commit()
        assert values(connection) == ["parent", 0]


def test_a_transaction_that_was_begun_before_the_fork_ends_in_the_child(path: Path) -> None:
    run_alone(end_the_transaction, path)


def read_an_old_snapshot(path: str) -> None:
    with closing(FileStorage(path)) as storage:
        snapshot = storage.snapshot()

        def child() -> None:
            with pytest.raises(StorageError, match="before it forked this one"):
                snapshot.load(ROOT_OID)
            snapshot.close()
            with closing(storage.snapshot()) as another:
                another.load(ROOT_OID)

        in_child(child)
        snapshot.load(ROOT_OID)


def test_a_snapshot_of_the_parent_is_refused_in_the_child(path: Path) -> None:
    run_alone(read_an_old_snapshot, path)


def create_in_both(path: str) -> None:
    with closing(FileStorage(path)) as storage, Connection(storage) as connection:
        # Storage and connection have some oids at hand, the connection from a commit that fails.
        say(*numbers(storage.reserve_oids(1)))
        connection.root["new"] = PersistentDict(bad=sys)
        with pytest.raises(TypeError):
            connection.commit()

        def create(name: str) -> None:
            connection.abort()
            say(*numbers([connection.new_oid(), *storage.reserve_oids(20)]))
            new = [PersistentDict[str, int]() for _ in range(200)]
            insist(connection, name, new)
            say(*numbers(obj._p_oid or b"" for obj in new))
            say(*numbers(storage.reserve_oids(200)))

        pids = [fork(partial(create, name)) for name in "xy"]
        create("z")
        for pid in pids:
            wait_for_child(pid)


def numbers(oids: Iterable[bytes]) -> list[int]:
    return [int.from_bytes(oid) for oid in oids]


def insist(connection: Connection, key: str, value: object) -> None:
    while True:
        try:
            connection.root[key] = value
            connection.commit()
            return
        except ConflictError:
            connection.abort()


def test_parent_and_children_give_out_no_oid_twice(path: Path) -> None:
    lines = run_alone(create_in_both, path)
    assert len(lines) == 1 + 3 * 3
    oids = [int(oid) for line in lines for oid in line.split()]
    assert len(oids) == 1 + 3 * (21 + 2 * 200)
    assert len(set(oids)) == len(oids)


class Interrupted(OperatingSystem):
    """Something happens in the middle of a commit, while the process has the lock."""

    in_sync: Callable[[], object] | None = None

    def sync(self, fd: int) -> None:
        call, self.in_sync = self.in_sync, None
        if call is not None:
            call()
        super().sync(fd)


def fork_in_a_commit(path: str) -> None:
    """The thread that forks is another one than that which commits."""
    system = Interrupted()
    syncing, go_on = threading.Event(), threading.Event()
    child_has_read, tell_it = os.pipe()

    def wait_in_sync() -> None:
        syncing.set()
        go_on.wait()

    system.in_sync = wait_in_sync
    with closing(FileStorage(path, system=system)) as storage, Connection(storage) as connection:
        connection.root["a"]["value"] = "parent"
        committing = threading.Thread(target=connection.commit)
        committing.start()
        syncing.wait()

        def child() -> None:
            with Connection(storage) as another:
                assert values(another) == [0, 0]
                another.abort()
                os.write(tell_it, b"!")
                another.root["b"]["value"] = "child"
                another.commit()  # waits for the parent
                assert values(another) == ["parent", "child"]

        pid = fork(child)
        os.close(tell_it)
        os.read(child_has_read, 1)
        go_on.set()
        committing.join()
        wait_for_child(pid)
        connection.abort()
        assert values(connection) == ["parent", "child"]


def test_a_fork_in_the_middle_of_a_commit_of_another_thread_blocks_neither(path: Path) -> None:
    run_alone(fork_in_a_commit, path)


def open_while_another_thread_forks(path: str, kind: str) -> None:
    system = OperatingSystem()
    os.truncate(path, 2 << 20)  # enough for a map
    opened: list[object] = []
    one = system.open(path, writable=False)
    kinds: dict[str, Callable[[], object]] = {
        "log": lambda: LogFile(system, path, system.open(path, writable=False)),
        "map": lambda: system.map(one, 2 << 20),
        "classic": lambda: File(path, readonly=True),
    }

    def open_many() -> None:
        for _ in range(200):
            opened.append(kinds[kind]())

    def child() -> None:
        for fd in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # it is that of the folder
                assert os.readlink(f"/proc/self/fd/{fd}") != path

    for _ in range(20):
        thread = threading.Thread(target=open_many)
        thread.start()
        while thread.is_alive():
            in_child(child)
        thread.join()
        opened.clear()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")
@pytest.mark.parametrize("kind", ["log", "map", "classic"])
def test_what_one_thread_opens_while_another_one_forks_is_not_open_in_the_child(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "file"
    path.touch()
    run_alone(open_while_another_thread_forks, path, kind)


def let_a_child_end_in_a_commit(path: str) -> None:
    system = Interrupted()

    def child() -> None:
        storage.close()
        gc.collect()

    def commit_elsewhere() -> None:
        with (
            closing(FileStorage(path, lock_timeout_s=0)) as another,
            Connection(another) as connection,
        ):
            connection.root["b"]["value"] = 1
            connection.commit()

    def in_sync() -> None:
        in_child(child)
        # The lock is still there.
        with pytest.raises(StorageLockedError):
            commit_elsewhere()

    storage = FileStorage(path, system=system)
    with closing(storage), Connection(storage) as connection:
        system.in_sync = in_sync
        connection.root["a"]["value"] = "parent"
        connection.commit()
        commit_elsewhere()


def test_the_end_of_a_child_takes_no_lock_from_its_parent(path: Path) -> None:
    run_alone(let_a_child_end_in_a_commit, path)


def let_a_child_end_with_a_temporary_file() -> None:
    storage = TempFileStorage()
    pid = os.fork()
    if not pid:
        with Connection(storage) as connection:
            connection.root["child"] = 1
            connection.commit()
        storage.close()
        sys.exit()  # unlike os._exit, this ends what was to be ended
    wait_for_child(pid)
    with Connection(storage) as connection:
        assert dict(connection.root) == {"child": 1}
    say(storage.get_filename())
    assert os.path.exists(storage.get_filename())


def test_a_child_does_not_remove_a_temporary_file_of_its_parent() -> None:
    (filename,) = run_alone(let_a_child_end_with_a_temporary_file)
    assert os.path.dirname(filename) == tempfile.gettempdir()
    assert not os.path.exists(filename)  # but its parent does


def fork_again(path: str) -> None:
    with closing(FileStorage(path)) as storage, Connection(storage) as connection:

        def grandchild() -> None:
            connection.abort()
            connection.root["b"]["value"] = "grandchild"
            connection.commit()

        def child() -> None:
            connection.abort()
            connection.root["a"]["value"] = "child"
            connection.commit()
            in_child(grandchild)
            assert values(connection) == ["child", 0]
            connection.abort()
            assert values(connection) == ["child", "grandchild"]

        in_child(child)
        connection.abort()
        assert values(connection) == ["child", "grandchild"]


def test_a_child_may_fork_as_well(path: Path) -> None:
    run_alone(fork_again, path)


def work_in_pool(path: str) -> None:
    global pool_connection
    with closing(FileStorage(path)) as storage, Connection(storage) as connection:
        pool_connection = connection
        with multiprocessing.get_context("fork").Pool(4) as pool:
            results = pool.map(add_in_pool, range(1, 101), chunksize=5)
            pool.close()
            pool.join()
        connection.abort()
        assert connection.root["a"]["value"] == sum(range(1, 101))
        assert len({pid for pid, _ in results} - {os.getpid()}) > 1
        assert len({oid for _, oid in results}) == 100


pool_connection: Connection | None = None
"""A connection that is made before the processes of the pool, and used in them."""


def add_in_pool(number: int) -> tuple[int, bytes | None]:
    connection = pool_connection
    assert connection is not None
    connection.abort()
    while True:
        try:
            new = connection.root[f"new {number}"] = PersistentDict()
            connection.root["a"]["value"] += number
            connection.commit()
            return os.getpid(), new._p_oid
        except ConflictError:
            connection.abort()


def test_processes_of_a_pool_use_the_connection_of_a_module(path: Path) -> None:
    run_alone(work_in_pool, path)
