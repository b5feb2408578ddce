"""The command line of a server: `python -m durus.storage_server`, `durus serve`, `durus -s`.

The options are those of Durus 4.3.  A mistake of the user gives one line on stderr that names the
file or address and the reason, and an exit status other than 0.
"""

import argparse
import contextlib
import importlib
import re
import sys
import time
from collections.abc import Iterator
from logging import INFO
from typing import Any, Final, NoReturn, TextIO

from durus.asyncio_server import COMMIT_BYTES_MAX, DEFAULT_GCBYTES, StorageServer
from durus.classic import as_storage
from durus.classic_storage import Storage as ClassicStorage
from durus.error import CorruptionError, DurusError, ServerLostError, StorageError
from durus.interfaces import Storage
from durus.logger import direct_output, log, logger
from durus.protocol1 import QUIT
from durus.socket_address import DEFAULT_HOST, DEFAULT_PORT, SocketAddress

__all__ = ["import_class", "main", "start_durus", "stop_durus"]

_STORAGE_CLASS: Final = "durus.file_storage.FileStorage"
_STOP_PAUSE_S: Final = 0.1
_STOP_WAIT_MAX_S: Final = 10
_RADIX_OF_PREFIX: Final = {"0x": 16, "0b": 2}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help lists the options\n")


def _number(text: str) -> int:
    """A number as 4.3's options took it: 0x1F, 0b11, and with a leading 0 octal."""
    radix = _RADIX_OF_PREFIX.get(text[:2].lower(), 8 if text[:1] == "0" else 10)
    try:
        return int(text, radix)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from error


def _make_parser(prog: str) -> _Parser:
    parser = _Parser(
        prog=prog,
        description="Run a Durus server, or stop one.",
        epilog=f"Example: {prog} --file app.durus --port 2972",
    )
    add = parser.add_argument
    add("--file", help="the database; made if it is not there (default: a temporary file)")
    add("--port", type=_number, default=DEFAULT_PORT, help="port to listen on (%(default)s)")
    add("--host", default=DEFAULT_HOST, help="host to listen on (%(default)s)")
    add("--address", help="path of a unix socket to listen on instead; or @name, abstract")
    add("--owner", help="user that shall own the unix socket")
    add("--group", help="group that shall own the unix socket")
    add("--umask", type=_number, help="umask for the unix socket; octal with a leading 0")
    add(
        "--storage-class",
        metavar="NAME",
        default=_STORAGE_CLASS,
        help="class of the storage (%(default)s, which knows all kinds of files)",
    )
    add(
        "--gcbytes",
        metavar="BYTES",
        type=_number,
        default=DEFAULT_GCBYTES,
        help="pack whenever so many bytes were committed; 0: never (%(default)s)",
    )
    add(
        "--max-commit-bytes",
        metavar="BYTES",
        type=_number,
        default=COMMIT_BYTES_MAX,
        help="refuse transactions that are larger (%(default)s)",
    )
    add("--logfile", metavar="FILE", help="append the log to a file (default: stderr)")
    add(
        "--logginglevel",
        metavar="LEVEL",
        type=_number,
        default=INFO,
        help="lower numbers log more (%(default)s)",
    )
    add("--repair", action="store_true", help="cut off a damaged end of the file, if it has one")
    add("--readonly", action="store_true", help="serve the file read-only")
    add("--stop", action="store_true", help="stop the server at this address")
    return parser


def main(argv: list[str] | None = None, *, prog: str = "python -m durus.storage_server") -> int:
    """Run a server until it is stopped, or stop one; returns the exit status.

    argv: the arguments without the program's name; None: those of the process.
    """
    options = _make_parser(prog).parse_args(argv)
    try:
        return _run(options)
    except (DurusError, OSError, ValueError, OverflowError) as error:  # overflow: of the port
        message = re.sub(r"\b(readonly|repair)=True", r"--\1", " ".join(str(error).split()))
        print(f"{prog}: {message}", file=sys.stderr)
        return 1 if isinstance(error, CorruptionError) else 2
    except KeyboardInterrupt:  # before the server heeds it
        return 130


