"""What tests of files share: a path, a log file with an object in it, and forks."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from durus.file_storage import FileStorage
from durus.index_checkpoint import write_checkpoint
from durus.interfaces import Oid
from durus.log_verify import verify_file
from durus.testing.storage_contract import create


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.durus"


@pytest.fixture
def oid(path: Path) -> Oid:
    """An object with the value 0, in a database that has an index file."""
    with closing(FileStorage(path)) as storage:
        (oid,) = create(storage, 1)
        write_checkpoint(storage._shared.current())
    return oid


@pytest.fixture
def storage(path: Path, oid: Oid) -> Iterator[FileStorage]:
    """A storage of that database, in which verify finds nothing at the end."""
    with closing(FileStorage(path)) as storage:
        yield storage
    assert list(verify_file(str(path))) == []


@pytest.fixture
def in_child() -> Callable[[Callable[[], object]], int]:
    """in_child(call): call it in a forked child; how that ended, as `os.waitpid` says it."""

    def run(call: Callable[[], object]) -> int:
        with warnings.catch_warnings():  # other tests may have left threads
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            return os.waitpid(pid, 0)[1]
        status = 1
        try:
            call()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)

    return run
