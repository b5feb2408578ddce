"""Cut the power at every point of a recording, and look at what may be left.

`explore` counts states that are distinct, by what the files are named and contain.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from durus.file_storage import FileStorage
from tests.power_cuts.checks import Expectation, ids_of
from tests.power_cuts.machine import PATH, Machine
from tests.power_cuts.recording import DiskOperation, Operation
from tests.power_cuts.states import Disk, State
from tests.simulation.disk import SimulatedSystem

__all__ = ["Exploration", "explore"]

_PASSES_MAX: Final = 50


@dataclass(slots=True)
class Exploration:
    """What was found."""

    digests: set[bytes] = field(default_factory=set)
    checked: set[tuple[bytes, int, int]] = field(default_factory=set)
    """A state, with how much had been promised, and refused, until then."""
    violations: list[str] = field(default_factory=list)

    @property
    def distinct(self) -> int:
        return len(self.digests)

    def look_at(self, place: int, state: State, expectation: Expectation) -> None:
        digest = state.digest()
        self.digests.add(digest)
        key = digest, len(expectation.promised), len(expectation.refused)
        if key not in self.checked:
            self.checked.add(key)
            violation = expectation.find_violation(state)
            if violation:
                self.violations.append(f"power cut after operation {place}: {violation}")


def explore(
    workload: Callable[[Machine], None], random: Random, others: int, **rules: Any
) -> Exploration:
    """Record a workload; cut the power after each operation, and then in so many ways more.

    rules: options of `RecordingSystem`, which break rules.
    """
    machine = Machine(random, **rules)
    workload(machine)
    reader = FileStorage(PATH, readonly=True, system=SimulatedSystem(machine.disk))
    order = ids_of(reader)
    reader.close()
    operations = machine.recording.operations
    found = Exploration()
    for place, disk, expectation in cut(operations, order):
        for state in disk.extremes():
            found.look_at(place, state, expectation)
    wanted = found.distinct + others
    for _ in range(_PASSES_MAX):
        # Not all at one place: in each pass some, here and there.
        for place, disk, expectation in cut(operations, order):
            if random.random() < 0.5:
                found.look_at(place, disk.torn(random), expectation)
            if random.random() < 0.1:
                found.look_at(place, disk.reordered(random), expectation)
            if found.distinct >= wanted:
                return found
    return found


def cut(operations: list[Operation], order: list[int]) -> Iterator[tuple[int, Disk, Expectation]]:
    """After each operation: its number, the disk, and what was said until then."""
    disk, expectation = Disk(), Expectation(order)
    for place, operation in enumerate(operations):
        if isinstance(operation, DiskOperation):
            disk.do(operation)
        else:
            expectation.note(operation)
        yield place, disk, expectation
