"""What users do with a `Database`, as they would write it; each function is a program.

`tests.test_typing` checks the types, and `tests.test_database_programs` runs them.
"""

import asyncio
import csv
import itertools
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import assert_type

from durus.btree import BTree
from durus.database import Database, Transaction
from durus.persistent import oid_of
from durus.schema import rename, upgrade
from durus.storage import MemoryStorage, OverlayStorage
from tests.typing.programs_model import Account, Bank


def first_steps(path: Path) -> str:
    with Database(path) as db:
        with db.transaction() as root:
            root["greeting"] = "hello"
        with db.snapshot() as root:
            return str(root["greeting"])


def typed_root(path: Path) -> int:
    with Database(path, root_class=Bank) as db:
        assert_type(db, Database[Bank])
        with db.transaction(note="signup", user="ann") as bank:
            assert_type(bank, Bank)
            bank.accounts["ann"] = Account("Ann", 10)
        return db.run(lambda bank: bank.accounts["ann"].balance)


def root_by_alias() -> int:
    with Database(MemoryStorage(), root_class=BTree[str, int]) as db:
        with db.transaction() as tree:
            tree["a"] = 1
        return db.run(lambda tree: tree["a"] + 1)


def annotated(db: Database) -> int:
    """`Database` alone is one whose root is a dictionary."""
    return db.run(len)


def deposit(db: Database[Bank], name: str, amount: int) -> int:
    def add(bank: Bank) -> int:
        account = bank.accounts[name]
        account.balance += amount
        return account.balance

    return db.run(add, note=f"deposit {name}")


def total(db: Database[Bank]) -> int:
    def add_up(bank: Bank) -> int:
        return bank.total.get(lambda: sum(a.balance for a in bank.accounts.values()))

    return asyncio.run(db.arun(add_up))


def dependency(db: Database[Bank]) -> Iterator[Transaction[Bank]]:
    """As a framework uses it: enter, endpoint and exit may run in different threads."""
    with (tx := db.transaction()):
        yield tx


def request(db: Database[Bank], name: str, mails: list[str]) -> int:
    steps = dependency(db)
    tx = next(steps)
    tx.note = "deposit"
    tx.on_commit(lambda: mails.append(name))
    tx.root.accounts[name].balance += 1
    balance = tx.root.accounts[name].balance
    assert next(steps, None) is None
    return balance


def forgive_debts(db: Database[Bank]) -> int:
    """A worker: one account in each transaction, so that it conflicts with few others."""

    def step(bank: Bank) -> bool:
        for account in bank.accounts.values():
            if account.balance < 0:
                account.balance = 0
                bank.visits.increment()  # blind: it merges with what others count
                return True
        return False

    while db.run(step, note="worker", attempts=20):
        pass
    return db.run(lambda bank: bank.visits.value)


def import_accounts(db: Database[Bank], path: Path) -> int:
    with path.open() as file:
        rows = csv.reader(file)
        while batch := list(itertools.islice(rows, 100)):
            with db.transaction(note=f"import {path.name}") as bank:
                bank.accounts.update((name, Account(name)) for name, *_ in batch)
        return rows.line_num


def back_up(db: Database[Bank], folder: Path) -> list[str]:
    shown: list[str] = []
    db.backup(folder, progress=lambda done, total: shown.append(f"{done}/{total}"))
    return shown


def what_if(filled: MemoryStorage) -> int:
    """Each test starts from `filled`; nothing is copied, and nothing of it is changed."""
    with Database(OverlayStorage(filled), root_class=Bank, strict=True) as db:
        with db.transaction() as bank:
            bank.accounts.clear()
        return db.run(lambda bank: len(bank.accounts))


def look_back(db: Database[Bank], name: str) -> list[tuple[str, int]]:
    with db.snapshot() as bank:
        return [(rev.note, rev.load().balance) for rev in db.history(bank.accounts[name])]


def time_travel(db: Database[Bank], name: str) -> int:
    """The balance before the last change; pack(keep=...) says how far back that goes."""
    newest = list(db.transactions())[-1]
    with db.snapshot(at=newest.tid - 1) as bank:
        balance = bank.accounts[name].balance
    db.pack(keep=timedelta(days=30))
    return balance


def in_parts(db: Database[Bank], name: str) -> int:
    with (tx := db.transaction()) as bank:
        bank.accounts[name].balance = 1
        savepoint = tx.savepoint()
        bank.accounts[name].balance = 2
        savepoint.rollback()
        account = bank.accounts[name]
    oid = oid_of(account)
    assert oid is not None
    with (tx := db.transaction()):
        found = tx.get(oid, Account)
        assert_type(found, Account)
        assert_type(tx.get(found), Account)
        return found.balance


def add_currency() -> None:
    @upgrade(Account, to=2)
    def add(account: Account) -> None:
        account.tags.append("EUR")

    assert_type(add(Account("x")), None)


def renamed(db: Database[Bank]) -> dict[str, int]:
    return dict(rename(db, {"tests.Acct": "tests.typing.programs_model.Account"}, dry_run=True))
