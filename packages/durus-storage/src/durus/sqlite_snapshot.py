"""`SqliteSnapshot`, and `SqliteReaders`, which has the handles that snapshots read in.

Invariant: a snapshot reads in a transaction of SQLite's on a handle of its own, so that it sees
what it saw, whoever packs; when it is closed, the handle is lent to the next one.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from durus.error import DurusKeyError, StorageClosedError, StorageError
from durus.interfaces import CommittedTransaction, Oid, Revision, Tid
from durus.sqlite_file import SqliteFile, open_sqlite_file

__all__ = ["SqliteReaders", "SqliteSnapshot"]

_IDLE_MAX: Final = 8
"""So many handles are kept open for the next snapshots."""


class SqliteReaders:
    """Handles for reading one file, as many as are in use at a time.

    A file of Durus 4.x has but one, in which all read together: as long as that one is in a
    transaction, nobody can change the file.
    """

    def __init__(self, writer: SqliteFile, timeout_s: float) -> None:
        self._writer = writer
        self._timeout_s = timeout_s
        self._closed = False
        self._open: set[SqliteFile] = set()
        self._idle: list[SqliteFile] = []
        if writer.is_classic:
            writer.begin()
            writer.first("SELECT 1 FROM objects LIMIT 1")

    def take(self) -> SqliteFile:
        """A handle in which a transaction of SQLite's has begun."""
        if self._writer.is_classic:
            return self._writer
        try:
            file = self._idle.pop()
        except IndexError:
            file = self._open_another()
        try:
            file.begin()
        except BaseException:
            self._drop(file)
            raise
        return file

    def _open_another(self) -> SqliteFile:
        # Before SQLite opens another file at this path, and believes that our log belongs to it.
        self._writer.check_in_place()
        file = open_sqlite_file(
            self._writer.path, readonly=self._writer.is_readonly, timeout_s=self._timeout_s
        )
        self._open.add(file)
        if self._closed:  # nobody would close it any more
            self._drop(file)
            raise StorageClosedError(f"{self._writer.path} is closed")
        return file

    def give_back(self, file: SqliteFile) -> None:
        """End the transaction, and keep the handle for the next one who needs it."""
        if file is self._writer:
            return
        try:
            file.end()
        except StorageError:
            self._drop(file)
            return
        if len(self._idle) < _IDLE_MAX:
            self._idle.append(file)
        else:
            self._drop(file)

    def leave(self, file: SqliteFile) -> None:
        """Forget a handle, which closes itself when nobody has it: no lock is needed for this."""
        self._open.discard(file)

    def _drop(self, file: SqliteFile) -> None:
        file.close()
        self._open.discard(file)

    def renew(self, packs: int) -> None:
        """Let snapshots go on to what is newest; nobody packs meanwhile."""
        for file in list(self._open):
            file.renew(packs)

    def close(self) -> None:
        """Close all handles, those in use too."""
        self._closed = True
        for file in list(self._open):
            file.close()


class SqliteSnapshot:
    """What is visible up to one tid."""

    def __init__(self, readers: SqliteReaders, file: SqliteFile, tid: Tid) -> None:
        self._readers = readers
        self._file: SqliteFile | None = file
        self.tid = tid

    def load(self, oid: Oid) -> Revision:
        revision = self.file.load(oid, self.tid)
        if revision is None:
            raise DurusKeyError(oid)
        return revision

    def load_many(self, oids: Iterable[Oid]) -> Iterator[tuple[Oid, Revision]]:
        for oid in oids:
            file = self.file
            revision = file.load(oid, self.tid)
            if revision is not None:
                yield oid, revision
            elif file.is_readonly and not file.is_sound:  # there may be damage in the way to it
                file.check_sound()

    def load_all(self) -> Iterator[tuple[Oid, Revision]]:
        """Every object, whether it can be reached from the root or not."""
        file = self.file
        file.check_sound()
        return self.load_many(file.oids())

    def revisions(self, oid: Oid) -> Iterator[Revision]:
        """The revisions of an object, newest first."""
        tid = self.tid
        while (revision := self.file.load(oid, tid)) is not None:
            yield revision
            tid = Tid(revision.tid - 1)

    def transactions(self, start: Tid, stop: Tid) -> Iterator[CommittedTransaction]:
        """The transactions with start <= tid < stop, oldest first."""
        file = self.file
        for fields in file.transactions(start, stop):
            query = "SELECT oid FROM revisions WHERE tid = ? AND class IS NOT NULL ORDER BY oid"
            oids = file.rows(query, fields["tid"])
            yield CommittedTransaction(**fields, oids=[file.oid_of(number) for (number,) in oids])

    @property
    def file(self) -> SqliteFile:
        """The handle that it reads in.  StorageClosedError."""
        if self._file is None:
            raise StorageClosedError("the snapshot is closed")
        return self._file

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            self._readers.give_back(file)

    def __del__(self) -> None:
        # Not close(): the garbage collector may be here in a thread that holds any lock.
        if self._file is not None:
            self._readers.leave(self._file)
