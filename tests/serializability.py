"""Whether transactions that ran at the same time are serializable: one after the other, as if.

The history is what every attempt of a transaction has done, step by step, and what it has seen.
It is checked in three ways:

    replay  All steps of the committed transactions are done again on a plain dict, in the order of
            their tids.  Each must see there what it has seen.  What only read (snapshots, and
            attempts that were aborted or conflicted) must have seen the state of one moment: the
            one that its tid names, or, when that is not known, one that is possible by the clock.
    clock   A transaction that began after another was committed sees it, and has a later tid.
    graph   Of each version of an item it is known who wrote it and who read it.  Who must come
            before whom (ww, wr and rw dependencies) has no cycle.  Counters and queues are left to
            the replay, for their states do not tell their writers.

Values that are written are unique; whoever reads one so names its writer.  But an undo writes one
again, and that an item was absent does not say who removed it: the latest who can have done it is
taken.
"""

import bisect
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Literal

from durus.interfaces import Tid

__all__ = ["Attempt", "Key", "Rollback", "Savepoint", "State", "Step", "Undo", "check"]

Key = tuple[str, int]
"""An item: where it is, and its number there."""

State = dict[Key, Any]
"""The model of a database; absent items are not in it."""


class Step(ABC):
    """Something that a transaction does, in a database and in the model."""

    __slots__ = ()

    @abstractmethod
    def do(self, root: Any) -> Any:
        """Do it; what was seen."""

    @abstractmethod
    def model(self, state: State) -> Any:
        """Do it in the model; what is to be seen."""

    def reads(self, seen: Any) -> State:
        """The values of the items that it has read; None for those that were absent."""
        return {}

    def writes(self, seen: Any) -> State:
        """The values of the items that it has written; None for those that it has removed."""
        return {}


class _Mark(Step):
    """Only says where in a transaction something happened."""

    def do(self, root: Any) -> None:
        raise NotImplementedError

    def model(self, state: State) -> None:
        raise NotImplementedError


class Savepoint(_Mark):
    """A savepoint was made."""


@dataclass(frozen=True)
class Rollback(_Mark):
    """The transaction went back to one of its savepoints; they are counted from 0."""

    number: int


@dataclass(frozen=True)
class Undo(Step):
    """A transaction that takes back an earlier one; nobody has changed the same since."""

    undone: "Attempt"

    def do(self, root: Any) -> None:
        raise NotImplementedError

    def model(self, state: State) -> None:
        state.update(self.undone.before)
        for key, value in self.undone.before.items():
            if value is None:
                del state[key]

    def writes(self, seen: None) -> State:
        return self.undone.before


@dataclass
class Attempt:
    """What a transaction, a snapshot, or one attempt of `Database.run` has done."""

    name: str
    begun_ns: int
    """When it began, by a clock that all processes share."""
    seen: Tid | None = None
    """The newest transaction that it saw, others' that is; None if that is not known."""
    is_past: bool = False
    """Whether it asked for what there was earlier."""
    steps: list[tuple[Step, Any]] = field(default_factory=list)
    """What was done, and what was seen."""
    outcome: Literal["committed", "aborted", "conflict"] = "aborted"
    tid: Tid | None = None
    """That of its commit; None if it has stored nothing."""
    mark: int | None = None
    """What tells which transaction of the server's it was; see `tests.random_transactions`."""
    committing_ns: int = 0
    ended_ns: int = 0
    before: State = field(default_factory=dict, repr=False)
    """What it has changed in the model, as it was before; None for what was absent."""

    def replay(self, state: State) -> Iterator[str]:
        """Do it in the model, which changes; what it has seen and should not have seen."""
        before = dict(state)
        saved: list[State] = []
        for step, seen in self.steps:
            if isinstance(step, Savepoint):
                saved.append(dict(state))
            elif isinstance(step, Rollback):
                state.clear()
                state.update(saved[step.number])
                del saved[step.number + 1 :]
            elif (expected := step.model(state)) != seen:
                yield f"{self.name} (tid {self.tid}): {step} has seen {seen}, not {expected}"
        changed = [key for key in before | state if before.get(key) != state.get(key)]
        self.before = {key: before.get(key) for key in changed}

    def items(self) -> tuple[dict[Key, Any], dict[Key, Any]]:
        """The items that it read of others, and those that it wrote: their values, or None."""
        reads: State = {}
        writes: State = {}
        saved: list[State] = []
        for step, seen in self.steps:
            if isinstance(step, Savepoint):
                saved.append(dict(writes))
            elif isinstance(step, Rollback):
                writes = dict(saved[step.number])
                del saved[step.number + 1 :]
            else:
                for key, value in step.reads(seen).items():
                    if key not in writes:
                        reads.setdefault(key, value)
                writes.update(step.writes(seen))
        return reads, writes


