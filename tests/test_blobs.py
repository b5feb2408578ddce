"""Blobs in every kind of storage, and in several processes; and how much memory they take."""

import os
import resource
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from durus import serialize
from durus.blob import CHUNK_SIZE, Blob, BlobChunk
from durus.classic import as_storage
from durus.client_storage import ClientStorage
from durus.connection import Connection
from durus.convert import convert
from durus.error import ConflictError, ReadOnlyError, StorageError
from durus.file_storage import FileStorage
from durus.interfaces import ROOT_OID, CommitResult, PackableStorage, Transaction
from durus.log_verify import verify_file
from durus.persistent_dict import PersistentDict
from durus.socket_address import SocketAddress
from durus.storage import open_storage
from durus.storage_server import StorageServer
from scripts.environments import Environment
from tests.processes import fork, hear, run_alone, running, say, wait_for_child
from tests.seeds import Seeds
from tests.storages import KINDS, Kind

MEBIBYTE = 1 << 20
LARGE = 5 * MEBIBYTE
"""So many bytes are stored ahead of the commit, in several transactions."""

kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "blobs.durus"


@kinds
def test_every_storage_has_blobs(kind: Kind, path: Path) -> None:
    content = bytearray(os.urandom(LARGE))
    storage = kind.open(path)
    connection = Connection(storage)
    blob = connection.root["blob"] = Blob(content)
    connection.root["small"] = Blob(b"small")
    assert blob.read_bytes() == content
    connection.commit()
    for _ in range(2):
        assert connection.root["blob"].read_bytes() == content
        assert connection.root["small"].read_bytes() == b"small"
        storage = kind.reopen(storage, path)
        connection = Connection(storage)
    with connection.root["blob"].open("r+") as file:
        file.seek(3 * CHUNK_SIZE - 2)
        file.write(b"changed")
    connection.abort()
    assert connection.root["blob"].read_bytes() == content
    with connection.root["blob"].open("r+") as file:
        file.seek(3 * CHUNK_SIZE - 2)
        file.write(b"changed")
    content[3 * CHUNK_SIZE - 2 : 3 * CHUNK_SIZE + 5] = b"changed"
    assert connection.root["blob"].read_bytes() == content
    connection.commit()
    with Connection(storage) as other:
        assert other.root["blob"].read_bytes() == content
    storage.close()
    kind.check(path)


@kinds
def test_a_pack_keeps_what_blobs_have_and_nothing_of_an_aborted_one(kind: Kind, path: Path) -> None:
    storage = kind.open(path)
    if not isinstance(storage, PackableStorage):
        pytest.skip("it cannot be packed")
    connection = Connection(storage)
    content = os.urandom(LARGE)
    connection.root["blob"] = Blob(content)
    connection.commit()
    connection.root["aborted"] = Blob(os.urandom(LARGE))
    connection.note = "\udcff"  # which is found when the parts of the blob are stored
    with pytest.raises(ValueError, match="cannot be stored as a user or note"):
        connection.commit()
    connection.abort()
    connection.pack()
    assert connection.root["blob"].read_bytes() == content
    assert len([obj for obj in connection.get_crawler() if isinstance(obj, BlobChunk)]) == 20
    storage.close()
    if path.exists():
        assert path.stat().st_size < 1.5 * LARGE
    kind.check(path)


def test_conversion_keeps_blobs(tmp_path: Path) -> None:
    content = os.urandom(LARGE)
    paths = [tmp_path / name for name in ("log", "shelf", "dfs20", "sqlite", "again")]
    with Connection(paths[0]) as connection:
        connection.root["blob"] = Blob(content)
        connection.commit()
    for (source, target), to in zip(
        pairwise(paths), ["shelf", "dfs20", "sqlite", "log"], strict=True
    ):
        convert(str(source), str(target), to=to)
        with Connection(target) as connection:
            assert connection.root["blob"].read_bytes() == content
            connection.root["blob"].write_bytes(content[:-1])
            connection.commit()
            content = content[:-1]


