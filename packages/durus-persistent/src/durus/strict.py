"""Finding changes that nobody has noted: a plain list or dict inside an object, changed in place.

Strict connections use it, in tests mostly, as it pickles every object that is accessed.  Invariant:
only pickles of live states are compared, of each attribute at the first access and at the end;
what is stored may differ without a change (a set that was loaded anew is pickled in another order).
"""

import io
import pickle
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from typing import Any, Final, TypeAlias

from durus.blob import BlobChunk
from durus.error import UnnotedChangeError
from durus.persistent import PersistentBase, PersistentObject

__all__ = ["MutationGuard"]

_WHOLE: Final = ""
"""In the place of the name of an attribute, for a state that is no dict."""

_Fingerprint: TypeAlias = dict[str, bytes | None]
"""The pickles of the attributes; None for what cannot be pickled."""


class _Pickler(pickle.Pickler):
    """Pickles values, with persistent objects by their oids."""

    def persistent_id(self, obj: Any) -> object:
        # Not the id() of a stored one: when it has gone, another one may have that.
        return (obj._p_oid or id(obj)) if isinstance(obj, PersistentBase) else None


class MutationGuard:
    """Knows how the objects were that the current transaction has accessed, and not changed."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[PersistentObject, _Fingerprint]] = {}

    def note(self, obj: PersistentObject) -> None:
        """An object is as it should be; called when it is accessed, or was saved."""
        if not isinstance(obj, BlobChunk):
            fingerprint = _take_fingerprint(obj)
            if fingerprint is not None:
                self._known[id(obj)] = obj, fingerprint

    def knows(self, obj: PersistentObject) -> bool:
        return id(obj) in self._known

    def forget(self, obj: PersistentObject) -> None:
        """An object is loaded anew."""
        self._known.pop(id(obj), None)

    def clear(self) -> None:
        """The transaction is over."""
        self._known.clear()

    def _find_changes(self) -> Iterator[tuple[PersistentObject, list[str]]]:
        for obj, before in list(self._known.values()):
            if obj._p_is_saved():
                now = _take_fingerprint(obj) or {}
                known = [name for name in {**before, **now} if before.get(name, b"") is not None]
                names = [name for name in known if before.get(name) != now.get(name)]
                if names:
                    yield obj, names

    def check(self) -> None:
        """UnnotedChangeError if an object differs that nobody has said is changed."""
        found = list(self._find_changes())
        if found:
            raise UnnotedChangeError(
                f"{_describe(found)}: what is inside was changed in place, and nothing would be "
                "stored of it.  Use PersistentList, PersistentDict or PersistentSet, assign the "
                "attribute again, or call note_change(obj) before the change"
            )

    def take_back(self) -> None:
        """Let such objects be loaded anew, as after an abort."""
        for obj, _ in self._find_changes():
            obj._p_set_status_ghost()


def _describe(found: Iterable[tuple[PersistentObject, list[str]]]) -> str:
    return ", ".join(
        f"<{obj._p_identity()}>"
        + "".join(f" attribute {name!r}" for name in names if name != _WHOLE)
        for obj, names in found
    )


def _take_fingerprint(obj: PersistentObject) -> _Fingerprint | None:
    """The pickles of what is in an object now; None if its state cannot be had."""
    cls = type(obj)
    with suppress(Exception):
        state = cls.__getstate__(obj)
        parts = state if isinstance(state, dict) else {_WHOLE: state}
        return {str(n): _pickle(v) for n, v in parts.items() if not _is_cached_property(cls, n)}
    return None


def _is_cached_property(cls: type, name: object) -> bool:
    """Whether Python keeps there what was computed, and can be computed again."""
    return isinstance(name, str) and isinstance(getattr(cls, name, None), cached_property)


def _pickle(value: object) -> bytes | None:
    file = io.BytesIO()
    with suppress(Exception):
        _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
        return file.getvalue()
    return None
