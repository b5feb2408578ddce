"""The past of database files: HistoryConnection by path, and what SHELF-1 and DFS20 files keep."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from durus.classic_history import ClassicHistory
from durus.connection import Connection
from durus.error import (
    CorruptionError,
    DurusKeyError,
    HistoryUnavailableError,
    NotADatabaseError,
    ReadOnlyError,
    StorageClosedError,
    StorageError,
    StorageOpenError,
)
from durus.file_storage import FileStorage, TempFileStorage
from durus.history import HistoryConnection, follow
from durus.interfaces import NO_TID, ROOT_OID, HistoryStorage, Oid, Tid
from durus.persistent import Persistent
from durus.shelf_storage import ShelfStorage
from durus.storage import Storage, open_storage
from durus.testing.storage_contract import make_record, make_transaction


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.durus"


@pytest.fixture(params=["log", "shelf", "dfs20", "sqlite"])
def any_format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["shelf", "dfs20"])
def classic(request: pytest.FixtureRequest, path: Path) -> Iterator[Storage]:
    """A storage of a file that is open for writing all the time."""
    with FileStorage(path, format=request.param) as storage:
        yield storage


def save(connection: Connection, **values: Any) -> None:
    """Assign attributes of the root's objects, of new ones if need be, in one transaction."""
    for name, value in values.items():
        if name not in connection.root:
            connection.root[name] = Persistent()
        connection.root[name].value = value
    connection.commit()


def seen_by(connection: Connection) -> dict[str, Any]:
    return {name: obj.value for name, obj in connection.root.items()}


def walk_back(history: HistoryConnection) -> list[dict[str, Any]]:
    seen = [seen_by(history)]
    while history.previous():
        seen.append(seen_by(history))
    return seen


# Files of all formats.


def test_what_the_tests_of_durus_3_7_say(path: Path, any_format: str) -> None:
    connection = Connection(FileStorage(path, format=any_format))
    root = connection.get_root()
    root["a"] = Persistent()
    root["a"].b = 1
    connection.commit()
    root["b"] = Persistent()
    connection.commit()
    root["b"].a = root["a"]
    root["a"].b = 2
    connection.commit()
    root["a"].b = 3
    connection.commit()
    history = HistoryConnection(connection.get_storage().get_filename())  # type: ignore[union-attr] # of files
    a = history.get_root()["a"]
    assert a.b == 3
    history.previous()
    assert a.b == 2
    history.next()
    assert a.b == 3
    history.previous_instance(a)
    assert a.b == 2
    history.previous_instance(a)
    assert a.b == 1
    history.previous_instance(a)
    assert list(history.get_root().keys()) == []
    with pytest.raises(KeyError):
        getattr(a, "b")  # noqa: B009 - as in 3.7
    history.next_instance(a)
    assert a.b == 1


def test_it_goes_back_to_the_beginning_and_forward_again(path: Path, any_format: str) -> None:
    versions: list[dict[str, Any]] = [{}]
    with Connection(FileStorage(path, format=any_format)) as connection:
        for value in range(6):
            save(connection, **{"ab"[value % 2]: value})
            versions.append(seen_by(connection))
        connection.get_storage().close()
    with HistoryConnection(path) as history:
        assert walk_back(history) == versions[::-1]
        seen = []
        while history.next():
            seen.append(seen_by(history))
        assert seen == versions[1:]


def test_a_tid_in_the_past_is_seen_by_path(path: Path, any_format: str) -> None:
    with Connection(FileStorage(path, format=any_format)) as connection:
        for value in range(4):
            save(connection, a=value)
        with HistoryConnection(path) as history:
            assert history.previous()
            tid = history.tid
        with Connection(path, at=tid) as past:
            assert past.root["a"].value == 2
            with pytest.raises(ReadOnlyError, match="<Persistent 1>"):
                past.root["a"].value = 7
        connection.get_storage().close()