@pytest.mark.parametrize(
    ("kind", "module", "name"),
    [("shelf", "file_storage", "FileStorage"), ("dfs20", "file_storage2", "FileStorage2")],
)
def test_4_3_keeps_blobs_when_it_packs(
    path: Path, kind: str, module: str, name: str, durus43_python: Path
) -> None:
    content = os.urandom(LARGE)
    with closing(FileStorage(path, format=kind)) as storage, Connection(storage) as connection:
        connection.root["blob"] = Blob(content)
        connection.root["forgotten"] = Blob(content)
        connection.commit()
        del connection.root["forgotten"]
        connection.commit()
    program = f"import sys, durus.{module} as files; files.{name}(sys.argv[1]).pack()"
    Environment(durus43_python).run("-c", program, path, folder=path.parent)
    assert path.stat().st_size < 1.5 * LARGE
    with Connection(path) as connection:
        assert connection.root["blob"].read_bytes() == content


def test_a_blob_in_a_file_that_is_open_read_only_can_be_read_only(path: Path) -> None:
    with Connection(path) as connection:
        connection.root["blob"] = Blob(b"content")
        connection.commit()
    with closing(FileStorage(path, readonly=True)) as storage, Connection(storage) as connection:
        blob = connection.root["blob"]
        blob.write_bytes(os.urandom(LARGE))
        with pytest.raises(ReadOnlyError):
            connection.commit()
        connection.abort()
        assert blob.read_bytes() == b"content"


# Memory.


