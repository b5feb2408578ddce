"""Fixtures for pytest, for the tests of applications.  Nothing registers itself: import them.

# conftest.py
from durus.testing.fixtures import durus_database, durus_strict
__all__ = ["durus_database", "durus_strict"]
"""

from collections.abc import Iterator
from typing import Any

import pytest

from durus.database import Database
from durus.persistent_dict import PersistentDict
from durus.testing.databases import temporary_database

__all__ = ["durus_database", "durus_strict"]


@pytest.fixture
def durus_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Databases that the test opens are strict: a change that nobody has noted is an error.

    `pytestmark = pytest.mark.usefixtures("durus_strict")` is for all tests of a module.
    """
    monkeypatch.setattr(Database, "strict_by_default", True)


@pytest.fixture
def durus_database() -> Iterator[Database[PersistentDict[str, Any]]]:
    """An empty database in memory, strict, for one test."""
    with temporary_database() as database:
        yield database
