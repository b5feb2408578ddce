"""Whole SQLite files, read and written as streams of transactions; and the verifier."""

import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from durus.error import HistoryUnavailableError, NotADatabaseError, StorageError, StorageOpenError
from durus.file_format import Finding, StoredDatabase, StoredTransaction
from durus.interfaces import NO_TID, OID_LIMIT, ROOT_OID, Oid, Record, Tid
from durus.record import record_to_classic
from durus.sqlite_copy import read_sqlite, write_sqlite
from durus.sqlite_storage import SqliteStorage
from durus.sqlite_verify import verify_sqlite
from durus.testing.storage_contract import commit, create, make_record, make_transaction, value_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.sqlite"


def oid_of(number: int) -> Oid:
    return Oid(number.to_bytes(8))


def read(path: Path) -> tuple[list[StoredTransaction], Tid, int]:
    with read_sqlite(str(path)) as database:
        transactions = [replace(t, records=list(t.records)) for t in database.transactions]
        return transactions, database.horizon, database.next_oid


def database_of(*transactions: StoredTransaction, next_oid: int = 0) -> StoredDatabase:
    return StoredDatabase(transactions=transactions, next_oid=next_oid)


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def problems(path: Path) -> list[tuple[int | None, str]]:
    return [
        (None if finding.oid is None else int.from_bytes(finding.oid), finding.problem)
        for finding in verify_sqlite(str(path))
    ]


# Read and write


