"""A database in transactions of the real `transaction` package, beside a second participant.

The second one fails at each step in turn.  Pyramid's own tests of us are at the end.
"""

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context
from typing import Any, NoReturn, TypeVar

import pytest

from durus.database import Database
from durus.error import (
    ConflictError,
    ReadConflictError,
    TransactionEndedError,
    UnstorableError,
    WriteConflictError,
)
from durus.persistent import Persistent
from durus.persistent_dict import PersistentDict
from durus.storage import MemoryStorage

transaction = pytest.importorskip("transaction")
from transaction.interfaces import (  # noqa: E402
    IDataManagerSavepoint,
    InvalidSavepointRollbackError,
    IRetryDataManager,
    ISavepointDataManager,
    TransactionFailedError,
)
from zope.interface.verify import verifyObject  # noqa: E402

from durus.transaction_manager import join, join_transaction  # noqa: E402

T = TypeVar("T")


class Account(Persistent):
    def __init__(self, balance: int) -> None:
        self.balance = balance


class Bank(Persistent):
    def __init__(self) -> None:
        self.ann = Account(1)
        self.bob = Account(1)
        self.more: PersistentDict[str, Any] = PersistentDict()


@pytest.fixture
def db() -> Iterator[Database[Bank]]:
    with Database(MemoryStorage(), root_class=Bank) as db:
        yield db


@pytest.fixture
def manager() -> Any:
    return transaction.TransactionManager(explicit=True)


def elsewhere(db: Database[Bank], call: Callable[[Bank], T]) -> T:
    """Call something in a transaction of another context, as another thread would."""
    return Context().run(db.run, call)


def balances(db: Database[Bank]) -> tuple[int, int]:
    return elsewhere(db, lambda bank: (bank.ann.balance, bank.bob.balance))


def deposit(bank: Bank) -> None:
    bank.ann.balance += 10


# Commit and abort


def test_what_was_changed_is_stored_by_the_manager(db: Database[Bank], manager: Any) -> None:
    with manager:
        deposit(join(db, manager))
        assert balances(db) == (1, 1)
    assert balances(db) == (11, 1)


def test_an_abort_of_the_manager_gives_up_all_changes(db: Database[Bank], manager: Any) -> None:
    manager.begin()
    deposit(join(db, manager))
    manager.abort()
    assert balances(db) == (1, 1)
    with manager:
        assert join(db, manager).ann.balance == 1


def test_a_second_join_in_a_transaction_gives_the_same_root(
    db: Database[Bank], manager: Any
) -> None:
    with manager:
        bank = join(db, manager)
        assert join(db, manager) is bank
        assert join_transaction(db, manager).root is bank
        assert len(manager.get()._resources) == 1


def test_a_transaction_sees_what_was_committed_since_the_last_one(
    db: Database[Bank], manager: Any
) -> None:
    with manager:
        assert join(db, manager).ann.balance == 1
    elsewhere(db, deposit)
    with manager:
        assert join(db, manager).ann.balance == 11


def test_the_manager_of_the_thread_is_taken_by_default(db: Database[Bank]) -> None:
    with transaction.manager:
        deposit(join(db))
    assert balances(db) == (11, 1)


def test_two_databases_take_part_in_one_transaction(db: Database[Bank], manager: Any) -> None:
    with Database(MemoryStorage(), root_class=Bank) as other, manager:
        deposit(join(db, manager))
        join(other, manager).bob.balance = 7
        manager.commit()
        manager.begin()
        assert (balances(db), balances(other)) == ((11, 1), (1, 7))


def test_user_and_description_become_user_and_note(db: Database[Bank], manager: Any) -> None:
    with manager as current:
        deposit(join(db, manager))
        current.user = "ann"
        current.note("deposit")
    *_, last = db.transactions()
    assert (last.user, last.note) == ("ann", "deposit")


def test_what_was_said_to_our_transaction_is_kept_when_the_manager_says_nothing(
    db: Database[Bank], manager: Any
) -> None:
    with manager:
        ours = join_transaction(db, manager)
        deposit(ours.root)
        ours.user, ours.note = "ann", "deposit"
    *_, last = db.transactions()
    assert (last.user, last.note) == ("ann", "deposit")


