"""The `durus` command, also as `python -m durus`, or as a script by the path of this file.

The commands are in `durus.commands`, and imported late, with all that they need: Ctrl-C shall be
heeded in the same way from the first moment on.  This module keeps the names that programs of
Durus 4.x import or call; `client_main`, `run_durus_main` and so on take their arguments from
`sys.argv`, as there.
"""

from __future__ import annotations

import os
import sys

from durus import _guard as _guard

TYPE_CHECKING = False  # that of `typing`, which takes a while to import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from durus.commands.client import configure_readline, interactive_client
    from durus.commands.database import get_storage, get_storage_class
    from durus.storage_server import import_class, start_durus, stop_durus

__all__ = [
    "client_main",
    "configure_readline",
    "get_storage",
    "get_storage_class",
    "import_class",
    "interactive_client",
    "main",
    "pack_storage_main",
    "run_durus_main",
    "start_durus",
    "stop_durus",
    "usage",
]

_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells report it."""
_HOMES: Final = {
    "configure_readline": "durus.commands.client",
    "get_storage": "durus.commands.database",
    "get_storage_class": "durus.commands.database",
    "import_class": "durus.storage_server",
    "interactive_client": "durus.commands.client",
    "start_durus": "durus.storage_server",
    "stop_durus": "durus.storage_server",
}
"""Where the names are that 4.3 has here, and that we have elsewhere."""


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `durus` with these arguments, by default those of the process; the exit status."""
    try:
        from durus.commands.group import run_durus

        return run_durus(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        if sys.stderr is not None:
            print("durus: interrupted", file=sys.stderr)
        return _INTERRUPTED


def client_main() -> int:
    """`durus client`, with the arguments of the process."""
    return main(["client", *sys.argv[1:]])


def run_durus_main() -> int:
    """`durus serve`, with the arguments of the process."""
    return main(["serve", *sys.argv[1:]])


def pack_storage_main() -> int:
    """`durus pack`, with the arguments of the process."""
    return main(["pack", *sys.argv[1:]])


def usage() -> None:
    """Print how `durus` is called."""
    main(["--help"])


if __name__ == "__main__":
    if not __package__ and sys.path[:1] == [os.path.dirname(os.path.abspath(__file__))]:
        # Started by its path: no module of ours may stand in the place of an application's.
        del sys.path[0]
    sys.exit(main())
