"""A server on real sockets, spoken to in bytes: what each client is told, and when."""

import contextlib
import gc
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from durus.classic_storage import Storage as ClassicStorage
from durus.error import (
    CommitOutcomeUnknownError,
    CorruptionError,
    DurusKeyError,
    ReadOnlyError,
    StorageClosedError,
    StorageError,
    StorageOpenError,
    UnstorableError,
)
from durus.interfaces import (
    CHANGES_MAX,
    ROOT_OID,
    CommitResult,
    Oid,
    Record,
    Revision,
    Snapshot,
    Tid,
    Transaction,
)
from durus.record import record_to_classic
from durus.storage import MemoryStorage
from durus.storage_server import SocketAddress, StorageServer, wait_for_server
from durus.testing.storage_contract import commit, create, make_record
from durus.utils import read

LogLines = Callable[..., list[str]]

WAIT_MAX_S = 30


def oid(number: int) -> Oid:
    return Oid(number.to_bytes(8))


def int4(number: int) -> bytes:
    return struct.pack(">L", number)


class Client:
    """A client that says what it is told to."""

    def __init__(self, address: SocketAddress) -> None:
        connected = address.get_connected_socket()
        assert connected is not None
        connected.settimeout(WAIT_MAX_S)
        self.socket = connected
        assert self.say(b"V" + int4(1), 4) == int4(1)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def say(self, content: bytes, answer_size: int = 0) -> bytes:
        self.socket.sendall(content)
        return read(self.socket, answer_size)

    def is_ended(self) -> bool:
        """Wait for the end of the connection: whether there was nothing before it."""
        with contextlib.suppress(ConnectionResetError):
            return self.socket.recv(1) == b""
        return True

    def oids(self, message: bytes) -> set[Oid]:
        """What a message is answered with that is answered with oids."""
        count = struct.unpack(">L", self.say(message, 4))[0]
        packed = read(self.socket, 8 * count)
        return {Oid(packed[i : i + 8]) for i in range(0, len(packed), 8)}

    def load(self, wanted: Oid) -> bytes:
        """The status, and the record if there is one."""
        status = self.say(b"L" + wanted, 1)
        if status == b"O":
            status += read(self.socket, struct.unpack(">L", read(self.socket, 4))[0])
        return status

    def new_oid(self) -> Oid:
        return Oid(self.say(b"N", 8))

    def finish_commit(self, *records: tuple[Oid, Record]) -> bytes:
        """Step 2 of a commit: the status."""
        return self.say(transaction(*records), 1)

    def commit(self, *records: tuple[Oid, Record]) -> bytes:
        self.oids(b"C")
        return self.finish_commit(*records)


def transaction(*records: tuple[Oid, Record]) -> bytes:
    content = b""
    for found, record in records:
        classic = record_to_classic(found, record)
        content += int4(8 + len(classic)) + found + classic
    return int4(len(content)) + content


def ok(found: Oid, record: Record) -> bytes:
    """The answer to a load."""
    return b"O" + record_to_classic(found, record)


@contextlib.contextmanager
def serving(
    storage: MemoryStorage | ClassicStorage | None = None,
    *,
    gcbytes: int = 0,
    timeout_s: float = WAIT_MAX_S,
    max_commit_bytes: int = 1 << 20,
) -> Iterator[SocketAddress]:
    server = StorageServer(
        MemoryStorage() if storage is None else storage,
        port=0,
        gcbytes=gcbytes,
        timeout_s=timeout_s,
        max_commit_bytes=max_commit_bytes,
    )
    with server.running() as address:
        yield address


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def address(storage: MemoryStorage) -> Iterator[SocketAddress]:
    with serving(storage) as address:
        yield address


@pytest.fixture
def a(address: SocketAddress) -> Iterator[Client]:
    with Client(address) as client:
        yield client


@pytest.fixture
def b(address: SocketAddress) -> Iterator[Client]:
    with Client(address) as client:
        yield client


# What a client is told.


def test_what_one_client_commits_another_is_told_of(a: Client, b: Client) -> None:
    old, new = make_record("old"), make_record("new")
    assert a.load(ROOT_OID) == b"K"
    assert a.commit((ROOT_OID, old)) == b"O"
    assert a.load(ROOT_OID) == ok(ROOT_OID, old)
    assert b.load(ROOT_OID) == b"I"  # it has seen a database without it
    assert b.oids(b"S") == {ROOT_OID}
    assert b.load(ROOT_OID) == ok(ROOT_OID, old)
    assert b.commit((ROOT_OID, new)) == b"O"
    assert b.oids(b"S") == set()
    assert a.load(ROOT_OID) == b"I"
    assert a.oids(b"C") == {ROOT_OID}
    assert a.say(int4(0)) == b""
    assert a.load(ROOT_OID) == ok(ROOT_OID, new)


