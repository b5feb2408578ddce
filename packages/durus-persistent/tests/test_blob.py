"""Blobs: files over chunks, what a transaction sees of them, what a failure leaves."""

import copy
import errno
import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from durus.blob import CHUNK_SIZE, Blob, BlobChunk
from durus.blob_spool import PLACE_SIZE, Spool
from durus.connection import Connection, gen_every_instance, touch_every_reference
from durus.copying import copy_subgraph
from durus.error import (
    CommitOutcomeUnknownError,
    DanglingReferenceError,
    ForeignReferenceError,
    ObjectError,
    ReadConflictError,
    ReadOnlyError,
    StorageClosedError,
    StorageError,
    UnstorableError,
    WriteConflictError,
)
from durus.history import revisions
from durus.interfaces import ROOT_OID, CommitResult, Oid, Transaction
from durus.persistent import Persistent, is_ghost, oid_of
from durus.serialize import pickle_class
from durus.storage import MemoryStorage

LARGE = 5 << 20
"""So many bytes are stored ahead of the commit, in several transactions."""


class Photo(Blob):
    """A blob with an attribute."""

    def __init__(self, caption: str) -> None:
        super().__init__(chunk_size=8)
        self.caption = caption


class WatchedStorage(MemoryStorage):
    """A storage that does something before it commits."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[Transaction], object] | None = None
        self.committed: list[Transaction] = []

    def commit(self, transaction: Transaction) -> CommitResult:
        before = self.before
        if before is not None:
            self.before = None  # for what it commits itself
            try:
                before(transaction)
            finally:
                self.before = self.before or before
        result = super().commit(transaction)
        self.committed.append(transaction)
        return result

    def count_objects(self) -> int:
        return len(self._revisions)


@pytest.fixture
def storage() -> WatchedStorage:
    return WatchedStorage()


@pytest.fixture
def connection(storage: WatchedStorage) -> Connection:
    return Connection(storage)


def stored(connection: Connection, content: bytes, chunk_size: int = CHUNK_SIZE) -> Blob:
    """A blob that the root has, committed."""
    blob = connection.root["blob"] = Blob(content, chunk_size=chunk_size)
    connection.commit()
    return blob


def is_part(transaction: Transaction) -> bool:
    """Whether it stores parts of blobs ahead."""
    return transaction.note == "part of a blob"


# Files, against those of the operating system.

Step: TypeAlias = Callable[[Any], Any]


def step(make: Callable[..., Step], *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.builds(make, *arguments)


def call(name: str, *arguments: Any) -> Step:
    return lambda file: getattr(file, name)(*arguments)


def read_into(size: int) -> Step:
    def run(file: Any) -> tuple[int, bytes]:
        buffer = bytearray(size)
        return file.readinto(buffer), bytes(buffer)

    return run


sizes = st.integers(0, 40) | st.integers(8_000, 9_000)
positions = st.integers(0, 60) | st.integers(0, 20_000)
contents = st.binary(max_size=40) | st.builds(lambda n: bytes(range(256)) * (n // 256), sizes)
file_steps = st.one_of(
    step(partial(call, "write"), contents),
    step(partial(call, "read"), sizes | st.just(-1)),
    step(partial(call, "seek"), positions),
    step(lambda n: lambda file: file.seek(-min(n, file.seek(0, 2)), 2), positions),
    step(lambda n: lambda file: file.seek(min(n, 50), 1), positions),
    step(partial(call, "truncate"), positions | st.none()),
    step(read_into, sizes),
    st.sampled_from([call("tell"), call("flush"), call("readline"), call("readable")]),
)
sessions = st.tuples(st.sampled_from(["r", "w", "a", "r+"]), st.lists(file_steps, max_size=8))


def outcome(step: Step, file: Any) -> Any:
    """What it returned, or the class of what it raised."""
    try:
        return step(file)
    except (OSError, ValueError) as error:
        return type(error)


def run_session(mode: Any, steps: list[Step], blob: Blob, path: Path) -> None:
    """Do the same to a blob and to a file."""
    with blob.open(mode) as file, open(path, f"{mode}b", io.DEFAULT_BUFFER_SIZE) as model:
        for step in steps:
            assert outcome(step, file) == outcome(step, model)


@settings(deadline=None)
@given(
    st.sampled_from([1, 3, 16, 1000, 8192, CHUNK_SIZE]),
    st.lists(
        sessions | st.sampled_from(["commit", "abort", "reopen", "fail", "copy"]), max_size=10
    ),
)
@example(3, [("w", [call("write", b"abcdefgh")]), "commit", ("r+", [call("truncate", 4)])])
@example(3, [("w", [call("seek", 20), call("write", b"x")]), "commit", "reopen", ("r", [])])
@example(16, [("a", [call("write", b"abc"), call("seek", 0), call("write", b"def")]), "commit"])
def test_a_blob_does_what_a_file_does(chunk_size: int, steps: list[Any]) -> None:
    storage = MemoryStorage()
    connection = Connection(storage)
    blob = stored(connection, b"", chunk_size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.touch()
        committed = b""
        for this in steps:
            if isinstance(this, tuple):
                mode, file_steps = this
                run_session(mode, file_steps, blob, path)
            elif this == "commit":
                connection.commit()
                committed = path.read_bytes()
            elif this == "fail":
                connection.root["failing"] = lambda: None
                with pytest.raises(UnstorableError):
                    connection.commit()
                del connection.root["failing"]
            elif this == "copy":
                blob = connection.root["blob"] = copy.copy(blob)
            else:
                if this == "abort":
                    connection.abort()
                else:
                    connection = Connection(storage)
                blob = connection.root["blob"]
                path.write_bytes(committed)
            assert blob.size == path.stat().st_size
            assert len(blob._content[2]) == -(-blob.size // chunk_size)
            assert blob.read_bytes() == path.read_bytes()
        connection.abort()
        assert connection.root["blob"].read_bytes() == committed
    assert all(len(chunk) in range(1, chunk_size + 1) for chunk in read_chunks(connection))


def read_chunks(connection: Connection) -> list[bytes]:
    return [obj.read() for obj in connection.get_crawler() if isinstance(obj, BlobChunk)]


@pytest.mark.parametrize("size", [n * CHUNK_SIZE + d for n in (0, 1, 2) for d in (-1, 0, 1)][1:])
def test_a_blob_has_as_many_chunks_as_it_needs(connection: Connection, size: int) -> None:
    content = os.urandom(size)
    blob = connection.root["blob"] = Blob(content)
    assert blob.read_bytes() == content
    connection.commit()
    assert blob.read_bytes() == content
    other = Connection(connection.storage)
    assert other.root["blob"].read_bytes() == content
    assert len(read_chunks(other)) == -(-size // CHUNK_SIZE)


def test_a_new_blob_is_empty(connection: Connection) -> None:
    blob = stored(connection, b"")
    assert (blob.size, blob.read_bytes()) == (0, b"")
    assert blob  # `if root.get("film"):` asks whether there is one
    assert read_chunks(connection) == []


def test_a_blob_is_opened_with_the_modes_of_files_or_without_the_b() -> None:
    blob = Blob()
    for mode in ("w", "wb", "a", "ab", "r+", "rb+", "r+b", "r", "rb"):
        opened: Any = blob.open(mode)
        with opened:
            assert sorted(opened.mode) == sorted(f"{mode.replace('b', '')}b")
    for mode in ("", "b", "w+", "x", "rt", "rbb", "U"):
        with pytest.raises(ValueError, match=r'"r", "w", "a" or "r\+"'):
            blob.open(mode)  # type: ignore[call-overload]  # that is the point
    with blob.open() as file:
        for whence in (-1, 3):
            with pytest.raises(ValueError, match=r"whence|position"):
                file.raw.seek(0, whence)


def test_what_is_no_bytes_is_refused_and_the_content_stays() -> None:
    blob = Blob(b"content")
    with pytest.raises(TypeError):
        blob.write_bytes("text")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(TypeError):
        Blob("text")  # type: ignore[arg-type]  # see above
    with pytest.raises(TypeError):
        blob.write_bytes(memoryview(b"abc")[::2])
    for size in (0, CHUNK_SIZE + 1):
        with pytest.raises(ValueError, match="chunks have 1 to 262,144 bytes"):
            Blob(chunk_size=size)
    for wrong in (1.5, 8.0, "8", None):
        with pytest.raises(TypeError):
            Blob(chunk_size=wrong)  # type: ignore[arg-type]  # see above
    assert blob.read_bytes() == b"content"


def test_a_file_becomes_a_blob(tmp_path: Path) -> None:
    content = os.urandom(CHUNK_SIZE + 1)
    (tmp_path / "file").write_bytes(content)
    assert Blob.from_file(tmp_path / "file").read_bytes() == content
    assert type(Blob.from_file(str(tmp_path / "file"))) is Blob


def test_the_standard_library_takes_it_for_a_file(connection: Connection, tmp_path: Path) -> None:
    blob = stored(connection, b"")
    with blob.open("w") as target, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("a.txt", "a" * 1000)
    with blob.open("r+") as changed, zipfile.ZipFile(changed, "a") as written:
        written.writestr("b.txt", "b")
    connection.commit()
    with blob.open() as file, zipfile.ZipFile(file) as read:
        assert read.testzip() is None
        assert read.read("b.txt") == b"b"
    (tmp_path / "file").write_bytes(b"content")
    with blob.open("w") as target, tarfile.open(fileobj=target, mode="w:gz") as archive:
        archive.add(tmp_path / "file", "file")
    with blob.open() as file, tarfile.open(fileobj=file) as unpacked:
        assert unpacked.getnames() == ["file"]
    with blob.open("w") as target, gzip.GzipFile(mode="w", fileobj=target) as packer:
        packer.write(b"compressed")
    assert gzip.decompress(blob.read_bytes()) == b"compressed"
    with blob.open("w") as target, io.TextIOWrapper(target, "utf-8") as text:
        json.dump(["ä"], text)
    with blob.open() as file, io.TextIOWrapper(file, "utf-8") as text:
        assert json.load(text) == ["ä"]
    with blob.open() as source, open(tmp_path / "copy", "wb") as copied:
        shutil.copyfileobj(source, copied)
    assert (tmp_path / "copy").read_bytes() == blob.read_bytes()


def test_a_hole_is_one_chunk_of_zeros(connection: Connection) -> None:
    blob = stored(connection, b"")
    with blob.open("w") as file:
        file.seek(1000 * CHUNK_SIZE)
        file.write(b"end")
    connection.commit()
    assert blob.size == 1000 * CHUNK_SIZE + 3
    assert len(read_chunks(connection)) == 2
    with blob.open("r+") as file:
        file.seek(5 * CHUNK_SIZE + 1)
        file.write(b"x")
        file.seek(4 * CHUNK_SIZE)
        assert file.read(2 * CHUNK_SIZE) == bytes(CHUNK_SIZE + 1) + b"x" + bytes(CHUNK_SIZE - 2)


@pytest.mark.parametrize("size", [10**15, 2**62])
def test_a_blob_has_a_largest_size_and_stays_as_it_was_when_that_is_passed(
    connection: Connection, size: int
) -> None:
    blob = stored(connection, b"content", 8)

    def write(file: Any) -> None:
        file.seek(size)
        file.write(b"x")

    message = r"<Blob \d+> would have .* chunks of 8, 134,217,728 are the most"
    for change in (write, lambda file: file.truncate(size)):
        with pytest.raises(OSError, match=message) as caught, blob.open("r+") as file:
            change(file)
        assert caught.value.errno == errno.EFBIG
        assert blob.read_bytes() == b"content"


def test_a_blob_may_have_its_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durus.blob._CHUNKS_MAX", 5)
    blob = Blob(chunk_size=8)
    with blob.open("a") as file:
        file.truncate(39)
        file.write(b"x")
        file.flush()
        with pytest.raises(OSError, match="40 are the most"):
            file.raw.write(b"y")
        file.truncate(40)
    assert blob.read_bytes() == bytes(39) + b"x"


# What a transaction sees.


def test_what_was_written_is_there_at_once_and_for_others_after_a_commit(
    connection: Connection,
) -> None:
    blob = stored(connection, b"old")
    other = Connection(connection.storage)
    blob.write_bytes(b"new")
    assert blob.read_bytes() == b"new"
    other.abort()
    assert other.root["blob"].read_bytes() == b"old"
    connection.commit()
    assert other.root["blob"].read_bytes() == b"old"
    other.abort()
    assert other.root["blob"].read_bytes() == b"new"


def test_abort_throws_away_what_was_written(connection: Connection) -> None:
    blob = stored(connection, b"old content", 8)
    blob.write_bytes(b"new")
    connection.abort()
    assert blob.read_bytes() == b"old content"
    with blob.open("a") as file:
        file.write(b", and more")
    assert blob.read_bytes() == b"old content, and more"
    connection.abort()
    assert blob.read_bytes() == b"old content"


def test_a_change_of_a_part_stores_the_chunks_of_that_part(
    connection: Connection, storage: WatchedStorage
) -> None:
    blob = stored(connection, bytes(range(80)), 8)
    with blob.open("r+") as file:
        file.seek(23)
        file.write(b"xy")  # the last byte of one chunk, and the first of the next
    connection.commit()
    assert len(storage.committed[-1].created) == 2
    assert oid_of(blob) in storage.committed[-1].writes
    assert len(storage.committed[-1].writes) == 3
    assert blob.read_bytes() == bytes(range(23)) + b"xy" + bytes(range(25, 80))


def test_while_it_is_open_for_writing_it_can_be_used_in_no_other_way(
    connection: Connection,
) -> None:
    blob = stored(connection, b"old")
    with blob.open("w") as file:
        file.write(b"new")
        uses: list[Callable[[], object]] = [
            blob.open,
            lambda: blob.open("w"),
            lambda: blob.open("a"),
            blob.read_bytes,
            lambda: blob.size,
            lambda: copy.copy(blob),
        ]
        for use in uses:
            with pytest.raises(ObjectError, match=r"<Blob \d+> is open for writing: close that"):
                use()
        with pytest.raises(UnstorableError, match=r"<Blob \d+> is open for writing: close that"):
            connection.commit()
        file.write(b", and more")
    assert blob.read_bytes() == b"new, and more"
    connection.commit()
    assert Connection(connection.storage).root["blob"].read_bytes() == b"new, and more"


def test_a_new_blob_that_is_open_is_not_stored_either(connection: Connection) -> None:
    blob = connection.root["blob"] = Blob()
    with blob.open("w") as file:
        file.write(b"content")
        with pytest.raises(UnstorableError, match=r"<Blob .*> is open for writing"):
            connection.commit()
    connection.commit()
    assert blob.read_bytes() == b"content"


def test_a_file_that_nobody_has_any_more_is_closed(connection: Connection) -> None:
    blob = stored(connection, b"old")
    blob.open("w").write(b"new")
    assert blob.read_bytes() == b"new"


def test_a_reader_goes_on_reading_what_was_there_when_it_was_opened(
    connection: Connection,
) -> None:
    content = os.urandom(100_000)
    blob = stored(connection, content, 1000)
    with blob.open() as reader:
        start = reader.read(10)
        blob.write_bytes(b"new")
        assert start + reader.read() == content
        assert blob.read_bytes() == b"new"


@pytest.mark.parametrize("end", ["commit", "abort", "close"])
def test_a_reader_ends_with_its_transaction(connection: Connection, end: str) -> None:
    blob = stored(connection, bytes(20_000), 1000)
    reader = blob.open()
    reader.read(10)
    connection.root["other"] = 1
    getattr(connection, end)()
    with pytest.raises(ObjectError, match=r"<Blob \d+> was opened in a transaction that is over"):
        reader.read()
    reader.close()
    if end == "close":
        with pytest.raises(StorageClosedError):
            blob.open()


def test_a_failed_commit_is_not_the_end_of_a_transaction(connection: Connection) -> None:
    blob = stored(connection, bytes(20_000), 1000)
    with blob.open() as reader:
        connection.root["bad"] = lambda: None
        with pytest.raises(UnstorableError):
            connection.commit()
        assert reader.read() == bytes(20_000)


@pytest.mark.parametrize("mode", ["w", "a", "r+"])
def test_a_writer_ends_with_its_transaction(connection: Connection, mode: Any) -> None:
    blob = stored(connection, b"old")
    writer: Any = blob.open(mode)
    writer.write(b"x")
    connection.abort()
    with pytest.raises(ObjectError, match=r"<Blob \d+> was opened in a transaction that is over"):
        writer.close()
    assert writer.closed
    assert blob.read_bytes() == b"old"
    idle: Any = blob.open(mode)
    connection.abort()
    with blob.open("w") as file:
        with pytest.raises(ObjectError, match="in a transaction that is over"):
            idle.close()
        file.write(b"of another writer")
    assert blob.read_bytes() == b"of another writer"


def test_a_blob_that_was_never_stored_is_no_part_of_a_transaction(connection: Connection) -> None:
    blob = Blob(b"old")
    with blob.open() as reader, Blob().open("w") as writer:
        connection.abort()
        assert reader.read() == b"old"
        writer.write(b"content")
    connection.root["blob"] = blob
    reader = blob.open()
    connection.commit()
    with pytest.raises(ObjectError, match="in a transaction that is over"):
        reader.read()
    assert blob.read_bytes() == b"old"


def test_two_connections_that_write_one_blob_conflict(connection: Connection) -> None:
    blob = stored(connection, b"old")
    other = Connection(connection.storage)
    other.root["blob"].write_bytes(b"of the other")
    blob.write_bytes(b"ours")
    other.commit()
    with pytest.raises(WriteConflictError) as caught:
        connection.commit()
    assert caught.value.oids == [oid_of(blob)]
    connection.abort()
    assert blob.read_bytes() == b"of the other"


def test_whoever_read_a_blob_that_was_written_conflicts(connection: Connection) -> None:
    blob = stored(connection, b"old")
    other = Connection(connection.storage)
    connection.root["size"] = blob.size
    other.root["blob"].write_bytes(b"new content")
    other.commit()
    with pytest.raises(WriteConflictError):
        connection.commit()


def test_the_past_has_the_old_content(connection: Connection) -> None:
    blob = stored(connection, os.urandom(100), 8)
    old, tid = blob.read_bytes(), connection.tid
    with blob.open("r+") as file:
        file.write(b"new")
    connection.commit()
    past = Connection(connection.storage, at=tid)
    assert past.root["blob"].read_bytes() == old
    assert [revision.obj.read_bytes() for revision in revisions(blob)] == [b"new" + old[3:], old]
    for mode in ("w", "a", "r+"):
        with pytest.raises(ReadOnlyError, match=r"<Blob \d+> cannot be changed"):
            past.root["blob"].open(mode)
    assert past.root["blob"].read_bytes() == old


# Objects like others.


def test_two_objects_may_have_one_blob(connection: Connection) -> None:
    blob = stored(connection, b"content")
    connection.root["other"] = blob
    connection.commit()
    other = Connection(connection.storage)
    assert other.root["blob"] is other.root["other"]
    other.root["blob"].write_bytes(b"new")
    assert other.root["other"].read_bytes() == b"new"


@pytest.mark.parametrize("copy_it", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("committed", [False, True])
def test_a_copy_shares_its_chunks_until_they_are_changed(
    connection: Connection, copy_it: Callable[[Blob], Blob], committed: bool
) -> None:
    blob = connection.root["blob"] = Blob(bytes(range(80)), chunk_size=8)
    if committed:
        connection.commit()
    load_count = connection.get_load_count()
    copied = connection.root["copy"] = copy_it(blob)
    assert connection.get_load_count() == load_count
    with copied.open("r+") as file:
        file.write(b"x")
    connection.commit()
    assert blob.read_bytes() == bytes(range(80))
    assert copied.read_bytes() == b"x" + bytes(range(1, 80))
    assert len(read_chunks(connection)) == 11


def test_a_blob_can_be_pickled_with_its_content(connection: Connection) -> None:
    blob = stored(connection, os.urandom(100), 8)
    copied = pickle.loads(pickle.dumps(blob))
    assert copied.read_bytes() == blob.read_bytes()
    other = Connection(MemoryStorage())
    other.root["blob"] = copied
    other.commit()
    assert copied.read_bytes() == blob.read_bytes()


def test_chunks_of_another_connection_are_refused(connection: Connection) -> None:
    blob = stored(connection, b"content")
    other = Connection(connection.storage)
    other.root["copy"] = copy.copy(blob)
    with pytest.raises(ForeignReferenceError, match=r"durus\.copying\.copy_subgraph"):
        other.commit()
    other.root["copy"] = copy_subgraph(blob)
    other.commit()
    assert other.root["copy"].read_bytes() == b"content"
    assert len(read_chunks(other)) == 2


def test_a_subclass_may_have_attributes(connection: Connection) -> None:
    photo = connection.root["photo"] = Photo("a caption")
    photo.write_bytes(b"content")
    connection.commit()
    photo = Connection(connection.storage).root["photo"]
    assert (photo.caption, photo.read_bytes()) == ("a caption", b"content")


def test_no_content_stays_in_the_cache(connection: Connection, storage: WatchedStorage) -> None:
    def count_loaded(connection: Connection) -> int:
        chunks = [obj for obj in connection.cache if isinstance(obj, BlobChunk)]
        assert len(chunks) == 20
        return sum(not is_ghost(chunk) for chunk in chunks)

    blob = stored(connection, bytes(LARGE), LARGE // 20)
    assert count_loaded(connection) == 0
    assert blob.read_bytes() == bytes(LARGE)
    assert count_loaded(connection) == 0
    other = Connection(storage)
    for obj in other.get_crawler():
        assert obj._p_connection is other
    assert count_loaded(other) == 0


def test_a_blob_of_a_server_is_loaded_though_nothing_may_be_imported(
    connection: Connection,
) -> None:
    stored(connection, b"content")
    strict = Connection(connection.storage, import_classes=False)
    assert strict.root["blob"].read_bytes() == b"content"


def test_tools_that_touch_everything_touch_blobs(connection: Connection) -> None:
    blob = stored(connection, b"OldName and more", 8)
    touch_every_reference(connection, b"OldName")
    connection.commit()
    assert blob.read_bytes() == b"OldName and more"
    assert Connection(connection.storage).root["blob"].read_bytes() == b"OldName and more"
    assert list(gen_every_instance(connection, Blob)) == [blob]


def test_states_that_are_none_are_refused(connection: Connection, storage: WatchedStorage) -> None:
    blob = stored(connection, b"12345678abc", 8)
    chunk = next(
        oid
        for oid in storage._revisions
        if storage._revisions[oid][0].record.class_pickle == pickle_class(BlobChunk)
    )
    for state, message in [(b"1234", "has 4 bytes, and not 8"), ("text", "is no bytes")]:
        tid, record = storage._revisions[chunk][0]
        changed = record._replace(state_pickle=pickle.dumps(state))
        storage._revisions[chunk] = [type(storage._revisions[chunk][0])(tid, changed)]
        with pytest.raises(ObjectError, match=rf"<BlobChunk \d+>.* {message}"):
            blob.read_bytes()


def test_chunks_that_a_pack_has_removed_are_a_conflict(
    connection: Connection, storage: WatchedStorage
) -> None:
    blob = stored(connection, b"content")
    other = Connection(storage)
    del other.root["blob"]
    other.commit()
    old = blob.open()
    storage.pack()
    connection.abort()
    with pytest.raises(ReadConflictError):
        blob.read_bytes()
    old.close()


# Storing ahead.


def test_a_small_blob_goes_along_with_the_commit(
    connection: Connection, storage: WatchedStorage
) -> None:
    stored(connection, bytes(1 << 20))
    assert len(storage.committed) == 2  # the other one has made the root


def test_a_large_blob_is_stored_ahead_in_small_transactions(
    connection: Connection, storage: WatchedStorage
) -> None:
    connection.user, connection.note = "ann", "a film"
    stored(connection, bytes(LARGE))
    *parts, last = storage.committed[1:]
    assert [is_part(part) for part in parts] == [True, True]
    assert (last.user, last.note) == ("ann", "a film")
    assert [part.user for part in parts] == ["ann", "ann"]
    for transaction in (*parts, last):
        bytes_count = sum(len(record.state_pickle) for record in transaction.writes.values())
        assert bytes_count <= (2 << 20) + CHUNK_SIZE


def test_many_blobs_are_stored_in_few_transactions(
    connection: Connection, storage: WatchedStorage
) -> None:
    for number in range(100):
        connection.root[str(number)] = Blob(bytes(30_000))
    connection.commit()
    assert len(storage.committed) == 3
    assert all(len(connection.root[str(number)].read_bytes()) == 30_000 for number in range(100))


def test_others_commit_between_the_parts(connection: Connection, storage: WatchedStorage) -> None:
    other = Connection(storage)
    other.root["count"] = Counter()
    other.commit()
    connection.abort()

    def count(transaction: Transaction) -> None:
        other.abort()
        other.root["count"].value += 1
        other.commit()

    storage.before = count
    blob = stored(connection, bytes(LARGE))
    assert other.root["count"].value == 3
    assert blob.read_bytes() == bytes(LARGE)
    assert [is_part(transaction) for transaction in storage.committed[2:]] == [
        False,
        True,
        False,
        True,
        False,
        False,
    ]


class Counter(Persistent):
    value = 0


def test_what_a_transaction_has_stored_itself_does_not_conflict_with_what_it_has_read(
    connection: Connection,
) -> None:
    assert len(list(gen_every_instance(connection, Blob))) == 0  # which accesses everything
    blob = stored(connection, bytes(LARGE))
    assert list(gen_every_instance(connection, Blob)) == [blob]
    blob.write_bytes(bytes(LARGE))
    connection.root["bad"] = lambda: None
    with pytest.raises(UnstorableError):
        connection.commit()
    del connection.root["bad"]
    connection.commit()


def test_what_cannot_be_stored_is_found_before_anything_is_stored_ahead(
    connection: Connection, storage: WatchedStorage
) -> None:
    connection.root["a"] = Blob(bytes(LARGE))
    connection.root["b"] = lambda: None
    with pytest.raises(UnstorableError):
        connection.commit()
    assert len(storage.committed) == 1


def test_a_commit_that_conflicts_anyway_stores_nothing_ahead(
    connection: Connection, storage: WatchedStorage
) -> None:
    blob = stored(connection, b"old")
    other = Connection(storage)
    blob.write_bytes(bytes(LARGE))
    other.root["blob"].write_bytes(b"of the other")
    other.commit()
    count = storage.count_objects()
    with pytest.raises(WriteConflictError) as caught:
        connection.commit()
    assert caught.value.oids == [oid_of(blob)]
    assert storage.count_objects() == count


def fail(when: Callable[[Transaction], bool], error: Exception) -> Callable[[Transaction], None]:
    def before(transaction: Transaction) -> None:
        if when(transaction):
            raise error

    return before


def is_whole(transaction: Transaction) -> bool:
    return not is_part(transaction)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        StorageError("it failed"),
        CommitOutcomeUnknownError(1, "it failed"),
        WriteConflictError([ROOT_OID]),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("when", [is_part, is_whole])
def test_a_commit_that_fails_keeps_what_was_written(
    connection: Connection,
    storage: WatchedStorage,
    error: Exception,
    when: Callable[[Transaction], bool],
) -> None:
    blob = stored(connection, b"old")
    content = os.urandom(LARGE)
    blob.write_bytes(content)
    new = connection.root["new"] = Blob(content)
    storage.before = fail(when, error)
    with pytest.raises(
        type(error) if when is is_whole else (OSError, StorageError, WriteConflictError)
    ):
        connection.commit()
    assert blob.read_bytes() == new.read_bytes() == content
    assert oid_of(new) is None
    storage.before = None
    connection.commit()
    assert blob.read_bytes() == new.read_bytes() == content
    other = Connection(storage)
    assert other.root["blob"].read_bytes() == other.root["new"].read_bytes() == content


def test_a_part_of_which_nobody_knows_whether_it_was_stored_is_not_taken_for_the_transaction(
    connection: Connection, storage: WatchedStorage
) -> None:
    connection.root["blob"] = Blob(bytes(LARGE))
    storage.before = fail(is_part, CommitOutcomeUnknownError(7, "the line was cut"))
    with pytest.raises(StorageError, match=r"nothing was committed, .* the line was cut") as caught:
        connection.commit()
    assert not isinstance(caught.value, CommitOutcomeUnknownError)


def test_what_was_stored_ahead_of_a_failed_commit_a_pack_removes(
    connection: Connection, storage: WatchedStorage
) -> None:
    blob = stored(connection, b"old")
    connection.pack()
    before = storage.count_objects()
    blob.write_bytes(bytes(LARGE))
    storage.before = fail(is_whole, StorageError("it failed"))
    with pytest.raises(StorageError):
        connection.commit()
    storage.before = None
    connection.abort()
    assert storage.count_objects() == before + 16
    connection.pack()
    assert storage.count_objects() == before
    assert blob.read_bytes() == b"old"


def test_oids_of_what_was_stored_ahead_are_not_used_again(
    connection: Connection, storage: WatchedStorage
) -> None:
    connection.root["blob"] = Blob(os.urandom(LARGE))
    storage.before = fail(is_whole, StorageError("it failed"))
    with pytest.raises(StorageError):
        connection.commit()
    storage.before = None
    used = {oid for transaction in storage.committed for oid in transaction.created}
    connection.abort()
    for number in range(100):
        connection.root[str(number)] = Counter()
    connection.commit()
    assert not used & storage.committed[-1].created


def test_what_a_pack_removed_before_the_commit_is_stored_once_more(
    connection: Connection, storage: WatchedStorage
) -> None:
    content = os.urandom(LARGE)
    packed: list[Transaction] = []

    def pack_once(transaction: Transaction) -> None:
        if is_whole(transaction) and not packed:
            packed.append(transaction)
            storage.pack()

    storage.before = pack_once
    blob = stored(connection, content)
    assert len(packed) == 1
    assert blob.read_bytes() == content
    storage.pack()
    assert Connection(storage).root["blob"].read_bytes() == content


@pytest.mark.parametrize("packs", [3, 100])
def test_packs_that_come_again_and_again_are_a_conflict_in_the_end(
    connection: Connection, storage: WatchedStorage, packs: int
) -> None:
    blob = connection.root["blob"] = Blob(bytes(LARGE))
    packed: list[Transaction] = []

    def pack(transaction: Transaction) -> None:
        if is_whole(transaction) and len(packed) < packs:
            packed.append(transaction)
            storage.pack()

    storage.before = pack
    if packs < 10:
        connection.commit()
        assert len(packed) == packs
    else:
        with pytest.raises(WriteConflictError) as caught:
            connection.commit()
        assert len(packed) == 10
        ahead = storage.committed[-2].created | storage.committed[-1].created
        assert set(caught.value.oids or ()) == ahead
        storage.before = None
        connection.commit()
    assert Connection(storage).root["blob"].read_bytes() == blob.read_bytes() == bytes(LARGE)


def test_what_a_pack_removed_after_a_savepoint_is_a_conflict(
    connection: Connection, storage: WatchedStorage
) -> None:
    connection.root["first"] = Blob(bytes(LARGE))
    connection.savepoint()
    connection.root["second"] = Blob(bytes(LARGE))
    storage.pack()
    with pytest.raises(WriteConflictError):
        connection.commit()
    connection.abort()
    stored(connection, b"content")


def test_what_else_a_pack_has_removed_is_told(
    connection: Connection, storage: WatchedStorage
) -> None:
    connection.root["small"] = small = Counter()
    connection.commit()
    del connection.root["small"]
    connection.commit()
    storage.pack()
    connection.root["blob"] = Blob(bytes(LARGE))
    connection.root["again"] = small
    count = len(storage.committed)
    with pytest.raises(DanglingReferenceError) as caught:
        connection.commit()
    assert caught.value.oids == [oid_of(small)]
    assert len(storage.committed) == count + 2  # so it was not tried again


def test_a_part_that_conflicts_for_no_reason_is_stored_again(
    connection: Connection, storage: WatchedStorage
) -> None:
    refused: set[frozenset[Oid]] = set()

    def refuse_once(transaction: Transaction) -> None:
        if is_part(transaction) and transaction.created not in refused:
            refused.add(transaction.created)
            raise WriteConflictError()

    storage.before = refuse_once
    blob = stored(connection, bytes(LARGE))
    assert len(refused) == 2
    assert blob.read_bytes() == bytes(LARGE)


# The spool.


def test_a_spool_keeps_some_in_memory_and_the_others_in_a_file() -> None:
    spool = Spool(memory_bytes_max=10)
    kept = [spool.put(bytes([number]) * 4) for number in range(5)]
    assert [content.read() for content in kept] == [bytes([number]) * 4 for number in range(5)]
    assert spool._file is not None
    assert os.fstat(spool._file.fileno()).st_size == 2 * PLACE_SIZE + 4
    assert os.fstat(spool._file.fileno()).st_nlink == 0


def test_a_spool_uses_places_again_and_gives_back_the_disk() -> None:
    spool = Spool(memory_bytes_max=0)
    kept = [spool.put(bytes([number])) for number in range(4)]
    del kept[1]
    kept.append(spool.put(b"new"))
    assert [content.read() for content in kept] == [b"\0", b"\2", b"\3", b"new"]
    file = spool._file
    assert file is not None
    assert os.fstat(file.fileno()).st_size == 3 * PLACE_SIZE + 1
    kept.clear()
    assert file.closed
    assert spool.put(b"again").read() == b"again"


def test_a_spool_has_its_memory_back() -> None:
    spool = Spool(memory_bytes_max=4)
    for _ in range(3):
        content = spool.put(b"four")
        assert content.read() == b"four"
        assert spool._file is None
        del content


def test_small_changes_all_over_a_blob_do_not_fill_the_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spool = Spool(memory_bytes_max=0)
    monkeypatch.setattr("durus.blob.spool", spool.put)
    blob = Blob(bytes(4 * CHUNK_SIZE))
    with blob.open("r+") as file:
        for number in range(40):
            file.seek(number % 4 * CHUNK_SIZE + number)
            file.write(b"x")
    assert spool._place_count <= 9


class FullFile:
    """A file on a disk that is full."""

    room = 0

    def seek(self, position: int) -> None:
        self.position = position

    def write(self, content: memoryview) -> int:
        if not FullFile.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = min(len(content), FullFile.room)
        FullFile.room -= count
        return count

    def close(self) -> None:
        pass


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files are on a full disk, and nothing stays in memory."""
    monkeypatch.setattr("durus.blob.spool", Spool(memory_bytes_max=0).put)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda buffering: FullFile())
    monkeypatch.setattr(FullFile, "room", 0)


