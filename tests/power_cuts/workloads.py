"""What programs do to a database, each in a few steps, so that power cuts hit all of them.

Each is a function of a `Machine`, from which it takes its random choices.
"""

import threading
import time
from collections.abc import Callable
from random import Random
from typing import Final

from durus.interfaces import Oid
from tests.power_cuts.machine import Machine, Program

__all__ = ["WORKLOADS", "Workload"]

Workload = Callable[[Machine], None]

SECTOR: Final = 512
LARGE: Final = 6 * SECTOR


def creating_a_file(machine: Machine) -> None:
    first, second = machine.start(), machine.start()
    first.begin_database()
    second.create(2)
    first.close()


def small_and_large_commits(machine: Machine) -> None:
    program = begin(machine)
    oids = program.create(4)
    for _ in range(6):
        size = machine.random.choice((0, 10, 300, SECTOR, LARGE))
        program.change(machine.random.sample(oids, 2), size)
    program.create(20)


def groups_of_threads(machine: Machine) -> None:
    program = begin(machine)
    oids = program.create(4)
    for _ in range(3):
        commit_in_groups(program, oids)
    assert program.storage.statistics.groups < program.storage.statistics.transactions
    program.close()


def groups_that_fail(machine: Machine) -> None:
    program = begin(machine)
    oids = program.create(4)
    for _ in range(4):
        # The first append is the mark of the leader's transaction; then comes the group.
        program.system.fail("append", machine.random.choice((1, 2, 2, 3)))
        commit_in_groups(program, oids)
        program.system.fail_no_more()
        machine.start().change(oids[:1])


def reservations(machine: Machine) -> None:
    programs = [begin(machine), machine.start()]
    for count in (1, 70, 200):
        for program in programs:
            program.storage.reserve_oids(count)
            program.create(2)


def two_programs_taking_turns(machine: Machine) -> None:
    programs = [begin(machine), machine.start()]
    oids = programs[1].create(3)
    for _ in range(8):
        program = machine.random.choice(programs)
        program.change([machine.random.choice(oids)], machine.random.choice((0, LARGE)))


def writers_that_are_killed(machine: Machine) -> None:
    oids = begin(machine).create(3)
    for _ in range(4):
        place = machine.random.choice((1, 50, 200, 700, 1400, 100_000))
        machine.start().kill_in_commit(oids, machine.random.choice((0, 400)), place)
        if machine.random.random() < 0.5:
            machine.start(readonly=True).oids()
        machine.start().change(oids[:1])


def writers_of_both_durabilities_that_are_killed(machine: Machine) -> None:
    random = machine.random
    oids = begin(machine).create(3)
    for _ in range(5):
        program = machine.start(durability=random.choice(("full", "none")))
        program.change(oids[1:], random.choice((0, LARGE)))
        program.kill_in_commit(oids, random.choice((0, 400)), random.choice((50, 700, 1400)))
        if random.random() < 0.5:
            machine.start(durability=random.choice(("full", "none"))).change(oids[:1])


def packs(machine: Machine) -> None:
    first, second = begin(machine), machine.start()
    oids = first.create(6, 200)
    first.change(oids)
    first.forget(oids[:2])
    with_history = second.storage.snapshot()
    first.pack()
    second.change(oids[3:])
    with_history.close()
    second.create(1)
    second.forget(oids[2:4])
    second.pack()
    first.change(oids[4:])


def packs_that_are_killed(machine: Machine) -> None:
    oids = begin(machine).create(5, 100)
    for place in (100, 700, 2000, 4000):
        machine.start().forget(oids[-1:])
        oids.pop()
        machine.start().kill_in_pack(place)
        machine.start().change(oids)


def packs_that_compress(machine: Machine) -> None:
    oids = begin(machine).create(5, LARGE)
    for compression in ("zstd", "none", None):
        program = machine.start(compression=compression)
        program.change(oids[:3], LARGE)
        program.forget([oids.pop()])
        machine.start(compression=compression).kill_in_pack(1500)
        program.pack()
        machine.start().change(oids[:1], LARGE)


def opened_again_and_again(machine: Machine) -> None:
    begin(machine).create(3)
    for _ in range(4):
        program = machine.start()
        program.change(program.oids()[:2])
        program.create(1)
        program.close()


def index_checkpoints(machine: Machine) -> None:
    first = begin(machine)
    oids = first.create(5)
    first.storage.reserve_oids(machine.random.choice((1, 500, 261_100)))
    oids += first.create(5)
    second = machine.start()
    for _ in range(6):
        program = machine.random.choice((first, second))
        program.change(machine.random.sample(oids, 4))
        if machine.random.random() < 0.3:
            oids += program.create(2)
    first.close()
    second.close()


