"""The anomalies of isolation, each with two transactions, and what becomes of it in each mode.

The table of docs/isolation.md says what is seen here, and `write_table()` writes it.
"""

import contextvars
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest

from durus.btree import BNode, BTree
from durus.connection import Connection
from durus.counter import Counter
from durus.database import Database
from durus.error import ConflictError
from durus.persistent import Persistent
from durus.shelf_storage import ShelfStorage
from durus.storage import MemoryStorage
from tests.storages import DictStorage

T = TypeVar("T")

PAGE = Path(__file__).parent.parent / "docs" / "isolation.md"
TABLE = re.compile(r"(?<=^<!-- table -->\n).*?(?=^<!-- end of the table -->$)", re.M | re.S)


class Account(Persistent):
    def __init__(self, balance: int) -> None:
        self.balance = balance


class Bank(Persistent):
    def __init__(self) -> None:
        self.ann = Account(50)
        self.bob = Account(50)
        self.total = Account(0)
        self.visits = Counter()
        self.orders: BTree[int, int] = BTree(BNode)
        self.orders.update((number, 1) for number in range(0, 100, 10))


class ClassicSession:
    """A connection, and the transaction that is under way on it."""

    def __init__(self, storage: Any) -> None:
        self._connection = Connection(storage, root_class=Bank)

    def do(self, step: Callable[[Bank], T]) -> T:
        return step(self._connection.root)

    def commit(self) -> None:
        self._connection.commit()

    def abort(self) -> None:
        self._connection.abort()

    def close(self) -> None:
        self._connection.close()


class DatabaseSession:
    """A transaction of a database that others share, in a context of its own."""

    def __init__(self, database: Database[Bank]) -> None:
        self._context = contextvars.Context()
        self._transaction = database.transaction()
        self._context.run(lambda: self._transaction.root)

    def do(self, step: Callable[[Bank], T]) -> T:
        return self._context.run(lambda: step(self._transaction.root))

    def commit(self) -> None:
        self._context.run(self._transaction.commit)

    def abort(self) -> None:
        self._context.run(self._transaction.abort)

    close = abort


Session = ClassicSession | DatabaseSession


@dataclass(frozen=True)
class Mode:
    name: str
    open_storage: Callable[[str], Any]
    is_classic: bool
    calm: str
    """Why there was no anomaly, when there was no error either."""

    @contextmanager
    def sessions(self, path: str) -> Iterator[tuple[Session, Session]]:
        """Two transactions that have begun, on the same bank."""
        with ExitStack() as stack:
            storage = self.open_storage(path)
            stack.callback(storage.close)
            with Database(storage, root_class=Bank):
                pass  # makes the bank, in a connection that then knows all of it
            database = stack.enter_context(Database(storage, root_class=Bank))
            sessions: list[Session] = []
            for _ in range(2):
                session = ClassicSession(storage) if self.is_classic else DatabaseSession(database)
                stack.callback(session.close)
                sessions.append(session)
            yield sessions[0], sessions[1]


_KEEPS = "prevented: what was read stays as it was"
_SNAPSHOT = "prevented: reads from the snapshot"

MODES = [
    Mode("`Connection`", lambda path: MemoryStorage(), True, _KEEPS),
    Mode("`Database`", lambda path: MemoryStorage(), False, _SNAPSHOT),
    Mode("`Database`, storage without history", ShelfStorage, False, _KEEPS),
]

OTHERS = [
    (Mode("Connection, SHELF-1", ShelfStorage, True, _KEEPS), MODES[0]),
    (Mode("Database, DictStorage", lambda path: DictStorage(), False, _KEEPS), MODES[2]),
]
"""More modes without history, and which of the others each is like."""


class HappenedError(Exception):
    """The anomaly was there."""


class RefusedCommitError(Exception):
    """A commit was refused."""


def commit(session: Session) -> None:
    try:
        session.commit()
    except ConflictError as error:
        raise RefusedCommitError(type(error).__name__) from error


def require(is_sound: bool) -> None:
    if not is_sound:
        raise HappenedError


def count_up(account: Account) -> None:
    account.balance += 1


def has_spare(bank: Bank) -> bool:
    return bank.ann.balance + bank.bob.balance >= 100


# The anomalies.  Each returns what prevented it, if it was neither an error nor the mode's calm.


def dirty_read(one: Session, other: Session) -> str | None:
    """One changes a value; another reads it, before the first gives up"""
    one.do(lambda bank: count_up(bank.ann))
    require(other.do(lambda bank: bank.ann.balance) == 50)
    one.abort()
    require(other.do(lambda bank: bank.ann.balance) == 50)
    return "prevented: only what is committed is read"


def lost_update(one: Session, other: Session) -> str | None:
    """Both read a value, and write what they make of it"""
    for session in (one, other):
        session.do(lambda bank: count_up(bank.ann))
    commit(one)
    commit(other)
    raise HappenedError


def lost_update_of_counter(one: Session, other: Session) -> str | None:
    """Both `increment()` a `Counter`"""
    for session in (one, other):
        session.do(lambda bank: bank.visits.increment())
    commit(one)
    commit(other)
    return "no conflict: both count"