def _run(options: argparse.Namespace) -> int:
    if options.address is None:
        address = SocketAddress.new((options.host, options.port))
    else:
        address = SocketAddress.new(options.address, options.owner, options.group, options.umask)
    if options.stop:
        if stop_durus(address):
            return 0
        raise ServerLostError(f"{address}: no server is running there")
    storage = _open_storage(options)
    with contextlib.closing(as_storage(storage)):
        start_durus(
            options.logfile,
            options.logginglevel,
            address,
            storage,
            options.gcbytes,
            max_commit_bytes=options.max_commit_bytes,
        )
    return 0


def _open_storage(options: argparse.Namespace) -> Storage | ClassicStorage:
    name: str = options.storage_class
    try:
        cls = import_class(name)
    except (ImportError, AttributeError) as error:
        remedy = "python -m pip install durus-storage" if name == _STORAGE_CLASS else error
        raise StorageError(f"the storage class {name} is not installed: {remedy}") from error
    # Only what is asked for, since not every class knows both.
    asked = {flag: True for flag in ("readonly", "repair") if getattr(options, flag)}
    try:
        storage: Storage | ClassicStorage = cls(options.file, **asked)
        as_storage(storage)
    except TypeError as error:
        raise StorageError(f"{name} cannot serve {options.file}: {error}") from error
    return storage


def import_class(name: str) -> Any:
    """The class with this name, such as durus.file_storage.FileStorage; its module is imported.

    ImportError or AttributeError when there is none.
    """
    module, _, class_name = name.rpartition(".")
    if not module:
        raise ImportError(f"{name!r} is not of the form module.Class")
    return getattr(importlib.import_module(module), class_name)


def start_durus(
    logfile: str | None,
    logginglevel: int,
    address: SocketAddress | tuple[str, int] | str,
    storage: Storage | ClassicStorage,
    gcbytes: float,
    *,
    max_commit_bytes: int = COMMIT_BYTES_MAX,
) -> None:
    """Serve the storage until the server is stopped, and close it.

    logfile: where the log goes, and what is printed; None: stderr.
    Raises StorageOpenError when it cannot listen on the address.
    """
    server = StorageServer(
        storage, address=address, gcbytes=gcbytes, max_commit_bytes=max_commit_bytes
    )
    with contextlib.ExitStack() as stack:
        file = sys.stderr if logfile is None else stack.enter_context(open(logfile, "a"))
        server.listen()
        # From here on; the errors above are for the user's terminal.
        stack.enter_context(_logging_to(file, logginglevel))
        if (get_filename := getattr(storage, "get_filename", None)) is not None:
            log(INFO, "Storage file=%s address=%s", get_filename(), server.address)
        server.serve()


def stop_durus(address: SocketAddress | tuple[str, int] | str) -> bool:
    """Stop the server at this address, and wait until it has closed its storage.

    False when there is none.  StorageError when somebody still answers after `_STOP_WAIT_MAX_S`.
    """
    socket_address = SocketAddress.new(address)
    connected = socket_address.get_connected_socket()
    if connected is None:
        log(INFO, "Durus server %s doesn't seem to be running.", socket_address)
        return False
    until = time.monotonic() + _STOP_WAIT_MAX_S
    message = QUIT
    while connected is not None:
        with connected, contextlib.suppress(OSError):
            connected.sendall(message)
            connected.settimeout(max(until - time.monotonic(), _STOP_PAUSE_S))
            connected.recv(1)  # the end: ours is closed after the storage
        if time.monotonic() >= until:
            raise StorageError(
                f"{socket_address}: somebody still answers there, {_STOP_WAIT_MAX_S} s after being "
                "told to stop: it is no Durus server, has not come to its end yet, or was started "
                "again (by systemd, if that holds the socket)"
            )
        time.sleep(_STOP_PAUSE_S)
        message = b""
        connected = socket_address.get_connected_socket()
    return True


@contextlib.contextmanager
def _logging_to(file: TextIO, level: int) -> Iterator[None]:
    """As long as this lasts, everything that is logged or printed goes to the file."""
    streams, handlers = (sys.stdout, sys.stderr), logger.handlers[:]
    level_before, propagate_before = logger.level, logger.propagate
    try:
        direct_output(file)
        logger.setLevel(level)
        yield
    finally:
        sys.stdout, sys.stderr = streams
        logger.handlers[:] = handlers
        logger.setLevel(level_before)
        logger.propagate = propagate_before
