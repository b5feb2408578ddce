"""Several processes on one log file, against a model that knows every committed version.

Each 'process' is a storage of its own, with files of its own, whose locks exclude those of the
others as if it were one.  It reads from a snapshot, and collects what it will commit.  From the
versions that were committed follows what every read must give and which commits conflict.
Processes are killed, and calls of the operating system fail, at any step; index files are updated
all the time, deleted, damaged, and replaced by old copies.
"""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from durus import file_storage, shared_log
from durus.error import (
    CommitOutcomeUnknownError,
    DurusKeyError,
    HistoryUnavailableError,
    StorageError,
    WriteConflictError,
)
from durus.file_storage import FileStorage
from durus.file_system import FileStatus, OperatingSystem
from durus.index_checkpoint import index_path
from durus.interfaces import ROOT_OID, CommitResult, Oid, Record, Snapshot, Tid
from durus.log_verify import verify_file
from durus.oid_set import OidSet
from durus.testing.storage_contract import commit, make_record, make_transaction, value_of
from tests.seeds import Seeds

PROCESSES = 3
a_process = st.integers(0, PROCESSES - 1)
an_object = st.integers(0, 20)
a_danger = st.none() | st.tuples(st.integers(1, 16), st.booleans())
"""At which step of the operating system something happens, and whether the process is killed."""


Danger = tuple[int, bool] | None


class ProcessKilled(BaseException):
    """Raised in a process at its first step after it was killed."""


