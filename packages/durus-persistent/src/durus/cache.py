"""The objects of one connection, by oid.

The cache knows every object that is alive, weakly, so that one oid is never two objects; and it
holds those accessed recently strongly, up to a target size, so that they stay alive.  It shrinks
at transaction boundaries, by making the objects that were not accessed for longest into ghosts.

That of a `Database` also has a target in bytes, and evicts in the middle of a transaction what was
not accessed for longest.  Invariants:

    * The last `_IN_USE` objects that were loaded are not evicted, for some code is working on them;
      of large ones it is the last `_LARGE_IN_USE`, however large they are.
    * What was changed and not saved is never evicted.
"""

import logging
from collections import deque
from collections.abc import Container, Iterable, Iterator
from itertools import chain, islice
from typing import Any, Final, TypeVar, cast
from weakref import KeyedRef

from durus.interfaces import Oid, Record
from durus.logger import log
from durus.persistent import (
    GHOST,
    ConnectionBase,
    ObjectConnection,
    PersistentBase,
    PersistentObject,
    _setattribute,
)

__all__ = ["Cache", "ObjectDictionary", "ReferenceContainer"]

P = TypeVar("P", bound=PersistentObject)


class ObjectDictionary:
    """A dictionary with weak values.

    The garbage collector drops a value at any moment, in any thread, and tells so later, when there
    may be another one with the same key.  So what it tells is only noted; the entry is removed by
    whoever uses the dictionary, if it is still that of the dead value.
    """

    def __init__(self) -> None:
        self.mapping: dict[Oid, KeyedRef[Oid, PersistentObject]] = {}
        self.dead: list[KeyedRef[Oid, PersistentObject]] = []

    def get(self, key: Oid, default: PersistentObject | None = None) -> PersistentObject | None:
        reference = self.mapping.get(key)
        value = None if reference is None else reference()
        return default if value is None else value

    def __setitem__(self, key: Oid, value: PersistentObject) -> None:
        self.mapping[key] = KeyedRef(value, self.dead.append, key)

    def __delitem__(self, key: Oid) -> None:
        self.mapping.pop(key, None)

    def __contains__(self, key: Oid) -> bool:
        return self.get(key) is not None

    def __len__(self) -> int:
        self.clear_dead()
        return len(self.mapping)

    def clear_dead(self) -> None:
        while self.dead:
            reference = self.dead.pop()
            if self.mapping.get(reference.key) is reference:
                del self.mapping[reference.key]

    def __iter__(self) -> Iterator[Oid]:
        """The keys that there are now; values may die, and come, meanwhile."""
        self.clear_dead()
        return iter(list(self.mapping))


class ReferenceContainer:
    """Strong references to objects, by identity (objects may define `==` and no hash).

    They are in the order in which they were last added.
    """

    def __init__(self) -> None:
        self.map: dict[int, PersistentObject] = {}
        self.size_bytes = 0
        """What the records of the objects took that were loaded, about."""
        self._sizes: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.map)

    def add(self, obj: PersistentObject) -> None:
        key = id(obj)
        self.map.pop(key, None)
        self.map[key] = obj

    def add_loaded(self, obj: PersistentObject, size_bytes: int) -> None:
        """Add an object whose state has just been loaded from so many bytes."""
        self.add(obj)
        self.size_bytes += size_bytes - self._sizes.get(id(obj), 0)
        self._sizes[id(obj)] = size_bytes

    def discard(self, obj: PersistentObject) -> None:
        self.map.pop(id(obj), None)
        self.size_bytes -= self._sizes.pop(id(obj), 0)


_IN_USE: Final = 256
_LARGE_IN_USE: Final = 16
"""So many, if there are more than twice as many bytes as there should be."""


_REFERENCE_SIZE: Final = 128
"""What a reference takes in memory, about: a ghost at least."""


def estimate_size(record: Record) -> int:
    """The bytes that the object of a record takes in memory, about, without what it refers to."""
    return len(record.state_pickle) + len(record.refs) // 8 * _REFERENCE_SIZE


