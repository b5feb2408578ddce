"""`ShelfStorage` and `FileStorage2`: what both promise, as they are called by programs of 4.x."""

import errno
import gc
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

from durus import interfaces
from durus.classic import as_storage
from durus.classic_file import DamagedEndError
from durus.classic_verify import verify_dfs20, verify_shelf
from durus.error import (
    CommitOutcomeUnknownError,
    CorruptionError,
    DurusKeyError,
    HistoryUnavailableError,
    NotADatabaseError,
    ReadOnlyError,
    StorageClosedError,
    StorageError,
    StorageLockedError,
    StorageOpenError,
)
from durus.file import File
from durus.file_storage2 import FileStorage2, open_dfs20
from durus.interfaces import ROOT_OID, Oid, PackableStorage
from durus.record import record_to_classic
from durus.shelf_storage import ShelfStorage, open_shelf
from durus.storage import Storage, get_census
from durus.testing.storage_contract import StorageContract, commit, create, make_record

CLASSES = [ShelfStorage, FileStorage2]
AnyClass = type[ShelfStorage] | type[FileStorage2]
AnyStorage = ShelfStorage | FileStorage2


def name(number: int) -> Oid:
    return Oid(number.to_bytes(8, "big"))


def classic(number: int, value: object = 0, refs: Iterable[int] = ()) -> bytes:
    return record_to_classic(name(number), make_record(value, map(name, refs)))


def store(storage: Storage, *records: bytes) -> None:
    """One commit."""
    storage.begin()
    for record in records:
        storage.store(record[:8], record)
    storage.end()


def fill(storage: Storage, count: int) -> None:
    """A root that refers to objects 1 to count - 1."""
    assert [storage.new_oid() for _ in range(count)] == [name(n) for n in range(count)]
    store(storage, classic(0, 0, range(1, count)), *(classic(n) for n in range(1, count)))


def contents(storage: Storage) -> dict[bytes, bytes]:
    return dict(storage.gen_oid_record())


def verify(path: Path) -> list[str]:
    is_shelf = path.read_bytes().startswith(b"SHELF")
    return [str(found) for found in (verify_shelf if is_shelf else verify_dfs20)(str(path))]


@pytest.fixture(params=CLASSES)
def cls(request: pytest.FixtureRequest) -> AnyClass:
    found: AnyClass = request.param
    return found


@pytest.fixture
def storage(cls: AnyClass, path: Path) -> Iterator[AnyStorage]:
    with cls(path) as storage:
        yield storage
    assert verify(path) == []


class ClassicContract(StorageContract):
    has_history = False
    is_durable = True
    can_be_readonly = True
    keeps_bytes = False

    @pytest.fixture
    def storage(self, path: Path) -> Iterator[interfaces.Storage]:
        storage = self.open(path)
        yield storage
        storage.close()
        assert verify(path) == []

    def test_oids_are_not_handed_out_again_when_opened_again(self, path: Path) -> None:
        """As far as they were stored: the file does not say which others were handed out."""
        with closing(self.open(path)) as storage:
            used = {ROOT_OID, *create(storage, 3)}
            storage.reserve_oids(5)
        with closing(self.open(path)) as storage:
            assert used.isdisjoint(storage.reserve_oids(10))


class TestShelfStorage(ClassicContract):
    def open(self, path: Path, *, readonly: bool = False) -> interfaces.Storage:
        return open_shelf(str(path), readonly=readonly)


class TestFileStorage2(ClassicContract):
    def open(self, path: Path, *, readonly: bool = False) -> interfaces.Storage:
        return open_dfs20(str(path), readonly=readonly)


# Opening.


def test_it_is_a_classic_storage_and_none_of_today(storage: AnyStorage) -> None:
    assert isinstance(storage, Storage)
    assert not isinstance(storage, interfaces.Storage)
    assert isinstance(as_storage(storage), PackableStorage)
    assert as_storage(storage).readonly is storage.readonly is False
    assert not storage.is_remote


def test_it_says_what_it_is(cls: AnyClass, path: Path, storage: AnyStorage) -> None:
    assert str(storage) == f"{cls.__name__}({str(path)!r})"
    assert storage.get_filename() == str(path)


