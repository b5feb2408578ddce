"""`durus convert`: a database file in another format.  The work is in `durus.convert`."""

import dataclasses

import click

from durus.commands.manner import (
    Command,
    about,
    compression_option,
    counted,
    echo,
    echo_json,
    json_option,
    note,
    source_argument,
    target_argument,
    with_options,
)
from durus.commands.progress import ProgressBar
from durus.convert import convert as convert_file
from durus.formats import FORMATS
from durus.log_codec import Compression

__all__ = ["convert"]


@click.command(
    cls=Command,
    short_help="Make a database file of another format.",
    examples=[
        "durus convert old.durus new.durus --to log",
        "durus convert app.durus smaller.durus --compression zstd",
        "durus convert app.durus for_durus_4.durus --to shelf",
    ],
)
@source_argument
@target_argument
@click.option(
    "--to",
    type=click.Choice([name for name, made in FORMATS.items() if made.write is not None]),
    default="log",
    show_default=True,
    help="The format of TARGET.",
)
@click.option("--no-history", is_flag=True, help="Copy the newest revisions only.")
@click.option("--renumber", is_flag=True, help="Give the objects new oids, without gaps.")
@click.option(
    "--python2", is_flag=True, help="SOURCE was written by Python 2: convert its strings."
)
@compression_option("Compress the records in a log, or do not; otherwise as SOURCE has them.")
@json_option
def convert(
    source: str,
    target: str,
    to: str,
    no_history: bool,
    renumber: bool,
    python2: bool,
    compression: Compression | None,
    as_json: bool,
) -> None:
    """Write the database SOURCE to the new file TARGET, in another format.

    SOURCE is a file, or the URI of a server, such as durus://localhost:2972, and is only read.
    TARGET must not exist, and appears only when it is complete.
    """
    if compression == "zstd" and to != "log":
        raise click.UsageError(f"--compression is for logs, and not for --to {to}")
    with about(source, target), ProgressBar(f"Converting {source}") as progress:
        conversion = convert_file(
            source,
            target,
            to=to,
            history=not no_history,
            renumber=renumber,
            python2=python2,
            compression=compression,
            progress=progress,
        )
    warnings = [with_options(warning) for warning in conversion.warnings]
    for warning in warnings:
        note(f"warning: {warning}")
    if as_json:
        done = {**dataclasses.asdict(conversion), "warnings": warnings}
        echo_json({"source": source, "target": target, **done})
        return
    kept = "newest state"
    if conversion.history:
        kept = f"in {counted(conversion.transactions, 'transaction')}"
    echo(
        f"{target}: {counted(conversion.objects, 'object')}, {kept}, "
        f"converted from {conversion.source_format} to {conversion.target_format}"
    )
