"""The server of Durus 4.x's name: what programs import, and `python -m durus.storage_server`.

What it is made of, from the outside in: `durus.server_command` (options), `durus.asyncio_server`
(connections), `durus.server_stream` (bytes), `durus.protocol1` (messages), `durus.server_hub`
(the storage and what its clients have seen).
"""

import sys
import time

from durus.asyncio_server import COMMIT_BYTES_MAX, DEFAULT_GCBYTES, TIMEOUT, StorageServer
from durus.protocol1 import STATUS_ERROR, STATUS_INVALID, STATUS_KEYERROR, STATUS_OKAY
from durus.server_command import import_class, main, start_durus, stop_durus
from durus.server_requests import ClientError
from durus.socket_address import (
    DEFAULT_HOST,
    DEFAULT_PORT,
    HostPortAddress,
    InheritedSocket,
    SocketAddress,
    UnixAbstractAddress,
    UnixDomainSocketAddress,
)

__all__ = [
    "COMMIT_BYTES_MAX",
    "DEFAULT_GCBYTES",
    "DEFAULT_HOST",
    "DEFAULT_PORT",
    "STATUS_ERROR",
    "STATUS_INVALID",
    "STATUS_KEYERROR",
    "STATUS_OKAY",
    "TIMEOUT",
    "ClientError",
    "HostPortAddress",
    "InheritedSocket",
    "SocketAddress",
    "StorageServer",
    "UnixAbstractAddress",
    "UnixDomainSocketAddress",
    "import_class",
    "main",
    "start_durus",
    "stop_durus",
    "wait_for_server",
]


def wait_for_server(
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    maxtries: int = 300,
    sleeptime: float = 2,
    address: SocketAddress | tuple[str, int] | str | None = None,
) -> None:
    """Return when somebody listens on the address; look every `sleeptime` seconds.

    SystemExit, as in 4.3, when nobody does after `maxtries` times.
    """
    server_address = SocketAddress.new(address or (host, port))
    for _ in range(maxtries):
        connected = server_address.get_connected_socket()
        if connected is not None:
            connected.close()
            return
        time.sleep(sleeptime)
    raise SystemExit(f"Timeout waiting for address: {server_address}.")


if __name__ == "__main__":
    sys.exit(main())