def check(attempts: Iterable[Attempt], initial: State) -> list[str]:
    """The anomalies of a history, as texts; none if it is serializable.

    initial: what was there at the beginning.
    """
    found = list(attempts)
    commits = sorted(
        (attempt for attempt in found if attempt.tid is not None), key=lambda a: a.tid or 0
    )
    replay = _Replay(found, commits, initial)
    anomalies = [*_check_tids(found, commits), *replay.check()]
    rest = [attempt for attempt in found if attempt.tid is None and not attempt.is_past]
    moments = [replay.moments.get(id(attempt), len(commits)) for attempt in rest]
    graph = _Graph([*commits, *rest], [*range(len(commits)), *moments], initial)
    return [*anomalies, *graph.check(len(commits))]


def _check_tids(attempts: list[Attempt], commits: list[Attempt]) -> Iterator[str]:
    for one, other in pairwise(commits):
        if one.tid == other.tid:
            yield f"{one.name} and {other.name} have the same tid {one.tid}"
    for attempt in attempts:
        if attempt.outcome == "committed" and attempt.tid is None and attempt.items()[1]:
            yield f"{attempt.name} has stored nothing, but has written {attempt.items()[1]}"
        if attempt.outcome != "committed" and attempt.tid is not None:
            yield f"{attempt.name} has tid {attempt.tid}, but its outcome is {attempt.outcome}"


class _Replay:
    """The replay on a model, and the clock."""

    def __init__(self, attempts: list[Attempt], commits: list[Attempt], initial: State) -> None:
        self.attempts = attempts
        self.commits = commits
        self.state = dict(initial)
        self.moments: dict[int, int] = {}
        """How many commits there were when an attempt, by its id(), has seen what it has seen."""
        self._tids = [commit.tid or 0 for commit in commits]
        by_end = sorted((commit.ended_ns, place) for place, commit in enumerate(commits))
        self._ends = [ended_ns for ended_ns, _ in by_end]
        # How many commits, in the order of their tids, there were at least at each end.
        self._counts: list[int] = []
        for _, place in by_end:
            self._counts.append(max(place + 1, self._counts[-1] if self._counts else 0))
        # When the first of those that have this place, or a later one, can have been seen.
        self._begun = list(accumulate((c.committing_ns for c in reversed(commits)), min))[::-1]

    def check(self) -> Iterator[str]:
        readers: dict[int, list[Attempt]] = defaultdict(list)
        wanderers: dict[int, list[tuple[int, Attempt]]] = defaultdict(list)
        for attempt in self.attempts:
            first = self._count_before(attempt.begun_ns)
            if attempt.seen is None:
                if attempt.tid is None:
                    last = bisect.bisect_left(self._begun, attempt.ended_ns)
                    wanderers[first].append((last, attempt))
                continue
            count = bisect.bisect_right(self._tids, attempt.seen)
            readers[count].append(attempt)
            self.moments[id(attempt)] = count
            if count < first and not attempt.is_past:
                missed = self.commits[first - 1]
                yield (
                    f"{attempt.name} has seen tid {attempt.seen}, but {missed.name} "
                    f"(tid {missed.tid}) was committed before it began"
                )
        searching: list[tuple[int, Attempt]] = []
        for count in range(len(self.commits) + 1):
            if count:
                commit = self.commits[count - 1]
                if count <= self._count_before(commit.committing_ns):
                    yield f"{commit.name} has a tid before that of an earlier commit"
                yield from commit.replay(self.state)
            for attempt in readers.pop(count, ()):
                yield from attempt.replay(dict(self.state))
            searching += wanderers.pop(count, ())
            remaining = []
            for last, attempt in searching:
                if not any(attempt.replay(dict(self.state))):
                    self.moments[id(attempt)] = count
                elif last > count:
                    remaining.append((last, attempt))
                else:
                    yield f"{attempt.name} has seen what there was at no moment: {attempt.steps}"
            searching = remaining

    def _count_before(self, moment_ns: int) -> int:
        """How many commits there were at this moment, at least."""
        ended = bisect.bisect_left(self._ends, moment_ns)
        return self._counts[ended - 1] if ended else 0


