"""Processes that use one log file and are killed, at any moment: nobody else is harmed."""

import fcntl
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

from durus import file_storage, shared_log
from durus.connection import Connection
from durus.error import ConflictError, StorageLockedError
from durus.file_storage import FileStorage
from durus.file_system import OperatingSystem
from durus.interfaces import ROOT_OID, Oid
from durus.log_verify import verify_file
from durus.persistent_dict import PersistentDict
from durus.testing.storage_contract import commit, create, make_record, value
from tests.processes import Process, fork, hear, run_alone, running, say
from tests.seeds import Seeds

KILLS = 60
KILLS_LONG = 600
WRITERS = 4
FORKS_ONE_IN = 20
PACKS_ONE_IN = 30
LIFE_MAX_S = 0.2


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "shared.durus"
    yield path
    assert list(verify_file(str(path))) == []


# At random


def fork_writers(path: str, name: str) -> None:
    """Fork a writer whenever a seed is heard; say its pid, and when it has ended."""
    program = os.getpid()
    the_end, end = os.pipe()

    def write() -> None:
        os.close(end)
        write_until_killed(path, name, int(seed), program, the_end)

    say("ready")
    while seed := hear():
        pid = fork(write)
        say("pid", pid)
        _, status = os.waitpid(pid, 0)
        say("ended", os.waitstatus_to_exitcode(status))


def write_until_killed(path: str, name: str, seed: int, program: int, the_end: int) -> None:
    """Commit without an end, and say what was acknowledged.

    Each commit adds 1 to a number of its own and to one that all share, and makes an object.
    Now and then a child is forked, at any moment, which does nothing until the program has ended.
    """
    choose = random.Random(seed)
    with (
        closing(FileStorage(path, lock_timeout_s=20)) as storage,
        Connection(storage) as connection,
    ):
        mine, total = connection.root[name], connection.root["total"]
        while os.getppid() == program:
            if not choose.randrange(FORKS_ONE_IN):
                threading.Thread(target=fork, args=[lambda: os.read(the_end, 1)]).start()
            try:
                if not choose.randrange(PACKS_ONE_IN):
                    with suppress(StorageLockedError):  # another one is at it
                        connection.pack()
                mine["number"] += 1
                total["number"] += 1
                payload = "x" * choose.choice([10, 1000, 50_000])
                mine["latest"] = PersistentDict(number=mine["number"], payload=payload)
                connection.commit()
            except ConflictError:
                connection.abort()
            else:
                say("ack", mine["number"])


