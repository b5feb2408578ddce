"""Clients and servers of Durus 4.3 and ours, each with the other.

One program, written for 4.3, runs under either and prints what it sees; a server of either is a
process of its own.  All pairs are tried, but for that of 4.3 with itself.
"""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from durus.client_storage import ClientStorage
from durus.connection import Connection
from durus.file_storage import FileStorage
from durus.storage_server import SocketAddress, stop_durus, wait_for_server
from tests.ports import find_free_port

WAIT_MAX_S = 60

START = """
import sys
from durus.btree import BTree
from durus.client_storage import ClientStorage
from durus.connection import Connection
from durus.error import ConflictError, DurusKeyError, ReadConflictError, WriteConflictError
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.serialize import pack_record
from durus.storage import get_census
from durus.utils import int8_to_str

def say(*what):
    print(*what)
    sys.stdout.flush()

def client():
    address = sys.argv[1]
    if ":" in address:
        host, port = address.rsplit(":", 1)
        return ClientStorage(host=host, port=int(port))
    return ClientStorage(address=address)

def connect():
    return Connection(client())

def catch(error, call):
    try:
        call()
    except error as caught:
        assert type(caught) is error, caught
    else:
        raise AssertionError("no " + error.__name__)
"""

CALLS = """
b, c = client(), client()
oids = [b.new_oid() for _ in range(3)]
assert oids == [int8_to_str(n) for n in range(3)], oids
catch(DurusKeyError, lambda: b.load(oids[0]))
records = [pack_record(oid, b"ok", b"") for oid in oids]
b.begin()
b.store(oids[0], records[0])
assert b.end() is None
assert b.load(oids[0]) == records[0]
assert list(b.sync()) == []
b.begin()
b.store(oids[1], records[1])
b.end()
assert list(b.gen_oid_record()) == [(oids[0], records[0])]
assert list(b.bulk_load(oids[:2])) == records[:2]
catch(ReadConflictError, lambda: c.load(oids[0]))
catch(ReadConflictError, lambda: c.load(oids[0]))
assert set(c.sync()) == set(oids[:2])
assert c.load(oids[0]) == records[0]
catch(DurusKeyError, lambda: list(client().bulk_load(oids)))
b.pack()
assert list(b.gen_oid_record()) == [(oids[0], records[0])]
b.close()
c.close()
say("done")
"""

TRANSACTIONS = """
a, b = connect(), connect()
root = a.get_root()
root["tree"] = BTree()
for n in range(3000):
    root["tree"][n] = PersistentDict({"n": n})
root["large"] = b"\\0large\\xff" * 500000
root["list"] = PersistentList(["\\u20ac", 2.5, None, (1, [2])])
a.commit()
assert "tree" not in b.get_root()  # before it asks
b.abort()
assert [b.get_root()["tree"][n]["n"] for n in range(3000)] == list(range(3000))
assert b.get_root()["large"] == b"\\0large\\xff" * 500000
assert list(b.get_root()["list"]) == ["\\u20ac", 2.5, None, (1, [2])]

x, y = a.get_root()["tree"][1], a.get_root()["tree"][2]
x2, y2 = b.get_root()["tree"][1], b.get_root()["tree"][2]
x["n"] = x2["n"] = "changed by both"
a.commit()
catch(WriteConflictError, b.commit)
b.abort()
assert x2["n"] == "changed by both"

assert x2["n"], "accessed"
x["n"], y["n"] = "x", "y"
a.commit()
y2._p_set_status_ghost()
catch(ReadConflictError, lambda: y2["n"])
b.abort()
assert (x2["n"], y2["n"]) == ("x", "y")

b.abort()
y2["n"] = "b"  # x was not accessed
x["n"] = "a"
a.commit()
b.commit()
assert (x2["n"], y2["n"]) == ("a", "b")
a.abort()
assert (x["n"], y["n"]) == ("a", "b")

x["n"] = "given up"
a.abort()
assert x["n"] == "a"
a.commit()  # of nothing
assert sum(1 for _ in b.get_crawler()) > 3000
census = get_census(client())
assert census[b"BTree"] == 1 and census[b"PersistentDict"] == 3001, census
say("done")
"""

