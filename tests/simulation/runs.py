"""One run of the explorer: from a seed to a verdict.

The seed decides who does what on a new disk, who is killed, and when the power fails; then, on
what that has left, more processes go on.  After each part whatever may be checked is checked.
"""

import contextlib
import copy
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

from durus import (
    file_storage,
    index_checkpoint,
    index_file,
    log_batch,
    log_index,
    oid_batches,
    shared_log,
)
from durus.file_storage import FileStorage
from durus.interfaces import CommittedTransaction
from durus.log_verify import verify_file
from tests.simulation.disk import SimulatedDisk, SimulatedSystem
from tests.simulation.explorer import CHANGES, Disaster, DisasterKind, Explorer, Process, Violation
from tests.simulation.ledger import Ledger, State
from tests.simulation.workload import (
    PATH,
    ROLES,
    TID_STEP_NS,
    Client,
    read_record,
    tolerating_failing_syncs,
    work,
)

__all__ = ["Outcome", "Plan", "check_disk", "explore"]

PARTS_MAX = 3
LATE = 100
"""Some begin at up to this step."""
SOON = 8
"""So many changes."""


@dataclass(slots=True)
class Outcome:
    """What a run consisted of."""

    steps: int = 0
    disasters: Counter[DisasterKind] = field(default_factory=Counter)
    restores: int = 0
    commits: int = 0
    conflicts: int = 0
    sightings: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed chooses from.  Something that is there twice is chosen twice as often."""

    roles: Sequence[str] = (*ROLES, "writer", "writer")
    processes: tuple[int, int] = (2, 4)
    """How many there are in a part, at least and at most."""
    disasters: Sequence[Sequence[DisasterKind]] = (
        (),
        (),
        ("kill",),
        ("kill",),
        ("kill",),
        ("kill", "kill"),
        ("failing commit",),
    )
    """What befalls the processes of one part, before the power fails.

    What a failed sync has lost only its process knows, so nobody is killed then; and all of it must
    have been durable before."""
    power_cuts: float = 0.6
    """How likely one is in each part."""
    calls: Sequence[str | None] = (*CHANGES, None)
    """Before which disasters come."""
    soon: float = 0.5
    """How likely a disaster comes soon after another."""
    without_durability: float = 0.2
    """How likely it is that some commit without."""
    checkpoints: Sequence[int] = (2, 2, 5, 4096)
    """How often the index is updated."""
    restores: float = 0.15
    """How likely it is that an older copy of a file is put in its place, before others go on."""


EVERYTHING = Plan()


class Backup(NamedTuple):
    """The disk, and what had been done to it."""

    disk: SimulatedDisk
    ledger: Ledger

    def restore(self, disk: SimulatedDisk, random: Random, ledger: Ledger) -> Ledger:
        """Put back the log, or its index, but not the other one: the ledger of what is there."""
        path = random.choice((PATH, f"{PATH}.index"))
        if path not in self.disk.names:
            return ledger
        restored = disk.new_inode()
        restored.write(0, bytes(self.disk.names[path].content))
        restored.sync()
        disk.names[path] = restored
        disk.sync_names()
        return self.ledger if path == PATH else ledger


def explore(
    seed: int,
    plan: Plan = EVERYTHING,
    broken: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Outcome:
    """Run what a seed says; Violation, which says how to see it again.

    broken: a context in which the processes run, but not those that check what they leave.
    """
    run = Run(Random(seed), plan, broken)
    try:
        return run.all_parts()
    except Violation as violation:
        violation.add_note(f"--seed {seed} shows it again")
        raise


@contextlib.contextmanager
def small_limits(random: Random, plan: Plan) -> Iterator[None]:
    """Have what comes rarely in a large database come often in a small one."""
    clock = SimpleNamespace(now=TID_STEP_NS)

    def time_ns() -> int:
        clock.now += random.randrange(2 * TID_STEP_NS)
        return int(clock.now - random.choice((0, 0, 5 * TID_STEP_NS)))  # clocks differ

    fan_out, page_size = random.choice(((31, 256), (511, 4096)))
    checkpoint = random.choice(plan.checkpoints)
    changes = random.choice((4, 100_000, 100_000))
    changed: list[tuple[Any, str, Any]] = [
        (index_checkpoint, "CHECKPOINT_SIZE", checkpoint),
        (shared_log, "CHECKPOINT_SIZE", checkpoint),
        (file_storage, "_CLOSE_CHECKPOINT_SIZE", random.choice((1, checkpoint))),
        (index_file, "FAN_OUT", fan_out),
        (index_file, "PAGE_SIZE", page_size),
        (index_file, "_POWERS", [fan_out**level for level in range(9)]),
        (oid_batches, "_BATCH_MIN", random.choice((1, 40))),
        (log_index, "CHANGES_MAX", changes),
        (log_batch, "CHANGES_MAX", changes),
        (log_batch, "time", SimpleNamespace(time_ns=time_ns)),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in changed]
    for module, name, value in changed:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


class Run:
    """One disk, and what happens on it."""

    def __init__(
        self, random: Random, plan: Plan, broken: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.random = random
        self.plan = plan
        self.broken = broken
        self.disk = SimulatedDisk()
        self.ledger = Ledger(may_lose=random.random() < plan.without_durability)
        self.outcome = Outcome()

    def all_parts(self) -> Outcome:
        random, plan = self.random, self.plan
        with small_limits(random, plan):
            if random.random() < 0.7:  # else the first processes make the file, all at once
                self.part(["creator"], [])
            for _ in range(PARTS_MAX):
                backup = None
                if random.random() < plan.restores:
                    backup = Backup(self.disk.copy(), copy.deepcopy(self.ledger))
                roles = random.choices(plan.roles, k=random.randint(*plan.processes))
                has_lost_power = self.part(roles, self.choose_disasters())
                if backup:
                    self.outcome.restores += 1
                    self.ledger = backup.restore(self.disk, random, self.ledger)
                    check_disk(self.disk, random, self.ledger)
                elif random.random() < (0.2 if has_lost_power else 0.7):
                    break
        self.outcome.commits = len(self.ledger.acknowledged)
        self.outcome.conflicts = len(self.ledger.refused)
        self.outcome.sightings = len(self.ledger.sightings)
        return self.outcome

    def part(self, roles: list[str], disasters: list[Disaster]) -> bool:
        """Run processes, and check what they leave: whether the power failed."""
        explorer = Explorer(self.disk, self.random)
        for index, role in enumerate(roles):
            at = self.random.choice((0, self.random.randrange(LATE)))
            explorer.start(f"{role} {index + 1}", self.choose_program(role), at)
        try:
            with self.broken():
                has_lost_power = explorer.run(disasters)
            self.outcome.steps += explorer.steps
            self.outcome.disasters.update(explorer.disasters)
            if has_lost_power:
                self.disk.lose_power(self.random)
            check_disk(self.disk, self.random, self.ledger, has_lost_power=has_lost_power)
            return has_lost_power
        except Violation as violation:
            violation.add_note(explorer.describe())
            raise

    def choose_disasters(self) -> list[Disaster]:
        """What is to happen in one part: often the power fails soon after something else."""
        random, plan = self.random, self.plan
        kinds = list(random.choice(plan.disasters))
        if self.ledger.may_lose and "failing commit" in kinds:
            kinds = []
        if random.random() < plan.power_cuts:
            kinds.append("power cut")
        disasters: list[Disaster] = []
        for kind in kinds:
            call = "lock" if kind == "failing commit" else random.choice(plan.calls)
            count = random.randint(1, CHANGES[call])
            if disasters and random.random() < plan.soon:
                call, count = None, random.randint(1, SOON)
            disasters.append(Disaster(kind, call, count))
        return disasters

    def choose_program(self, role: str) -> Callable[[Process], None]:
        """What a process of some role does."""
        random, ledger = self.random, self.ledger
        durable = not (ledger.may_lose and random.random() < 0.5)
        is_closed = random.random() < 0.8
        readonly = role == "reader" and random.random() < 0.5
        counts = [random.randint(1, 4) for _ in range(random.choice((1, 1, 2)))]

        def program(process: Process) -> None:
            for count in counts:
                if readonly and PATH not in process.system.disk.names:
                    return
                with tolerating_failing_syncs(process):
                    client = Client(process, ledger, durable=durable, readonly=readonly)
                    work(client, role, count)
                    if is_closed:
                        client.storage.close()

        return program


def check_disk(
    disk: SimulatedDisk, random: Random, ledger: Ledger, *, has_lost_power: bool = False
) -> None:
    """Open what is there in several ways: each sees the same, which is what is promised."""
    try:
        compare_views(disk, random, ledger, has_lost_power=has_lost_power)
    except Violation:
        raise
    except Exception:
        raise Violation(f"what is left cannot be opened:\n{traceback.format_exc()}") from None


def compare_views(
    disk: SimulatedDisk, random: Random, ledger: Ledger, *, has_lost_power: bool
) -> None:
    if PATH not in disk.names:
        if has_lost_power:
            ledger.lose_power([])
        ledger.check([], {})
        return
    settled = disk.copy()
    transactions, state = read_all(settled)
    if has_lost_power:
        ledger.lose_power(transactions)
    ledger.check(transactions, state)
    without_index = disk.copy()
    without_index.names.pop(f"{PATH}.index", None)
    if read_all(without_index, readonly=random.random() < 0.5) != (transactions, state):
        raise Violation("opened without an index the database is another one")
    settle(settled)
    if read_all(settled) != (transactions, state):
        raise Violation("after its tail was settled the database is another one")
    verify(random.choice((disk, settled)))


def verify(disk: SimulatedDisk) -> None:
    findings = [
        finding
        for finding in verify_file(PATH, SimulatedSystem(disk))
        # An index that is refused as a whole changes no answer: such are left by packs and crashes.
        if "is not used" not in finding.problem and "cannot be used" not in finding.problem
    ]
    if findings:
        raise Violation(f"verify finds {findings}")


def read_all(
    disk: SimulatedDisk, *, readonly: bool = False
) -> tuple[list[CommittedTransaction], State]:
    storage = FileStorage(PATH, readonly=readonly, system=SimulatedSystem(disk))
    transactions = list(storage.transactions())
    oids = sorted({oid for transaction in transactions for oid in transaction.oids})
    found = storage.snapshot().load_many(oids)
    state = {oid: read_record(revision) for oid, revision in found}
    storage.close()
    return transactions, state


def settle(disk: SimulatedDisk) -> None:
    storage = FileStorage(PATH, system=SimulatedSystem(disk))
    storage.find(0)
    storage.close()
