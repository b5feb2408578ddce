"""An application that has durus-persistent installed, and no storage layer."""

from dataclasses import dataclass, field
from typing import assert_type

from durus.btree import BTree
from durus.connection import Connection
from durus.database import Database
from durus.error import ConflictError
from durus.persistent import ComputedAttribute, Persistent, is_ghost, note_change, oid_of
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.persistent_set import PersistentSet
from durus.storage import MemoryStorage
from durus.testing.databases import temporary_database


@dataclass(eq=False, repr=False)
class Account(Persistent):
    owner: str
    balance: int = 0
    history: PersistentList[int] = field(default_factory=PersistentList[int])

    def deposit(self, amount: int) -> int:
        self.balance += amount
        self.history.append(amount)
        return self.balance


class Bank(Persistent):
    def __init__(self) -> None:
        self.accounts: BTree[str, Account] = BTree()
        self.tags: PersistentSet[str] = PersistentSet()
        self.rates: PersistentDict[str, float] = PersistentDict()
        self.total: ComputedAttribute[int] = ComputedAttribute()
        self.plain: list[str] = []


def sum_balances(bank: Bank) -> int:
    return sum(account.balance for account in bank.accounts.values())


def main() -> None:
    storage = MemoryStorage()
    connection = Connection(storage, root_class=Bank)
    bank = connection.root
    assert_type(bank, Bank)
    for owner in ("ann", "bob"):
        bank.accounts[owner] = Account(owner)
    bank.accounts["ann"].deposit(10)
    bank.tags.add("small")
    bank.rates["EUR"] = 1.5
    bank.plain.append("changed in place")
    note_change(bank)
    assert connection.commit() is not None
    assert connection.commit() is None

    assert_type(bank.accounts["ann"], Account)
    assert_type(bank.accounts["ann"].history[0], int)
    assert_type(bank.total.get(lambda: sum_balances(bank)), int)
    assert bank.total.get(lambda: sum_balances(bank)) == 10
    assert [key for key, _ in bank.accounts.items()] == ["ann", "bob"]

    bank.accounts["ann"].deposit(5)
    del bank.accounts["bob"]
    connection.abort()
    assert bank.accounts["ann"].balance == 10
    assert "bob" in bank.accounts

    other = Connection(storage, root_class=Bank)
    other.root.accounts["ann"].deposit(1)
    bank.accounts["ann"].deposit(2)
    other.commit()
    try:
        connection.commit()
    except ConflictError as error:
        print("refused:", error)
        connection.abort()
    else:
        raise AssertionError("two deposits at once went through")
    assert bank.accounts["ann"].deposit(2) == 13
    connection.commit()
    assert oid_of(bank) is not None
    assert not is_ghost(bank)

    with temporary_database(storage, root_class=Bank) as db:
        assert_type(db, Database[Bank])
        assert db.run(lambda bank: bank.accounts["ann"].deposit(7)) == 20
    assert bank.accounts["ann"].balance == 13

    untyped = Connection(MemoryStorage())
    untyped.root["greeting"] = "hello"
    untyped.commit()
    print("persistent_app works")


if __name__ == "__main__":
    main()