def lost_update_of_counter_that_was_read(one: Session, other: Session) -> str | None:
    """Both read a `Counter`, and then `increment()` it"""
    for session in (one, other):
        session.do(lambda bank: bank.visits.increment() if bank.visits.value < 1 else None)
    commit(one)
    commit(other)
    raise HappenedError


def non_repeatable_read(one: Session, other: Session) -> str | None:
    """One reads a value twice; another changes it in between"""
    first = one.do(lambda bank: bank.ann.balance)
    other.do(lambda bank: count_up(bank.ann))
    commit(other)
    require(one.do(lambda bank: bank.ann.balance) == first)
    commit(one)
    return None


def phantom(one: Session, other: Session) -> str | None:
    """One reads a range twice; another inserts into it in between"""
    first = one.do(lambda bank: list(bank.orders.items_range(20, 60)))
    other.do(lambda bank: bank.orders.add(45, 1))
    commit(other)
    require(one.do(lambda bank: list(bank.orders.items_range(20, 60))) == first)
    commit(one)
    return None


def phantom_that_matters(one: Session, other: Session) -> str | None:
    """One reads a range and writes what it makes of it; another inserts into the range"""

    def add_up(bank: Bank) -> None:
        bank.total.balance = sum(value for _, value in bank.orders.items_range(20, 60))

    one.do(add_up)
    other.do(lambda bank: bank.orders.add(45, 1))
    commit(other)
    commit(one)
    raise HappenedError


def read_skew(one: Session, other: Session) -> str | None:
    """One reads two values; another changes both in between"""

    def move(bank: Bank) -> None:
        bank.ann.balance -= 30
        bank.bob.balance += 30

    ann = one.do(lambda bank: bank.ann.balance)
    other.do(move)
    commit(other)
    require(ann + one.do(lambda bank: bank.bob.balance) == 100)
    commit(one)
    return None


def write_skew(one: Session, other: Session) -> str | None:
    """Both read two values, and each changes another one of them"""

    def take_from_ann(bank: Bank) -> None:
        if has_spare(bank):
            bank.ann.balance -= 50

    def take_from_bob(bank: Bank) -> None:
        if has_spare(bank):
            bank.bob.balance -= 50

    one.do(take_from_ann)
    other.do(take_from_bob)
    commit(one)
    commit(other)
    raise HappenedError


Anomaly = Callable[[Session, Session], str | None]

ANOMALIES: dict[str, list[Anomaly]] = {
    "Dirty read": [dirty_read],
    "Non-repeatable read": [non_repeatable_read],
    "Read skew": [read_skew],
    "Phantom": [phantom, phantom_that_matters],
    "Lost update": [lost_update, lost_update_of_counter_that_was_read, lost_update_of_counter],
    "Write skew": [write_skew],
}


def find_outcome(anomaly: Anomaly, mode: Mode, folder: Path) -> str:
    """What becomes of an anomaly, as the table says it."""
    with mode.sessions(str(folder / "bank.durus")) as (one, other):
        try:
            return anomaly(one, other) or mode.calm
        except RefusedCommitError as conflict:
            return f"prevented: {conflict} at commit"
        except ConflictError as error:
            return f"prevented: {type(error).__name__} at the read"
        except HappenedError:
            return "happens"


def make_table() -> str:
    lines = ["| | | " + " | ".join(mode.name for mode in MODES) + " |"]
    lines.append("|---" * (len(MODES) + 2) + "|")
    for name, anomalies in ANOMALIES.items():
        for anomaly in anomalies:
            cells = [name, str(anomaly.__doc__)]
            for mode in MODES:
                with TemporaryDirectory() as folder:
                    cells.append(find_outcome(anomaly, mode, Path(folder)))
            lines.append("| " + " | ".join(cells) + " |")
            name = ""
    return "\n".join(lines) + "\n"


def write_table() -> None:
    text = TABLE.sub(lambda _: make_table(), PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")


ALL = [anomaly for anomalies in ANOMALIES.values() for anomaly in anomalies]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("anomaly", ALL, ids=lambda anomaly: anomaly.__name__)
def test_no_anomaly_happens(anomaly: Anomaly, mode: Mode, tmp_path: Path) -> None:
    assert find_outcome(anomaly, mode, tmp_path) != "happens"


@pytest.mark.parametrize(("mode", "like"), OTHERS, ids=lambda mode: mode.name)
@pytest.mark.parametrize("anomaly", ALL, ids=lambda anomaly: anomaly.__name__)
def test_it_is_the_same_over_other_storages(
    anomaly: Anomaly, mode: Mode, like: Mode, tmp_path: Path
) -> None:
    if anomaly is lost_update_of_counter:  # to merge takes history
        like = MODES[2]
    outcomes = []
    for number, found in enumerate((mode, like)):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcomes.append(find_outcome(anomaly, found, folder))
    assert outcomes[0] == outcomes[1]


def test_the_page_says_what_happens() -> None:
    found = TABLE.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == make_table(), "write_table() of this module writes it anew"
