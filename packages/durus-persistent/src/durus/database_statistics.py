"""What the transactions of a `Database` have done in this process."""

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from durus.error import ConflictError, format_oid
from durus.fork_locks import renew_lock_in_children
from durus.interfaces import Tid

__all__ = ["ConflictedObject", "DatabaseStatistics", "StatisticsCollector"]

_OBJECTS_MAX: Final = 10_000
_HOTTEST: Final = 10


@dataclass(frozen=True, slots=True)
class ConflictedObject:
    """An object about which commits conflicted."""

    oid: bytes
    class_name: str
    conflicts: int

    def __str__(self) -> str:
        return f"{self.class_name} {format_oid(self.oid)}: {self.conflicts}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseStatistics:
    """What happened in this process since the database was opened."""

    commits: int
    """Transactions that stored something."""
    reads: int
    """Transactions that ended without a change."""
    aborts: int
    conflicts: int
    conflicts_by_class: dict[str, int] = field(default_factory=dict)
    """With its module; the most first.  "?" is what the storage does not tell."""
    hottest: tuple[ConflictedObject, ...] = ()
    """The objects with most conflicts."""
    connections: int
    """Idle ones."""
    cached_objects: int
    """In these, ghosts included."""
    cached_bytes: int
    """What the records of those loaded take, about."""
    loads: int
    """How many states the idle connections have loaded."""


class StatisticsCollector:
    """Counts, for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        renew_lock_in_children(self)
        self.commits = self.reads = self.aborts = self.conflicts = 0
        self._by_class: Counter[str] = Counter()
        self._by_object: Counter[tuple[bytes, str]] = Counter()

    def note_commit(self, tid: Tid | None) -> None:
        with self._lock:
            if tid is None:
                self.reads += 1
            else:
                self.commits += 1

    def note_abort(self) -> None:
        with self._lock:
            self.aborts += 1

    def note_conflict(self, error: ConflictError) -> None:
        named = [(conflict.oid, conflict.class_name or "?") for conflict in error.conflicts]
        with self._lock:
            self.conflicts += 1
            self._by_class.update({name for _, name in named} or {"?"})
            self._by_object.update(named)
            if len(self._by_object) > _OBJECTS_MAX:
                self._by_object = Counter(dict(self._by_object.most_common(_OBJECTS_MAX // 2)))

    def by_class(self) -> dict[str, int]:
        with self._lock:
            return dict(self._by_class.most_common())

    def hottest(self) -> tuple[ConflictedObject, ...]:
        with self._lock:
            return tuple(
                ConflictedObject(oid, name, count)
                for (oid, name), count in self._by_object.most_common(_HOTTEST)
            )
