"""The command `durus`, which has all the others."""

from collections.abc import Sequence
from typing import Final

import click

from durus.commands.backup import backup, restore
from durus.commands.client import client
from durus.commands.convert import convert
from durus.commands.history import history
from durus.commands.manner import CommandGroup, run
from durus.commands.pack import pack
from durus.commands.serve import serve
from durus.commands.stats import stats
from durus.commands.undo import undo
from durus.commands.verify import verify

__all__ = ["durus", "run_durus"]

_CLASSIC_OPTIONS: Final = {"-s": "serve", "-c": "client", "-p": "pack"}


@click.group(
    cls=CommandGroup,
    commands=[
        serve,
        client,
        pack,
        verify,
        stats,
        history,
        undo,
        backup,
        restore,
        convert,
    ],
    examples=["durus client --file app.durus", "durus verify --help"],
)
@click.version_option(package_name="durus-tools", message="durus-tools %(version)s")
def durus() -> None:
    """Durus, a transactional object database: server, client and tools.

    As in Durus 4.x, 'durus -s', 'durus -c' and 'durus -p' are the commands serve, client and pack.
    """


def run_durus(arguments: Sequence[str]) -> int:
    """Run `durus` with these arguments, among them those of Durus 4.x; the exit status."""
    given = list(arguments) or ["--help"]
    return run(durus, [_CLASSIC_OPTIONS.get(given[0], given[0]), *given[1:]])