def test_a_client_that_comes_later_sees_what_is_newest(a: Client, address: SocketAddress) -> None:
    a.commit((ROOT_OID, make_record(1)))
    with Client(address) as later:
        assert later.load(ROOT_OID) == ok(ROOT_OID, make_record(1))
        assert later.oids(b"S") == set()


def test_commits_that_did_not_come_through_the_server_are_learnt_of(
    a: Client, storage: MemoryStorage
) -> None:
    (x,) = create(storage, 1)
    assert a.load(x) == b"K"
    assert a.oids(b"S") == {ROOT_OID, x}
    commit(storage, {x: make_record("direct")})
    assert a.load(x) == ok(x, make_record(0))  # as it was when it last asked
    assert a.oids(b"C") == {x}
    a.say(int4(0))
    assert a.load(x) == ok(x, make_record("direct"))


def test_a_bulk_load_answers_for_each_object(a: Client, b: Client, storage: MemoryStorage) -> None:
    oids = create(storage, 250)
    a.oids(b"S")
    commit(storage, {oids[7]: make_record("changed")})
    b.oids(b"S")  # now the server knows, but has not told a
    wanted = [*oids, oid(99_999), oids[0]]
    a.socket.sendall(b"B" + int4(len(wanted)) + b"".join(wanted))
    for found in wanted:
        status = read(a.socket, 1)
        if found == oids[7]:
            assert status == b"I"
        elif found == oid(99_999):
            assert status == b"K"
        else:
            size = struct.unpack(">L", read(a.socket, 4))[0]
            assert status + read(a.socket, size) == ok(found, make_record(0))


def test_large_records_are_loaded_in_bulk(a: Client, storage: MemoryStorage) -> None:
    oids = create(storage, 20)
    records = {found: make_record("x" * 300_000) for found in oids}
    commit(storage, records)
    a.oids(b"S")
    a.socket.sendall(b"B" + int4(len(oids)) + b"".join(oids))
    for found in oids:
        expected = ok(found, records[found])
        assert read(a.socket, len(expected) + 4) == b"O" + int4(len(expected) - 1) + expected[1:]


def test_many_messages_at_once_are_answered_in_order(a: Client, storage: MemoryStorage) -> None:
    (x,) = create(storage, 1)
    a.oids(b"S")
    expected = ok(x, make_record(0))
    messages = (b"L" + x + b"L" + oid(12345) + b"P") * 2000
    with ThreadPoolExecutor(1) as pool:
        pool.submit(a.socket.sendall, messages)
        for _ in range(2000):
            assert read(a.socket, len(expected) + 4)[5:] == expected[1:]
            assert read(a.socket, 2) == b"KO"


def test_what_is_asked_before_the_client_stops_sending_is_answered(a: Client) -> None:
    a.socket.sendall(b"V" + int4(1) + b"S")
    a.socket.shutdown(socket.SHUT_WR)
    assert read(a.socket, 8) == int4(1) + int4(0)
    assert a.is_ended()


def test_after_too_many_changes_all_objects_are_listed(
    a: Client, b: Client, storage: MemoryStorage
) -> None:
    oids = create(storage, CHANGES_MAX + 1)
    assert a.oids(b"S") == {ROOT_OID, *oids}
    commit(storage, dict.fromkeys(oids, make_record(1)))
    commit(storage, {ROOT_OID: make_record(1, oids[:5])})
    b.oids(b"S")
    assert a.load(oids[0]) == b"I"
    assert a.load(ROOT_OID) == b"I"
    assert a.oids(b"S") == {ROOT_OID, *oids[:5]}  # and no more: the others are out of reach
    assert a.load(oids[0]) == ok(oids[0], make_record(1))
    assert a.oids(b"S") == set()


def test_changes_in_small_portions_are_not_kept_without_end(
    a: Client, b: Client, storage: MemoryStorage
) -> None:
    oids = create(storage, CHANGES_MAX)
    assert len(a.oids(b"S")) == CHANGES_MAX + 1
    for start in range(0, CHANGES_MAX, 20_000):
        commit(storage, dict.fromkeys(oids[start : start + 20_000], make_record(1)))
        b.oids(b"S")
    commit(storage, {ROOT_OID: make_record(1, oids[:3])})
    b.oids(b"S")
    assert a.load(oids[-1]) == b"I"
    assert a.oids(b"S") == {ROOT_OID, *oids[:3]}


# Oids.


def test_the_first_oid_of_an_empty_database_is_the_roots(a: Client, b: Client) -> None:
    assert a.new_oid() == ROOT_OID
    assert ROOT_OID not in {b.new_oid() for _ in range(5)}


def test_a_client_that_does_not_make_the_root_leaves_it_to_the_next(
    address: SocketAddress, log_lines: LogLines
) -> None:
    with Client(address) as a:
        assert a.new_oid() == ROOT_OID
    log_lines("client 1 (")
    with Client(address) as b:
        found = b.say(b"M\x03", 24)
    assert found[:8] == ROOT_OID
    assert len({found[:8], found[8:16], found[16:]}) == 3


