"""What the storages of SHELF-1 and DFS20 files have in common: commit, pack, and what they refuse.

`ShelfStorage` and `FileStorage2` derive from it.  They have the calls of Durus 4.x, for one caller;
a connection reaches them through `durus.classic`.  Invariants: the file is locked for as long as it
is open for writing; a database is always under its name, whatever moment a pack is killed at; what
is committed while a pack goes on is in the packed file, too.
"""

import contextlib
import logging
import os
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from os import PathLike
from typing import ClassVar, NoReturn

from durus.appearing import link_is_impossible
from durus.classic_file import (
    fill_if_empty,
    is_record_start,
    make_empty_file,
    open_classic_file,
    sync_directory_of,
)
from durus.classic_format import ClassicFormat
from durus.classic_history import ClassicHistory
from durus.error import (
    CorruptionError,
    DurusKeyError,
    HistoryUnavailableError,
    ReadOnlyError,
    StorageClosedError,
    StorageError,
)
from durus.file import File
from durus.interfaces import ROOT_OID
from durus.logger import is_logging, log
from durus.storage import Storage
from durus.utils import RandomAccessFile

__all__ = ["ClassicFileStorage"]


class ClassicFileStorage(Storage):
    """A classic storage in one file, which it has locked unless it is read-only."""

    _FORMAT: ClassVar[ClassicFormat]

    def __init__(
        self,
        file: str | PathLike[str] | File | None,
        readonly: bool,
        repair: bool,
        *,
        create: bool,
    ) -> None:
        """Open a file, and make it if it is not there.

        file: a path, or None for a temporary file, which is removed when the storage is closed.
        readonly: take no lock, and see what is there now, not what others commit later.
        repair: cut off a last transaction that is not whole.
        create: whether a file that is not there is made (never when readonly).

        Raises StorageLockedError while another process has the file open for writing,
        StorageOpenError, and CorruptionError: DamagedEndError, if `repair` would help.
        """
        empty = self._FORMAT.empty
        if file is None:
            file = File(readonly=readonly)
        elif not isinstance(file, File):
            file = open_classic_file(file, empty, readonly=readonly, create=create)
        self.readonly = readonly
        self.pending_records: dict[bytes, bytes] = {}
        """What the commit that is under way has stored."""
        self.pack_extra: set[bytes] | None = None
        """The oids committed since the pack that is going on began; None if there is none."""
        self.invalid: set[bytes] = set()
        """The oids that packs have removed, and `sync` has not reported yet."""
        self._filename = os.path.abspath(file.get_name())
        self._pid = os.getpid()
        self._is_closed = False
        self._is_directory_synced = False
        try:
            if not readonly:
                fill_if_empty(file, empty)
            self._FORMAT.check_is_in(file)
            self._read_file(file, repair and not readonly)
        except BaseException:
            file.close()
            raise

    @classmethod
    def has_format(cls, file: RandomAccessFile) -> bool:
        """Whether a file begins as those of this storage do."""
        return cls._FORMAT.is_in(file)

    @abstractmethod
    def _read_file(self, file: File, repair: bool) -> None:
        """Find out where everything is."""

    @abstractmethod
    def _get_file(self) -> File: ...

    @abstractmethod
    def _has(self, oid: bytes) -> bool: ...

    @abstractmethod
    def _append(self, records: dict[bytes, bytes]) -> None:
        """Append a transaction, durably; StorageError when nothing was written."""

    @abstractmethod
    def _generate_pack(self, file: File) -> Iterator[object]:
        """Write what can be reached to an empty file, and use that from now on, in steps."""

    def get_filename(self) -> str:
        """The path of the file, absolute."""
        return self._filename

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.get_filename()!r})"

    def close(self) -> None:
        """Give the lock up.  Closing twice is no error."""
        self._is_closed = True
        self._get_file().close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StorageClosedError(f"{self} is closed")
        if os.getpid() != self._pid:
            raise StorageError(
                f"{self} was opened by process {self._pid} before it forked this one; open the "
                "file in the process that uses it"
            )

    def _check_writable(self) -> None:
        self._check_open()
        if self.readonly:
            raise ReadOnlyError(f"{self} is open read-only")

    # Commit

    def begin(self) -> None:
        """Begin a commit; what was stored for one that did not end is forgotten."""
        self._check_open()
        self.pending_records = {}

    def store(self, oid: bytes, record: bytes) -> None:
        """Add a record to the commit; ValueError when it is no record of this oid."""
        self._check_writable()
        if record[:8] != oid or not is_record_start(record[:12], len(record)):
            raise ValueError(f"this is no record of oid {oid!r}: {record[:40]!r}")
        self.pending_records[oid] = record

    def end(self, handle_invalidations: Callable[[Sequence[bytes]], object] | None = None) -> None:
        """Commit what was stored, if anything; in any case it is no longer pending.

        Nobody else can have changed anything.  Raises StorageError when nothing was committed,
        and CommitOutcomeUnknownError.
        """
        self._check_writable()
        records, self.pending_records = self.pending_records, {}
        if records:
            file = self._get_file()
            if not file.is_temporary():
                self._prepare_to_write(file)
            if self.pack_extra is not None:
                # Before it is certain: too many do no harm, one too few would be lost.
                self.pack_extra.update(records)
            self._append(records)
            if is_logging(logging.INFO):
                log(logging.INFO, "Transaction at [%s] end=%s", datetime.now(), len(file))

    def _prepare_to_write(self, file: File) -> None:
        try:
            self._check_in_place(file)
            if not self._is_directory_synced:
                # Else a power cut could take the file's name away, and all commits with it.
                sync_directory_of(self._filename)
                self._is_directory_synced = True
        except OSError as error:
            raise StorageError(f"{self}: the transaction was not committed: {error}") from error

    def _check_in_place(self, file: File) -> None:
        if not file.is_in_place():
            raise StorageError(
                f"{self} was replaced while it was open; nothing was written.  Open it anew"
            )

    def sync(self) -> list[bytes]:
        """The oids that packs have removed since the last call."""
        self._check_open()
        removed, self.invalid = self.invalid, set()
        return list(removed)

    # Pack

    def get_packer(self) -> Iterator[object]:
        """An iterator that packs a little at each step; commits may come in between.

        It does nothing during a commit or another pack, for a temporary file, and as long as
        there is no root.
        """
        self._check_writable()
        if self.pending_records or self._get_file().is_temporary() or not self._has(ROOT_OID):
            return iter(())
        return self._pack()

    def pack(self) -> None:
        """Drop old records, and the objects that cannot be reached from the root.

        What was before is kept under the name of the file with `.prepack`.  After an error, as
        far as anybody sees, nothing has changed.
        """
        for _ in self.get_packer():
            pass

    def _pack(self) -> Iterator[object]:
        if self.pack_extra is not None:
            return
        self.pack_extra = set()
        try:
            yield f"started {datetime.now()}"
            yield from self._replace_file(self._generate_pack)
        except DurusKeyError as error:
            raise CorruptionError(
                self.get_filename(),
                None,
                "a record refers to this object, which does not exist; verify says which record.  "
                "The file cannot be packed like that, since the oid would be given to another one",
                error.oids[0],
            ) from error
        finally:
            self.pack_extra = None
        yield f"finished {datetime.now()}"

    def _replace_file(self, write: Callable[[File], Iterator[object]]) -> Iterator[object]:
        """Let `write` make another file aside, and put that in the place of this one."""
        path = os.path.realpath(self.get_filename()) + ".pack"
        packed = None
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # what is left of a pack that did not come to its end
            packed = make_empty_file(path, self._get_file().status())
            yield from write(packed)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{self} could not be packed: {error}") from error
        finally:
            if packed is not None and packed is not self._get_file():
                packed.close()
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def _swap(self, packed: File) -> None:
        """Put the packed file in the place of this one; both are locked meanwhile."""
        file = self._get_file()
        self._check_in_place(file)
        path = os.path.realpath(self._filename)
        # 4.3 renames both, and a crash in between leaves no database under the name.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}.prepack")
        try:
            os.link(path, f"{path}.prepack")
        except OSError as error:
            if not link_is_impossible(error):
                raise
            shutil.copyfile(path, f"{path}.prepack")
        packed.fsync()
        packed.rename(path)
        self._is_directory_synced = False

    # What the format does not have

    def open_history(self) -> ClassicHistory:
        """Open the file once more, to read the transactions since its last pack."""
        return ClassicHistory(self.get_filename())

    def snapshot(self, at: object = None) -> NoReturn:
        self._refuse_history()

    def transactions(self, start: object = None, stop: object = None) -> NoReturn:
        self._refuse_history()

    def revisions(self, oid: object) -> NoReturn:
        self._refuse_history()

    def find(self, transaction_id: object) -> NoReturn:
        self._refuse_history()

    def _refuse_history(self) -> NoReturn:
        path = self.get_filename()
        raise HistoryUnavailableError(
            f"{path}: the format {self._FORMAT.name} has no snapshots, no older revisions and no "
            f"ids of transactions; 'durus convert {path} TARGET --to log' makes a file that has "
            "them"
        )