CHECK = """
root = connect().get_root()
tree = root["tree"]
assert [tree[n]["n"] for n in range(4)] == [0, "a", "b", 3]
assert root["large"] == b"\\0large\\xff" * 500000
say(len(tree))
"""

PACK = """
a, b = connect(), connect()
root = a.get_root()
root["kept"] = PersistentDict()
root["garbage"] = PersistentDict()
for n in range(2000):
    root["garbage"][n] = PersistentDict({"n": n})
a.commit()
oid = root["garbage"][7]._p_oid
b.abort()
assert b.get(oid)["n"] == 7
del root["garbage"]
a.commit()
b.pack()
packed, turns = False, 0
while not packed:
    turns += 1
    root["kept"][turns] = PersistentDict()
    a.commit()
    b.abort()
    assert turns in b.get_root()["kept"]
    if turns % 10 == 0:
        try:
            client().load(oid)
        except KeyError:
            packed = True
        a.pack()
assert len(root["kept"]) == turns
say("done")
"""

REMOVED = """
a, b = connect(), connect()
a.get_root()["a"] = PersistentDict()
a.get_root()["b"] = PersistentDict()
a.commit()
b.abort()
oid = b.get_root()["a"]._p_oid
del b.get_root()["a"]
b.commit()
b.pack()
packed = False
while not packed:
    try:
        client().load(oid)
    except KeyError:
        packed = True
b.abort()
assert b.get(oid) is None or b.get(oid)._p_is_ghost()
a.abort()
for n in range(100):
    b.get_root()["b"][n] = PersistentDict({"n": n})
b.commit()
a.abort()
assert [a.get_root()["b"][n]["n"] for n in range(100)] == list(range(100))
for _ in range(2):
    c = connect()
    c.get_root()["c"] = PersistentDict()
    c.commit()
say("done")
"""

TRANSFERS = """
import random
a = connect()
sys.stdin.readline()
a.abort()
for _ in range(40):
    while True:
        try:
            accounts = a.get_root()["accounts"]
            source, target = random.sample(list(accounts), 2)
            if random.random() < 0.3:
                assert sum(account["balance"] for account in accounts) == 500
            source["balance"] -= 1
            target["balance"] += 1
            source["transfers"] += 1
            a.commit()
            break
        except ConflictError:
            a.abort()
say("done")
"""

ACCOUNTS = """
a = connect()
a.get_root()["accounts"] = PersistentList(
    [PersistentDict({"balance": 100, "transfers": 0}) for _ in range(5)]
)
a.commit()
say("done")
"""

TOTALS = """
accounts = connect().get_root()["accounts"]
say(sum(a["balance"] for a in accounts), sum(a["transfers"] for a in accounts))
"""


class Pair(NamedTuple):
    """Whose client, whose server, the address, and the format of the file."""

    client: str
    server: str
    address: str
    format: str


PAIRS = [
    Pair("4.3", "ours", "unix", "log"),
    Pair("4.3", "ours", "tcp", "log"),
    Pair("4.3", "ours", "unix", "shelf"),
    Pair("4.3", "ours", "unix", "dfs20"),
    Pair("4.3", "ours", "unix", "memory"),
    Pair("ours", "4.3", "unix", "shelf"),
    Pair("ours", "4.3", "tcp", "shelf"),
    Pair("ours", "ours", "unix", "log"),
    Pair("ours", "ours", "unix", "shelf"),
]


class Server(NamedTuple):
    """A server that runs, and what its clients are."""

    address: str
    """host:port or a path."""
    client: Path
    """The Python of its clients."""
    process: "subprocess.Popen[bytes]"
    log: Path

    def run(self, program: str) -> str:
        """Run a program under the system of the clients; what it printed."""
        with self.start(program) as process:
            return self.finish(process)

    def start(self, program: str, python: Path | None = None) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [python or self.client, "-c", START + program, self.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: "subprocess.Popen[str]") -> str:
        printed, said = process.communicate("go\n", timeout=WAIT_MAX_S)
        assert process.returncode == 0, said + self.log.read_text()
        return printed.strip()