def test_the_path_is_absolute(cls: AnyClass, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with cls(path.name) as storage:
        monkeypatch.chdir("/")
        fill(storage, 1)
        storage.pack()
        assert storage.get_filename() == str(path)


def test_a_new_file_appears_complete_and_alone(cls: AnyClass, path: Path) -> None:
    cls(path).close()
    assert os.listdir(path.parent) == [path.name]
    with cls(path, readonly=True) as storage:
        assert contents(storage) == {}


def test_a_link_that_leads_to_nothing_leads_to_a_new_file(cls: AnyClass, path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))
    with cls(path) as storage:
        fill(storage, 2)
    assert path.is_symlink()
    assert verify(path.with_name("elsewhere")) == []


def test_a_file_is_made_and_packed_where_files_have_one_name(
    cls: AnyClass, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: str) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)  # as on FAT
    with cls(path) as storage:
        fill(storage, 3)
        before = path.read_bytes()
        store(storage, classic(0))
        committed = path.read_bytes()
        storage.pack()
        assert contents(storage) == {name(0): classic(0)}
    assert committed.startswith(before)
    assert path.with_name(f"{path.name}.prepack").read_bytes() == committed
    assert len(list(path.parent.iterdir())) == 2


def test_an_empty_file_becomes_a_database(cls: AnyClass, path: Path) -> None:
    path.touch()
    with pytest.raises(NotADatabaseError, match="the file is empty"):
        cls(path, readonly=True)
    with cls(path) as storage:
        fill(storage, 1)
    assert verify(path) == []


def test_a_missing_file_is_made_only_if_asked(cls: AnyClass, path: Path) -> None:
    for options in ({"create": False}, {"readonly": True}):
        with pytest.raises(StorageOpenError, match=r"test\.durus: there is no such file") as caught:
            cls(path, **options)
        assert isinstance(caught.value, OSError)
    assert not path.exists()
    with pytest.raises(StorageOpenError, match=r"the directory .* does not exist"):
        cls(path / "no" / "folder")


def test_another_file_is_left_alone(cls: AnyClass, path: Path) -> None:
    for content in (b"b", b"bogusbogus", b"SHELF-1", b"DFS20"):
        path.write_bytes(content)
        with pytest.raises(AssertionError, match=r"test\.durus: this is no") as caught:
            cls(path, repair=True)
        assert isinstance(caught.value, NotADatabaseError)
        assert path.read_bytes() == content


