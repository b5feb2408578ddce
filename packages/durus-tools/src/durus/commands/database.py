"""The database that a command works on: a file that is there, or what a server serves.

`client` and `pack` take either.  Invariant: no command makes a file through here.
"""

import errno
import ipaddress
import os
import stat
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from durus.classic_storage import Storage as ClassicStorage
from durus.client_storage import ClientStorage
from durus.commands.manner import CommandError, about, note
from durus.error import StorageOpenError
from durus.file_format import recognise
from durus.file_storage import FileStorage
from durus.formats import STORAGE_CLASSES, find_format
from durus.interfaces import Storage
from durus.socket_address import (
    DEFAULT_HOST,
    DEFAULT_PORT,
    HostPortAddress,
    SocketAddress,
    UnixDomainSocketAddress,
)
from durus.storage_server import import_class, wait_for_server

__all__ = [
    "connect",
    "get_storage",
    "get_storage_class",
    "is_local",
    "make_address",
    "open_existing",
    "server_options",
]

F = TypeVar("F", bound=Callable[..., Any])

_PAUSE_S: Final = 0.2
_TRIES: Final = 3000  # ten minutes, as in 4.3


def server_options(command: F) -> F:
    """The options that name a server: --host, --port, --address."""
    for option in (
        click.option(
            "--address",
            metavar="PATH",
            help="Unix domain socket of the server, instead of host and port; '@name' is an "
            "abstract one.",
        ),
        click.option(
            "--port",
            type=click.IntRange(0, 65535),
            default=DEFAULT_PORT,
            show_default=True,
            help="Port of the server.",
        ),
        click.option("--host", default=DEFAULT_HOST, show_default=True, help="Host of the server."),
    ):
        command = option(command)
    return command


def make_address(host: str, port: int, address: str | None) -> SocketAddress:
    """The address of the server that the options name."""
    return SocketAddress.new((host, port) if address is None else address)


def open_existing(
    path: str, *, storage_class: str | None = None, readonly: bool = False, repair: bool = False
) -> Storage | ClassicStorage:
    """Open the database in a file.

    storage_class: the full name of a classic storage class, for files of a format of its own.
    Raises StorageOpenError if there is no such file, other errors of its kind, CommandError.
    """
    if storage_class is None:
        return find_format(path).open(path, readonly=readonly, create=False, repair=repair)
    if not os.path.exists(path):  # the class may know no create=False
        raise StorageOpenError(path, "there is no such file", errno.ENOENT)
    try:
        make_storage = import_class(storage_class)
    except (ImportError, AttributeError, ValueError) as error:
        raise CommandError(f"--storage-class {storage_class}: {error}") from error
    try:
        storage: ClassicStorage = make_storage(path, readonly=readonly, repair=repair)
    except TypeError as error:
        raise CommandError(f"--storage-class {storage_class}: {error}") from error
    return storage


def get_storage_class(file: str) -> Callable[..., ClassicStorage]:
    """The class for the database in this file, or for one that is yet to be made, as in 4.3.

    ValueError when the file is no database.
    """
    if not os.path.exists(file):
        return FileStorage
    name = recognise(file)
    if name is None:
        raise ValueError(f"{file} is no Durus database")
    return STORAGE_CLASSES[name]


def get_storage(
    file: str | None, storage_class: str | None = None, **kwargs: Any
) -> ClassicStorage:
    """Open the database in a file, of a class given by its name or found by content, as in 4.3.

    For programs: the file is made if it is not there; None is a temporary one.
    """
    if storage_class is not None:
        make_storage: Callable[..., ClassicStorage] = import_class(storage_class)
    else:
        make_storage = FileStorage if file is None else get_storage_class(file)
    return make_storage(file, **kwargs)


def connect(address: SocketAddress, *, readonly: bool = False) -> ClientStorage:
    """Connect to a server, as soon as there is one."""
    name = str(address)
    with about(name):
        if _is_something_else(address):
            raise CommandError(f"{address}: this is no socket of a server")
        probe = address.get_connected_socket()
        if probe is None:
            note(f"waiting for the server at {name}; Ctrl-C ends this")
            try:
                wait_for_server(address=address, maxtries=_TRIES, sleeptime=_PAUSE_S)
            except SystemExit as error:
                raise CommandError(f"{name}: there is still no server") from error
        else:
            probe.close()
        return ClientStorage(address=address, readonly=readonly)


def _is_something_else(address: SocketAddress) -> bool:
    """Whether waiting is vain: at the path of a socket there is, say, a database."""
    if not isinstance(address, UnixDomainSocketAddress) or not os.path.exists(address.filename):
        return False
    return not stat.S_ISSOCK(os.stat(address.filename).st_mode)


def is_local(address: SocketAddress) -> bool:
    """Whether only this machine can have the server at this address."""
    if not isinstance(address, HostPortAddress):
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return address.host == "localhost"
