"""Protocol 1, that of Durus 4.x: what its messages are, and what both sides say.

docs/protocol.md draws them byte by byte.  Nothing here does I/O: the generators are driven as
`durus.wire` says.  The invariant of the exchanges: *after one has returned, the stream is at the
boundary between two messages*, whatever the answer was; when one raises, it is not, and the stream
cannot be used any more.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from durus.error import ProtocolError, format_oid
from durus.interfaces import OID_LIMIT, Oid, Record
from durus.record import (
    StateTooLargeError,
    record_from_classic,
    record_to_classic,
    split_oids,
)
from durus.server_requests import (
    OIDS_MAX,
    ClientError,
    Commit,
    CommitOutcome,
    Compute,
    Conversation,
    Load,
    Loaded,
    LoadFailure,
    NewOids,
    Pack,
    Quit,
    Refuse,
    Sync,
    ask,
)
from durus.utils import int4_to_str, str_to_int4
from durus.wire import Exchange, Receive, Send, receive

__all__ = [
    "BYE",
    "QUIT",
    "STATUS_ERROR",
    "STATUS_INVALID",
    "STATUS_KEYERROR",
    "STATUS_OKAY",
    "VERSION",
    "begin_commit",
    "decode_transaction",
    "encode_transaction",
    "give_up_commit",
    "greet",
    "load_many",
    "new_oids",
    "pack",
    "receive_commit_status",
    "send_transaction",
    "serve",
    "sync",
]

VERSION: Final = 1

STATUS_OKAY: Final = b"O"
STATUS_KEYERROR: Final = b"K"
STATUS_INVALID: Final = b"I"
STATUS_ERROR: Final = b"E"
"""The server's log says what went wrong.  4.3 does not know it, and raises ProtocolError."""

BYE: Final = b"."
"""The last message of a client.  (To 4.3 it is an unknown command, which has the same effect.)"""
QUIT: Final = b"Q"

_NEW_OIDS_MAX: Final = 255
"""More do not fit into the one byte of `M`."""
_COMPUTED_AT_ONCE_MAX_BYTES: Final = 1 << 14
_SKIPPED_AT_ONCE_BYTES: Final = 1 << 16

_STATUS_OF: Final = {
    LoadFailure.MISSING: STATUS_KEYERROR,
    LoadFailure.CHANGED: STATUS_INVALID,
    LoadFailure.UNREADABLE: STATUS_ERROR,
    CommitOutcome.COMMITTED: STATUS_OKAY,
    CommitOutcome.CONFLICT: STATUS_INVALID,
    CommitOutcome.REFUSED: STATUS_ERROR,
}
_FAILURES: Final = {_STATUS_OF[failure]: failure for failure in LoadFailure}
_OUTCOMES: Final = {_STATUS_OF[outcome]: outcome for outcome in CommitOutcome}


# Transactions.


def encode_transaction(records: Mapping[bytes, bytes]) -> bytes:
    """The classic records of these oids as the message that is step 2 of a commit.

    ValueError when it would have 4 GiB.
    """
    parts = [b""]
    for oid, record in records.items():
        parts += (int4_to_str(8 + len(record)), oid, record)
    size = sum(map(len, parts))
    if size >= 1 << 32:
        raise ValueError(f"the transaction has {size:,} bytes, and 4 GiB is too much: make several")
    parts[0] = int4_to_str(size)
    return b"".join(parts)


