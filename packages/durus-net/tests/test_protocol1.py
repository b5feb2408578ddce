"""Protocol 1, both sides of it, without sockets: as bytes, and against each other."""

import struct
import zlib
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durus import protocol1
from durus.error import ProtocolError
from durus.interfaces import OID_LIMIT, Oid, Record
from durus.record import pack_record, record_from_classic, record_to_classic
from durus.server_requests import (
    ClientError,
    Commit,
    CommitOutcome,
    Compute,
    Load,
    LoadFailure,
    NewOids,
    Pack,
    Quit,
    Refuse,
    Sync,
)
from durus.testing.storage_contract import make_record
from durus.wire import Exchange, Receive, Send

T = TypeVar("T")
Answer = Callable[[Any], object]

BYTES_MAX = 1 << 20


def oid(number: int) -> Oid:
    return Oid(number.to_bytes(8))


def int4(number: int) -> bytes:
    return struct.pack(">L", number)


def converse(sent: bytes, answer: Answer = lambda request: None) -> bytes:
    """What a server says to a client that sends this and then goes away."""
    said = b""
    conversation = protocol1.serve(BYTES_MAX)
    step = next(conversation)
    try:
        while True:
            if isinstance(step, Receive):
                if len(sent) < step.size:
                    assert step.between_messages == (sent == b""), "inside a message"
                    return said
                received, sent = sent[: step.size], sent[step.size :]
                step = conversation.send(received)
            elif isinstance(step, Send):
                said += step.content
                step = conversation.send(None)
            elif isinstance(step, Compute):
                step = conversation.send(step.function())
            else:
                step = conversation.send(answer(step))
    except StopIteration:
        assert sent == b""
        return said


def ask(exchange: Exchange[T], server_says: bytes) -> tuple[bytes, T]:
    """What a client sends in this exchange, and what it makes of the answer."""
    sent = b""
    try:
        step = next(exchange)
        while True:
            if isinstance(step, Send):
                sent += step.content
                step = exchange.send(b"")
            else:
                assert len(server_says) >= step.size, "more was expected"
                said, server_says = server_says[: step.size], server_says[step.size :]
                step = exchange.send(said)
    except StopIteration as end:
        assert server_says == b"", "the exchange is out of step"
        return sent, end.value


def block(*records: tuple[int, bytes]) -> bytes:
    """A transaction of records as a client sends it, without its length."""
    return b"".join(int4(8 + len(record)) + oid(n) + record for n, record in records)


def classic(number: int, data: bytes = b"ok", refs: bytes = b"") -> bytes:
    return pack_record(oid(number), data, refs)


# The server's side.


def test_the_version_is_answered_with_the_version() -> None:
    assert converse(b"V" + int4(1)) == int4(1)


def test_another_version_is_answered_and_then_refused() -> None:
    conversation = protocol1.serve(BYTES_MAX)
    next(conversation)
    conversation.send(b"V")
    assert conversation.send(int4(2)) == Send(int4(1))
    with pytest.raises(ClientError, match="version 2"):
        conversation.send(None)


def test_oids_are_handed_out() -> None:
    asked: list[NewOids] = []

    def answer(request: NewOids) -> list[Oid]:
        asked.append(request)
        return [oid(n) for n in range(request.count)]

    assert converse(b"N", answer) == oid(0)
    assert converse(b"M\x03", answer) == oid(0) + oid(1) + oid(2)
    assert converse(b"M\x00", answer) == b""
    assert [request.count for request in asked] == [1, 3]


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (LoadFailure.MISSING, b"K"),
        (LoadFailure.CHANGED, b"I"),
        (LoadFailure.UNREADABLE, b"E"),
    ],
)
def test_a_record_that_is_not_to_be_had_has_a_status(failure: LoadFailure, status: bytes) -> None:
    assert converse(b"L" + oid(1), lambda request: [failure]) == status


def test_a_record_is_answered_in_its_classic_form() -> None:
    record = make_record("value", [oid(2)])
    sent = record_to_classic(oid(1), record)
    assert converse(b"L" + oid(1), lambda request: [record]) == b"O" + int4(len(sent)) + sent


def test_a_bulk_load_answers_for_each_oid_in_order() -> None:
    records = {oid(n): make_record(n) for n in range(1000)}

    def answer(request: Load) -> list[Record | LoadFailure]:
        # Not always for all that was asked for, as when records are large.
        return [records.get(found, LoadFailure.MISSING) for found in request.oids[:70]]

    wanted = [oid(n) for n in (*range(500), 5000, *range(500, 1000))]
    said = converse(b"B" + int4(len(wanted)) + b"".join(wanted), answer)
    expected = b""
    for found in wanted:
        if found in records:
            sent = record_to_classic(found, records[found])
            expected += b"O" + int4(len(sent)) + sent
        else:
            expected += b"K"
    assert said == expected


def test_a_bulk_load_of_nothing_answers_nothing() -> None:
    assert converse(b"B" + int4(0)) == b""