def test_when_there_is_a_root_its_oid_is_never_handed_out() -> None:
    storage = MemoryStorage()
    commit(storage, {ROOT_OID: make_record(0)}, created=[ROOT_OID])
    with serving(storage) as address, Client(address) as a:
        assert ROOT_OID not in {a.new_oid() for _ in range(5)}


def test_clients_get_different_oids(a: Client, b: Client) -> None:
    found = [client.new_oid() for client in (a, b) * 100]
    assert len(set(found)) == 200


def test_whoever_is_first_makes_the_root(a: Client, b: Client) -> None:
    assert a.new_oid() == ROOT_OID
    assert b.commit((ROOT_OID, make_record("b"))) == b"O"
    a.oids(b"C")
    assert a.finish_commit((ROOT_OID, make_record("a"))) == b"O"  # as it has seen the other one
    assert b.oids(b"S") == {ROOT_OID}


def test_the_oid_of_another_client_is_refused(a: Client, b: Client) -> None:
    a.commit((ROOT_OID, make_record(0)))
    taken = a.new_oid()
    b.oids(b"C")
    b.socket.sendall(transaction((ROOT_OID, make_record(1)), (taken, make_record("stolen"))))
    assert b.is_ended()
    assert a.load(ROOT_OID) == ok(ROOT_OID, make_record(0))
    assert a.commit((taken, make_record("mine"))) == b"O"


def test_objects_may_be_copied_with_their_oids(a: Client) -> None:
    writes = [(oid(n), make_record(n)) for n in range(10)]
    assert a.commit(*writes) == b"O"
    assert a.load(oid(9)) == ok(oid(9), make_record(9))
    assert a.new_oid() not in dict(writes)


def test_a_copy_must_leave_room_for_other_oids(a: Client, b: Client) -> None:
    """The next ones are larger than the largest that there is."""
    a.oids(b"C")
    a.socket.sendall(transaction((oid(2**48 - 1), make_record(0))))
    assert a.is_ended()
    assert int.from_bytes(b.new_oid()) < 2**40


# Commits have two steps.


def test_any_commit_between_the_two_steps_is_a_conflict(
    a: Client, b: Client, storage: MemoryStorage
) -> None:
    x, y = create(storage, 2)
    a.oids(b"C")
    assert b.oids(b"S") == {ROOT_OID, x, y}
    assert b.commit((y, make_record("b"))) == b"O"
    assert a.finish_commit((x, make_record("a"))) == b"I"
    assert b.load(x) == ok(x, make_record(0))
    assert a.load(y) == b"I"
    assert a.oids(b"C") == {y}
    assert a.finish_commit((x, make_record("again"))) == b"O"


def test_a_direct_commit_between_the_two_steps_is_a_conflict(
    a: Client, storage: MemoryStorage
) -> None:
    x, y = create(storage, 2)
    a.oids(b"C")
    commit(storage, {y: make_record("direct")})
    assert a.finish_commit((x, make_record("a"))) == b"I"
    assert a.oids(b"S") == {y}


class OvertakenStorage(MemoryStorage):
    """At the last moment somebody else commits."""

    others: dict[Oid, Record] = {}

    def commit(self, transaction: Transaction) -> CommitResult:
        if self.others:
            writes, self.others = self.others, {}
            commit(self, writes)
        return super().commit(transaction)


def test_a_direct_commit_at_the_last_moment_is_a_conflict() -> None:
    storage = OvertakenStorage()
    x, y = create(storage, 2)
    with serving(storage) as address, Client(address) as a:
        a.oids(b"C")
        storage.others = {y: make_record("direct")}
        assert a.finish_commit((x, make_record("a"))) == b"I"
        assert a.oids(b"S") == {y}
        assert a.load(x) == ok(x, make_record(0))


def test_a_client_that_stalls_between_the_two_steps_holds_nobody_up(
    a: Client, b: Client, storage: MemoryStorage
) -> None:
    (x,) = create(storage, 1)
    b.oids(b"S")
    a.oids(b"C")
    for value in range(10):
        assert b.commit((x, make_record(value))) == b"O"
    a.say(int4(0))  # and it goes on
    assert a.oids(b"S") == {x}


def test_a_client_that_goes_between_the_two_steps_has_done_nothing(
    a: Client, address: SocketAddress, log_lines: LogLines
) -> None:
    a.commit((ROOT_OID, make_record(0)))
    with Client(address) as b:
        b.oids(b"C")
        b.socket.sendall(transaction((ROOT_OID, make_record("half")))[:-1])
    assert log_lines("in the middle of a message")[0].startswith("20 client 2 (")
    assert a.oids(b"S") == set()
    assert a.load(ROOT_OID) == ok(ROOT_OID, make_record(0))


