"""The `durus` command: `durus verify FILE`, `durus stats FILE`, or `python -m durus ...`.

The manner of all commands: a mistake of the user gives one line on stderr that names the path and
the reason, and a non-zero exit; what is meant for machines (`--json`) stands alone on stdout; a
database is inspected without importing its classes, and never changed.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import click

from durus.class_pickle import name_in_class_pickle
from durus.crawl import crawl_snapshot
from durus.error import DurusError
from durus.file_storage import FileStorage
from durus.log_verify import verify_file

__all__ = ["main"]

Arguments = ParamSpec("Arguments")
T = TypeVar("T")

path_argument = click.argument("path", metavar="FILE", type=click.Path())
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def one_line_errors(command: Callable[Arguments, T]) -> Callable[Arguments, T]:
    """Say an error that the user can do something about in one line, without traceback."""

    @wraps(command)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except (DurusError, OSError) as error:
            click.echo(f"durus: {error}", err=True)
            sys.exit(2)

    return wrapped


@click.group(epilog="Example: durus verify app.durus")
@click.version_option(package_name="durus-tools")
def main() -> None:
    """Inspect Durus databases."""


@main.command(epilog="Example: durus verify app.durus && cp app.durus /backup")
@path_argument
@json_option
@one_line_errors
def verify(path: str, as_json: bool) -> None:
    """Read all of FILE, and report everything that is damaged.

    Checksums, structure, and references to objects that do not exist.  The exit status is 0 for
    a sound file, 1 for a damaged one, 2 when it cannot be read.
    """
    findings = list(verify_file(path))
    if as_json:
        click.echo(
            json.dumps(
                {
                    "path": path,
                    "sound": not findings,
                    "findings": [
                        {
                            "offset": finding.offset,
                            "tid": finding.tid,
                            "oid": None if finding.oid is None else int.from_bytes(finding.oid),
                            "problem": finding.problem,
                        }
                        for finding in findings
                    ],
                }
            )
        )
    else:
        for finding in findings:
            click.echo(f"{path}: {finding}")
        click.echo(f"{path}: {f'{len(findings)} findings' if findings else 'sound'}")
    sys.exit(1 if findings else 0)


@main.command(epilog="Example: durus stats app.durus --json")
@path_argument
@json_option
@one_line_errors
def stats(path: str, as_json: bool) -> None:
    """Count the objects of FILE that can be reached from the root, by class."""
    census: Counter[str] = Counter()
    with FileStorage(path, readonly=True) as storage:
        snapshot = storage.snapshot()
        for _, (_, record) in crawl_snapshot(snapshot):
            census[".".join(name_in_class_pickle(record.class_pickle))] += 1
        tid = snapshot.tid
        snapshot.close()
    if as_json:
        counts = dict(census.most_common())
        click.echo(
            json.dumps({"path": path, "tid": tid, "objects": census.total(), "classes": counts})
        )
        return
    width = len(f"{census.total():,}")
    for name, count in census.most_common():
        click.echo(f"{count:{width},}  {name}")
    click.echo(f"{census.total():{width},}  objects up to tid {tid}")


if __name__ == "__main__":
    main(prog_name="durus")
