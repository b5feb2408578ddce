"""Walks over all objects of a database: after a class was renamed, or to find its instances.

Programs import them from `durus.connection`, as in 4.x.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from durus.persistent import ConnectionBase, PersistentObject

if TYPE_CHECKING:
    from durus.connection import Connection

__all__ = ["gen_every_instance", "touch_every_reference"]

P = TypeVar("P", bound=PersistentObject)


def touch_every_reference(connection: "Connection[Any]", *words: str | bytes) -> None:
    """Mark every object as changed whose class or state pickle contains one of the words.

    After a class was renamed or moved, this and a commit renew the references to it.
    """
    _require_connection(connection, "touch_every_reference(connection, 'OldClass')")
    connection._view.accessed.add_everything()
    searched = [word.encode() if isinstance(word, str) else word for word in words]
    found = [
        oid
        for oid, (_, record) in connection._view.crawl()
        if any(word in record.class_pickle or word in record.state_pickle for word in searched)
    ]
    for oid in found:
        connection.get(oid, PersistentObject)._p_note_change()


def gen_every_instance(connection: "Connection[Any]", *classes: type[P]) -> Iterator[P]:
    """Every stored object that is an instance of one of the classes or of their subclasses.

    The names of the classes are compared, and those of subclasses that are already imported;
    nothing is imported.  This reads every record, and so every object counts as accessed.
    """
    _require_connection(connection, "gen_every_instance(connection, OldClass)")
    connection._view.accessed.add_everything()
    for oid, (_, record) in connection._view.crawl():
        cls = connection.reader.policy.find_imported_class(record.class_pickle)
        if cls is not None and issubclass(cls, classes):
            yield connection.get(oid, cls)


def _require_connection(connection: object, call: str) -> None:
    if not isinstance(connection, ConnectionBase):
        raise TypeError(f"the connection is missing: call {call}, not with {connection!r} first")