def an_index_and_killed_writers(machine: Machine) -> None:
    oids = begin(machine).create(8)
    for _ in range(5):
        place = machine.random.choice((300, 700, 1000, 3000, 5000, 9000))
        program = machine.start()
        program.kill_in_commit(oids[:5], 0, place)
        machine.start().change(machine.random.sample(oids, 3))


def an_index_of_commits_that_need_not_last(machine: Machine) -> None:
    programs = [begin(machine, durability="none"), machine.start(durability="none")]
    oids = programs[0].create(6)
    for _ in range(9):
        program = machine.random.choice(programs)
        program.change(machine.random.sample(oids, 3), machine.random.choice((0, SECTOR, LARGE)))


def commits_that_need_not_last(machine: Machine) -> None:
    first = begin(machine, durability="none")
    oids = first.create(4)
    for _ in range(8):
        first.change(machine.random.sample(oids, 2), machine.random.choice((0, 200, SECTOR, LARGE)))
    first.create(2)


def commits_of_both_durabilities(machine: Machine) -> None:
    programs = [begin(machine), machine.start(durability="none")]
    oids = programs[0].create(4)
    for _ in range(9):
        program = machine.random.choice(programs)
        program.change(machine.random.sample(oids, 2), machine.random.choice((0, 300, LARGE)))
    programs[0].pack()
    for program in programs:
        program.change(oids[:1])


def failures(machine: Machine) -> None:
    program = begin(machine)
    other = machine.start()
    oids = program.create(3)
    for _ in range(6):
        fail(program, machine.random)
        program.change(oids, machine.random.choice((0, 300)))
        program.system.fail_no_more()
        machine.random.choice((program, other)).change(oids[:2])


def failures_of_commits_that_need_not_last(machine: Machine) -> None:
    program = begin(machine, durability="none")
    oids = program.create(3)
    for _ in range(6):
        program.system.fail("append", machine.random.choice((1, 2)))
        program.change(oids, machine.random.choice((0, LARGE)))
        program.system.fail_no_more()
        program.change(oids[:2], LARGE)


def anything(machine: Machine) -> None:
    random = machine.random
    begin(machine).create(4)
    programs = [machine.start()]
    for _ in range(25):
        program = random.choice(programs)
        if len(program.oids()) < 3:
            program.create(4)
        oids = program.oids()
        some = random.sample(oids, 3)
        match random.randrange(12):
            case 0 | 1 | 2:
                program.change(some, random.choice((0, 100, SECTOR, LARGE)))
            case 3 | 4:
                program.create(random.choice((1, 5)), random.choice((0, 300)))
            case 5:
                program.storage.reserve_oids(random.choice((1, 100, 300)))
            case 6:
                program.close()
                programs.remove(program)
            case 7:
                program.kill_in_commit(oids[:3], random.choice((0, 400)), random.randrange(2000))
                programs.remove(program)
            case 8:
                program.forget(some)
            case 9:
                if random.random() < 0.5:
                    program.pack()
                else:
                    program.kill_in_pack(random.randrange(3000))
                    programs.remove(program)
            case 10:
                machine.start(readonly=True).oids()
        if len(programs) < 3:
            programs.append(machine.start(durability=random.choice(("full", "full", "none"))))


def commit_in_groups(program: Program, oids: list[Oid]) -> None:
    """Change each object in a thread of its own: the first alone, all others together."""
    threads = [threading.Thread(target=program.change, args=([oid], 200)) for oid in oids[1:]]

    def begin_others(*, is_leading: bool = True) -> None:
        program.system.before_sync = None
        for thread in threads:
            thread.start()
        while is_leading and len(program.storage._commits._waiting) < len(threads):
            time.sleep(0)

    program.system.before_sync = begin_others
    program.change(oids[:1])
    if program.system.before_sync is not None:
        begin_others(is_leading=False)  # the first has failed before
    for thread in threads:
        thread.join()


def fail(program: Program, random: Random) -> None:
    """Let one of the next appends, or the next sync, or both, fail in a program."""
    name = random.choice(("append", "sync", "append sync"))
    for failing in name.split():
        program.system.fail(failing, random.choice((1, 1, 2)))


def begin(machine: Machine, durability: str = "full") -> Program:
    """The first program, which makes the database; from then on somebody looks."""
    program = machine.start(durability=durability)
    program.begin_database()
    machine.watch()
    return program


WORKLOADS: Final[list[Workload]] = [
    creating_a_file,
    small_and_large_commits,
    groups_of_threads,
    groups_that_fail,
    reservations,
    two_programs_taking_turns,
    writers_that_are_killed,
    writers_of_both_durabilities_that_are_killed,
    packs,
    packs_that_are_killed,
    packs_that_compress,
    opened_again_and_again,
    index_checkpoints,
    an_index_and_killed_writers,
    an_index_of_commits_that_need_not_last,
    commits_that_need_not_last,
    commits_of_both_durabilities,
    failures,
    failures_of_commits_that_need_not_last,
    anything,
]
