"""Overlays of storages that are in files and behind servers."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from durus.client_storage import ClientStorage
from durus.connection import Connection
from durus.error import (
    HistoryUnavailableError,
    ReadConflictError,
    StorageClosedError,
    StorageError,
    StorageOpenError,
)
from durus.file_storage import FileStorage
from durus.interfaces import (
    NO_TID,
    ROOT_OID,
    HistoryStorage,
    PackableStorage,
    Snapshot,
    Storage,
    Tid,
)
from durus.persistent_dict import PersistentDict
from durus.storage import MemoryStorage, OverlayStorage
from durus.storage_server import StorageServer
from durus.testing.storage_contract import (
    StorageContract,
    commit,
    create,
    make_record,
    value,
    value_of,
)
from tests.processes import fork, run_alone, wait_for_child
from tests.storages import Classic, Dfs20, File, Kind, Memory, Served, Shelf, Sqlite

WITH_HISTORY: list[Kind] = [Memory(), File(), Sqlite()]
ALL: list[Kind] = [*WITH_HISTORY, Shelf(), Dfs20(), Served(), Classic()]

in_files = pytest.mark.parametrize("kind", [File(), Sqlite()], ids=["file", "sqlite"])
with_history = pytest.mark.parametrize(
    "kind", WITH_HISTORY, ids=[type(kind).__name__ for kind in WITH_HISTORY]
)
of_all_kinds = pytest.mark.parametrize("kind", ALL, ids=[type(kind).__name__ for kind in ALL])


class OverlayContract(StorageContract):
    """The base is not empty: but the contract makes the root."""

    kind: Kind

    @pytest.fixture
    def storage(self, path: Path) -> Iterator[Storage]:
        base = self.kind.open(path)
        base.reserve_oids(1)
        for oid in base.reserve_oids(3):
            commit(base, {oid: make_record("of the base")}, created=[oid])
        with OverlayStorage(base) as overlay:
            yield overlay
        tid = base.tid
        base.snapshot().close()
        assert base.tid == tid
        base.close()
        self.kind.check(path)


class TestOfAFile(OverlayContract):
    kind = File()


class TestOfAnSqliteFile(OverlayContract):
    kind = Sqlite()


class TestOfAServer(OverlayContract):
    kind = Served()

    def test_before_the_first_transaction_there_was_nothing(self, history: HistoryStorage) -> None:
        create(history, 0)
        with pytest.raises(HistoryUnavailableError):
            history.snapshot(NO_TID)


@of_all_kinds
def test_nothing_gets_into_the_base(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "base"
    with closing(kind.open(path)) as base:
        with Connection(base) as connection:
            connection.root["a"] = PersistentDict(value=1)
            connection.commit()
        overlay = OverlayStorage(base)
        with Connection(overlay) as connection:
            connection.root["a"]["value"] = 2
            connection.root["b"] = PersistentDict(value=2)
            connection.commit()
            connection.root["b"]["value"] = 3
            connection.commit()
            connection.pack()
        with Connection(overlay) as connection:
            assert [connection.root[key]["value"] for key in "ab"] == [2, 3]
        with Connection(base) as connection:
            assert {key: dict(d) for key, d in connection.root.items()} == {"a": {"value": 1}}
            connection.root["c"] = PersistentDict(value=3)  # with an oid that the overlay has not
            connection.commit()
        overlay.close()
        with Connection(base) as connection:
            assert sorted(connection.root) == ["a", "c"]
    kind.check(path)


@with_history
def test_the_snapshot_survives_commits_and_packs_of_the_base(kind: Kind, tmp_path: Path) -> None:
    with closing(kind.open(tmp_path / "base")) as base:
        a, b = create(base, 2)
        overlay = OverlayStorage(base)
        commit(overlay, {a: make_record("mine", [b])})
        commit(base, {ROOT_OID: make_record("later", [a]), a: make_record("later")})
        assert isinstance(base, PackableStorage)
        base.pack()  # removes b
        commit(base, {a: make_record("later still")})
        base.pack()
        assert [value(overlay, oid) for oid in (ROOT_OID, a, b)] == [0, "mine", 0]
        commit(overlay, {b: make_record("mine", [a])})
        assert value(overlay, b) == "mine"
        assert isinstance(overlay, HistoryStorage)
        assert [value_of(revision.record) for revision in overlay.revisions(a)] == ["mine", 0]
        overlay.close()


@of_all_kinds
def test_a_base_that_is_closed_says_so(kind: Kind, tmp_path: Path) -> None:
    base = kind.open(tmp_path / "base")
    a, b = create(base, 2)
    overlay = OverlayStorage(base)
    commit(overlay, {a: make_record("mine")})
    base.close()
    assert value(overlay, a) == "mine"
    with pytest.raises(StorageClosedError, match="closed"):
        value(overlay, b)
    with pytest.raises(StorageClosedError, match="closed"):
        commit(overlay, {b: make_record("mine")})
    overlay.close()


@in_files
def test_a_path_is_opened_read_only_and_closed(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "base"
    with pytest.raises(StorageOpenError):
        OverlayStorage(path)
    assert not path.exists()
    with closing(kind.open(path)) as base:
        create(base, 1)
        tid = base.tid
    content = path.read_bytes()
    with OverlayStorage(path) as overlay:
        assert not overlay.readonly
        commit(overlay, {ROOT_OID: make_record("mine")})
        assert value(overlay, ROOT_OID) == "mine"
        base = overlay._base
        assert base.readonly
    with pytest.raises(StorageClosedError):
        base.snapshot()
    assert path.read_bytes() == content
    with closing(kind.open(path)) as base:
        assert base.tid == tid


def test_a_file_of_durus_4_is_a_base(tmp_path: Path) -> None:
    path = tmp_path / "base"
    with closing(Shelf().open(path)) as base, Connection(base) as connection:
        connection.root["count"] = 1
        connection.commit()
    with OverlayStorage(path) as overlay, Connection(overlay) as connection:
        connection.root["count"] = 2
        connection.commit()
    with OverlayStorage(path) as overlay, Connection(overlay) as connection:
        assert connection.root["count"] == 1


def test_what_cannot_be_read_is_closed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[FileStorage] = []

    def fail(storage: FileStorage, at: Tid | None = None) -> Snapshot:
        opened.append(storage)
        raise StorageError("cannot be read")

    FileStorage(tmp_path / "base").close()
    with monkeypatch.context() as patch:
        patch.setattr(FileStorage, "snapshot", fail)
        with pytest.raises(StorageError, match="cannot be read"):
            OverlayStorage(tmp_path / "base")
    (storage,) = opened
    with pytest.raises(StorageClosedError):
        storage.snapshot()


def test_what_others_change_behind_a_server_is_a_conflict(tmp_path: Path) -> None:
    with closing(Served().open(tmp_path / "base")) as base:
        a, b = create(base, 2)
        overlay, another = OverlayStorage(base), OverlayStorage(base)
        commit(another, {a: make_record("mine")})
        commit(base, {a: make_record("later")})
        with pytest.raises(ReadConflictError) as caught:
            value(overlay, a)
        assert caught.value.oids == [a]
        assert value(overlay, b) == 0
        assert value(another, a) == "mine"
        with closing(OverlayStorage(base)) as newer:
            assert value(newer, a) == "later"


def test_an_overlay_can_be_served(tmp_path: Path) -> None:
    base = MemoryStorage()
    with Connection(base) as connection:
        connection.root["a"] = PersistentDict(value=1)
        connection.commit()
    with StorageServer(OverlayStorage(base), port=0).running() as address:
        for value in (2, 3):
            with ClientStorage(address=address) as client, Connection(client) as connection:
                connection.root["a"]["value"] = value
                connection.root[str(value)] = PersistentDict()
                connection.commit()
        with ClientStorage(address=address) as client:
            # Its objects have such oids as the overlay of the client would hand out.
            with Connection(OverlayStorage(client)) as connection:
                assert connection.root["a"]["value"] == 3
                connection.root["b"] = PersistentDict(value=4)
                connection.commit()
                assert sorted(connection.root) == ["2", "3", "a", "b"]
            with Connection(client) as connection:
                assert sorted(connection.root) == ["2", "3", "a"]
    with Connection(base) as connection:
        assert dict(connection.root["a"]) == {"value": 1}


def go_on_in_a_child(path: str) -> None:  # the program of the test after it
    with closing(FileStorage(path)) as base, Connection(base) as connection:
        connection.root["a"] = 1
        connection.commit()
        overlay = OverlayStorage(base)
        connection.root["a"] = "later"
        connection.commit()

        def child() -> None:
            with Connection(overlay) as connection:
                assert connection.root["a"] == 1
                connection.root["b"] = PersistentDict(value=2)
                connection.commit()
            with Connection(overlay) as connection:
                assert connection.root["b"]["value"] == 2

        def load_many() -> None:
            with closing(overlay.snapshot()) as snapshot:
                assert [oid for oid, _ in snapshot.load_many([ROOT_OID])] == [ROOT_OID]

        wait_for_child(fork(child))
        wait_for_child(fork(load_many))
        with Connection(overlay) as connection:
            assert dict(connection.root) == {"a": 1}


def test_an_overlay_goes_on_in_a_forked_child(tmp_path: Path) -> None:
    run_alone(go_on_in_a_child, tmp_path / "base")
