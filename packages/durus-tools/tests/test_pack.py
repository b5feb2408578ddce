"""`durus pack FILE`; packing through a server is tested with servers."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from durus.connection import Connection
from durus.file_storage import FileStorage

Durus = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("call", [["pack"], ["pack", "--file"], ["-p", "--file"]])
def test_what_is_no_longer_needed_goes(durus: Durus, database: Path, call: list[str]) -> None:
    with Connection(database) as connection:
        del connection.root["tree"]
        connection.root["kept"] = 1
        connection.commit()
    before = database.stat().st_size
    finished = durus(*call, database)
    after = database.stat().st_size
    assert after < before
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout == f"{database}: packed, {before:,} bytes before, {after:,} now\n"
    with Connection(database) as connection:
        assert dict(connection.root) == {"kept": 1}
        assert connection.get(1) is None


def test_a_file_that_is_open_elsewhere_is_packed(durus: Durus, database: Path) -> None:
    with FileStorage(database) as storage:
        connection = Connection(storage)
        root = connection.get_root()
        root["pad"] = "x" * 100_000
        connection.commit()
        del root["pad"]
        connection.commit()
        assert durus("pack", database).returncode == 0
        assert database.stat().st_size < 50_000
        root["after"] = 1
        connection.commit()
    with FileStorage(database) as storage:
        assert Connection(storage).get_root()["after"] == 1


def test_a_file_of_4_x_that_is_open_elsewhere_is_not_packed(durus: Durus, tmp_path: Path) -> None:
    path = tmp_path / "file.shelf"
    with FileStorage(path, format="shelf"):
        before = path.read_bytes()
        finished = durus("pack", path)
        assert path.read_bytes() == before
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"durus: {path}: ")
    assert finished.stderr.count("\n") == 1
    assert finished.stdout == ""


def test_compression_is_chosen(durus: Durus, database: Path) -> None:
    with Connection(database) as connection:
        connection.root["long"] = "a sentence that is repeated; " * 1000
        connection.commit()
    plain = database.stat().st_size
    for options, is_small in [
        (["--compression", "zstd"], True),
        ([], True),
        (["--compression", "none"], False),
        ([], False),
    ]:
        finished = durus("pack", database, *options)
        assert (finished.returncode, finished.stderr) == (0, "")
        assert (database.stat().st_size < plain / 10) == is_small
        with FileStorage(database) as storage:  # what comes is stored in the same manner
            assert storage._choose_codec() is not None if is_small else True
            assert Connection(storage).get_root()["long"].startswith("a sentence")


def test_compression_is_for_logs(durus: Durus, tmp_path: Path) -> None:
    path = tmp_path / "file.shelf"
    FileStorage(path, format="shelf").close()
    before = path.read_bytes()
    finished = durus("pack", path, "--compression", "zstd")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == f"durus: {path}: --compression is for logs, and this is none\n"
    assert path.read_bytes() == before
    assert "are for a FILE" in durus("pack", "--port", "1", "--compression", "none").stderr
    missing = durus("pack", tmp_path / "missing", "--compression", "zstd")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert not (tmp_path / "missing").exists()


def test_a_database_without_a_root_stays_without(durus: Durus, tmp_path: Path) -> None:
    path = tmp_path / "new.durus"
    FileStorage(path).close()
    assert durus("pack", path).returncode == 0
    with FileStorage(path, readonly=True) as storage:
        assert list(storage.transactions()) == []