def test_nothing_of_a_refused_transaction_is_committed_with_the_next(
    a: Client, address: SocketAddress
) -> None:
    a.commit((ROOT_OID, make_record(0)))
    with Client(address) as b:
        b.oids(b"C")
        good = transaction((oid(500), make_record("b")))[4:]
        b.socket.sendall(int4(len(good) + 5) + good + int4(1) + b"x")
        assert b.is_ended()
    assert a.commit((ROOT_OID, make_record(1))) == b"O"
    assert a.load(oid(500)) == b"K"


def test_a_dangling_reference_is_a_conflict_and_logged(
    a: Client, storage: MemoryStorage, log_lines: LogLines
) -> None:
    create(storage, 0)
    assert a.commit((ROOT_OID, make_record(1, [oid(777)]))) == b"I"
    (line,) = log_lines("oids=[777]")
    assert line.startswith("30 Conflict during commit: the transaction refers to")
    assert a.commit((ROOT_OID, make_record(1))) == b"O"


def test_what_a_pack_has_removed_may_be_stored_again(a: Client, storage: MemoryStorage) -> None:
    (x,) = create(storage, 1)
    a.oids(b"S")
    commit(storage, {ROOT_OID: make_record(1)})
    storage.pack()
    a.oids(b"S")
    assert a.load(x) == b"K"
    assert a.commit((x, make_record("again")), (ROOT_OID, make_record(2, [x]))) == b"O"


class PackedStorage(ClassicStorage):
    """A storage of 4.x, which reports as changed what a pack has removed."""

    def __init__(self, *oids: Oid) -> None:
        self.records = {oid: record_to_classic(oid, make_record(0)) for oid in oids}
        self.pending: dict[bytes, bytes] = {}
        self.reported: list[bytes] = []

    def remove(self, oid: Oid) -> None:
        del self.records[oid]
        self.reported.append(oid)

    def load(self, oid: bytes) -> bytes:
        return self.records[Oid(oid)]

    def begin(self) -> None:
        self.pending = {}

    def store(self, oid: bytes, record: bytes) -> None:
        self.pending[oid] = record

    def end(self, handle_invalidations: object = None) -> None:
        self.records.update((Oid(oid), record) for oid, record in self.pending.items())

    def sync(self) -> list[bytes]:
        reported, self.reported = self.reported, []
        return reported


def test_the_end_of_a_pack_between_the_two_steps_is_no_conflict() -> None:
    x, y, z = oid(1), oid(2), oid(3)
    storage = PackedStorage(x, y, z)
    with serving(storage) as address, Client(address) as a, Client(address) as b:
        a.oids(b"C")
        storage.remove(x)
        assert a.finish_commit((y, make_record(1))) == b"O"
        assert a.load(x) == b"I"
        assert a.oids(b"S") == {x}
        assert a.load(x) == b"K"
        assert b.oids(b"S") == {x, y}
        a.oids(b"C")
        storage.remove(z)
        assert a.finish_commit((y, make_record(2)), (z, make_record(2))) == b"I"
        a.oids(b"C")
        assert b.oids(b"S") == {z}
        storage.records[oid(4)] = record_to_classic(oid(4), make_record(0))
        storage.remove(oid(4))
        assert b.commit((y, make_record("b"))) == b"O"
        assert a.finish_commit((y, make_record("a"))) == b"I"  # that was more than a pack


# Failures of the storage.


class FailingStorage(MemoryStorage):
    """Its commits and packs fail as they are told to."""

    failure: Exception | None = None

    def commit(self, transaction: Transaction) -> CommitResult:
        if self.failure is not None:
            raise self.failure
        return super().commit(transaction)

    def pack(self, **options: Any) -> None:
        if self.failure is not None:
            raise self.failure
        super().pack(**options)


class ReadOnlyStorage(FailingStorage):
    failure = ReadOnlyError("it is read-only")

    @property
    def readonly(self) -> bool:
        return True


class SpecialSnapshot(Snapshot):
    """Something happens when one of the objects is loaded."""

    def __init__(self, usual: Snapshot, special: Oid | None, happen: Callable[[], None]) -> None:
        self._usual = usual
        self._special = special
        self._happen = happen

    @property
    def tid(self) -> Tid:
        return self._usual.tid

    def load(self, oid: Oid) -> Revision:
        if oid == self._special:
            self._happen()
        return self._usual.load(oid)

    def load_many(self, oids: Iterable[Oid]) -> Iterator[tuple[Oid, Revision]]:
        for oid in oids:
            with contextlib.suppress(DurusKeyError):
                yield oid, self.load(oid)

    def close(self) -> None:
        self._usual.close()


