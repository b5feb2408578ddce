"""Power cuts while backups are made and restored: what was made before is there, whole.

As in `tests/test_power_cuts.py`, everything is recorded at the file seam; the power is cut after
each operation, and the states that the disk may be in are looked at with the real code.
"""

import posixpath
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from random import Random
from typing import Any, Final

import pytest

from durus.backup import backup, restore, verify_backup
from durus.error import DurusError, StorageError
from durus.file_storage import FileStorage
from durus.interfaces import ROOT_OID, Tid
from durus.log_verify import verify_file
from durus.testing.storage_contract import commit, make_record
from tests.power_cuts.machine import PATH, Machine
from tests.power_cuts.recording import DiskOperation
from tests.power_cuts.states import Disk, State
from tests.power_cuts.workloads import begin
from tests.seeds import Seeds
from tests.simulation.disk import ProcessKilled, SimulatedDisk, SimulatedSystem

FOLDER: Final = "/backups"
TARGET: Final = "/restored/file"
OLDER_TARGET: Final = "/restored/older"
STATES: Final = 300
PASSES_MAX: Final = 40


class Promises:
    """What was said, and after how many operations."""

    def __init__(self, machine: Machine) -> None:
        self._operations = machine.recording.operations
        self.backups: list[tuple[int, Tid]] = []
        self.restored: list[tuple[int, str, Tid]] = []

    def made(self, tid: Tid) -> None:
        self.backups.append((len(self._operations), tid))

    def was_restored(self, path: str, tid: Tid) -> None:
        self.restored.append((len(self._operations), path, tid))

    def at(self, place: int) -> tuple[Tid, set[str]]:
        """The newest tid that a backup was made of by then, and the files that were restored."""
        made = max([Tid(0), *(tid for when, tid in self.backups if when <= place)])
        return made, {path for when, path, _ in self.restored if when <= place}

    def tids(self) -> dict[str, Tid]:
        """Those of the files that are restored at some time."""
        return {path: tid for _, path, tid in self.restored}


def backups_of_a_database_in_use(machine: Machine, promises: Promises) -> None:
    program = begin(machine)
    oids = program.create(4)
    for number in range(4):
        program.change(oids, machine.random.choice((0, 300, 2000)))
        if number == 2:
            program.pack()
        promises.made(backup(PATH, FOLDER, system=machine.new_system()).tid)
    for path, at in (
        (TARGET, None),
        (OLDER_TARGET, machine.random.choice(promises.backups)[1] - 1),
    ):
        restored = restore(FOLDER, path, at=at, system=machine.new_system())
        promises.was_restored(path, restored.tid)


def backups_that_are_killed(machine: Machine, promises: Promises) -> None:
    program = begin(machine)
    oids = program.create(3)
    for _ in range(6):
        program.change(oids, machine.random.choice((0, 300)))
        system = machine.new_system()
        system.kills_after = machine.random.choice((100, 700, 1500, 4000, 9000))
        with suppress(ProcessKilled):
            promises.made(backup(PATH, FOLDER, system=system).tid)
        system.kill()


def backups_that_fail(machine: Machine, promises: Promises) -> None:
    program = begin(machine)
    oids = program.create(3)
    for _ in range(6):
        program.change(oids, machine.random.choice((0, 300)))
        system = machine.new_system()
        system.fail(machine.random.choice(("append", "sync", "rename", "unlink")), 2)
        with suppress(StorageError):
            promises.made(backup(PATH, FOLDER, system=system).tid)
    promises.made(backup(PATH, FOLDER, system=machine.new_system()).tid)


Workload = Callable[[Machine, Promises], None]
WORKLOADS: Final[list[Workload]] = [
    backups_of_a_database_in_use,
    backups_that_are_killed,
    backups_that_fail,
]