class Writer:
    """What the test knows of one of the writers, each of which takes the place of the last."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.number = 0
        """What is certainly stored."""
        self.acknowledged = 0
        self.process = Process(fork_writers, path, name)
        assert self.process.read_line() == "ready"

    def start(self, seed: int) -> None:
        word, pid = self.process.ask(seed).split()
        assert word == "pid"
        self.pid = int(pid)

    def note(self, line: str) -> None:
        word, number = line.split()
        assert word == "ack"
        self.number = int(number)
        self.acknowledged += 1

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        while (line := self.process.read_line()) != f"ended {-signal.SIGKILL}":
            self.note(line)

    def check(self, connection: Connection) -> None:
        """After it was killed."""
        mine = connection.root[self.name]
        assert mine["number"] in (self.number, self.number + 1)
        assert mine["latest"]["number"] == mine["number"]
        self.number = mine["number"]


def set_number(connection: Connection, number: int) -> None:
    while True:
        try:
            connection.abort()
            connection.root["test"]["number"] = number
            connection.commit()
            return
        except ConflictError as error:
            if error.oids is not None:  # else two packs have taken away what would tell
                raise


def test_writers_that_are_killed_at_any_moment_lose_nothing_that_was_acknowledged(
    path: Path, seeds: Seeds
) -> None:
    kills = KILLS_LONG if seeds.is_long else KILLS
    choose = random.Random(seeds.first)
    names = [f"writer {number}" for number in range(WRITERS)]
    storage = FileStorage(path, lock_timeout_s=20)
    with closing(storage), Connection(storage) as connection:
        root = connection.root
        for name in ["total", "test", *names]:
            root[name] = PersistentDict(number=0, latest=PersistentDict(number=0))
        connection.commit()
        writers = [Writer(path, name) for name in names]
        try:
            for writer in writers:
                writer.start(choose.randrange(1 << 32))
            for kill in range(kills):
                writer = choose.choice(writers)
                for line in writer.process.read_lines(choose.uniform(0, LIFE_MAX_S)):
                    writer.note(line)
                writer.kill()
                set_number(connection, kill)  # others go on at once
                connection.abort()
                writer.check(connection)
                writer.start(choose.randrange(1 << 32))
            for writer in writers:
                writer.kill()
                connection.abort()
                writer.check(connection)
            assert root["total"]["number"] == sum(root[name]["number"] for name in names)
            acknowledged = sum(writer.acknowledged for writer in writers)
            print(f"{kills + WRITERS} kills, {acknowledged} commits acknowledged")
            assert acknowledged > kills
        finally:
            for writer in writers:
                writer.process.close()


# At every call of the operating system


NEVER = 1 << 60


class KillsItself(OperatingSystem):
    """The process is killed when it has made so many calls, or in the middle of an append.

    It leaves a child behind that was forked just then, and one from before.
    """

    calls_left = NEVER
    halfway = False

    def __getattribute__(self, name: str) -> object:
        if hasattr(OperatingSystem, name) and not name.startswith("_"):
            if not self.calls_left:
                if self.halfway and name == "append":
                    return self._append_half
                self._end()
            self.calls_left -= 1
        return super().__getattribute__(name)

    def _append_half(self, fd: int, content: bytes | memoryview) -> NoReturn:
        os.write(fd, content[: len(content) // 2])
        self._end()

    def _end(self) -> NoReturn:
        self.calls_left = NEVER  # the child closes its files
        fork(lambda: os.read(0, 1))
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


Operation = Callable[[FileStorage, Oid], object]

OPERATIONS: dict[str, Operation] = {
    "commit": lambda storage, oid: commit(storage, {oid: make_record("new")}),
    "reserve": lambda storage, oid: storage.reserve_oids(1),
    "pack": lambda storage, oid: storage.pack(),
    "close": lambda storage, oid: storage.close(),
}


def be_killed_at_every_call(path: str, name: str, halfway: str, first: str, step: str) -> None:
    """Be killed at the call `first`, and each `step` later; say when that has done no harm."""
    vars(shared_log).update(CHECKPOINT_SIZE=4)  # updates of the index are among the calls
    vars(file_storage).update(_CLOSE_CHECKPOINT_SIZE=4)
    before, index = f"{path}.before", f"{path}.index"
    say("ready")
    with closing(FileStorage(before)) as storage:
        (oid,) = create(storage, 1)
        for _ in range(4):
            commit(storage, {oid: make_record("old")})

    def work(call: int) -> None:
        system = KillsItself()
        system.halfway = halfway == "True"
        storage = FileStorage(path, system=system)
        fork(lambda: os.read(0, 1))
        system.calls_left = call
        OPERATIONS[name](storage, oid)
        system.calls_left = NEVER

    for call in itertools.count(int(first), int(step)):
        shutil.copy(before, path)
        shutil.copy(f"{before}.index", index)
        with closing(FileStorage(path)) as storage:
            for _ in range(4):
                commit(storage, {oid: make_record("old")})  # which the index does not know
            pid = fork(partial(work, call))
            _, status = os.waitpid(pid, 0)
            expected = ["new"] if status == 0 and name == "commit" else ["old", "new"]
            assert value(storage, oid) in expected
            (other,) = storage.reserve_oids(1)
            writes = {other: make_record("other"), ROOT_OID: make_record(0, [oid, other])}
            commit(storage, writes, created=[other])
        assert list(verify_file(path)) == []
        with closing(FileStorage(path)) as storage:
            assert value(storage, oid) in expected
            assert value(storage, other) == "other"
        os.unlink(path)
        os.unlink(index)
        if status == 0:
            break
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        say("killed")
    os.rename(before, path)
    say("done")


@pytest.mark.parametrize("halfway", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_process_killed_at_any_call_with_its_children_alive_blocks_nobody(
    path: Path, name: str, halfway: bool, seeds: Seeds
) -> None:
    step = 1 if seeds.is_long or name != "pack" else 8
    first = seeds.first % step
    with running(be_killed_at_every_call, path, name, halfway, first, step) as (process,):
        kills = len(list(iter(process.read_line, "done")))
        assert process.finish() == []
    print(f"{kills} kills in {name}")
    assert kills > 5


def make_file(path: str) -> None:
    for call in itertools.count():
        system = KillsItself()
        system.calls_left = call
        pid = fork(partial(FileStorage, path, system=system))
        _, status = os.waitpid(pid, 0)
        if os.path.exists(path):
            assert list(verify_file(path)) == []
            os.unlink(path)
        if status == 0:
            break
        FileStorage(path).close()
        os.unlink(path)
    say(call)


def test_a_process_killed_while_it_makes_a_file_leaves_one_or_none(path: Path) -> None:
    (calls,) = run_alone(make_file, path)
    assert int(calls) > 5
    FileStorage(path).close()
    left = [name for name in os.listdir(path.parent) if name != path.name]
    assert all(name.startswith(".durus-") for name in left)


# With children that were made in all ways


class Interrupted(OperatingSystem):
    """Something happens while the process has the lock."""

    in_sync: Callable[[], object] | None = None

    def sync(self, fd: int) -> None:
        call, self.in_sync = self.in_sync, None
        if call is not None:
            call()
        super().sync(fd)


def wait_for_the_test(fd: int) -> None:
    """What a child does: say its pid, and wait for the end of the test."""
    say("child", os.getpid())
    os.read(fd, 1)


def die_in_commit(path: str, way: str) -> None:
    stdin = os.dup(0)  # a child of multiprocessing has another one

    def fork_one() -> None:
        fork(lambda: wait_for_the_test(stdin))

    def make_child() -> None:
        if way == "os.fork":
            fork_one()
        elif way == "thread":
            thread = threading.Thread(target=fork_one)
            thread.start()
            thread.join()
        else:
            fork_context = multiprocessing.get_context("fork")
            fork_context.Process(target=wait_for_the_test, args=[stdin]).start()

    def die() -> None:
        make_child()
        say("killed")
        hear()  # until both children have begun
        os.kill(os.getpid(), signal.SIGKILL)

    system = Interrupted()
    with closing(FileStorage(path, system=system)) as storage, Connection(storage) as connection:
        say("ready")
        make_child()
        system.in_sync = die
        connection.root["unacknowledged"] = 1
        connection.commit()


@pytest.mark.parametrize("way", ["os.fork", "thread", "multiprocessing"])
def test_children_of_a_process_that_was_killed_while_it_had_the_lock_do_not_keep_it(
    path: Path, way: str
) -> None:
    with (
        closing(FileStorage(path, lock_timeout_s=0)) as storage,
        Connection(storage) as connection,
        running(die_in_commit, path, way) as (process,),
    ):
        lines = [process.read_line() for _ in range(3)]
        children = [int(line.split()[1]) for line in lines if line.startswith("child")]
        assert len(children) == 2
        process.tell("die")
        assert process.wait() == -signal.SIGKILL
        connection.abort()
        connection.root["next"] = 1
        connection.commit()
        for child in children:
            os.kill(child, 0)  # raises if it is not there any more


def lock_for_a_child(path: str) -> None:
    """A program that is none of Durus: its child keeps the lock when it ends."""
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fork(hear)
    say("ready")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who has a file locked")
def test_a_lock_that_a_child_has_kept_is_explained(path: Path) -> None:
    with (
        closing(FileStorage(path, lock_timeout_s=0)) as storage,
        Connection(storage) as connection,
        running(lock_for_a_child, path) as (process,),
    ):
        assert process.wait() == 0
        connection.root["late"] = 1
        with pytest.raises(StorageLockedError, match="ended: one that it forked still has"):
            connection.commit()
        process.finish()