class Cache:
    """The objects of a connection; `size` is the number that shrinking aims at."""

    size_bytes_max: int | None = None
    """What it aims at in bytes of records; None for any number."""
    kept: Container[Oid | None] = ()
    """What is never evicted, also when it counts as saved: what upgrades have changed."""

    def __init__(self, size: int) -> None:
        self.objects = ObjectDictionary()
        self.recent_objects = ReferenceContainer()
        self.set_size(size)
        self.finger = 0

    def get_size(self) -> int:
        """The target number of objects."""
        return self.size

    def get_count(self) -> int:
        """The number of objects alive, ghosts included."""
        return len(self.objects)

    def set_size(self, size: int) -> None:
        if size <= 0:
            raise ValueError(f"cache target size must be > 0, not {size!r}")
        self.size = size

    def get_instance(self, oid: Oid, cls: type[P], connection: ObjectConnection) -> P:
        """The object with this oid, or a new ghost of class `cls`.

        The class in a reference may be an old one: until all references were stored again after
        an object has changed its class.  So an object whose state is here keeps its class, and a
        ghost takes the other one until it is loaded.  A second object is made only when its
        layout does not let it: when a storage of Durus 4.x has used an oid again.
        """
        obj: Any = self.objects.get(oid)
        if obj is not None:
            if obj.__class__ is cls or obj._p_status != GHOST:
                return cast(P, obj)
            try:
                obj.__class__ = cls
            except TypeError:
                pass
            else:
                return cast(P, obj)
        ghost: P = PersistentBase.__new__(cls)
        _setattribute(ghost, "_p_oid", oid)
        _setattribute(ghost, "_p_connection", connection)
        _setattribute(ghost, "_p_status", GHOST)
        self.objects[oid] = ghost
        return ghost

    def get(self, oid: Oid) -> PersistentObject | None:
        return self.objects.get(oid)

    def __setitem__(self, oid: Oid, obj: PersistentObject) -> None:
        self.objects[oid] = obj

    def forget(self, oid: Oid, obj: PersistentObject) -> None:
        """An object is not the one with this oid any more."""
        del self.objects[oid]
        self.recent_objects.discard(obj)

    def __iter__(self) -> Iterator[PersistentObject]:
        for oid in self.objects:
            obj = self.objects.get(oid)
            if obj is not None:
                yield obj

    def note_records(self, records: Iterable[tuple[PersistentObject, Record]]) -> None:
        """Objects were stored or loaded: what they take counts, if there is a target in bytes."""
        if self.size_bytes_max is not None:
            for obj, record in records:
                self.recent_objects.add_loaded(obj, estimate_size(record))

    def trim(self, *, is_idle: bool = False) -> None:
        """Evict objects if those that are loaded are too many or too large.

        is_idle: no code is working on any of them.
        """
        recent, limit = self.recent_objects, self.size_bytes_max
        is_large = limit is not None and recent.size_bytes > limit
        if not is_large and len(recent) <= self.size:
            return
        if is_idle:
            self._evict(0)
        elif limit is not None and recent.size_bytes > 2 * limit:
            self._evict(_LARGE_IN_USE)
        elif len(recent) > 2 * _IN_USE:
            self._evict(_IN_USE)

    def _evict(self, in_use: int) -> None:
        """Make ghosts of saved objects, those first that were not accessed for longest.

        Until a quarter of the room is free, so that this is rare; or all but the last are gone.
        """
        recent = self.recent_objects
        limit = self.size_bytes_max
        count_max = self.size * 3 // 4
        bytes_max = recent.size_bytes if limit is None else limit * 3 // 4
        oldest = deque(islice(recent.map.values(), max(0, len(recent) - in_use)))
        while oldest:
            obj = oldest.popleft()  # held by nothing here any more, so that it may go
            if len(recent) <= count_max and recent.size_bytes <= bytes_max:
                break
            if obj._p_is_saved() and obj._p_oid not in self.kept:
                obj._p_set_status_ghost()
            # Ghosts take no room, and what was changed is held by the transaction: to look at them
            # again and again would be slow.
            recent.discard(obj)
        self.objects.clear_dead()

    def shrink(self, connection: ConnectionBase) -> None:
        """Make ghosts of saved objects, longest unused first, until the target size is met.

        Looks at twice the excess only, going round the cache from call to call.
        """
        total = len(self.objects)
        excess = total - self.size
        if excess <= 0:
            return
        start = self.finger % total
        candidates: list[tuple[int, Oid]] = []
        for oid in islice(chain(self.objects, self.objects), start, start + total):
            self.finger += 1
            obj = self.objects.get(oid)
            if obj is not None and obj._p_serial != connection.transaction_serial:
                candidates.append((obj._p_serial, oid))
                if len(candidates) >= 2 * excess:
                    break
        self.finger %= total
        del obj  # the last one looked at shall not be kept alive by this
        ghosted = 0
        for _, oid in sorted(candidates):
            if len(self.objects) <= self.size:
                break
            obj = self.objects.get(oid)
            if obj is not None:
                if obj._p_is_saved():
                    obj._p_set_status_ghost()
                    ghosted += 1
                self.recent_objects.discard(obj)
        log(
            logging.DEBUG,
            "cache shrunk from %d to %d objects, %d made ghosts",
            total,
            len(self.objects),
            ghosted,
        )