def make_part(number: int) -> bytes:
    """A mebibyte unlike all others."""
    return number.to_bytes(64) * (MEBIBYTE // 64)


def write_and_read(address: str, size: str, limit: str) -> None:
    """A program that may have so many MiB of private memory, and stores a blob of so many."""
    serialize.WRITE_COMPRESSED_STATE_PICKLES = False  # so that they are large in files of 4.x, too
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit) * MEBIBYTE,) * 2)
    storage: Any = open_storage(address)
    connection = Connection(storage)
    blob = connection.root["blob"] = Blob()
    with blob.open("w") as file:
        for number in range(int(size)):
            file.write(make_part(number))
    connection.commit()
    for obj in connection.get_crawler(batch_size=10):
        assert obj._p_connection is connection
    with blob.open() as reader:
        for number in range(int(size)):
            assert reader.read(MEBIBYTE) == make_part(number)
        assert reader.read() == b""
    with blob.open("r+") as changed:
        changed.seek(MEBIBYTE)
        changed.write(b"changed")
    connection.commit()
    say(blob.size // MEBIBYTE)
    connection.close()
    storage.close()


@contextmanager
def serving(storage: Any, max_commit_bytes: int = 3_000_000) -> Iterator[SocketAddress]:
    """The address of a server, which takes no large transactions."""
    server = StorageServer(storage, port=0, max_commit_bytes=max_commit_bytes)
    thread = threading.Thread(target=server.serve)
    address = server.listen()
    thread.start()
    try:
        yield address
    finally:
        server.stop()
        thread.join()


@pytest.fixture
def address(request: pytest.FixtureRequest, path: Path) -> Iterator[str]:
    """Of a storage of the kind that the parameter names."""
    if request.param != "server":
        FileStorage(path, format=request.param).close()
        yield str(path)
        return
    with serving(FileStorage(path)) as address:
        yield f"durus://{address}"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits it")
@pytest.mark.parametrize("address", ["log", "shelf", "dfs20", "sqlite", "server"], indirect=True)
def test_a_blob_is_larger_than_the_memory(address: str, seeds: Seeds) -> None:
    size, limit = (256, 80) if seeds.is_long else (64, 60)
    assert run_alone(write_and_read, address, size, limit) == [str(size)]


# Several processes.


class PausingStorage(FileStorage):
    """Says when it has stored a part of a blob, and waits to be told to go on."""

    def commit(self, transaction: Transaction) -> CommitResult:
        result = super().commit(transaction)
        if transaction.note == "part of a blob":
            say("part")
            hear()
        return result


def replace_content(path: str, folder: str) -> None:
    """A program that replaces the content of the blob, and pauses after each part."""
    tempfile.tempdir = folder
    with closing(PausingStorage(path)) as storage, Connection(storage) as connection:
        connection.root["blob"].write_bytes(bytes(LARGE))
        say("ready")
        connection.commit()
        say("done")


@pytest.fixture
def connection(path: Path) -> Iterator[Connection]:
    """To a log whose root has a blob."""
    with Connection(path) as connection:
        connection.root["blob"] = Blob(b"old")
        connection.root["other"] = PersistentDict()
        connection.commit()
        yield connection
    assert list(verify_file(str(path))) == []


def test_others_read_and_commit_while_a_blob_is_stored(
    connection: Connection, path: Path, tmp_path: Path
) -> None:
    with running(replace_content, path, tmp_path) as (process,):
        for number in range(2):
            assert process.read_line() == "part"
            connection.root["other"]["number"] = number
            connection.commit()
            assert connection.root["blob"].read_bytes() == b"old"
            process.tell()
        assert process.finish() == ["done"]
    connection.abort()
    assert connection.root["blob"].read_bytes() == bytes(LARGE)


def test_a_pack_by_another_process_takes_nothing_from_a_blob_that_is_being_stored(
    connection: Connection, path: Path, tmp_path: Path
) -> None:
    with running(replace_content, path, tmp_path) as (process,):
        for is_packed in (False, True, False, False):
            assert process.read_line() == "part"
            if is_packed:
                connection.pack()
            process.tell()
        assert process.finish() == ["done"]
    connection.pack()
    assert connection.root["blob"].read_bytes() == bytes(LARGE)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_process_that_is_killed_while_it_stores_a_blob_leaves_nothing(
    connection: Connection, path: Path, tmp_path: Path, parts: int
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    with running(replace_content, path, folder) as (process,):
        for _ in range(parts - 1):
            process.read_line()
            process.tell()
        assert process.read_line() == "part"
        process.kill()
    assert list(folder.iterdir()) == []
    connection.abort()
    assert connection.root["blob"].read_bytes() == b"old"
    assert path.stat().st_size > 2 * parts * MEBIBYTE
    connection.pack()
    assert path.stat().st_size < 10_000
    assert connection.root["blob"].read_bytes() == b"old"


def test_wherever_a_log_ends_the_blob_is_the_old_one_or_the_new_one(
    connection: Connection, path: Path, tmp_path: Path, seeds: Seeds
) -> None:
    """As a copy that is made meanwhile has it, and what a crash leaves."""
    old = bytes(LARGE)
    blob = connection.root["blob"]
    blob.write_bytes(old)
    connection.commit()
    start = path.stat().st_size
    with blob.open("r+") as file:
        file.seek(CHUNK_SIZE)
        file.write(bytes(range(256)) * (LARGE // 256 - CHUNK_SIZE // 128))
    new = blob.read_bytes()
    assert len(new) == LARGE
    connection.commit()
    log = path.read_bytes()
    random = Random(next(seeds.take(1, 1)))
    ends = [random.randrange(start, len(log)) for _ in range(200 if seeds.is_long else 15)]
    ends += [len(log) - distance for distance in (0, 1, 100, 10_000)]
    found = set()
    for number, end in enumerate(sorted(ends)):
        copy = tmp_path / f"copy-{number}"
        copy.write_bytes(log[:end])
        with Connection(copy) as copied:
            content = copied.root["blob"].read_bytes()
            assert content in (old, new)
            found.add(content)
            copied.root["blob"].write_bytes(b"it can be changed")
            copied.commit()
            copied.pack()
            assert copied.root["blob"].read_bytes() == b"it can be changed"
        assert list(verify_file(str(copy))) == []
        copy.unlink()
    assert found == {old, new}


def append_lines(path: str, name: str) -> None:
    """A program that appends lines to the blob, each in a transaction."""
    with Connection(path) as connection:
        say("ready")
        for number in range(20):
            while True:
                try:
                    with connection.root["blob"].open("a") as file:
                        file.write(f"{name} {number}\n".encode())
                    connection.commit()
                    break
                except ConflictError:
                    connection.abort()


def test_processes_that_append_to_one_blob_lose_nothing(connection: Connection, path: Path) -> None:
    connection.root["blob"].write_bytes(b"")
    connection.commit()
    with (
        running(append_lines, path, "a") as (first,),
        running(append_lines, path, "b") as (second,),
    ):
        assert first.finish() == second.finish() == []
    connection.abort()
    lines = connection.root["blob"].read_bytes().decode().splitlines()
    for name in "ab":
        expected = [f"{name} {number}" for number in range(20)]
        assert [line for line in lines if line.startswith(name)] == expected
    assert len(lines) == 40


def test_a_forked_child_does_not_touch_what_its_parent_has_written(
    connection: Connection,
) -> None:
    content = os.urandom(2 * LARGE)
    blob = Blob(content)

    def use_blobs() -> None:
        with pytest.raises(StorageError, match="before this process was forked"):
            blob.read_bytes()
        own = Blob(bytes(LARGE) * 2)
        with pytest.raises(StorageError, match="before this process was forked"):
            blob.read_bytes()
        blob.write_bytes(b"of the child")
        assert own.read_bytes() == bytes(LARGE) * 2
        connection.abort()
        connection.root["blob"].write_bytes(bytes(LARGE))
        connection.commit()

    wait_for_child(fork(use_blobs))
    assert blob.read_bytes() == content
    connection.root["new"] = blob
    connection.commit()
    assert blob.read_bytes() == content
    assert connection.root["blob"].read_bytes() == bytes(LARGE)


# Servers.


def test_a_client_stores_a_blob_while_another_one_commits(path: Path) -> None:
    """In small transactions: the server would refuse a large one."""
    content = os.urandom(LARGE)
    with (
        serving(FileStorage(path)) as address,
        closing(ClientStorage(address=address)) as others,
        Connection(others) as other,
    ):
        other.root["number"] = PersistentDict(value=0)
        other.commit()

        class CrowdedStorage(ClientStorage):
            """Before it commits anything, the other client commits."""

            def end(self, handle_invalidations: Any = None) -> None:
                other.root["number"]["value"] += 1
                other.commit()
                super().end(handle_invalidations)

        with closing(CrowdedStorage(address=address)) as storage, Connection(storage) as connection:
            connection.root["blob"] = Blob(content)
            connection.commit()
            assert connection.root["blob"].read_bytes() == content
        assert other.root["number"]["value"] == 3
        other.abort()
        assert other.root["blob"].read_bytes() == content


@pytest.mark.parametrize("make_content", [os.urandom, bytes])
def test_a_server_that_takes_no_part_says_so_and_its_client_goes_on(
    path: Path, make_content: Callable[[int], bytes]
) -> None:
    with (
        serving(FileStorage(path), max_commit_bytes=MEBIBYTE) as address,
        closing(ClientStorage(address=address)) as storage,
        Connection(storage) as connection,
    ):
        connection.root["blob"] = Blob(make_content(LARGE))
        with pytest.raises(StorageError, match="the server did not commit the transaction, of"):
            connection.commit()
        connection.root["blob"] = Blob(b"small")
        connection.commit()
        assert connection.root["blob"].read_bytes() == b"small"


@pytest.mark.parametrize("kind", ["log", "shelf", "dfs20", "sqlite"])
def test_packs_between_the_parts_and_the_commit_of_a_client_are_not_noticed(
    path: Path, kind: str
) -> None:
    served = FileStorage(path, format=kind)
    packs_left = 0

    class PackedStorage(ClientStorage):
        """Before it commits a new root, the server packs."""

        def end(self, handle_invalidations: Any = None) -> None:
            nonlocal packs_left
            if ROOT_OID in self.records and packs_left:
                packs_left -= 1
                as_storage(served).pack()  # type: ignore[attr-defined]  # each of them can
            super().end(handle_invalidations)

    content = os.urandom(LARGE)
    with (
        serving(served) as address,
        closing(PackedStorage(address=address)) as storage,
        Connection(storage) as connection,
    ):
        connection.commit()
        packs_left = 3
        connection.root["blob"] = Blob(content)
        connection.commit()
        assert packs_left == 0
        assert connection.root["blob"].read_bytes() == content
    with Connection(path) as connection:
        assert connection.root["blob"].read_bytes() == content
