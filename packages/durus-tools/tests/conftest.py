"""What the tests of the command share: running it as a user does, and a database to run it on."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from durus.btree import BTree
from durus.connection import Connection

Durus = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of the command: a home of its own, and output as buffered as a user's."""
    home = tmp_path / "home"
    home.mkdir()
    without = ("DURUS", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(without)}
    return {**kept, "HOME": str(home)}


@pytest.fixture
def durus(environment: dict[str, str]) -> Durus:
    """durus("stats", path): what `durus stats path` says, when nothing of it is a terminal."""

    def run(
        *arguments: str | Path, stdin: str = "", env: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "durus", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=60,
            env={**environment, **(env or {})},
        )

    return run


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A log file with three objects: the root, a BTree and its node."""
    folder = tmp_path / "databases"
    folder.mkdir()
    path = folder / "app.durus"
    with Connection(path) as connection:
        connection.root["tree"] = BTree()
        connection.commit()
    return path
