"""Backups and plain copies of a database that several processes use; and processes that are killed.

The writers add 1 to a number of their own and to one that all share, and say what was acknowledged.
A copy must have all that was acknowledged before it was begun, and nothing that nobody committed.
"""

import itertools
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from durus.backup import backup, restore, verify_backup
from durus.connection import Connection
from durus.error import ConflictError, StorageLockedError
from durus.file_storage import FileStorage
from durus.interfaces import Tid
from durus.log_verify import verify_file
from durus.persistent_dict import PersistentDict
from tests.processes import Process, running, say
from tests.seeds import Seeds

WRITERS = 3
PACKS_ONE_IN = 200
NEVER = 1 << 60
COPIES, COPIES_LONG = 15, 300
KILLS, KILLS_LONG = 10, 120
KILLS_IN_A_FOLDER = 20
LIFE_MAX_S = 0.3


def write(path: str, name: str, seed: str, packs_one_in: str) -> None:
    """Commit until the process is killed, and pack now and then."""
    choose = random.Random(seed)
    storage = FileStorage(path, lock_timeout_s=60)
    with closing(storage), Connection(storage) as connection:
        mine, total = connection.root[name], connection.root["total"]
        say("ready")
        while True:
            try:
                if not choose.randrange(int(packs_one_in)):
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


class Writers:
    """The processes that write, and what each has said."""

    def __init__(self, processes: list[Process]) -> None:
        self.processes = processes
        self.numbers = [0] * len(processes)

    def listen(self, seconds: float = 0) -> list[int]:
        """What was acknowledged to each, at least, when this returns."""
        time.sleep(seconds)
        for index, process in enumerate(self.processes):
            for line in process.read_lines(0):
                word, number = line.split()
                assert word == "ack"
                self.numbers[index] = int(number)
        return self.numbers.copy()


@contextmanager
def writing(
    path: Path, seeds: Iterator[int], packs_one_in: int = PACKS_ONE_IN
) -> Iterator[Writers]:
    names = [f"writer {number}" for number in range(WRITERS)]
    with Connection(str(path)) as connection:
        for name in ["total", *names]:
            connection.root[name] = PersistentDict(number=0, latest=PersistentDict(number=0))
        connection.commit()
    processes = []
    try:
        for name in names:
            processes.append(Process(write, path, name, next(seeds), packs_one_in))
        for process in processes:
            assert process.read_line() == "ready"
        yield Writers(processes)
    finally:
        for process in processes:
            process.close()


def remove(path: Path) -> None:
    """Remove a database, and what may be beside it."""
    path.unlink()
    Path(f"{path}.index").unlink(missing_ok=True)


def check_copy(path: Path, before: list[int], writers: Writers) -> None:
    """before: what was acknowledged when the copy was begun."""
    assert list(verify_file(str(path))) == []
    with Connection(str(path)) as connection:
        root = connection.root
        numbers = [root[f"writer {number}"]["number"] for number in range(WRITERS)]
        assert root["total"]["number"] == sum(numbers)
        for number, found in enumerate(numbers):
            assert root[f"writer {number}"]["latest"]["number"] == found
        root["total"]["number"] = -1
        connection.commit()
    after = writers.listen()
    for found, least, most in zip(numbers, before, after, strict=True):
        assert least <= found <= most + 1
    assert list(verify_file(str(path))) == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "database").mkdir()
    return tmp_path / "database" / "shared.durus"


def copy_by_cp(source: Path, target: Path) -> None:
    subprocess.run(["cp", source, target], check=True)


def copy_slowly(source: Path, target: Path) -> None:
    """As a tool that reads a small piece now and then."""
    with source.open("rb", buffering=0) as file, target.open("wb") as copy:
        while piece := file.read(20_000):
            copy.write(piece)
            time.sleep(0)


@pytest.mark.parametrize("copy", [copy_by_cp, shutil.copyfile, copy_slowly])
def test_a_plain_copy_at_any_moment_is_the_database(
    path: Path, tmp_path: Path, seeds: Seeds, copy: Callable[[Path, Path], object]
) -> None:
    choose = random.Random(seeds.first)
    with writing(path, seeds.take(WRITERS, WRITERS)) as writers:
        for number in range(COPIES_LONG if seeds.is_long else COPIES):
            before = writers.listen(choose.uniform(0, 0.05))
            target = tmp_path / f"copy-{number}"
            copy(path, target)
            check_copy(target, before, writers)
            remove(target)
        print(f"{sum(writers.numbers)} commits while it was copied")


