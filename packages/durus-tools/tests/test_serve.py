"""`durus serve`, as far as it says something without serving."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from durus.file_storage import FileStorage

Durus = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_help_is_that_of_the_server(durus: Durus) -> None:
    finished = durus("serve", "--help")
    for option in ("--file", "--gcbytes", "--owner", "--umask", "--logginglevel", "--stop"):
        assert option in finished.stdout
    assert "durus serve --file" in finished.stdout


@pytest.mark.parametrize(
    "mistake", [["--frobnicate"], ["--port", "http"], ["--port"], ["app.durus"]], ids=" ".join
)
def test_a_wrong_call_is_one_line(durus: Durus, mistake: list[str]) -> None:
    finished = durus("serve", *mistake)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("durus serve: ")
    assert finished.stderr.count("\n") == 1


def test_a_file_of_4_x_that_is_open_elsewhere_is_one_line(durus: Durus, tmp_path: Path) -> None:
    path = tmp_path / "file.shelf"
    with FileStorage(path, format="shelf"):
        finished = durus("serve", "--file", path, "--port", "0")
    assert finished.returncode != 0
    assert str(path) in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_what_is_no_database_is_one_line(durus: Durus, database: Path) -> None:
    database.write_text("no database")
    finished = durus("serve", "--file", database, "--port", "0")
    assert finished.returncode != 0
    assert str(database) in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert database.read_text() == "no database"


def test_where_no_server_is_none_is_stopped(durus: Durus, tmp_path: Path) -> None:
    finished = durus("serve", "--stop", "--address", tmp_path / "here.sock")
    assert finished.returncode != 0
    assert str(tmp_path / "here.sock") in finished.stderr
    assert finished.stderr.count("\n") == 1
