"""What Durus 4.3 stored is what is loaded here, and what is stored here is what 4.3 loads.

`golden/states_4_3.json` was written by Durus 4.3, running `golden/make_states.py`.
"""

import io
import json
import pickle
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from durus.interfaces import Oid
from durus.persistent import PersistentObject

GOLDEN = Path(__file__).with_name("golden")


make_states = SimpleNamespace(**runpy.run_path(str(GOLDEN / "make_states.py")))
CONTENT = json.loads((GOLDEN / "states_4_3.json").read_text())
NAMES: dict[str, int] = CONTENT["names"]
CLASS_PICKLES: dict[int, bytes] = {}
STATE_PICKLES: dict[int, bytes] = {}
for _oid, _record in CONTENT["records"].items():
    _class_pickle, _state_pickle = map(bytes.fromhex, _record)
    CLASS_PICKLES[int(_oid)] = _class_pickle
    # The state may refer to the class by the pickler's memo: load the class, drop it, go on.
    STATE_PICKLES[int(_oid)] = _class_pickle[:-1] + pickle.POP + _state_pickle


class Reader(pickle.Unpickler):
    """Reads class and state pickles; references become what `refer(oid, class)` returns."""

    def __init__(self, content: bytes, refer: Any) -> None:
        super().__init__(io.BytesIO(content))
        self.refer = refer

    def find_class(self, module: str, name: str) -> Any:
        return (
            getattr(make_states, name) if module == "__main__" else super().find_class(module, name)
        )

    def persistent_load(self, reference: Any) -> Any:
        return self.refer(*reference)


class Writer(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return (obj._p_oid, type(obj).__name__) if isinstance(obj, PersistentObject) else None


def read_class(oid: int) -> Any:
    return Reader(CLASS_PICKLES[oid], None).load()


def read_raw_state(content: bytes) -> Any:
    """The state with references left as (oid, class name)."""
    return Reader(content, lambda oid, cls: (oid, getattr(cls, "__name__", cls))).load()


def load_all() -> dict[int, Any]:
    """All golden objects, of our classes, by oid."""
    objects: dict[int, Any] = {}
    for number in CLASS_PICKLES:
        objects[number] = obj = read_class(number)()
        obj._p_set_status_ghost()
        obj._p_oid = Oid(number.to_bytes(8, "big"))

    def refer(oid: bytes, cls: type) -> Any:
        obj = objects[int.from_bytes(oid, "big")]
        assert type(obj) is cls
        return obj

    for number, state_pickle in STATE_PICKLES.items():
        objects[number].__setstate__(Reader(state_pickle, refer).load())
        objects[number]._p_set_status_saved()
    return objects


def spell_out(value: Any, seen: dict[int, int] | None = None) -> Any:
    """The value with its types and, once each, the states of the objects that it refers to."""
    seen = {} if seen is None else seen
    name = type(value).__name__
    if isinstance(value, PersistentObject):
        if id(value) in seen:
            return name, seen[id(value)]
        seen[id(value)] = len(seen)
        return name, spell_out(value.__getstate__(), seen)
    if isinstance(value, dict):
        return name, [(spell_out(k, seen), spell_out(v, seen)) for k, v in value.items()]
    if isinstance(value, list | tuple):
        return name, [spell_out(item, seen) for item in value]
    if isinstance(value, set | frozenset):
        return name, {spell_out(item, seen) for item in value if not isinstance(item, tuple)}
    return name, value


OBJECTS = load_all()
BUILT = make_states.build()


def test_the_names_are_those_that_the_script_makes_now() -> None:
    assert list(NAMES) == list(BUILT)


# Deletions of 4.3 may leave other nodes than ours: the thinned tree is left to the next test.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "thinned tree"])
def test_what_4_3_stored_is_loaded(name: str) -> None:
    assert spell_out(OBJECTS[NAMES[name]]) == spell_out(BUILT[name])


@pytest.mark.parametrize("name", [name for name in NAMES if "tree" in name])
def test_trees_of_4_3_have_their_items_and_can_be_changed(name: str) -> None:
    tree, built = load_all()[NAMES[name]], BUILT[name]
    keys = built.keys()
    assert tree.keys() == keys
    assert spell_out(tree.values()) == spell_out(built.values())
    for key in keys[::2]:
        del tree[key]
    assert tree.keys() == keys[1::2]
    for key in keys[::2]:
        tree[key] = True
    assert tree.keys() == keys
    assert len(tree) == len(keys)


@pytest.mark.parametrize("oid", STATE_PICKLES)
def test_what_is_stored_here_is_what_4_3_stored(oid: int) -> None:
    obj = OBJECTS[oid]
    assert type(obj) is read_class(oid)
    content = io.BytesIO()
    Writer(content, 2).dump(obj.__getstate__())
    ours, golden = read_raw_state(content.getvalue()), read_raw_state(STATE_PICKLES[oid])
    assert spell_out(ours) == spell_out(golden)
    assert ours == golden


def test_the_class_pickles_name_the_same_classes() -> None:
    for oid, class_pickle in CLASS_PICKLES.items():
        cls = type(OBJECTS[oid])
        if cls is not make_states.Slotted:
            assert pickle.dumps(cls, 2) == class_pickle


def test_what_later_releases_store_in_nodes_is_ignored() -> None:
    tree = load_all()[NAMES["deep tree"]]
    node = tree.root
    node.__setstate__({**node.__getstate__(), "_count": 300})
    assert list(node.__getstate__()) == ["items", "nodes"]
    assert len(tree) == 300