class DamagedStorage(MemoryStorage):
    """One of its objects cannot be read."""

    damaged: Oid | None = None

    def snapshot(self, at: Tid | None = None) -> Snapshot:
        return SpecialSnapshot(super().snapshot(at), self.damaged, self.fail)

    def fail(self) -> None:
        raise CorruptionError("app.durus", 5, "flipped", self.damaged)


def test_a_storage_that_is_full_refuses_with_a_status_of_its_own(log_lines: LogLines) -> None:
    storage = FailingStorage()
    with serving(storage) as address, Client(address) as a:
        a.commit((ROOT_OID, make_record(0)))
        storage.failure = StorageError("app.durus: no space left on device")
        assert a.commit((ROOT_OID, make_record(1))) == b"E"
        assert log_lines("no space left")[0].startswith("40 A transaction was refused")
        storage.failure = None
        assert a.load(ROOT_OID) == ok(ROOT_OID, make_record(0))
        assert a.commit((ROOT_OID, make_record(2))) == b"O"


def test_a_commit_of_unknown_outcome_has_no_answer(log_lines: LogLines) -> None:
    storage = FailingStorage()
    with serving(storage) as address, Client(address) as a, Client(address) as b:
        a.commit((ROOT_OID, make_record(0)))
        storage.failure = CommitOutcomeUnknownError(7, "the disk is gone")
        a.oids(b"C")
        a.socket.sendall(transaction((ROOT_OID, make_record(1))))
        assert a.is_ended()
        assert log_lines("the disk is gone")[0].startswith("40 client 1 (")
        storage.failure = None
        assert b.oids(b"S") == {ROOT_OID}
        assert b.commit((ROOT_OID, make_record(2))) == b"O"


def test_a_failure_that_nobody_thought_of_ends_one_connection(log_lines: LogLines) -> None:
    storage = FailingStorage()
    with serving(storage) as address, Client(address) as a, Client(address) as b:
        storage.failure = ZeroDivisionError("oops")
        a.oids(b"C")
        a.socket.sendall(transaction((ROOT_OID, make_record(1))))
        assert a.is_ended()
        (line,) = log_lines("a failure of the server")
        assert line.startswith("40 client 1 (")
        assert "ZeroDivisionError" in line
        storage.failure = None
        assert b.commit((ROOT_OID, make_record(2))) == b"O"


@pytest.mark.parametrize("failure", [UnstorableError("too large"), ValueError("it is empty")])
def test_what_a_storage_cannot_hold_is_refused_in_one_line(
    failure: Exception, log_lines: LogLines
) -> None:
    storage = FailingStorage()
    with serving(storage) as address, Client(address) as a:
        storage.failure = failure
        assert a.commit((ROOT_OID, make_record(1))) == b"E"
        assert log_lines(str(failure)) == [f"40 A transaction was refused: {failure}"]
        storage.failure = None
        assert a.commit((ROOT_OID, make_record(2))) == b"O"


def test_a_readonly_storage_is_read_and_refuses(log_lines: LogLines) -> None:
    storage = ReadOnlyStorage()
    with serving(storage) as address, Client(address) as a:
        new = a.new_oid()
        assert a.load(new) == b"K"
        assert a.commit((new, make_record(1))) == b"E"
        log_lines("40 A transaction was refused: it is read-only")
        assert a.say(b"P", 1) == b"E"
        assert log_lines("Pack failed")[0].endswith(" is open read-only")


def test_a_damaged_object_does_not_stand_in_the_way_of_others(log_lines: LogLines) -> None:
    storage = DamagedStorage()
    x, y = create(storage, 2)
    storage.damaged = x
    with serving(storage) as address, Client(address) as a:
        assert a.load(x) == b"E"
        line = log_lines("damaged at offset 5")[0]
        assert line.startswith(f"40 Object {int.from_bytes(x)} cannot be read: app.durus: damaged")
        assert a.load(y) == ok(y, make_record(0))
        assert a.say(b"B" + int4(2) + x + oid(999), 2) == b"EK"
        assert a.commit((y, make_record(1))) == b"O"


# Others go on meanwhile.


class SlowStorage(MemoryStorage):
    """What is slow in it waits until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.started, self.may_go_on = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.started.set()
        assert self.may_go_on.wait(WAIT_MAX_S)


class SlowCommit(SlowStorage):
    def commit(self, transaction: Transaction) -> CommitResult:
        self.wait()
        return super().commit(transaction)


class SlowPack(SlowStorage):
    def pack(self, **options: Any) -> None:
        self.wait()
        super().pack(**options)


def test_while_a_commit_waits_for_the_disk_others_read() -> None:
    storage = SlowCommit()
    with serving(storage) as address, Client(address) as a, Client(address) as b:
        a.oids(b"C")
        a.socket.sendall(transaction((ROOT_OID, make_record(1))))
        assert storage.started.wait(WAIT_MAX_S)
        assert b.load(ROOT_OID) == b"K"
        assert b.oids(b"S") == set()
        assert len(b.say(b"M\x05", 40)) == 40
        with Client(address) as c:
            assert c.load(ROOT_OID) == b"K"
        storage.may_go_on.set()
        assert read(a.socket, 1) == b"O"
        assert b.oids(b"S") == {ROOT_OID}


class LockedStorage(SlowStorage):
    """While it commits, nobody can load."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def commit(self, transaction: Transaction) -> CommitResult:
        with self.lock:
            self.wait()
        return super().commit(transaction)

    def snapshot(self, at: Tid | None = None) -> Snapshot:
        return SpecialSnapshot(super().snapshot(at), oid(1), self.wait_for_lock)

    def wait_for_lock(self) -> None:
        with self.lock:
            pass


