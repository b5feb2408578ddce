"""A whole log as a stream of transactions, and back: nothing is lost, and nothing is half there."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durus.error import (
    CorruptionError,
    HistoryUnavailableError,
    NotADatabaseError,
    StorageError,
    StorageOpenError,
)
from durus.file_format import StoredDatabase, StoredTransaction
from durus.file_storage import FileStorage
from durus.file_system import OperatingSystem
from durus.interfaces import NO_TID, OID_LIMIT, ROOT_OID, Oid, Record, Tid
from durus.log_format import MARK_TAG
from durus.log_transfer import read_log, write_log
from durus.log_verify import verify_file
from durus.testing.storage_contract import commit, create, make_record, value_of


def oid_of(number: int) -> Oid:
    return Oid(number.to_bytes(8))


def read_all(path: Path) -> list[tuple[StoredTransaction, list[tuple[Oid, Record]]]]:
    with read_log(str(path)) as stored:
        return [(transaction, list(transaction.records)) for transaction in stored.transactions]


def base(records: Iterator[tuple[Oid, Record]]) -> StoredDatabase:
    return StoredDatabase(transactions=[StoredTransaction(records=records)])


def many(count: int) -> Iterator[tuple[Oid, Record]]:
    """The root, which refers to nothing, and others."""
    return ((oid_of(number), make_record(number)) for number in range(count))


Content = dict[int, int]
contents = st.dictionaries(
    st.one_of(st.integers(0, 30), st.integers(0, OID_LIMIT - 1)), st.integers(), max_size=5
)
heads = st.tuples(
    st.integers(1, 2**20), st.integers(0, 2**64 - 1), st.integers(0, 2**62), st.text(max_size=9)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(heads, contents), max_size=100), st.booleans())
def test_what_is_written_is_read(
    tmp_path: Path, wanted: list[tuple[tuple[int, int, int, str], Content]], keeps_horizon: bool
) -> None:
    path = tmp_path / "written"
    path.unlink(missing_ok=True)
    transactions = []
    tid = 2**60
    revisions: dict[int, list[int]] = {}
    for (step, transaction_id, time_ns, text), content in wanted:
        tid += step
        transactions.append(
            StoredTransaction(
                records=[(oid_of(n), make_record(v)) for n, v in content.items()],
                tid=Tid(tid),
                id=transaction_id,
                time_ns=time_ns,
                user=text,
                note=text * 2,
            )
        )
        for number, value in content.items():
            revisions.setdefault(number, []).insert(0, value)
    horizon = transactions[0].tid if keeps_horizon and transactions else NO_TID
    write_log(
        str(path),
        StoredDatabase(transactions=iter(transactions), horizon=horizon, next_oid=OID_LIMIT - 7),
    )
    assert list(verify_file(str(path))) == []
    with read_log(str(path)) as stored:
        assert stored.horizon == horizon
        assert stored.next_oid == max([OID_LIMIT - 7, *(number + 1 for number in revisions)])
    for original, (found, records) in zip(transactions, read_all(path), strict=True):
        assert sorted(original.records) == records
        assert (original.tid, original.id, original.time_ns) == (found.tid, found.id, found.time_ns)
        assert (original.user, original.note) == (found.user, found.note)
    with closing(FileStorage(path)) as storage:
        for number, values in revisions.items():
            found_revisions = storage.revisions(oid_of(number))
            assert [value_of(revision.record) for revision in found_revisions] == values


def test_what_was_visible_when_the_file_was_opened_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with closing(FileStorage(path)) as storage:
        (a,) = create(storage, 1)
        with read_log(str(path)) as stored:
            transactions = iter(stored.transactions)
            commit(storage, {a: make_record("later")})
            storage.pack()
            values = [value_of(r) for t in transactions for _, r in t.records]
            assert values == [0, 0, 0]


def test_reading_adopts_a_commit_whose_mark_a_crash_has_prevented(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with closing(FileStorage(path)) as storage:
        (a,) = create(storage, 1)
        commit(storage, {a: make_record("unmarked")})
    path.write_bytes(path.read_bytes()[:-44])
    with path.open("rb") as committer:
        fcntl.flock(committer, fcntl.LOCK_EX)
        assert len(read_all(path)) == 2  # it might be about to mark it
    assert [value_of(record) for _, record in read_all(path)[-1][1]] == ["unmarked"]


def test_a_damaged_record_is_reported_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_log(str(path), base(iter([(ROOT_OID, make_record("needle"))])))
    content = bytearray(path.read_bytes())
    content[content.index(b"needle")] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptionError, match="oid 0"):
        read_all(path)


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database")
    with pytest.raises(NotADatabaseError), read_log(str(tmp_path / "text")):
        pass
    with pytest.raises(StorageOpenError, match="no such file"), read_log(str(tmp_path / "no")):
        pass


# A base


def test_a_base_is_written_in_parts_and_seen_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_log(str(path), base(many(2500)))
    assert list(verify_file(str(path))) == []
    sizes = [len(records) for _, records in read_all(path)]
    assert sizes == [1000, 1000, 500]
    with closing(FileStorage(path)) as storage:
        newest = storage.tid
        with pytest.raises(HistoryUnavailableError):
            storage.snapshot(Tid(newest - 1))
        assert storage.changes(Tid(newest - 1), newest) is None
        with closing(storage.snapshot(newest)) as snapshot:
            assert len(list(snapshot.load_many(map(oid_of, range(2500))))) == 2500
        assert storage.reserve_oids(1) == [oid_of(2500)]
        result = commit(storage, {oid_of(7): make_record("changed")})
        assert storage.changes(newest, result.tid) == frozenset([oid_of(7)])
    with closing(FileStorage(path)) as storage:
        assert [value_of(r.record) for r in storage.revisions(oid_of(7))] == ["changed", 7]


def test_large_records_make_small_parts(tmp_path: Path) -> None:
    path = tmp_path / "file"
    records = ((oid_of(number), make_record("x" * (1 << 20))) for number in range(10))
    write_log(str(path), base(records))
    assert [len(found) for _, found in read_all(path)] == [4, 4, 2]


def test_the_parts_are_read_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    sizes = []

    def records() -> Iterator[tuple[Oid, Record]]:
        for number, record in many(5000):
            if int.from_bytes(number) % 1000 == 0:
                sizes.append(path.stat().st_size)
            yield number, record

    write_log(str(path), base(records()))
    assert sizes[0] == 0
    assert sizes[-1] > path.stat().st_size // 3  # two parts are in memory at most


def test_the_same_object_may_be_twice_in_a_base(tmp_path: Path) -> None:
    path = tmp_path / "file"
    twice = [(ROOT_OID, make_record("old")), *many(2000), (ROOT_OID, make_record("new"))]
    write_log(str(path), base(iter(twice)))
    assert list(verify_file(str(path))) == []
    with closing(FileStorage(path)) as storage, closing(storage.snapshot()) as snapshot:
        assert value_of(snapshot.load(ROOT_OID).record) == "new"


def test_a_first_transaction_of_a_program_is_kept_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    first = StoredTransaction(records=many(2500), tid=Tid(10**18), id=7, note="import")
    write_log(str(path), StoredDatabase(transactions=[first]))
    ((found, records),) = read_all(path)
    assert (found.tid, found.id, found.note, len(records)) == (10**18, 7, "import", 2500)
    with read_log(str(path)) as stored:
        assert stored.horizon == NO_TID


def test_a_very_large_first_transaction_is_written_in_parts(tmp_path: Path) -> None:
    """Where it comes from, it may have been a base, and need not fit into memory."""
    path = tmp_path / "file"
    records = ((oid_of(number), make_record("x" * (1 << 20))) for number in range(70))
    first = StoredTransaction(records=records, tid=Tid(10**18), id=7, note="import")
    second = StoredTransaction(records=many(1), tid=Tid(10**18 + 1), id=8)
    write_log(str(path), StoredDatabase(transactions=[first, second], horizon=Tid(5)))
    assert list(verify_file(str(path))) == []
    with closing(FileStorage(path)) as storage:
        assert [len(t.oids) for t in storage.transactions()] == [64, 6, 1]
        assert storage.find(7) == 10**18
        with closing(storage.snapshot(Tid(10**18))) as snapshot:
            assert len(list(snapshot.load_many(map(oid_of, range(70))))) == 70
        with pytest.raises(HistoryUnavailableError):
            storage.snapshot(Tid(10**18 - 1))


def test_transactions_after_a_base_follow_it_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    transactions = [
        StoredTransaction(records=many(1500)),
        StoredTransaction(records=[(oid_of(3), make_record("a"))]),
        StoredTransaction(records=many(1500)),
        StoredTransaction(records=[]),
    ]
    write_log(str(path), StoredDatabase(transactions=iter(transactions)))
    assert list(verify_file(str(path))) == []
    found = read_all(path)
    assert [len(records) for _, records in found] == [1000, 500, 1, 1500, 0]
    with closing(FileStorage(path)) as storage:
        assert [value_of(r.record) for r in storage.revisions(oid_of(3))] == [3, "a", 3]
        with closing(storage.snapshot(found[2][0].tid)) as snapshot:
            assert value_of(snapshot.load(oid_of(3)).record) == "a"
        commit(storage, {oid_of(3): make_record("b")})


def test_an_empty_base_hides_nothing(tmp_path: Path) -> None:
    """As in a SHELF-1 file that was never packed: it must not become a horizon without a tid."""
    path = tmp_path / "file"
    write_log(str(path), base(iter(())))
    with closing(FileStorage(path)) as storage:
        assert storage.tid == NO_TID
        create(storage, 1)
    path.unlink()
    transactions = [StoredTransaction(records=[]), StoredTransaction(records=many(1))]
    write_log(str(path), StoredDatabase(transactions=transactions))
    with closing(FileStorage(path)) as storage:
        assert storage.tid > 10**18  # nanoseconds since 1970, as any other
        commit(storage, {ROOT_OID: make_record(1)})
    assert list(verify_file(str(path))) == []


def test_after_a_horizon_without_a_transaction_one_can_commit(tmp_path: Path) -> None:
    """Whoever packed the source need not have kept the last transaction."""
    path = tmp_path / "file"
    transactions = [StoredTransaction(records=many(1), tid=Tid(5))]
    write_log(str(path), StoredDatabase(transactions=transactions, horizon=Tid(7)))
    assert list(verify_file(str(path))) == []
    with closing(FileStorage(path)) as storage:
        assert storage.tid == 7
        commit(storage, {ROOT_OID: make_record(1)})


def test_many_transactions_share_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "file"
    transactions = [
        StoredTransaction(records=many(1), tid=Tid(number)) for number in range(1, 1001)
    ]
    write_log(str(path), StoredDatabase(transactions=transactions))
    assert path.read_bytes().count(MARK_TAG) == 16
    assert list(verify_file(str(path))) == []


# What cannot be written


def test_an_existing_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"precious")
    with pytest.raises(StorageOpenError, match="cannot be made") as caught:
        write_log(str(path), base(many(1)))
    assert caught.value.errno == errno.EEXIST
    assert path.read_bytes() == b"precious"


def failing() -> Iterator[tuple[Oid, Record]]:
    yield from many(1500)
    raise KeyboardInterrupt


BAD = [
    pytest.param(base(failing()), KeyboardInterrupt, None, id="interrupted"),
    pytest.param(
        base(iter([(oid_of(OID_LIMIT), make_record(1))])), StorageError, "renumber", id="large-oid"
    ),
    pytest.param(
        base(iter([(ROOT_OID, Record(b"", b"", b""))])), StorageError, "oid 0", id="empty-record"
    ),
    pytest.param(
        StoredDatabase(
            transactions=[
                StoredTransaction(records=many(1), tid=Tid(7)),
                StoredTransaction(records=many(1), tid=Tid(7)),
            ]
        ),
        ValueError,
        "tid 7 does not come after tid 7",
        id="tids",
    ),
]


@pytest.mark.parametrize(("database", "error", "message"), BAD)
def test_after_an_error_there_is_no_file(
    tmp_path: Path, database: StoredDatabase, error: type[BaseException], message: str | None
) -> None:
    path = tmp_path / "file"
    with pytest.raises(error, match=message):
        write_log(str(path), database)
    assert not path.exists()


class FullDisk(OperatingSystem):
    """Fails at the n-th call of one of the three."""

    def __init__(self, remaining: int) -> None:
        self.remaining = remaining

    def _step(self) -> None:
        self.remaining -= 1
        if self.remaining == 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def append(self, fd: int, content: bytes | memoryview) -> int:
        self._step()
        return super().append(fd, content)

    def sync(self, fd: int) -> None:
        self._step()

    def sync_directory(self, path: str) -> None:
        self._step()


def test_a_full_disk_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for step in range(1, 100):
        system = FullDisk(step)
        try:
            write_log(str(path), base(many(1500)), system)
        except StorageError as error:
            assert "No space left" in str(error)  # noqa: PT017 (it is not raised in the end)
            assert str(path) in str(error)  # noqa: PT017 (as above)
            assert not path.exists()
        else:
            assert step == 6  # header with a part, another, mark; both syncs
            break
    assert list(verify_file(str(path))) == []
