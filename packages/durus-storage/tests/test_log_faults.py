"""The operating system fails, at every step in turn: nothing is lost, and it is said truly.

A `FaultySystem` stands at the file seam; it is the real system apart from the one call that fails.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import pytest

from durus import file_storage, shared_log
from durus.error import CommitOutcomeUnknownError, DurusKeyError, StorageError
from durus.file_storage import FileStorage
from durus.file_system import FileMap, FileStatus, OperatingSystem
from durus.interfaces import ROOT_OID, Tid, Transaction
from durus.log_format import MARK_SIZE, RESERVATION_SIZE
from durus.log_verify import verify_file
from durus.testing.storage_contract import (
    commit,
    create,
    make_record,
    make_transaction,
    value,
    value_of,
)

T = TypeVar("T")

WRITES: Final = ("append", "write", "create")


class FaultySystem(OperatingSystem):
    """Fails at the n-th call that it makes after `fail_at(n)`, once or from then on.

    kept: how much of a write arrives before it fails: 0.0 to 1.0.
    names: of the calls that fail; all if there are none.
    suffix: of the paths of the files whose calls fail.
    error: the class of what is raised.
    after: whether the call is made all the same, and fails then.
    """

    def __init__(
        self,
        kept: float = 0.0,
        *,
        names: str = "",
        suffix: str = "",
        repeats: bool = False,
        error: type[BaseException] = OSError,
        after: bool = False,
    ) -> None:
        self.kept = kept
        self.names = names.split()
        self.suffix = suffix
        self.repeats = repeats
        self.error = error
        self.after = after
        self.remaining: int | None = None
        self.failed = ""
        self.paths: dict[int, str] = {}

    def fail_at(self, step: int | None) -> None:
        self.remaining = step
        self.failed = ""

    def _is_failing(self, name: str, path: str) -> bool:
        if self.remaining is None or (self.names and name not in self.names):
            return False
        if not path.endswith(self.suffix):
            return False
        self.remaining -= 1
        if self.remaining == 0 or (self.repeats and self.remaining < 0):
            self.failed = name
            return True
        return False

    def _failure(self, name: str) -> BaseException:
        if issubclass(self.error, OSError):
            return self.error(errno.ENOSPC if name in WRITES else errno.EIO, f"{name} failed")
        return self.error()

    def _call(self, name: str, file: int | str, call: Callable[[], T]) -> T:
        is_failing = self._is_failing(name, file if isinstance(file, str) else self.paths[file])
        if is_failing and not self.after:
            raise self._failure(name)
        result = call()
        if is_failing:
            raise self._failure(name)
        return result

    def _call_to_open(self, name: str, path: str, call: Callable[[], int]) -> int:
        def open() -> int:
            fd = call()
            self.paths[fd] = path
            if self.remaining == 0 and self.after:
                self.close(fd)  # as nobody is told of it
            return fd

        return self._call(name, path, open)

    def open(self, path: str, *, writable: bool, append: bool = True) -> int:
        call = partial(super().open, path, writable=writable, append=append)
        return self._call_to_open("open", path, call)

    def create(self, path: str, like: FileStatus | None = None, *, append: bool = True) -> int:
        create = partial(super().create, path, like, append=append)
        return self._call_to_open("create", path, create)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        return self._call("read", fd, partial(super().read, fd, size, offset))

    def append(self, fd: int, content: bytes | memoryview) -> int:
        if self._is_failing("append", self.paths[fd]):
            super().append(fd, content[: int(len(content) * self.kept)])
            raise self._failure("append")
        return super().append(fd, content)

    def write(self, fd: int, content: bytes, offset: int) -> int:
        if self._is_failing("write", self.paths[fd]):
            super().write(fd, content[: int(len(content) * self.kept)], offset)
            raise self._failure("write")
        return super().write(fd, content, offset)

    def map(self, fd: int, size: int) -> FileMap:
        return self._call("map", fd, partial(super().map, fd, size))

    def sync(self, fd: int) -> None:
        self._call("sync", fd, lambda: None)  # and not really, which takes long

    def status(self, fd: int) -> FileStatus:
        return self._call("status", fd, partial(super().status, fd))

    def path_status(self, path: str) -> FileStatus:
        return self._call("path_status", path, partial(super().path_status, path))

    def link(self, source: str, target: str) -> None:
        self._call("link", target, partial(super().link, source, target))

    def rename(self, source: str, target: str) -> None:
        self._call("rename", target, partial(super().rename, source, target))

    def unlink(self, path: str) -> None:
        self._call("unlink", path, partial(super().unlink, path))

    def sync_directory(self, path: str) -> None:
        self._call("sync_directory", path, lambda: None)

    def lock(self, fd: int, *, shared: bool = False) -> bool:
        return self._call("lock", fd, partial(super().lock, fd, shared=shared))

    def unlock(self, fd: int) -> None:
        super().unlock(fd)
        if not issubclass(self.error, OSError):  # of a descriptor that is open it cannot fail
            self._call("unlock", fd, lambda: None)

    def pause(self, seconds: float) -> None:
        self._call("pause", "", partial(super().pause, seconds))


def steps(system: FaultySystem, *, always: bool = True) -> Iterator[int]:
    """1, 2, ... until nothing fails any more; always: whether something must."""
    for step in range(1, 1000):
        yield step
        if not system.failed:
            assert step > 1 or not always, "nothing ever failed"
            return


SYSTEMS = [
    pytest.param(0.0, False, id="once"),
    pytest.param(0.5, False, id="half-written"),
    pytest.param(1.0, False, id="written-and-failed"),
    pytest.param(0.5, True, id="again-and-again"),
    pytest.param(1.0, True, id="written-and-failed-again-and-again"),
]


@pytest.mark.parametrize(("kept", "repeats"), SYSTEMS)
def test_a_commit_fails_at_any_step(tmp_path: Path, kept: float, repeats: bool) -> None:
    system = FaultySystem(kept, repeats=repeats)
    for step in steps(system):
        path = tmp_path / f"step-{step}"
        storage = FileStorage(path, system=system)
        (a,) = create(storage, 1)
        (new,) = storage.reserve_oids(1)
        transaction = make_transaction(
            storage.tid, {a: make_record("tried", [new]), new: make_record(1)}, created=[new]
        )
        committed = None
        system.fail_at(step)
        try:
            storage.commit(transaction)
            committed = True
        except CommitOutcomeUnknownError:
            pass
        except StorageError:
            committed = False
        system.remaining = None
        if committed is None:
            committed = storage.find(transaction.id) is not None
        assert (storage.find(transaction.id) is not None) == committed
        assert value(storage, a) == ("tried" if committed else 0)
        again = storage.commit(make_transaction(storage.tid, {a: make_record("again")}))
        assert value(storage, a) == "again"
        storage.close()
        for readonly in (True, False):
            with closing(FileStorage(path, readonly=readonly)) as reopened:
                assert reopened.tid == again.tid
                assert value(reopened, a) == "again"
                assert (reopened.find(transaction.id) is not None) == committed
                assert len(list(reopened.revisions(a))) == 2 + committed
                with closing(reopened.snapshot()) as snapshot:
                    assert bool(list(snapshot.load_many([new]))) == committed
        assert list(verify_file(str(path))) == []


@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_whoever_opens_the_file_after_a_failure_sees_what_was_said(
    tmp_path: Path, kept: float
) -> None:
    system = FaultySystem(kept, names="append sync")
    for step in steps(system):
        path = tmp_path / f"step-{step}"
        storage = FileStorage(path, system=system)
        (a,) = create(storage, 1)
        transaction = make_transaction(storage.tid, {a: make_record("tried")})
        system.fail_at(step)
        outcome: object = None
        try:
            storage.commit(transaction)
            outcome = "tried"
        except CommitOutcomeUnknownError:
            pass
        except StorageError:
            outcome = 0
        system.remaining = None
        storage.close()
        with closing(FileStorage(path)) as reopened:
            commit(reopened, {ROOT_OID: make_record("next", [a])})
            assert outcome in (None, value(reopened, a))
        assert list(verify_file(str(path))) == []


def test_a_failed_sync_is_not_tried_again_on_the_same_bytes(tmp_path: Path) -> None:
    system = FaultySystem(names="sync")
    path = tmp_path / "file"
    with closing(FileStorage(path, system=system)) as storage:
        (a,) = create(storage, 1)
        before = path.stat().st_size
        transaction = make_transaction(storage.tid, {a: make_record("lost")})
        system.fail_at(1)
        with pytest.raises(StorageError, match="was not committed"):
            storage.commit(transaction)
        commit(storage, {a: make_record("next")})
    # As if what was not synced had never reached the medium: the transaction, and before it the
    # mark of the last one.
    content = bytearray(path.read_bytes())
    content[before - 44 : before + 100] = bytes(144)
    path.write_bytes(content)
    with closing(FileStorage(path)) as storage:
        assert [value_of(r.record) for r in storage.revisions(a)] == ["next", 0]
    assert list(verify_file(str(path))) == []


def test_what_find_says_of_a_refused_commit_survives_a_power_cut(tmp_path: Path) -> None:
    class FailsTwice(OperatingSystem):
        """The mark cannot be written, and then what seals the transaction not be synced."""

        calls: list[str] = []
        failing = ""

        def append(self, fd: int, content: bytes | memoryview) -> int:
            if self.failing == "mark" and len(content) == MARK_SIZE:
                self.failing = "sync"
                raise OSError(errno.ENOSPC, "append failed")
            self.calls.append("append")
            return super().append(fd, content)

        def sync(self, fd: int) -> None:
            if self.failing == "sync":
                self.failing = ""
                raise OSError(errno.EIO, "sync failed")
            self.calls.append("sync")

    system = FailsTwice()
    with closing(FileStorage(tmp_path / "file", system=system)) as storage:
        (a,) = create(storage, 1)
        transaction = make_transaction(storage.tid, {a: make_record("refused")})
        system.failing = "mark"
        with pytest.raises(CommitOutcomeUnknownError):
            storage.commit(transaction)
        system.calls.clear()
        assert storage.find(transaction.id) is None
        # The failed sync may have lost the void: it is appended again, and this one is synced.
        assert system.calls == ["append", "sync"]


def test_a_failed_sync_before_a_checkpoint_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_log, "CHECKPOINT_SIZE", 1)
    system = FaultySystem(names="sync")
    path = tmp_path / "file"
    with closing(FileStorage(path, system=system)) as storage:
        (a,) = create(storage, 1)
        before = path.stat().st_size
        system.fail_at(1)
        commit(storage, {a: make_record("next")})
        assert system.failed
    # As if the mark of the last transaction had never reached the medium.
    content = bytearray(path.read_bytes())
    content[before - MARK_SIZE : before] = bytes(MARK_SIZE)
    path.write_bytes(content)
    with closing(FileStorage(path)) as storage:
        assert [value_of(r.record) for r in storage.revisions(a)] == ["next", 0]
    assert [f for f in verify_file(str(path)) if f.offset is not None] == []


def test_what_is_sealed_is_no_proof_that_what_is_before_it_was_synced(tmp_path: Path) -> None:
    system = FaultySystem(0.5, names="append")
    path = tmp_path / "file"
    with closing(FileStorage(path, system=system, durability="none")) as storage:
        (a,) = create(storage, 1)
        start = path.stat().st_size
        commit(storage, {a: make_record("x" * 5000)})
        system.fail_at(2)  # the mark
        with pytest.raises(StorageError, match="was not committed"):
            commit(storage, {a: make_record("failed")})
    # A power cut, before the void was synced: a part of what is before it never arrived.
    content = bytearray(path.read_bytes())
    content[start + 1000 : start + 2000] = bytes(1000)
    path.write_bytes(content)
    with closing(FileStorage(path)) as storage:
        assert value(storage, a) == 0
        commit(storage, {a: make_record("next")})
    assert list(verify_file(str(path))) == []


def test_a_reservation_before_a_failed_sync_is_not_forgotten(tmp_path: Path) -> None:
    system = FaultySystem(names="sync")
    path = tmp_path / "file"
    with closing(FileStorage(path, system=system)) as storage:
        (a,) = create(storage, 1)
        oids = storage.reserve_oids(1000)
        before = path.stat().st_size
        system.fail_at(1)
        with pytest.raises(StorageError, match="was not committed"):
            commit(storage, {a: make_record("lost")})
    content = bytearray(path.read_bytes())
    content[before - RESERVATION_SIZE : before] = bytes(RESERVATION_SIZE)  # lost by the medium
    path.write_bytes(content)
    with closing(FileStorage(path)) as storage:
        assert not {*oids} & {*storage.reserve_oids(1000)}
    assert list(verify_file(str(path))) == []


def test_a_commit_is_durable_before_its_mark_is_written(tmp_path: Path) -> None:
    class Recorder(OperatingSystem):
        calls: list[str]

        def append(self, fd: int, content: bytes | memoryview) -> int:
            self.calls.append("mark" if len(content) == MARK_SIZE else "transaction")
            return super().append(fd, content)

        def sync(self, fd: int) -> None:
            self.calls.append("sync")
            super().sync(fd)

        def sync_directory(self, path: str) -> None:
            self.calls.append(f"sync {path}")
            super().sync_directory(path)

    system = Recorder()
    system.calls = []
    FileStorage(tmp_path / "file", system=system).close()
    assert system.calls == ["transaction", "sync", f"sync {tmp_path}"]  # the header
    with closing(FileStorage(tmp_path / "file", system=system)) as storage:
        for first in ([f"sync {tmp_path}"], []):
            system.calls = []
            commit(storage, {ROOT_OID: make_record(0)}, created=[ROOT_OID] if first else [])
            assert system.calls == [*first, "transaction", "sync", "mark"]


def test_a_failed_sync_is_sealed_for_certain_before_it_is_reported(tmp_path: Path) -> None:
    class FailsOnce(OperatingSystem):
        calls: list[str] | None = None

        def append(self, fd: int, content: bytes | memoryview) -> int:
            if self.calls is not None:
                self.calls.append("append")
            return super().append(fd, content)

        def sync(self, fd: int) -> None:
            if self.calls is not None:
                self.calls.append("sync")
                if self.calls.count("sync") == 1:
                    raise OSError(errno.EIO, "sync failed")
            super().sync(fd)

    system = FailsOnce()
    with closing(FileStorage(tmp_path / "file", system=system)) as storage:
        (a,) = create(storage, 1)
        system.calls = []
        with pytest.raises(StorageError, match="was not committed"):
            commit(storage, {a: make_record("lost")})
        assert system.calls == ["append", "sync", "append", "sync"]


def test_a_full_disk_leaves_everything_usable_until_there_is_room(tmp_path: Path) -> None:
    system = FaultySystem(0.5, names="append", repeats=True)
    path = tmp_path / "file"
    with closing(FileStorage(path, system=system)) as storage:
        (a,) = create(storage, 1)
        system.fail_at(1)
        for _ in range(3):
            with pytest.raises(StorageError, match="append failed"):
                commit(storage, {a: make_record("no room")})
            assert value(storage, a) == 0
        with pytest.raises(StorageError, match="no oids could be reserved"):
            storage.reserve_oids(1000)
        with pytest.raises(StorageError, match="could not be packed"):
            storage.pack()
        system.remaining = None
        commit(storage, {a: make_record("room")})
        assert value(storage, a) == "room"
    assert list(verify_file(str(path))) == []


def test_short_writes_are_completed(tmp_path: Path) -> None:
    class ShortWrites(OperatingSystem):
        def append(self, fd: int, content: bytes | memoryview) -> int:
            return super().append(fd, content[:7])

        def read(self, fd: int, size: int, offset: int) -> bytes:
            return super().read(fd, min(size, 50), offset)

    path = tmp_path / "file"
    with closing(FileStorage(path, system=ShortWrites())) as storage:
        (a,) = create(storage, 1)
        commit(storage, {a: make_record("x" * 1000)})
        assert value(storage, a) == "x" * 1000
    assert list(verify_file(str(path))) == []


def test_an_interrupt_while_committing_leaves_a_sound_storage(tmp_path: Path) -> None:
    class Interrupted(OperatingSystem):
        armed = ""

        def append(self, fd: int, content: bytes | memoryview) -> int:
            if self.armed == "append":
                self.armed = ""
                super().append(fd, content[:50])
                raise KeyboardInterrupt
            return super().append(fd, content)

        def sync(self, fd: int) -> None:
            if self.armed == "sync":
                self.armed = ""
                raise KeyboardInterrupt
            super().sync(fd)

    system = Interrupted()
    path = tmp_path / "file"
    with closing(FileStorage(path, system=system)) as storage:
        (a,) = create(storage, 1)
        for system.armed in ("append", "sync"):
            with pytest.raises(KeyboardInterrupt):
                commit(storage, {a: make_record("interrupted")})
            assert value(storage, a) == 0
        commit(storage, {a: make_record("next")})
        assert value(storage, a) == "next"
    assert list(verify_file(str(path))) == []


def test_making_a_file_fails_at_any_step(tmp_path: Path) -> None:
    system = FaultySystem(0.5)
    for step in steps(system):
        folder = tmp_path / f"step-{step}"
        folder.mkdir()
        path = folder / "file"
        system.fail_at(step)
        with suppress(StorageError):
            FileStorage(path, system=system).close()
        system.remaining = None
        if path.exists():
            FileStorage(path, readonly=True).close()
        leftovers = [found for found in folder.iterdir() if found != path]
        assert not leftovers or system.failed == "unlink"
        with closing(FileStorage(path, system=system)) as storage:
            create(storage, 1)


@pytest.mark.parametrize(("kept", "repeats"), SYSTEMS)
def test_a_pack_fails_at_any_step(tmp_path: Path, kept: float, repeats: bool) -> None:
    system = FaultySystem(kept, repeats=repeats)
    for step in steps(system):
        path = tmp_path / f"step-{step}"
        with closing(FileStorage(path, system=system)) as storage:
            a, b = create(storage, 2)
            commit(storage, {ROOT_OID: make_record(1, [a])})
            with closing(storage.snapshot()) as snapshot:
                system.fail_at(step)
                with suppress(StorageError):
                    storage.pack()
                system.remaining = None
                assert value_of(snapshot.load(b).record) == 0
            assert value(storage, a) == 0
            commit(storage, {a: make_record(1)})
            assert value(storage, a) == 1
        with closing(FileStorage(path)) as storage:
            assert value(storage, a) == 1
            storage.pack()
            with pytest.raises(DurusKeyError):
                value(storage, b)
        assert list(verify_file(str(path))) == []


def test_a_read_that_fails_names_the_place(tmp_path: Path) -> None:
    system = FaultySystem(names="read")
    with closing(FileStorage(tmp_path / "file", system=system)) as storage:
        (a,) = create(storage, 1)
        with closing(storage.snapshot()) as snapshot:
            system.fail_at(1)
            with pytest.raises(StorageError, match="cannot be read at offset"):
                snapshot.load(a)
            assert value_of(snapshot.load(a).record) == 0


# Every call, in everything that a storage does; another storage stands for another process.


@pytest.fixture
def often_updated_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_log, "CHECKPOINT_SIZE", 3)
    monkeypatch.setattr(file_storage, "_CLOSE_CHECKPOINT_SIZE", 1)


def open_unfailing(path: Path) -> FileStorage:
    """It waits for no lock, and nothing is really synced."""
    return FileStorage(path, lock_timeout_s=0, system=FaultySystem())


class Bench:
    """A file with some objects and an index, a storage that may fail, and another process."""

    def __init__(self, path: Path, system: FaultySystem) -> None:
        self.path = path
        self.system = system
        with closing(open_unfailing(path)) as storage:
            self.oids = create(storage, 4)
            commit(storage, {self.oids[0]: make_record("before")})
        self.storage = FileStorage(path, system=system)
        self.other = open_unfailing(path)
        commit(self.other, {self.oids[1]: make_record("by another")})

    def check(self) -> None:
        """Nobody is locked out, and nothing is lost."""
        a, b, c, _ = self.oids
        commit(self.other, {c: make_record("at once")})
        assert value(self.storage, c) == "at once"
        commit(self.storage, {c: make_record("later")})
        for storage in (self.storage, self.other):
            assert value(storage, a) in ("before", "tried")
            assert value(storage, b) == "by another"
            assert value(storage, c) == "later"
        self.storage.close()
        self.other.close()
        with closing(open_unfailing(self.path)) as storage:
            assert value(storage, a) in ("before", "tried")
            assert value(storage, b) == "by another"
            assert value(storage, c) == "later"
            commit(storage, {c: make_record("last")})
        assert [f for f in verify_file(str(self.path)) if f.offset is not None] == []


def open_it(bench: Bench) -> None:
    FileStorage(bench.path, system=bench.system).close()


def commit_it(bench: Bench) -> None:
    commit(bench.storage, {bench.oids[0]: make_record("tried")})


def create_it(bench: Bench) -> None:
    (new,) = bench.storage.reserve_oids(1)
    root = make_record(0, [*bench.oids, new])
    commit(bench.storage, {ROOT_OID: root, new: make_record(0)}, created=[new])


def reserve(bench: Bench) -> None:
    bench.storage.reserve_oids(1)
    bench.storage.reserve_oids(1000)


def find(bench: Bench) -> None:
    bench.storage.find(1)


def read(bench: Bench) -> None:
    for oid in bench.oids:
        value(bench.storage, oid)


def read_history(bench: Bench) -> None:
    list(bench.storage.revisions(bench.oids[0]))
    list(bench.storage.transactions())
    bench.storage.changes(Tid(0), bench.storage.tid)


def pack(bench: Bench) -> None:
    bench.storage.pack()


def close(bench: Bench) -> None:
    for _ in range(4):
        commit(bench.storage, {bench.oids[3]: make_record("much")})
    bench.storage.close()
    bench.storage = open_unfailing(bench.path)


def read_what_a_crash_left(bench: Bench) -> None:
    storage = FileStorage(bench.path, readonly=True, system=bench.system)
    with closing(storage):
        value(storage, bench.oids[0])


ACTIONS = [
    open_it,
    commit_it,
    create_it,
    reserve,
    find,
    read,
    read_history,
    pack,
    close,
    read_what_a_crash_left,
]

FAULTS: dict[str, Callable[[], FaultySystem]] = {
    "fails": lambda: FaultySystem(0.5),
    "fails-again-and-again": lambda: FaultySystem(1.0, repeats=True),
    "sync-fails": lambda: FaultySystem(names="sync"),
    "sync-fails-for-ever": lambda: FaultySystem(names="sync", repeats=True),
    "interrupted-before": lambda: FaultySystem(error=KeyboardInterrupt),
    "interrupted-within": lambda: FaultySystem(0.5, error=KeyboardInterrupt),
    "interrupted-after": lambda: FaultySystem(1.0, error=KeyboardInterrupt, after=True),
}


@pytest.mark.usefixtures("often_updated_index")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_after_a_failure_anywhere_everybody_goes_on(
    tmp_path: Path, action: Callable[[Bench], None], fault: str
) -> None:
    system = FAULTS[fault]()
    for step in steps(system, always=not system.names):
        bench = Bench(tmp_path / f"step-{step}", system)
        if action is read_what_a_crash_left:
            leave_unmarked(bench)
        system.fail_at(step)
        try:
            action(bench)
        except (StorageError, KeyboardInterrupt):
            assert system.failed
        system.remaining = None
        bench.check()


def leave_unmarked(bench: Bench) -> None:
    """As if the other process had been killed between its sync and its mark."""
    commit(bench.other, {bench.oids[0]: make_record("tried")})
    bench.other.close()
    bench.storage.close()
    size = bench.path.stat().st_size - MARK_SIZE
    os.truncate(bench.path, size)
    bench.path.with_name(bench.path.name + ".index").unlink(missing_ok=True)
    bench.storage = FileStorage(bench.path, system=bench.system)
    bench.other = open_unfailing(bench.path)


def try_to_commit(storage: FileStorage, transaction: Transaction) -> bool | None:
    """Whether it was committed, as one is told; None: that is unknown."""
    try:
        storage.commit(transaction)
    except CommitOutcomeUnknownError as error:
        unknown = error.transaction_id
    except (StorageError, KeyboardInterrupt):
        return False
    else:
        return True
    assert unknown == transaction.id
    return None


@pytest.mark.usefixtures("often_updated_index")
@pytest.mark.parametrize("fault", FAULTS)
def test_another_process_settles_what_became_of_a_commit(tmp_path: Path, fault: str) -> None:
    system = FAULTS[fault]()
    for step in steps(system):
        bench = Bench(tmp_path / f"step-{step}", system)
        (a, *_) = bench.oids
        transaction = make_transaction(bench.storage.tid, {a: make_record("tried")})
        system.fail_at(step)
        told = try_to_commit(bench.storage, transaction)
        system.remaining = None
        found = bench.other.find(transaction.id) is not None
        assert told in (None, found)
        assert (bench.storage.find(transaction.id) is not None) == found
        assert value(bench.other, a) == ("tried" if found else "before")
        bench.check()


@pytest.mark.usefixtures("often_updated_index")
@pytest.mark.parametrize("fault", FAULTS)
def test_each_of_a_group_is_told_truly_what_became_of_its_commit(
    tmp_path: Path, fault: str
) -> None:
    system = FAULTS[fault]()
    for step in steps(system):
        bench = Bench(tmp_path / f"step-{step}", system)
        transactions = [
            make_transaction(bench.storage.tid, {oid: make_record("tried")})
            for oid in (bench.oids[0], bench.oids[3])
        ]
        told_of = commit_together(bench, transactions, step)
        for transaction, told in zip(transactions, told_of, strict=True):
            assert told in (None, bench.other.find(transaction.id) is not None)
        bench.check()


def commit_together(bench: Bench, transactions: list[Transaction], step: int) -> list[bool | None]:
    """Commit in threads, as one group, in which a call fails: what each is told."""
    storage = bench.storage
    with ThreadPoolExecutor(len(transactions)) as pool, storage._commits.leading:
        told = [pool.submit(try_to_commit, storage, each) for each in transactions]
        while len(storage._commits._waiting) < len(transactions):
            time.sleep(0)
        bench.system.fail_at(step)
    bench.system.remaining = None
    assert storage.statistics.groups <= 1
    return [future.result() for future in told]


@pytest.mark.usefixtures("often_updated_index")
@pytest.mark.parametrize("repeats", [False, True], ids=["once", "again-and-again"])
@pytest.mark.parametrize(
    ("suffix", "is_new"), [(".index", False), (".index", True), (".new", True)]
)
def test_no_failure_of_the_index_fails_anything(
    tmp_path: Path, suffix: str, repeats: bool, is_new: bool
) -> None:
    system = FaultySystem(0.5, suffix=suffix, repeats=repeats)
    for step in steps(system):
        bench = Bench(tmp_path / f"step-{step}", system)
        if is_new:
            bench.path.with_name(bench.path.name + ".index").unlink()
        system.fail_at(step)
        open_it(bench)
        for _ in range(4):
            commit_it(bench)
            read(bench)
        create_it(bench)
        read_history(bench)
        pack(bench)
        close(bench)
        system.remaining = None
        bench.check()


def test_writing_in_small_pieces_makes_a_sound_index(
    tmp_path: Path, often_updated_index: None
) -> None:
    class ShortWrites(OperatingSystem):
        def write(self, fd: int, content: bytes, offset: int) -> int:
            return super().write(fd, content[:1000], offset)

        def append(self, fd: int, content: bytes | memoryview) -> int:
            return super().append(fd, content[:1000])

    path = tmp_path / "file"
    with closing(FileStorage(path, system=ShortWrites())) as storage:
        oids = create(storage, 5)
        for oid in oids:
            commit(storage, {oid: make_record(1)})
    assert path.with_name("file.index").exists()
    assert list(verify_file(str(path))) == []
