"""Databases for tests: in memory, strict, and gone at the end."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, overload

from durus.connection import R
from durus.database import Database
from durus.memory_storage import MemoryStorage
from durus.overlay_storage import OverlayStorage
from durus.persistent_dict import PersistentDict

if TYPE_CHECKING:
    from os import PathLike

    from durus.classic_storage import Storage as ClassicStorage
    from durus.interfaces import Storage

__all__ = ["temporary_database"]


@overload
def temporary_database(
    base: "str | PathLike[str] | Storage | ClassicStorage | None" = None,
    *,
    root_class: None = None,
    strict: bool = True,
) -> "AbstractContextManager[Database[PersistentDict[str, Any]]]": ...


@overload
def temporary_database(
    base: "str | PathLike[str] | Storage | ClassicStorage | None" = None,
    *,
    root_class: type[R],
    strict: bool = True,
) -> "AbstractContextManager[Database[R]]": ...


@contextmanager
def temporary_database(
    base: "str | PathLike[str] | Storage | ClassicStorage | None" = None,
    *,
    root_class: type[Any] | None = None,
    strict: bool = True,
) -> Iterator[Database[Any]]:
    """A database for one test: an empty one, or one that begins with what is in another.

    base: a storage, a path or a URI; it is only read (see `durus.storage.OverlayStorage`).
    strict: whether an object that was changed in place without being noted is an error.
    """
    storage = MemoryStorage() if base is None else OverlayStorage(base)
    try:
        made: Database[Any] = Database(storage, root_class=root_class, strict=strict)
        with made as database:
            yield database
    finally:
        storage.close()
