"""Group commit: what the threads that share one sync are told; levels of durability."""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from durus.connection import Connection
from durus.error import (
    CommitOutcomeUnknownError,
    DanglingReferenceError,
    StorageError,
    StorageLockedError,
    WriteConflictError,
)
from durus.file_storage import FileStorage
from durus.file_system import FileStatus, OperatingSystem
from durus.interfaces import CommitResult, Oid
from durus.log_file import LogFile
from durus.log_format import Mark
from durus.log_reader import LogReader
from durus.log_verify import verify_file
from durus.persistent_dict import PersistentDict
from durus.testing.storage_contract import commit, create, make_record, make_transaction, value

THREADS = 8
SYNC_S = 0.005


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "test.durus"
    yield path
    assert list(verify_file(str(path))) == []


class SlowDisk(OperatingSystem):
    """It takes a while to sync, so that others come meanwhile; and it knows what is synced."""

    def __init__(self) -> None:
        self.syncs = 0
        self.appended = b""
        self.synced = b""

    def append(self, fd: int, content: bytes | memoryview) -> int:
        written = super().append(fd, content)
        self.appended += content[:written]
        return written

    def sync(self, fd: int) -> None:
        self.syncs += 1
        appended = self.appended
        time.sleep(SYNC_S)
        super().sync(fd)
        self.synced = appended


def test_threads_that_commit_at_the_same_time_share_syncs(path: Path) -> None:
    system = SlowDisk()
    names = list("abcdefgh")
    with closing(FileStorage(path, system=system)) as storage:
        with Connection(storage) as connection:
            for name in names:
                connection.root[name] = PersistentDict(value=0)
            connection.commit()

        def work(name: str) -> None:
            with Connection(storage) as connection:
                mine = connection.root[name]
                for _ in range(25):
                    mine["value"] += 1
                    connection.commit()

        before = storage.statistics
        syncs = system.syncs
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(work, names))
        transactions = storage.statistics.transactions - before.transactions
        groups = storage.statistics.groups - before.groups
        assert transactions == 25 * THREADS
        assert system.syncs - syncs == groups < transactions / 2
        with Connection(storage) as connection:
            assert [connection.root[name]["value"] for name in names] == [25] * THREADS


def test_each_commit_is_durable_before_it_is_acknowledged(path: Path) -> None:
    system = SlowDisk()
    with closing(FileStorage(path, system=system)) as storage:
        oids = create(storage, THREADS)

        def work(oid: Oid) -> None:
            for _ in range(25):
                transaction = make_transaction(storage.snapshot().tid, {oid: make_record(1)})
                storage.commit(transaction)
                assert transaction.id.to_bytes(8) in system.synced

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(work, oids))
        assert storage.statistics.groups < storage.statistics.transactions


# One group of which the test knows who is in it


class Gate(OperatingSystem):
    """The first sync waits until it is let through; then `in_sync` is called in the next one."""

    def __init__(self) -> None:
        self.is_closed = False
        self.waits = threading.Event()
        self.opened = threading.Event()
        self.in_sync: Callable[[], object] | None = None

    def sync(self, fd: int) -> None:
        if self.is_closed:
            self.is_closed = False
            self.waits.set()
            self.opened.wait()
        elif self.in_sync is not None:
            call, self.in_sync = self.in_sync, None
            call()
        super().sync(fd)


class Group:
    """Threads that commit together, while another one is just syncing."""

    def __init__(self, path: Path, members: int) -> None:
        self.gate = Gate()
        self.storage = FileStorage(path, system=self.gate)
        self.first, *self.oids = create(self.storage, 1 + members)
        self._pool = ThreadPoolExecutor(1 + members)

    def close(self) -> None:
        self._pool.shutdown()
        self.storage.close()

    def commit(self, *calls: Callable[[], CommitResult]) -> list[Future[CommitResult]]:
        """Call these, in this order, in threads which then commit as one group."""
        self.gate.is_closed = True
        done = [self._pool.submit(commit, self.storage, {self.first: make_record("first")})]
        self.gate.waits.wait()
        waiting = self.storage._commits._waiting
        for count, call in enumerate(calls, 1):
            done.append(self._pool.submit(call))
            while len(waiting) < count:
                time.sleep(0)
        self.gate.opened.set()
        done.pop(0).result()
        return done

    def write(self, oid: Oid, value: object) -> Callable[[], CommitResult]:
        since = self.storage.tid
        return lambda: commit(self.storage, {oid: make_record(value)}, since=since)


@pytest.fixture
def group(path: Path) -> Iterator[Group]:
    with closing(Group(path, 3)) as group:
        yield group


def error_of(done: Future[CommitResult]) -> BaseException | None:
    return done.exception()


