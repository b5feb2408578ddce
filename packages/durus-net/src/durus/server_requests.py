"""What the conversation with a client asks of the server: values, answered by the hub.

A protocol yields them, `durus.server_hub` acts on them, and neither knows how the other works.
`Request[T]` is one whose answer is a T.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, TypeAlias, TypeVar

from durus.interfaces import Oid, Record
from durus.wire import Receive, Send

__all__ = [
    "OIDS_MAX",
    "ClientError",
    "Commit",
    "CommitOutcome",
    "Compute",
    "Conversation",
    "Load",
    "LoadFailure",
    "Loaded",
    "NewOids",
    "Pack",
    "Quit",
    "Refuse",
    "Request",
    "Sync",
    "ask",
]

T = TypeVar("T")

OIDS_MAX: Final = 1_000_000
"""No client may ask for more objects at once, or hold more oids that it has not used."""


class ClientError(Exception):
    """A client has done what it must not do; its connection is closed, nothing else happens."""


class LoadFailure(Enum):
    """Why there is no record to answer with."""

    MISSING = "there is no such object"
    CHANGED = "it was changed after what the client has seen"
    UNREADABLE = "it cannot be read, and the log says why"


class CommitOutcome(Enum):
    """What became of a transaction."""

    COMMITTED = "it is durable"
    CONFLICT = "another one came in between; nothing happened"
    REFUSED = "the storage cannot; nothing happened, and the log says why"


Loaded: TypeAlias = Record | LoadFailure


class Request(Generic[T]):
    """Asked by a conversation; the answer is a T."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class NewOids(Request[Sequence[Oid]]):
    """Oids for new objects, for this client alone."""

    count: int


@dataclass(frozen=True, slots=True)
class Load(Request[Sequence[Loaded]]):
    """The records of the first of these oids: one at least, then as many as fit into memory."""

    oids: Sequence[Oid]


@dataclass(frozen=True, slots=True)
class Sync(Request[bytes]):
    """The oids that others changed since the last time, 8 bytes each; the client's view moves."""


@dataclass(frozen=True, slots=True)
class Commit(Request[CommitOutcome]):
    """Store these records, if nobody has committed since the client's last `Sync`."""

    writes: Mapping[Oid, Record]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Pack(Request[bool]):
    """Begin to pack, unless that is under way; False: the storage cannot, the log says why."""


@dataclass(frozen=True, slots=True)
class Quit(Request[None]):
    """Stop the server."""


@dataclass(frozen=True, slots=True)
class Refuse(Request[None]):
    """Log why the client's transaction is refused without a look at it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Compute(Request[T]):
    """What may take long and touches nothing else: other clients shall not wait for it."""

    function: Callable[[], T]


Conversation: TypeAlias = Generator[Receive | Send | Request[Any], Any, T]
"""What a server says to one client."""


def ask(request: Request[T]) -> Generator[Request[T], Any, T]:
    """Yield the request, and return its answer with its type."""
    answer: T = yield request
    return answer
