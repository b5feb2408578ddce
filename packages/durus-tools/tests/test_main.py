"""The `durus` command, run as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from durus.btree import BTree
from durus.connection import Connection


def durus(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "durus", *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "app.durus"
    with Connection(path) as connection:
        connection.root["tree"] = BTree()
        connection.commit()
    return path


def test_help_shows_an_example() -> None:
    for arguments in ([], ["verify"], ["stats"]):
        finished = durus(*arguments, "--help")
        assert finished.returncode == 0
        assert "Example: durus" in finished.stdout


def test_a_sound_file_is_said_to_be_sound(database: Path) -> None:
    finished = durus("verify", database)
    assert (finished.returncode, finished.stdout) == (0, f"{database}: sound\n")
    report = json.loads(durus("verify", database, "--json").stdout)
    assert report == {"path": str(database), "sound": True, "findings": []}


def test_damage_is_named_with_its_oid(database: Path) -> None:
    content = bytearray(database.read_bytes())
    place = content.rindex(b"BTree")
    content[place] ^= 1
    database.write_bytes(content)
    finished = durus("verify", database)
    assert finished.returncode == 1
    assert "oid 0" in finished.stdout or "oid 1" in finished.stdout
    report = json.loads(durus("verify", database, "--json").stdout)
    assert not report["sound"]
    assert {"offset", "tid", "oid", "problem"} == set(report["findings"][0])


def test_objects_are_counted_by_class(database: Path) -> None:
    report = json.loads(durus("stats", database, "--json").stdout)
    assert report["objects"] == 3
    assert report["classes"]["durus.btree.BTree"] == 1
    assert "1  durus.btree.BTree\n" in durus("stats", database).stdout


def test_inspecting_changes_nothing(database: Path) -> None:
    before = database.read_bytes(), database.stat().st_mtime_ns
    durus("verify", database)
    durus("stats", database)
    assert (database.read_bytes(), database.stat().st_mtime_ns) == before
    assert [path.name for path in database.parent.iterdir()] == [database.name]


@pytest.mark.parametrize("command", ["verify", "stats"])
@pytest.mark.parametrize("name", ["missing.durus", ".", "text"])
def test_a_mistake_gives_one_line_that_names_the_path(
    tmp_path: Path, command: str, name: str
) -> None:
    (tmp_path / "text").write_text("no database")
    finished = durus(command, tmp_path / name)
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.count("\n") == 1
    assert str(tmp_path / name) in finished.stderr
