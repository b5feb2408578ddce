# pyright: strict
"""A program that is right: mypy --strict and pyright strict find nothing in it."""

import io
import shutil
import zipfile
from collections.abc import Iterator, MutableMapping, MutableSequence, MutableSet
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Generic, TypeVar, assert_type

from durus.blob import Blob
from durus.btree import BNode8, BTree
from durus.persistent import (
    ComputedAttribute,
    Persistent,
    PersistentObject,
    is_ghost,
    note_change,
    oid_of,
)
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.persistent_set import PersistentSet

T = TypeVar("T")


@dataclass(eq=False, repr=False)
class Account(Persistent):
    owner: str
    balance: int = 0
    tags: PersistentList[str] = field(default_factory=PersistentList[str])
    notes: list[str] = field(default_factory=list[str])


@dataclass(eq=False, repr=False, slots=True)
class Limits(PersistentObject):
    daily: int
    monthly: int | None = None


@dataclass(eq=False, repr=False)
class Group(Persistent, Generic[T]):
    names: PersistentSet[T] = field(default_factory=PersistentSet[T])
    members: PersistentList[T] = field(default_factory=PersistentList[T])
    ranks: BTree[str, T] = field(default_factory=BTree[str, T])


class Bank(Persistent):
    def __init__(self) -> None:
        self.accounts: BTree[str, Account] = BTree()
        self.by_day: BTree[tuple[date, int], PersistentSet[str]] = BTree(BNode8)
        self.settings = PersistentDict[str, Any]()
        self.total: ComputedAttribute[int] = ComputedAttribute()
        self.limits = Limits(100)

    def compute_total(self) -> int:
        return self.total.get(lambda: sum(a.balance for a in self.accounts.values()))


def use_accounts(bank: Bank) -> None:
    bank.accounts["ann"] = account = Account("Ann", 100)
    bank.accounts.add("bob", Account("Bob", tags=PersistentList(["new"])))
    bank.accounts.update((name, Account(name)) for name in ("cid", "dan"))
    bank.accounts.update({"eve": Account("Eve")}, fay=Account("Fay"))
    account.balance += 5
    account.notes.append("called")
    note_change(account)
    assert_type(bank.accounts["ann"].owner, str)
    assert_type(bank.accounts.get("ann"), Account | None)
    assert_type(bank.accounts.get("ann", 0), Account | int)
    assert_type(bank.accounts.pop("ann"), Account)
    assert_type(bank.accounts.pop("ann", None), Account | None)
    assert_type(bank.accounts.setdefault("ann", account), Account)
    assert_type(bank.accounts.get_min_item(), tuple[str, Account])
    assert_type(bank.accounts.keys(), list[str])
    assert_type(bank.accounts.items()[0], tuple[str, Account])
    assert_type(bank.accounts.iteritems(), Iterator[tuple[str, Account]])
    assert_type(list(reversed(bank.accounts)), list[str])
    for name, found in bank.accounts.items_range("a", "b", closed_end=True):
        assert_type(name, str)
        assert_type(found, Account)
    del bank.accounts["ann"]
    flags: BTree[int, bool] = BTree()
    flags.add(5)
    assert_type(bank.compute_total(), int)
    bank.total.invalidate()
    assert_type(is_ghost(account), bool)
    print(oid_of(account), len(bank.accounts), "ann" in bank.accounts, account.tags[:1])


def use_the_others(bank: Bank) -> None:
    bank.settings["rate"] = 1.5
    assert_type(PersistentDict({"a": 1}), PersistentDict[str, int])
    pairs = [(1, "a")]
    assert_type(PersistentDict(pairs), PersistentDict[int, str])
    assert_type(PersistentDict(a=1), PersistentDict[str, int])
    assert_type(PersistentDict({"a": 1}, b=2), PersistentDict[str, int])
    counts: PersistentDict[str, int] = PersistentDict()
    counts.update(a=1)
    assert_type(counts.copy(), PersistentDict[str, int])
    assert_type(counts.get("a", 0), int)
    assert_type(counts.values(), list[int])

    words = PersistentList(["a", "b"])
    assert_type(words, PersistentList[str])
    words += ["c"]
    words[0] = words[-1]
    words[1:] = ("x", "y")
    words.sort(key=len, reverse=True)
    assert_type(words[0], str)
    assert_type(words[:2], list[str])
    assert_type(words + words, PersistentList[str])
    assert_type(words.pop(), str)
    assert words < ["z"]

    numbers = PersistentSet([1, 2])
    assert_type(numbers, PersistentSet[int])
    numbers |= {3}
    numbers.update([4], (5,))
    assert_type(numbers & {1}, PersistentSet[int])
    assert_type(numbers | {"a"}, PersistentSet[int | str])
    assert_type(numbers.union(["a"]), PersistentSet[int | str])
    assert_type(numbers.pop(), int)


def use_blobs(blob: Blob) -> None:
    with blob.open("w") as writer, io.BytesIO(b"content") as source:
        assert_type(writer, io.BufferedWriter)
        shutil.copyfileobj(source, writer)
    with blob.open() as reader, zipfile.ZipFile(io.BytesIO(), "w") as packed:
        assert_type(reader, io.BufferedReader)
        packed.writestr("content", reader.read())
    with blob.open("r+") as changed:
        assert_type(changed, io.BufferedRandom)
    assert_type(blob.size, int)
    assert_type(Blob(bytearray(b"content")).read_bytes(), bytes)


def take_all(
    mapping: MutableMapping[str, int], sequence: MutableSequence[str], items: MutableSet[str]
) -> None: ...


tree: BTree[str, int] = BTree()
take_all(tree, PersistentList(["a"]), PersistentSet(["a"]))
take_all(PersistentDict({"a": 1}), PersistentList(), PersistentSet())
bank = Bank()
use_accounts(bank)
use_the_others(bank)
use_blobs(Blob())
