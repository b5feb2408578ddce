"""The programs of `tests/typing/programs.py` do what they say, on a real file."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from durus.database import Database
from durus.storage import MemoryStorage
from tests.typing import programs
from tests.typing.programs_model import Account, Bank


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database[Bank]]:
    """A bank with one account."""
    programs.typed_root(tmp_path / "bank.durus")
    with Database(tmp_path / "bank.durus", root_class=Bank) as db:
        yield db


def test_first_steps(tmp_path: Path) -> None:
    assert programs.first_steps(tmp_path / "app.durus") == "hello"


def test_typed_roots(tmp_path: Path) -> None:
    assert programs.typed_root(tmp_path / "bank.durus") == 10
    assert programs.root_by_alias() == 2
    with Database(MemoryStorage()) as db:
        assert programs.annotated(db) == 0


def test_deposits(db: Database[Bank]) -> None:
    assert programs.deposit(db, "ann", 5) == 15
    assert programs.total(db) == 15
    mails: list[str] = []
    assert programs.request(db, "ann", mails) == 16
    assert mails == ["ann"]


def test_a_worker(db: Database[Bank]) -> None:
    programs.deposit(db, "ann", -20)
    assert programs.forgive_debts(db) == 1
    assert db.run(lambda bank: bank.accounts["ann"].balance) == 0


def test_an_import(db: Database[Bank], tmp_path: Path) -> None:
    table = tmp_path / "accounts.csv"
    table.write_text("".join(f"name {number:03},x\n" for number in range(250)))
    assert programs.import_accounts(db, table) == 250
    assert db.run(lambda bank: len(bank.accounts)) == 251
    assert [t.note for t in db.transactions()][-3:] == ["import accounts.csv"] * 3


def test_a_backup(db: Database[Bank], tmp_path: Path) -> None:
    shown = programs.back_up(db, tmp_path / "backups")
    done, total = shown[-1].split("/")
    assert 0 < int(done) == int(total)
    assert any(name.suffix == ".durus" for name in (tmp_path / "backups").iterdir())


def test_what_if() -> None:
    filled = MemoryStorage()
    with Database(filled, root_class=Bank) as db, db.transaction() as bank:
        bank.accounts["ann"] = Account("Ann", 100)
    assert programs.what_if(filled) == 0
    assert Database(filled, root_class=Bank).run(lambda bank: len(bank.accounts)) == 1


def test_the_past(db: Database[Bank]) -> None:
    programs.deposit(db, "ann", 5)
    assert programs.look_back(db, "ann") == [("deposit ann", 15), ("signup", 10)]
    assert programs.time_travel(db, "ann") == 10


def test_savepoints_and_get(db: Database[Bank]) -> None:
    assert programs.in_parts(db, "ann") == 1


def test_schema(db: Database[Bank]) -> None:
    programs.add_currency()
    with Database(db.storage, root_class=Bank) as again, again.snapshot() as bank:
        assert list(bank.accounts["ann"].tags) == ["EUR"]
    assert programs.renamed(db) == {"tests.Acct": 0}