def test_a_doomed_transaction_stores_nothing(db: Database[Bank], manager: Any) -> None:
    manager.begin()
    deposit(join(db, manager))
    manager.doom()
    with pytest.raises(transaction.interfaces.DoomedTransaction):
        manager.commit()
    manager.abort()
    assert balances(db) == (1, 1)


def test_a_failed_transaction_can_be_joined_no_more(db: Database[Bank], manager: Any) -> None:
    manager.begin()
    join(db, manager).more["bad"] = lambda: None
    with pytest.raises(UnstorableError):
        manager.commit()
    with pytest.raises(TransactionFailedError):
        join(db, manager)
    manager.abort()
    with manager:
        deposit(join(db, manager))
    assert balances(db) == (11, 1)


def test_it_is_what_the_interfaces_ask_for(db: Database[Bank], manager: Any) -> None:
    with manager as current:
        join(db, manager)
        (joined,) = current._resources
        assert verifyObject(ISavepointDataManager, joined)
        assert verifyObject(IRetryDataManager, joined)
        assert verifyObject(IDataManagerSavepoint, joined.savepoint())


def test_without_the_package_an_error_names_the_extra() -> None:
    program = "import sys; sys.modules['transaction'] = None; import durus.transaction_manager"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 1
    assert "pip install 'durus-persistent[transaction]'" in run.stderr.splitlines()[-1]


# Calls after the commit


def test_calls_follow_the_commit_once(db: Database[Bank], manager: Any) -> None:
    seen: list[tuple[int, int]] = []
    with manager:
        ours = join_transaction(db, manager)
        deposit(ours.root)
        ours.on_commit(lambda: seen.append(balances(db)))
        assert seen == []
    assert seen == [(11, 1)]


def test_an_aborted_transaction_makes_no_calls(db: Database[Bank], manager: Any) -> None:
    manager.begin()
    ours = join_transaction(db, manager)
    ours.on_commit(lambda: pytest.fail("called"))
    deposit(ours.root)
    manager.abort()


