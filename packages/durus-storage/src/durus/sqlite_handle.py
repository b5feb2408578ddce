"""`SqliteHandle`: one connection of SQLite's to one file.  (A `Connection` here is to objects.)

The only module that calls sqlite3.  Its invariants: one call at a time, under the handle's lock,
and no handle is opened under the lock of another; no query outlives the transaction that it reads
in; what SQLite raises becomes an error of Durus, which says what happened to which file.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, Final, TypeVar
from urllib.parse import quote
from weakref import WeakSet

from durus.error import (
    CorruptionError,
    NotADatabaseError,
    StorageClosedError,
    StorageError,
    StorageLockedError,
)
from durus.sqlite_locks import OpenFile

with contextlib.suppress(ImportError):  # not every Python has it; who opens a file is told
    import sqlite3

__all__ = ["Row", "SqliteHandle"]

Row = tuple[Any, ...]
"""What a query yields; it is the query that says of what types."""

T = TypeVar("T")

_PRAGMAS: Final = """
PRAGMA trusted_schema = OFF;           -- a hostile file shall not call functions
PRAGMA synchronous = FULL;             -- a commit is on the disk when it returns,
PRAGMA fullfsync = ON;                 -- on macOS, too
PRAGMA checkpoint_fullfsync = ON;
"""


class SqliteHandle(OpenFile):
    """A file that SQLite has opened; whatever it holds."""

    def __init__(self, path: str, *, timeout_s: float, mode: str = "rw") -> None:
        """Open a file that is there.  OSError, StorageError; ImportError if there is no sqlite3.

        timeout_s: how long to wait for a lock that another process has.
        mode: as in SQLite's URIs: rw, ro, or ro&immutable=1.
        """
        import_module("sqlite3")
        self._timeout_s = timeout_s
        self._connection: sqlite3.Connection | None = None
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()
        """Those that `rows` has not come to the end of."""
        super().__init__(path)  # from now on, it may be closed in a forked child
        uri = f"file:{quote(os.fsencode(path))}?mode={mode}"
        try:
            with self.lock:
                self._connection = sqlite3.connect(
                    uri,
                    uri=True,
                    timeout=timeout_s,
                    isolation_level=None,  # where transactions begin and end is said here
                    check_same_thread=False,
                )
                self._connection.executescript(_PRAGMAS)
        except sqlite3.Error as error:
            self.close()
            raise self._explain(error) from error

    def close(self) -> None:
        with self.lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                self._close_cursors()
                connection.close()
        self.forget()

    def __del__(self) -> None:
        # Nobody else has it, so no lock is needed, and none may be taken in here.
        if self._connection is not None:
            self._connection.close()

    def run(self, sql: str, *parameters: object) -> None:
        """Run a statement that yields nothing."""
        self._call(lambda connection: connection.execute(sql, parameters))

    def run_many(self, sql: str, rows: Iterable[Row]) -> None:
        """Run a statement once for each of `rows`, which are its parameters."""
        self._call(lambda connection: connection.executemany(sql, rows))

    def run_script(self, sql: str) -> None:
        """Run several statements, outside of a transaction."""
        self._call(lambda connection: connection.executescript(sql))

    def first(self, sql: str, *parameters: object) -> Row | None:
        """The first row that a query yields."""
        row: Row | None = self._call(lambda sqlite: sqlite.execute(sql, parameters).fetchone())
        return row

    def value(self, sql: str, *parameters: object) -> Any:
        """The one value that a query yields."""
        row = self.first(sql, *parameters)
        return None if row is None else row[0]

    def rows(self, sql: str, *parameters: object) -> Iterator[Row]:
        """The rows that a query yields, each when it is asked for.

        StorageClosedError when the transaction has ended meanwhile.
        """
        # An abandoned iterator is no reason to take the lock: it may be the garbage collector
        # that finds it, in a thread that holds another one.
        with self.lock:
            cursor = self._call(lambda connection: connection.execute(sql, parameters))
            self._cursors.add(cursor)
        while (row := self._call(lambda _: self._fetch(cursor))) is not None:
            yield row

    def define(self, name: str, function: Callable[[bytes], bytes]) -> None:
        """Let statements call a function."""
        self._call(lambda sqlite: sqlite.create_function(name, 1, function, deterministic=True))

    def begin(self, kind: str = "DEFERRED") -> None:
        """Begin a transaction of SQLite's; one that is going on is rolled back."""
        with self.lock:
            self.end()
            self.run(f"BEGIN {kind}")

    def end(self) -> None:
        """Roll back what was not committed, if anything; what `rows` was yielding ends, too."""
        with self.lock:
            self._close_cursors()  # else what was read goes on, though SQLite says that it ended
            self._call(lambda connection: connection.rollback())

    # The lock is held.

    def _close_cursors(self) -> None:
        for cursor in list(self._cursors):
            cursor.close()
        self._cursors.clear()

    def _fetch(self, cursor: "sqlite3.Cursor") -> Row | None:
        if cursor not in self._cursors:
            raise StorageClosedError(f"{self.path}: what was being read was closed")
        row: Row | None = cursor.fetchone()
        if row is None:
            self._cursors.discard(cursor)
        return row

    # It is not.

    def _call(self, use: Callable[["sqlite3.Connection"], T]) -> T:
        with self.lock:
            if self._connection is None:
                self.check_process()
                raise StorageClosedError(f"{self.path} is closed")
            try:
                return use(self._connection)
            except sqlite3.Error as error:
                raise self._explain(error) from error

    def _explain(self, error: "sqlite3.Error") -> StorageError:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None and isinstance(error, sqlite3.OperationalError):
            code = sqlite3.SQLITE_CORRUPT  # sqlite3 itself says so, of what is no text
        code = (code or sqlite3.SQLITE_ERROR) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StorageLockedError(
                f"{self.path}: another process has had the file locked for more than "
                f"{self._timeout_s:g} s, perhaps to pack it; nothing was done: try again later, or "
                "open it with a larger timeout_s"
            )
        if code == sqlite3.SQLITE_NOTADB:
            return NotADatabaseError(
                self.path, "this is no SQLite database; open_storage() opens all Durus files"
            )
        if code == sqlite3.SQLITE_CORRUPT:
            return CorruptionError(self.path, None, f"SQLite says: {error}")
        return StorageError(f"{self.path}: SQLite says: {error}")
