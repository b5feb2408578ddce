"""Following a database in one process while others commit, pack and kill."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from durus.connection import Connection
from durus.error import HistoryUnavailableError
from durus.file_storage import FileStorage
from durus.history import follow
from durus.interfaces import Tid
from durus.persistent import Persistent, oid_of
from durus.sqlite_storage import SqliteStorage
from tests.processes import Process, hear, running, say

STORAGES: dict[str, Any] = {"log": FileStorage, "sqlite": SqliteStorage}


@pytest.fixture(params=list(STORAGES))
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The path of a database whose root has a `cell`; the end says what it is."""
    path = tmp_path / f"followed.{request.param}"
    with closing(open_storage(path)) as storage, Connection(storage) as connection:
        connection.root["cell"] = Persistent()
        connection.commit()
    return str(path)


def open_storage(path: str | Path) -> Any:
    return STORAGES[str(path).rpartition(".")[2]](path)


def write(path: str) -> None:
    """A program that commits as often as it is told, with the numbers of its commits as notes."""
    with closing(open_storage(path)) as storage, Connection(storage) as connection:
        say("ready")
        done = 0
        while command := hear():
            if command == "pack":
                connection.pack()
            else:
                for _ in range(int(command)):
                    connection.note = str(done)
                    connection.root["cell"].value = done
                    connection.commit()
                    done += 1
            say(connection.tid)


def index(path: str, since: str) -> None:
    """A program that says the tid and the note of each transaction that it hears of."""
    with closing(open_storage(path)) as storage:
        try:
            say("ready")
            for transaction in follow(storage, int(since), timeout_s=None):
                say(transaction.tid, transaction.note)
        except KeyboardInterrupt:
            say("interrupted")


def newest_tid(path: str) -> Tid:
    with closing(open_storage(path)) as storage, closing(storage.snapshot()) as snapshot:
        tid: Tid = snapshot.tid
        return tid


@pytest.fixture
def writer(name: str) -> Iterator[Process]:
    with running(write, name) as (process,):
        yield process
        assert process.finish() == []


def test_every_commit_of_another_process_is_heard_of_once(name: str, writer: Process) -> None:
    with running(index, name, newest_tid(name)) as (indexer,):
        for round in range(4):
            last = writer.ask(25)
            heard = [indexer.read_line().split() for _ in range(25)]
            assert [note for _, note in heard] == [str(25 * round + i) for i in range(25)]
            assert heard[-1][0] == last
        assert indexer.kill() == []


def test_who_was_killed_goes_on_from_where_it_was(name: str, writer: Process) -> None:
    since: Any = newest_tid(name)
    heard = []
    for _ in range(3):
        with running(index, name, since) as (indexer,):
            writer.ask(10)
            lines = [indexer.read_line(), *indexer.kill()]
        heard += [line.split()[1] for line in lines]
        since = lines[-1].split()[0]
    with closing(open_storage(name)) as storage:
        heard += [transaction.note for transaction in follow(storage, int(since))]
    assert heard == [str(number) for number in range(30)]


def test_a_pack_does_not_disturb_who_keeps_up(name: str, writer: Process) -> None:
    start = newest_tid(name)
    with closing(open_storage(name)) as storage:
        following = follow(storage, start, timeout_s=60)
        packed = int(writer.ask(5))
        assert [transaction.note for transaction in islice(following, 5)] == list("01234")
        assert int(writer.ask("pack")) == packed
        last = int(writer.ask(2))
        assert [transaction.note for transaction in islice(following, 2)] == ["5", "6"]
        assert [t.tid for t in follow(storage, packed)][-1] == last


def test_what_a_pack_forgets_before_it_was_seen_comes_as_one(name: str, writer: Process) -> None:
    with closing(open_storage(name)) as storage, Connection(storage) as connection:
        cell = oid_of(connection.root["cell"])
        following = follow(storage, connection.tid, timeout_s=60)
        for round in range(3):
            writer.ask(2)
            packed = int(writer.ask("pack"))
            last = int(writer.ask(1))
            for tid, note in ((packed, 3 * round + 1), (last, 3 * round + 2)):
                heard = next(following)
                assert (heard.tid, heard.note, list(heard.oids)) == (tid, str(note), [cell])
                with Connection(storage, at=heard.tid) as past:
                    assert past.root["cell"].value == note


def test_who_comes_after_the_pack_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "followed.log"
    with Connection(path) as connection:
        start = connection.tid
        connection.root["number"] = 1
        connection.commit()
        connection.pack()
    with closing(FileStorage(path)) as storage:
        with pytest.raises(HistoryUnavailableError, match="build anew"):
            next(follow(storage, start))
        assert list(follow(storage, storage.tid)) == []


def test_ctrl_c_ends_the_waiting(name: str) -> None:
    with running(index, name, newest_tid(name)) as (indexer,):
        os.kill(indexer.pid, signal.SIGINT)
        assert indexer.read_line() == "interrupted"
        assert indexer.wait() == 0
