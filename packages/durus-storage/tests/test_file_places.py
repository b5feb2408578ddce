"""A log file in places that are no ordinary disk: read-only, another user's, on a network."""

import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from durus.connection import Connection
from durus.error import (
    ReadOnlyError,
    StorageError,
    StorageLockedError,
    StorageOpenError,
)
from durus.file_storage import FileStorage
from durus.file_system import FileMap, FileStatus, OperatingSystem
from durus.index_checkpoint import index_path, write_checkpoint
from durus.interfaces import Oid
from durus.log_format import MARK_SIZE
from durus.log_verify import verify_file
from durus.testing.storage_contract import commit, create, make_record, value, value_of

NOBODY = 65534
OWNER, GROUP = 54321, 54322


def check_readonly(path: Path, oid: Oid) -> None:
    """That it can be read by those who must not write, who leave everything as it is."""
    files = {file: file.read_bytes() for file in path.parent.iterdir()}
    with closing(FileStorage(path, readonly=True)) as storage:
        assert value(storage, oid) == 0
        assert len(list(storage.transactions())) == 2
        for call in (lambda: commit(storage, {oid: make_record(1)}), storage.pack):
            with pytest.raises(ReadOnlyError):
                call()
        with Connection(storage) as connection:
            assert connection.get(oid) is not None
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == files


# Read-only media


class ReadOnlyMedium(OperatingSystem):
    def _refuse(self) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def open(self, path: str, *, writable: bool, append: bool = True) -> int:
        if writable:
            self._refuse()
        return super().open(path, writable=writable, append=append)

    def create(self, path: str, like: FileStatus | None = None, *, append: bool = True) -> int:
        self._refuse()

    def sync(self, fd: int) -> None:
        self._refuse()


def test_a_read_only_medium_is_named_with_the_remedy(path: Path, oid: Oid) -> None:
    with pytest.raises(StorageOpenError, match="readonly=True opens it") as caught:
        FileStorage(path, system=ReadOnlyMedium())
    assert caught.value.errno == errno.EROFS
    with closing(FileStorage(path, readonly=True, system=ReadOnlyMedium())) as storage:
        assert value(storage, oid) == 0


def test_a_commit_that_a_crash_left_unmarked_is_seen_on_a_read_only_medium(
    path: Path, oid: Oid
) -> None:
    with closing(FileStorage(path)) as storage:
        commit(storage, {oid: make_record("unmarked")})
    os.truncate(path, path.stat().st_size - MARK_SIZE)
    content = path.read_bytes()
    with closing(FileStorage(path, readonly=True, system=ReadOnlyMedium())) as storage:
        assert value(storage, oid) == "unmarked"
    assert path.read_bytes() == content


def test_no_file_is_made_on_a_read_only_medium(path: Path) -> None:
    with pytest.raises(StorageOpenError, match="cannot be made: Read-only file system"):
        FileStorage(path, system=ReadOnlyMedium())


READ_ONLY_PROGRAM = """
    import sys
    from pathlib import Path
    from durus.error import StorageOpenError
    from durus.file_storage import FileStorage
    path, oid, unmarked = sys.argv[1:]
    for value, file in [(0, path), ("unmarked", unmarked)]:
        try:
            FileStorage(file)
        except StorageOpenError as error:
            assert "medium that cannot be written; readonly=True opens it" in str(error), error
        else:
            raise AssertionError("the mount is not read-only")
        from durus.testing.storage_contract import value_of
        storage = FileStorage(file, readonly=True)
        assert value_of(storage.snapshot().load(bytes.fromhex(oid)).record) == value
        storage.close()
    try:
        FileStorage(Path(path).with_name("new.durus"))
    except StorageOpenError as error:
        assert "cannot be made: Read-only file system" in str(error), error
"""
MOUNTS = {
    "bind": 'mount --bind -o ro "$0" "$0"',
    "tmpfs": 'mount -t tmpfs none "$0" && cp "$1"/* "$0" && mount -o remount,ro "$0"',
}


@pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are of Linux")
@pytest.mark.parametrize("kind", MOUNTS)
def test_a_file_system_mounted_read_only_can_be_read(path: Path, oid: Oid, kind: str) -> None:
    """Only the program sees the mount."""
    unmarked = path.with_name("unmarked.durus")
    shutil.copy(path, unmarked)
    with closing(FileStorage(unmarked)) as storage:
        commit(storage, {oid: make_record("unmarked")})
    os.truncate(unmarked, unmarked.stat().st_size - MARK_SIZE)
    copy = shutil.copytree(path.parent, path.parent.with_name("copy"))
    try:
        unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        mount = [*unshare, "sh", "-ec", MOUNTS[kind] + ' && cd / && shift && exec "$@"']
        mount += [str(path.parent), str(copy)]
        if subprocess.run([*mount, "true"], capture_output=True).returncode != 0:
            pytest.skip("this user may mount nothing, not even for a program alone")
        program = [sys.executable, "-c", textwrap.dedent(READ_ONLY_PROGRAM)]
        subprocess.run([*mount, *program, str(path), oid.hex(), str(unmarked)], check=True)
    finally:
        shutil.rmtree(copy)


# Users


@contextmanager
def another_user(user: int = NOBODY, groups: Sequence[int] = ()) -> Iterator[None]:
    """Be somebody who may write nothing, but for what is this user's, or of these groups."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(NOBODY)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that everybody may enter, as those of pytest may not."""
    folder = Path(tempfile.mkdtemp(prefix="durus-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("has_index", [True, False])
def test_a_user_who_may_only_read_can_read(shared_folder: Path, has_index: bool) -> None:
    path = shared_folder / "test.durus"
    with closing(FileStorage(path)) as storage:
        (oid,) = create(storage, 1)
        if has_index:
            write_checkpoint(storage._shared.current())
    path.chmod(0o644)
    assert os.path.exists(index_path(str(path))) is has_index
    with another_user():
        with pytest.raises(StorageOpenError, match="to write; readonly=True may work") as caught:
            FileStorage(path)
        assert caught.value.errno == errno.EACCES
        check_readonly(path, oid)
        with pytest.raises(StorageOpenError, match="cannot be made: Permission denied"):
            FileStorage(shared_folder / "new.durus")


def test_a_user_who_may_only_read_sees_what_another_commits(shared_folder: Path) -> None:
    path = shared_folder / "test.durus"
    with closing(FileStorage(path)) as writer:
        (oid,) = create(writer, 1)
        with another_user():
            reader = FileStorage(path, readonly=True)
        with closing(reader):
            commit(writer, {oid: make_record(1)})
            with another_user():
                assert value(reader, oid) == 1
            commit(writer, {oid: make_record(2)})
            writer.pack()
            with another_user():
                assert value(reader, oid) == 2


def test_a_user_who_must_not_read_is_told_so(shared_folder: Path) -> None:
    path = shared_folder / "test.durus"
    FileStorage(path).close()
    path.chmod(0o600)
    with another_user(), pytest.raises(StorageOpenError, match=r"no permission to open it$"):
        FileStorage(path, readonly=True)


def test_an_index_that_a_user_may_not_read_is_done_without(shared_folder: Path) -> None:
    path = shared_folder / "test.durus"
    with closing(FileStorage(path)) as storage:
        (oid,) = create(storage, 1)
        write_checkpoint(storage._shared.current())
    path.chmod(0o666)
    os.chmod(index_path(str(path)), 0o600)
    with another_user():
        for readonly in (True, False):
            with closing(FileStorage(path, readonly=readonly)) as storage:
                assert value(storage, oid) == 0


def test_who_may_write_the_file_but_not_the_folder_commits(shared_folder: Path) -> None:
    path = shared_folder / "test.durus"
    with closing(FileStorage(path)) as storage:
        (oid,) = create(storage, 1)
    path.chmod(0o666)
    with another_user():
        with closing(FileStorage(path)) as storage:
            commit(storage, {oid: make_record(1)})
            with pytest.raises(StorageError, match=r"could not be packed: .*Permission denied"):
                storage.pack()
            commit(storage, {oid: make_record(2)})
        with closing(FileStorage(path, readonly=True)) as storage:
            assert value(storage, oid) == 2
    assert list(verify_file(str(path))) == []


def belongings(path: Path) -> tuple[int, int, int]:
    """Owner, group and permissions."""
    found = path.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@needs_root
def test_what_root_makes_belongs_to_the_owner_of_the_database(shared_folder: Path) -> None:
    path = shared_folder / "test.durus"
    path.touch()
    path.chmod(0o640)
    os.chown(path, OWNER, GROUP)
    with closing(FileStorage(path)) as storage:  # in the place of the empty file
        (oid,) = create(storage, 1)
        assert belongings(path) == (OWNER, GROUP, 0o640)
        storage.pack()
        assert belongings(path) == (OWNER, GROUP, 0o640)
        write_checkpoint(storage._shared.current())
        assert belongings(Path(index_path(str(path)))) == (OWNER, GROUP, 0o640)
    with another_user(OWNER), closing(FileStorage(path)) as storage:
        commit(storage, {oid: make_record(1)})
        write_checkpoint(storage._shared.current())
    assert list(verify_file(str(path))) == []


@needs_root
@pytest.mark.parametrize(("groups", "group"), [([GROUP], GROUP), ([], NOBODY)])
def test_what_another_user_makes_belongs_to_the_group_of_the_database_if_it_is_theirs(
    shared_folder: Path, groups: list[int], group: int
) -> None:
    path = shared_folder / "test.durus"
    with closing(FileStorage(path)) as storage:
        (oid,) = create(storage, 1)
    path.chmod(0o666)
    os.chown(path, OWNER, GROUP)
    shared_folder.chmod(0o777)
    with another_user(groups=groups), closing(FileStorage(path)) as storage:
        storage.pack()
        write_checkpoint(storage._shared.current())
        assert value(storage, oid) == 0
    for file in (path, Path(index_path(str(path)))):
        assert belongings(file) == (NOBODY, group, 0o666)


# Network file systems


class NetworkFileSystem(OperatingSystem):
    def network_file_system(self, fd: int) -> str | None:
        return "nfs4"


NFS = NetworkFileSystem()


def test_on_a_network_file_system_one_process_at_a_time_has_the_file(path: Path, oid: Oid) -> None:
    with closing(FileStorage(path, system=NFS)) as storage:
        commit(storage, {oid: make_record(1)})
        for readonly in (False, True):
            with pytest.raises(StorageLockedError, match="has had the file locked for 0 s"):
                FileStorage(path, readonly=readonly, lock_timeout_s=0, system=NFS)
        storage.pack()
        with pytest.raises(StorageLockedError):
            FileStorage(path, lock_timeout_s=0, system=NFS)
        commit(storage, {oid: make_record(2)})
        storage.reserve_oids(1000)
        with pytest.raises(StorageLockedError):
            FileStorage(path, lock_timeout_s=0, system=NFS)
        assert value(storage, oid) == 2
    with closing(FileStorage(path, lock_timeout_s=0, system=NFS)) as storage:
        assert value(storage, oid) == 2


def test_on_a_network_file_system_those_that_only_read_share(path: Path, oid: Oid) -> None:
    with (
        closing(FileStorage(path, readonly=True, lock_timeout_s=0, system=NFS)) as one,
        closing(FileStorage(path, readonly=True, lock_timeout_s=0, system=NFS)) as two,
    ):
        assert [value(one, oid), value(two, oid)] == [0, 0]
        with pytest.raises(StorageLockedError):
            FileStorage(path, lock_timeout_s=0, system=NFS)
        one.close()
        with pytest.raises(StorageLockedError):
            FileStorage(path, lock_timeout_s=0, system=NFS)
    FileStorage(path, lock_timeout_s=0, system=NFS).close()


def test_a_second_process_on_a_network_file_system_is_told_when_it_opens_the_file(
    path: Path, oid: Oid
) -> None:
    program = """
        import sys
        from durus.error import StorageLockedError
        from durus.file_storage import FileStorage
        from durus.file_system import OperatingSystem
        OperatingSystem.network_file_system = lambda self, fd: "nfs4"
        try:
            FileStorage(sys.argv[1], lock_timeout_s=0)
        except StorageLockedError as error:
            print(error)
        """
    command = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    with closing(FileStorage(path, system=NFS)):
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        assert str(path) in told
        if sys.platform == "linux":
            assert f"process {os.getpid()} " in told
    assert subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout == b""


# Without a map


class NoMap(OperatingSystem):
    def map(self, fd: int, size: int) -> FileMap:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


class Unmapped(OperatingSystem):
    def map(self, fd: int, size: int) -> FileMap:
        raise AssertionError("mmap=False")


class CountsMaps(OperatingSystem):
    maps = 0

    def map(self, fd: int, size: int) -> FileMap:
        self.maps += 1
        return super().map(fd, size)


@pytest.mark.parametrize(
    ("system", "mmap"),
    [
        pytest.param(CountsMaps(), True, id="mapped"),
        pytest.param(NoMap(), True, id="a-map-that-fails"),
        pytest.param(Unmapped(), False, id="not-mapped"),
    ],
)
def test_everything_works_with_a_map_and_without(
    path: Path, system: OperatingSystem, mmap: bool
) -> None:
    with closing(FileStorage(path, mmap=mmap, system=system)) as storage:
        oids = create(storage, 20)
        old = storage.snapshot()
        for number, oid in enumerate(oids):
            commit(storage, {oid: make_record([number, "x" * 300_000])})
        with closing(FileStorage(path, mmap=mmap, system=system)) as other:
            for number, oid in enumerate(oids):
                assert value(other, oid) == value(storage, oid) == [number, "x" * 300_000]
            storage.pack()
            commit(other, {oids[0]: make_record("packed")})
        assert value(storage, oids[0]) == "packed"
        assert value(storage, oids[1]) == [1, "x" * 300_000]
        assert [value_of(old.load(oid).record) for oid in oids] == [0] * 20
        old.close()
    if isinstance(system, CountsMaps):
        assert system.maps > 0
    assert list(verify_file(str(path))) == []


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_is_none_is_refused(path: Path, timeout: float) -> None:
    with pytest.raises(ValueError, match="lock_timeout_s is a number of seconds"):
        FileStorage(path, lock_timeout_s=timeout)
    assert not path.exists()


def test_a_link_to_nothing_becomes_one_to_a_database(path: Path) -> None:
    path.symlink_to("elsewhere.durus")
    with closing(FileStorage(path)) as storage:
        create(storage, 1)
    assert path.is_symlink()
    with closing(FileStorage(path.with_name("elsewhere.durus"), readonly=True)) as storage:
        assert storage.tid


def test_what_is_no_regular_file_is_no_index(path: Path, oid: Oid) -> None:
    os.unlink(index_path(str(path)))
    os.mkfifo(index_path(str(path)))
    with closing(FileStorage(path)) as storage:
        assert value(storage, oid) == 0


def test_a_folder_that_may_not_be_listed_keeps_nobody_from_committing(path: Path) -> None:
    class Unlisted(OperatingSystem):
        def sync_directory(self, path: str) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    FileStorage(path).close()
    with closing(FileStorage(path, system=Unlisted())) as storage:
        create(storage, 1)