@pytest.mark.parametrize("size", [10, CHUNK_SIZE, 3 * CHUNK_SIZE + 1])
def test_a_full_disk_is_told_and_the_blob_stays_as_it_was(
    connection: Connection, size: int, request: pytest.FixtureRequest
) -> None:
    blob = stored(connection, b"old content")
    request.getfixturevalue("full_disk")
    FullFile.room = size // 2
    with pytest.raises(OSError, match=r"No space left on device: .* TMPDIR"):
        blob.write_bytes(bytes(size))
    assert blob.read_bytes() == b"old content"
    connection.commit()
    assert blob.read_bytes() == b"old content"


def test_a_write_that_failed_is_told_again_if_nothing_comes_after_it(
    connection: Connection, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = stored(connection, b"old")
    request.getfixturevalue("full_disk")
    file = blob.open("w")
    with pytest.raises(OSError, match="No space left"):
        file.write(bytes(3 * CHUNK_SIZE))
    monkeypatch.setattr("durus.blob.spool", Spool().put)
    with pytest.raises(OSError, match="No space left"):
        file.close()
    assert blob.read_bytes() == b"old"


def test_who_makes_room_may_go_on_writing(
    connection: Connection, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = stored(connection, b"old")
    content = os.urandom(3 * CHUNK_SIZE + 5)
    request.getfixturevalue("full_disk")
    with blob.open("w") as file:
        with pytest.raises(OSError, match="No space left"):
            file.write(content)
        monkeypatch.setattr("durus.blob.spool", Spool().put)
        file.seek(0)
        file.write(content)
    assert blob.read_bytes() == content
