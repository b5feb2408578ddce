"""What the workloads ask of a peer: one of the databases that are compared.

The adapters in `bench.peers` keep these Protocols, each for its own database; that is all that
differs between them, so every peer runs the same workload.  Invariant: what an adapter adds to a
call of the database is one call of a Python function at most.
"""

from collections.abc import Generator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

__all__ = [
    "FIRST_NUMBER",
    "TEXT",
    "Batch",
    "Database",
    "Figures",
    "Item",
    "NotMeasuredError",
    "Peer",
    "Rounds",
    "Session",
    "Settings",
]

FIRST_NUMBER = 1_000_000
"""Numbers of items count from here, so that the pickles of all of them have the same size."""

TEXT = "a small object of a benchmark"

Figures = Mapping[str, float]
"""What one round has measured, by name; see `bench.benchmarks` for names and units."""

Rounds = Generator[Figures]
"""A workload under way.  First it yields nothing but {}: everything is prepared.  Each further
step measures a round."""


class NotMeasuredError(Exception):
    """The peer cannot do this; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a workload works on, and how much of it."""

    database: str
    """The path of a file with `size` objects, or of one to be made if `size` is 0."""
    size: int
    """The number of objects in the file."""
    count: int
    """The number of operations in one round."""
    member: int = 0
    """Which of several processes that do the same at the same time this is."""


class Item(Protocol):
    """A small persistent object: a number and a short text."""

    number: int
    text: str

    @property
    def _p_oid(self) -> bytes | None:
        """Its oid; None until it is committed."""


class Batch(Protocol):
    """A persistent object that refers to many items, and to the batch before it."""

    items: list[Any]
    previous: Any


class Session(Protocol):
    """A connection, with an empty cache of its own when it is new."""

    @property
    def root(self) -> MutableMapping[str, Any]: ...

    def commit(self) -> object: ...

    def get(self, oid: bytes) -> Any:
        """The object with this oid, loaded or a ghost."""
        ...

    def close(self) -> None: ...


class Database(Protocol):
    """An open file."""

    def connect(self) -> Session: ...

    def pack(self) -> object:
        """Drop older revisions, and what cannot be reached."""
        ...

    def close(self) -> None: ...


class Peer(Protocol):
    """What the module of an adapter gives as `PEER`."""

    @property
    def lacks(self) -> Mapping[str, str]:
        """The names of the workloads that it cannot do, and why."""
        ...

    @property
    def distributions(self) -> Sequence[str]:
        """What is installed for it: their versions are reported."""
        ...

    @property
    def c_module(self) -> str:
        """The module that is there if its C part is."""
        ...

    def open(self, path: Path) -> Database:
        """Open a file, and make it if it is not there."""
        ...

    def make_item(self, number: int, text: str) -> Item: ...

    def make_batch(self, items: list[Item], previous: object) -> Batch: ...

    def make_entry(self, number: int, text: str, data: str, previous: object) -> object:
        """A small persistent object: an int, two short strings, a longer one, a reference."""
        ...

    def back_up(self, path: Path, folder: Path) -> object:
        """Make a full backup of a file."""
        ...
