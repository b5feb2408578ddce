"""`durus verify`: read a whole database file, and say what is damaged."""

from collections.abc import Iterator

import click

from durus.commands.backup import refuse_backups
from durus.commands.manner import (
    Command,
    ExitStatus,
    about,
    counted,
    echo,
    echo_json,
    file_argument,
    json_option,
    with_options,
)
from durus.commands.progress import ProgressBar
from durus.error import CorruptionError
from durus.file_format import FileFormat, Finding
from durus.formats import find_format
from durus.interfaces import Oid

__all__ = ["verify"]


@click.command(
    cls=Command,
    short_help="Find damage in a database file.",
    examples=["durus verify app.durus", "durus verify app.durus --json"],
)
@file_argument()
@json_option
def verify(path: str, as_json: bool) -> ExitStatus:
    """Read all of FILE, and report everything that is damaged.

    Checksums, structure, and references to objects that do not exist; each with the offset and
    the oid.  The exit status is 0 for a sound file, 1 for a damaged one, 2 when it cannot be read.
    """
    found: list[Finding] = []  # kept for JSON only: there may be very many
    count = 0
    with about(path), ProgressBar(f"Verifying {path}") as progress:
        refuse_backups(path)
        file_format = find_format(path)
        for finding in _find(file_format, path):
            count += 1
            if as_json:
                found.append(finding)
            else:
                progress.stop()
                echo(f"{path}: {with_options(str(finding))}")
    if as_json:
        echo_json(
            {
                "path": path,
                "format": file_format.name,
                "sound": not count,
                "findings": [_as_json(finding) for finding in found],
            }
        )
    else:
        echo(f"{path}: {counted(count, 'finding') if count else 'sound'}")
    return ExitStatus.DAMAGED if count else ExitStatus.OK


def _find(file_format: FileFormat, path: str) -> Iterator[Finding]:
    try:
        yield from file_format.verify(path)
    except CorruptionError as error:  # nothing behind this can be read
        oid = None if error.oid is None else Oid(error.oid)
        yield Finding(error.offset, None, oid, error.reason)


def _as_json(finding: Finding) -> dict[str, object]:
    return {
        "offset": finding.offset,
        "tid": finding.tid,
        "oid": None if finding.oid is None else int.from_bytes(finding.oid),
        "problem": with_options(finding.problem),
    }