def as_address(text: str) -> SocketAddress:
    if ":" in text:
        host, _, port = text.rpartition(":")
        return SocketAddress.new((host, int(port)))
    return SocketAddress.new(text)


@contextmanager
def serve(pair: Pair, folder: Path, pythons: dict[str, Path], *options: str) -> Iterator[Server]:
    """A server of one system on a file in the folder, which is made if it is not there."""
    path = folder / f"app.{pair.format}"
    address = f"127.0.0.1:{find_free_port()}" if pair.address == "tcp" else str(folder / "s")
    command: list[str | Path] = [pythons[pair.server], "-m"]
    if pair.server == "4.3":
        command += ["durus", "-s"]
    else:
        command += ["durus.storage_server"]
    if pair.format == "memory":
        (folder / "keeping.py").write_text(
            "from durus.storage import MemoryStorage\ndef Storage(file): return MemoryStorage()\n"
        )
        command += ["--storage-class", "keeping.Storage"]
    else:
        if pair.format in ("shelf", "dfs20") and pair.server == "ours" and not path.exists():
            FileStorage(path, format=pair.format).close()
        command += ["--file", path]
    if pair.address == "tcp":
        command += ["--port", address.rpartition(":")[2]]
    else:
        command += ["--address", address]
    log = folder / "log"
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [*command, "--logginglevel=1", *options], cwd=folder, stdout=output, stderr=output
        ) as process,
    ):
        try:
            wait_for_server(address=as_address(address), sleeptime=0.05, maxtries=600)
            yield Server(address, pythons[pair.client], process, log)
        finally:
            process.kill()


@pytest.fixture
def pythons(durus43_python: Path) -> dict[str, Path]:
    return {"4.3": durus43_python, "ours": Path(sys.executable)}


def name(pair: Pair) -> str:
    return f"{pair.client} client, {pair.server} server, {pair.address}, {pair.format}"


@pytest.fixture(params=PAIRS, ids=name)
def server(
    request: pytest.FixtureRequest, tmp_path: Path, pythons: dict[str, Path]
) -> Iterator[Server]:
    with serve(request.param, tmp_path, pythons) as server:
        yield server


def test_the_calls_of_a_client_storage(server: Server) -> None:
    assert server.run(CALLS) == "done"


def test_reading_writing_and_conflicts(server: Server) -> None:
    assert server.run(TRANSACTIONS) == "done"
    assert server.run(CHECK) == "3000"


def test_packing_while_clients_work(server: Server) -> None:
    assert server.run(PACK) == "done"
    assert server.run(PACK) == "done"


def test_what_a_pack_has_removed_stands_in_nobodys_way(server: Server) -> None:
    assert server.run(REMOVED) == "done"


def test_clients_of_both_systems_at_the_same_time(server: Server, pythons: dict[str, Path]) -> None:
    assert server.run(ACCOUNTS) == "done"
    with ExitStack() as stack:
        processes = [
            stack.enter_context(server.start(TRANSFERS, pythons[system]))
            for system in ("4.3", "ours", "4.3", "ours")
        ]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            printed, said = process.communicate(timeout=WAIT_MAX_S)
            assert printed.strip() == "done", said
    assert server.run(TOTALS) == "500 160"


def test_a_file_is_served_by_both_systems_in_turn(tmp_path: Path, pythons: dict[str, Path]) -> None:
    turns: list[Callable[[Server], object]] = [
        lambda server: server.run(TRANSACTIONS),
        lambda server: server.run(CHECK),
        lambda server: server.run(PACK),
        lambda server: server.run(CHECK),
    ]
    for turn, do in enumerate(turns):
        system, other = ("4.3", "ours")[:: 1 if turn % 2 else -1]
        with serve(Pair(other, system, "unix", "shelf"), tmp_path, pythons) as server:
            do(server)
            assert stop_durus(server.address)
            server.process.wait(WAIT_MAX_S)


