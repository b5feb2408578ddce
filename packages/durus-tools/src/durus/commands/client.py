"""`durus client`: a Python console with a connection, on a file or to a server.

Invariant: what is not a terminal gets no prompts and no escapes, so that programs can drive it.
"""

import atexit
import contextlib
import os
import rlcompleter
import signal
import sys
from code import InteractiveConsole
from collections.abc import Sequence
from dataclasses import dataclass
from pprint import pprint
from signal import default_int_handler
from types import FrameType, ModuleType
from typing import Any, Final, TextIO

import click

from durus.classic_storage import Storage as ClassicStorage
from durus.commands.database import connect, is_local, make_address, open_existing, server_options
from durus.commands.manner import Command, CommandError, about, with_options
from durus.connection import Connection
from durus.error import DurusError
from durus.interfaces import Storage
from durus.socket_address import SocketAddress
from durus.utils import int8_to_str, str_to_int8

__all__ = ["client", "configure_readline", "interactive_client"]

_HISTORY_PATH: Final = "~/.durushistory"
_HISTORY_LINES_MAX: Final = 10_000

_HELP: Final = """\
    connection -> the Connection
    root       -> the root instance"""


@click.command(
    cls=Command,
    short_help="Open a Python console on a database.",
    examples=[
        "durus client --file app.durus --readonly",
        "durus client --host db.example.org --allow app",
        "echo 'print(len(root))' | durus client --file app.durus",
    ],
)
@click.option("--file", metavar="FILE", help="A database file, instead of a server.")
@server_options
@click.option(
    "--storage-class",
    metavar="NAME",
    help="Storage class for the file, such as durus.file_storage.FileStorage.",
)
@click.option(
    "--cache-size",
    "--cache_size",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="Number of objects that the cache aims at.",
)
@click.option("--repair", is_flag=True, help="Cut off a damaged end of the file, if it has one.")
@click.option("--readonly", is_flag=True, help="Refuse to commit; a file is open for others too.")
@click.option(
    "--allow",
    metavar="NAME",
    multiple=True,
    help="A package, module or class that records may use; may be given several times.",
)
@click.option(
    "--startup",
    metavar="FILE",
    envvar="DURUSSTARTUP",
    help="Python file that is executed first.  [default: DURUSSTARTUP in the environment]",
)
def client(
    file: str | None,
    host: str,
    port: int,
    address: str | None,
    storage_class: str | None,
    cache_size: int,
    repair: bool,
    readonly: bool,
    allow: tuple[str, ...],
    startup: str | None,
) -> None:
    """Explore and change a database in a Python console.

    The console has connection, root, storage, get, pp, int8_to_str, str_to_int8, sys and os.
    Changes are stored by connection.commit(), and given up by connection.abort().
    """
    interactive_client(
        file,
        make_address(host, port, address),
        cache_size,
        readonly,
        repair,
        startup,
        storage_class,
        allow=allow,
    )


def interactive_client(
    file: str | None,
    address: SocketAddress | tuple[str, int] | str,
    cache_size: int,
    readonly: bool,
    repair: bool,
    startup: str | None,
    storage_class: str | None = None,
    *,
    allow: Sequence[str] = (),
) -> None:
    """Open the file, or else connect to the server, and run a console until it ends.

    Records may import the modules of their classes if they are the operator's own: those of a
    file, and of a server on this machine.
    """
    program = _read_startup(startup) if startup else None
    server = SocketAddress.new(address) if file is None else None
    description = str(file if server is None else server)
    with contextlib.ExitStack() as stack:
        with about(description):
            storage = (
                open_existing(
                    description, storage_class=storage_class, readonly=readonly, repair=repair
                )
                if server is None
                else connect(server, readonly=readonly)
            )
            stack.callback(storage.close)
            connection = _open_connection(
                storage,
                cache_size=cache_size,
                allow=allow,
                import_classes=server is None or is_local(server),
            )
            stack.callback(connection.close)
        _run_console(_make_namespace(connection), f"Durus {description}\n{_HELP}", program)


def _open_connection(
    storage: Storage | ClassicStorage,
    *,
    cache_size: int,
    allow: Sequence[str],
    import_classes: bool,
) -> Connection[Any]:
    try:
        return Connection(storage, cache_size, allow=allow, import_classes=import_classes)
    except ValueError as error:
        if isinstance(error, DurusError):
            raise
        raise CommandError(with_options(str(error))) from error  # what must not be allowed


def _make_namespace(connection: Connection[Any]) -> dict[str, Any]:
    """The namespace of the console: that of the module `__console__`, as in 4.3."""
    module = sys.modules["__console__"] = ModuleType("__console__")
    vars(module).update(
        connection=connection,
        root=connection.get_root(),
        storage=connection.get_storage(),
        get=connection.get,
        sys=sys,
        os=os,
        int8_to_str=int8_to_str,
        str_to_int8=str_to_int8,
        pp=pprint,
    )
    return vars(module)


# The console


class _Interrupted(SystemExit):
    """Ctrl-C where there is no terminal; a console lets nothing else through."""


class _Console(InteractiveConsole):
    """A console that reads lines, without prompts, when stdin is no terminal."""

    _at_end = False

    def raw_input(self, prompt: str = "") -> str:
        """The next line; EOFError when there is none."""
        if _is_terminal(sys.stdin):
            return super().raw_input(prompt)
        line = "" if sys.stdin is None else sys.stdin.readline()
        if line:
            return line.removesuffix("\n")
        if self.buffer and not self._at_end:
            self._at_end = True
            return ""  # ends the block that the last lines are in
        raise EOFError


def _run_console(namespace: dict[str, Any], banner: str, startup: "_Startup | None") -> None:
    console = _Console(namespace)
    if _is_terminal(sys.stdin) and _is_terminal(sys.stdout):
        configure_readline(namespace, os.path.expanduser(_HISTORY_PATH))
    if not _is_terminal(sys.stdin) and signal.getsignal(signal.SIGINT) is default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        if startup is not None:
            startup.run(console)
        console.interact(banner, exitmsg="")
    except _Interrupted:
        raise KeyboardInterrupt from None


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    raise _Interrupted


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def configure_readline(namespace: dict[str, Any], history_path: str) -> None:
    """Complete names with the tab key, and keep the lines that were typed in a file."""
    try:
        import readline  # not everywhere
    except ImportError:
        return
    readline.set_completer(rlcompleter.Completer(namespace).complete)
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    readline.set_history_length(_HISTORY_LINES_MAX)
    with contextlib.suppress(OSError):  # there is none yet
        readline.read_history_file(history_path)
    atexit.register(_save_history, history_path)


def _save_history(path: str) -> None:
    import readline

    with contextlib.suppress(OSError):  # the home directory may be read-only
        readline.write_history_file(path)


# The startup file


@dataclass(frozen=True, slots=True)
class _Startup:
    path: str
    source: bytes

    def run(self, console: InteractiveConsole) -> None:
        """Execute it in the namespace of the console, which shows what goes wrong."""
        try:
            code = compile(self.source, self.path, "exec")
        except (SyntaxError, ValueError):
            console.showsyntaxerror(self.path)
        else:
            console.runcode(code)


def _read_startup(path: str) -> _Startup:
    path = os.path.expanduser(path)
    with about(path), open(path, "rb") as file:
        return _Startup(path, file.read())
