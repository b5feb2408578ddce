"""`Source`: the database that is converted, whether it is a file or behind a server.

`durus.convert` reads it.  Invariant: it is only read, and as it was at one moment.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote, urlsplit

from durus.error import ReadConflictError, StorageError, StorageOpenError
from durus.file_format import StoredDatabase
from durus.formats import find_format
from durus.interfaces import Snapshot, Storage
from durus.storage import open_storage

__all__ = ["Source"]

_WITH_TRANSACTIONS: Final = {"log", "sqlite", "shelf", "dfs20"}
"""The formats whose files hold more than the newest revisions."""


class Source:
    """A database that is there."""

    def __init__(self, source: str | os.PathLike[str]) -> None:
        """Find out what it is.

        source: a path, or a URI as for `durus.storage.open_storage`.
        Raises StorageOpenError, and what else the storage raises when it cannot be opened.
        """
        self.uri = os.fspath(source)
        scheme, _, rest = self.uri.partition(":") if isinstance(source, str) else ("", "", "")
        self._path: str | None = self.uri
        if scheme == "memory":
            raise StorageOpenError(self.uri, "a new storage in memory has nothing to convert")
        if scheme == "file":
            self._path = unquote(urlsplit(self.uri).path)
        elif rest.startswith("//"):
            with contextlib.closing(self._open_uri()) as storage:
                get_filename = getattr(storage, "get_filename", None)
                self._path = None if get_filename is None else get_filename()
        self._format = None if self._path is None else find_format(self._path)
        self.format_name = scheme if self._format is None else self._format.name
        """A name in `durus.formats.FORMATS`, or else the scheme of the URI."""

    @property
    def has_transactions(self) -> bool:
        """Whether `read` gives transactions that were committed one by one."""
        return self.format_name in _WITH_TRANSACTIONS

    def _open_uri(self) -> Storage:
        return open_storage(self.uri, readonly=True, create=False)

    def _open(self) -> Storage:
        if self._format is None or self._path is None:
            return self._open_uri()
        return self._format.open(self._path, readonly=True, create=False)

    def read(self) -> contextlib.AbstractContextManager[StoredDatabase]:
        """All transactions; only if it has some."""
        assert self._format is not None
        assert self._path is not None
        return self._format.read(self._path)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """What is newest.  StorageError if that changes, where snapshots do not last."""
        with contextlib.closing(self._open()) as storage:
            try:
                with contextlib.closing(storage.snapshot()) as snapshot:
                    yield snapshot
            except ReadConflictError as error:
                raise StorageError(
                    f"{self.uri}: the database was changed while it was read.  Try again when "
                    "nobody writes to it, or convert a copy of its file"
                ) from error

    def read_settings(self) -> StoredDatabase:
        """What it says of the database beside the transactions, and none of these."""
        if self._format is None or not self._format.keeps_history:
            return StoredDatabase(transactions=())  # none of the others says anything
        with self.read() as stored:
            return StoredDatabase(
                transactions=(), next_oid=stored.next_oid, dictionary=stored.dictionary
            )