def test_what_is_no_file_is_refused(cls: AnyClass, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for where, what in ((tmp_path, "a directory"), (tmp_path / "pipe", "no regular file")):
        with pytest.raises(StorageOpenError, match=f"this is {what}"):
            cls(where)


def test_a_file_without_permission_is_named(cls: AnyClass, path: Path, tmp_path: Path) -> None:
    cls(path).close()
    path.chmod(0o444)
    code = f"""
        import os, sys
        from {cls.__module__} import {cls.__name__} as Storage
        os.chmod(os.path.dirname(sys.argv[1]), 0o755)
        os.chmod(os.path.dirname(os.path.dirname(sys.argv[1])), 0o755)
        os.seteuid(65534)
        try:
            Storage(sys.argv[1])
        except OSError as error:
            print(error)
        """
    if os.geteuid():
        with pytest.raises(StorageOpenError, match="permission"):
            cls(path)
    else:
        folder = subprocess.run(["mktemp", "-d"], capture_output=True, text=True).stdout.strip()
        moved = Path(folder, "test.durus")
        path.rename(moved)
        found = run_python(code, moved).stdout
        assert "there is no permission to open it to write; readonly=True may work" in found
        moved.unlink()
        moved.parent.rmdir()


def test_the_file_is_locked_while_it_is_open(
    cls: AnyClass, path: Path, storage: AnyStorage
) -> None:
    with pytest.raises(StorageLockedError, match=r"test\.durus: this process has the file open"):
        cls(path)
    fill(storage, 2)
    with cls(path, readonly=True) as reader:
        assert contents(reader) == contents(storage)
        assert reader.readonly
    storage.close()
    cls(path).close()


def test_a_refused_file_is_not_left_locked(cls: AnyClass, path: Path) -> None:
    path.write_bytes(b"something else")
    with pytest.raises(NotADatabaseError):
        cls(path)
    file = File(path)
    file.obtain_lock()
    file.close()


def test_a_reader_sees_what_was_there_when_it_was_opened(
    cls: AnyClass, path: Path, storage: AnyStorage
) -> None:
    fill(storage, 3)
    before = contents(storage)
    with cls(path, readonly=True) as reader:
        store(storage, classic(0, "new", [1]))
        storage.pack()
        assert contents(reader) == before


def test_a_readonly_storage_refuses_all_changes(cls: AnyClass, path: Path) -> None:
    with cls(path) as storage:
        fill(storage, 1)
    content = path.read_bytes()
    with cls(path, readonly=True) as storage:
        storage.begin()
        calls: list[Callable[[], object]] = [
            lambda: storage.store(name(0), classic(0)),
            storage.end,
            storage.pack,
            storage.get_packer,
        ]
        for call in calls:
            with pytest.raises(ReadOnlyError):
                call()
            with pytest.raises(AssertionError):  # as in 4.3
                call()
        assert contents(storage) == {name(0): classic(0)}
        assert storage.sync() == []
    assert path.read_bytes() == content


def test_a_temporary_storage_is_gone_when_it_is_closed(cls: AnyClass) -> None:
    storage = cls()
    path = Path(storage.get_filename())
    assert path.exists()
    fill(storage, 3)
    storage.pack()
    assert len(contents(storage)) == 3
    storage.close()
    assert not path.exists()
    with pytest.raises(AssertionError):
        cls(readonly=True)


def test_a_storage_that_is_forgotten_gives_its_lock_up(cls: AnyClass, path: Path) -> None:
    storage = cls(path)
    fill(storage, 1)
    del storage
    gc.collect()
    cls(path).close()


def test_an_open_file_may_be_given(cls: AnyClass, path: Path) -> None:
    with cls(File(path)) as storage:
        fill(storage, 2)
    assert verify(path) == []
    with cls(File(path, readonly=True), readonly=True) as storage:
        assert len(contents(storage)) == 2
        assert cls.has_format(File(path, readonly=True))


def test_a_closed_storage_says_so(cls: AnyClass, path: Path) -> None:
    storage = cls(path)
    fill(storage, 1)
    storage.close()
    storage.close()
    calls: list[Callable[[], object]] = [
        lambda: storage.load(name(0)),
        storage.begin,
        lambda: storage.store(name(0), classic(0)),
        storage.end,
        storage.sync,
        storage.new_oid,
        storage.pack,
        lambda: list(storage.gen_oid_record()),
        lambda: list(storage.gen_oid_record(name(0))),
    ]
    for call in calls:
        with pytest.raises(StorageClosedError, match="is closed"):
            call()
        with pytest.raises(ValueError, match="is closed"):  # as in 4.3
            call()
    assert str(path) in str(storage)


def test_what_the_format_does_not_have_is_said(path: Path, storage: AnyStorage) -> None:
    calls: list[Callable[[], object]] = [
        storage.snapshot,
        lambda: storage.snapshot(5),
        storage.transactions,
        lambda: storage.revisions(name(0)),
        lambda: storage.find(1),
    ]
    for call in calls:
        with pytest.raises(HistoryUnavailableError) as caught:
            call()
        assert f"'durus convert {path} TARGET --to log'" in str(caught.value)
        assert ("SHELF-1" in str(caught.value)) == isinstance(storage, ShelfStorage)


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_forked_child_is_told_to_open_the_file_anew(cls: AnyClass, path: Path) -> None:
    code = f"""
        import os, sys
        from durus.error import StorageError, StorageLockedError
        from {cls.__module__} import {cls.__name__} as Storage
        storage = Storage(sys.argv[1])
        if os.fork() == 0:
            try:
                storage.new_oid()
            except StorageError as error:
                os.write(1, str(error).encode())
            storage.close()  # which leaves the parent its lock
            os._exit(0)
        os.wait()
        try:
            Storage(sys.argv[1])
        except StorageLockedError:
            os.write(1, b" LOCKED")
        """
    found = run_python(code, path).stdout
    assert "before it forked this one; open the file in the process that uses it" in found
    assert found.endswith("LOCKED")


# Commit.


def test_what_was_committed_is_there(cls: AnyClass, path: Path) -> None:
    with cls(path) as storage:
        fill(storage, 3)
        store(storage, classic(1, "new", [2]), classic(0, "root", [1]))
        expected = contents(storage)
        assert storage.load(name(1)) == classic(1, "new", [2])
    with cls(path) as storage:
        assert contents(storage) == expected
        assert len(expected) == 3
        assert storage.new_oid() == name(3)
        assert list(storage.bulk_load([name(2), name(0)])) == [classic(2), classic(0, "root", [1])]
        assert get_census(storage) == {b"Persistent": 3}


def test_a_missing_object_is_a_key_error(storage: AnyStorage) -> None:
    with pytest.raises(DurusKeyError, match="no object with oid 7"):
        storage.load(name(7))
    with pytest.raises(DurusKeyError):
        list(storage.gen_oid_record(name(7)))


def test_what_can_be_reached_is_generated(storage: AnyStorage) -> None:
    fill(storage, 4)
    store(storage, classic(1, 0, [3]), classic(3, 0, [1, 3]))
    assert sorted(contents(storage)) == [name(n) for n in range(4)]
    assert sorted(dict(storage.gen_oid_record(name(1)))) == [name(1), name(3)]


def test_begin_forgets_what_was_stored_before(storage: AnyStorage) -> None:
    fill(storage, 1)
    storage.begin()
    storage.store(name(0), classic(0, "forgotten"))
    storage.begin()
    storage.end()
    assert storage.load(name(0)) == classic(0)


def test_a_commit_of_nothing_writes_nothing(path: Path, storage: AnyStorage) -> None:
    fill(storage, 1)
    content = path.read_bytes()
    storage.begin()
    storage.end()
    assert path.read_bytes() == content


def test_the_last_record_of_an_oid_counts(storage: AnyStorage) -> None:
    fill(storage, 1)
    storage.begin()
    storage.store(name(0), classic(0, "first"))
    storage.store(name(0), classic(0, "second"))
    storage.end()
    assert storage.load(name(0)) == classic(0, "second")


@pytest.mark.parametrize(
    "record",
    [
        b"",
        classic(1),
        classic(0)[:-3],
        classic(0, 0, [1])[:-1],
        classic(0)[:11],
        name(0) + b"\xff" * 9,
    ],
)
def test_what_is_no_record_of_the_oid_is_refused(storage: AnyStorage, record: bytes) -> None:
    fill(storage, 1)
    storage.begin()
    with pytest.raises(ValueError, match="no record of oid"):
        storage.store(name(0), record)
    storage.end()
    assert contents(storage) == {name(0): classic(0)}


def test_nobody_else_changes_anything(storage: AnyStorage) -> None:
    fill(storage, 1)
    assert storage.sync() == []


class FailingFile(File):
    """A file on which something fails: "write" half-way, "fsync" or "truncate"."""

    fails = ""

    def write(self, s: bytes) -> None:
        if "write" in self.fails:
            super().write(s[: len(s) // 2])
            raise OSError(28, "No space left on device")
        super().write(s)

    def fsync(self) -> None:
        if "fsync" in self.fails:
            self.fails = self.fails.removesuffix(" once")
            if self.fails == "fsync":
                self.fails = ""
            raise OSError(5, "Input/output error")
        super().fsync()

    def truncate(self) -> None:
        if "truncate" in self.fails:
            raise OSError(5, "Input/output error")
        super().truncate()


@pytest.mark.parametrize("fails", ["write", "fsync once"])
def test_a_commit_that_fails_changes_nothing(cls: AnyClass, path: Path, fails: str) -> None:
    file = FailingFile(path)
    with cls(file) as storage:
        fill(storage, 3)
        before, content = contents(storage), path.read_bytes()
        oid = storage.new_oid()
        file.fails = fails
        with pytest.raises(StorageError, match="was not committed") as caught:
            store(storage, classic(0, "new", [3]), classic(3, "new"))
        assert not isinstance(caught.value, CommitOutcomeUnknownError)
        file.fails = ""
        assert contents(storage) == before
        assert path.read_bytes() == content
        assert oid == name(3)
        with pytest.raises(DurusKeyError):
            storage.load(oid)
        store(storage, classic(3, "later"))
    with cls(path) as storage:
        assert contents(storage) == {**before, name(3): classic(3, "later")}


def test_a_commit_that_fails_through_a_connection_is_refused_whole(
    cls: AnyClass, path: Path
) -> None:
    file = FailingFile(path)
    with closing(as_storage(cls(file))) as storage:
        (a,) = create(storage, 1)
        file.fails = "write"
        with pytest.raises(StorageError, match="was not committed"):
            commit(storage, {a: make_record("refused")})
        file.fails = "write truncate"
        with pytest.raises(CommitOutcomeUnknownError, match="could not be cut back"):
            commit(storage, {a: make_record(os.urandom(1000))})
        file.fails = ""
        commit(storage, {a: make_record("later")})
    with cls(path) as classic_storage:
        assert classic_storage.load(a) == record_to_classic(a, make_record("later"), compress=True)
    assert verify(path) == []


def test_a_disk_that_is_full_loses_nothing(cls: AnyClass, path: Path) -> None:
    code = f"""
        import resource, sys
        from durus.error import StorageError
        from {cls.__module__} import {cls.__name__} as Storage
        from durus.record import pack_record
        storage = Storage(sys.argv[1])
        oid = storage.new_oid()
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        for size in (100, 1000, 10_000, 1000):
            storage.begin()
            storage.store(oid, pack_record(oid, b"x" * size, b""))
            try:
                storage.end()
            except StorageError as error:
                print(error)
        print(len(storage.load(oid)))
        """
    found = run_python(code, path).stdout.splitlines()
    assert len(found) == 2
    assert "was not committed: [Errno 27] File too large" in found[0]
    assert found[1] == "1012"
    with cls(path) as storage:
        assert len(storage.load(ROOT_OID)) == 1012


def test_a_file_that_was_replaced_takes_no_commit(cls: AnyClass, path: Path) -> None:
    with cls(path) as storage:
        fill(storage, 2)
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
        content = copy.read_bytes()
        copy.rename(path)
        with pytest.raises(StorageError, match="was replaced while it was open"):
            store(storage, classic(0, "lost"))
        with pytest.raises(StorageError, match="was replaced"):
            storage.pack()
        assert path.read_bytes() == content
        assert os.listdir(path.parent) == [path.name]


def test_the_name_of_the_file_is_durable_before_the_first_commit(cls: AnyClass, path: Path) -> None:
    code = f"""
        import os, sys
        from {cls.__module__} import {cls.__name__} as Storage
        from durus.record import pack_record
        storage = Storage(sys.argv[1])
        folder = os.path.dirname(sys.argv[1])
        syncs = 0

        def count(event, arguments):
            global syncs
            syncs += event == "open" and arguments[0] == folder

        sys.addaudithook(count)
        oid = storage.new_oid()
        for step in ("commit", "commit", "pack", "commit", "commit"):
            if step == "pack":
                storage.pack()
            else:
                storage.store(oid, pack_record(oid, b"ok", b""))
                storage.end()
            print(syncs)
        """
    assert run_python(code, path).stdout.split() == ["1", "1", "1", "2", "2"]


def test_a_file_that_is_packed_just_before_it_is_locked_is_opened_anew(
    cls: AnyClass, path: Path
) -> None:
    with cls(path) as storage:
        fill(storage, 2)
    path.with_name("packed").write_bytes(path.read_bytes())
    code = f"""
        import os, sys
        from {cls.__module__} import {cls.__name__} as Storage
        from durus.record import pack_record
        path, packed = sys.argv[1:]

        def pack(event, arguments):
            if event == "fcntl.flock" and os.path.exists(packed):
                os.rename(packed, path)

        sys.addaudithook(pack)
        storage = Storage(path)
        oid = storage.new_oid()
        storage.store(oid, pack_record(oid, b"ok", b""))
        storage.end()
        """
    finished = run_python(code, path, path.with_name("packed"))
    assert finished.returncode == 0, finished.stderr
    with cls(path) as storage:
        assert len(contents(storage)) == 3


FINISHING = """
        import os, sys
        path, rest = sys.argv[1], bytes.fromhex(sys.argv[2])
        finished = []

        def finish(event, arguments):
            if event == "fcntl.flock" and not finished:
                finished.append(True)
                with open(path, "ab") as file:
                    file.write(rest)

        sys.addaudithook(finish)
"""
"""A writer comes to the end just when a reader looks whether there is one."""


def test_a_transaction_that_is_finished_meanwhile_is_read(cls: AnyClass, path: Path) -> None:
    with cls(path) as storage:
        fill(storage, 2)
        complete = contents(storage)
    content = path.read_bytes()
    for cut in (1, 10, len(complete[name(1)]) + 2):
        path.write_bytes(content[:-cut])
        code = f"""
        {FINISHING}
        from {cls.__module__} import {cls.__name__} as Storage
        with Storage(path, readonly=True) as storage:
            print(sorted(dict(storage.gen_oid_record())) == [bytes(8), bytes(7) + bytes([1])])
        """
        finished = run_python(code, path, content[-cut:].hex())
        assert finished.stdout == "True\n", finished.stderr


def test_a_transaction_that_is_finished_meanwhile_is_no_finding(cls: AnyClass, path: Path) -> None:
    with cls(path) as storage:
        fill(storage, 2)
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    assert len(verify(path)) == 1
    verifier = "verify_shelf" if cls is ShelfStorage else "verify_dfs20"
    code = f"""
        {FINISHING}
        from durus.classic_verify import {verifier}
        print(list({verifier}(path)))
        """
    finished = run_python(code, path, content[-10:].hex())
    assert finished.stdout == "[]\n", finished.stderr


def test_a_transaction_that_is_taken_back_meanwhile_is_no_damage(cls: AnyClass, path: Path) -> None:
    with cls(path) as storage:
        fill(storage, 2)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"\0\0\0\0\0\0\1")
    code = f"""
        import os, sys
        sys.addaudithook(lambda event, _: event == "fcntl.flock" and os.truncate(path, {size}))
        path = sys.argv[1]
        from {cls.__module__} import {cls.__name__} as Storage
        with Storage(path, readonly=True) as storage:
            print(len(dict(storage.gen_oid_record())))
        """
    finished = run_python(code, path)
    assert finished.stdout == "2\n", finished.stderr


# Damage.


def test_what_a_killed_process_was_writing_is_cut_off_by_repair(cls: AnyClass, path: Path) -> None:
    with cls(path) as storage:
        fill(storage, 2)
        before, size = contents(storage), path.stat().st_size
        store(storage, classic(0, "x" * 100, [1]), classic(1))
    content = path.read_bytes()
    for end in range(size + 1, len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(DamagedEndError, match="repair=True"):
            cls(path)
        with cls(path, repair=True) as storage:
            assert contents(storage) == before
        assert path.stat().st_size == size


def test_a_damaged_middle_is_never_cut_off(cls: AnyClass, path: Path) -> None:
    with cls(path) as storage:
        fill(storage, 2)
        start = path.stat().st_size
        store(storage, classic(0, "x" * 100, [1]), classic(1))
        end = path.stat().st_size
        store(storage, classic(1, "last"))
    content = path.read_bytes()
    lengths = 24 if cls is ShelfStorage else 4
    for place in range(start, start + lengths):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(CorruptionError, match=f"at offset {end} is one") as caught:
                cls(path, repair=True)
            assert caught.value.offset == start
            assert path.read_bytes() == damaged


def test_repair_of_a_sound_file_changes_nothing(cls: AnyClass, path: Path) -> None:
    with cls(path) as storage:
        fill(storage, 2)
    content = path.read_bytes()
    cls(path, repair=True).close()
    assert path.read_bytes() == content


# Pack.


def test_pack_keeps_what_can_be_reached(cls: AnyClass, path: Path) -> None:
    with cls(path) as storage:
        fill(storage, 6)
        store(storage, classic(0, "root", [1, 4]), classic(4, "four", [0, 5]))
        kept = {oid: contents(storage)[oid] for oid in map(name, (0, 1, 4, 5))}
        before = path.read_bytes()
        storage.pack()
        assert contents(storage) == kept
        assert sorted(storage.sync()) == [name(2), name(3)]
        assert storage.sync() == []
        for gone in (2, 3):
            with pytest.raises(DurusKeyError):
                storage.load(name(gone))
        assert path.with_name("test.durus.prepack").read_bytes() == before
        assert sorted(os.listdir(path.parent)) == ["test.durus", "test.durus.prepack"]
        assert verify(path) == []
        store(storage, classic(1, "later"))
    with cls(path) as storage:
        assert contents(storage) == {**kept, name(1): classic(1, "later")}
        storage.pack()
        assert contents(storage) == {**kept, name(1): classic(1, "later")}


def test_all_that_a_pack_removes_is_reported(storage: AnyStorage) -> None:
    fill(storage, 20)
    store(storage, classic(0, "root", [3]))
    storage.pack()
    assert sorted(storage.sync()) == [name(n) for n in range(1, 20) if n != 3]


def test_without_a_root_nothing_is_packed(path: Path, storage: AnyStorage) -> None:
    content = path.read_bytes()
    storage.pack()
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_commits_between_the_steps_of_a_pack_are_kept(cls: AnyClass, path: Path) -> None:
    for commit_at in range(1, 100):
        path.unlink(missing_ok=True)
        with cls(path) as storage:
            fill(storage, 8)
            store(storage, classic(0, 0, [1, 2, 3, 4, 5, 6]))  # 7 is not reached any more
            packer = storage.get_packer()
            assert len(list(islice(packer, commit_at))) == commit_at
            if storage.pack_extra is None:
                assert commit_at > 8
                return  # there are no more steps
            # Object 7 is reached again, and 8 is new; 9 is new and not reached, nor is 6 any more.
            assert [storage.new_oid(), storage.new_oid()] == [name(8), name(9)]
            store(storage, classic(0, "new", [1, 2, 7]), classic(1, "new", [2, 8]))
            store(storage, classic(8, "new", [1]), classic(9, "new"), classic(2, "new", [3]))
            for _ in packer:
                pass
            expected = {
                name(0): classic(0, "new", [1, 2, 7]),
                name(1): classic(1, "new", [2, 8]),
                name(2): classic(2, "new", [3]),
                name(3): classic(3),
                name(7): classic(7),
                name(8): classic(8, "new", [1]),
            }
            assert dict(storage.gen_oid_record(ROOT_OID)) == expected
            assert name(7) not in storage.sync()
        assert verify(path) == []
        with cls(path) as storage:
            assert dict(storage.gen_oid_record(ROOT_OID)) == expected
            storage.pack()
            assert contents(storage) == expected
    pytest.fail("the pack does not end")


def test_a_commit_that_fails_during_a_pack_is_not_in_it(cls: AnyClass, path: Path) -> None:
    file = FailingFile(path)
    with cls(file) as storage:
        fill(storage, 3)
        packer = storage.get_packer()
        next(packer)
        storage.new_oid()
        file.fails = "write"
        with pytest.raises(StorageError):
            store(storage, classic(0, "refused", [3]), classic(3))
        file.fails = ""
        before = contents(storage)
        for _ in packer:
            pass
        assert contents(storage) == before


def test_there_is_one_pack_at_a_time(storage: AnyStorage) -> None:
    fill(storage, 3)
    first, second = storage.get_packer(), storage.get_packer()
    next(first)
    assert list(second) == []
    assert list(storage.get_packer()) == []
    for _ in first:
        pass
    assert len(list(storage.get_packer())) > 3


def test_there_is_no_pack_during_a_commit(storage: AnyStorage) -> None:
    fill(storage, 3)
    storage.begin()
    storage.store(name(0), classic(0, "new"))
    assert list(storage.get_packer()) == []
    storage.end()


def test_a_pack_that_is_given_up_leaves_nothing(path: Path, storage: AnyStorage) -> None:
    fill(storage, 10)
    packer = storage.get_packer()
    list(islice(packer, 5))
    assert path.with_name("test.durus.pack").exists()
    del packer
    gc.collect()
    assert os.listdir(path.parent) == [path.name]
    assert storage.pack_extra is None
    storage.pack()


def test_a_pack_of_a_dangling_reference_is_refused(path: Path, storage: AnyStorage) -> None:
    fill(storage, 2)
    store(storage, classic(1, 0, [9]))
    content = path.read_bytes()
    with pytest.raises(CorruptionError, match=r"oid 9.*does not exist; verify says which"):
        storage.pack()
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]
    assert verify(path) == [
        f"offset {verify_offset(storage, 1)}, oid 1: it refers to oid 9, which does not exist"
    ]
    store(storage, classic(1))
    storage.pack()


def verify_offset(storage: AnyStorage, number: int) -> int | None:
    if isinstance(storage, ShelfStorage):
        return storage.shelf.get_position(name(number))
    return storage.index[name(number)]


def test_the_packed_file_is_locked_at_every_moment(cls: AnyClass, path: Path) -> None:
    with cls(path) as storage:
        fill(storage, 3)
        for _ in storage.get_packer():
            with pytest.raises(StorageLockedError):
                cls(path)
        with pytest.raises(StorageLockedError):
            cls(path)
    cls(path).close()


def test_packing_keeps_owner_permissions_and_links(
    cls: AnyClass, path: Path, tmp_path: Path
) -> None:
    cls(path).close()
    path.chmod(0o640)
    owner = (os.getuid(), os.getgid())
    if owner[0] == 0:  # only root may give files away
        owner = (54321, 54322)
        os.chown(path, *owner)
    link = tmp_path / "link"
    link.symlink_to(path)
    with cls(link) as storage:
        fill(storage, 3)
        storage.pack()
        store(storage, classic(0, "later"))
        assert storage.get_filename() == str(link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert (path.stat().st_uid, path.stat().st_gid) == owner
    with cls(path) as storage:
        assert storage.load(name(0)) == classic(0, "later")


def test_what_is_left_of_an_earlier_pack_is_replaced(path: Path, storage: AnyStorage) -> None:
    fill(storage, 3)
    path.with_name("test.durus.pack").write_bytes(b"x" * 100_000)
    path.with_name("test.durus.prepack").write_bytes(b"y" * 100_000)
    before = path.read_bytes()
    storage.pack()
    assert path.with_name("test.durus.prepack").read_bytes() == before
    assert len(contents(storage)) == 3


def test_there_is_a_database_whenever_a_pack_is_killed(cls: AnyClass, path: Path) -> None:
    code = f"""
        import os, sys
        from {cls.__module__} import {cls.__name__} as Storage
        storage = Storage(sys.argv[1])
        remaining = int(sys.argv[2])

        def kill(event, arguments):
            global remaining
            if event in ("open", "os.link", "os.rename", "os.remove"):
                remaining -= 1
                if not remaining:
                    os._exit(9)

        sys.addaudithook(kill)
        storage.pack()
        print(remaining)
        """
    with cls(path) as storage:
        fill(storage, 5)
        store(storage, classic(0, "root", [1, 2]))
        expected = dict(storage.gen_oid_record(ROOT_OID))
    content = path.read_bytes()
    calls = 1000 - int(run_python(code, path, 1000).stdout)
    assert calls >= 4
    for call in range(1, calls + 1):
        path.write_bytes(content)
        assert run_python(code, path, call).returncode == 9
        assert verify(path) == []
        with cls(path) as storage:
            assert dict(storage.gen_oid_record(ROOT_OID)) == expected
            storage.pack()
            assert contents(storage) == expected