def test_everything_comes_back_with_its_history(path: Path, tmp_path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        a, b = create(storage, 2)
        made = make_transaction(storage.tid, {a: make_record("new", [b])}, note="ä\0")
        tid = storage.commit(made).tid
        next_oid = int.from_bytes(storage.reserve_oids(1)[0]) + 1
    transactions, horizon, found_next_oid = read(path)
    assert len(transactions) == 3
    assert transactions[-1] == StoredTransaction(
        records=[(a, make_record("new", [b]))],
        tid=tid,
        id=made.id,
        time_ns=made.time_ns,
        user="ann",
        note="ä\0",
    )
    assert horizon == NO_TID
    assert found_next_oid >= next_oid
    copy = tmp_path / "copy"
    with read_sqlite(str(path)) as database:
        write_sqlite(str(copy), database)
    assert read(copy) == read(path)
    assert problems(copy) == []


def test_a_packed_file_comes_back_with_its_horizon(path: Path, tmp_path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        a, b = create(storage, 2)
        commit(storage, {ROOT_OID: make_record(1, [a])})
        storage.pack()
        horizon = storage.tid
        last = commit(storage, {a: make_record(2)}).tid
    copy = tmp_path / "copy"
    with read_sqlite(str(path)) as database:
        write_sqlite(str(copy), database)
    assert read(copy) == read(path)
    with closing(SqliteStorage(copy)) as storage:
        assert storage.tid == last
        with pytest.raises(HistoryUnavailableError):
            storage.snapshot(Tid(horizon - 1))
        with closing(storage.snapshot(horizon)) as snapshot:
            assert value_of(snapshot.load(a).record) == 0
            assert list(snapshot.load_many([b])) == []
        assert storage.changes(Tid(horizon - 1), last) is None
        assert storage.changes(horizon, last) == frozenset({a})
        (new,) = storage.reserve_oids(1)
        assert new > b


def test_a_base_without_tid_gets_one_of_now(path: Path) -> None:
    a = oid_of(1)
    base = StoredTransaction(records=[(a, make_record("a")), (ROOT_OID, make_record("root", [a]))])
    later = StoredTransaction(records=[(a, make_record("b"))])
    write_sqlite(str(path), database_of(base, later, next_oid=7))
    with closing(SqliteStorage(path)) as storage:
        first, second = storage.transactions()
        assert first.tid < second.tid == storage.tid
        assert list(first.oids) == [ROOT_OID, a]
        assert storage.find(0) is None
        with pytest.raises(HistoryUnavailableError):
            storage.snapshot(Tid(first.tid - 1))
        with closing(storage.snapshot(first.tid)) as snapshot:
            assert value_of(snapshot.load(a).record) == "a"
        assert storage.reserve_oids(1) == [oid_of(7)]
        assert commit(storage, {a: make_record("c")}).changed == frozenset()
    assert problems(path) == []


def test_what_is_written_is_one_file(path: Path) -> None:
    write_sqlite(str(path), database_of())
    assert os.listdir(path.parent) == [path.name]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_that_is_there_is_not_written_over(path: Path) -> None:
    path.write_bytes(b"mine")
    with pytest.raises(StorageOpenError, match=r"cannot be made: .*nothing is overwritten"):
        write_sqlite(str(path), database_of())
    assert path.read_bytes() == b"mine"
    with pytest.raises(StorageOpenError, match=r"directory .*missing does not exist"):
        write_sqlite(str(path.parent / "missing" / "file"), database_of())


def _interrupted() -> Iterator[tuple[Oid, Record]]:
    yield ROOT_OID, make_record(0)
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("transactions", "error", "message"),
    [
        ([StoredTransaction(records=_interrupted())], KeyboardInterrupt, ""),
        (
            [StoredTransaction(records=[(oid_of(OID_LIMIT), make_record(0))])],
            StorageError,
            "oid 281474976710656.*renumber=True",
        ),
        (
            [StoredTransaction(records=[], tid=Tid(5)), StoredTransaction(records=[], tid=Tid(5))],
            StorageError,
            "tid 5 cannot come after one with 5",
        ),
        (
            [StoredTransaction(records=[(ROOT_OID, make_record(0))] * 2)],
            StorageError,
            "UNIQUE constraint",
        ),
        (
            [StoredTransaction(records=[(ROOT_OID, Record(b"", b"", b"123"))])],
            StorageError,
            "references of oid 0 are no oids",
        ),
    ],
    ids=["interrupt", "oid", "tid", "twice", "refs"],
)
def test_what_fails_leaves_no_file(
    path: Path, transactions: list[StoredTransaction], error: type[BaseException], message: str
) -> None:
    with pytest.raises(error, match=message or None):
        write_sqlite(str(path), database_of(*transactions))
    assert os.listdir(path.parent) == []


def test_what_is_read_is_of_one_moment(path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        oids = create(storage, 10)
        with read_sqlite(str(path)) as database:
            transactions = iter(database.transactions)
            next(transactions)
            for oid in oids:
                commit(storage, {oid: make_record("later")})
            storage.pack()
            (second,) = transactions
            assert len(list(second.records)) == 11


def test_what_is_no_database_is_not_read(path: Path) -> None:
    path.write_bytes(b"a text")
    with pytest.raises(NotADatabaseError), read_sqlite(str(path)):
        pass
    with pytest.raises(NotADatabaseError):
        list(verify_sqlite(str(path)))


def test_memory_does_not_grow_with_the_database(path: Path) -> None:
    script = """
        import os, resource, sys
        from durus.file_format import StoredDatabase, StoredTransaction
        from durus.interfaces import Record
        from durus.sqlite_copy import read_sqlite, write_sqlite
        from durus.sqlite_storage import SqliteStorage
        from durus.sqlite_verify import verify_sqlite

        def peak_mb():
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak >> (20 if sys.platform == "darwin" else 10)

        path = sys.argv[1]
        records = ((n.to_bytes(8), Record(b"c", bytes(100_000), b"")) for n in range(2_000))
        before = peak_mb()
        write_sqlite(path, StoredDatabase(transactions=[StoredTransaction(records=records)]))
        with read_sqlite(path) as database:
            assert sum(1 for t in database.transactions for _ in t.records) == 2_000
        assert list(verify_sqlite(path)) == []
        storage = SqliteStorage(path)
        storage.pack()
        storage.close()
        assert os.path.getsize(path) < 1_000_000  # all but the root was packed away
        print(peak_mb() - before)
        """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(printed) < 50


# Files of Durus 4.x


def make_classic(path: Path, *rows: tuple[int, bytes | None, bytes | None]) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE objects (id integer primary key, data blob, refs blob)")
        connection.executemany("INSERT INTO objects VALUES (?, ?, ?)", rows)


def classic_data(value: object) -> bytes:
    return record_to_classic(ROOT_OID, make_record(value))[12:]


def test_a_file_of_durus_4_is_one_transaction_without_tid(path: Path, tmp_path: Path) -> None:
    make_classic(
        path, (1, classic_data("a"), b""), (0, classic_data("root"), oid_of(1) + oid_of(1))
    )
    expected = [(ROOT_OID, make_record("root", [oid_of(1)])), (oid_of(1), make_record("a"))]
    assert read(path) == ([StoredTransaction(records=expected)], NO_TID, 0)
    copy = tmp_path / "copy"
    with read_sqlite(str(path)) as database:
        write_sqlite(str(copy), database)
    with closing(SqliteStorage(copy)) as storage:
        assert not storage.readonly
        assert storage.reserve_oids(1) == [oid_of(2)]


def test_an_empty_file_of_durus_4_is_an_empty_database(path: Path) -> None:
    make_classic(path)
    assert read(path) == ([StoredTransaction(records=[])], NO_TID, 0)
    assert problems(path) == []


# Verify


def test_a_sound_file_has_no_findings(path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        a, b = create(storage, 2)
        commit(storage, {ROOT_OID: make_record(1, [a]), a: make_record(1, [b])})
        assert problems(path) == []
        storage.pack()
        commit(storage, {a: make_record(1)})
        storage.pack()
        assert problems(path) == []
    assert problems(path) == []
    make_classic(path.with_name("classic"), (0, classic_data("root"), b""))
    assert problems(path.with_name("classic")) == []


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE revisions SET refs = x'00'", (0, "the record is no record")),
        ("UPDATE revisions SET state = 'text' WHERE oid = 2", (2, "the record is no record")),
        ("UPDATE revisions SET class = NULL WHERE oid = 2", (2, "the record is no record")),
        (
            "UPDATE revisions SET class = NULL, state = NULL, refs = NULL WHERE oid = 2",
            (2, "there is no record, and no pack since"),
        ),
        (
            "UPDATE revisions SET refs = x'00000000000000020000000000000001' WHERE oid = 0",
            (0, "the references do not ascend"),
        ),
        ("DELETE FROM revisions WHERE oid = 2", (0, "it refers to oid 2, which does not exist")),
        ("DELETE FROM transactions", (1, "no transaction has this tid")),
        ("UPDATE meta SET next_oid = 2", (2, "the next oid is too small")),
        ("INSERT INTO meta SELECT * FROM meta", (None, "the table meta has more than one row")),
        ("INSERT INTO transactions VALUES (0, 0, 0, '', '')", (None, "the tid is not larger")),
        ("UPDATE meta SET horizon = 'x'", (None, "in the table meta")),
        ("UPDATE meta SET packs = 1.5", (None, "in the table meta")),
        ("UPDATE transactions SET id = 'x'", (None, "is no transaction")),
        ("UPDATE transactions SET user = x'00'", (None, "is no transaction")),
        ("UPDATE transactions SET note = CAST(x'ff' AS TEXT)", (None, "Could not decode")),
        ("UPDATE revisions SET oid = 'x' WHERE oid = 2", (None, "a revision has the oid 'x'")),
        ("UPDATE revisions SET tid = 1.5 WHERE oid = 2", (None, "the tid 1.5")),
        ("UPDATE revisions SET class = 7 WHERE oid = 2", (2, "the record is no record")),
        ("DELETE FROM meta", (None, "no numbers, but None in the table meta")),
        (
            "UPDATE sqlite_master SET sql = replace(sql, '(oid, tid)', '(tid, oid)')"
            " WHERE name = 'revisions_of_an_object'",
            (None, "SQLite says: row 1 missing from index"),
        ),
    ],
)
def test_what_is_wrong_is_found(
    path: Path, statement: str, expected: tuple[int | None, str]
) -> None:
    with closing(SqliteStorage(path)) as storage:
        create(storage, 2)
    execute(path, "PRAGMA writable_schema = ON", statement)
    found = problems(path)
    assert any(oid == expected[0] and expected[1] in problem for oid, problem in found), found


def test_everything_that_is_wrong_is_found(path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        create(storage, 4)
    execute(
        path,
        "UPDATE meta SET forgotten = 'x'",
        "UPDATE transactions SET id = 'x'",
        "UPDATE revisions SET oid = oid || 'x' WHERE oid IN (1, 2)",
        "UPDATE revisions SET refs = x'00' WHERE oid IN (3, 4)",
    )
    found = problems(path)
    for expected in (
        "in the table meta",
        "is no transaction",
        "the oid '1x'",
        "the oid '2x'",
        "it refers to oid 1, which",
        "it refers to oid 2, which",
    ):
        assert any(expected in problem for _, problem in found), found
    assert [oid for oid, problem in found if problem == "the record is no record"] == [3, 4]


def test_a_finding_names_tid_and_oid(path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        create(storage, 1)
        tid = commit(storage, {oid_of(1): make_record(1)}).tid
    execute(path, f"UPDATE revisions SET refs = x'00' WHERE tid = {tid}")
    assert list(verify_sqlite(str(path))) == [
        Finding(None, tid, oid_of(1), "the record is no record")
    ]


def test_what_is_wrong_in_a_file_of_durus_4_is_found(path: Path) -> None:
    make_classic(
        path,
        (0, classic_data("root"), oid_of(1) + oid_of(9)),
        (1, classic_data("a"), b"123"),
        (2, None, b""),
    )
    assert problems(path) == [
        (2, "there is no record"),
        (0, "it refers to oid 9, which does not exist"),
        (1, "the record is no record"),
    ]
