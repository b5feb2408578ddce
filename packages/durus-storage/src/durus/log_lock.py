"""The lock of a log file: one process at a time appends to it.

It is a `flock` of the file itself, so it ends with the process, however that ends.  Invariant:
nobody waits for ever; who gives up says who has the lock.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from durus.error import StorageLockedError
from durus.log_file import LogFile

__all__ = ["hold_lock", "obtain_lock"]

_PAUSE_MIN_S: Final = 200e-6
_PAUSE_MAX_S: Final = 0.002
_PAUSE_PART: Final = 4
"""A pause is this part of the time that was waited already: so nobody waits much too long, and
who waits long asks seldom."""


def obtain_lock(
    file: LogFile,
    timeout_s: float,
    *,
    shared: bool = False,
    meanwhile: Callable[[], object] = bool,
) -> float:
    """Lock a file, or raise StorageLockedError after a while; OSError.

    meanwhile: called before each pause.
    Returns the seconds that this took, 0.0 if nobody had it locked.
    """
    if file.lock(shared=shared):
        return 0.0
    system = file.system
    start = system.monotonic()
    while True:
        waited = system.monotonic() - start
        if file.lock(shared=shared):
            return waited
        if waited >= timeout_s:
            holder = file.lock_holder()
            raise StorageLockedError(
                f"{file.path}: {holder or 'another process'} has had the file locked for "
                f"{timeout_s:g} s, so nothing was written.  Try again when it has finished, or "
                "wait longer with lock_timeout_s"
            )
        meanwhile()
        system.pause(min(max(_PAUSE_MIN_S, waited / _PAUSE_PART), _PAUSE_MAX_S))


@contextlib.contextmanager
def hold_lock(file: LogFile, timeout_s: float) -> Iterator[float]:
    """Have a file locked meanwhile; yields what `obtain_lock` returns."""
    waited = obtain_lock(file, timeout_s)
    try:
        yield waited
    finally:
        file.unlock()
