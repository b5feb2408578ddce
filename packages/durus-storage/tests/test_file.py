"""`durus.file.File`: reading, writing, and the lock."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import durus.file
from durus.error import ReadOnlyError, StorageError, StorageLockedError
from durus.file import File

InChild = Callable[[Callable[[], object]], int]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    file = File(tmp_path / "file")
    yield file
    file.close()


def test_a_new_file_is_empty_and_begins_at_0(file: File) -> None:
    assert len(file) == file.tell() == 0
    assert not file.is_temporary()
    assert not file.is_readonly()


def test_what_is_written_is_read(file: File) -> None:
    file.write(b"abc")
    file.seek(0)
    assert len(file) == 3
    assert file.read(1) == b"a"
    assert file.read() == b"bc"
    file.seek(1)
    assert file.tell() == 1
    file.seek_end()
    assert file.tell() == 3
    file.seek(-1, 2)
    assert file.read() == b"c"


def test_a_relative_path_stays_right_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(File("file")) as file:
        file.write(b"abc")
        (tmp_path / "folder").mkdir()
        monkeypatch.chdir("folder")
        assert file.get_name() == "file"
        assert file.is_in_place()
        assert file.stat().st_size == 3
        file.rename("other")
        assert (tmp_path / "folder" / "other").read_bytes() == b"abc"


def test_the_length_is_that_of_the_open_file(file: File, tmp_path: Path) -> None:
    file.write(b"abc")
    (tmp_path / "file").unlink()
    assert len(file) == 3
    (tmp_path / "file").write_bytes(b"another")
    assert len(file) == 3


def test_what_is_written_is_there_before_flush(file: File) -> None:
    file.write(b"abc")
    assert Path(file.get_name()).read_bytes() == b"abc"
    file.flush()
    file.fsync()


def test_a_file_that_is_there_is_kept(file: File, tmp_path: Path) -> None:
    file.write(b"abc")
    file.close()
    again = File(str(tmp_path / "file"))
    assert again.read() == b"abc"
    again.close()


def test_truncate_cuts_off_what_follows(file: File) -> None:
    file.write(b"abc")
    file.seek(1)
    file.truncate()
    assert len(file) == file.stat().st_size == 1


def test_a_temporary_file_is_removed_when_it_is_closed() -> None:
    file = File(prefix="durus-test-", suffix=".file")
    name = file.get_name()
    assert file.is_temporary()
    assert os.path.basename(name).startswith("durus-test-")
    file.write(b"abc")
    assert len(file) == 3
    file.close()
    assert not os.path.exists(name)
    with pytest.raises(OSError, match="No such file"):
        file.stat()


def test_a_temporary_file_may_be_kept() -> None:
    file = File(delete=False)
    file.close()
    os.unlink(file.get_name())
    assert file.is_temporary()


def test_a_forked_child_leaves_the_temporary_file_to_its_parent() -> None:
    code = """
import os, sys
from durus.file import File
file = File()
file.write(b"abc")
if os.fork() == 0:
    file.close()
    sys.exit()
os.wait()
print(os.path.exists(file.get_name()), len(file))
print(file.get_name(), end="")
"""
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    first, name = found.split("\n")
    assert first == "True 3"
    assert not os.path.exists(name)


def test_a_temporary_file_is_never_readonly() -> None:
    with pytest.raises(AssertionError, match="cannot be read-only"):
        File(readonly=True)


def test_a_temporary_file_cannot_be_renamed() -> None:
    file = File()
    file.rename(file.get_name())  # that is no change
    with pytest.raises(AssertionError, match="cannot be renamed"):
        file.rename(file.get_name() + ".renamed")
    file.close()


def test_a_file_that_is_not_there_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing: there is no such file"):
        File(tmp_path / "missing", readonly=True)
    assert not (tmp_path / "missing").exists()


def test_a_readonly_file_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    file = File(tmp_path / "file", readonly=True)
    assert file.is_readonly()
    changes: list[Callable[[], None]] = [lambda: file.write(b"x"), file.truncate, file.obtain_lock]
    for change in changes:
        with pytest.raises(ReadOnlyError):
            change()
    with pytest.raises(AssertionError):  # as in 4.3
        file.write(b"x")
    with pytest.raises(OSError, match="write"):
        file.file.write(b"x")
    assert file.read() == b"abc"
    file.close()


def test_a_renamed_file_stays_open_and_locked(file: File, tmp_path: Path) -> None:
    file.write(b"abc")
    other = str(tmp_path / "other")
    file.rename(other)
    assert file.get_name() == other
    assert file.tell() == 0
    assert file.read() == b"abc"
    assert file.has_lock
    assert not (tmp_path / "file").exists()
    assert file.is_in_place()


def test_renaming_replaces_what_is_there(file: File, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"old")
    file.write(b"new")
    file.rename(str(tmp_path / "other"))
    assert (tmp_path / "other").read_bytes() == b"new"


def test_a_file_is_in_place_until_another_one_is_there(file: File, tmp_path: Path) -> None:
    assert file.is_in_place()
    (tmp_path / "other").write_bytes(b"")
    (tmp_path / "other").rename(tmp_path / "file")
    assert not file.is_in_place()
    (tmp_path / "file").unlink()
    assert not file.is_in_place()


def test_writing_takes_the_lock_and_another_one_cannot(file: File, tmp_path: Path) -> None:
    other = File(tmp_path / "file")
    file.write(b"a")
    assert file.has_lock
    assert not other.has_lock
    assert other.is_locked_elsewhere()
    changes: list[Callable[[], None]] = [
        lambda: other.write(b"b"),
        other.truncate,
        other.obtain_lock,
    ]
    for change in changes:
        with pytest.raises(StorageLockedError) as caught:
            change()
        assert str(tmp_path / "file") in str(caught.value)
        assert "this process has the file open for writing" in str(caught.value)
        assert isinstance(caught.value, OSError)
    file.release_lock()
    assert not other.is_locked_elsewhere()
    other.write(b"b")
    other.close()


def test_closing_gives_the_lock_up(file: File, tmp_path: Path) -> None:
    file.obtain_lock()
    file.close()
    file.close()
    other = File(tmp_path / "file")
    assert not other.is_locked_elsewhere()
    other.obtain_lock()
    assert other.has_lock
    other.close()


def test_a_writer_waits_for_a_reader_that_keeps_writers_away(tmp_path: Path) -> None:
    code = """
