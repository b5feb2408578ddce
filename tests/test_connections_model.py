"""Several connections on one storage, against a model that knows every committed version.

The model holds the values of all cells after each commit.  Each connection sees one version,
with its own changes on top, and has accessed some cells.  From that alone follows what every
read must give, and which operations must raise a conflict.
"""

import tempfile
import threading
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

from durus.connection import Connection
from durus.error import ReadConflictError, UnstorableError, WriteConflictError
from durus.interfaces import PackableStorage
from durus.persistent import Persistent
from tests.storages import KINDS, Kind

CELLS = 4
CONNECTIONS = 3
a_client, a_cell = st.integers(0, CONNECTIONS - 1), st.integers(0, CELLS - 1)


class Cell(Persistent):
    def __init__(self, value: Any) -> None:
        self.value = value


class Client:
    """A connection, and what the model knows of it."""

    def __init__(self, connection: Connection[Any]) -> None:
        self.connection = connection
        # Held, so that the cells stay; they are ghosts, and the root is not accessed any more.
        self.cells: list[Cell] = [connection.root[i] for i in range(CELLS)]
        connection.abort()
        self.version = 0
        self.accessed: set[int] = set()
        self.written: dict[int, int] = {}


class ConnectionsMachine(RuleBasedStateMachine):
    kind: Kind

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "model.durus"
        self.storage = self.kind.open(self.path)
        self.versions: list[dict[int, int]] = [dict.fromkeys(range(CELLS), 0)]
        self.written: list[set[int]] = [set()]
        self.counter = 0
        connection: Connection[Any] = Connection(self.storage)
        for i in range(CELLS):
            connection.root[i] = Cell(0)
        connection.commit()
        connection.close()
        self.connect()

    def connect(self) -> None:
        self.clients = [Client(Connection(self.storage)) for _ in range(CONNECTIONS)]
        for client in self.clients:
            client.version = len(self.versions) - 1

    def teardown(self) -> None:
        if hasattr(self, "storage"):
            for client in self.clients:
                client.connection.close()
            self.storage.close()
            self.kind.check(self.path)
            self.folder.cleanup()

    def changed_since(self, version: int) -> set[int]:
        return set[int]().union(*self.written[version + 1 :])

    def touch(self, client: Client, i: int) -> bool:
        """Whether cell `i` can be loaded; moves the client's version on as it must be."""
        if client.cells[i]._p_is_ghost():
            changed = self.changed_since(client.version)
            if i in changed:
                if client.accessed & changed:
                    return False
                client.version = len(self.versions) - 1
        client.accessed.add(i)
        return True

    @rule(c=a_client, i=a_cell)
    def read(self, c: int, i: int) -> None:
        client = self.clients[c]
        if not self.touch(client, i):
            with pytest.raises(ReadConflictError):
                client.cells[i].value  # noqa: B018 - reading is the point
            return
        expected = client.written.get(i, self.versions[client.version][i])
        assert client.cells[i].value == expected

    @rule(c=a_client, i=a_cell)
    def write(self, c: int, i: int) -> None:
        client = self.clients[c]
        self.counter += 1
        if not self.touch(client, i):
            with pytest.raises(ReadConflictError):
                client.cells[i].value = self.counter
            return
        client.cells[i].value = client.written[i] = self.counter

    @rule(c=a_client)
    def commit(self, c: int) -> None:
        client = self.clients[c]
        if client.written and client.accessed & self.changed_since(client.version):
            with pytest.raises(WriteConflictError):
                client.connection.commit()
            return
        tid = client.connection.commit()
        assert (tid is None) == (not client.written)
        if client.written:
            self.versions.append({**self.versions[-1], **client.written})
            self.written.append(set(client.written))
        self.begin(client)

    @rule(c=a_client)
    def abort(self, c: int) -> None:
        client = self.clients[c]
        client.connection.abort()
        self.begin(client)

    def begin(self, client: Client) -> None:
        client.version = len(self.versions) - 1
        client.accessed.clear()
        client.written.clear()

    @rule(c=a_client, i=a_cell)
    def fail_to_commit(self, c: int, i: int) -> None:
        """A commit that cannot be pickled changes nothing."""
        client = self.clients[c]
        if not self.touch(client, i):
            return
        cell = client.cells[i]
        before = cell.value
        cell.value = threading.Lock()
        with pytest.raises(UnstorableError):
            client.connection.commit()
        client.written[i] = cell.value = before

    @rule(c=a_client, i=a_cell)
    def evict(self, c: int, i: int) -> None:
        cell = self.clients[c].cells[i]
        if cell._p_is_saved():
            cell._p_set_status_ghost()

    @rule()
    def pack(self) -> None:
        if isinstance(self.storage, PackableStorage):
            self.storage.pack()

    @rule()
    def reopen(self) -> None:
        for client in self.clients:
            client.connection.close()
        self.storage = self.kind.reopen(self.storage, self.path)
        self.connect()

    @invariant()
    def storage_holds_the_newest_version(self) -> None:
        if hasattr(self, "storage"):
            connection: Connection[Any] = Connection(self.storage)
            found = {i: connection.root[i].value for i in range(CELLS)}
            connection.close()
            assert found == self.versions[-1]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_connections_agree_with_the_model(kind: Kind) -> None:
    machine = type("Machine", (ConnectionsMachine,), {"kind": kind})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=40, stateful_step_count=40, deadline=None)
    )
