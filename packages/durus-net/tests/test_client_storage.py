"""A client, and what becomes of it when its server or its process does what it should not."""

import contextlib
import socket
import struct
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from io import BytesIO
from pathlib import Path

import pytest

from durus.classic import ClassicAdapter
from durus.client_storage import ClientStorage, open_tcp, open_unix
from durus.connection import Connection
from durus.error import (
    ClassNotAllowedError,
    CommitOutcomeUnknownError,
    ConflictError,
    DanglingReferenceError,
    DurusKeyError,
    ProtocolError,
    ReadConflictError,
    ReadOnlyError,
    ServerLostError,
    StorageClosedError,
    StorageError,
    StorageOpenError,
    WriteConflictError,
)
from durus.interfaces import ROOT_OID, Oid, StorageOpener
from durus.persistent import Persistent
from durus.record import pack_record
from durus.storage import MemoryStorage, get_census
from durus.storage_server import SocketAddress, StorageServer
from durus.testing.storage_contract import commit, create, make_record

WAIT_MAX_S = 30


def oid(number: int) -> Oid:
    return Oid(number.to_bytes(8))


def classic(found: bytes, refs: bytes = b"") -> bytes:
    return pack_record(found, b"ok", refs)


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def address(storage: MemoryStorage) -> Iterator[SocketAddress]:
    with StorageServer(storage, port=0).running() as address:
        yield address


@pytest.fixture
def a(address: SocketAddress) -> Iterator[ClientStorage]:
    with ClientStorage(address=address) as client:
        yield client


@pytest.fixture
def b(address: SocketAddress) -> Iterator[ClientStorage]:
    with ClientStorage(address=address) as client:
        yield client


def store(client: ClientStorage, *oids: bytes) -> None:
    client.begin()
    for found in oids:
        client.store(found, classic(found))
    client.end()


class FakeSocket:
    """Says what it is given, and notes what it hears, as in 4.3's own tests."""

    def __init__(self, *said: bytes) -> None:
        self.said = BytesIO(b"".join(said))
        self.heard = b""

    def recv(self, n: int) -> bytes:
        return self.said.read(n)

    def send(self, s: bytes) -> int:
        self.heard += s
        return len(s)


