"""The classes of `programs.py`."""

from dataclasses import dataclass, field

from durus.btree import BTree
from durus.counter import Counter
from durus.persistent import ComputedAttribute, Persistent
from durus.persistent_list import PersistentList


@dataclass(eq=False)
class Account(Persistent):
    owner: str
    balance: int = 0
    tags: PersistentList[str] = field(default_factory=PersistentList[str])


class Bank(Persistent):
    def __init__(self) -> None:
        self.accounts: BTree[str, Account] = BTree()
        self.visits = Counter()
        self.total: ComputedAttribute[int] = ComputedAttribute()
