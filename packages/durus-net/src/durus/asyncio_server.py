"""`StorageServer`: listens, gives each client a task of its own, and comes to an end in order.

Programs import it from `durus.storage_server`.  The invariants: whatever a client does or suffers
ends its own connection and nothing else; when `serve()` returns, every commit that was answered is
durable, the storage is closed, and the address is free.
"""

import asyncio
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from logging import DEBUG, ERROR, INFO, WARNING
from typing import Any, Final

from durus.classic import as_storage
from durus.classic_storage import Storage as ClassicStorage
from durus.error import DurusError, StorageOpenError
from durus.interfaces import Storage
from durus.logger import log, logger
from durus.protocol1 import VERSION, serve
from durus.server_hub import Hub
from durus.server_requests import ClientError, Quit, Refuse, Request
from durus.server_stream import ServerStream, converse
from durus.socket_address import DEFAULT_HOST, DEFAULT_PORT, InheritedSocket, SocketAddress
from durus.systemd_socket import get_systemd_socket
from durus.utils import int4_to_str

if os.name != "nt":
    import resource

__all__ = ["COMMIT_BYTES_MAX", "DEFAULT_GCBYTES", "TIMEOUT", "StorageServer"]

TIMEOUT: Final = 10
"""A client that moves nothing for so many seconds inside a message is given up."""
DEFAULT_GCBYTES: Final = 0
COMMIT_BYTES_MAX: Final = 256 << 20
"""The default for the largest transaction that a client may send."""

_ACCEPT_PAUSE_S: Final = 1
_OPEN_FILES_RESERVED: Final = 64
"""Not for clients, but for what commits and packs open; at most half of what there is."""