@contextlib.contextmanager
def server_that_says(*answers: bytes) -> Iterator[SocketAddress]:
    """A server that says its version, then one answer to each message, then it closes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                for answer in (struct.pack(">L", 1), *answers):
                    connection.recv(1 << 20)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield SocketAddress.new(listening.getsockname())
        thread.join(WAIT_MAX_S)


# The classic calls.


def test_the_calls_of_4x_do_what_they_did(a: ClientStorage, b: ClientStorage) -> None:
    assert [a.new_oid() for _ in range(3)] == [oid(0), oid(1), oid(2)]
    with pytest.raises(KeyError):
        a.load(oid(0))
    store(a, oid(0))
    assert a.load(oid(0)) == classic(oid(0))
    assert a.sync() == []
    store(a, oid(1))
    assert list(a.gen_oid_record()) == [(oid(0), classic(oid(0)))]
    assert list(a.bulk_load([oid(0), oid(1)])) == [classic(oid(0)), classic(oid(1))]
    with pytest.raises(ReadConflictError) as conflict:
        b.load(oid(0))
    assert conflict.value.oids == [oid(0)]
    assert set(b.sync()) == {oid(0), oid(1)}
    assert b.load(oid(0)) == classic(oid(0))
    b.pack()


def test_the_state_of_a_client_is_where_4x_has_it(a: ClientStorage, address: SocketAddress) -> None:
    assert a.address is address
    assert str(a) == f"ClientStorage({address})"
    assert (a.oid_pool, a.oid_pool_size, a.transaction_new_oids) == ([], 32, [])
    first = a.new_oid()
    assert (len(a.oid_pool), a.transaction_new_oids) == (31, [first])
    a.store(first, classic(first))
    assert a.records == {first: classic(first)}
    a.begin()
    assert (a.records, a.transaction_new_oids) == ({}, [])


@pytest.mark.parametrize(("size", "count"), [(1, 1), (0, 1), (255, 255), (1000, 255)])
def test_so_many_oids_are_taken_at_once(a: ClientStorage, size: int, count: int) -> None:
    a.oid_pool_size = size
    a.new_oid()
    assert len(a.oid_pool) == count - 1


def test_after_a_missing_object_in_bulk_the_client_is_in_step(
    a: ClientStorage, storage: MemoryStorage
) -> None:
    oids = create(storage, 5)
    a.sync()
    with pytest.raises(DurusKeyError) as missing:
        list(a.bulk_load([oids[0], oid(999), *oids]))
    assert missing.value.oids == [oid(999)]
    assert len(list(a.bulk_load(oids))) == 5
    a.load(oids[3])


def test_a_bulk_load_may_be_of_more_than_fits_into_one_message(
    a: ClientStorage, storage: MemoryStorage
) -> None:
    oids = create(storage, 2500)
    a.sync()
    assert [record[:8] for record in a.bulk_load(iter(oids))] == oids
    assert list(a.bulk_load([])) == []


def test_what_is_no_oid_has_no_record(a: ClientStorage) -> None:
    for wrong in (b"", b"1234567", b"123456789"):
        with pytest.raises(DurusKeyError):
            a.load(wrong)
        with pytest.raises(DurusKeyError):
            list(a.bulk_load([ROOT_OID, wrong]))


def test_a_record_of_another_object_is_refused(a: ClientStorage) -> None:
    with pytest.raises(ValueError, match="says that its oid is"):
        a.store(oid(1), classic(oid(2)))
    with pytest.raises(ValueError, match="says that its oid is"):
        a.store(b"short", b"short")
    a.store(oid(1), classic(oid(1)))
    with pytest.raises(ValueError, match="object 1 is stored twice"):
        a.store(oid(1), classic(oid(1)))


def test_a_conflict_that_the_caller_finds_gives_the_oids_back(
    a: ClientStorage, b: ClientStorage
) -> None:
    store(b, oid(0))
    a.begin()
    new = [a.new_oid() for _ in range(3)]
    a.store(new[0], classic(new[0]))
    told: list[Sequence[bytes]] = []

    def refuse(oids: Sequence[bytes]) -> None:
        told.append(oids)
        raise ConflictError(oids)

    with pytest.raises(ConflictError):
        a.end(refuse)
    assert told == [[oid(0)]]
    assert a.sync() == []
    assert [a.new_oid() for _ in range(3)] == new
    assert a.records == {}
    store(a, new[0])  # it is in step


def test_an_interrupt_while_the_caller_is_told_loses_nothing(
    a: ClientStorage, b: ClientStorage
) -> None:
    store(b, oid(0))

    def interrupt(oids: Sequence[bytes]) -> None:
        raise KeyboardInterrupt

    a.begin()
    a.store(oid(5), classic(oid(5)))
    with pytest.raises(KeyboardInterrupt):
        a.end(interrupt)
    with pytest.raises(DurusKeyError):
        a.load(oid(5))
    assert a.sync() == [oid(0)]  # it may not have come so far as to note it
    assert a.sync() == []


def test_without_somebody_to_tell_the_next_sync_tells(a: ClientStorage, b: ClientStorage) -> None:
    store(b, oid(0))
    store(a, oid(1))
    assert a.sync() == [oid(0)]


def test_a_commit_takes_no_other_call(a: ClientStorage, b: ClientStorage) -> None:
    store(b, oid(0))
    with pytest.raises(StorageError, match="in the middle of a commit"):
        a.end(lambda oids: a.load(oids[0]))
    assert a.sync() == [oid(0)]


class InterruptedRecords(dict[bytes, bytes]):
    """Ctrl-C comes when they were sent off."""

    def clear(self) -> None:
        super().clear()
        raise KeyboardInterrupt


def test_after_an_interrupt_between_the_steps_the_client_is_not_used_any_more(
    a: ClientStorage, b: ClientStorage
) -> None:
    a.begin()
    a.records = InterruptedRecords({oid(0): classic(oid(0))})
    with pytest.raises(KeyboardInterrupt):
        a.end()
    for call in (a.sync, a.end):
        with pytest.raises(ServerLostError, match="a commit was interrupted by KeyboardInterrupt"):
            call()
    with pytest.raises(DurusKeyError):
        b.load(oid(0))


def test_a_commit_of_nothing_is_one(a: ClientStorage, b: ClientStorage) -> None:
    a.begin()
    a.end()
    store(b, oid(0))
    told: list[Sequence[bytes]] = []
    a.end(told.append)
    assert told == [[oid(0)]]


def test_a_commit_by_others_at_the_same_time_is_a_conflict(
    a: ClientStorage, b: ClientStorage
) -> None:
    store(a, oid(0))

    def be_overtaken(oids: Sequence[bytes]) -> None:
        store(b, oid(1))

    store(b, oid(2))
    a.begin()
    a.store(oid(0), classic(oid(0)))
    with pytest.raises(WriteConflictError):
        a.end(be_overtaken)
    assert a.sync() == [oid(1)]


def test_what_the_server_refuses_has_not_happened() -> None:
    with (
        server_that_says(struct.pack(">L", 0), b"E", b"K") as address,
        ClientStorage(address=address) as client,
    ):
        client.store(oid(0), classic(oid(0)))
        with pytest.raises(StorageError, match=r"did not commit the transaction, of \d+ bytes"):
            client.end()
        with pytest.raises(DurusKeyError):  # it is in step
            client.load(oid(0))


def test_a_server_that_cannot_pack_says_so() -> None:
    with server_that_says(b"E", b"K") as address, ClientStorage(address=address) as client:
        with pytest.raises(StorageError, match=f"{address}: the server cannot pack; its log says"):
            client.pack()
        with pytest.raises(DurusKeyError):  # it is in step
            client.load(oid(0))


def test_what_the_server_cannot_read_is_named() -> None:
    with (
        server_that_says(b"EO\0\0\0\2okE", b"K") as address,
        ClientStorage(address=address) as client,
    ):
        with pytest.raises(StorageError, match="cannot read object 7; its log says why"):
            list(client.bulk_load([oid(7), oid(8), oid(9)]))
        with pytest.raises(DurusKeyError):
            client.load(oid(0))


def test_a_readonly_client_refuses_to_write(address: SocketAddress) -> None:
    with ClientStorage(address=address, readonly=True) as client:
        client.store(oid(0), classic(oid(0)))
        for call in (client.new_oid, client.end, client.pack):
            with pytest.raises(ReadOnlyError):
                call()
        client.begin()
        client.end()
        assert client.sync() == []


# Through connections.


def test_records_that_a_server_sends_import_nothing(
    a: ClientStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unimported_app.py").write_text("class Thing: pass")
    monkeypatch.syspath_prepend(tmp_path)
    a.begin()
    a.store(oid(1), pack_record(oid(1), b"\x80\x02cunimported_app\nThing\n.\x80\x02}.", b""))
    a.end()
    with Connection(a) as connection, pytest.raises(ClassNotAllowedError, match="unimported_app"):
        connection.get(1)
    assert "unimported_app" not in sys.modules


def test_a_connection_asks_the_server_no_more_than_4x_did_in_a_commit(a: ClientStorage) -> None:
    connection = Connection(a)
    connection.root._p_note_change()
    fake = FakeSocket(b"\0\0\0\0", b"I")
    a.s = fake
    with pytest.raises(WriteConflictError):
        connection.commit()
    assert fake.heard.startswith(b"C\0\0")


def test_a_dangling_reference_is_named_though_the_server_cannot(
    a: ClientStorage, storage: MemoryStorage
) -> None:
    connection = Connection(a)
    connection.root["x"] = x = Persistent()
    connection.commit()
    del connection.root["x"]
    connection.commit()
    storage.pack()
    connection.abort()
    connection.root["y"] = x
    with pytest.raises(DanglingReferenceError) as caught:
        connection.commit()
    assert caught.value.oids == [x._p_oid]


def test_threads_share_a_client(a: ClientStorage, address: SocketAddress) -> None:
    with Connection(a) as connection:
        for name in "abcd":
            connection.root[name] = Persistent()
        connection.commit()

    def count(connection: Connection, name: str) -> None:
        for number in range(25):
            while True:
                try:
                    connection.root[name].number = number
                    connection.root[name].seen = connection.root["a"].__getstate__().get("number")
                    connection.commit()
                    break
                except ConflictError:
                    connection.abort()

    def work(name: str) -> None:
        if name in "ab":  # one client for both, or one of its own
            with Connection(a) as connection:
                count(connection, name)
        else:
            with ClientStorage(address=address) as own, Connection(own) as connection:
                count(connection, name)

    threads = [threading.Thread(target=work, args=[name]) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Connection(a) as connection:
        assert [connection.root[name].number for name in "abcd"] == [24] * 4


def test_a_census_is_taken_of_a_server(a: ClientStorage, storage: MemoryStorage) -> None:
    create(storage, 3)
    a.sync()
    assert get_census(a) == {b"Persistent": 4}


# Servers that are not there, or not what they should be.


def test_a_missing_server_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ServerLostError, match=f"127.0.0.1:{port}: cannot connect: no server"):
        ClientStorage(port=port)
    path = tmp_path / "missing"
    with pytest.raises(ConnectionError, match=f"{path}: cannot connect: no server"):
        ClientStorage(address=str(path))
    with pytest.raises(ServerLostError, match=r"name\.invalid:2972: cannot connect"):
        ClientStorage("name.invalid")


@pytest.mark.parametrize("said", [b"HTTP", struct.pack(">L", 2)])
def test_a_server_of_another_kind_is_refused(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(5)
                connection.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ProtocolError, match="mismatch"):
            ClientStorage(address=SocketAddress.new(listening.getsockname()))
        thread.join(WAIT_MAX_S)


def test_a_server_that_hangs_up_at_once_is_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(5)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ServerLostError, match="has closed the connection"):
            ClientStorage(address=SocketAddress.new(listening.getsockname()))
        thread.join(WAIT_MAX_S)


CALLS: dict[str, Callable[[ClientStorage], object]] = {
    "load": lambda client: client.load(oid(0)),
    "bulk_load": lambda client: list(client.bulk_load([oid(0), oid(1)])),
    "sync": lambda client: client.sync(),
    "new_oid": lambda client: client.new_oid(),
    "pack": lambda client: client.pack(),
    "end": lambda client: client.end(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_server_that_is_lost_is_named_now_and_later(call: Callable[..., object]) -> None:
    with StorageServer(MemoryStorage(), port=0).running() as address:
        client = ClientStorage(address=address)
    for _ in range(2):
        with pytest.raises(ServerLostError, match=f"{address}: .*the next transaction connects"):
            call(client)
    client.close()


def test_a_server_that_is_lost_before_the_transaction_has_not_committed() -> None:
    with server_that_says() as address, ClientStorage(address=address) as client:
        client.store(oid(0), classic(oid(0)))
        with pytest.raises(ServerLostError) as caught:
            client.end()
        assert not isinstance(caught.value, CommitOutcomeUnknownError)


def test_a_server_that_is_lost_after_the_transaction_leaves_it_open() -> None:
    with (
        server_that_says(struct.pack(">L", 0), b"") as address,
        ClientStorage(address=address) as client,
    ):
        client.store(oid(0), classic(oid(0)))
        with pytest.raises(CommitOutcomeUnknownError, match="closed the connection") as caught:
            client.end()
        assert caught.value.transaction_id is None
        with pytest.raises(ServerLostError):
            client.sync()


@pytest.mark.parametrize("call", [CALLS["load"], CALLS["pack"], CALLS["bulk_load"]])
def test_after_an_answer_that_makes_no_sense_the_client_is_not_used_any_more(
    call: Callable[[ClientStorage], object],
) -> None:
    with server_that_says(b"?") as address, ClientStorage(address=address) as client:
        with pytest.raises(ProtocolError):
            call(client)
        with pytest.raises(ServerLostError, match="interrupted by ProtocolError"):
            client.sync()


def test_an_unknown_status_of_a_commit_is_a_protocol_error(a: ClientStorage) -> None:
    a.s = FakeSocket(b"\0\0\0\0?")
    a.store(oid(0), classic(oid(0)))
    with pytest.raises(ProtocolError, match="invalid status"):
        a.end()


class InterruptedSocket(FakeSocket):
    def recv(self, n: int) -> bytes:
        raise KeyboardInterrupt


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_after_an_interrupt_the_client_is_not_used_any_more(
    a: ClientStorage, call: Callable[[ClientStorage], object]
) -> None:
    real, a.s = a.s, InterruptedSocket()
    with pytest.raises(KeyboardInterrupt):
        call(a)
    a.s = real
    with pytest.raises(ServerLostError, match="interrupted by KeyboardInterrupt"):
        call(a)


# The end.


def test_a_closed_client_says_so(address: SocketAddress) -> None:
    client = ClientStorage(address=address)
    client.close()
    client.close()
    with pytest.raises(StorageClosedError, match=f"ClientStorage\\({address}\\) is closed"):
        client.load(ROOT_OID)


FORKING = """
import os, sys
from durus.client_storage import ClientStorage, open_tcp, open_unix
from durus.error import StorageError

