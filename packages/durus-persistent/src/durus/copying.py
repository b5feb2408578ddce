"""Copies of objects with all that they lead to: from one database to another."""

import io
import pickle
from collections import deque
from typing import Any, TypeVar, cast

from durus.blob import BlobChunk
from durus.error import UnstorableError
from durus.persistent import PersistentBase, PersistentObject

__all__ = ["copy_subgraph"]

P = TypeVar("P", bound=PersistentObject)


class _Pickler(pickle.Pickler):
    """Pickles a state, with numbers in the place of objects."""

    def __init__(self, file: io.BytesIO, copies: "_Copies") -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._copies = copies

    def persistent_id(self, obj: Any) -> int | None:
        return self._copies.number(obj) if isinstance(obj, PersistentBase) else None


class _Unpickler(pickle.Unpickler):
    """Reads what `_Pickler` has just written, so nothing of it can be hostile."""

    def __init__(self, file: io.BytesIO, copies: "_Copies") -> None:
        super().__init__(file)
        self._copies = copies

    def persistent_load(self, pid: Any) -> Any:
        return self._copies.made[pid]


class _Copies:
    """The copies made, by number, and the objects whose states are to be copied."""

    def __init__(self) -> None:
        self.made: list[PersistentObject] = []
        self.todo: deque[tuple[PersistentObject, PersistentObject]] = deque()
        self._numbers: dict[int, int] = {}
        self._originals: list[PersistentObject] = []
        """Alive, so that no other object gets the id of one."""

    def number(self, obj: Any) -> int:
        number = self._numbers.get(id(obj))
        if number is None:
            number = self._numbers[id(obj)] = len(self.made)
            if isinstance(obj, BlobChunk):
                copy: PersistentObject = BlobChunk(obj.read())
            else:
                copy = PersistentBase.__new__(type(obj))
                self.todo.append((obj, copy))
            self.made.append(copy)
            self._originals.append(obj)
        return number


def copy_subgraph(obj: P) -> P:
    """A new object like `obj`, and new ones like all that it leads to; none has a connection."""
    if not isinstance(obj, PersistentObject):
        raise TypeError(f"what is copied with all that it leads to is persistent, and not {obj!r}")
    copies = _Copies()
    copies.number(obj)
    while copies.todo:
        original, copy = copies.todo.popleft()
        state = original.__getstate__()
        file = io.BytesIO()
        try:
            _Pickler(file, copies).dump(state)
            file.seek(0)
            copied = _Unpickler(file, copies).load()
        except Exception as error:
            raise UnstorableError(
                f"<{original._p_identity()}> cannot be copied: {error}"
            ) from error
        copy.__setstate__(copied)
    return cast(P, copies.made[0])
