"""Several simulated processes on one disk, interleaved at each call of the file seam.

`Explorer` runs them under one seed.  A process is production code in a greenlet, which is suspended
before each call of its `SimulatedSystem`.  Invariants: a run depends on its seed alone; a process
that was killed does nothing any more, whatever its `except` and `finally` clauses try.
"""

import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from greenlet import getcurrent, greenlet

from tests.simulation.disk import ProcessKilled, SimulatedDisk, SimulatedSystem

__all__ = ["CHANGES", "Disaster", "DisasterKind", "Explorer", "Process", "Violation"]

DisasterKind = Literal["kill", "power cut", "failing commit"]
STEPS_SHOWN = 25
STEPS_MAX = 20_000
CHANGES: dict[str | None, int] = {
    "append": 20,
    "create": 2,
    "link": 1,
    "lock": 14,
    "rename": 1,
    "sync": 10,
    "sync_directory": 3,
    "unlink": 1,
    "unlock": 8,
    "write": 8,
    None: 50,
}
"""The calls before which disasters come (None: before any of them), and the largest count of them.
Before other calls a process leaves what it left after the last one of these."""
HOLD_MAX = 40
"""For so many steps at most a process is held up before it is struck."""
PAUSE_MAX = 12
"""Who waits is not asked for up to so many steps of others."""


class Violation(Exception):  # noqa: N818 (what is sought, and not only an error)
    """A promise was broken."""


class ProcessSystem(SimulatedSystem):
    """What one process has of the disk."""

    failing_commit: Random | None = None
    """Set, the sync of its next commit fails: it decides what arrives all the same."""
    has_failed = False
    """Whether a sync has failed."""
    _appended = -1
    """What was appended to last."""

    def read(self, fd: int, size: int, offset: int) -> bytes:
        descriptor = self._descriptors.get(fd)
        if descriptor is not None and descriptor.append:
            content = descriptor.inode.content[offset : offset + size]
            if len(content) == size:  # no step, as this never changes: it does not matter when
                return bytes(content)
        return super().read(fd, size, offset)

    def append(self, fd: int, content: bytes | memoryview) -> int:
        self._appended = fd
        return super().append(fd, content)

    def unlock(self, fd: int) -> None:
        self._appended = -1
        super().unlock(fd)

    def sync(self, fd: int) -> None:
        descriptor = self._descriptors.get(fd)
        if descriptor and fd == self._appended and descriptor in descriptor.inode.lock:
            self.failing_sync, self.failing_commit = self.failing_commit, None
        try:
            super().sync(fd)
        except OSError:
            self.has_failed = True
            raise


class Process:
    """One simulated process."""

    def __init__(
        self, explorer: "Explorer", name: str, program: Callable[["Process"], None], start: int
    ) -> None:
        self.name = name
        self.random = Random(explorer.random.random())
        self.failure: str | None = None
        """The traceback of what its program raised."""
        self.wakes_at = start
        """At which step of the explorer it may go on."""
        self.steps: deque[str] = deque(maxlen=STEPS_SHOWN)
        """The last ones, and at which steps of the explorer."""
        self.system = ProcessSystem(
            explorer.disk, explorer.next_pid(), self._suspend, portion=self._portion
        )
        self._explorer = explorer
        self._program = program
        self._greenlet = greenlet(self._run)

    def resume(self) -> str | None:
        """Let it do its next call, up to the one after that: its name, or None at the end."""
        name: str | None = self._greenlet.switch()
        return name

    def kill(self) -> None:
        self.system.kill()
        if self._greenlet:
            self._greenlet.throw(ProcessKilled)

    def _run(self) -> None:
        try:
            self._program(self)
        except ProcessKilled:
            pass
        except BaseException:
            if not self.system.killed:
                self.failure = traceback.format_exc()
        # A process that ends leaves nothing open, whatever refers to its files still.
        self.system.kill()

    def _suspend(self, name: str) -> None:
        if getcurrent() is not self._greenlet:
            return  # the explorer cleans up
        if name == "pause":
            self.wakes_at = self._explorer.steps + self.random.randrange(PAUSE_MAX)
        self.steps.append(f"{self._explorer.steps} {name}")
        self._explorer.scheduler.switch(name)

    def _portion(self, size: int) -> int:
        """Writes may be seen, and interrupted, half done."""
        if size > 1 and self.random.random() < self._explorer.short_writes:
            return self.random.randrange(1, size)
        return size