class MortalSystem(OperatingSystem):
    """The system of one process; syncs nothing, as nobody cuts the power.

    While it is `in_danger`, it is killed at its n-th step, or that step fails.
    """

    def __init__(self) -> None:
        self.killed = False
        self.has_failed = False
        """Whether that has happened in the last danger."""
        self._files: set[int] = set()
        self._remaining: int | None = None
        self._kills = False

    @contextmanager
    def in_danger(self, danger: Danger) -> Iterator[None]:
        self.has_failed = False
        self._remaining, self._kills = danger or (None, False)
        try:
            yield
        finally:
            self._remaining = None

    def kill(self) -> None:
        """What `kill -9` does: the files are closed, and their locks are given up."""
        self.killed = True
        for fd in self._files:
            super().close(fd)
        self._files.clear()

    def _is_last(self) -> bool:
        if self.killed:
            raise ProcessKilled
        if self._remaining is None:
            return False
        self._remaining -= 1
        return self._remaining == 0

    def _end(self) -> None:
        self.has_failed = True
        if self._kills:
            self.kill()
            raise ProcessKilled
        raise OSError(errno.EIO, "failed")

    def _step(self) -> None:
        if self._is_last():
            self._end()

    def open(self, path: str, *, writable: bool, append: bool = True) -> int:
        self._step()
        fd = super().open(path, writable=writable, append=append)
        self._files.add(fd)
        return fd

    def create(self, path: str, like: FileStatus | None = None, *, append: bool = True) -> int:
        self._step()
        fd = super().create(path, like, append=append)
        self._files.add(fd)
        return fd

    def close(self, fd: int) -> None:
        if not self.killed:
            self._files.remove(fd)
            super().close(fd)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        if self.killed:
            raise ProcessKilled
        return super().read(fd, size, offset)

    def append(self, fd: int, content: bytes | memoryview) -> int:
        if self._is_last():
            super().append(fd, content[: len(content) // 2])
            self._end()
        return super().append(fd, content)

    def write(self, fd: int, content: bytes, offset: int) -> int:
        if self._is_last():
            super().write(fd, content[: len(content) // 2], offset)
            self._end()
        return super().write(fd, content, offset)

    def sync(self, fd: int) -> None:
        self._step()

    def sync_directory(self, path: str) -> None:
        self._step()

    def link(self, source: str, target: str) -> None:
        self._step()
        super().link(source, target)

    def rename(self, source: str, target: str) -> None:
        self._step()
        super().rename(source, target)

    def unlink(self, path: str) -> None:
        self._step()
        super().unlink(path)

    def lock(self, fd: int, *, shared: bool = False) -> bool:
        self._step()
        return super().lock(fd, shared=shared)

    def unlock(self, fd: int) -> None:
        if not self._kills:
            return super().unlock(fd)  # it does not fail
        self._step()
        return super().unlock(fd)


@dataclass(frozen=True)
class Version:
    """What there is after a transaction."""

    tid: Tid
    values: dict[Oid, object]
    refs: tuple[Oid, ...]
    """What the root refers to."""
    written: frozenset[Oid]


@dataclass
class Process:
    storage: FileStorage
    system: MortalSystem
    snapshot: Snapshot
    version: Version
    """What the snapshot shows."""
    accessed: set[Oid] = field(default_factory=set)
    writes: dict[Oid, object] = field(default_factory=dict)
    created: set[Oid] = field(default_factory=set)
    refs: tuple[Oid, ...] = ()


class LogMachine(RuleBasedStateMachine):
    @initialize()
    def make(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "model.durus"
        self.index = Path(index_path(str(self.path)))
        self.old_index = b""
        self.counter = 0
        self.handed_out: set[Oid] = {ROOT_OID}
        with closing(FileStorage(self.path, system=MortalSystem())) as storage:
            tid = commit(storage, {ROOT_OID: make_record(0)}, created=[ROOT_OID]).tid
        self.horizon = Tid(0)
        self.versions = [Version(tid, {ROOT_OID: 0}, (), frozenset([ROOT_OID]))]
        self.history: dict[Oid, list[tuple[Tid, object]]] = {ROOT_OID: [(tid, 0)]}
        self.processes = [self.start() for _ in range(PROCESSES)]

    def teardown(self) -> None:
        if hasattr(self, "processes"):
            self.check()
            for process in self.processes:
                process.storage.close()
            self.check()
            self.folder.cleanup()

    @property
    def newest(self) -> Version:
        return self.versions[-1]

    def start(self, **options: Any) -> Process:
        system = MortalSystem()
        storage = FileStorage(self.path, system=system, **options)
        process = Process(storage, system, storage.snapshot(), self.newest)
        self.begin_anew(process)
        return process

    def begin_anew(self, process: Process) -> None:
        process.snapshot.close()
        process.snapshot = process.storage.snapshot()
        process.version = self.newest
        assert process.snapshot.tid == self.newest.tid
        process.accessed.clear()
        process.writes.clear()
        process.created.clear()
        process.refs = self.newest.refs

    def new_value(self) -> int:
        self.counter += 1
        return self.counter

    def choose(self, process: Process, i: int) -> Oid:
        """One of the objects that the process sees."""
        oids = sorted(process.version.values)
        return oids[i % len(oids)]

    # What a process does in its transaction

    @rule(p=a_process)
    def begin(self, p: int) -> None:
        self.begin_anew(self.processes[p])

    @rule(p=a_process, i=an_object)
    def read(self, p: int, i: int) -> None:
        process = self.processes[p]
        oid = self.choose(process, i)
        process.accessed.add(oid)
        assert value_of(process.snapshot.load(oid).record) == process.version.values[oid]

    @rule(p=a_process)
    def read_everything(self, p: int) -> None:
        """Without an access, as a tool would."""
        process = self.processes[p]
        self.compare(process.snapshot, process.version)

    def compare(self, snapshot: Snapshot, version: Version) -> None:
        assert snapshot.tid == version.tid
        found = dict(snapshot.load_many(sorted(self.handed_out)))
        values = {oid: value_of(revision.record) for oid, revision in found.items()}
        assert values == version.values
        assert found[ROOT_OID].record.refs == b"".join(version.refs)

    @rule(p=a_process, i=an_object)
    def write(self, p: int, i: int) -> None:
        process = self.processes[p]
        oid = self.choose(process, i)
        process.accessed.add(oid)
        process.writes[oid] = self.new_value()

    @rule(p=a_process)
    def create(self, p: int) -> None:
        process = self.processes[p]
        (oid,) = self.reserve_some(process, 1)
        process.created.add(oid)
        process.writes[oid] = self.new_value()
        self.write_refs(process, (*process.refs, oid))

    @rule(p=a_process, i=an_object)
    def unlink(self, p: int, i: int) -> None:
        """The root forgets an object, which a pack will remove."""
        process = self.processes[p]
        if process.refs:
            oid = process.refs[i % len(process.refs)]
            self.write_refs(process, tuple(ref for ref in process.refs if ref != oid))

    def write_refs(self, process: Process, refs: tuple[Oid, ...]) -> None:
        process.refs = tuple(sorted(refs))
        process.accessed.add(ROOT_OID)
        process.writes[ROOT_OID] = self.new_value()

    @rule(p=a_process)
    def abort(self, p: int) -> None:
        self.begin_anew(self.processes[p])

    # Commits

    def changed_since(self, version: Version) -> set[Oid]:
        later = [other.written for other in self.versions if other.tid > version.tid]
        return set[Oid]().union(*later)

    def records_of(self, process: Process) -> dict[Oid, Record]:
        return {
            oid: make_record(value, process.refs if oid == ROOT_OID else ())
            for oid, value in process.writes.items()
        }

    @rule(p=a_process, i=an_object, danger=a_danger)
    def commit(self, p: int, i: int, danger: Danger) -> None:
        process = self.processes[p]
        if not process.writes:
            self.write(p, i)
        changed = self.changed_since(process.version)
        lost = process.writes.keys() - process.created - self.newest.values.keys()
        must_conflict = bool(process.accessed & changed or lost)
        # What a pack has taken away, the process may not know any more.
        may_conflict = must_conflict or process.version.tid < self.horizon
        transaction = make_transaction(
            process.version.tid,
            self.records_of(process),
            created=process.created,
            accessed=OidSet(process.accessed),
        )
        result: CommitResult | BaseException
        try:
            with process.system.in_danger(danger):
                result = process.storage.commit(transaction)
        except BaseException as error:
            result = error
        match result:
            case WriteConflictError(oids=oids):
                assert may_conflict
                if must_conflict and oids is not None:
                    assert set(oids) == (process.accessed & changed) | lost
            case BaseException():
                self.settle(p, transaction.id, result, must_conflict)
                return
            case CommitResult(tid, others):
                assert not must_conflict
                assert tid > self.newest.tid
                assert others is None or others == changed
                self.add_version(process, tid)
        self.begin_anew(process)

    @rule(p=a_process, oids=st.lists(an_object, min_size=1, max_size=5), danger=a_danger)
    def commit_several(self, p: int, oids: list[int], danger: Danger) -> None:
        for i in oids:
            self.begin_anew(self.processes[p])
            self.commit(p, i, danger)

    def add_version(self, process: Process, tid: Tid) -> None:
        newest = self.newest
        written = frozenset(process.writes)
        refs = process.refs if ROOT_OID in written else newest.refs
        self.versions.append(Version(tid, {**newest.values, **process.writes}, refs, written))
        for oid, value in process.writes.items():
            self.history.setdefault(oid, []).insert(0, (tid, value))

    def settle(
        self, p: int, transaction_id: int, error: BaseException, must_conflict: bool
    ) -> None:
        """A commit failed, or its process was killed: was it committed?"""
        process = self.processes[p]
        if not process.system.has_failed:
            raise error
        is_unknown = process.system.killed or isinstance(error, CommitOutcomeUnknownError)
        assert is_unknown or isinstance(error, StorageError)
        asked = self.processes[(p + 1) % PROCESSES] if process.system.killed else process
        tid = asked.storage.find(transaction_id)
        assert tid is None or (is_unknown and not must_conflict and tid > self.newest.tid)
        if tid is not None:
            self.add_version(process, tid)
        self.go_on(p)

    def go_on(self, p: int) -> None:
        process = self.processes[p]
        if process.system.killed:
            self.processes[p] = self.start()
        else:
            self.begin_anew(process)

    @rule(p=a_process, count=st.sampled_from([1, 3, 70]), danger=a_danger)
    def reserve(self, p: int, count: int, danger: Danger) -> None:
        try:
            with self.processes[p].system.in_danger(danger):
                self.reserve_some(self.processes[p], count)
        except BaseException:
            if not self.processes[p].system.has_failed:
                raise
            self.go_on(p)

    def reserve_some(self, process: Process, count: int) -> list[Oid]:
        oids = list(process.storage.reserve_oids(count))
        assert len(oids) == len(set(oids)) == count
        assert not self.handed_out.intersection(oids)
        self.handed_out.update(oids)
        return oids

    @rule(p=a_process, danger=a_danger)
    def pack(self, p: int, danger: Danger) -> None:
        process = self.processes[p]
        before = self.path.stat().st_ino
        failure: BaseException | None = None
        try:
            with process.system.in_danger(danger):
                process.storage.pack()
        except BaseException as error:
            if not process.system.has_failed:
                raise
            failure = error
        # After a failure it is packed, or nothing has happened; nobody needs to know which.
        is_packed = self.path.stat().st_ino != before
        if is_packed:
            self.forget_history()
        if failure is None:
            assert is_packed
        else:
            assert process.system.killed or isinstance(failure, StorageError)
            self.go_on(p)

    def forget_history(self) -> None:
        newest = self.newest
        self.horizon = newest.tid
        values = {oid: newest.values[oid] for oid in (ROOT_OID, *newest.refs)}
        # Not in its place: a snapshot that is open goes on seeing what it saw.
        self.versions[-1] = replace(newest, values=values)
        self.history = {oid: self.history[oid][:1] for oid in values}

    # What goes wrong

    @rule(p=a_process)
    def kill_now(self, p: int) -> None:
        self.processes[p].system.kill()
        self.go_on(p)

    @rule()
    def delete_index(self) -> None:
        self.index.unlink(missing_ok=True)

    @rule(place=st.integers(0, 1 << 20), bit=st.integers(0, 7))
    def damage_index(self, place: int, bit: int) -> None:
        content = bytearray(self.index.read_bytes() if self.index.exists() else b"")
        if content:
            content[place % len(content)] ^= 1 << bit
            with self.index.open("r+b") as file:
                file.write(content)

    @rule()
    def copy_index(self) -> None:
        if self.index.exists():
            self.old_index = self.index.read_bytes()

    @rule()
    def restore_index(self) -> None:
        aside = self.path.with_suffix(".aside")
        aside.write_bytes(self.old_index)
        aside.replace(self.index)

    # Other ways to look at it

    @rule(
        p=a_process,
        mmap=st.booleans(),
        durability=st.sampled_from(["full", "none"]),
    )
    def reopen(self, p: int, mmap: bool, durability: str) -> None:
        self.processes[p].storage.close()
        self.processes[p] = self.start(mmap=mmap, durability=durability)

    @rule(p=a_process, i=st.integers(0, 100))
    def look_back(self, p: int, i: int) -> None:
        process = self.processes[p]
        version = self.versions[i % len(self.versions)]
        if version.tid < self.horizon:
            with pytest.raises(HistoryUnavailableError):
                process.storage.snapshot(version.tid)
        else:
            with closing(process.storage.snapshot(version.tid)) as snapshot:
                self.compare(snapshot, version)

    @rule(p=a_process, i=an_object)
    def read_revisions(self, p: int, i: int) -> None:
        process = self.processes[p]
        oid = sorted(self.handed_out)[i % len(self.handed_out)]
        if oid not in self.history:
            with pytest.raises(DurusKeyError):
                process.storage.revisions(oid)
        else:
            found = [(r.tid, value_of(r.record)) for r in process.storage.revisions(oid)]
            assert found == self.history[oid]

    @rule()
    def check(self) -> None:
        """Somebody who comes along sees the newest version, and a sound file."""
        with (
            closing(FileStorage(self.path, readonly=True)) as storage,
            closing(storage.snapshot()) as snapshot,
        ):
            self.compare(snapshot, self.newest)
        findings = [str(finding) for finding in verify_file(str(self.path))]
        assert [text for text in findings if "the index file" not in text] == []


def test_processes_agree_with_the_model(seeds: Seeds, monkeypatch: pytest.MonkeyPatch) -> None:
    # An index file after a few records, not after thousands.
    monkeypatch.setattr(shared_log, "CHECKPOINT_SIZE", 3)
    monkeypatch.setattr(file_storage, "_CLOSE_CHECKPOINT_SIZE", 1)
    run_state_machine_as_test(
        LogMachine,
        settings=settings(
            max_examples=1500 if seeds.is_long else 100, stateful_step_count=80, deadline=None
        ),
    )