def test_a_client_that_waits_for_the_storage_holds_no_other_up() -> None:
    storage = LockedStorage()
    with (
        serving(storage) as address,
        Client(address) as a,
        Client(address) as b,
        Client(address) as c,
    ):
        a.oids(b"C")
        a.socket.sendall(transaction((ROOT_OID, make_record(1))))
        assert storage.started.wait(WAIT_MAX_S)
        b.socket.sendall(b"L" + oid(1))
        b.socket.shutdown(socket.SHUT_WR)  # it will get its answer all the same
        assert c.oids(b"S") == set()
        assert c.load(ROOT_OID) == b"K"
        storage.may_go_on.set()
        assert read(a.socket, 1) == b"O"
        assert read(b.socket, 1) == b"K"


def test_clients_work_during_a_pack(log_lines: LogLines) -> None:
    storage = SlowPack()
    (x,) = create(storage, 1)
    with serving(storage) as address, Client(address) as a, Client(address) as b:
        assert a.say(b"P", 1) == b"O"
        assert storage.started.wait(WAIT_MAX_S)
        assert b.say(b"P", 1) == b"O"
        log_lines("20 Pack already in progress at")
        assert b.load(x) == ok(x, make_record(0))
        assert b.commit((ROOT_OID, make_record(1))) == b"O"
        assert a.oids(b"S") == {ROOT_OID}
        storage.may_go_on.set()
        log_lines("20 Pack completed at")
        assert b.load(x) == b"K"
        assert a.say(b"P", 1) == b"O"  # and again
        log_lines("20 Pack completed at", 2)


def test_a_pack_that_fails_is_logged_and_the_next_is_not_kept_from_it(log_lines: LogLines) -> None:
    storage = FailingStorage()
    storage.failure = StorageError("no space left on device")
    with serving(storage) as address, Client(address) as a:
        assert a.say(b"P", 1) == b"O"
        log_lines("40 Pack failed: no space left on device")
        storage.failure = None
        assert a.say(b"P", 1) == b"O"
        log_lines("20 Pack completed at")


def test_after_so_many_bytes_were_committed_the_storage_is_packed(log_lines: LogLines) -> None:
    storage = MemoryStorage()
    (x,) = create(storage, 1)
    with serving(storage, gcbytes=1000) as address, Client(address) as a:
        assert a.commit((ROOT_OID, make_record("short"))) == b"O"
        assert a.load(x) == ok(x, make_record(0))
        assert a.commit((ROOT_OID, make_record("x" * 1000))) == b"O"
        log_lines("20 gc completed at")
        assert a.load(x) == b"K"


def test_a_storage_that_cannot_be_packed_says_so(log_lines: LogLines) -> None:
    class Unpackable:
        """All of a storage but `pack`."""

        def __init__(self) -> None:
            storage = MemoryStorage()
            self.readonly = storage.readonly
            self.tid = storage.tid
            self.snapshot = storage.snapshot
            self.changes = storage.changes
            self.commit = storage.commit
            self.reserve_oids = storage.reserve_oids
            self.close = storage.close

        def __str__(self) -> str:
            return "this storage"

    server = StorageServer(Unpackable(), port=0)
    with server.running() as address, Client(address) as a:
        assert a.say(b"P", 1) == b"E"
        log_lines("40 Pack failed: this storage cannot be packed")


# Clients that do what they must not.

