"""SQLite files between processes, and those that Durus 4.3 made: whole programs, and kills."""

import os
import random
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from durus.connection import Connection
from durus.error import ReadOnlyError, WriteConflictError
from durus.interfaces import ROOT_OID
from durus.sqlite_copy import read_sqlite, write_sqlite
from durus.sqlite_storage import SqliteStorage
from durus.sqlite_verify import verify_sqlite
from durus.storage import open_storage
from durus.testing.storage_contract import commit, create, make_record, value, value_of
from scripts.environments import run

PROCESSES = 4

START = """
import sys
from contextlib import closing
from durus.connection import Connection
from durus.error import ConflictError
from durus.interfaces import ROOT_OID
from durus.sqlite_storage import SqliteStorage
from durus.testing.storage_contract import commit, create, make_record, value_of

def wait():
    print("ready", flush=True)
    sys.stdin.readline()

path = sys.argv[1]
"""


class Process:
    """A program of ours that runs beside the test; it says 'ready', and waits for a line."""

    def __init__(self, source: str, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", START + textwrap.dedent(source), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def finish(self) -> str:
        """Wait for its end; what it printed."""
        printed, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0
        return printed

    def kill(self) -> str:
        """End it at once; what it printed."""
        self.process.kill()
        return self.process.communicate()[0]


@contextmanager
def running(source: str, path: Path, count: int = 1) -> Iterator[list[Process]]:
    """Several processes, all of which are ready."""
    with ExitStack() as stack:
        processes = []
        for _ in range(count):
            process = Process(source, path)
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.read_line() == "ready"
        yield processes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shared.sqlite"


def check_sound(path: Path) -> None:
    """After all have closed it."""
    assert list(verify_sqlite(str(path))) == []
    assert os.listdir(path.parent) == [path.name]


def test_processes_that_increment_one_number_lose_no_update(path: Path) -> None:
    increment = """
        with closing(SqliteStorage(path)) as storage, Connection(storage) as connection:
            wait()
            for _ in range(50):
                while True:
                    try:
                        connection.root["number"] += 1
                        connection.commit()
                        break
                    except ConflictError:
                        connection.abort()
        """
    with closing(SqliteStorage(path)) as storage, Connection(storage) as connection:
        connection.root["number"] = 0
        connection.commit()
    with running(increment, path, PROCESSES) as processes:
        for process in processes:
            process.go()
        for process in processes:
            process.finish()
    with closing(SqliteStorage(path)) as storage, Connection(storage) as connection:
        assert connection.root["number"] == 50 * PROCESSES
    check_sound(path)


def test_readers_see_whole_transactions_while_others_write_and_pack(path: Path) -> None:
    work = """
        storage = SqliteStorage(path)
        wait()
        a, b = [Oid for Oid, _ in storage.gen_oid_record()][1:]
        for number in range(200):
            try:
                records = {a: make_record(number), b: make_record(number)}
                commit(storage, records, since=storage.snapshot().tid)
            except ConflictError:
                pass
            if number % 20 == 0:
                storage.pack()
        storage.close()
        """
    with closing(SqliteStorage(path)) as storage:
        a, b = create(storage, 2)
        with running(work, path, 2) as processes:
            old = storage.snapshot()
            for process in processes:
                process.go()
            seen = set()
            while any(process.process.poll() is None for process in processes):
                with closing(storage.snapshot()) as snapshot:
                    found = [value_of(snapshot.load(oid).record) for oid in (a, b, a)]
                    assert len(set(found)) == 1
                    seen.add(found[0])
            for process in processes:
                process.finish()
        assert len(seen) > 1
        assert [value_of(old.load(oid).record) for oid in (a, b)] == [0, 0]
        old.close()
    check_sound(path)


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_writer_loses_nothing_that_it_was_told_is_saved(path: Path, seed: int) -> None:
    work = """
        storage = SqliteStorage(path)
        create(storage, 1)
        wait()
        number = 0
        while True:
            number += 1
            (oid,) = storage.reserve_oids(1)
            big = make_record([number, "x" * 50_000])
            commit(storage, {ROOT_OID: big, oid: make_record(number)}, created=[oid])
            print(number, int.from_bytes(oid), flush=True)
            if number % 10 == 0:
                storage.pack()
        """
    with running(work, path) as (process,):
        process.go()
        told = [process.read_line() for _ in range(random.Random(seed).randrange(5, 40))]
        told += process.kill().splitlines()
    number, oid = map(int, told[-1].split())
    with closing(SqliteStorage(path)) as storage:
        found = value(storage, ROOT_OID)
        assert isinstance(found, list)
        assert found[0] in (number, number + 1)
        assert int.from_bytes(storage.reserve_oids(1)[0]) > oid
        commit(storage, {ROOT_OID: make_record("goes on")})
    check_sound(path)


def test_processes_that_make_the_same_file_get_one_database(path: Path) -> None:
    work = """
        wait()
        with closing(SqliteStorage(path)) as storage:
            try:
                commit(storage, {ROOT_OID: make_record(0)}, since=0, created=[ROOT_OID])
                print("first")
            except ConflictError:
                print("later")
        """
    with running(work, path, PROCESSES) as processes:
        for process in processes:
            process.go()
        printed = sorted(process.finish().strip() for process in processes)
    assert printed == ["first"] + ["later"] * (PROCESSES - 1)
    with closing(SqliteStorage(path)) as storage:
        assert len(list(storage.transactions())) == 1
    check_sound(path)


def test_who_was_here_before_a_pack_of_another_process_is_still_checked(path: Path) -> None:
    work = """
        storage = SqliteStorage(path)
        wait()
        _, a, b = [oid for oid, _ in storage.gen_oid_record()]
        commit(storage, {a: make_record(1)})
        commit(storage, {ROOT_OID: make_record(1, [a])})
        storage.pack()
        storage.close()
        """
    with closing(SqliteStorage(path)) as storage:
        a, b = create(storage, 2)
        with running(work, path) as (process,), closing(storage.snapshot()) as snapshot:
            process.go()
            process.finish()
            with pytest.raises(WriteConflictError) as caught:
                commit(storage, {b: make_record(2), a: make_record(2)}, since=snapshot.tid)
            assert caught.value.oids == [a, b]
            assert value_of(snapshot.load(b).record) == 0
        assert [oid for oid, _ in storage.gen_oid_record()] == [ROOT_OID, a]
        assert b not in storage.reserve_oids(100)
    check_sound(path)


def test_a_connection_sees_what_another_process_commits(path: Path) -> None:
    work = """
        wait()
        with closing(SqliteStorage(path)) as storage, Connection(storage) as connection:
            connection.root["key"] = "new"
            connection.commit()
        """
    with closing(SqliteStorage(path)) as storage, Connection(storage) as connection:
        connection.root["key"] = "old"
        connection.commit()
        with running(work, path) as (process,):
            process.go()
            process.finish()
        assert connection.root["key"] == "old"
        connection.abort()
        assert connection.root["key"] == "new"


def test_it_opens_by_uri(path: Path) -> None:
    with closing(open_storage(f"sqlite:///{path}")) as storage:
        assert isinstance(storage, SqliteStorage)
        assert storage.get_filename() == str(path)


# Files that Durus 4.3 made

MAKE = """
import sys
from durus.btree import BTree
from durus.connection import Connection
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.sqlite_storage import SqliteStorage
import durus.serialize

durus.serialize.WRITE_COMPRESSED_STATE_PICKLES = sys.argv[2] == "compressed"
storage = SqliteStorage(sys.argv[1])
connection = Connection(storage)
root = connection.get_root()
root["numbers"] = numbers = PersistentList(range(100))
root["tree"] = tree = BTree()
for i in range(300):
    tree[i] = PersistentDict({"square": i * i, "numbers": numbers})
connection.commit()
tree[7]["square"] = "changed"
root["lost"] = PersistentDict()
connection.commit()
del root["lost"]
connection.commit()
storage.close()
"""


@pytest.fixture(params=["plain", "compressed"])
def durus43_file(durus43_python: Path, path: Path, request: pytest.FixtureRequest) -> Path:
    run(durus43_python, "-c", MAKE, path, request.param)
    return path


def check_content(connection: Connection) -> None:
    root = connection.root
    assert sorted(root) == ["numbers", "tree"]
    assert list(root["numbers"]) == list(range(100))
    assert [root["tree"][i]["square"] for i in (0, 7, 299)] == [0, "changed", 299 * 299]
    assert all(item["numbers"] is root["numbers"] for item in root["tree"].values())


def test_a_file_of_durus_43_is_read_whole_and_left_as_it_is(durus43_file: Path) -> None:
    content = durus43_file.read_bytes()
    with closing(SqliteStorage(durus43_file)) as storage, Connection(storage) as connection:
        check_content(connection)
        assert storage.readonly
        connection.root["new"] = 1
        with pytest.raises(ReadOnlyError):
            connection.commit()
        connection.abort()
        check_content(connection)
    assert durus43_file.read_bytes() == content
    check_sound(durus43_file)


def test_a_file_of_durus_43_is_converted_into_one_that_can_be_written(
    durus43_file: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.sqlite"
    with read_sqlite(str(durus43_file)) as database:
        write_sqlite(str(copy), database)
    with closing(sqlite3.connect(durus43_file)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM objects").fetchone()
    with closing(SqliteStorage(copy)) as storage:
        assert len(list(storage.gen_oid_record())) == count
        with Connection(storage) as new:
            check_content(new)
            new.root["numbers"].append(100)
            new.commit()
        storage.pack()
        with Connection(storage) as new:
            assert list(new.root["numbers"]) == list(range(101))
        assert len(list(storage.gen_oid_record())) == count - 1
    assert list(verify_sqlite(str(copy))) == []


def test_durus_43_cannot_change_a_file_that_is_open_here(
    durus43_file: Path, durus43_python: Path
) -> None:
    change = """
import sqlite3, sys
from durus.connection import Connection
from durus.sqlite_storage import SqliteStorage
storage = SqliteStorage(sys.argv[1])
storage._conn.execute("PRAGMA busy_timeout = 0")
connection = Connection(storage)
connection.get_root()["changed"] = 1
try:
    connection.commit()
except sqlite3.OperationalError as error:
    print(error)
"""
    with closing(SqliteStorage(durus43_file)) as storage, Connection(storage) as connection:
        assert "database is locked" in run(durus43_python, "-c", change, durus43_file).stdout
        check_content(connection)
    run(durus43_python, "-c", change, durus43_file)
    with closing(SqliteStorage(durus43_file)) as storage, Connection(storage) as connection:
        assert connection.root["changed"] == 1
