"""What random transactions do: the objects of a small database, and steps on them.

Each step can be done in the database and in a plain dict; see `tests.serializability`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from durus.btree import BNode, BTree
from durus.counter import Counter
from durus.persistent import Persistent
from durus.persistent_dict import PersistentDict
from durus.persistent_queue import PersistentQueue
from tests.serializability import State, Step

__all__ = ["INITIAL", "ChangeInside", "Mark", "Root", "choose_step", "state_of"]

CELLS = 6
KEYS = 16
COUNTERS = 2
QUEUES = 2
MARKS = 16
MAPPINGS = ("box", "tree", "houses")
TREES = ("tree", "houses")


class Cell(Persistent):
    def __init__(self, value: int) -> None:
        self.value = value


class Mark(Persistent):
    """A worker writes one along with each transaction, where its tids do not tell the order."""

    def __init__(self) -> None:
        self.value = 0


class Root(Persistent):
    def __init__(self) -> None:
        self.cells = [Cell(-1 - number) for number in range(CELLS)]
        self.box = PersistentDict[int, int]()
        self.tree: BTree[int, int] = BTree(BNode)  # the smallest nodes: they split and merge often
        self.houses: BTree[int, Cell] = BTree(BNode)
        self.counters = [Counter() for _ in range(COUNTERS)]
        self.queues: tuple[PersistentQueue[int], PersistentQueue[Cell]]  # numbers; and cells
        self.queues = (PersistentQueue(), PersistentQueue())
        self.marks = [Mark() for _ in range(MARKS)]


INITIAL: State = {
    **{("cell", number): -1 - number for number in range(CELLS)},
    **{("counter", number): 0 for number in range(COUNTERS)},
    **{("queue", number): () for number in range(QUEUES)},
}


def state_of(root: Root) -> State:
    """All that is in the database, as the model has it."""
    houses = {key: cell.value for key, cell in root.houses.items()}
    mappings = {"box": root.box, "tree": root.tree, "houses": houses}
    return {
        **{("cell", number): cell.value for number, cell in enumerate(root.cells)},
        **{("counter", number): counter.value for number, counter in enumerate(root.counters)},
        **{("queue", number): _queued(root, number) for number in range(QUEUES)},
        **{(name, key): value for name, items in mappings.items() for key, value in items.items()},
    }


def _queued(root: Root, number: int) -> tuple[int, ...]:
    return tuple(_value_of(item) for item in root.queues[number])


# What can be done


@dataclass(frozen=True)
class ReadCell(Step):
    number: int

    def do(self, root: Root) -> int:
        return root.cells[self.number].value

    def model(self, state: State) -> Any:
        return state["cell", self.number]

    def reads(self, seen: int) -> State:
        return {("cell", self.number): seen}


@dataclass(frozen=True)
class WriteCell(Step):
    number: int
    value: int

    def do(self, root: Root) -> None:
        root.cells[self.number].value = self.value

    def model(self, state: State) -> None:
        state["cell", self.number] = self.value

    def writes(self, seen: None) -> State:
        return {("cell", self.number): self.value}


@dataclass(frozen=True)
class _OfMapping(Step):
    """In `box`, a PersistentDict; `tree`, a BTree of numbers; or `houses`, a BTree of cells."""

    name: str

    def mapping(self, root: Root) -> Any:
        return getattr(root, self.name)

    def items(self, state: State) -> list[tuple[int, Any]]:
        return sorted((key, value) for (name, key), value in state.items() if name == self.name)


def _value_of(found: Any) -> Any:
    return found.value if isinstance(found, Cell) else found


@dataclass(frozen=True)
class Get(_OfMapping):
    key: int

    def do(self, root: Root) -> Any:
        return _value_of(self.mapping(root).get(self.key))

    def model(self, state: State) -> Any:
        return state.get((self.name, self.key))

    def reads(self, seen: Any) -> State:
        return {(self.name, self.key): seen}


@dataclass(frozen=True)
class Has(_OfMapping):
    key: int

    def do(self, root: Root) -> bool:
        return self.key in self.mapping(root)

    def model(self, state: State) -> bool:
        return (self.name, self.key) in state

    def reads(self, seen: bool) -> State:
        return {} if seen else {(self.name, self.key): None}


@dataclass(frozen=True)
class Put(_OfMapping):
    key: int
    value: int

    def do(self, root: Root) -> None:
        made = Cell(self.value) if self.name == "houses" else self.value
        self.mapping(root)[self.key] = made

    def model(self, state: State) -> None:
        state[self.name, self.key] = self.value

    def writes(self, seen: None) -> State:
        return {(self.name, self.key): self.value}


@dataclass(frozen=True)
class Remove(_OfMapping):
    key: int

    def do(self, root: Root) -> Any:
        return _value_of(self.mapping(root).pop(self.key, None))

    def model(self, state: State) -> Any:
        return state.pop((self.name, self.key), None)

    def reads(self, seen: Any) -> State:
        return {(self.name, self.key): seen}

    def writes(self, seen: Any) -> State:
        return {} if seen is None else {(self.name, self.key): None}


@dataclass(frozen=True)
class ChangeInside(Step):
    """Change what is in a tree, and not the tree."""

    key: int
    value: int

    def do(self, root: Root) -> bool:
        cell = root.houses.get(self.key)
        if cell is not None:
            cell.value = self.value
        return cell is not None

    def model(self, state: State) -> bool:
        if ("houses", self.key) in state:
            state["houses", self.key] = self.value
        return ("houses", self.key) in state

    def reads(self, seen: bool) -> State:
        return {} if seen else {("houses", self.key): None}

    def writes(self, seen: bool) -> State:
        return {("houses", self.key): self.value} if seen else {}


@dataclass(frozen=True)
class Move(Step):
    """Give a stored object another place."""

    source: int
    target: int
    value: int

    def do(self, root: Root) -> bool:
        cell = root.houses.pop(self.source, None)
        if cell is not None:
            cell.value = self.value
            root.houses[self.target] = cell
        return cell is not None

    def model(self, state: State) -> bool:
        was_there = state.pop(("houses", self.source), None) is not None
        if was_there:
            state["houses", self.target] = self.value
        return was_there

    def reads(self, seen: bool) -> State:
        return {} if seen else {("houses", self.source): None}

    def writes(self, seen: bool) -> State:
        if not seen:
            return {}
        return {("houses", self.source): None, ("houses", self.target): self.value}


@dataclass(frozen=True)
class Range(_OfMapping):
    """All items from `start` on, before `end`."""

    start: int
    end: int

    def do(self, root: Root) -> list[tuple[int, Any]]:
        mapping = self.mapping(root)
        if isinstance(mapping, BTree):
            found = list(mapping.items_range(self.start, self.end))
        else:
            found = sorted(item for item in mapping.items() if self.start <= item[0] < self.end)
        return [(key, _value_of(value)) for key, value in found]

    def model(self, state: State) -> list[tuple[int, Any]]:
        return [item for item in self.items(state) if self.start <= item[0] < self.end]

    def reads(self, seen: list[tuple[int, Any]]) -> State:
        absent: State = {(self.name, key): None for key in range(self.start, self.end)}
        return absent | {(self.name, key): value for key, value in seen}


@dataclass(frozen=True)
class Ends(_OfMapping):
    """The first and the last item."""

    def do(self, root: Root) -> list[tuple[int, Any]]:
        tree = self.mapping(root)
        found = [tree.get_min_item(), tree.get_max_item()] if tree else []
        return [(key, _value_of(value)) for key, value in found]

    def model(self, state: State) -> list[tuple[int, Any]]:
        items = self.items(state)
        return [items[0], items[-1]] if items else []

    def reads(self, seen: list[tuple[int, Any]]) -> State:
        return {(self.name, key): value for key, value in seen}


@dataclass(frozen=True)
class Length(_OfMapping):
    def do(self, root: Root) -> int:
        return len(self.mapping(root))

    def model(self, state: State) -> int:
        return len(self.items(state))


@dataclass(frozen=True)
class ReadCounter(Step):
    number: int

    def do(self, root: Root) -> int:
        return root.counters[self.number].value

    def model(self, state: State) -> Any:
        return state["counter", self.number]


@dataclass(frozen=True)
class Count(Step):
    """Blindly."""

    number: int
    by: int

    def do(self, root: Root) -> None:
        if self.by < 0:
            root.counters[self.number].decrement(-self.by)
        else:
            root.counters[self.number].increment(self.by)

    def model(self, state: State) -> None:
        state["counter", self.number] += self.by


@dataclass(frozen=True)
class CountUpTo(Step):
    limit: int
    number: int

    def do(self, root: Root) -> bool:
        counter = root.counters[self.number]
        is_less = counter.value < self.limit
        if is_less:
            counter.increment()
        return is_less

    def model(self, state: State) -> bool:
        is_less = bool(state["counter", self.number] < self.limit)
        if is_less:
            state["counter", self.number] += 1
        return is_less


@dataclass(frozen=True)
class Reset(Step):
    number: int
    value: int

    def do(self, root: Root) -> None:
        root.counters[self.number].reset(self.value)

    def model(self, state: State) -> None:
        state["counter", self.number] = self.value


@dataclass(frozen=True)
class ReadQueue(Step):
    number: int

    def do(self, root: Root) -> tuple[int, ...]:
        return _queued(root, self.number)

    def model(self, state: State) -> Any:
        return state["queue", self.number]


@dataclass(frozen=True)
class Append(Step):
    """Blindly."""

    number: int
    items: tuple[int, ...]

    def do(self, root: Root) -> None:
        queue: PersistentQueue[Any] = root.queues[self.number]
        made = [Cell(item) for item in self.items] if self.number else list(self.items)
        if len(made) == 1:
            queue.append(made[0])
        else:
            queue.extend(made)

    def model(self, state: State) -> None:
        state["queue", self.number] += self.items


@dataclass(frozen=True)
class TakeFirst(Step):
    number: int
    count: int

    def do(self, root: Root) -> tuple[int, ...]:
        queue = root.queues[self.number]
        return tuple(_value_of(queue.popleft()) for _ in range(min(self.count, len(queue))))

    def model(self, state: State) -> Any:
        items = state["queue", self.number]
        state["queue", self.number] = items[self.count :]
        return items[: self.count]


# Which of it is done

Choice = Callable[[random.Random, "Callable[[], int]"], Step]

_CHOICES: list[tuple[int, Choice]] = [
    (9, lambda r, new: ReadCell(r.randrange(CELLS))),
    (6, lambda r, new: WriteCell(r.randrange(CELLS), new())),
    (6, lambda r, new: Get(r.choice(MAPPINGS), r.randrange(KEYS))),
    (3, lambda r, new: Has(r.choice(MAPPINGS), r.randrange(KEYS))),
    (9, lambda r, new: Put(r.choice(MAPPINGS), r.randrange(KEYS), new())),
    (6, lambda r, new: Remove(r.choice(MAPPINGS), r.randrange(KEYS))),
    (3, lambda r, new: ChangeInside(r.randrange(KEYS), new())),
    (2, lambda r, new: Move(r.randrange(KEYS), r.randrange(KEYS), new())),
    (4, lambda r, new: Range(r.choice(MAPPINGS), *sorted(r.sample(range(KEYS + 1), 2)))),
    (2, lambda r, new: Ends(r.choice(TREES))),
    (2, lambda r, new: Length(r.choice(MAPPINGS))),
    (4, lambda r, new: ReadCounter(r.randrange(COUNTERS))),
    (9, lambda r, new: Count(r.randrange(COUNTERS), r.randrange(-3, 5))),
    (2, lambda r, new: CountUpTo(r.randrange(30), r.randrange(COUNTERS))),
    (1, lambda r, new: Reset(r.randrange(COUNTERS), r.randrange(10))),
    (4, lambda r, new: ReadQueue(r.randrange(QUEUES))),
    (6, lambda r, new: Append(r.randrange(QUEUES), tuple(new() for _ in range(r.randint(1, 3))))),
    (4, lambda r, new: TakeFirst(r.randrange(QUEUES), r.randint(1, 9))),
]
_WEIGHTS = [weight for weight, _ in _CHOICES]
_READS = (ReadCell, Get, Has, Range, Ends, Length, ReadCounter, ReadQueue)


def choose_step(
    choose: random.Random, new_value: Callable[[], int], *, reads_only: bool = False
) -> Step:
    """A step; new_value() is a value that nobody has written."""
    while True:
        ((_, choice),) = choose.choices(_CHOICES, _WEIGHTS)
        step = choice(choose, new_value)
        if not reads_only or isinstance(step, _READS):
            return step
