"""Which SQLite files this process has open; and what becomes of them when it forks.

SQLite's locks are POSIX locks, which belong to a process and a file, whoever opened it.  Two
things follow, and each would cost commits if nobody saw to it:

    closing   When a process closes any descriptor of a file, it loses its locks on that file.
              So whoever wants to look into a file asks `is_open` first, holding `opening`.
    forking   A child inherits SQLite's memory, in which it holds locks that it does not hold.
              So a fork waits until no call of SQLite's is going on, and the child closes what it
              has inherited, at once: what it opens then, it opens as any other process does.
              The lock of `durus.file_system` it takes after those of here, as such a call may read
              from another file.

It does not import sqlite3, which a Python may lack: modules for other files use it as well.
"""

import os
import threading
from weakref import WeakSet

from durus.error import StorageError
from durus.file_system import OperatingSystem  # first: what is registered last is called first

__all__ = ["OpenFile", "is_open", "opening"]

opening = threading.RLock()
"""Held while a file is looked into, and while one is added to those that are open."""

_open_files: WeakSet["OpenFile"] = WeakSet()
_locks_held: list[threading.RLock] = []
"""Those held for a fork; the first is `opening`, so that one thread at a time is here."""


class OpenFile:
    """A file that SQLite has open, or is about to open."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._pid = os.getpid()
        self.lock = threading.RLock()
        """Held during every call of SQLite's."""
        with opening:
            self._identity = _identity_of(path)
            _open_files.add(self)

    @property
    def is_inherited(self) -> bool:
        """Whether this process was forked since: then it is closed here."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """StorageError in a process that was forked since."""
        if self.is_inherited:
            raise StorageError(
                f"{self.path} was opened by process {self._pid} before it forked this one: what "
                "was begun before the fork cannot go on here; abort() begins anew"
            )

    def check_in_place(self) -> None:
        """StorageError if the path does not name this file any more."""
        try:
            what = "" if _identity_of(self.path) == self._identity else "was replaced"
        except OSError as error:
            what = f"cannot be found any more ({error.strerror})"
        if what:
            raise StorageError(f"{self.path} {what}; nothing was done.  Open it anew")

    def forget(self) -> None:
        """SQLite has closed it."""
        with opening:
            _open_files.discard(self)

    def close(self) -> None:
        """Close it, if it is not closed yet; called in a forked child, too."""
        raise NotImplementedError


def is_open(path: str | os.PathLike[str]) -> bool:
    """Whether SQLite has this file open in this process.  `opening` is held.  OSError."""
    identity = _identity_of(path)
    return any(file._identity == identity for file in _open_files)


def _identity_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    return OperatingSystem().path_status(os.fspath(path)).identity


def _before_fork() -> None:
    opening.acquire()
    _locks_held.append(opening)
    for file in list(_open_files):
        file.lock.acquire()
        _locks_held.append(file.lock)


def _after_fork() -> None:
    while len(_locks_held) > 1:
        _locks_held.pop().release()
    if _locks_held:  # else something has forked that does not call what stands before a fork
        _locks_held.pop().release()


def _after_fork_in_child() -> None:
    try:
        for file in list(_open_files):
            file.close()
    finally:
        _after_fork()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
)
