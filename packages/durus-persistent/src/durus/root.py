"""The root of a database, when a connection opens it: found, or made."""

from typing import TYPE_CHECKING, Any, Final

from durus.error import ReadConflictError, ReadOnlyError, WriteConflictError, WrongClassError
from durus.interfaces import ROOT_OID
from durus.persistent import PersistentObject
from durus.persistent_dict import PersistentDict

if TYPE_CHECKING:
    from durus.connection import Connection

__all__ = ["open_root"]

_OPENED_AGAIN_MAX: Final = 100


def open_root(connection: "Connection[Any]", root_class: type[Any] | None) -> Any:
    """The root, of the class that is asked for; it is made, and committed, if there is none.

    Raises TypeError, WrongClassError and ReadOnlyError.
    """
    # A generic alias such as BTree[str, int] stands for its class.
    cls = getattr(root_class, "__origin__", root_class)
    if cls is not None and not (isinstance(cls, type) and issubclass(cls, PersistentObject)):
        raise TypeError(f"root_class must be a subclass of PersistentObject, not {root_class!r}")
    root = _find_root(connection)
    if root is None:
        if connection._is_readonly:
            raise ReadOnlyError(
                f"{connection.storage} is empty, and open read-only: it has no root"
            )
        root = _make_root(connection, cls or PersistentDict)
    if cls is not None and type(root) is not cls:
        raise WrongClassError(
            f"the root of {connection.storage} is a {type(root).__module__}."
            f"{type(root).__qualname__}, not a {cls.__module__}.{cls.__qualname__}; if that is its "
            "new name, aliases= says so"
        )
    return root


def _find_root(connection: "Connection[Any]") -> PersistentObject | None:
    """The root, though others may be committing it: nothing that was read could conflict."""
    for _ in range(_OPENED_AGAIN_MAX):
        try:
            return connection.get(ROOT_OID)
        except ReadConflictError:  # of a storage without snapshots
            connection._begin()
    return connection.get(ROOT_OID)


def _make_root(connection: "Connection[Any]", cls: type[Any]) -> PersistentObject | None:
    root = cls()
    # The oid of the root is the first that a storage hands out, but perhaps it already has.
    oids = {ROOT_OID, *connection._storage.reserve_oids(1)}
    connection._spare_oids = sorted(oids, reverse=True)
    try:
        connection._begin(connection._store([root]))
    except WriteConflictError:  # somebody else has just made one
        connection._spare_oids = [oid for oid in connection._spare_oids if oid != ROOT_OID]
        connection._begin()
    return _find_root(connection)
