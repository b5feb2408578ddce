"""Files that are made aside and then appear under their names, complete or not at all.

For whoever makes a database file.  Invariant: *nothing that is there is ever replaced*, whoever
makes a file of the same name at the same time, unless that is what `replacing` is asked for.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from typing import Final

from durus.error import StorageOpenError
from durus.file_system import System

__all__ = ["appearing_at", "explain_creation_failure", "link_is_impossible", "replacing"]

_NO_LINKS: Final = frozenset([errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])


@contextlib.contextmanager
def appearing_at(system: System, path: str) -> Iterator[str]:
    """Yields a name in the same folder, to make a file at; at the end that gets the name `path`.

    It must be synced by then; its name is durable on return.

    Raises FileExistsError if something is there by then, and OSError.  After an error nothing is
    left; but when it was the sync of the folder that failed, the file is there.
    """
    folder = os.path.dirname(path)
    aside = os.path.join(folder, f".durus-{secrets.token_hex(8)}.new")
    try:
        yield aside
        try:
            system.link(aside, path)
        except OSError as error:
            if not link_is_impossible(error):
                raise
            _move(system, aside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            system.unlink(aside)
    system.sync_directory(folder)


@contextlib.contextmanager
def replacing(system: System, path: str) -> Iterator[str]:
    """Yields a name beside `path`, to make a file at; at the end that takes the place of `path`.

    It must be synced by then; its name is not durable on return.  Raises OSError.  After an error
    nothing has changed.
    """
    aside = f"{path}-{secrets.token_hex(8)}.new"
    try:
        yield aside
        system.rename(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            system.unlink(aside)
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


def explain_creation_failure(path: str, error: OSError) -> StorageOpenError:
    """What to raise when the file could not be made."""
    reason = error.strerror or str(error)
    folder = os.path.dirname(path)
    if isinstance(error, FileNotFoundError) and not os.path.isdir(folder):
        reason = f"the directory {folder} does not exist"
    return StorageOpenError(path, f"cannot be made: {reason}", error.errno)