def test_a_packed_file_has_the_transactions_since_then(path: Path, any_format: str) -> None:
    with Connection(FileStorage(path, format=any_format)) as connection:
        for value in range(3):
            save(connection, a=value)
        connection.pack()
        save(connection, b=3)
        save(connection, a=4)
        connection.get_storage().close()
    with HistoryConnection(path) as history:
        assert walk_back(history) == [{"a": 4, "b": 3}, {"a": 2, "b": 3}, {"a": 2}]
        a = history.root["a"]
        assert not history.previous_instance(a)
        assert history.next_instance(a)
        assert a.value == 4


def test_nothing_is_made_and_nothing_left_open(path: Path, any_format: str) -> None:
    with pytest.raises(StorageOpenError):
        HistoryConnection(path)
    assert not path.exists()
    FileStorage(path, format=any_format).close()
    before = count_descriptors()
    with pytest.raises(HistoryUnavailableError, match="no root"):
        HistoryConnection(path)
    with pytest.raises(HistoryUnavailableError, match="no root"):
        Connection(path, at=0)
    Connection(path).close()
    HistoryConnection(path).close()
    Connection(path, at=1 << 40 if any_format in ("shelf", "dfs20") else 1 << 62).close()
    assert count_descriptors() == before


def count_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def test_a_temporary_file_has_history_too() -> None:
    storage = TempFileStorage()
    with Connection(storage) as connection:
        save(connection, a=1)
        save(connection, a=2)
        assert walk_back(HistoryConnection(storage.get_filename())) == [{"a": 2}, {"a": 1}, {}]
    storage.close()


# Files of Durus 4.x.


def test_a_storage_that_is_in_use_has_a_past(classic: Storage) -> None:
    connection = Connection(classic)
    for value in range(3):
        save(connection, a=value)
    with HistoryConnection(classic) as history:
        assert walk_back(history) == [{"a": 2}, {"a": 1}, {"a": 0}, {}]
    save(connection, a=3)  # it is still open
    assert connection.root["a"].value == 3


def test_what_is_committed_or_packed_meanwhile_is_not_seen(classic: Storage) -> None:
    connection = Connection(classic)
    for value in range(3):
        save(connection, a=value)
    history = HistoryConnection(classic)
    a = history.root["a"]
    save(connection, a=3)
    assert not history.next()
    connection.pack()
    for value in (1, 0):
        assert history.previous_instance(a)
        assert a.value == value
    assert walk_back(HistoryConnection(classic)) == [{"a": 3}]


def test_tids_are_numbers_and_there_are_no_times(path: Path, classic: Storage) -> None:
    connection = Connection(classic)
    for value in range(3):
        save(connection, a=value)
    with closing(ClassicHistory(path)) as history:
        found = list(history.transactions())
        assert [t.tid for t in found] == [1, 2, 3, 4]
        assert {(t.id, t.time_ns, t.user, t.note) for t in found} == {(0, 0, "", "")}
        assert [list(map(int.from_bytes, t.oids)) for t in found] == [[0], [0, 1], [1], [1]]
        for at in (datetime.now(UTC), timedelta(days=1), 10**18):
            with pytest.raises(HistoryUnavailableError, match=r"have no times; .* up to 4"):
                Connection(history, at=at)
        with Connection(history, at=2) as past:
            assert seen_by(past) == {"a": 0}
            assert past.transaction is not None
            assert past.transaction.tid == 2


def test_the_packed_part_is_the_first_transaction(path: Path, classic: Storage) -> None:
    connection = Connection(classic)
    save(connection, a=0, b=0)
    save(connection, a=1)
    connection.pack()
    save(connection, b=2)
    with closing(ClassicHistory(path)) as history:
        assert [list(map(int.from_bytes, t.oids)) for t in history.transactions()] == [
            [0, 1, 2],
            [2],
        ]
        with pytest.raises(HistoryUnavailableError, match="packed away"):
            history.snapshot(NO_TID)
        assert history.changes(NO_TID, Tid(2)) is None