def test_a_backup_at_any_moment_is_the_database(path: Path, tmp_path: Path, seeds: Seeds) -> None:
    choose = random.Random(seeds.first)
    folder, target = tmp_path / "backups", tmp_path / "restored"
    kinds = []
    with writing(path, seeds.take(WRITERS, WRITERS)) as writers:
        for _ in range(COPIES_LONG if seeds.is_long else COPIES):
            before = writers.listen(choose.uniform(0, 0.05))
            made = backup(path, folder)
            kinds.append(made.kind)
            assert restore(folder, target).tid == made.tid
            check_copy(target, before, writers)
            remove(target)
    assert list(verify_backup(folder)) == []
    assert {"full", "incremental"} <= {*kinds}
    print(f"{kinds.count('full')} full backups, {kinds.count('incremental')} parts")


def test_the_database_of_any_time_can_be_restored(path: Path, tmp_path: Path, seeds: Seeds) -> None:
    choose = random.Random(seeds.first)
    folder, target = tmp_path / "backups", tmp_path / "restored"
    moments = []
    # A pack takes away what no backup has yet.
    with writing(path, seeds.take(WRITERS, WRITERS), packs_one_in=NEVER) as writers:
        for number in range(40):
            before = writers.listen(choose.uniform(0, 0.02))
            moments.append((Tid(time.time_ns()), before))
            if number % 4 == 3:
                backup(path, folder)
        for moment, before in choose.sample(moments, 20):
            restore(folder, target, at=moment)
            check_copy(target, before, writers)
            remove(target)


# Killed processes


def make_backups(path: str, folder: str) -> None:
    """Make backups until the process is killed."""
    say("ready")
    while True:
        try:
            say("made", backup(path, folder).tid)
        except StorageLockedError:
            say("locked", 0)


def test_a_backup_that_is_killed_leaves_the_folder_as_it_was(
    path: Path, tmp_path: Path, seeds: Seeds
) -> None:
    choose = random.Random(seeds.first)
    target = tmp_path / "restored"
    tid = 0
    with writing(path, seeds.take(WRITERS, WRITERS)) as writers:
        for kill in range(KILLS_LONG if seeds.is_long else KILLS):
            folder = tmp_path / f"backups-{kill // KILLS_IN_A_FOLDER}"
            if not folder.exists():
                tid = 0
            with running(make_backups, path, folder) as (process,):
                lines = process.read_lines(choose.uniform(0, LIFE_MAX_S)) + process.kill()
            tid = max([tid, *(int(line.split()[1]) for line in lines)])
            if not (folder / "manifest.json").exists():
                assert not tid
                continue
            assert list(verify_backup(folder)) == []
            if tid:
                assert restore(folder, target).tid >= tid
                remove(target)
        before = writers.listen()
        made_at_last = backup(path, folder)
        assert restore(folder, target).tid == made_at_last.tid
        check_copy(target, before, writers)
    left = [name for name in os.listdir(folder) if name.endswith((".new", ".lock"))]
    assert left == []


def restore_again_and_again(folder: str, target: str) -> None:
    say("ready")
    for number in itertools.count():
        restore(folder, f"{target}{number}")
        say("restored")


def test_a_restore_that_is_killed_leaves_all_or_nothing(
    path: Path, tmp_path: Path, seeds: Seeds
) -> None:
    choose = random.Random(seeds.first)
    folder, target = tmp_path / "backups", tmp_path / "target" / "restored"
    target.parent.mkdir()
    with writing(path, seeds.take(WRITERS, WRITERS)) as writers:
        for _ in range(4):
            writers.listen(0.1)
            tid = backup(path, folder).tid
    found = 0
    for _ in range(KILLS_LONG if seeds.is_long else KILLS):
        with running(restore_again_and_again, folder, target) as (process,):
            said = process.read_lines(choose.uniform(0, LIFE_MAX_S)) + process.kill()
        files = list(target.parent.glob("restored*"))
        assert len(files) - said.count("restored") in (0, 1)
        for file in files:
            assert list(verify_file(str(file))) == []
            with closing(FileStorage(file, readonly=True)) as storage:
                assert storage.tid == tid
            file.unlink()
        found += len(files)
    left = os.listdir(target.parent)
    for name in left:  # what goes when that is restored again
        again = target.parent / name.removeprefix(".durus-").removesuffix(".new")
        restore(folder, again)
        again.unlink()
    assert os.listdir(target.parent) == []
    print(f"{found} restored files, and {len(left)} halves")


def test_of_two_backups_into_one_folder_one_is_refused_or_comes_later(
    path: Path, tmp_path: Path, seeds: Seeds
) -> None:
    folder, target = tmp_path / "backups", tmp_path / "restored"
    with writing(path, seeds.take(WRITERS, WRITERS)) as writers:
        with running(make_backups, path, folder, count=2) as processes:
            lines = [line for process in processes for line in process.read_lines(1)]
        words = [line.split()[0] for line in lines]
        assert words.count("made") > 1
        before = writers.listen()
        backup(path, folder)
        restore(folder, target)
        check_copy(target, before, writers)
    assert list(verify_backup(folder)) == []
