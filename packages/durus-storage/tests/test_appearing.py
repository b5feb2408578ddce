"""Files that are made aside appear under their names, and replace nothing."""

import errno
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from durus.appearing import appearing_at, making, replacing
from durus.error import StorageOpenError
from durus.file_system import FileStatus, OperatingSystem


class WithoutLinks(OperatingSystem):
    """A file system such as FAT, on which something may happen at one moment."""

    def __init__(self) -> None:
        self.on_lock: Callable[[], object] = int
        self.on_create: Callable[[], object] = int

    def link(self, source: str, target: str) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)

    def create(self, path: str, like: FileStatus | None = None, *, append: bool = True) -> int:
        fd = super().create(path, like, append=append)
        self.on_create()
        return fd

    def lock(self, fd: int, *, shared: bool = False) -> bool:
        self.on_lock()
        return super().lock(fd, shared=shared)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    gc.collect()  # what earlier tests have left is closed now, and not in the middle of this one
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    yield tmp_path / "file"
    assert not before or len(os.listdir("/proc/self/fd")) == before


@pytest.fixture(params=[OperatingSystem, WithoutLinks])
def system(request: pytest.FixtureRequest) -> OperatingSystem:
    made: OperatingSystem = request.param()
    return made


def make(system: OperatingSystem, path: Path) -> None:
    with appearing_at(system, str(path)) as aside:
        Path(aside).write_bytes(b"new")


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


def test_a_file_appears_at_the_end_and_alone(system: OperatingSystem, path: Path) -> None:
    with appearing_at(system, str(path)) as aside:
        assert os.path.dirname(aside) == str(path.parent)
        Path(aside).write_bytes(b"new")
        assert not path.exists()
    assert files(path) == {"file": b"new"}


def test_what_is_there_is_not_replaced(system: OperatingSystem, path: Path) -> None:
    for content in (b"old", b""):
        path.write_bytes(content)
        with pytest.raises(FileExistsError):
            make(system, path)
        assert files(path) == {"file": content}


def test_after_an_error_nothing_is_left(system: OperatingSystem, path: Path) -> None:
    def fail() -> None:
        with appearing_at(system, str(path)) as aside:
            Path(aside).write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with pytest.raises(FileNotFoundError), appearing_at(system, str(path)):
        pass  # and make nothing
    assert files(path) == {}


def test_who_locks_the_empty_file_first_may_fill_it(path: Path) -> None:
    system = WithoutLinks()
    other: list[int] = []

    def lock() -> None:
        if path.exists() and not other:
            other.append(os.open(path, os.O_RDWR))
            assert OperatingSystem().lock(other[0])

    system.on_create = lock
    with pytest.raises(FileExistsError):
        make(system, path)
    os.close(other[0])
    assert files(path) == {"file": b""}


def test_what_somebody_has_made_of_the_empty_file_stays(path: Path) -> None:
    def replace() -> None:
        path.with_name("other").write_bytes(b"theirs")
        path.with_name("other").rename(path)

    system = WithoutLinks()
    for happens in (replace, lambda: path.write_bytes(b"theirs")):
        system.on_lock = happens
        with pytest.raises(FileExistsError):
            make(system, path)
        assert files(path) == {"file": b"theirs"}
        path.unlink()


def test_the_empty_file_goes_when_it_cannot_be_replaced(path: Path) -> None:
    system = WithoutLinks()
    with pytest.raises(FileNotFoundError), appearing_at(system, str(path)):
        system.on_lock = lambda: files(path) == {"file": b""}
    assert files(path) == {}


def test_when_the_directory_cannot_be_synced_the_file_stays(path: Path) -> None:
    class Unsynced(OperatingSystem):
        def sync_directory(self, path: str) -> None:
            raise OSError(errno.EIO, "no luck")

    message = f"{path}: its directory cannot be synced: no luck; .*may take the file away"
    with pytest.raises(StorageOpenError, match=message):
        make(Unsynced(), path)
    assert files(path) == {"file": b"new"}


REASONS = [
    (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    (OSError("of some kind"), "of some kind"),
    (FileExistsError(errno.EEXIST, "File exists"), "something is there already, and nothing is"),
    (FileNotFoundError(errno.ENOENT, "No such file"), "the directory /missing does not exist"),
]


@pytest.mark.parametrize(("error", "reason"), REASONS)
def test_why_a_file_is_not_made_is_said(error: OSError, reason: str) -> None:
    message = f"^/missing/file: cannot be made: {reason}"
    with pytest.raises(StorageOpenError, match=message) as told, making("/missing/file"):
        raise error
    assert told.value.errno == error.errno
    assert told.value.__cause__ is error


def test_what_says_already_what_happened_is_left_as_it_is() -> None:
    error = StorageOpenError("/file", "something else")
    with pytest.raises(StorageOpenError) as told, making("/missing/file"):
        raise error
    assert told.value is error


def test_a_file_takes_the_place_of_another_when_it_is_complete(
    system: OperatingSystem, path: Path
) -> None:
    path.write_bytes(b"old")
    path.with_name("file.pack").write_bytes(b"of a killed process")

    def fail() -> None:
        with replacing(system, str(path)) as aside:
            Path(aside).write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert files(path) == {"file": b"old"}
    with replacing(system, str(path)) as aside:
        Path(aside).write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert files(path) == {"file": b"new"}
