"""The files beside a log that is packed: what is in the way, what is kept, what goes wrong."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from durus import online_pack
from durus.error import StorageError
from durus.file_storage import FileStorage, TempFileStorage
from durus.file_system import OperatingSystem
from durus.index_checkpoint import index_path, write_checkpoint
from durus.interfaces import ROOT_OID, Oid, Progress
from durus.testing.storage_contract import commit, create, make_record, value


@pytest.fixture
def aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.pack")


@pytest.fixture
def old(path: Path) -> Path:
    return path.with_name(f"{path.name}.old")


def names_beside(path: Path) -> set[str]:
    return set(os.listdir(path.parent)) - {path.name, f"{path.name}.index"}


# The name that a pack takes for its copy


def make_another_database(path: Path) -> None:
    with closing(FileStorage(path)) as storage:
        create(storage, 1)


def copy_the_database(path: Path) -> None:
    shutil.copy(path.with_suffix(""), path)


def link_to_a_text(path: Path) -> None:
    text = path.with_name("text")
    text.write_text("precious")
    path.symlink_to(text)


@pytest.mark.parametrize(
    "make",
    [
        make_another_database,
        copy_the_database,
        link_to_a_text,
        lambda path: path.write_text("precious"),
        lambda path: path.symlink_to("nothing"),
        Path.mkdir,
        os.mkfifo,
    ],
    ids=["another database", "copy", "link", "text", "dangling link", "directory", "pipe"],
)
def test_what_no_pack_has_left_is_in_the_way(
    path: Path, storage: FileStorage, aside: Path, make: Callable[[Path], object]
) -> None:
    make(aside)
    before = aside.lstat()
    content = aside.read_bytes() if aside.is_file() else b""
    inode = path.stat().st_ino
    with pytest.raises(StorageError, match=rf"{aside} is in the way.*another name"):
        storage.pack()
    assert (aside.lstat().st_ino, aside.lstat().st_size) == (before.st_ino, before.st_size)
    assert content == (aside.read_bytes() if aside.is_file() else b"")
    assert path.stat().st_ino == inode
    aside.rename(aside.with_name("elsewhere"))
    storage.pack()
    assert path.stat().st_ino != inode
    assert not aside.exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content,
        lambda content: content[:100],
        lambda content: b"",
        lambda content: bytes(512) + content[512:],
    ],
    ids=["whole", "cut off", "empty", "without its first sector"],
)
def test_what_a_killed_pack_has_left_is_removed(
    path: Path, storage: FileStorage, aside: Path, spoil: Callable[[bytes], bytes]
) -> None:
    left: list[bytes] = []

    def be_killed(progress: Progress) -> None:
        if progress.what == "copying":
            left.append(aside.read_bytes())
            raise KeyboardInterrupt

    commit(storage, {ROOT_OID: make_record("x" * (1 << 21))})
    with pytest.raises(KeyboardInterrupt):
        storage.pack(progress=be_killed)
    assert len(left[0]) > 512
    aside.write_bytes(spoil(left[0]))
    storage.pack()
    assert names_beside(path) == set()


# The old file


class WithoutLinks(OperatingSystem):
    def link(self, source: str, target: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), source)


def test_an_earlier_old_file_stays_until_the_new_one_is_there(path: Path, old: Path) -> None:
    with closing(FileStorage(path)) as storage:
        create(storage, 1)
        storage.pack(keep_old=True)
    before = old.read_bytes()
    with closing(FileStorage(path, system=WithoutLinks())) as storage:
        commit(storage, {ROOT_OID: make_record("newer")})
        with pytest.raises(StorageError, match=r"two names on this file system; nothing was"):
            storage.pack(keep_old=True)
        assert old.read_bytes() == before
        assert names_beside(path) == {old.name}
        storage.pack()
    assert old.read_bytes() == before


def test_a_directory_in_its_place_stays(path: Path, storage: FileStorage, old: Path) -> None:
    old.mkdir()
    with pytest.raises(StorageError, match="could not be packed"):
        storage.pack(keep_old=True)
    assert old.is_dir()
    assert names_beside(path) == {old.name}


def test_the_log_may_have_the_name_already(path: Path, storage: FileStorage, old: Path) -> None:
    os.link(path, old)
    storage.pack(keep_old=True)
    assert names_beside(path) == {old.name}
    assert not old.samefile(path)


def test_a_temporary_file_leaves_none() -> None:
    with closing(TempFileStorage()) as storage:
        create(storage, 1)
        storage.pack(keep_old=True)
        path = Path(storage.get_filename())
        assert path.with_name(f"{path.name}.old").exists()
    assert [name for name in os.listdir(path.parent) if name.startswith(path.name)] == []


# The index


def test_the_index_of_the_old_file_goes_with_it(path: Path, storage: FileStorage) -> None:
    write_checkpoint(storage._shared.current())
    assert os.path.exists(index_path(str(path)))
    storage.pack()
    assert not os.path.exists(index_path(str(path)))


# Once it has happened


class UnsyncedDirectory(OperatingSystem):
    fails = False

    def sync_directory(self, path: str) -> None:
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync_directory(path)


def test_a_pack_that_has_happened_says_so(path: Path, oid: Oid) -> None:
    system = UnsyncedDirectory()
    inode = path.stat().st_ino
    with closing(FileStorage(path, system=system)) as storage:
        commit(storage, {oid: make_record(1)})
        system.fails = True
        with pytest.raises(StorageError, match=r"was packed, but its directory cannot be synced"):
            storage.pack()
        assert path.stat().st_ino != inode
        with pytest.raises(StorageError, match="was not committed"):
            commit(storage, {oid: make_record(2)})
        system.fails = False
        commit(storage, {oid: make_record(3)})
        assert value(storage, oid) == 3


@pytest.fixture
def large_from_the_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_pack, "_LARGE_SIZE", 0)


def test_without_another_thread_a_large_file_is_just_closed(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch, large_from_the_first_byte: None
) -> None:
    def refuse(timer: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", refuse)
    storage.pack()


def test_the_end_of_the_process_does_not_wait_for_a_large_file(path: Path, oid: Oid) -> None:
    program = """
import sys
from durus import online_pack
from durus.file_storage import FileStorage
online_pack._LARGE_SIZE, online_pack._CLOSE_LATE_S = 0, 3600.0
FileStorage(sys.argv[1]).pack()
"""
    subprocess.run([sys.executable, "-c", program, path], check=True, timeout=60)