# More clients than files that may be open.


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits another process")
@pytest.mark.parametrize("name", ["log", "shelf", "dfs20"])
def test_a_server_that_is_full_goes_on_for_the_clients_that_it_has(
    tmp_path: Path, name: str
) -> None:
    pair = Pair("ours", "ours", "unix", name)
    with (
        serve(pair, tmp_path, {"ours": Path(sys.executable)}) as server,
        ClientStorage(address=server.address) as client,
        ExitStack() as stack,
    ):
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (40, 40))
        for _ in range(50):
            connected = SocketAddress.new(server.address).get_connected_socket()
            assert connected is not None
            stack.enter_context(connected)
        while "open files" not in server.log.read_text():
            assert server.process.poll() is None
        with Connection(client) as connection:
            connection.root["first"] = 1
            connection.commit()
        client.pack()
        while "Pack completed" not in (log := server.log.read_text()):
            assert "Pack failed" not in log


# Stopping, and waiting.

WAIT_AND_STOP = """
import sys
from durus.storage_server import wait_for_server
wait_for_server(address=sys.argv[1], sleeptime=0.1, maxtries=100)
try:
    from durus.storage_server import stop_durus
except ImportError:
    from durus.__main__ import stop_durus
assert stop_durus(sys.argv[1])
assert not stop_durus(sys.argv[1])
"""


@pytest.mark.parametrize(("client", "server_system"), [("4.3", "ours"), ("ours", "4.3")])
def test_each_waits_for_and_stops_the_other(
    tmp_path: Path, pythons: dict[str, Path], client: str, server_system: str
) -> None:
    pair = Pair(client, server_system, "unix", "shelf")
    with serve(pair, tmp_path, pythons) as server:
        subprocess.run([server.client, "-c", WAIT_AND_STOP, server.address], check=True)
        assert server.process.wait(WAIT_MAX_S) in (0, 1)  # 4.3 counts it as a failure
        assert not Path(server.address).exists()


@pytest.mark.parametrize("client", ["4.3", "ours"])
def test_gcbytes_has_the_server_pack_by_itself(
    tmp_path: Path, pythons: dict[str, Path], client: str
) -> None:
    program = """
a = connect()
root = a.get_root()
root["garbage"] = PersistentDict()
a.commit()
oid = root["garbage"]._p_oid
del root["garbage"]
turns = 0
while True:
    turns += 1
    root["turns"] = "." * 100 * turns
    a.commit()
    try:
        client().load(oid)
    except KeyError:
        break
say("done")
"""
    pair = Pair(client, "ours", "unix", "shelf")
    with serve(pair, tmp_path, pythons, "--gcbytes=2000") as server:
        assert server.run(program) == "done"
        assert "gc started at" in server.log.read_text()


def test_a_version_that_neither_speaks_is_a_protocol_error_to_4x(
    tmp_path: Path, pythons: dict[str, Path]
) -> None:
    program = """
from durus.storage_server import StorageServer
from durus.error import ProtocolError
StorageServer.protocol = b"\\0\\0\\0\\2"
catch(ProtocolError, client)
say("done")
"""
    with serve(Pair("4.3", "ours", "unix", "log"), tmp_path, pythons) as server:
        assert server.run(program) == "done"
        assert "it speaks version 2 of the protocol, not 1" in server.log.read_text()


def test_a_server_of_ours_serves_what_a_server_of_4x_serves(
    tmp_path: Path, pythons: dict[str, Path]
) -> None:
    """So programs that cannot be changed yet can be moved behind a server of today."""
    (tmp_path / "relay.py").write_text(
        "from durus.client_storage import ClientStorage\n"
        "def Storage(address): return ClientStorage(address=address)\n"
    )
    with serve(Pair("ours", "4.3", "unix", "shelf"), tmp_path, pythons) as first:
        relay = str(tmp_path / "relay")
        command = [sys.executable, "-m", "durus.storage_server", "--address", relay]
        command += ["--storage-class", "relay.Storage", "--file", first.address]
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
            try:
                wait_for_server(address=relay, sleeptime=0.05, maxtries=600)
                server = first._replace(address=relay)
                assert server.run(TRANSACTIONS) == "done"
                assert first.run(CHECK) == server.run(CHECK) == "3000"
                with ClientStorage(address=relay) as client:
                    assert client.sync() == []
            finally:
                process.kill()