def decode_transaction(content: bytes, bytes_max: int) -> dict[Oid, Record] | None:
    """The records in such a message, of which `content` is all but the first 4 bytes.

    None when the pickles, some of which may be compressed, have more than `bytes_max` bytes
    together.  ClientError when it is malformed, names an oid twice or one that there cannot be.
    """
    writes: dict[Oid, Record] = {}
    for oid, classic in _split_transaction(content):
        if oid in writes:
            raise ClientError(f"it stores object {format_oid(oid)} twice in one transaction")
        if int.from_bytes(oid) >= OID_LIMIT:
            raise ClientError(f"it stores an object with the oid {oid!r}, which is none")
        if len(classic) < 12 or len(classic) < 12 + str_to_int4(classic[8:12]):
            raise ClientError(f"its record of object {format_oid(oid)} is cut off")
        try:
            found, record = record_from_classic(classic, state_bytes_max=bytes_max)
        except StateTooLargeError:
            return None
        except ValueError as error:
            raise ClientError(f"its record of object {format_oid(oid)} is none: {error}") from error
        if found != oid:
            raise ClientError(
                f"its record of object {format_oid(oid)} says that it is {format_oid(found)}"
            )
        bytes_max = max(bytes_max - len(record.state_pickle), 0)
        writes[oid] = record
    return writes


def _split_transaction(content: bytes) -> Iterator[tuple[Oid, bytes]]:
    end = 0
    while end < len(content):
        start = end + 12
        end += 4 + int.from_bytes(content[end : end + 4])
        if not start <= end <= len(content):
            raise ClientError(f"its transaction of {len(content):,} bytes is malformed")
        yield Oid(content[start - 8 : start]), content[start:end]


# The client's side.


def greet() -> Exchange[None]:
    """The first exchange; ProtocolError when the server speaks another version."""
    yield Send(b"V" + int4_to_str(VERSION))
    version = str_to_int4((yield from receive(4)))
    if version != VERSION:
        raise ProtocolError(
            f"Protocol version mismatch: this client speaks version {VERSION}, the server "
            f"{version}, or it is no Durus server"
        )


def new_oids(count: int) -> Exchange[list[Oid]]:
    """`count` oids for new objects, 255 at most."""
    yield Send(b"M" + bytes([count]))
    return split_oids((yield from receive(8 * count)))


def load_many(oids: Sequence[bytes]) -> Exchange[list[bytes | LoadFailure]]:
    """The classic records of these oids, in their order."""
    if len(oids) == 1:
        yield Send(b"L" + oids[0])
    else:
        yield Send(b"".join((b"B", int4_to_str(len(oids)), *oids)))
    answers: list[bytes | LoadFailure] = []
    for oid in oids:
        status = yield from receive(1)
        if status == STATUS_OKAY:
            size = str_to_int4((yield from receive(4)))
            answers.append((yield from receive(size)))
        elif status in _FAILURES:
            answers.append(_FAILURES[status])
        else:
            raise ProtocolError(f"status={status!r}, oid={oid!r}")
    return answers


def sync() -> Exchange[list[Oid]]:
    """The oids that others changed since the last time."""
    yield Send(b"S")
    return (yield from _receive_oids())


def begin_commit() -> Exchange[list[Oid]]:
    """Step 1 of a commit: as `sync`.  `send_transaction` or `give_up_commit` must follow."""
    yield Send(b"C")
    return (yield from _receive_oids())


def give_up_commit() -> Exchange[None]:
    """Instead of step 2 of a commit."""
    yield Send(int4_to_str(0))


def send_transaction(message: bytes) -> Exchange[None]:
    """Step 2 of a commit; if there are records in it, `receive_commit_status` must follow."""
    yield Send(message)


def receive_commit_status() -> Exchange[CommitOutcome]:
    """The last step of a commit."""
    status = yield from receive(1)
    if status not in _OUTCOMES:
        raise ProtocolError(f"server returned invalid status {status!r}")
    return _OUTCOMES[status]


def pack() -> Exchange[bool]:
    """The server begins to pack, and answers at once; False if it cannot."""
    yield Send(b"P")
    status = yield from receive(1)
    if status not in (STATUS_OKAY, STATUS_ERROR):
        raise ProtocolError(f"server returned invalid status {status!r}")
    return status == STATUS_OKAY


def _receive_oids() -> Generator[Receive, Any, list[Oid]]:
    count = str_to_int4((yield from receive(4)))
    return split_oids((yield from receive(8 * count)))