def test_a_group_is_several_transactions_with_one_sync(group: Group) -> None:
    a, b, c = group.oids
    before = group.storage.statistics
    results = [
        done.result()
        for done in group.commit(group.write(a, 1), group.write(b, 2), group.write(c, 3))
    ]
    after = group.storage.statistics
    assert after.transactions - before.transactions == 4
    assert after.groups - before.groups == 2
    assert sorted(result.tid for result in results) == [result.tid for result in results]
    assert [transaction.tid for transaction in group.storage.transactions()][-3:] == [
        result.tid for result in results
    ]
    assert [value(group.storage, oid) for oid in group.oids] == [1, 2, 3]
    # Each is told of those before it in the group.
    assert [result.changed for result in results] == [
        frozenset({group.first}),
        frozenset({group.first, a}),
        frozenset({group.first, a, b}),
    ]


def test_a_conflict_in_a_group_hurts_nobody_else(group: Group) -> None:
    a, _, c = group.oids
    one, two, three = group.commit(group.write(a, 1), group.write(a, 2), group.write(c, 3))
    one.result()
    three.result()
    assert isinstance(error := error_of(two), WriteConflictError)
    assert error.oids == [a]
    assert [value(group.storage, oid) for oid in group.oids] == [1, 0, 3]


def test_failures_of_several_kinds_in_a_group_hurt_nobody_else(group: Group) -> None:
    a, b, c = group.oids
    late = group.write(a, "late")
    commit(group.storage, {a: make_record("early")})
    dangling = make_record("dangling", [Oid((1 << 40).to_bytes(8))])
    since = group.storage.tid
    one, two, three = group.commit(
        late,
        group.write(b, 2),
        lambda: commit(group.storage, {c: dangling}, since=since),
    )
    assert isinstance(error_of(one), WriteConflictError)
    two.result()
    assert isinstance(error_of(three), DanglingReferenceError)
    assert [value(group.storage, oid) for oid in group.oids] == ["early", 2, 0]


class Interrupt(BaseException):
    """Such as a KeyboardInterrupt, but nothing that a pool of threads would be ended by."""


def test_an_interrupt_of_the_leader_is_explained_to_those_that_it_committed_for(
    group: Group,
) -> None:
    def interrupt() -> None:
        raise Interrupt

    group.gate.in_sync = interrupt
    calls = [group.write(oid, 1) for oid in group.oids]
    errors = [error_of(done) for done in group.commit(*calls)]
    (leader,) = [error for error in errors if isinstance(error, Interrupt)]
    followers = [error for error in errors if error is not leader]
    assert len({id(error) for error in followers}) == 2
    for error in followers:
        assert type(error) is StorageError
        assert "was not committed: the thread that wrote it was stopped by Interrupt" in str(error)
        assert error.__cause__ is leader
    assert [value(group.storage, oid) for oid in group.oids] == [0, 0, 0]
    for oid in group.oids:
        commit(group.storage, {oid: make_record("goes on")})
    assert [value(group.storage, oid) for oid in group.oids] == ["goes on"] * 3


def test_a_sync_that_fails_is_told_to_the_whole_group(group: Group) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    group.gate.in_sync = fail
    calls = [group.write(oid, 1) for oid in group.oids]
    errors = [error_of(done) for done in group.commit(*calls)]
    assert len({id(error) for error in errors}) == 3
    for error in errors:
        assert type(error) is StorageError
        assert "was not committed: [Errno 5] Input/output error" in str(error)
    assert [value(group.storage, oid) for oid in group.oids] == [0, 0, 0]
    commit(group.storage, {group.first: make_record("goes on")})


def test_each_of_a_group_can_ask_for_its_own_outcome(group: Group) -> None:
    """The sync fails, and so does what would take the transactions back."""
    gate = group.gate

    def fail() -> None:
        def refuse(fd: int, content: bytes | memoryview) -> int:
            raise OSError(28, "No space left on device")

        gate.append = refuse  # type: ignore[method-assign] # from now on
        raise OSError(5, "Input/output error")

    gate.in_sync = fail
    calls = [group.write(oid, 1) for oid in group.oids]
    errors = [error_of(done) for done in group.commit(*calls)]
    ids = set()
    for error in errors:
        assert isinstance(error, CommitOutcomeUnknownError)
        assert error.transaction_id is not None
        ids.add(error.transaction_id)
    assert len(ids) == 3
    del gate.append
    assert [group.storage.find(id) for id in ids] == [None] * 3
    assert [value(group.storage, oid) for oid in group.oids] == [0, 0, 0]


def test_a_lock_that_is_not_had_in_time_is_told_to_the_whole_group(path: Path) -> None:
    with closing(FileStorage(path, lock_timeout_s=0)) as storage:
        oids = create(storage, THREADS)
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)

            def work(oid: Oid) -> None:
                with pytest.raises(StorageLockedError, match="nothing was written"):
                    commit(storage, {oid: make_record("late")}, since=storage.tid)

            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(work, oids))
        commit(storage, {oids[0]: make_record("in time")})
        assert value(storage, oids[0]) == "in time"


# Durability


