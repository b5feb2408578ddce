"""The containers against dict, list, set and a sorted dict, with commits, aborts and reopenings.

Each rule does the same to a persistent container and to its plain model, and both must answer the
same, exceptions included.  A commit makes the models the committed ones, an abort puts the
committed ones back; closing everything and opening it again must change nothing.
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from durus.btree import BNode, BTree
from durus.connection import Connection
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.persistent_set import PersistentSet
from tests.storages import KINDS, Kind

numbers = st.integers(-20, 20)


class ContainersMachine(RuleBasedStateMachine):
    kind: Kind

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "containers.durus"
        self.storage = self.kind.open(self.path)
        # A small cache, so that nodes become ghosts.
        self.connection: Connection[Any] = Connection(self.storage, cache_size=3)
        root = self.connection.root
        # Nodes of at most three items: many of them, and all cases of splitting and merging.
        root["tree"], root["dict"] = BTree(BNode), PersistentDict()
        root["list"], root["set"] = PersistentList(), PersistentSet()
        self.models: dict[str, Any] = {"tree": {}, "dict": {}, "list": [], "set": set()}
        self.connection.commit()
        self.committed = copy.deepcopy(self.models)

    def teardown(self) -> None:
        if hasattr(self, "connection"):
            self.connection.close()
            self.storage.close()
            self.kind.check(self.path)
            self.folder.cleanup()

    def both(self, name: str, call: Callable[[Any], Any]) -> None:
        """Do `call` to the container and to its model, and compare the answers."""
        answers = []
        for target in (self.connection.root[name], self.models[name]):
            try:
                answer = call(target)
            except (KeyError, IndexError, ValueError) as error:
                answer = type(error)
            answers.append(answer)
        assert answers[0] == answers[1]

    @rule(name=st.sampled_from(["tree", "dict"]), key=numbers, value=numbers)
    def set_item(self, name: str, key: int, value: int) -> None:
        self.both(name, lambda mapping: mapping.__setitem__(key, value))

    @rule(name=st.sampled_from(["tree", "dict"]), key=numbers)
    def delete_item(self, name: str, key: int) -> None:
        self.both(name, lambda mapping: mapping.__delitem__(key))

    @rule(name=st.sampled_from(["tree", "dict"]), key=numbers)
    def get_item(self, name: str, key: int) -> None:
        self.both(name, lambda mapping: (mapping[key], key in mapping))

    @rule(name=st.sampled_from(["tree", "dict"]), key=numbers)
    def pop_item(self, name: str, key: int) -> None:
        self.both(name, lambda mapping: mapping.pop(key, None))

    @rule(name=st.sampled_from(["tree", "dict"]), items=st.dictionaries(numbers, numbers))
    def update(self, name: str, items: dict[int, int]) -> None:
        self.both(name, lambda mapping: mapping.update(items))

    @rule(name=st.sampled_from(["tree", "dict", "set"]))
    def clear(self, name: str) -> None:
        self.both(name, lambda container: container.clear())

    @rule(value=numbers, index=numbers)
    def insert(self, value: int, index: int) -> None:
        self.both("list", lambda items: items.insert(index, value))

    @rule(index=numbers)
    def pop(self, index: int) -> None:
        self.both("list", lambda items: items.pop(index))

    @rule(start=numbers, stop=numbers, values=st.lists(numbers, max_size=5))
    def set_slice(self, start: int, stop: int, values: list[int]) -> None:
        self.both("list", lambda items: items.__setitem__(slice(start, stop), values))

    @rule()
    def sort(self) -> None:
        self.both("list", lambda items: items.sort())

    @rule(value=numbers)
    def add(self, value: int) -> None:
        self.both("set", lambda items: items.add(value))

    @rule(value=numbers)
    def remove(self, value: int) -> None:
        self.both("set", lambda items: items.remove(value))

    @rule(values=st.sets(numbers, max_size=5))
    def symmetric_difference(self, values: set[int]) -> None:
        self.both("set", lambda items: items.symmetric_difference_update(values))

    @rule(start=numbers, end=numbers, closed_start=st.booleans(), closed_end=st.booleans())
    def items_range(self, start: int, end: int, closed_start: bool, closed_end: bool) -> None:
        low, high = min(start, end), max(start, end)
        closed = {start: closed_start, end: closed_end}
        if start == end:  # then only one who is closed at both ends has it
            closed = {start: closed_start and closed_end}
        expected = sorted(
            (key, value)
            for key, value in self.models["tree"].items()
            if low <= key <= high and closed.get(key, True)
        )
        found = list(self.connection.root["tree"].items_range(start, end, closed_start, closed_end))
        assert found == (expected if start <= end else expected[::-1])

    @rule()
    def commit(self) -> None:
        self.connection.commit()
        self.committed = copy.deepcopy(self.models)

    @rule()
    def abort(self) -> None:
        self.connection.abort()
        self.models = copy.deepcopy(self.committed)

    @rule()
    def reopen(self) -> None:
        self.connection.close()
        self.storage = self.kind.reopen(self.storage, self.path)
        self.connection = Connection(self.storage, cache_size=3)
        self.models = copy.deepcopy(self.committed)

    @invariant()
    def everything_is_equal(self) -> None:
        if hasattr(self, "connection"):
            root = self.connection.root
            assert list(root["tree"].items()) == sorted(self.models["tree"].items())
            assert len(root["tree"]) == len(self.models["tree"])
            assert dict(root["dict"]) == self.models["dict"]
            assert list(root["list"]) == self.models["list"]
            assert set(root["set"]) == self.models["set"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_containers_agree_with_their_models(kind: Kind) -> None:
    machine = type("Machine", (ContainersMachine,), {"kind": kind})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=30, stateful_step_count=50, deadline=None)
    )
