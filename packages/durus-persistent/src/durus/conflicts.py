"""What a conflict was about: the objects, and who changed them."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from durus.cache import Cache
from durus.class_pickle import name_in_class_pickle
from durus.error import DurusError, format_oid
from durus.interfaces import CommittedTransaction, HistoryStorage, Oid, Snapshot, Storage, Tid
from durus.times import time_of

__all__ = ["Conflict", "find_conflicts"]

_SHOWN_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class Conflict:
    """One of the objects that a conflict was about."""

    oid: bytes
    class_name: str | None
    """With its module; None if it is not known."""
    transaction: CommittedTransaction | None
    """The newest that has changed it; None if the storage does not tell."""

    def __str__(self) -> str:
        text = f"{self.class_name or 'object'} {format_oid(self.oid)}"
        by = self.transaction
        if by is None:
            return text
        when = time_of(by.time_ns).isoformat(" ", "milliseconds")
        user = f" by {by.user!r}" if by.user else ""
        note = f" ({by.note!r})" if by.note else ""
        return f"{text} was changed by transaction {by.tid} at {when}{user}{note}"


def find_conflicts(storage: Storage, cache: Cache, oids: Sequence[bytes]) -> tuple[Conflict, ...]:
    """What is known of the first of the objects that a conflict was about; it never fails."""
    found: list[Conflict] = []
    with contextlib.ExitStack() as stack:
        newest: Snapshot | None = None
        history = storage if isinstance(storage, HistoryStorage) else None
        if history is not None:
            with contextlib.suppress(DurusError, OSError):
                newest = stack.enter_context(contextlib.closing(history.snapshot()))
        for oid in map(Oid, oids[:_SHOWN_MAX]):
            obj = cache.get(oid)
            name = None if obj is None else f"{type(obj).__module__}.{type(obj).__qualname__}"
            transaction = None
            with contextlib.suppress(DurusError, OSError):
                if history is not None and newest is not None:
                    tid, record = newest.load(oid)
                    name = name or ".".join(name_in_class_pickle(record.class_pickle))
                    transaction = next(iter(history.transactions(tid, Tid(tid + 1))), None)
            found.append(Conflict(oid, name, transaction))
    return tuple(found)
