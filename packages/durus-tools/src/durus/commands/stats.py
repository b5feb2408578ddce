"""`durus stats`: what is in a database file, object by object, counted by class.

Nothing is imported because a record names it, and nothing is loaded but records.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import click

from durus.class_pickle import name_in_class_pickle
from durus.commands.backup import refuse_backups
from durus.commands.manner import (
    Command,
    about,
    echo,
    echo_json,
    file_argument,
    json_option,
    printable,
)
from durus.commands.progress import ProgressBar
from durus.crawl import crawl_snapshot
from durus.error import ObjectError
from durus.file_format import FileFormat
from durus.formats import find_format
from durus.interfaces import Record, Tid
from durus.log_state import LogState, look_at_log

__all__ = ["stats"]


@dataclass(slots=True)
class _Count:
    objects: int = 0
    bytes: int = 0
    """Of their records: pickles and references, not compressed."""

    def add(self, objects: int, size: int) -> None:
        self.objects += objects
        self.bytes += size


@dataclass(slots=True)
class _Census:
    file_format: FileFormat
    file_bytes: int
    tid: Tid | None = None
    """None when the format knows none."""
    log: LogState | None = None
    classes: dict[str, _Count] = field(default_factory=dict)
    total: _Count = field(default_factory=_Count)

    def add(self, record: Record) -> None:
        size = sum(map(len, record))
        try:
            name = ".".join(name_in_class_pickle(record.class_pickle))
        except ObjectError:
            name = "?"
        self.classes.setdefault(name, _Count()).add(1, size)
        self.total.add(1, size)

    def by_count(self) -> Iterator[tuple[str, _Count]]:
        yield from sorted(self.classes.items(), key=lambda item: (-item[1].objects, item[0]))


@click.command(
    cls=Command,
    short_help="Count the objects of a database file by class.",
    examples=["durus stats app.durus", "durus stats app.durus --json"],
)
@file_argument()
@json_option
def stats(path: str, as_json: bool) -> None:
    """Count the objects of FILE that can be reached from the root, by class.

    The bytes are those of their records, before compression.  Classes are not imported; '?' stands
    for what is no class.  Of a log it is also said who has it locked, how long a lock and a sync
    take (a small file is written beside it for that), and how its index is.
    """
    with about(path), ProgressBar(f"Reading {path}") as progress:
        refuse_backups(path)
        census = _take_census(path, progress)
    if as_json:
        _print_json(path, census)
    else:
        echo(f"{path}: {census.file_format.description}, {census.file_bytes:,} bytes")
        if census.tid is not None:
            echo(f"newest transaction: tid {census.tid}")
        if census.log is not None:
            for line in _describe(census.log):
                echo(line)
        if sys.stdout is not None and sys.stdout.isatty():
            _print_table(census)
        else:
            _print_plain(census)


def _take_census(path: str, progress: ProgressBar) -> _Census:
    file_format = find_format(path)
    census = _Census(file_format, os.stat(path).st_size)
    storage = file_format.open(path, readonly=True, create=False)
    with contextlib.closing(storage), contextlib.closing(storage.snapshot()) as snapshot:
        if file_format.keeps_history:
            census.tid = snapshot.tid
        for _, (_, record) in crawl_snapshot(snapshot):
            census.add(record)
            progress(census.total.objects)
    if file_format.name == "log":
        census.log = look_at_log(path)
    return census


def _describe(log: LogState) -> Iterator[str]:
    if log.lock_wait_s is None:
        yield f"lock: {log.lock_holder or 'somebody'} has had it for more than a second"
    else:
        yield f"lock: free, after {1000 * log.lock_wait_s:.1f} ms"
    if log.sync_s is None:
        yield "sync: unknown, as the folder cannot be written"
    else:
        yield f"sync: {1000 * log.sync_s:.2f} ms for 4 KiB"
    if log.index_state == "none":
        yield f"index: none, and {log.unindexed:,} records and transactions"
    else:
        rest = f"{log.unindexed:,} records and transactions after it"
        yield f"index: {log.index_state}, {log.index_bytes:,} bytes; {rest}"
    if log.unfinished_bytes:
        yield f"unfinished: {log.unfinished_bytes:,} bytes at the end, which the next commit seals"


def _print_json(path: str, census: _Census) -> None:
    echo_json(
        {
            "path": path,
            "format": census.file_format.name,
            "file_bytes": census.file_bytes,
            "tid": census.tid,
            "objects": census.total.objects,
            "bytes": census.total.bytes,
            "log": None if census.log is None else _log_as_json(census.log),
            "classes": {
                name: {"objects": count.objects, "bytes": count.bytes}
                for name, count in census.by_count()
            },
        }
    )


def _log_as_json(log: LogState) -> dict[str, object]:
    holder = log.lock_holder
    return {
        **log._asdict(),
        "lock_holder": None if holder is None else {"pid": holder.pid, "state": holder.state},
    }


def _print_plain(census: _Census) -> None:
    rows = [*census.by_count(), ("in all", census.total)]
    objects = max(len("objects"), *(len(f"{count.objects:,}") for _, count in rows))
    size = max(len("bytes"), *(len(f"{count.bytes:,}") for _, count in rows))
    echo(f"{'objects':>{objects}}  {'bytes':>{size}}  class")
    for name, count in rows:
        echo(f"{count.objects:{objects},}  {count.bytes:{size},}  {name}")


def _print_table(census: _Census) -> None:
    # Imported when it is needed: most uses of the command draw no table.
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, show_footer=True)
    table.add_column("class", "in all", overflow="fold")
    table.add_column("objects", f"{census.total.objects:,}", justify="right")
    table.add_column("bytes", f"{census.total.bytes:,}", justify="right")
    for name, count in census.by_count():
        table.add_row(Text(printable(name)), f"{count.objects:,}", f"{count.bytes:,}")
    Console().print(table)