def test_a_bulk_load_of_too_many_objects_is_refused_before_they_are_received() -> None:
    with pytest.raises(ClientError, match="1,000,001 objects"):
        converse(b"B" + int4(1_000_001))


def test_a_sync_answers_what_was_changed() -> None:
    assert converse(b"S", lambda request: oid(7) + oid(8)) == int4(2) + oid(7) + oid(8)
    assert converse(b"S", lambda request: b"") == int4(0)


def commit(content: bytes, outcome: CommitOutcome) -> tuple[bytes, list[Commit | Refuse]]:
    """What the server says in a commit, and what it asks for."""
    commits: list[Commit | Refuse] = []

    def answer(request: Commit | Refuse | Sync) -> object:
        if isinstance(request, Sync):
            return oid(9)
        commits.append(request)
        return outcome

    return converse(b"C" + int4(len(content)) + content, answer), commits


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (CommitOutcome.COMMITTED, b"O"),
        (CommitOutcome.CONFLICT, b"I"),
        (CommitOutcome.REFUSED, b"E"),
    ],
)
def test_a_commit_has_two_steps_and_a_status(outcome: CommitOutcome, status: bytes) -> None:
    content = block((1, classic(1)), (2, classic(2, refs=oid(1))))
    said, commits = commit(content, outcome)
    assert said == int4(1) + oid(9) + status
    writes = {oid(1): Record(b"", b"ok", b""), oid(2): Record(b"", b"ok", oid(1))}
    assert commits == [Commit(writes, len(content))]


def test_a_large_transaction_is_the_same() -> None:
    content = block(*((n, classic(n, bytes(1000))) for n in range(100)))
    _, commits = commit(content, CommitOutcome.COMMITTED)
    assert isinstance(commits[0], Commit)
    assert list(commits[0].writes) == [oid(n) for n in range(100)]


def test_a_commit_that_is_given_up_has_no_status() -> None:
    assert commit(b"", CommitOutcome.COMMITTED) == (int4(1) + oid(9), [])


def test_a_transaction_that_is_too_large_is_refused_without_a_look_at_it() -> None:
    asked: list[object] = []

    def answer(request: object) -> bytes:
        asked.append(request)
        return b""

    said = converse(b"C" + int4(BYTES_MAX + 1) + bytes(BYTES_MAX + 1) + b"S", answer)
    assert said == int4(0) + b"E" + int4(0)
    reason = "its transaction has 1,048,577 bytes, and more than 1,048,576, also after "
    assert asked == [Sync(), Refuse(f"{reason}decompression, are not accepted"), Sync()]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\0", "malformed"),
        (int4(7) + bytes(7), "malformed"),
        (int4(0), "malformed"),
        (block((1, classic(1)))[:-1], "malformed"),
        (block((1, classic(1))) + b"\0\0", "malformed"),
        (int4(2**32 - 1) + bytes(100), "malformed"),
        (block((1, b"")), "cut off"),
        (block((1, classic(1)[:11])), "cut off"),
        (block((1, classic(1)[:-1])), "cut off"),
        (block((1, classic(2))), "object 1 says that it is 2"),
        (block((1, classic(1)), (1, classic(1))), "object 1 twice"),
        (block((OID_LIMIT, classic(OID_LIMIT))), "is none"),
        (block((1, classic(1, refs=b"1234567"))), "object 1 is none"),
    ],
)
def test_a_malformed_transaction_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(ClientError, match=reason):
        commit(content, CommitOutcome.COMMITTED)


