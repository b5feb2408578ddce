"""Writes `states_4_3.json`: what Durus 4.3 stores for the containers and base classes.

Run by hand, under Durus 4.3, never under this one:

    PYTHONHASHSEED=0 python make_states.py

The file holds {"names": {name: oid}, "records": {oid: [class pickle, state pickle]}}, the pickles
as hexadecimal digits.  The second pickle of a record is not complete by itself: 4.3 wrote both
with one pickler, so it may refer to the class in the first.  `test_golden_states.py` imports
`build` to make the same objects under this Durus, and compares.
"""

import datetime
import decimal
import io
import json
import pathlib
import pickle
import zlib
from typing import Any

from durus.btree import (
    BNode,
    BNode4,
    BNode8,
    BNode16,
    BNode32,
    BNode64,
    BNode128,
    BNode256,
    BNode512,
    BTree,
)
from durus.persistent import ComputedAttribute, Persistent, PersistentObject
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.persistent_set import PersistentSet

VALUES: "list[Any]" = [
    None,
    True,
    7,
    2**70,
    -1.5,
    1j,
    "text: é €",
    b"bytes \x00\xff",
    (1, (2, (None, ()))),
    [1, [2, []]],
    {"a": {1: (2,)}},
    {1, 2, 3},
    frozenset({1}),
    datetime.datetime(2024, 2, 29, 12, 30, 15, 123456),
    datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC),
    datetime.date(1999, 12, 31),
    datetime.timedelta(days=1, microseconds=1),
    decimal.Decimal("1.10"),
]

NODE_CLASSES: "list[Any]" = [
    BNode,
    BNode4,
    BNode8,
    BNode16,
    BNode32,
    BNode64,
    BNode128,
    BNode256,
    BNode512,
]


class Slotted(PersistentObject):
    __slots__ = ("a", "b", "unset")

    a: "list[int]"
    b: "Persistent"


def build() -> "dict[str, Any]":
    """The objects, by name."""
    objects: dict[str, Any] = {
        "empty dict": PersistentDict(),
        "empty list": PersistentList(),
        "empty set": PersistentSet(),
        "empty tree": BTree(),
        "dict": PersistentDict(enumerate(VALUES)),
        "list": PersistentList(VALUES),
        "set": PersistentSet([None, 7, "text", b"bytes", (1, (2,)), 1.5]),
        "computed attribute": ComputedAttribute(),
    }
    thing: Any = Persistent()
    thing.values = VALUES
    thing.name = "thing"
    thing.itself = thing
    objects["thing"] = thing
    slotted = Slotted()
    slotted.a = [1]
    slotted.b = thing
    objects["slotted"] = slotted
    objects["references"] = PersistentDict(
        {name: objects[name] for name in ("list", "set", "dict", "thing", "computed attribute")}
    )
    objects["references"]["nested"] = PersistentList([(objects["references"], [thing])])
    for node_class in NODE_CLASSES:
        tree: Any = BTree(node_class)
        for key in range(4 * node_class.minimum_degree):
            tree[key * 37 % 1009] = key
        objects["tree of " + node_class.__name__] = tree
    deep: Any = BTree(BNode4)
    for key in range(300):
        deep["%03d" % (key * 7 % 300)] = (key, "value")  # noqa: UP031 - as old as Durus
    objects["deep tree"] = deep
    thinned: Any = BTree(BNode4)
    for key in range(300):
        thinned[key] = True
    for key in range(0, 300, 3):
        del thinned[key * 7 % 300]
    objects["thinned tree"] = thinned
    mixed: Any = BTree()
    for key, value in enumerate(VALUES):
        mixed[(key, "x")] = value
    mixed[(100, "thing")] = thing
    mixed[(101, "dict")] = PersistentDict(inner=slotted)
    objects["tree of values"] = mixed
    return objects


def main() -> None:
    from durus.connection import Connection
    from durus.serialize import unpack_record
    from durus.storage import MemoryStorage

    storage = MemoryStorage()
    connection: Any = Connection(storage)
    root = connection.get_root()
    root.update(build())
    connection.commit()
    records = {}
    for oid, record in storage.gen_oid_record():
        stream = io.BytesIO(unpack_record(record)[1])
        pickle.load(stream)
        class_pickle = stream.getvalue()[: stream.tell()]
        state_pickle = zlib.decompress(stream.read())
        records[int.from_bytes(oid, "big")] = [class_pickle.hex(), state_pickle.hex()]
    names = {name: int.from_bytes(obj._p_oid, "big") for name, obj in root.items()}
    content = {"names": names, "records": dict(sorted(records.items()))}
    target = pathlib.Path(__file__).with_name("states_4_3.json")
    target.write_text(json.dumps(content, indent=0) + "\n")


if __name__ == "__main__":
    main()
