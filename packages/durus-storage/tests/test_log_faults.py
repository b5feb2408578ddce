"""The operating system fails, at every step in turn: nothing is lost, and it is said truly.

A `FaultySystem` stands at the file seam; it is the real system apart from the one call that fails.
"""

import errno
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from durus.error import CommitOutcomeUnknownError, DurusKeyError, StorageError
from durus.file_storage import FileStorage
from durus.file_system import FileStatus, OperatingSystem
from durus.interfaces import ROOT_OID, Oid
from durus.log_format import MARK_SIZE, RESERVATION_SIZE
from durus.log_verify import verify_file
from durus.testing.storage_contract import commit, create, make_record, make_transaction, value_of


class FaultySystem(OperatingSystem):
    """Fails at the n-th call that it makes after `fail_at(n)`, once or from then on.

    kept: how much of an append arrives before it fails: 0.0 to 1.0.
    """

    def __init__(self, kept: float = 0.0, *, names: str = "", repeats: bool = False) -> None:
        self.kept = kept
        self.names = names.split()
        self.repeats = repeats
        self.remaining: int | None = None
        self.failed = ""

    def fail_at(self, step: int | None) -> None:
        self.remaining = step
        self.failed = ""

    def _is_failing(self, name: str) -> bool:
        if self.remaining is None or (self.names and name not in self.names):
            return False
        self.remaining -= 1
        if self.remaining == 0 or (self.repeats and self.remaining < 0):
            self.failed = name
            return True
        return False

    def _step(self, name: str) -> None:
        if self._is_failing(name):
            raise OSError(errno.EIO, f"{name} failed")

    def append(self, fd: int, content: bytes | memoryview) -> int:
        if self._is_failing("append"):
            super().append(fd, content[: int(len(content) * self.kept)])
            raise OSError(errno.ENOSPC, "append failed")
        return super().append(fd, content)

    def create(self, path: str, mode: int | None = None) -> int:
        self._step("create")
        return super().create(path, mode)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        self._step("read")
        return super().read(fd, size, offset)

    def sync(self, fd: int) -> None:
        self._step("sync")  # and not really, which takes long

    def status(self, fd: int) -> FileStatus:
        self._step("status")
        return super().status(fd)

    def path_status(self, path: str) -> FileStatus:
        self._step("path_status")
        return super().path_status(path)

    def link(self, source: str, target: str) -> None:
        self._step("link")
        super().link(source, target)

    def rename(self, source: str, target: str) -> None:
        self._step("rename")
        super().rename(source, target)

    def unlink(self, path: str) -> None:
        self._step("unlink")
        super().unlink(path)

    def sync_directory(self, path: str) -> None:
        self._step("sync_directory")


def value(storage: FileStorage, oid: Oid) -> object:
    with closing(storage.snapshot()) as snapshot:
        return value_of(snapshot.load(oid).record)


def steps(system: FaultySystem) -> Iterator[int]:
    """1, 2, ... until nothing fails any more."""
    for step in range(1, 1000):
        yield step
        if not system.failed:
            assert step > 1, "nothing ever failed"
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
