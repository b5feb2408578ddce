"""Files that are made aside and then appear under their names, complete or not at all.

For whoever makes a database file.  Invariant: *nothing that is there is ever replaced*, whoever
makes a file of the same name at the same time, unless that is what `replacing` is asked for.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from durus.error import StorageError, StorageOpenError
from durus.file_system import System
from durus.open_file import OpenFile

__all__ = ["appearing_at", "create_alone", "link_is_impossible", "making", "replacing"]

F = TypeVar("F", bound=OpenFile)

_NO_LINKS: Final = frozenset([errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])


@contextlib.contextmanager
def appearing_at(system: System, path: str, aside: str | None = None) -> Iterator[str]:
    """Yields a name in the same folder, to make a file at; at the end that gets the name `path`.

    It must be synced by then; its name is durable on return.
    aside: that name, if the caller has made the file already, and locked it; else one of its own.

    Raises FileExistsError if something is there by then, and OSError: then nothing is left.  But
    when it is the sync of the folder that fails, the file is there, and stays, since others may be
    using it already: StorageOpenError says so.
    """
    folder = os.path.dirname(path)
    aside = aside or os.path.join(folder, f".durus-{secrets.token_hex(8)}.new")
    try:
        yield aside
        try:
            system.link(aside, path)
        except OSError as error:
            if not link_is_impossible(error):
                raise
            _move(system, aside, path)
    finally:
        with contextlib.suppress(OSError):
            system.unlink(aside)
    try:
        system.sync_directory(folder)
    except OSError as error:
        reason = f"its directory cannot be synced: {error.strerror or error}"
        remedy = "without that, a power cut may take the file away"
        raise StorageOpenError(path, f"{reason}; {remedy}", error.errno) from error


@contextlib.contextmanager
def replacing(system: System, path: str) -> Iterator[str]:
    """Yields a name beside `path`, to make a file at; at the end that takes the place of `path`.

    It must be synced by then; its name is not durable on return.  Raises OSError.  After an error
    nothing has changed.  The caller has locked the file at `path`, so nobody else is here.
    """
    aside = f"{path}.pack"
    with contextlib.suppress(FileNotFoundError):
        system.unlink(aside)  # what one has left that was killed
    try:
        yield aside
        system.rename(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            system.unlink(aside)
        raise


def create_alone(system: System, path: str, create: Callable[[], F]) -> F | None:
    """A new file, made by `create`, and locked; None if somebody else makes one here.  OSError.

    The file at this path belongs to who has it locked: nobody else removes or renames it.  One that
    is not locked is what a process has left that was killed, or has just been made: then its maker
    finds out, when it locks the file, that somebody was faster.
    """
    with contextlib.suppress(FileNotFoundError):
        left = OpenFile(system, path, system.open(path, writable=True))
        with _unlocked_after_an_error(left):
            if not (left.lock() and left.is_at(path)):
                return None
            system.unlink(path)
    with contextlib.suppress(FileExistsError):
        file = create()
        with _unlocked_after_an_error(file):
            if file.lock() and file.is_at(path):
                return file
    return None


@contextlib.contextmanager
def _unlocked_after_an_error(file: OpenFile) -> Iterator[None]:
    """The traceback of an error may keep the file open for long."""
    try:
        yield
    except BaseException:
        file.unlock()
        raise


def link_is_impossible(error: OSError) -> bool:
    """Whether a file system has no second names for files, as FAT."""
    return error.errno in _NO_LINKS


def _move(system: System, aside: str, path: str) -> None:
    """Rename a file to a name that must be free.

    First an empty file takes the name.  Whoever finds that, and wants to make a database of it,
    locks it, and then looks at its size and whether it is still there; so is it done here.
    """
    place = system.create(path)
    try:
        is_ours = system.lock(place)
        there, ours = system.path_status(path), system.status(place)
        if not is_ours or there.identity != ours.identity or ours.size:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        try:
            system.rename(aside, path)
        except OSError:
            system.unlink(path)
            raise
    finally:
        system.close(place)


@contextlib.contextmanager
def making(path: str) -> Iterator[None]:
    """What the operating system refuses in here is a StorageOpenError: why the file is not made."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = f"cannot be made: {_explain(path, error)}"
        raise StorageOpenError(path, reason, error.errno) from error


def _explain(path: str, error: OSError) -> str:
    folder = os.path.dirname(path)
    if isinstance(error, FileExistsError):
        return "something is there already, and nothing is overwritten"
    if isinstance(error, FileNotFoundError) and not os.path.isdir(folder):
        return f"the directory {folder} does not exist"
    return error.strerror or str(error)