def marks(path: Path) -> list[bool]:
    """Of each mark in the file, whether it says that what is before it was synced."""
    found = []
    file = LogFile(OperatingSystem(), str(path), os.open(path, os.O_RDONLY))
    reader = LogReader(file)
    size = path.stat().st_size
    offset = reader.header.size
    while offset < size:
        entry = reader.read_entry(offset, size)
        assert entry is not None
        if isinstance(entry, Mark):
            found.append(entry.synced)
        offset = entry.end
    return found


def test_a_full_commit_syncs_once_and_says_so(path: Path) -> None:
    system = SlowDisk()
    with closing(FileStorage(path, system=system)) as storage:
        (oid,) = create(storage, 1)
        before = system.syncs
        commit(storage, {oid: make_record(1)})
        assert system.syncs == before + 1
    assert marks(path) == [True] * 3


def test_without_durability_nothing_is_synced_and_the_marks_say_so(path: Path) -> None:
    FileStorage(path).close()
    system = SlowDisk()
    with closing(FileStorage(path, durability="none", system=system)) as storage:
        oids = create(storage, 100)
        for oid in oids:
            commit(storage, {oid: make_record(1)})
        with closing(FileStorage(path, readonly=True)) as other:
            assert [value(other, oid) for oid in oids] == [1] * 100
        assert storage.statistics.sync_s == 0
    assert system.syncs == 0
    assert marks(path) == [False] * 102


def test_a_full_commit_makes_durable_what_came_before_it(path: Path) -> None:
    system = SlowDisk()
    with (
        closing(FileStorage(path, durability="none", system=system)) as fast,
        closing(FileStorage(path, system=system)) as full,
    ):
        (oid,) = create(fast, 1)
        transaction = make_transaction(fast.tid, {oid: make_record(1)})
        fast.commit(transaction)
        assert transaction.id.to_bytes(8) not in system.synced
        commit(full, {oid: make_record(2)})
        assert transaction.id.to_bytes(8) in system.synced
    assert marks(path) == [False] * 3 + [True]


def test_other_durabilities_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="durability is 'full' or 'none', not 'some'"):
        FileStorage(path, durability="some")  # type: ignore[arg-type] # that is the test
    FileStorage(path).close()


def test_who_is_interrupted_when_all_is_done_is_not_told_that_nothing_happened(path: Path) -> None:
    class Interrupted(OperatingSystem):
        is_armed = False

        def unlock(self, fd: int) -> None:
            super().unlock(fd)
            if self.is_armed:
                self.is_armed = False
                raise KeyboardInterrupt

    system = Interrupted()
    with closing(FileStorage(path, system=system)) as storage:
        (a,) = create(storage, 1)
        transaction = make_transaction(storage.tid, {a: make_record("done")})
        system.is_armed = True
        with pytest.raises(CommitOutcomeUnknownError) as caught:
            storage.commit(transaction)
        assert caught.value.transaction_id == transaction.id
        assert isinstance(caught.value.__cause__, KeyboardInterrupt)
        assert storage.find(transaction.id) is not None
        assert value(storage, a) == "done"


def test_a_second_interrupt_leaves_the_outcome_open_and_says_so(path: Path) -> None:
    class Interrupted(OperatingSystem):
        is_armed = False

        def sync(self, fd: int) -> None:
            if self.is_armed:
                raise KeyboardInterrupt

        def status(self, fd: int) -> FileStatus:
            if self.is_armed:
                raise KeyboardInterrupt
            return super().status(fd)

    system = Interrupted()
    with closing(FileStorage(path, system=system)) as storage:
        (a,) = create(storage, 1)
        transaction = make_transaction(storage.tid, {a: make_record("done")})
        system.is_armed = True
        with pytest.raises(CommitOutcomeUnknownError):
            storage.commit(transaction)
        system.is_armed = False
        committed = storage.find(transaction.id) is not None
        assert value(storage, a) == ("done" if committed else 0)


def test_what_another_process_reads_of_an_unmarked_commit_is_not_taken_back(path: Path) -> None:
    class FullDisk(OperatingSystem):
        appends_left = 1000

        def append(self, fd: int, content: bytes | memoryview) -> int:
            self.appends_left -= 1
            if self.appends_left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().append(fd, content)

    system = FullDisk()
    with closing(FileStorage(path, system=system)) as storage:
        (a,) = create(storage, 1)
        transaction = make_transaction(storage.tid, {a: make_record("durable")})
        system.appends_left = 1  # the transaction, but not its mark, nor a void
        before = path.stat().st_size
        with pytest.raises(CommitOutcomeUnknownError):
            storage.commit(transaction)
        assert path.stat().st_size > before
        with closing(FileStorage(path)) as other:  # for all that it knows after a power cut
            assert value(other, a) == "durable"
            system.appends_left = 1000
            assert storage.find(transaction.id) is not None
            commit(storage, {a: make_record("next")})
            assert value(other, a) == "next"
