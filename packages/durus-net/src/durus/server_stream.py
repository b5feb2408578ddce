"""One client's connection, as a server sees it: bytes in and out, for `durus.storage_server`.

A client that is slow, stuck or gone costs bounded memory and nobody else's time.  The invariants:
when there are `_READ_AHEAD_MAX_BYTES` beyond what the task asks for, nothing more is read; when
as much waits to be sent, nothing is added; inside a message something must move every `timeout_s`
seconds.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from durus.server_requests import Conversation, Request
from durus.wire import Receive, Send

__all__ = ["ServerStream", "converse"]

T = TypeVar("T")

_READ_AHEAD_MAX_BYTES: Final = 1 << 16
_SENT_AT_ONCE_MAX_BYTES: Final = 1 << 16
_LAST_WAIT_S: Final = 1
"""A server that stops waits so long for those that do not read."""


class ServerStream(asyncio.Protocol):
    """The stream of a connection that was accepted, for one task."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._wanted = 0
        self._waiter: asyncio.Future[bool] | None = None
        self._is_reading = self._can_send = True
        self._has_ended = self._is_lost = self._is_stopping = False
        self._failure: Exception | None = None

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._is_reading and len(self._buffer) >= self._wanted + _READ_AHEAD_MAX_BYTES:
            self.transport.pause_reading()
            self._is_reading = False
        self._wake()

    def eof_received(self) -> bool:
        self._has_ended = True
        self._wake()
        return True  # keep it open: what was asked for before is still answered

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_ended = self._is_lost = True
        self._failure = exc
        self._wake()

    def pause_writing(self) -> None:
        self._can_send = False

    def resume_writing(self) -> None:
        self._can_send = True
        self._wake()

    # What the task calls.

    async def receive(self, size: int, *, between_messages: bool = False) -> bytes:
        """Exactly `size` bytes.

        EOFError when the stream ends between messages or the server stops, ConnectionError when
        it ends inside of one, TimeoutError when nothing comes.
        """
        buffer = self._buffer
        if between_messages and buffer:
            # It has sent more than one message: the others' turn before the next.
            await asyncio.sleep(0)
        while len(buffer) < size or self._is_stopping:
            if self._is_stopping:
                raise EOFError("the server stops")
            if self._has_ended:
                if between_messages and not buffer:
                    raise EOFError("it has gone")
                raise ConnectionError(self._describe_end("in the middle of a message"))
            self._wanted = size
            self._resume_reading()
            if not await self._wait(None if between_messages else self._timeout_s):
                raise TimeoutError(f"nothing came for {self._timeout_s} s inside a message")
        self._wanted = 0
        with memoryview(buffer) as view:
            content = bytes(view[:size])
        del buffer[:size]
        return content

    async def send(self, content: bytes) -> None:
        """Send all of it; part of it may still be on its way when this returns.

        ConnectionError when the client has gone, TimeoutError when it reads nothing, EOFError
        when it does not and the server stops.
        """
        for start in range(0, len(content), _SENT_AT_ONCE_MAX_BYTES):
            if self._is_lost:
                raise ConnectionError(self._describe_end("before it had its answer"))
            self.transport.write(content[start : start + _SENT_AT_ONCE_MAX_BYTES])
            while not self._can_send and not self._is_lost:
                if self._is_stopping:
                    raise EOFError("the server stops")
                left = self.transport.get_write_buffer_size()
                moved = await self._wait(self._timeout_s)
                if not moved and self.transport.get_write_buffer_size() >= left:
                    raise TimeoutError(f"it has read nothing for {self._timeout_s} s")

    def stop(self) -> None:
        """Let the task end soon: it receives nothing more, and does not wait to send."""
        self._is_stopping = True
        self._wake()

    async def close(self) -> None:
        """Close the connection; the client gets what was sent, unless it does not read."""
        self.transport.close()
        while not self._is_lost:
            if not await self._wait(_LAST_WAIT_S if self._is_stopping else self._timeout_s):
                self.transport.abort()

    def _resume_reading(self) -> None:
        if not self._is_reading:
            self.transport.resume_reading()
            self._is_reading = True

    def _wake(self) -> None:
        if self._waiter is not None:
            _settle(self._waiter, True)

    async def _wait(self, timeout_s: float | None) -> bool:
        """Until something happens; False when nothing does."""
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self._waiter = waiter
        if timeout_s is None:
            return await waiter
        timer = self._loop.call_later(timeout_s, _settle, waiter, False)
        try:
            return await waiter
        finally:
            timer.cancel()

    def _describe_end(self, when: str) -> str:
        reason = "" if self._failure is None else f": {self._failure}"
        return f"the connection ended {when}{reason}"


def _settle(waiter: asyncio.Future[bool], result: bool) -> None:
    if not waiter.done():
        waiter.set_result(result)


async def converse(
    conversation: Conversation[T],
    stream: ServerStream,
    answer: Callable[[Request[Any]], Awaitable[object]],
) -> T:
    """Drive a conversation: `answer` is asked for what is neither sent nor received."""
    try:
        step = next(conversation)
        while True:
            answered: object = None
            if isinstance(step, Receive):
                answered = await stream.receive(step.size, between_messages=step.between_messages)
            elif isinstance(step, Send):
                await stream.send(step.content)
            else:
                answered = await answer(step)
            step = conversation.send(answered)
    except StopIteration as end:
        result: T = end.value
        return result
