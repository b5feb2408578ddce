"""Eight threads on one `Database`: no sum is torn, no count is lost, and none waits for ever."""

import random
import threading
from pathlib import Path

import pytest

from durus.counter import Counter
from durus.database import Database
from durus.persistent import Persistent
from durus.persistent_queue import PersistentQueue
from tests.processes import PATIENCE_S
from tests.random_transactions import switching_often
from tests.seeds import Seeds
from tests.storages import File, Kind, Memory, Served, Sqlite

THREADS = 8
ACCOUNTS = 10
START = 100


class Account(Persistent):
    def __init__(self) -> None:
        self.balance = START


class Bank(Persistent):
    def __init__(self) -> None:
        self.accounts = [Account() for _ in range(ACCOUNTS)]
        self.transfers = Counter()
        self.journal = PersistentQueue[tuple[int, int]]()

    def total(self) -> int:
        return sum(account.balance for account in self.accounts)


class Teller(threading.Thread):
    """Makes transfers, and adds up all accounts now and then."""

    def __init__(self, database: Database[Bank], number: int, seed: int, count: int) -> None:
        super().__init__(daemon=True)  # the test shall fail, and end, when it waits for ever
        self.error: BaseException | None = None
        self._database = database
        self._number = number
        self._choose = random.Random(f"{seed} {number}")
        self._count = count

    def run(self) -> None:
        try:
            for step in range(self._count):
                self._make(step)
        except BaseException as error:
            self.error = error

    def _make(self, step: int) -> None:
        choose, run = self._choose, self._database.run
        source, target = choose.sample(range(ACCOUNTS), 2)
        amount = choose.randrange(20)

        def transfer(bank: Bank) -> None:
            bank.accounts[source].balance -= amount
            bank.accounts[target].balance += amount
            if step % 5 == 0:
                assert bank.total() == ACCOUNTS * START

        run(transfer, timeout_s=PATIENCE_S)
        run(lambda bank: bank.transfers.increment(), timeout_s=PATIENCE_S)
        if step % 3 == 0:
            item = (self._number, step)
            run(lambda bank: bank.journal.append(item), timeout_s=PATIENCE_S)
        if step % 4 == 0:
            total = run(lambda bank: bank.total(), timeout_s=PATIENCE_S)
            assert total == ACCOUNTS * START


@pytest.mark.parametrize(
    "kind", [Memory(), File(), Sqlite(), Served()], ids=lambda kind: type(kind).__name__
)
def test_eight_threads_lose_nothing(kind: Kind, seeds: Seeds, tmp_path: Path) -> None:
    path = tmp_path / "bank.durus"
    count = 500 if seeds.is_long else 30
    storage = kind.open(path)
    with Database(storage, root_class=Bank) as database:
        tellers = [Teller(database, number, seeds.first, count) for number in range(THREADS)]
        with switching_often():
            for teller in tellers:
                teller.start()
            for teller in tellers:
                teller.join(PATIENCE_S * (10 if seeds.is_long else 1))
        assert not any(teller.is_alive() for teller in tellers)
        assert [teller.error for teller in tellers] == [None] * THREADS, f"--seed {seeds.first}"
        with database.snapshot() as bank:
            assert bank.total() == ACCOUNTS * START
            assert bank.transfers.value == THREADS * count
            for number in range(THREADS):
                steps = [step for teller, step in bank.journal if teller == number]
                assert steps == list(range(0, count, 3))
        stats = database.stats()
        print(f"{stats.commits} commits, {stats.conflicts} conflicts")
    storage.close()
    kind.check(path)