def test_it_keeps_the_contract_of_a_storage_with_history(path: Path, classic: Storage) -> None:
    connection = Connection(classic)
    for value in range(3):
        save(connection, a=value)
    a = Oid((1).to_bytes(8))
    missing = Oid((9).to_bytes(8))
    with closing(ClassicHistory(path)) as history:
        assert isinstance(history, HistoryStorage)
        assert history.readonly
        assert history.tid == 4
        assert str(history) == f"ClassicHistory({str(path)!r})"
        assert [t.tid for t in history.transactions(Tid(2), Tid(4))] == [2, 3]
        assert list(history.transactions(Tid(5))) == []
        assert [revision.tid for revision in history.revisions(a)] == [4, 3, 2]
        assert history.changes(Tid(1), Tid(2)) == frozenset([ROOT_OID, a])
        assert history.changes(Tid(2), Tid(4)) == frozenset([a])
        assert history.changes(Tid(4), Tid(4)) == history.changes(Tid(4), Tid(2)) == frozenset()
        assert history.find(0) is None
        with closing(history.snapshot(NO_TID)) as nothing:
            assert list(nothing.load_many([ROOT_OID, a])) == []
        snapshot = history.snapshot(Tid(3))
        assert snapshot.load(a).tid == 3
        assert dict(snapshot.load_many([a, missing])).keys() == {a}
        with pytest.raises(DurusKeyError):
            snapshot.load(missing)
        snapshot.close()
        with pytest.raises(StorageClosedError, match="snapshot"):
            snapshot.load(a)
        with pytest.raises(ReadOnlyError):
            history.reserve_oids(1)
        with pytest.raises(ReadOnlyError):
            history.commit(make_transaction(Tid(4), {a: make_record(1)}))
        assert [t.tid for t in follow(history, 2)] == [3, 4]
    calls: list[Callable[[], object]] = [
        history.snapshot,
        history.transactions,
        lambda: history.revisions(a),
        lambda: history.changes(Tid(1), Tid(2)),
        lambda: history.find(1),
        lambda: history.reserve_oids(1),
        lambda: list(follow(history, 2)),
    ]
    for call in calls:
        with pytest.raises(StorageClosedError):
            call()


def test_a_damaged_record_is_named(path: Path, classic: Storage) -> None:
    connection = Connection(classic)
    save(connection, a=os.urandom(200_000))  # more than is read ahead
    save(connection, b=os.urandom(200_000))
    classic.close()
    a, b = Oid((1).to_bytes(8)), Oid((2).to_bytes(8))
    content = path.read_bytes()
    start = content.rindex(a, 0, -400_000)
    with closing(ClassicHistory(path)) as history:
        path.write_bytes(content[:start] + b + content[start + 8 :])
        with pytest.raises(CorruptionError, match="this is the record of oid 2"):
            history.snapshot().load(a)
        path.write_bytes(content)
        assert history.snapshot().load(a).tid == 2
        os.truncate(path, len(content) - 500)
        with pytest.raises(CorruptionError, match="no whole record"):
            history.snapshot().load(b)
    with pytest.raises(CorruptionError, match="repair=True"):
        HistoryConnection(path)


def test_another_file_is_refused(path: Path) -> None:
    FileStorage(path).close()
    with pytest.raises(NotADatabaseError):
        ClassicHistory(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told_to_open_it_itself(path: Path) -> None:
    storage = ShelfStorage(path)
    save(Connection(storage), a=1)
    history = ClassicHistory(path)
    child = os.fork()
    if not child:
        status = 1
        try:
            history.snapshot()
        except StorageError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert history.snapshot().load(ROOT_OID).tid == 2


def test_by_uri_a_file_of_durus_4_has_a_past(path: Path, classic: Storage) -> None:
    connection = Connection(classic)
    save(connection, a=1)
    with HistoryConnection(f"file://{path}") as history:
        assert walk_back(history) == [{"a": 1}, {}]
    classic.close()
    storage = open_storage(path, readonly=True)
    assert walk_back(HistoryConnection(storage)) == [{"a": 1}, {}]
    storage.close()
