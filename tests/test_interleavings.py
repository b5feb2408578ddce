"""Several processes on one log file, interleaved at each call of the file seam, killed, cut off.

They are simulated, but run the code of `FileStorage`: see `tests.simulation`.  `--long` runs twenty
thousand such schedules.  A failure says its seed: with that as `--seed` it comes first.
"""

from random import Random

import pytest

from durus.index_checkpoint import renew_index, write_checkpoint
from durus.interfaces import ROOT_OID
from durus.log_format import VOID_SIZE
from tests.seeds import Seeds
from tests.simulation.disk import ProcessKilled, SimulatedDisk, SimulatedSystem
from tests.simulation.explorer import Disaster, Explorer, Process, Violation
from tests.simulation.ledger import Ledger
from tests.simulation.rules import BROKEN, Change, broken
from tests.simulation.runs import check_disk, explore
from tests.simulation.workload import PATH, Client

SEEDS_MAX = 4000
"""Of so many seeds one must find a broken rule: it is found by one of 200 or more often."""


def test_no_schedule_breaks_a_promise(seeds: Seeds) -> None:
    for seed in seeds.take(1300, long=20_000):
        explore(seed)


@pytest.mark.parametrize("rule", BROKEN, ids=lambda rule: rule.__name__)
def test_a_broken_rule_is_found(seeds: Seeds, rule: Change) -> None:
    for seed in seeds.take(SEEDS_MAX, long=SEEDS_MAX):
        try:
            explore(seed, BROKEN[rule], lambda: broken(rule))
        except Violation:
            return
    pytest.fail(f"{SEEDS_MAX} schedules from --seed {seeds.first} on found no violation")


def test_a_run_depends_on_its_seed_alone(seeds: Seeds) -> None:
    for seed in seeds.take(20, long=200):
        assert explore(seed) == explore(seed)


def test_a_violation_says_what_each_process_did_last(seeds: Seeds) -> None:
    def program(process: Process) -> None:
        process.system.create("/folder/mine")
        process.system.open("/folder/missing", writable=False)

    explorer = Explorer(SimulatedDisk(), Random(seeds.first))
    explorer.start("the first", program)
    with pytest.raises(Violation, match=r"the first failed:\n(.*\n)*FileNotFoundError"):
        explorer.run()
    assert explorer.describe() == "the first: 0 create, 1 open"


def test_a_killed_process_does_nothing_any_more(seeds: Seeds) -> None:
    def program(process: Process) -> None:
        try:
            process.system.create("/folder/before")
            process.system.create("/folder/never")
        finally:
            process.system.create("/folder/after")

    disk = SimulatedDisk()
    explorer = Explorer(disk, Random(seeds.first))
    explorer.start("the first", program)
    assert not explorer.run([Disaster("kill", "create", 2)])
    assert list(disk.names) == ["/folder/before"]


# What the explorer has found


def begin_client(disk: SimulatedDisk, ledger: Ledger, system: SimulatedSystem) -> Client:
    """A process that has begun a transaction, in a database with a root; it runs alone."""
    process = Process(Explorer(disk, Random(0)), "a process", lambda process: None, 0)
    client = Client(process, ledger, system)
    client.begin()
    client.has_root()
    return client


def test_a_torn_transaction_is_not_taken_for_one_that_its_void_completes() -> None:
    disk, ledger = SimulatedDisk(), Ledger()
    first = begin_client(disk, ledger, SimulatedSystem(disk))
    first.storage.close()
    appends = 0

    def kill_at_the_second_append(call: str) -> None:
        nonlocal appends
        appends += call == "append"
        if appends == 2:
            system.kill()

    system = SimulatedSystem(
        disk, step=kill_at_the_second_append, portion=lambda size: size - VOID_SIZE
    )
    torn = begin_client(disk, ledger, system)
    with pytest.raises(ProcessKilled):
        torn.commit(torn.write([ROOT_OID]))
    other = begin_client(disk, ledger, SimulatedSystem(disk))
    assert other.commit(other.write([ROOT_OID]))
    check_disk(disk, Random(0), ledger)


def test_an_index_made_anew_that_covers_less_than_the_last_is_not_used() -> None:
    disk, ledger = SimulatedDisk(), Ledger()
    client = begin_client(disk, ledger, SimulatedSystem(disk))
    log = client.storage._shared.current()
    write_checkpoint(log)
    covers_less = disk.names[f"{PATH}.index"].copy()
    assert client.commit(client.write([ROOT_OID]))
    write_checkpoint(log)  # memory forgets what it covers
    disk.names[f"{PATH}.index"] = covers_less  # another process began to make it before
    renew_index(log)
    client.begin()
    client.look(ROOT_OID)
    check_disk(disk, Random(0), ledger)