def test_a_call_that_fails_is_logged_and_breaks_nothing(
    db: Database[Bank], manager: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    with manager as current:
        ours = join_transaction(db, manager)
        deposit(ours.root)
        ours.on_commit(lambda: 1 / 0)
        ours.on_commit(lambda: seen.append("called"))
        other = Other(current, sorts="~~ after us")
    assert (balances(db), other.has_stored, seen) == ((11, 1), True, ["called"])
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


# Savepoints


def test_a_savepoint_of_the_manager_is_gone_back_to(db: Database[Bank], manager: Any) -> None:
    with manager as current:
        bank = join(db, manager)
        bank.ann.balance = 2
        savepoint = current.savepoint()
        bank.ann.balance = 3
        bank.more["new"] = Account(5)
        savepoint.rollback()
        assert bank.ann.balance == 2
        assert "new" not in bank.more
        bank.bob.balance = 4
        savepoint.rollback()
        assert bank.bob.balance == 1
    assert balances(db) == (2, 1)


def test_savepoints_are_nested(db: Database[Bank], manager: Any) -> None:
    with manager as current:
        bank = join(db, manager)
        bank.ann.balance = 2
        outer = current.savepoint()
        bank.ann.balance = 3
        inner = current.savepoint()
        bank.ann.balance = 4
        inner.rollback()
        assert bank.ann.balance == 3
        outer.rollback()
        assert bank.ann.balance == 2
        with pytest.raises(InvalidSavepointRollbackError):
            inner.rollback()
    assert balances(db) == (2, 1)


def test_a_savepoint_from_before_the_join_undoes_all(db: Database[Bank], manager: Any) -> None:
    with manager as current:
        savepoint = current.savepoint()
        deposit(join(db, manager))
        savepoint.rollback()
        bank = join(db, manager)
        assert bank.ann.balance == 1
        bank.bob.balance = 5
        assert len(current._resources) == 1
    assert balances(db) == (1, 5)


def test_a_savepoint_that_fails_gives_up_all(db: Database[Bank], manager: Any) -> None:
    manager.begin()
    bank = join(db, manager)
    deposit(bank)
    bank.more["bad"] = lambda: None
    with pytest.raises(UnstorableError):
        manager.savepoint()
    with pytest.raises(TransactionFailedError):
        manager.commit()
    manager.abort()
    assert balances(db) == (1, 1)


# Conflicts


def test_a_conflict_is_tried_again(db: Database[Bank], manager: Any) -> None:
    attempts = 0
    for attempt in manager.attempts():
        with attempt:
            attempts += 1
            bank = join(db, manager)
            if attempts == 1:
                elsewhere(db, deposit)
            deposit(bank)
    assert (attempts, balances(db)) == (2, (21, 1))


def test_a_conflict_in_a_function_that_a_manager_runs_is_tried_again(
    db: Database[Bank], manager: Any
) -> None:
    attempts: list[int] = []

    def step() -> int:
        attempts.append(1)
        bank = join(db, manager)
        if len(attempts) == 1:
            elsewhere(db, deposit)
        deposit(bank)
        return bank.ann.balance

    assert manager.run(step) == 21
    assert len(attempts) == 2


def test_a_conflict_says_what_it_was_about(db: Database[Bank], manager: Any) -> None:
    manager.begin()
    deposit(join(db, manager))
    elsewhere(db, deposit)
    with pytest.raises(WriteConflictError, match=r"Account \d+ was changed by transaction") as info:
        manager.commit()
    assert isinstance(info.value, transaction.interfaces.TransientError)
    assert isinstance(info.value.__cause__, WriteConflictError)
    manager.abort()


def test_other_errors_are_not_tried_again(db: Database[Bank], manager: Any) -> None:
    with manager as current:
        join(db, manager)
        assert current.isRetryableError(WriteConflictError())
        assert current.isRetryableError(ReadConflictError())
        assert not current.isRetryableError(UnstorableError())
        assert not current.isRetryableError(ValueError())


# A second participant, which fails

STEPS = ("tpc_begin", "commit", "tpc_vote", "tpc_finish", "tpc_abort", "abort")


class BrokenError(Exception):
    """What the second participant raises."""


class Other:
    """A second participant that can still abort when it has voted, as one with two phases can."""

    def __init__(self, current: Any, fails_at: str = "", sorts: str = "first") -> None:
        self.transaction_manager = None
        self.has_stored = False
        self.has_aborted = False
        self._fails_at = fails_at
        self._sorts = sorts
        current.join(self)

    def sortKey(self) -> str:  # noqa: N802
        return self._sorts

    def _pass(self, step: str) -> None:
        if step == self._fails_at:
            raise BrokenError(step)

    def tpc_begin(self, transaction: Any) -> None:
        self._pass("tpc_begin")

    def commit(self, transaction: Any) -> None:
        self._pass("commit")

    def tpc_vote(self, transaction: Any) -> None:
        self._pass("tpc_vote")

    def tpc_finish(self, transaction: Any) -> None:
        self._pass("tpc_finish")
        self.has_stored = True

    def tpc_abort(self, transaction: Any) -> None:
        self.has_aborted = True
        self._pass("tpc_abort")

    def abort(self, transaction: Any) -> None:
        self.has_aborted = True
        self._pass("abort")


def change_both(db: Database[Bank], manager: Any, order: str, **of_other: str) -> Other:
    """Change what both participants have; they have joined in this order."""
    current = manager.begin()
    if order == "ours first":
        deposit(join(db, manager))
    other = Other(current, **of_other)
    if order == "ours last":
        deposit(join(db, manager))
    join_transaction(db, manager).on_commit(lambda: db.run(count_call))
    return other


def count_call(bank: Bank) -> None:
    bank.more["calls"] = bank.more.get("calls", 0) + 1


def calls(db: Database[Bank]) -> int:
    count: int = elsewhere(db, lambda bank: bank.more.get("calls", 0))
    return count


orders = pytest.mark.parametrize("order", ["ours first", "ours last"])


@orders
@pytest.mark.parametrize("sorts", ["first", "~~ after us"])
def test_both_store(db: Database[Bank], manager: Any, order: str, sorts: str) -> None:
    other = change_both(db, manager, order, sorts=sorts)
    manager.commit()
    assert (balances(db), other.has_stored, calls(db)) == ((11, 1), True, 1)


@orders
@pytest.mark.parametrize("step", ["tpc_begin", "commit", "tpc_vote"])
def test_when_the_other_fails_before_we_vote_neither_stores(
    db: Database[Bank], manager: Any, order: str, step: str
) -> None:
    other = change_both(db, manager, order, fails_at=step)
    with pytest.raises(BrokenError, match=step):
        manager.commit()
    manager.abort()
    assert (balances(db), other.has_stored, calls(db)) == ((1, 1), False, 0)
    assert other.has_aborted


@orders
@pytest.mark.parametrize("step", ["tpc_begin", "commit"])
def test_the_same_when_it_sorts_after_us(
    db: Database[Bank], manager: Any, order: str, step: str
) -> None:
    other = change_both(db, manager, order, fails_at=step, sorts="~~ after us")
    with pytest.raises(BrokenError, match=step):
        manager.commit()
    manager.abort()
    assert (balances(db), other.has_stored, calls(db)) == ((1, 1), False, 0)


@orders
@pytest.mark.parametrize(
    "of_other",
    [
        {"fails_at": "tpc_finish"},
        {"fails_at": "tpc_finish", "sorts": "~~ after us"},
        {"fails_at": "tpc_vote", "sorts": "~~ after us"},
    ],
    ids=str,
)
def test_when_the_other_fails_after_our_vote_only_ours_is_stored_and_the_log_says_so(
    db: Database[Bank],
    manager: Any,
    order: str,
    of_other: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = change_both(db, manager, order, **of_other)
    with pytest.raises(BrokenError, match=of_other["fails_at"]):
        manager.commit()
    manager.abort()
    assert (balances(db), other.has_stored, calls(db)) == ((11, 1), False, 1)
    (record,) = [record for record in caplog.records if record.name == "durus"]
    assert record.levelno == logging.CRITICAL
    tid = next(tx.tid for tx in db.transactions() if str(tx.tid) in record.getMessage())
    with db.snapshot(at=tid) as bank:
        assert bank.ann.balance == 11


@orders
@pytest.mark.parametrize("step", ["tpc_abort", "abort"])
@pytest.mark.parametrize("sorts", ["first", "~~ after us"])
def test_when_we_refuse_neither_stores_though_the_other_fails_to_abort(
    db: Database[Bank], manager: Any, order: str, step: str, sorts: str
) -> None:
    other = change_both(db, manager, order, fails_at=step, sorts=sorts)
    elsewhere(db, lambda bank: setattr(bank.ann, "balance", 5))
    with pytest.raises(ConflictError):
        manager.commit()
    assert (balances(db), other.has_stored, calls(db)) == ((5, 1), False, 0)
    with suppress(BrokenError):
        manager.abort()
    assert other.has_aborted
    assert balances(db) == (5, 1)


@orders
def test_when_the_other_fails_to_abort_we_do_even_so(
    db: Database[Bank], manager: Any, order: str
) -> None:
    change_both(db, manager, order, fails_at="abort")
    bank = join(db, manager)
    with pytest.raises(BrokenError):
        manager.abort()
    with pytest.raises(TransactionEndedError):
        bank.ann  # noqa: B018
    assert balances(db) == (1, 1)
    with manager:
        deposit(join(db, manager))
    assert balances(db) == (11, 1)


def test_who_has_only_read_is_not_said_to_have_stored_anything(
    db: Database[Bank], manager: Any, caplog: pytest.LogCaptureFixture
) -> None:
    current = manager.begin()
    assert join(db, manager).ann.balance == 1
    Other(current, fails_at="tpc_finish")
    with pytest.raises(BrokenError):
        manager.commit()
    manager.abort()
    assert [record for record in caplog.records if record.name == "durus"] == []


def test_two_that_store_in_their_vote_do_so_with_the_one_that_conflicts_first(
    db: Database[Bank], manager: Any
) -> None:
    current = manager.begin()
    deposit(join(db, manager))
    Other(current, sorts="~sqlalchemy:1")
    Other(current, sorts="mail")
    keys = sorted(participant.sortKey() for participant in current._resources)
    assert [key.partition(":")[0] for key in keys] == ["mail", "~durus", "~sqlalchemy"]
    manager.abort()


# Pyramid


class Site:
    """A Pyramid application with pyramid_tm and pyramid_retry; each view is a function."""

    def __init__(self, db: Database[Bank], *, explicit: bool, shows_errors: bool) -> None:
        config_module = pytest.importorskip("pyramid.config")
        webtest = pytest.importorskip("webtest")
        pytest.importorskip("pyramid_tm")
        pytest.importorskip("pyramid_retry")
        self.db = db
        self.attempts = 0
        self.seen: list[str] = []
        settings = {"retry.attempts": "3"}
        if explicit:
            settings["tm.manager_hook"] = "pyramid_tm.explicit_manager"
        with config_module.Configurator(settings=settings) as config:
            config.include("pyramid_tm")
            config.include("pyramid_retry")
            for view in (self.show, self.add, self.fail, self.meet, self.lose, self.part):
                config.add_route(view.__name__, f"/{view.__name__}")
                config.add_view(view, route_name=view.__name__, renderer="json")
            if shows_errors:
                config.add_exception_view(self.show_error, renderer="json")
            self.app = webtest.TestApp(config.make_wsgi_app())

    def get(self, view: str, status: int | None = None) -> Any:
        self.attempts = 0
        return self.app.get(f"/{view}", status=status).json

    def show(self, request: Any) -> list[int]:
        bank = join(self.db, request.tm)
        return [bank.ann.balance, bank.bob.balance]

    def add(self, request: Any) -> int:
        request.tm.get().user = "ann"
        ours = join_transaction(self.db, request.tm)
        ours.on_commit(lambda: self.seen.append("mail"))
        deposit(ours.root)
        return ours.root.ann.balance

    def fail(self, request: Any) -> NoReturn:
        self.add(request)
        raise ValueError("broken")

    def meet(self, request: Any) -> int:
        """Somebody else is always faster than the first attempt."""
        self.attempts += 1
        balance = self.add(request)
        if self.attempts == 1:
            elsewhere(self.db, deposit)
        return balance

    def lose(self, request: Any) -> int:
        """Somebody else is always faster."""
        self.attempts += 1
        balance = self.add(request)
        elsewhere(self.db, deposit)
        return balance

    def part(self, request: Any) -> int:
        """Half of it is undone."""
        bank = join(self.db, request.tm)
        deposit(bank)
        savepoint = request.tm.savepoint()
        bank.bob.balance = 100
        savepoint.rollback()
        return bank.bob.balance

    def show_error(self, error: Exception, request: Any) -> str:
        request.response.status = 500
        return type(error).__name__


@pytest.fixture(params=["explicit", "explicit, shows errors", "thread", "thread, shows errors"])
def site(db: Database[Bank], request: pytest.FixtureRequest) -> Site:
    manager, *more = request.param.split(", ")
    return Site(db, explicit=manager == "explicit", shows_errors=bool(more))


def test_a_request_commits(site: Site) -> None:
    assert site.get("add") == 11
    assert site.get("show") == [11, 1]
    assert site.seen == ["mail"]
    *_, last = site.db.transactions()
    assert (last.user, last.note) == ("ann", "/add")


def test_a_request_that_fails_aborts(site: Site) -> None:
    with suppress(ValueError):  # it goes through, where no view shows errors
        assert site.get("fail", status=500) == "ValueError"
    assert site.get("show") == [1, 1]
    assert site.seen == []


def test_a_request_that_conflicts_is_tried_again(site: Site) -> None:
    assert site.get("meet") == 21
    assert site.attempts == 2
    assert site.get("show") == [21, 1]
    assert site.seen == ["mail"]


def test_a_request_is_not_tried_for_ever(site: Site) -> None:
    with suppress(ConflictError):
        assert site.get("lose", status=500) == "TransientConflictError"
    assert site.attempts == 3
    assert site.get("show") == [31, 1]
    assert site.seen == []


def test_a_request_goes_back_to_its_savepoint(site: Site) -> None:
    assert site.get("part") == 1
    assert site.get("show") == [11, 1]