client = ClientStorage(port=int(sys.argv[1]))
client.new_oid()
assert client.sync() == []
if os.fork() == 0:
    try:
        client.new_oid()  # one that the parent has received would do, too
    except StorageError as error:
        print(error, flush=True)
    oids = client.oid_pool[:]
    client.reconnect()
    assert client.new_oid() not in oids
    client.close()
else:
    os.wait()
    assert client.sync() == []
    client.close()
"""


def test_a_forked_child_leaves_the_stream_alone(address: SocketAddress) -> None:
    port = str(address).rpartition(":")[2]
    command = [sys.executable, "-c", FORKING, port]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_MAX_S)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "before it forked this one, where reconnect() must come first" in finished.stdout


# URIs.


def test_a_server_is_opened_by_its_uri(storage: MemoryStorage, address: SocketAddress) -> None:
    create(storage, 0)
    with closing(open_tcp(f"durus://{address}", readonly=False, create=True)) as opened:
        assert isinstance(opened, ClassicAdapter)
        assert isinstance(opened.classic, ClientStorage)
        assert not opened.readonly
        commit(opened, {ROOT_OID: make_record(1)})
    with closing(open_tcp(f"durus://{address}/", readonly=True, create=False)) as opened:
        assert opened.readonly
        with pytest.raises(ReadOnlyError):
            commit(opened, {ROOT_OID: make_record(2)})


def test_a_unix_socket_is_opened_by_its_uri(tmp_path: Path) -> None:
    path = tmp_path / "a socket"
    uri = "durus+unix://" + str(path).replace(" ", "%20")
    with (
        StorageServer(MemoryStorage(), address=str(path)).running(),
        closing(open_unix(uri, readonly=False, create=True)) as opened,
    ):
        (x,) = create(opened, 1)
        with ClientStorage(address=str(path)) as client:
            assert client.load(x)[:8] == x


@pytest.mark.parametrize(
    ("open_uri", "uri"),
    [
        (open_tcp, "durus://host:port"),
        (open_tcp, "durus://host:99999999"),
        (open_tcp, "durus://host/path"),
        (open_tcp, "durus://me@host"),
        (open_tcp, "durus://host?query"),
        (open_unix, "durus+unix://relative/path"),
        (open_unix, "durus+unix://"),
    ],
)
def test_a_uri_that_is_none_is_refused(open_uri: StorageOpener, uri: str) -> None:
    with pytest.raises(StorageOpenError, match="this is not of the form durus") as caught:
        open_uri(uri, readonly=False, create=True)
    assert caught.value.filename == uri


def test_the_schemes_are_registered() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    names = project["entry-points"]["durus.storages"]
    found = {scheme: name.partition(":")[2] for scheme, name in names.items()}
    assert found == {"durus": open_tcp.__name__, "durus+unix": open_unix.__name__}
