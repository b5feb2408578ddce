"""The stream of one client, without a server: how bytes come in, and go out no faster than read."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durus.server_stream import ServerStream

T = TypeVar("T")

WAIT_MAX_S = 30


@asynccontextmanager
async def connected(
    timeout_s: float = WAIT_MAX_S,
) -> AsyncIterator[tuple[ServerStream, socket.socket]]:
    """A stream, and the client's end of it."""
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    _, stream = await loop.connect_accepted_socket(lambda: ServerStream(timeout_s), ours)
    theirs.setblocking(False)
    with theirs:
        yield stream, theirs
        stream.transport.abort()
        await stream.close()


def run(test: Callable[[ServerStream, socket.socket], Coroutine[None, None, T]]) -> T:
    async def main() -> T:
        async with connected() as (stream, client):
            return await test(stream, client)

    return asyncio.run(main())


@settings(max_examples=30)
@given(st.lists(st.binary(min_size=1, max_size=20)), st.data())
def test_however_the_bytes_come_they_are_received_as_asked_for(
    pieces: list[bytes], data: st.DataObject
) -> None:
    content = b"".join(pieces)
    sizes: list[int] = []
    while sum(sizes) < len(content):
        sizes.append(data.draw(st.integers(0, len(content) - sum(sizes))))

    async def test(stream: ServerStream, client: socket.socket) -> bytes:
        async def receive_all() -> bytes:
            return b"".join([await stream.receive(size) for size in sizes])

        receiving = asyncio.ensure_future(receive_all())
        for piece in pieces:
            stream.data_received(piece)
            await asyncio.sleep(0)
        return await receiving

    assert run(test) == content


def test_a_client_that_nobody_listens_to_cannot_fill_the_memory() -> None:
    async def test(stream: ServerStream, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        sending = asyncio.ensure_future(loop.sock_sendall(client, bytes(50 << 20)))
        received = await stream.receive(1 << 20)
        assert received == bytes(1 << 20)
        for _ in range(1000):  # more turns than all of it would need
            await asyncio.sleep(0)
        assert not sending.done()
        for _ in range(49):
            await stream.receive(1 << 20)
        await sending

    run(test)


def test_a_client_that_reads_slowly_is_waited_for() -> None:
    content = bytes(range(256)) * 20_000

    async def test(stream: ServerStream, client: socket.socket) -> bytes:
        loop = asyncio.get_running_loop()
        sending = asyncio.ensure_future(stream.send(content))
        received = b""
        while len(received) < len(content):
            received += await loop.sock_recv(client, 100_000)
            assert len(content) - len(received) <= 1 << 20 or not sending.done()
        await sending
        return received

    assert run(test) == content


def test_a_client_that_has_gone_is_sent_nothing_more() -> None:
    async def test(stream: ServerStream, client: socket.socket) -> None:
        client.close()
        with pytest.raises(ConnectionError, match="ended before it had its answer"):
            await send_without_end(stream)

    async def send_without_end(stream: ServerStream) -> None:
        while True:
            await stream.send(bytes(1000))
            await asyncio.sleep(0)

    run(test)


def test_a_stream_that_is_stopped_receives_nothing_more() -> None:
    async def test(stream: ServerStream, client: socket.socket) -> None:
        receiving = asyncio.ensure_future(stream.receive(1, between_messages=True))
        await asyncio.sleep(0)
        stream.stop()
        with pytest.raises(EOFError, match="the server stops"):
            await receiving
        stream.data_received(b"more")
        with pytest.raises(EOFError):
            await stream.receive(1)
        await stream.send(b"last words")
        await stream.close()
        client.setblocking(True)
        assert client.recv(100) == b"last words"
        assert client.recv(100) == b""

    run(test)


def test_a_client_with_many_messages_lets_others_have_their_turn() -> None:
    async def test(stream: ServerStream, client: socket.socket) -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            for _ in range(10):
                turns += 1
                await asyncio.sleep(0)

        stream.data_received(b"x" * 100)
        others = asyncio.ensure_future(other())
        for _ in range(20):
            await stream.receive(1, between_messages=True)
        assert turns == 10
        await others

    run(test)
