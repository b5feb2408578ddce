"""States with a schema version, in a file that Durus 4.3 and we use in turn."""

import sys
from pathlib import Path

import pytest

from scripts.environments import Environment

OURS = Environment(Path(sys.executable))

SHOP = """
from durus.persistent import Persistent

class Account(Persistent):
    def __init__(self, balance):
        self.balance = balance
"""

BEGIN = """
import sys
from durus.connection import Connection
from durus.file_storage import FileStorage
from shop import Account
connection = Connection(FileStorage(sys.argv[1]))
for name in ("ann", "bob", "eve"):
    connection.get_root()[name] = Account(1)
connection.commit()
"""

UPGRADE = """
import sys
from durus.connection import Connection
from durus.schema import upgrade
from shop import Account

@upgrade(Account, to=2)
def add_currency(account):
    account.upgrades = getattr(account, "upgrades", 0) + 1
    account.currency = "EUR"

connection = Connection(sys.argv[1])
root = connection.root
for name in sys.argv[2:]:
    root[name].balance += 1
connection.commit()
for name, account in sorted(root.items()):
    print(name, sorted(vars(account).items()))
"""

CHANGE = """
import sys
from durus.connection import Connection
from durus.file_storage import FileStorage
connection = Connection(FileStorage(sys.argv[1]))
root = connection.get_root()
for name in ("ann", "bob"):
    root[name].balance += 10
connection.commit()
connection.pack()
print(sorted(vars(root["ann"])))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP, encoding="utf-8")
    return tmp_path / "database"


def test_durus43_reads_a_versioned_state_and_keeps_the_version(
    durus43_python: Path, path: Path
) -> None:
    theirs = Environment(durus43_python)

    def run(who: Environment, code: str, *arguments: str) -> str:
        return who.run("-c", code, path, *arguments, folder=path.parent).stdout

    run(theirs, BEGIN)
    run(OURS, UPGRADE, "ann")
    attributes = run(theirs, CHANGE)
    assert attributes == "['_p_schema_version', 'balance', 'currency', 'upgrades']\n"
    # Ann was stored as version 2 before, so she is not upgraded again; Bob is, and Eve.
    expected = [("ann", 12), ("bob", 12), ("eve", 1)]
    lines = [
        f"{name} [('balance', {balance}), ('currency', 'EUR'), ('upgrades', 1)]"
        for name, balance in expected
    ]
    assert run(OURS, UPGRADE, "bob").splitlines() == lines
    assert run(OURS, UPGRADE).splitlines() == lines
