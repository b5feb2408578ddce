"""Where the time of a small commit goes: what the operating system takes, call by call, and Python.

Durus 5 only: its FileStorage makes all of its system calls through `durus.file_system.System`, so
one that looks at the clock takes its place.  The parts add up to the whole, and the clock itself
costs some 0.2 us for each call.
"""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from bench.peer import FIRST_NUMBER, TEXT, Rounds, Settings
from bench.peers.durus import DurusSession
from bench.peers.durus5 import PEER
from durus.file_storage import FileStorage
from durus.file_system import OperatingSystem, System
from durus.interfaces import CommitResult, Transaction

__all__ = ["Span", "budget", "split", "sum_up"]


class Span(NamedTuple):
    """Something that took time, on the clock of `time.perf_counter`, in seconds."""

    name: str
    start: float
    end: float


class _TimedSystem:
    """An operating system that notes when each call began and ended.

    It knows no call by name, so that it need not change with `System`.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._system = OperatingSystem()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._system, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                self.spans.append(Span(name, start, time.perf_counter()))

        setattr(self, name, timed)  # the next time it is found without coming here
        return timed


class _TimedStorage(FileStorage):
    commits: list[Span]

    def commit(self, transaction: Transaction) -> CommitResult:
        start = time.perf_counter()
        result = super().commit(transaction)
        self.commits.append(Span("commit", start, time.perf_counter()))
        return result


def split(whole: Span, commit: Span, calls: Sequence[Span]) -> dict[str, float]:
    """The parts of one commit, in seconds, in the order in which they happened first.

    whole: Connection.commit.
    commit: the storage's commit in it.
    calls: the system calls.
    """
    parts: dict[str, float] = {"Python: objects, pickling": commit.start - whole.start}
    position = commit.start
    seen: dict[str, int] = {}
    for call in calls:
        if call.start >= commit.end > position:
            parts["Python: storage, at last"] = commit.end - position
            position = commit.end
        seen[call.name] = seen.get(call.name, 0) + 1
        name = call.name if seen[call.name] == 1 else f"{call.name} {seen[call.name]}"
        parts[f"Python: until {name}"] = call.start - position
        parts[f"system: {name}"] = call.end - call.start
        position = call.end
    if commit.end > position:
        parts["Python: storage, at last"] = commit.end - position
        position = commit.end
    parts["Python: objects, next transaction"] = whole.end - position
    return parts


def sum_up(commits: Sequence[dict[str, float]]) -> dict[str, float]:
    """Averages in us, and what Python and the system take in all.

    Parts that fewer than half of the commits have, such as writing an index, are not told apart.
    """
    counts = Counter(name for parts in commits for name in parts)
    typical = [name for name, count in counts.items() if 2 * count >= len(commits)]
    averages = dict.fromkeys([*typical, "Python: now and then", "system: now and then"], 0.0)
    for parts in commits:
        for name, elapsed_s in parts.items():
            kind = name.partition(":")[0]
            counted_as = name if name in averages else f"{kind}: now and then"
            averages[counted_as] += elapsed_s / len(commits) * 1e6
    python = sum(us for name, us in averages.items() if name.startswith("Python"))
    system = sum(us for name, us in averages.items() if name.startswith("system"))
    return {"all": python + system, "Python": python, "system": system, **averages}


def budget(settings: Settings) -> Rounds:
    """As `workloads.commit`, with the clock in the middle of it."""
    system = _TimedSystem()
    storage = _TimedStorage(Path(settings.database), system=cast(System, system))
    storage.commits = []
    try:
        session = DurusSession(storage)
        session.root["item"] = item = PEER.make_item(FIRST_NUMBER, TEXT)
        session.commit()
        yield {}
        while True:
            commits: list[dict[str, float]] = []
            for _ in range(settings.count):
                storage.commits.clear()
                system.spans.clear()
                item.number += 1
                start = time.perf_counter()
                session.commit()
                whole = Span("whole", start, time.perf_counter())
                commits.append(split(whole, storage.commits[0], system.spans))
            yield sum_up(commits)
    finally:
        storage.close()