class StorageServer:
    """Serves a storage to clients of Durus 4.x and 5, by protocol 1.

    Protocol 1 knows no authentication: whoever can connect can read and write everything.
    """

    protocol = int4_to_str(VERSION)

    def __init__(
        self,
        storage: Storage | ClassicStorage,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        address: SocketAddress | tuple[str, int] | str | None = None,
        gcbytes: float = DEFAULT_GCBYTES,
        *,
        max_commit_bytes: int = COMMIT_BYTES_MAX,
        timeout_s: float = TIMEOUT,
    ) -> None:
        """Nothing happens before `listen()` or `serve()`.

        storage: of either kind; it is closed when `serve()` returns.
        address: instead of host and port; what `SocketAddress.new` takes.
        gcbytes: pack whenever so many bytes were committed; 0: never.
        """
        if not isinstance(gcbytes, int | float):
            raise TypeError(f"gcbytes is a number of bytes, not {gcbytes!r}")
        self.storage = storage
        self.address = SocketAddress.new(address or (host, port))
        self.gcbytes = gcbytes
        self.max_commit_bytes = max_commit_bytes
        self.timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._streams: set[ServerStream] = set()
        """Not closed yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients_count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_asked = False

    def listen(self) -> SocketAddress:
        """Open the socket, so that clients can connect, and wait to be served; the address.

        The socket that systemd has opened is used if there is one.  StorageOpenError when the
        operating system refuses.
        """
        if self._socket is None:
            self._socket = get_systemd_socket()
            if self._socket is not None:
                self.address = InheritedSocket(self._socket)
            else:
                try:
                    self._socket = self.address.get_listening_socket()
                except OSError as error:
                    reason = f"cannot listen there: {error.strerror or error}"
                    raise StorageOpenError(str(self.address), reason, error.errno) from error
        return self.address

    def serve(self) -> None:
        """Serve clients until one sends `Q`, or `stop()` is called, or SIGTERM or SIGINT comes.

        The signals are heeded when this is called in the main thread.
        """
        storage = as_storage(self.storage)
        self.listen()
        assert self._socket is not None
        try:
            # One that can watch the listening socket; it is the usual one but on Windows.
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self._serve(storage, self._socket))
        finally:
            self._stop_asked = False
            # Not before the storage is closed: when an address is free, so is the database.
            listening, self._socket = self._socket, None
            self.address.close(listening)

    def stop(self) -> None:
        """Let `serve()` return soon; may be called from any thread, and before it."""
        self._stop_asked = True
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it has just come to its end
                loop.call_soon_threadsafe(self._stopping.set)

    @contextmanager
    def running(self) -> Iterator[SocketAddress]:
        """Serve in a thread, for as long as the context lasts; its value is the address.

        What `serve()` raises is raised at the end.
        """
        address = self.listen()
        with ThreadPoolExecutor(1, "durus-server") as threads:
            serving = threads.submit(self.serve)
            try:
                yield address
            finally:
                self.stop()
                try:
                    serving.result()
                finally:
                    self._stop_asked = False  # it may have ended before it was asked to

    async def _serve(self, storage: Storage, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_failure)
        self._stopping = asyncio.Event()
        self._hub = Hub(storage, self.gcbytes)
        with _signals_caught(loop, self._stop_by_signal):
            listening.setblocking(False)
            self._accept_from(listening)
            self._loop = loop
            if self._stop_asked:
                self._stopping.set()
            _warn_of_strangers(listening, self.address)
            log(INFO, "Ready on %s", self.address)
            try:
                await self._stopping.wait()
            finally:
                self._loop = None
                loop.remove_reader(listening)
                await self._end()

    async def _end(self) -> None:
        for stream in self._streams:
            stream.stop()
        await asyncio.gather(*self._tasks)
        try:
            await self._hub.close()
        finally:
            await asyncio.gather(*(stream.close() for stream in self._streams))

    # asyncio.Server is not used: one that is closed loses connections that it has just accepted.

    def _accept_from(self, listening: socket.socket) -> None:
        if not self._stopping.is_set():
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection, peer = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # too many open files
            log(ERROR, "No connection can be accepted for now: %s", error.strerror or error)
            loop.remove_reader(listening)
            loop.call_later(_ACCEPT_PAUSE_S, self._accept_from, listening)
            return
        self._clients_count += 1
        name = _name_of_client(self._clients_count, peer)
        if _is_reserved(connection.fileno()):
            connection.close()
            log(
                ERROR,
                "%s was refused: too many files are open, and the last ones are kept for the "
                "database; raise the limit of open files if so many clients shall connect",
                name,
            )
            return
        task = loop.create_task(self._serve_client(connection, name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_client(self, connection: socket.socket, name: str) -> None:
        try:
            _, stream = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: ServerStream(self.timeout_s), connection
            )
        except OSError as error:
            log(INFO, "%s: %s", name, error)
            connection.close()
            return
        self._streams.add(stream)
        if self._stopping.is_set():
            stream.stop()
        try:
            self.address.set_connection_options(connection)
            await self._talk(stream, name)
        except EOFError as end:
            log(DEBUG, "%s: %s", name, end)
        except ClientError as error:
            log(WARNING, "%s: %s; its connection is closed", name, error)
        except (ConnectionError, TimeoutError) as error:
            log(INFO, "%s: %s; its connection is closed", name, error)
            stream.transport.abort()  # nobody reads what may still wait to be sent
        except (DurusError, OSError) as error:
            log(ERROR, "%s: %s; its connection is closed", name, error)
        except Exception:
            logger.exception("%s: a failure of the server; its connection is closed", name)
        if not self._stopping.is_set():  # else `_end` does it, when the storage is closed
            await stream.close()
            self._streams.discard(stream)

    async def _talk(self, stream: ServerStream, name: str) -> None:
        hub = self._hub
        client = await hub.join()

        async def answer(request: Request[Any]) -> object:
            if isinstance(request, Quit):
                log(INFO, "Quit")
                self._stopping.set()
                return None
            if isinstance(request, Refuse):
                log(WARNING, "%s: %s", name, request.reason)
                return None
            return await hub.answer(client, request)

        try:
            await converse(serve(self.max_commit_bytes), stream, answer)
        finally:
            hub.leave(client)

    def _stop_by_signal(self, number: signal.Signals) -> None:
        log(INFO, "Stopped by %s", number.name)
        self._stopping.set()


@contextmanager
def _signals_caught(
    loop: asyncio.AbstractEventLoop, handle: Callable[[signal.Signals], None]
) -> Iterator[None]:
    """In the main thread, have SIGTERM and SIGINT call `handle`."""
    if threading.current_thread() is not threading.main_thread() or os.name == "nt":
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        loop.add_signal_handler(number, handle, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            if handler is not None:  # None: it was not set by Python
                signal.signal(number, handler)


def _log_failure(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log(ERROR, "%s: %s", context["message"], context.get("exception"))


def _is_reserved(descriptor: int) -> bool:
    """Whether so many files are open that this one, the lowest descriptor, is not for a client."""
    if os.name == "nt":
        return False
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserved = min(_OPEN_FILES_RESERVED, limit // 2)
    return limit != resource.RLIM_INFINITY and descriptor >= limit - reserved


def _name_of_client(number: int, peer: object) -> str:
    if isinstance(peer, tuple):
        return f"client {number} ({peer[0]} {peer[1]})"
    return f"client {number}"


def _warn_of_strangers(listening: socket.socket, address: SocketAddress) -> None:
    if listening.family not in (socket.AF_INET, socket.AF_INET6):
        return
    host = listening.getsockname()[0].partition("%")[0]
    if not ipaddress.ip_address(host).is_loopback:
        log(
            WARNING,
            "%s can be reached by other machines, and protocol 1 has no authentication: whoever "
            "can connect can read and change everything, and stop the server",
            address,
        )
