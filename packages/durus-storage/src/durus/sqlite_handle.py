"""`SqliteHandle`: one connection of SQLite's to one file.  (A `Connection` here is to objects.)

The only module that calls sqlite3.  Its invariants: one call at a time, under the handle's lock,
and no handle is opened under the lock of another; what SQLite raises becomes an error of Durus,
which says what happened to which file.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final
from urllib.parse import quote

from durus.error import (
    CorruptionError,
    NotADatabaseError,
    StorageClosedError,
    StorageError,
    StorageLockedError,
)
from durus.sqlite_locks import OpenFile

__all__ = ["Row", "SqliteHandle"]

Row = tuple[Any, ...]
"""What a query yields; it is the query that says of what types."""

_PRAGMAS: Final = """
PRAGMA trusted_schema = OFF;           -- a hostile file shall not call functions
PRAGMA synchronous = FULL;             -- a commit is on the disk when it returns,
PRAGMA fullfsync = ON;                 -- on macOS, too
PRAGMA checkpoint_fullfsync = ON;
"""


class SqliteHandle(OpenFile):
    """A file that SQLite has opened; whatever it holds."""

    def __init__(self, path: str, *, timeout_s: float) -> None:
        """Open a file that is there.  OSError, StorageError.

        timeout_s: how long to wait for a lock that another process has.
        """
        self._timeout_s = timeout_s
        self._connection: sqlite3.Connection | None = None
        super().__init__(path)  # from now on, it may be closed in a forked child
        uri = f"file:{quote(os.fsencode(path))}?mode=rw"
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
                connection.close()
        self.forget()

    def __del__(self) -> None:
        # Nobody else has it, so no lock is needed, and none may be taken in here.
        if self._connection is not None:
            self._connection.close()

    def run(self, sql: str, *parameters: object) -> None:
        """Run a statement that yields nothing."""
        with self.lock:
            self._execute(sql, parameters)

    def run_many(self, sql: str, rows: Iterable[Row]) -> None:
        """Run a statement once for each of `rows`, which are its parameters."""
        with self.lock:
            connection = self._open_connection()
            try:
                connection.executemany(sql, rows)
            except sqlite3.Error as error:
                raise self._explain(error) from error

    def run_script(self, sql: str) -> None:
        """Run several statements, outside of a transaction."""
        with self.lock:
            connection = self._open_connection()
            try:
                connection.executescript(sql)
            except sqlite3.Error as error:
                raise self._explain(error) from error

    def first(self, sql: str, *parameters: object) -> Row | None:
        """The first row that a query yields."""
        with self.lock:
            return self._fetch(self._execute(sql, parameters))

    def value(self, sql: str, *parameters: object) -> Any:
        """The one value that a query yields."""
        row = self.first(sql, *parameters)
        return None if row is None else row[0]

    def rows(self, sql: str, *parameters: object) -> Iterator[Row]:
        """The rows that a query yields, each when it is asked for."""
        # An abandoned iterator is no reason to take the lock: it may be the garbage collector
        # that finds it, in a thread that holds another one.
        with self.lock:
            cursor = self._execute(sql, parameters)
        while (row := self._fetch(cursor)) is not None:
            yield row

    def define(self, name: str, function: Callable[[bytes], bytes]) -> None:
        """Let statements call a function."""
        with self.lock:
            self._open_connection().create_function(name, 1, function, deterministic=True)

    def begin(self, kind: str = "DEFERRED") -> None:
        """Begin a transaction of SQLite's; one that is going on is rolled back."""
        with self.lock:
            self.end()
            self._execute(f"BEGIN {kind}", ())

    def end(self) -> None:
        """Roll back what was not committed, if anything."""
        with self.lock:
            if self._open_connection().in_transaction:
                self._execute("ROLLBACK", ())

    # The lock is held.

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        self.check_process()
        raise StorageClosedError(f"{self.path} is closed")

    def _execute(self, sql: str, parameters: tuple[object, ...]) -> sqlite3.Cursor:
        connection = self._open_connection()
        try:
            return connection.execute(sql, parameters)
        except sqlite3.Error as error:
            raise self._explain(error) from error

    def _fetch(self, cursor: sqlite3.Cursor) -> Row | None:
        with self.lock:
            self._open_connection()
            try:
                row: Row | None = cursor.fetchone()
                return row
            except sqlite3.Error as error:
                raise self._explain(error) from error

    def _explain(self, error: sqlite3.Error) -> StorageError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
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