def test_compressed_pickles_may_not_grow_beyond_what_is_accepted() -> None:
    start = b"\x80\x02capp\nThing\n."
    half = start + zlib.compress(bytes(BYTES_MAX // 2))
    records = protocol1.decode_transaction(block((1, classic(1, half))), BYTES_MAX)
    assert records is not None
    assert len(records[oid(1)].state_pickle) == BYTES_MAX // 2
    three = block(*((n, classic(n, half)) for n in range(3)))
    assert len(three) < 10_000
    assert protocol1.decode_transaction(three, BYTES_MAX) is None
    said, commits = commit(three, CommitOutcome.COMMITTED)
    assert said == int4(1) + oid(9) + b"E"
    assert [type(request) for request in commits] == [Refuse]


@pytest.mark.parametrize(("has_begun", "answer"), [(True, b"O"), (False, b"E")])
def test_a_pack_is_answered_at_once(has_begun: bool, answer: bytes) -> None:
    asked: list[object] = []

    def begin(request: object) -> bool:
        asked.append(request)
        return has_begun

    assert converse(b"P", begin) == answer
    assert asked == [Pack()]


def test_quit_has_no_answer() -> None:
    asked: list[object] = []
    assert converse(b"Q", asked.append) == b""
    assert asked == [Quit()]


@pytest.mark.parametrize("command", [b"X", b"l", b"\0", b"\xff", b"G"])
def test_an_unknown_command_is_refused(command: bytes) -> None:
    with pytest.raises(ClientError, match="no command"):
        converse(command)


def test_a_dot_is_the_end() -> None:
    assert converse(b".") == b""


def test_messages_follow_each_other() -> None:
    assert converse(b"V" + int4(1) + b"SS.", lambda request: b"") == int4(1) + int4(0) * 2


# The client's side.


def test_the_client_says_its_version_and_hears_the_servers() -> None:
    assert ask(protocol1.greet(), int4(1)) == (b"V" + int4(1), None)
    with pytest.raises(ProtocolError, match="mismatch"):
        ask(protocol1.greet(), b"HTTP")


def test_all_answers_of_a_bulk_load_are_received() -> None:
    wanted = [oid(n) for n in range(5)]
    said = b"O" + int4(2) + b"ab" + b"K" + b"I" + b"E" + b"O" + int4(0)
    sent, answers = ask(protocol1.load_many(wanted), said)
    assert sent == b"B" + int4(5) + b"".join(wanted)
    assert answers == [
        b"ab",
        LoadFailure.MISSING,
        LoadFailure.CHANGED,
        LoadFailure.UNREADABLE,
        b"",
    ]


def test_one_object_is_loaded_by_the_shorter_message() -> None:
    assert ask(protocol1.load_many([oid(3)]), b"K") == (b"L" + oid(3), [LoadFailure.MISSING])


@pytest.mark.parametrize(
    "exchange",
    [
        lambda: protocol1.load_many([oid(1)]),
        protocol1.pack,
        protocol1.receive_commit_status,
    ],
)
def test_an_unknown_status_is_a_protocol_error(exchange: Callable[[], Exchange[object]]) -> None:
    with pytest.raises(ProtocolError, match=r"b'\?'"):
        ask(exchange(), b"?")


def test_oids_are_received() -> None:
    assert ask(protocol1.new_oids(2), oid(4) + oid(5)) == (b"M\x02", [oid(4), oid(5)])
    for exchange, message in ((protocol1.sync(), b"S"), (protocol1.begin_commit(), b"C")):
        assert ask(exchange, int4(1) + oid(6)) == (message, [oid(6)])


# Both.

classic_records = st.builds(
    lambda data, refs: (data, b"".join(map(oid, sorted(refs)))),
    st.binary(max_size=50),
    st.sets(st.integers(0, 2**64 - 1), max_size=3),
)


@given(st.dictionaries(st.integers(0, OID_LIMIT - 1), classic_records, max_size=5))
def test_any_transaction_arrives(contents: dict[int, tuple[bytes, bytes]]) -> None:
    records: dict[bytes, bytes] = {oid(n): classic(n, *content) for n, content in contents.items()}
    message = protocol1.encode_transaction(records)
    size, content = struct.unpack_from(">L", message)[0], message[4:]
    assert size == len(content)
    arrived = protocol1.decode_transaction(content, BYTES_MAX)
    assert arrived == dict(record_from_classic(record) for record in records.values())


@given(st.binary(max_size=200))
def test_any_bytes_as_a_transaction_are_refused_or_records(content: bytes) -> None:
    try:
        writes = protocol1.decode_transaction(content, BYTES_MAX)
    except ClientError:
        return
    assert writes is not None
    assert sum(len(record_to_classic(*item)) for item in writes.items()) >= 12 * len(writes)


def connect(exchange: Exchange[T], answer: Answer) -> T:
    """Have an exchange with a server, to the last byte."""
    conversation = protocol1.serve(BYTES_MAX)

    def serve(content: bytes) -> Generator[bytes, bytes, None]:
        buffer, said, step = content, b"", next(conversation)
        while True:
            if isinstance(step, Receive):
                while len(buffer) < step.size:
                    buffer += yield said
                    said = b""
                received, buffer = buffer[: step.size], buffer[step.size :]
                step = conversation.send(received)
            elif isinstance(step, Send):
                said += step.content
                step = conversation.send(None)
            else:
                step = conversation.send(answer(step))

    server = serve(b"")
    assert next(server) == b""
    said = b""
    try:
        step = next(exchange)
        while True:
            if isinstance(step, Send):
                said += server.send(step.content)
                step = exchange.send(b"")
            else:
                received, said = said[: step.size], said[step.size :]
                step = exchange.send(received)
    except StopIteration as end:
        assert said == b""
        result: T = end.value
        return result


def test_client_and_server_understand_each_other() -> None:
    record = make_record([1, 2, 3], [oid(5)])

    def answer(request: object) -> object:
        match request:
            case Load(oids):
                return [record if found == oid(1) else LoadFailure.MISSING for found in oids]
            case NewOids(count):
                return [oid(n) for n in range(count)]
            case Sync():
                return oid(3)
            case Pack():
                return True
        return None

    connect(protocol1.greet(), answer)
    assert connect(protocol1.load_many([oid(1), oid(2), oid(1)]), answer) == [
        record_to_classic(oid(1), record),
        LoadFailure.MISSING,
        record_to_classic(oid(1), record),
    ]
    assert len(connect(protocol1.new_oids(255), answer)) == 255
    assert connect(protocol1.sync(), answer) == [oid(3)]
    assert connect(protocol1.pack(), answer)
