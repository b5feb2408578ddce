"""`durus serve`: a storage server.  Its options and all its work are in `durus.storage_server`."""

import click

from durus.commands.manner import Command
from durus.storage_server import main

__all__ = ["serve"]


class _PassingCommand(Command):
    """Leaves its arguments alone, `--help` too: they are for somebody else."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments as they are."""
        ctx.args = list(args)
        return ctx.args


@click.command(
    cls=_PassingCommand,
    short_help="Start or stop a server.",
    add_help_option=False,
    examples=["durus serve --file app.durus"],
)
@click.pass_context
def serve(context: click.Context) -> int:
    """Serve a database to many clients, or stop a server."""
    return main(context.args, prog=context.command_path)
