# pyright: strict
# ruff: noqa: B018
"""A program whose mistakes are found: each wrong line ends with mypy's code for it.

pyright finds mistakes in the same lines.
"""

import enum
from dataclasses import dataclass

from durus.btree import BTree
from durus.persistent import ComputedAttribute, Persistent, PersistentObject, note_change
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.persistent_set import PersistentSet


class Color(enum.Enum):
    RED = 1


@dataclass(eq=False, repr=False)
class Account(Persistent):
    owner: str
    balance: int = 0


class Slotted(PersistentObject):
    __slots__ = ("a",)

    a: int


account = Account("Ann")
account.balnce = 1  # error: attr-defined
account.balance = "1"  # error: assignment
account.ownr  # error: attr-defined
del account.ownr  # error: attr-defined
Account("Ann", "1")  # error: arg-type
Account()  # error: call-arg
slotted = Slotted()
slotted.b = 1  # error: attr-defined
slotted.a = "1"  # error: assignment
note_change([])  # error: arg-type

accounts: BTree[str, Account] = BTree()
accounts["ann"] = 5  # error: assignment
accounts[5] = account  # error: index
accounts[5]  # error: index
del accounts[5]  # error: arg-type
accounts.get(5)  # error: call-overload
accounts.pop(5)  # error: call-overload
accounts.items_from(5)  # error: arg-type
accounts.add("ann", 5)  # error: arg-type
accounts.add(None, account)  # error: arg-type
accounts.setdefault("ann", "x")  # error: arg-type
accounts.update([("ann", 5)])  # error: list-item
accounts.update(ann=5)  # error: call-overload
accounts["ann"].ownr  # error: attr-defined
accounts.count  # error: attr-defined
accounts.root.size  # error: attr-defined
accounts.extra = 1  # error: attr-defined
accounts.items_range("a", 5)  # error: arg-type
BTree[str, Account](dict)  # error: arg-type
number: int = accounts.get("ann")  # error: assignment

colors: BTree[Color, int] = BTree()  # error: type-var
nothing: BTree[None, int] = BTree()  # error: type-var
anything: BTree[object, int] = BTree()  # error: type-var
complexes: BTree[complex, int] = BTree()  # error: type-var

names: PersistentList[str] = PersistentList([1])  # error: list-item
names.append(1)  # error: arg-type
names[0] = 1  # error: call-overload
names[1:] = [1]  # error: list-item
names += [1]  # error: list-item
names.sorted()  # error: attr-defined
names.extra = 1  # error: attr-defined
number = names[0]  # error: assignment

tags: PersistentSet[str] = PersistentSet()
tags.add(1)  # error: arg-type
tags |= {1}  # error: arg-type
tags.extra = 1  # error: attr-defined
number = tags.pop()  # error: assignment

ages: PersistentDict[str, int] = PersistentDict()
ages["ann"] = "x"  # error: assignment
ages[1] = 1  # error: index
ages.update(ann="x")  # error: call-overload
ages.extra = 1  # error: attr-defined
wrong_ages: PersistentDict[str, int] = PersistentDict({"ann": "x"})  # error: arg-type

total: ComputedAttribute[int] = ComputedAttribute()
total.get(lambda: "x")  # error: return-value
total.extra = 1  # error: attr-defined
