"""Waiting for the lock of a log."""

from pathlib import Path

import pytest

from durus.error import StorageLockedError
from durus.file_system import OperatingSystem
from durus.log_file import LogFile
from durus.log_lock import hold_lock, obtain_lock


def open_file(path: Path) -> LogFile:
    system = OperatingSystem()
    return LogFile(system, str(path), system.open(str(path), writable=True))


def test_a_free_lock_is_obtained_without_waiting(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    assert obtain_lock(open_file(path), 0.0, meanwhile=pytest.fail) == 0.0


def test_who_waits_does_something_meanwhile_until_the_lock_is_free(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    holder, waiting = open_file(path), open_file(path)
    assert holder.lock()
    calls = 0

    def unlock_soon() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            holder.unlock()

    assert obtain_lock(waiting, 60.0, meanwhile=unlock_soon) > 0.0
    assert calls == 3
    assert not holder.lock()


def test_who_waits_too_long_is_told_who_has_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with hold_lock(open_file(path), 0.0), pytest.raises(StorageLockedError, match=str(path)):
        obtain_lock(open_file(path), 0.01)
