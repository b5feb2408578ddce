"""Conversations over a stream of bytes, without the stream.

A protocol is written as generators that yield what they want next: `Receive` some bytes, `Send`
some.  Whoever drives them has the socket: `run_blocking` here for clients, `converse` in
`durus.server_stream` for servers, a few lines in tests.  So a protocol is one text that is read
and tested apart from sockets, threads and time-outs, and both sides of every protocol share the
drivers.
"""

from collections.abc import Generator
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from durus.utils import Receiver, Sender, read, write

__all__ = ["Exchange", "Receive", "Send", "Socket", "receive", "run_blocking"]

T = TypeVar("T")


class Receive(NamedTuple):
    """The next `size` bytes, exactly; they are sent into the generator."""

    size: int
    between_messages: bool = False
    """The peer may take its time, and may end the conversation here."""


class Send(NamedTuple):
    """These bytes go to the peer."""

    content: bytes


Exchange: TypeAlias = Generator[Receive | Send, bytes, T]
"""A question of a client and its answer; an exception means that the stream is out of step."""


class Socket(Receiver, Sender, Protocol):
    """What `run_blocking` needs of a socket."""


def receive(size: int) -> Generator[Receive, Any, bytes]:
    """Receive `size` bytes of a message."""
    content: bytes = yield Receive(size)
    return content


def run_blocking(exchange: Exchange[T], sock: Socket) -> T:
    """Have the exchange over a socket.

    OSError when the socket fails, `ShortRead` among them, and what the exchange raises.
    """
    try:
        step = next(exchange)
        while True:
            if isinstance(step, Send):
                write(sock, step.content)
                step = exchange.send(b"")
            else:
                step = exchange.send(read(sock, step.size))
    except StopIteration as end:
        result: T = end.value
        return result
