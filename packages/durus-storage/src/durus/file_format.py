"""What the formats of database files have in common: recognising, reading whole, writing whole.

`durus.formats` lists them; each format's own module says how its files are read and written.  A
whole database is a `StoredDatabase`, a stream of transactions, so conversion between any two
formats is one that is read and one that is written, in bounded memory.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from durus import sqlite_locks
from durus.error import format_oid
from durus.interfaces import NO_TID, Oid, Record, Storage, Tid

__all__ = [
    "FileFormat",
    "FileOpener",
    "Finding",
    "StoredDatabase",
    "StoredTransaction",
    "choose_format",
    "recognise",
    "recognise_start",
]

_STARTS: Final = {
    b"\x89DUR\r\n\x1a\n": "log",
    b"SHELF-1\n": "shelf",
    b"DFS20\0": "dfs20",
    b"SQLite format 3\0": "sqlite",
}


def recognise(path: str | os.PathLike[str]) -> str | None:
    """The name of the format that the file's first bytes say it has; None if it is none of ours.

    None as well when it is empty, not there, or no regular file (which is not opened, as a pipe
    would wait for a writer); OSError when it cannot be read.
    """
    try:
        with sqlite_locks.opening:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return None
            if sqlite_locks.is_open(path):
                return "sqlite"  # closing it here would take SQLite's locks away
            with open(path, "rb") as file:
                start = file.read(16)
    except FileNotFoundError:
        return None
    return recognise_start(start)


def recognise_start(start: bytes) -> str | None:
    """The name of the format of a file that begins with these 16 bytes, or None."""
    return next((name for magic, name in _STARTS.items() if start.startswith(magic)), None)


def choose_format(path: str | os.PathLike[str], new: str = "log") -> str:
    """The format of a file, as `recognise` names it; `new` if it is missing or empty.

    'log' if it is anything else: whoever opens it as one says what is wrong with it.
    """
    try:
        found = recognise(path)
        if found is not None:
            return found
        status = os.stat(path)
    except FileNotFoundError:
        return new
    except OSError:
        return "log"
    return new if stat.S_ISREG(status.st_mode) and not status.st_size else "log"


class Finding(NamedTuple):
    """Something that is wrong, and where: offset in the file, tid, oid, as far as known."""

    offset: int | None
    tid: Tid | None
    oid: Oid | None
    problem: str

    def __str__(self) -> str:
        known = [
            "" if self.offset is None else f"offset {self.offset}",
            "" if self.tid is None else f"tid {self.tid}",
            "" if self.oid is None else f"oid {format_oid(self.oid)}",
        ]
        where = ", ".join(part for part in known if part)
        return f"{where}: {self.problem}" if where else self.problem


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTransaction:
    """A transaction and its records, on the way from one file to another.

    What a format does not keep has its default.  Without a tid, the reader of the transaction
    gives it one, and may split it: it is then the base of a database, and no commit of a program.
    """

    records: Iterable[tuple[Oid, Record]]
    """Read once, before the next transaction is asked for; it may be the whole database."""
    tid: Tid = NO_TID
    id: int = 0
    time_ns: int = 0
    """Wall clock, nanoseconds since 1970; 0 when it is not known."""
    user: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDatabase:
    """Everything that one file holds, oldest transaction first."""

    transactions: Iterable[StoredTransaction]
    """Read once."""
    horizon: Tid = NO_TID
    """Up to this tid, a pack has dropped records: no snapshot is older."""
    next_oid: int = 0
    """Oids from here on are in no use, and never were; 0 when it is not known."""
    dictionary: bytes | None = None
    """With what a log compresses records: see `durus.log_codec.RecordCodec`."""


class FileOpener(Protocol):
    """Opens a file for use; `repair` cuts off a damaged end, where the format can have one."""

    def __call__(
        self, path: str, *, readonly: bool = False, create: bool = True, repair: bool = False
    ) -> Storage: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFormat:
    """What can be done with files of one format."""

    name: str
    """As on the command line: log, shelf, dfs20, sqlite, sqlite4."""
    description: str
    """For messages: 'a SHELF-1 file of Durus 4.x'."""
    keeps_history: bool
    """It has tids, times, users, notes and older revisions."""
    open: FileOpener
    verify: Callable[[str], Iterator[Finding]]
    """Read everything, and report what is wrong, as `durus.log_verify.verify_file` does."""
    read: Callable[[str], AbstractContextManager[StoredDatabase]]
    """All transactions that the file holds, since its last pack."""
    write: Callable[[str, StoredDatabase], None] | None
    """Make a new file (the path must not exist) that holds all of this, durable on return.

    None: such files are only read.
    """
