"""Connections in several threads on one shared storage: no update is lost, no sum is torn."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from durus.connection import Connection
from durus.error import ConflictError
from durus.persistent import Persistent
from tests.storages import KINDS, Kind

THREADS = 4
TRANSFERS = 60
ACCOUNTS = 5
START = 100


class Account(Persistent):
    def __init__(self) -> None:
        self.balance = START
        self.transfers = 0


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_transfers_between_accounts_lose_nothing(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "bank.durus"
    storage = kind.open(path)
    with Connection(storage) as connection:
        connection.root["accounts"] = [Account() for _ in range(ACCOUNTS)]
        connection.commit()
    barrier = threading.Barrier(THREADS)

    def work(seed: int) -> int:
        """Make transfers, each tried until it succeeds; returns the number of conflicts."""
        choice = random.Random(seed)
        conflicts = 0
        with Connection(storage) as connection:
            barrier.wait()
            for _ in range(TRANSFERS):
                done = False
                while not done:
                    try:
                        accounts = connection.root["accounts"]
                        source, target = choice.sample(accounts, 2)
                        # Read skew would show here.
                        if choice.random() < 0.3:
                            assert sum(a.balance for a in accounts) == ACCOUNTS * START
                        amount = choice.randrange(20)
                        source.balance -= amount
                        target.balance += amount
                        source.transfers += 1
                        connection.commit()
                        done = True
                    except ConflictError:
                        conflicts += 1
                        connection.abort()
        return conflicts

    seeds = [random.randrange(2**32) for _ in range(THREADS)]
    print("seeds", seeds)  # so that a failure can be replayed
    with ThreadPoolExecutor(THREADS) as pool:
        conflicts = sum(pool.map(work, seeds))
    print(conflicts, "conflicts")
    with Connection(storage) as connection:
        accounts = connection.root["accounts"]
        assert sum(account.balance for account in accounts) == ACCOUNTS * START
        assert sum(account.transfers for account in accounts) == THREADS * TRANSFERS
    storage.close()
    kind.check(path)