HOSTILE = {
    "an unknown command": b"X",
    "another version": b"V" + int4(2),
    "too many objects at once": b"B" + int4(1_000_001),
    "a malformed transaction": b"C" + int4(6) + b"hahaha",
    "a record of another object": b"C"
    + transaction((oid(1), make_record(1))).replace(oid(1), oid(2), 1),
    "no Durus at all": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("message", HOSTILE.values(), ids=HOSTILE)
def test_whoever_does_what_it_must_not_loses_its_connection_and_no_more(
    message: bytes, a: Client, address: SocketAddress, log_lines: LogLines
) -> None:
    a.commit((ROOT_OID, make_record(0)))
    with Client(address) as hostile:
        hostile.socket.sendall(message)
        while not hostile.is_ended():
            pass
        (line,) = log_lines("client 2 (")
        assert line.startswith("30 ")
        assert line.endswith("; its connection is closed")
        assert "\n" not in line
    assert a.load(ROOT_OID) == ok(ROOT_OID, make_record(0))
    assert a.commit((ROOT_OID, make_record(1))) == b"O"


@pytest.mark.parametrize("size", [(1 << 20) + 1, 30 << 20])
def test_a_transaction_that_is_too_large_is_refused_and_the_client_goes_on(
    a: Client, b: Client, log_lines: LogLines, size: int
) -> None:
    a.oids(b"C")
    a.socket.sendall(int4(size) + bytes(size // 2))
    assert b.commit((ROOT_OID, make_record(1))) == b"O"  # which waits for nobody
    assert a.say(bytes(size - size // 2), 1) == b"E"
    (line,) = log_lines(f"its transaction has {size:,} bytes, and more than 1,048,576, also after")
    assert line.startswith("30 client ")
    assert a.oids(b"S") == {ROOT_OID}
    assert a.commit((ROOT_OID, make_record(2))) == b"O"


@pytest.mark.parametrize("message", [b"V\0", b"L1234567", b"B" + int4(10) + b"x" * 79, b"M"])
def test_whoever_goes_in_the_middle_of_a_message_is_logged_and_forgotten(
    message: bytes, a: Client, address: SocketAddress, log_lines: LogLines
) -> None:
    with Client(address) as gone:
        gone.socket.sendall(message)
    (line,) = log_lines("the connection ended in the middle of a message")
    assert line.startswith("20 client")
    assert a.commit((ROOT_OID, make_record(1))) == b"O"


def test_whoever_goes_between_messages_is_not_worth_a_line(
    address: SocketAddress, log_lines: LogLines
) -> None:
    with Client(address) as gone:
        gone.oids(b"S")
    assert log_lines("it has gone")[0].startswith("10 ")
    with Client(address) as a:
        a.socket.sendall(b".")
        assert a.is_ended()


def test_a_message_may_come_byte_by_byte(a: Client) -> None:
    message = b"C" + transaction((ROOT_OID, make_record(1)))
    for i in range(len(message)):
        a.socket.sendall(message[i : i + 1])
    assert read(a.socket, 5) == int4(0) + b"O"


@pytest.mark.parametrize("message", [b"L123", b"C", b"C" + int4(1000) + b"part"])
def test_whoever_stalls_inside_a_message_is_given_up(message: bytes, log_lines: LogLines) -> None:
    with serving(timeout_s=0.05) as address, Client(address) as a, Client(address) as stuck:
        stuck.socket.sendall(message)
        while not stuck.is_ended():
            pass
        assert log_lines("nothing came for 0.05 s inside a message")[0].startswith("20 client 2")
        assert a.commit((ROOT_OID, make_record(1))) == b"O"  # it has only been silent


def test_whoever_reads_nothing_is_given_up(log_lines: LogLines) -> None:
    storage = MemoryStorage()
    (x,) = create(storage, 1)
    commit(storage, {x: make_record("x" * 500_000)})
    with serving(storage, timeout_s=0.05) as address, Client(address) as a:
        with Client(address) as stuck:
            stuck.socket.sendall(b"B" + int4(100_000) + x * 100_000)
            assert log_lines("it has read nothing for 0.05 s")[0].startswith("20 client 2")
        assert a.load(x) == ok(x, make_record("x" * 500_000))


# The end.


@contextlib.contextmanager
def thread_of(server: StorageServer) -> Iterator[threading.Thread]:
    server.listen()
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield thread
    finally:
        server.stop()
        thread.join(WAIT_MAX_S)
        assert not thread.is_alive()


def test_a_client_may_stop_the_server(storage: MemoryStorage, log_lines: LogLines) -> None:
    server = StorageServer(storage, port=0)
    with thread_of(server) as thread, Client(server.address) as a, Client(server.address) as b:
        a.oids(b"S")
        b.socket.sendall(b"Q")
        assert b.is_ended()
        with pytest.raises(StorageClosedError):  # by the time that it knows
            storage.snapshot()
        assert a.is_ended()
        thread.join(WAIT_MAX_S)
        assert not thread.is_alive()
        log_lines("20 Quit")
    assert server.address.get_connected_socket() is None


def test_a_commit_that_has_begun_is_finished_before_the_end(log_lines: LogLines) -> None:
    storage = SlowCommit()
    server = StorageServer(storage, port=0)
    with thread_of(server), Client(server.address) as a, Client(server.address) as b:
        a.oids(b"C")
        a.socket.sendall(transaction((ROOT_OID, make_record(1))) + b"S")
        assert storage.started.wait(WAIT_MAX_S)
        b.socket.sendall(b"Q")
        log_lines("Quit")
        storage.may_go_on.set()
        assert read(a.socket, 1) == b"O"
        assert a.is_ended()


class SlowLoad(SlowStorage):
    def snapshot(self, at: Tid | None = None) -> Snapshot:
        return SpecialSnapshot(super().snapshot(at), oid(1), self.wait)


def test_a_client_that_goes_at_the_same_time_is_closed_too() -> None:
    storage = SlowLoad()
    with serving(storage) as address, Client(address) as a, Client(address) as b:
        with Client(address):
            a.socket.sendall(b"L" + oid(1))
            assert storage.started.wait(WAIT_MAX_S)
            # The server will see both at once.
            b.socket.sendall(b"Q")
        storage.may_go_on.set()
        assert b.is_ended()
    gc.collect()  # nothing that was left open comes to light


def test_a_client_that_comes_at_the_very_end_is_closed_too() -> None:
    for number in range(30):
        with serving() as address:
            for _ in range(number % 4):
                connected = address.get_connected_socket()
                assert connected is not None
                connected.close()
    gc.collect()


def test_a_server_can_be_stopped_before_it_has_begun(storage: MemoryStorage) -> None:
    server = StorageServer(storage, port=0)
    server.stop()
    server.serve()
    with pytest.raises(StorageClosedError):
        storage.snapshot()


def test_a_server_that_was_stopped_may_serve_another_storage() -> None:
    server = StorageServer(MemoryStorage(), port=0)
    for _ in range(2):
        with server.running() as address, Client(address) as a:
            assert a.commit((ROOT_OID, make_record(1))) == b"O"
            a.socket.sendall(b"Q")
            assert a.is_ended()
        server.storage = MemoryStorage()
    server.stop()
    server.serve()
    assert server.address.get_connected_socket() is None


def test_a_server_in_a_thread_does_not_fail_in_silence() -> None:
    storage = MemoryStorage()
    storage.close()
    server = StorageServer(storage, port=0)
    with pytest.raises(StorageClosedError), server.running() as address:
        pass
    assert address.get_connected_socket() is None


def test_a_client_that_does_not_read_does_not_keep_the_server_from_its_end(
    storage: MemoryStorage,
) -> None:
    (x,) = create(storage, 1)
    commit(storage, {x: make_record("x" * 500_000)})
    with serving(storage) as address, Client(address) as a, Client(address) as stuck:
        stuck.socket.sendall(b"B" + int4(100_000) + x * 100_000)
        assert read(stuck.socket, 1) == b"O"
        a.socket.sendall(b"Q")
        assert a.is_ended()


def test_the_end_of_a_server_ends_a_pack_in_steps(log_lines: LogLines) -> None:
    class Stepping(ClassicStorage):
        def __init__(self) -> None:
            self.steps = 0

        def sync(self) -> list[bytes]:
            return []

        def load(self, oid: bytes) -> bytes:
            raise KeyError(oid)

        def get_packer(self) -> Iterator[None]:
            while True:
                self.steps += 1
                yield

    storage = Stepping()
    with serving(storage) as address, Client(address) as a:
        assert a.say(b"P", 1) == b"O"
        assert a.load(ROOT_OID) == b"K"
    log_lines("20 Pack was given up, because the server stops")
    assert storage.steps > 0


# Addresses.


def test_a_unix_socket_is_served_and_removed_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "durus.socket"
    with StorageServer(MemoryStorage(), address=str(path)).running() as address:
        with Client(address) as a:
            assert a.commit((ROOT_OID, make_record(1))) == b"O"
        assert path.is_socket()
    assert not path.exists()


def test_an_address_in_use_is_refused_by_its_name(address: SocketAddress) -> None:
    second = MemoryStorage()
    with pytest.raises(StorageOpenError, match=f"{address}: cannot listen there: .*in use"):
        StorageServer(second, address=address).serve()
    second.snapshot().close()  # it is not closed


def test_a_server_that_others_can_reach_warns_of_it(log_lines: LogLines) -> None:
    with StorageServer(MemoryStorage(), host="0.0.0.0", port=0).running() as address:
        assert log_lines("no authentication")[0].startswith(f"30 {address} can be reached by")


def test_gcbytes_is_a_number() -> None:
    with pytest.raises(TypeError, match="'many'"):
        StorageServer(MemoryStorage(), gcbytes=cast("int", "many"))


def test_waiting_for_a_server_that_is_there_returns_at_once(
    address: SocketAddress, log_lines: LogLines
) -> None:
    wait_for_server(address=address, maxtries=1)
    host, port = str(address).split(":")
    wait_for_server(host, int(port), maxtries=1)
    assert len(log_lines("it has gone", 2)) == 2  # it was there


def test_waiting_for_a_server_ends_some_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(SystemExit, match=f"Timeout waiting for address: 127.0.0.1:{port}"):
        wait_for_server(port=port, maxtries=3, sleeptime=0)
