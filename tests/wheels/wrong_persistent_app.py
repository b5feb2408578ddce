"""Mistakes that a type checker must find: those on the lines marked so, and no others."""

from dataclasses import dataclass
from enum import Enum

from durus.btree import BTree
from durus.connection import Connection
from durus.persistent import ComputedAttribute, Persistent, note_change
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.persistent_set import PersistentSet
from durus.storage import MemoryStorage


class Color(Enum):
    RED = 1


@dataclass(eq=False, repr=False)
class Account(Persistent):
    owner: str
    balance: int = 0


class Bank(Persistent):
    def __init__(self) -> None:
        self.accounts: BTree[str, Account] = BTree()
        self.total: ComputedAttribute[int] = ComputedAttribute()


connection = Connection(MemoryStorage(), root_class=Bank)
bank = connection.root
account = Account("ann")
bank.accounts["ann"] = account

account.balnce = 1  # error
print(account.ownr)  # error
account.balance = "1"  # error
Account(owner=1)  # error
bank.acounts["ann"] = account  # error
bank.accounts["ann"] = 1  # error
bank.accounts[1] = account  # error
print(bank.accounts["ann"].nme)  # error
text: str = bank.accounts["ann"].balance  # error
by_color: BTree[Color, int] = BTree()  # error
by_nothing: BTree[None, int] = BTree()  # error
by_object: BTree[object, int] = BTree()  # error
number: str = bank.total.get(lambda: 1)  # error
names: PersistentList[str] = PersistentList()
names.append(1)  # error
first: int = names[0]  # error
tags: PersistentSet[str] = PersistentSet()
tags.add(1)  # error
rates: PersistentDict[str, float] = PersistentDict()
rates["EUR"] = "1.5"  # error
note_change("ann")  # error
connection.comit()  # error
connection.root = 1  # error
Connection(3)  # error
tid: str = connection.commit()  # error
