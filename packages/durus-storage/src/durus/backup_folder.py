"""A folder of backups: its manifest, and the files that the manifest lists.

    manifest.json             what is there, replaced as a whole
    full-<tid>.durus          a log file, up to a transaction
    inc-<tid>-<tid>.part      the bytes of that log that come next, from a transaction to another
    backup.lock               while somebody makes a backup

Invariants: only who has the lock writes; a file is complete and durable before the manifest lists
it, and is not touched any more; so at any moment the manifest, and the files that it lists, are a
folder of backups.  A file is listed when it still has `.new` after its name, and then gets that; so
no file ever has the name of a backup without being one.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from durus.appearing import create_alone
from durus.error import (
    CorruptionError,
    StorageLockedError,
    StorageOpenError,
    UnsupportedFormatError,
)
from durus.file_system import FileStatus, System
from durus.interfaces import Tid
from durus.joined_log import JoinedLogFile
from durus.log_file import LogFile
from durus.open_file import OpenFile

__all__ = ["BackupFile", "BackupFolder", "Chain"]

MANIFEST: Final = "manifest.json"
LOCK: Final = "backup.lock"
ASIDE: Final = ".new"
UNNAMED: Final = "backup.new"
"""A file that is being made."""
_FORMAT: Final = "durus backup"
_VERSION: Final = 1
_NAMES: Final = re.compile(r"full-\d+(-\d+)?\.durus|inc-\d+-\d+(-\d+)?\.part")
_OF_THE_SYSTEM: Final = re.compile(r"\..*|lost\+found")
"""What a folder may have that is none of ours, and empty all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupFile:
    """A range of a log, in a file; all that the manifest says of it."""

    name: str
    size: int
    sha256: str
    start: int
    """Where in the log its first byte is; 0: it is a full backup."""
    end: int
    database_id: str
    file_id: str
    horizon: Tid
    """Of the log: what was before this transaction had been packed away."""
    transactions: int
    """How many become visible in it."""
    first_tid: Tid
    """Of its transactions; 0 if there are none."""
    first_time_ns: int
    last_tid: Tid
    last_time_ns: int
    last_transaction_id: int
    last_offset: int
    """Where in the log its last transaction begins."""
    is_marked: bool
    """Whether a mark makes that visible; else a crash has left it so."""
    made_ns: int
    """When the backup was made, nanoseconds since 1970."""

    @property
    def is_full(self) -> bool:
        return not self.start


Chain = Sequence[BackupFile]
"""A full backup, and the parts that continue it: one log."""