@dataclass(frozen=True, slots=True)
class Disaster:
    """What befalls a process when it is about to do a call, or everybody."""

    kind: DisasterKind
    call: str | None
    """None: any of `CHANGES`."""
    count: int
    """At so many such calls after the last disaster."""

    def is_due(self, seen: Counter[str]) -> bool:
        return (seen.total() if self.call is None else seen[self.call]) >= self.count


class Explorer:
    """Runs processes on a disk until all have ended, or the power fails."""

    def __init__(self, disk: SimulatedDisk, random: Random) -> None:
        self.disk = disk
        self.random = random
        self.processes: list[Process] = []
        self.steps = 0
        self.disasters: Counter[DisasterKind] = Counter()
        """What kinds have come, and how often."""
        self.short_writes = random.choice((0.0, 0.3))
        self._stickiness = random.choice((0.0, 0.5, 0.9))
        """How likely it is that the same process goes on."""
        self._pids = 0
        self.scheduler = getcurrent()
        """Where processes switch to."""

    def next_pid(self) -> int:
        self._pids += 1
        return self._pids

    def start(self, name: str, program: Callable[[Process], None], at: int = 0) -> None:
        """Have a process, which begins at this step or later."""
        self.processes.append(Process(self, name, program, at))

    def run(self, disasters: Sequence[Disaster] = ()) -> bool:
        """Run all processes, in some order: whether the power failed.

        disasters: come one after the other.  Raises Violation when a process fails.
        """
        running = list(self.processes)
        try:
            return self._run(running, deque(disasters))
        finally:
            for process in running:
                process.kill()

    def _run(self, running: list[Process], disasters: deque[Disaster]) -> bool:
        process = None
        struck: Process | None = None
        seen: Counter[str] = Counter()
        while running:
            if struck and (struck.wakes_at <= self.steps or not self._awake(running)):
                if self._strike(struck, disasters.popleft()):
                    return True
                if struck.system.killed:
                    running.remove(struck)
                struck = None
                continue
            process = self._choose(running, process)
            call = process.resume()
            self.steps += 1
            if call is None:
                running.remove(process)
                if process.failure is not None:
                    raise Violation(f"{process.name} failed:\n{process.failure}")
            elif call in CHANGES and disasters and not struck:
                seen[call] += 1
                if disasters[0].is_due(seen):
                    seen.clear()
                    struck = process  # and others go on for a while, and see what it has left
                    process.wakes_at = self.steps + self.random.choice((0, 10, HOLD_MAX))
            if self.steps > STEPS_MAX:
                raise Violation("this has no end")
        return False

    def _strike(self, process: Process, disaster: Disaster) -> bool:
        """Let a disaster happen: whether it is the last one."""
        process.steps.append(f"{self.steps} {disaster.kind.upper()}")
        process.wakes_at = self.steps
        self.disasters[disaster.kind] += 1
        match disaster.kind:
            case "kill":
                process.kill()
            case "failing commit":
                process.system.failing_commit = self.random
        return disaster.kind == "power cut"

    def _awake(self, running: list[Process]) -> list[Process]:
        return [process for process in running if process.wakes_at <= self.steps]

    def _choose(self, running: list[Process], last: Process | None) -> Process:
        if (
            last is not None
            and last in running
            and last.wakes_at <= self.steps
            and self.random.random() < self._stickiness
        ):
            return last
        awake = self._awake(running)
        if not awake:
            awake = [min(running, key=lambda process: process.wakes_at)]
        return awake[int(self.random.random() * len(awake))]

    def describe(self) -> str:
        """The last steps of each process."""
        return "\n".join(
            f"{process.name}: {', '.join(process.steps)}" for process in self.processes
        )