# The server's side.


def serve(commit_bytes_max: int) -> Conversation[None]:
    """What a server says to one client, until the client ends it.

    commit_bytes_max: larger transactions are refused.
    ClientError when the client does what it must not.
    """
    handlers: dict[bytes, Callable[[], Conversation[None]]] = {
        b"V": _handle_version,
        b"N": partial(_handle_new_oids, 1),
        b"M": _handle_new_oids,
        b"L": _handle_load,
        b"B": _handle_bulk_load,
        b"S": _handle_sync,
        b"C": partial(_handle_commit, commit_bytes_max),
        b"P": _handle_pack,
        QUIT: _handle_quit,
    }
    while (command := (yield Receive(1, between_messages=True))) != BYE:
        handler = handlers.get(command)
        if handler is None:
            raise ClientError(f"there is no command {command!r}")
        yield from handler()


def _handle_version() -> Conversation[None]:
    version = str_to_int4((yield from receive(4)))
    yield Send(int4_to_str(VERSION))
    if version != VERSION:
        raise ClientError(f"it speaks version {version} of the protocol, not {VERSION}")


def _handle_new_oids(count: int | None = None) -> Conversation[None]:
    if count is None:
        (count,) = yield from receive(1)
    if count:
        yield Send(b"".join((yield from ask(NewOids(count)))))


def _handle_load() -> Conversation[None]:
    oid = Oid((yield from receive(8)))
    (loaded,) = yield from ask(Load((oid,)))
    yield Send(_encode_loaded(oid, loaded))


def _handle_bulk_load() -> Conversation[None]:
    count = str_to_int4((yield from receive(4)))
    if count > OIDS_MAX:
        raise ClientError(f"it asks for {count:,} objects at once, and {OIDS_MAX:,} are too many")
    oids = yield from receive(8 * count)
    start = 0
    while start < len(oids):
        wanted = split_oids(oids[start : start + 800])
        answers = yield from ask(Load(wanted))
        yield Send(b"".join(map(_encode_loaded, wanted, answers)))
        start += 8 * len(answers)


def _handle_sync() -> Conversation[None]:
    yield Send(_encode_oids((yield from ask(Sync()))))


def _handle_commit(bytes_max: int) -> Conversation[None]:
    yield Send(_encode_oids((yield from ask(Sync()))))
    size = str_to_int4((yield from receive(4)))
    if size == 0:
        return
    writes = None
    if size > bytes_max:
        yield from _skip(size)
    else:
        content = yield from receive(size)
        if size <= _COMPUTED_AT_ONCE_MAX_BYTES:
            writes = decode_transaction(content, bytes_max)
        else:
            writes = yield from ask(Compute(partial(decode_transaction, content, bytes_max)))
        del content  # it may be large, and the records are copies
    if writes is None:
        reason = f"more than {bytes_max:,}, also after decompression, are not accepted"
        yield from ask(Refuse(f"its transaction has {size:,} bytes, and {reason}"))
        outcome = CommitOutcome.REFUSED
    else:
        outcome = yield from ask(Commit(writes, size))
    yield Send(_STATUS_OF[outcome])


def _skip(size: int) -> Conversation[None]:
    while size:
        size -= len((yield from receive(min(size, _SKIPPED_AT_ONCE_BYTES))))


def _handle_pack() -> Conversation[None]:
    yield Send(STATUS_OKAY if (yield from ask(Pack())) else STATUS_ERROR)


def _handle_quit() -> Conversation[None]:
    yield from ask(Quit())


def _encode_oids(packed: bytes) -> bytes:
    return int4_to_str(len(packed) // 8) + packed


def _encode_loaded(oid: Oid, loaded: Loaded) -> bytes:
    if isinstance(loaded, LoadFailure):
        return _STATUS_OF[loaded]
    classic = record_to_classic(oid, loaded)
    return b"".join((STATUS_OKAY, int4_to_str(len(classic)), classic))