@dataclass(frozen=True, slots=True)
class _Edge:
    """One transaction that must come before another one."""

    kind: Literal["ww", "wr", "rw"]
    key: Key
    target: int


class _Graph:
    """The dependencies; transactions are named by their numbers, and -1 is the initial state."""

    INITIAL: ClassVar[int] = -1

    def __init__(self, attempts: list[Attempt], places: list[int], initial: State) -> None:
        """attempts: first those that were committed, in the order of their tids.

        places: how many commits each of them has seen.
        """
        self.attempts = attempts
        self._places = places
        self._items = [attempt.items() for attempt in self.attempts]
        self._versions: dict[Key, list[int]] = defaultdict(lambda: [self.INITIAL])
        """The numbers of those who wrote an item, in the order of their tids."""
        self._writers: dict[tuple[Key, Any], list[int]] = defaultdict(list)
        """The places in that list of those who wrote this value of an item (None: removed it)."""
        self._edges: list[list[_Edge]] = [[] for _ in self.attempts]
        self._initial = initial

    def check(self, commits: int) -> Iterator[str]:
        """commits: so many of the attempts are."""
        self._list_versions(commits)
        for number, (reads, _) in enumerate(self._items):
            for key, value in reads.items():
                place = self._find_version(number, key, value)
                if place is None:
                    yield (
                        f"{self.attempts[number].name} has read {value} in {key}, which nobody has "
                        "committed"
                    )
                else:
                    self._add_reader(number, key, place)
        cycle = self._find_cycle()
        if cycle:
            yield f"cycle: {' '.join(cycle)}"

    def _list_versions(self, commits: int) -> None:
        for key, value in self._initial.items():
            self._writers[key, value].append(0)
        for number in range(commits):
            for key, value in self._items[number][1].items():
                versions = self._versions[key]
                self._add_edge("ww", key, versions[-1], number)
                self._writers[key, value].append(len(versions))
                versions.append(number)

    def _find_version(self, number: int, key: Key, value: Any) -> int | None:
        places = self._writers[key, value]
        if value is None and key not in self._initial:
            places = [0, *places]
        if not places:
            return None
        writers = [self._versions[key][place] for place in places]
        found = bisect.bisect_left(writers, self._places[number])
        return places[max(0, found - 1)]

    def _add_reader(self, number: int, key: Key, place: int) -> None:
        versions = self._versions[key]
        self._add_edge("wr", key, versions[place], number)
        if place + 1 < len(versions):
            self._add_edge("rw", key, number, versions[place + 1])

    def _add_edge(self, kind: Literal["ww", "wr", "rw"], key: Key, source: int, to: int) -> None:
        if source not in (self.INITIAL, to):
            self._edges[source].append(_Edge(kind, key, to))

    def _find_cycle(self) -> list[str]:
        """A cycle, if there is one: transactions, and what leads from one to the next."""
        counts = [0] * len(self.attempts)
        for edges in self._edges:
            for edge in edges:
                counts[edge.target] += 1
        free = [number for number, count in enumerate(counts) if not count]
        while free:
            for edge in self._edges[free.pop()]:
                counts[edge.target] -= 1
                if not counts[edge.target]:
                    free.append(edge.target)
        remaining = {number for number, count in enumerate(counts) if count}
        # What is left is on a cycle, or behind one: go backwards until one is met again.
        sources = {
            edge.target: (number, edge)
            for number in remaining
            for edge in self._edges[number]
            if edge.target in remaining
        }
        if not remaining:
            return []
        number, visited = next(iter(remaining)), set[int]()
        while number not in visited:
            visited.add(number)
            number = sources[number][0]
        text, end = [self.attempts[number].name], number
        while True:
            number, edge = sources[number]
            place = f"{edge.key[0]} {edge.key[1]}"
            text[:0] = [self.attempts[number].name, f"--{edge.kind} {place}-->"]
            if number == end:
                return text