import contextlib, sys
from durus.file import File
writer, reader = File(sys.argv[1]), File(sys.argv[1], readonly=True)
with contextlib.ExitStack() as stack:
    assert stack.enter_context(reader.keeping_writers_away())
    attempts = []
    def leave(event, arguments):
        if event == "fcntl.flock" and arguments[0] == writer.file.fileno():
            attempts.append(event)
            if len(attempts) == 5:
                stack.close()
    sys.addaudithook(leave)
    writer.obtain_lock()
print(writer.has_lock, reader.is_locked_elsewhere())
"""
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"True True\n"


def test_a_writer_does_not_wait_for_a_reader_for_ever(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durus.file, "_READERS_WAIT_MAX_S", 0.01)
    with closing(File(file.get_name(), readonly=True)) as reader:
        with reader.keeping_writers_away() as is_quiet:
            assert is_quiet
            with pytest.raises(StorageLockedError):
                file.obtain_lock()
        file.obtain_lock()
        with reader.keeping_writers_away() as is_quiet:
            assert not is_quiet


def test_another_process_is_named(file: File) -> None:
    code = (
        "import sys; from durus.file import File; file = File(sys.argv[1]); file.obtain_lock();"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, file.get_name()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(StorageLockedError, match=f"process {process.pid} has the file open"):
            file.obtain_lock()


# Forks


USES: dict[str, Callable[[File], object]] = {
    "read": lambda file: file.read(1),
    "seek": lambda file: file.seek(0),
    "tell": lambda file: file.tell(),
    "length": len,
    "write": lambda file: file.write(b"x"),
    "truncate": lambda file: file.truncate(),
    "sync": lambda file: file.fsync(),
    "lock": lambda file: file.obtain_lock(),
    "look for a lock": lambda file: file.is_locked_elsewhere(),
    "readonly": lambda file: file.is_readonly(),
    "in place": lambda file: file.is_in_place(),
}


@pytest.mark.parametrize("kind", ["writable", "readonly", "temporary"])
def test_a_forked_child_is_told_to_open_the_file_anew(
    tmp_path: Path, kind: str, in_child: InChild
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    file = File() if kind == "temporary" else File(path, readonly=kind == "readonly")
    if kind == "temporary":
        file.write(b"abc")
        file.seek(0)
    assert file.read(1) == b"a"
    fd = file.file.fileno()

    def child() -> None:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        for use in USES.values():
            with pytest.raises(StorageError, match=f"opened by process {pid} before it forked"):
                use(file)
        file.close()
        file.close()
        with closing(File(path, readonly=True)) as anew:
            assert anew.read() == b"abc"

    def child_of_a_child() -> None:
        child()
        assert in_child(child) == 0

    pid = os.getpid()
    assert in_child(child_of_a_child) == 0
    assert file.read() == b"bc"
    file.close()


def test_a_forked_child_leaves_the_lock_to_its_parent(file: File, in_child: InChild) -> None:
    def child() -> None:
        assert not file.has_lock
        file.release_lock()
        with closing(File(file.get_name())) as anew, pytest.raises(StorageLockedError):
            anew.obtain_lock()
        file.close()

    file.obtain_lock()
    assert in_child(child) == 0
    assert file.has_lock
    with closing(File(file.get_name())) as other:
        assert other.is_locked_elsewhere()


def test_a_lock_ends_with_its_process_whatever_children_that_has_left(file: File) -> None:
    code = """
import os, sys
from durus.file import File
file = File(sys.argv[1])
file.obtain_lock()
if os.fork() == 0:
    print("locked", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, file.get_name()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        assert file.is_locked_elsewhere()
        process.kill()
        process.wait()
        file.obtain_lock()


def test_a_large_write_is_written_whole(file: File) -> None:
    large = os.urandom(5 << 20)
    file.write(large)
    file.seek(0)
    assert file.read() == large