def states(machine: Machine) -> Iterator[tuple[int, State]]:
    """The states after each operation, with its number; the extremes, and then others."""

    def cut() -> Iterator[tuple[int, Disk]]:
        disk = Disk()
        for place, operation in enumerate(machine.recording.operations, 1):
            if isinstance(operation, DiskOperation):
                disk.do(operation)
            yield place, disk

    for place, disk in cut():
        for state in disk.extremes():
            yield place, state
    for _ in range(PASSES_MAX):
        for place, disk in cut():
            if machine.random.random() < 0.3:
                yield place, disk.torn(machine.random)
            if machine.random.random() < 0.1:
                yield place, disk.reordered(machine.random)


def find_violation(state: State, made: Tid, restored: set[str], tids: dict[str, Tid]) -> str:
    try:
        check(state.mount(), made, restored, tids)
    except (AssertionError, DurusError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def check(disk: SimulatedDisk, made: Tid, restored: set[str], tids: dict[str, Tid]) -> None:
    system = SimulatedSystem(disk)
    if f"{FOLDER}/manifest.json" not in disk.names:
        assert not made, "the manifest is lost"
    else:
        assert list(verify_backup(FOLDER, system=system)) == []
    if made:
        assert restore(FOLDER, "/again/file", system=system).tid >= made, "a backup is lost"
        check_database("/again/file", disk)
    assert restored <= {*disk.names}, "what was restored is lost"
    for path in {*tids} & {*disk.names}:
        check_database(path, disk)
        assert tid_of(path, disk) == tids[path]
    # And it goes on.
    if PATH in disk.names:
        with closing(FileStorage(PATH, system=system)) as storage:
            created = () if storage.tid else (ROOT_OID,)
            commit(storage, {ROOT_OID: make_record("next")}, created=created)
            assert backup(PATH, FOLDER, system=system).tid == storage.tid
        assert list(verify_backup(FOLDER, system=system)) == []
        left = [name for name in disk.names if name.startswith(FOLDER)]
        assert not [name for name in left if posixpath.splitext(name)[1] in (".new", ".lock")]


def check_database(path: str, disk: SimulatedDisk) -> None:
    findings = verify_file(path, SimulatedSystem(disk))
    assert [finding for finding in findings if finding.offset is not None] == []


def tid_of(path: str, disk: SimulatedDisk) -> Tid:
    with closing(FileStorage(path, readonly=True, system=SimulatedSystem(disk))) as storage:
        return storage.tid


def explore(workload: Workload, random: Random, **rules: Any) -> tuple[int, list[str]]:
    """How many distinct states were looked at, and what is wrong with some."""
    machine = Machine(random, **rules)
    promises = Promises(machine)
    workload(machine, promises)
    digests: set[bytes] = set()
    violations = []
    for place, state in states(machine):
        made, restored = promises.at(place)
        digest = state.digest() + repr((made, sorted(restored))).encode()
        if digest not in digests:
            digests.add(digest)
            violation = find_violation(state, made, restored, promises.tids())
            if violation:
                violations.append(f"power cut after operation {place}: {violation}")
        if len(digests) >= STATES:
            break
    return len(digests), violations


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.__name__)
def test_nothing_is_lost_after_a_power_cut(workload: Workload, seeds: Seeds) -> None:
    distinct = 0
    for seed in seeds.take(1, long=10):
        found, violations = explore(workload, Random(seed))
        assert violations == [], f"with --seed {seed}, of {found} states"
        distinct += found
    print(f"{distinct} distinct states of {workload.__name__}")


@pytest.mark.parametrize("omitted", ["sync", "sync_directory"])
def test_without_a_sync_something_is_lost(omitted: str, seeds: Seeds) -> None:
    for seed in range(seeds.first, seeds.first + 5):
        _, violations = explore(backups_of_a_database_in_use, Random(seed), omits=omitted)
        if any(text for text in violations if "back" in text or "manifest" in text):
            return
    pytest.fail(f"no violation was found, with --seed {seeds.first}")
