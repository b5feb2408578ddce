"""What the FAQ promises to programs with the classic API, over every kind of storage.

`docs/faq.md` has the questions; each test here is an answer to one.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from durus.connection import Connection, gen_every_instance
from durus.error import ConflictError, ForeignReferenceError, ReadConflictError, WriteConflictError
from durus.file_storage import FileStorage
from durus.persistent import Persistent
from durus.persistent_dict import PersistentDict
from tests.databases import DATABASES, Database, open_databases

THREADS = 4
ROUNDS = 15


class Cell(Persistent):
    def __init__(self, value: int = 0) -> None:
        self.value = value


class MarkedCell(Cell):
    pass


@pytest.fixture(params=list(DATABASES.values()), ids=list(DATABASES))
def make_database(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[[], Database]]:
    """Makes a new database at each call; they are closed after the test."""
    with open_databases(request, tmp_path) as make:
        yield make


def where_loads(newest: bool) -> pytest.MarkDecorator:
    """For a test of the databases whose `loads_newest` is this."""
    chosen = {name: kind for name, kind in DATABASES.items() if kind.loads_newest is newest}
    return pytest.mark.parametrize(
        "make_database", list(chosen.values()), ids=list(chosen), indirect=True
    )


@pytest.fixture
def database(make_database: Callable[[], Database]) -> Database:
    return make_database()


@pytest.fixture
def ann(database: Database) -> Connection[Any]:
    """A client of a database with the cells a and b, all of it loaded."""
    connection = database.connect()
    connection.root["a"], connection.root["b"] = Cell(), Cell()
    connection.commit()
    return connection


@pytest.fixture
def bob(ann: Connection[Any], database: Database) -> Connection[Any]:
    """Another client, that holds a and b as ghosts and has accessed nothing."""
    connection = database.connect()
    assert connection.root["a"]._p_is_ghost()
    assert connection.root["b"]._p_is_ghost()
    connection.abort()
    return connection


def change(connection: Connection[Any], *names: str) -> None:
    """Commit a change of these cells."""
    for name in names:
        connection.root[name].value += 1
    connection.commit()


# I made a change in one client but it is not visible in another client.


def test_a_change_is_invisible_to_another_client_until_its_abort(
    ann: Connection[Any], bob: Connection[Any]
) -> None:
    assert bob.root["a"].value == 0
    change(ann, "a")
    assert bob.root["a"].value == 0
    bob.abort()
    assert bob.root["a"].value == 1


def test_a_change_is_invisible_to_another_client_until_its_commit(
    ann: Connection[Any], bob: Connection[Any]
) -> None:
    assert bob.root["a"].value == 0
    change(ann, "a")
    assert bob.root["a"].value == 0
    bob.commit()
    assert bob.root["a"].value == 1


def test_a_commit_of_other_objects_shows_the_change_too(
    ann: Connection[Any], bob: Connection[Any]
) -> None:
    assert bob.root["a"].value == 0
    bob.commit()
    change(ann, "a")
    bob.root["b"].value = 7
    bob.commit()
    assert bob.root["a"].value == 1


def test_what_is_not_committed_is_seen_by_nobody_else(
    ann: Connection[Any], bob: Connection[Any]
) -> None:
    ann.root["a"].value = 7
    bob.abort()
    assert bob.root["a"].value == 0


def test_abort_gives_changes_up(ann: Connection[Any]) -> None:
    ann.root["a"].value = 7
    ann.root["c"] = Cell()
    ann.abort()
    assert ann.root["a"].value == 0
    assert "c" not in ann.root


# When does a write conflict occur?


@pytest.mark.parametrize("access", ["read", "write"])
def test_a_commit_conflicts_when_an_accessed_object_was_changed_elsewhere(
    access: str, ann: Connection[Any], bob: Connection[Any]
) -> None:
    if access == "read":
        assert bob.root["a"].value == 0
    else:
        bob.root["a"].value = 7
    bob.root["b"].value = 7
    change(ann, "a")
    with pytest.raises(WriteConflictError) as caught:
        bob.commit()
    assert isinstance(caught.value, ConflictError)
    assert caught.value.oids in (None, [ann.root["a"]._p_oid])
    ann.abort()
    assert ann.root["b"].value == 0


def test_a_commit_does_not_conflict_when_what_was_changed_elsewhere_was_not_accessed(
    ann: Connection[Any], bob: Connection[Any]
) -> None:
    assert bob.root["a"].value == 0
    bob.commit()  # a is loaded, but that was an earlier transaction
    change(ann, "a")
    change(bob, "b")
    assert bob.root["a"].value == 1
    ann.abort()
    assert ann.root["b"].value == 1


def test_what_was_accessed_counts_even_when_nobody_holds_it_any_more(
    ann: Connection[Any], bob: Connection[Any]
) -> None:
    assert bob.root["a"].value == 0
    bob.cache.recent_objects.discard(bob.root["a"])
    bob.root._p_set_status_ghost()
    change(ann, "a")
    bob.root["b"].value = 7
    with pytest.raises(WriteConflictError):
        bob.commit()


def test_a_commit_without_changes_never_raises(ann: Connection[Any], bob: Connection[Any]) -> None:
    assert bob.root["a"].value == bob.root["b"].value == 0
    change(ann, "a", "b")
    assert bob.commit() is None
    assert bob.root["a"].value == bob.root["b"].value == 1


def test_of_two_new_objects_under_one_key_the_second_conflicts(
    ann: Connection[Any], bob: Connection[Any]
) -> None:
    bob.root["c"] = Cell(2)
    ann.root["c"] = Cell(1)
    ann.commit()
    with pytest.raises(WriteConflictError):
        bob.commit()
    bob.abort()
    assert bob.root["c"].value == 1


# When does a read conflict occur?


@where_loads(newest=True)
def test_loading_what_does_not_fit_with_what_was_examined_is_a_read_conflict(
    ann: Connection[Any], bob: Connection[Any]
) -> None:
    a, b = bob.root["a"], bob.root["b"]
    assert a.value == 0
    change(ann, "a", "b")
    with pytest.raises(ReadConflictError):
        b.value  # noqa: B018 - loading it is the point


@where_loads(newest=True)
def test_no_read_conflict_when_what_was_examined_is_unchanged(
    ann: Connection[Any], bob: Connection[Any]
) -> None:
    a, b = bob.root["a"], bob.root["b"]
    assert a.value == 0
    change(ann, "b")
    assert b.value == 1
    a.value = 7
    bob.commit()


@where_loads(newest=True)
def test_no_read_conflict_when_nothing_was_examined(
    ann: Connection[Any], bob: Connection[Any]
) -> None:
    b = bob.root["b"]
    bob.abort()
    change(ann, "a", "b")
    assert b.value == 1


@where_loads(newest=False)
def test_without_telling_each_other_clients_read_what_was_newest_when_they_began(
    ann: Connection[Any], bob: Connection[Any]
) -> None:
    a, b = bob.root["a"], bob.root["b"]
    assert a.value == 0
    change(ann, "a", "b")
    assert b.value == 0
    b.value = 7
    with pytest.raises(WriteConflictError):
        bob.commit()
    bob.abort()
    assert a.value == b.value == 1


def test_a_reader_of_a_log_sees_what_was_newest_when_its_transaction_began(tmp_path: Path) -> None:
    path = tmp_path / "log.durus"
    with FileStorage(path) as written:
        ann = Connection(written)
        ann.root["a"], ann.root["b"] = Cell(), Cell()
        ann.commit()
        with FileStorage(path, readonly=True) as read:
            bob = Connection(read)
            a, b = bob.root["a"], bob.root["b"]
            assert a.value == 0
            change(ann, "a", "b")
            assert b.value == 0
            bob.abort()
            assert a.value == b.value == 1


# What must a client do to recover?


def test_after_a_write_conflict_abort_and_restart(
    ann: Connection[Any], bob: Connection[Any]
) -> None:
    bob.root["a"].value += 10
    change(ann, "a")
    with pytest.raises(WriteConflictError):
        bob.commit()
    bob.abort()
    bob.root["a"].value += 10
    bob.commit()
    ann.abort()
    assert ann.root["a"].value == 11


@where_loads(newest=True)
def test_after_a_read_conflict_abort_and_restart(
    ann: Connection[Any], bob: Connection[Any]
) -> None:
    a, b = bob.root["a"], bob.root["b"]
    assert a.value == 0
    change(ann, "a", "b")
    with pytest.raises(ReadConflictError):
        b.value  # noqa: B018 - loading it is the point
    bob.abort()
    b.value += a.value
    bob.commit()
    ann.abort()
    assert ann.root["b"].value == 2


def test_without_abort_a_conflict_remains(ann: Connection[Any], bob: Connection[Any]) -> None:
    bob.root["a"].value += 10
    change(ann, "a")
    for _ in range(3):
        with pytest.raises(WriteConflictError):
            bob.commit()
    ann.abort()
    assert ann.root["a"].value == 1


# I need to find all objects of a certain class in order to update their attributes.


def test_every_instance_of_a_class_can_be_found_and_changed(
    ann: Connection[Any], bob: Connection[Any]
) -> None:
    ann.root["deep"] = PersistentDict({"c": MarkedCell(), "d": [MarkedCell()]})
    ann.commit()
    bob.abort()
    assert {type(found) for found in gen_every_instance(bob, MarkedCell)} == {MarkedCell}
    found = list(gen_every_instance(bob, Cell))
    assert len(found) == 4
    for cell in found:
        cell.value += 1
    bob.commit()
    ann.abort()
    assert ann.root["a"].value == ann.root["b"].value == ann.root["deep"]["d"][0].value == 1


# Is Durus thread-safe?


def test_separate_connections_work_in_separate_threads(
    ann: Connection[Any], database: Database
) -> None:
    ann.root["counts"] = PersistentDict({i: Cell() for i in range(THREADS)})
    ann.commit()
    barrier = threading.Barrier(THREADS)

    def count(i: int) -> None:
        """Move a and b together and count that, each time until it is done."""
        connection = database.connect()
        barrier.wait()
        done = 0
        while done < ROUNDS:
            try:
                a, b, mine = (
                    connection.root["a"],
                    connection.root["b"],
                    connection.root["counts"][i],
                )
                assert a.value == b.value
                assert mine.value == done
                a.value += 1
                b.value += 1
                mine.value += 1
                connection.commit()
                done += 1
            except ConflictError:
                connection.abort()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(count, range(THREADS)))
    ann.abort()
    assert ann.root["a"].value == ann.root["b"].value == THREADS * ROUNDS
    assert [cell.value for cell in ann.root["counts"].values()] == [ROUNDS] * THREADS


def test_threads_make_new_objects_without_getting_in_each_others_way(
    ann: Connection[Any], database: Database
) -> None:
    for i in range(THREADS):
        ann.root[i] = PersistentDict()
    ann.commit()
    barrier = threading.Barrier(THREADS)

    def fill(i: int) -> None:
        connection = database.connect()
        mine = connection.root[i]
        connection.abort()
        barrier.wait()
        while len(mine) < ROUNDS:
            try:
                mine[len(mine)] = [Cell(len(mine)), Cell(i)]
                connection.commit()
            except ConflictError:
                connection.abort()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fill, range(THREADS)))
    ann.abort()
    found = {
        i: {j: [cell.value for cell in cells] for j, cells in ann.root[i].items()}
        for i in range(THREADS)
    }
    assert found == {i: {j: [j, i] for j in range(ROUNDS)} for i in range(THREADS)}


# Can a Durus application use multiple Durus databases?


def test_two_databases_can_be_used_side_by_side(make_database: Callable[[], Database]) -> None:
    first, second = make_database().connect(), make_database().connect()
    first.root["it"] = Cell(1)
    second.root["it"] = Cell(2)
    first.commit()
    second.abort()
    assert first.root["it"].value == 1
    assert "it" not in second.root


def test_a_reference_to_an_object_of_another_database_is_refused(
    make_database: Callable[[], Database],
) -> None:
    first, second = make_database().connect(), make_database().connect()
    first.root["it"] = Cell()
    first.commit()
    second.root["foreign"] = first.root["it"]
    with pytest.raises(ForeignReferenceError) as caught:
        second.commit()
    assert isinstance(caught.value, ValueError)  # as in 4.3
    second.abort()
    assert "foreign" not in second.root


def test_a_reference_to_an_object_of_another_connection_is_refused(
    ann: Connection[Any], bob: Connection[Any]
) -> None:
    bob.root["foreign"] = ann.root["a"]
    with pytest.raises(ForeignReferenceError):
        bob.commit()
    bob.root["foreign"] = bob.get(ann.root["a"]._p_oid)  # its own copy
    bob.commit()
    ann.abort()
    assert ann.root["foreign"] is ann.root["a"]