class BackupFolder:
    """The folder at a path; what the operating system refuses is an OSError."""

    def __init__(self, system: System, path: str) -> None:
        self.system = system
        self.path = os.path.abspath(path)
        self.files: list[BackupFile] = []
        """Those of the manifest, in the order in which they were made."""

    def __str__(self) -> str:
        return self.path

    def path_of(self, name: str) -> str:
        return os.path.join(self.path, name)

    @property
    def chains(self) -> list[Chain]:
        found: list[list[BackupFile]] = []
        for file in self.files:
            if file.is_full:
                found.append([])
            found[-1].append(file)
        return list(found)

    def open(self) -> None:
        """Read the manifest.

        Raises StorageOpenError when there is none, CorruptionError when it is damaged,
        UnsupportedFormatError.
        """
        if not self._read_manifest():
            self._explain_absence()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, if need be, lock it, read the manifest, and clear away what was left.

        Raises StorageLockedError and StorageOpenError, and what `open` raises.
        """
        self._make()
        self._names()
        lock = create_alone(
            self.system,
            self.path_of(LOCK),
            lambda: OpenFile(self.system, self.path_of(LOCK), self._create(LOCK)),
        )
        if lock is None:
            raise StorageLockedError(
                f"{self.path}: {self._lock_holder()} is making a backup in this folder; try again "
                "when it has finished"
            )
        try:
            if not self._read_manifest():
                self._check_empty()
            self._clear_away()
            yield
        finally:
            for name in (UNNAMED, LOCK):
                with contextlib.suppress(OSError):
                    self.system.unlink(self.path_of(name))
            lock.unlock()

    def _make(self) -> None:
        try:
            self.system.make_directory(self.path)
        except FileExistsError:
            return
        except OSError as error:
            reason = f"the folder cannot be made: {error.strerror or error}"
            raise StorageOpenError(self.path, reason, error.errno) from error
        self.system.sync_directory(os.path.dirname(self.path))

    def _names(self) -> set[str]:
        """What is in the folder."""
        try:
            return {*self.system.list_directory(self.path)}
        except NotADirectoryError as error:
            raise StorageOpenError(self.path, "this is no folder", error.errno) from error

    def _lock_holder(self) -> str:
        holder = None
        with contextlib.suppress(OSError):
            path = self.path_of(LOCK)
            lock = OpenFile(self.system, path, self.system.open(path, writable=False))
            holder = lock.lock_holder()
        return str(holder or "another process")

    def _check_empty(self) -> None:
        """StorageOpenError if something is there that is none of ours, without a manifest."""
        for name in sorted(self._names()):
            if _NAMES.fullmatch(name):
                reason = f"there is {name}, but no {MANIFEST}: put that back"
            elif name == LOCK or _is_aside(name) or _OF_THE_SYSTEM.fullmatch(name):
                continue
            else:
                reason = f"there is something else in it, {name}"
            raise StorageOpenError(
                self.path, f"{reason}; or make the backups in an empty folder, or a new one"
            )

    def _clear_away(self) -> None:
        """Finish, or undo, what somebody has begun who was killed."""
        names = self._names()
        for file in self.files:
            aside = file.name + ASIDE
            if file.name not in names and aside in names:
                self.system.rename(self.path_of(aside), self.path_of(file.name))
                self._sync()
                names.remove(aside)
        for name in filter(_is_aside, names):
            self.remove(name)

    # The manifest

    def _read_manifest(self) -> bool:
        path = self.path_of(MANIFEST)
        try:
            fd = self.system.open(path, writable=False)
        except FileNotFoundError:
            return False
        except NotADirectoryError as error:
            raise StorageOpenError(self.path, "this is no folder", error.errno) from error
        file = OpenFile(self.system, path, fd)
        content = file.read(0, file.status().size)
        try:
            self.files = _decode(path, content)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = error if isinstance(error, ValueError) else "this is no manifest of backups"
            raise CorruptionError(
                path,
                None,
                f"{reason}; put back a copy of it, or make the backups in another folder.  Each "
                "full-*.durus is a database by itself",
            ) from error
        return True

    def _explain_absence(self) -> None:
        try:
            is_directory = self.system.path_status(self.path).is_directory
        except FileNotFoundError as error:
            raise StorageOpenError(self.path, "there is no such folder", error.errno) from error
        found = f"there is no {MANIFEST} in it" if is_directory else "this is no folder"
        raise StorageOpenError(self.path, f"{found}, so there are no backups to read")

    def _write_manifest(self, files: list[BackupFile]) -> None:
        aside = MANIFEST + ASIDE
        self.remove(aside)
        manifest = OpenFile(self.system, self.path_of(aside), self._create(aside))
        manifest.append(_encode(files))
        manifest.sync()

    # Files

    def new_name(self, name: str) -> str:
        """The name, or one like it that no file has."""
        taken = self._names() | {file.name for file in self.files}
        start, dot, ending = name.rpartition(".")
        names = itertools.chain([name], (f"{start}-{n}{dot}{ending}" for n in itertools.count(2)))
        return next(name for name in names if name not in taken)

    def create(self, like: FileStatus) -> LogFile:
        """A new file, which `add` gives its name, or `remove` takes away; it is empty.

        like: a file whose permissions it gets.
        """
        self.remove(UNNAMED)
        return LogFile(self.system, self.path_of(UNNAMED), self._create(UNNAMED, like))

    def add(self, file: BackupFile) -> None:
        """Give what `create` has made its name, and list it; durable on return.

        It is complete, and synced.  After an error it may be listed all the same, and is whole.
        """
        aside = self.path_of(file.name + ASIDE)
        files = [*self.files, file]
        try:
            self.system.rename(self.path_of(UNNAMED), aside)
            self._sync()  # each name before the next: not all file systems keep their order
            self._write_manifest(files)
        except BaseException:
            for path in (aside, self.path_of(MANIFEST + ASIDE)):
                with contextlib.suppress(OSError):
                    self.system.unlink(path)
            raise
        # From here on it may be listed, whatever fails, and stays.
        self.system.rename(self.path_of(MANIFEST + ASIDE), self.path_of(MANIFEST))
        self._sync()
        self.files = files
        self.system.rename(aside, self.path_of(file.name))
        self._sync()

    def check_chain(self, chain: Chain) -> None:
        """Are its files still there?  Raises what `open_file` raises."""
        for file in chain:
            self.open_file(file)

    def open_file(self, file: BackupFile) -> LogFile:
        """Open a file to read it.

        Raises StorageOpenError when it is missing, CorruptionError when it has another size.
        """
        for name in (file.name, file.name + ASIDE, file.name):  # it may just be getting its name
            path = self.path_of(name)
            with contextlib.suppress(FileNotFoundError):
                opened = LogFile(self.system, path, self.system.open(path, writable=False))
                size = opened.status().size
                if size == file.size:
                    return opened
                raise CorruptionError(
                    path,
                    None,
                    f"it has {size} bytes, and had {file.size} when it was made; {remedy(file)}",
                )
        raise StorageOpenError(
            self.path_of(file.name), f"this backup is missing; {remedy(file)}", errno.ENOENT
        )

    def open_chain(self, chain: Chain) -> JoinedLogFile:
        """The log that these files are; raises what `open_file` raises."""
        return JoinedLogFile(
            [file.start for file in chain], lambda number: self.open_file(chain[number])
        )

    def unlisted(self) -> list[str]:
        """The names of files that look like backups, and are not in the manifest."""
        names = self._names() - {file.name for file in self.files}
        return sorted(filter(_NAMES.fullmatch, names))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.system.unlink(self.path_of(name))

    def _create(self, name: str, like: FileStatus | None = None) -> int:
        return self.system.create(self.path_of(name), like)

    def _sync(self) -> None:
        self.system.sync_directory(self.path)


def remedy(file: BackupFile) -> str:
    """What to do when a file is missing, or is not what it was."""
    since = "anything" if file.is_full else f"transaction {file.first_tid} and those after it"
    return (
        f"put back a copy of {file.name}: without it, {since} cannot be restored from it and the "
        "parts that continue it.  A new full backup (full=True) does not need it"
    )


def _is_aside(name: str) -> bool:
    start, _, _ = name.rpartition(ASIDE)
    return name.endswith(ASIDE) and (
        name == UNNAMED or start == MANIFEST or _NAMES.fullmatch(start) is not None
    )


# The manifest as bytes


def _encode(files: Sequence[BackupFile]) -> bytes:
    entries = [asdict(file) for file in files]
    manifest = {
        "format": _FORMAT,
        "version": _VERSION,
        "sha256": _checksum(entries),
        "files": entries,
    }
    return (json.dumps(manifest, indent=1) + "\n").encode()


def _checksum(entries: object) -> str:
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _decode(path: str, content: bytes) -> list[BackupFile]:
    """Raises UnsupportedFormatError; when it is damaged, ValueError, or what Python happens to."""
    manifest = json.loads(content)
    if manifest["format"] != _FORMAT:
        raise ValueError("it is that of something else")
    if manifest["version"] != _VERSION:
        reason = f"a newer release has made these backups (version {manifest['version']})"
        raise UnsupportedFormatError(path, reason)
    if manifest["sha256"] != _checksum(manifest["files"]):
        raise ValueError("its checksum is wrong")
    files = [BackupFile(**entry) for entry in manifest["files"]]
    for before, file in zip([None, *files], files, strict=False):
        if not _NAMES.fullmatch(file.name) or file.size != file.end - file.start:
            raise ValueError(f"what it says of {file.name!r} cannot be")
        if not file.is_full and (before is None or not _continues(file, before)):
            raise ValueError(f"{file.name} does not continue the one before it")
    return files


def _continues(file: BackupFile, before: BackupFile) -> bool:
    return (
        (file.database_id, file.file_id, file.start)
        == (before.database_id, before.file_id, before.end)
    ) and before.last_tid < file.first_tid <= file.last_tid
