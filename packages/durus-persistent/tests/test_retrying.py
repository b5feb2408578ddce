"""`Database.run` and `arun`: retries after conflicts, results, and cancellation."""

import asyncio
import gc
import itertools
import random
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, ContextVar
from functools import partial
from typing import Any, Final, NoReturn, TypeVar

import pytest

from durus.database import Database
from durus.error import (
    ConflictError,
    NestedTransactionError,
    ReadConflictError,
    StorageError,
    WriteConflictError,
)
from durus.interfaces import CommitResult
from durus.interfaces import Transaction as StoredTransaction
from durus.persistent import Persistent, oid_of
from durus.storage import MemoryStorage

T = TypeVar("T")

PATIENCE_S: Final = 60.0


class Account(Persistent):
    def __init__(self, balance: int = 0) -> None:
        self.balance = balance

    def __repr__(self) -> str:
        raise AssertionError("the account is not shown")


class Bank(Persistent):
    def __init__(self) -> None:
        self.ann = Account(1)


class HeldStorage(MemoryStorage):
    """A storage whose commits, once it is held, wait until they are let go, and may be refused."""

    def __init__(self) -> None:
        super().__init__()
        self.commits = 0
        self.refusals: list[Exception] = []
        self.reached = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def commit(self, transaction: StoredTransaction) -> CommitResult:
        self.commits += 1
        self.reached.set()
        assert self.may_go_on.wait(PATIENCE_S)
        if self.refusals:
            raise self.refusals.pop(0)
        return super().commit(transaction)

    def hold(self) -> None:
        self.reached.clear()
        self.may_go_on.clear()


@pytest.fixture
def storage() -> HeldStorage:
    return HeldStorage()


@pytest.fixture
def db(storage: HeldStorage) -> Iterator[Database[Bank]]:
    with Database(storage, root_class=Bank) as db:
        storage.commits = 0
        yield db


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What it would have waited for; nobody waits."""
    pauses: list[float] = []
    monkeypatch.setattr("durus.retrying.time.sleep", pauses.append)
    return pauses


def deposit(bank: Bank) -> int:
    bank.ann.balance = balance = bank.ann.balance + 10
    return balance


def balance(db: Database[Bank]) -> int:
    return Context().run(lambda: db.run(lambda bank: bank.ann.balance))


class Contended:
    """A deposit, during which somebody else makes one the first times."""

    def __init__(self, db: Database[Bank], conflicts: int) -> None:
        self.calls = 0
        self._db = db
        self._conflicts = conflicts

    def __call__(self, bank: Bank) -> int:
        self.calls += 1
        result = deposit(bank)
        if self.calls <= self._conflicts:
            Context().run(self._db.run, deposit)
        return result


# run()


def test_run_commits_and_returns_what_the_function_returns(db: Database[Bank]) -> None:
    assert db.run(deposit, note="pay", user="ann") == 11
    *_, last = db.transactions()
    assert (last.note, last.user) == ("pay", "ann")
    assert balance(db) == 11


def test_run_tries_again_after_a_conflict(db: Database[Bank], pauses: list[float]) -> None:
    contended = Contended(db, conflicts=3)
    assert db.run(contended) == 41
    assert contended.calls == 4
    assert balance(db) == 41
    assert db.stats().conflicts == 3
    assert len(pauses) == 3


def test_run_tries_again_when_reading_conflicts(db: Database[Bank], pauses: list[float]) -> None:
    calls = itertools.count()

    def read(bank: Bank) -> int:
        if next(calls) < 2:
            raise ReadConflictError([b"12345678"])
        return bank.ann.balance

    assert db.run(read) == 1
    assert next(calls) == 3
    assert db.stats().conflicts == 2
    with pytest.raises(ReadConflictError), db.transaction() as bank:
        raise ReadConflictError([oid_of(bank.ann) or b""])
    assert db.stats().conflicts == 3


def test_run_does_not_try_again_after_anything_else(
    db: Database[Bank], storage: HeldStorage, pauses: list[float]
) -> None:
    calls: list[Bank] = []

    def fail(bank: Bank) -> NoReturn:
        calls.append(bank)
        bank.ann.balance = 5
        raise KeyError("wrong")

    with pytest.raises(KeyError, match="wrong"):
        db.run(fail)
    assert len(calls) == 1
    storage.refusals = [StorageError("full")]
    with pytest.raises(StorageError, match="full"):
        db.run(deposit)
    assert storage.commits == 1
    assert pauses == []
    assert balance(db) == 1
    assert db.run(lambda bank: bank.ann.balance) == 1
    assert db.stats().aborts == 2


def test_run_gives_up_after_so_many_attempts(db: Database[Bank], pauses: list[float]) -> None:
    contended = Contended(db, conflicts=100)
    with pytest.raises(WriteConflictError, match=r"; given up after 3 attempts$") as caught:
        db.run(contended, attempts=3)
    assert caught.value.attempts == 3
    assert caught.value.conflicts
    assert contended.calls == 3
    assert len(pauses) == 2
    once = Contended(db, conflicts=100)
    with pytest.raises(WriteConflictError, match="given up after 1 attempts"):
        db.run(once, attempts=1)
    assert once.calls == 1
    assert balance(db) == 41
    assert db.stats().connections <= 2


@pytest.mark.parametrize("attempts", [0, -1])
def test_run_needs_an_attempt(db: Database[Bank], attempts: int) -> None:
    with pytest.raises(ValueError, match=f"1 or more, or None, and not {attempts}"):
        db.run(deposit, attempts=attempts)


def test_run_gives_up_when_the_time_is_over(
    db: Database[Bank], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr("durus.retrying.time.monotonic", lambda: now_s)

    def slowly(bank: Bank) -> None:
        nonlocal now_s
        now_s += 1
        contended(bank)

    contended = Contended(db, conflicts=100)
    with pytest.raises(WriteConflictError) as caught:
        db.run(slowly, timeout_s=4.9)
    assert caught.value.attempts == contended.calls == 5
    contended = Contended(db, conflicts=100)
    with pytest.raises(WriteConflictError) as caught:
        db.run(contended, timeout_s=0)
    assert caught.value.attempts == 1
    assert db.run(deposit, timeout_s=0) == balance(db)


def test_the_pauses_grow_and_vary(
    db: Database[Bank], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []

    def uniform(start: float, stop: float) -> float:
        assert start == 0
        limits.append(stop)
        return stop / 2

    monkeypatch.setattr(random, "uniform", uniform)
    db.run(Contended(db, conflicts=12))
    assert pauses == [limit / 2 for limit in limits]
    assert limits == sorted(limits)
    assert limits[0] <= 0.01
    assert limits[1] == 2 * limits[0]
    assert limits[-1] == limits[-2] <= 1


# Results


@pytest.mark.parametrize(
    "wrap",
    [
        lambda obj: obj,
        lambda obj: [1, obj],
        lambda obj: (obj,),
        lambda obj: {"a": obj},
        lambda obj: {obj: 1},
        lambda obj: {obj},
        lambda obj: frozenset([obj]),
        lambda obj: [{"a": (1, [obj])}],
    ],
)
def test_a_persistent_result_is_refused_and_nothing_is_stored(
    db: Database[Bank], storage: HeldStorage, wrap: Callable[[Account], object]
) -> None:
    def pay(bank: Bank) -> object:
        deposit(bank)
        return wrap(bank.ann)

    message = r"returned <Account 1>, .*: return its value or its oid.  Nothing was stored"
    with pytest.raises(TypeError, match=message):
        db.run(pay)
    assert storage.commits == 0
    assert balance(db) == 1


def test_a_generator_is_refused_as_it_would_run_after_the_end(db: Database[Bank]) -> None:
    with pytest.raises(TypeError, match="return a list of what it yields"):
        db.run(lambda bank: [(name for name in ("a", bank.ann.balance))])


def test_a_result_may_contain_itself(db: Database[Bank]) -> None:
    circle: list[object] = []
    circle.append(circle)
    assert db.run(lambda bank: circle) is circle


def test_values_and_oids_are_results(db: Database[Bank]) -> None:
    values: list[object] = [None, 1, "a", [1, (2,)], {"a": {1}}, frozenset()]
    for value in values:
        assert db.run(lambda bank, value=value: value) is value  # type: ignore[misc]  # default
    oid = db.run(lambda bank: oid_of(bank.ann))
    assert oid == (1).to_bytes(8)


# on_commit


def test_an_interrupt_in_a_call_after_the_commit_loses_neither_calls_nor_errors(
    db: Database[Bank], caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def fail(error: BaseException) -> NoReturn:
        raise error

    tx = db.transaction()
    deposit(tx.root)
    tx.on_commit(lambda: fail(ZeroDivisionError("first")))
    tx.on_commit(lambda: fail(KeyboardInterrupt()))
    tx.on_commit(lambda: calls.append(1))
    with pytest.raises(KeyboardInterrupt) as caught:
        tx.commit()
    assert calls == [1]
    assert f"transaction {tx.tid} is stored" in caught.value.__notes__[0]
    assert "ZeroDivisionError: first" in caplog.text


def test_calls_after_the_commit_are_made_once_and_for_no_other_attempt(
    db: Database[Bank], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    first = db.transaction()
    first.on_commit(partial(calls.append, "first"))
    Context().run(db.run, deposit)
    second = db.transaction()
    second.on_commit(partial(calls.append, "second"))
    attempts = iter([first, second])
    monkeypatch.setattr(db, "transaction", lambda **options: next(attempts))
    assert db.run(deposit) == 21
    assert calls == ["second"]


def test_an_error_after_the_commit_is_raised_and_nothing_is_tried_again(
    db: Database[Bank], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    tx = db.transaction()
    monkeypatch.setattr(db, "transaction", lambda **options: tx)
    tx.on_commit(lambda: refuse())

    def refuse() -> NoReturn:
        raise ConflictError([b"12345678"])

    with pytest.raises(ConflictError) as caught:
        db.run(deposit)
    assert caught.value.attempts is None
    (note,) = caught.value.__notes__
    assert note == f"raised by an on_commit call; transaction {tx.tid} is stored"
    monkeypatch.undo()
    assert balance(db) == 11
    assert db.stats().aborts == 0


# arun()


def asynchronously(program: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(program())


async def end_threads() -> None:
    await asyncio.get_running_loop().shutdown_default_executor()


async def wait_for(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, PATIENCE_S)


def test_arun_gives_the_result_and_the_error(db: Database[Bank]) -> None:
    async def program() -> None:
        threads: list[int] = []

        def pay(bank: Bank) -> int:
            threads.append(threading.get_ident())
            return deposit(bank)

        assert await db.arun(pay, note="pay", user="ann") == 11
        assert threads != [threading.get_ident()]
        with pytest.raises(ZeroDivisionError):
            await db.arun(lambda bank: 1 // (bank.ann.balance - 11))
        with pytest.raises(TypeError, match="return its value or its oid"):
            await db.arun(lambda bank: bank.ann)
        with pytest.raises(ValueError, match="1 or more"):
            await db.arun(deposit, attempts=0)

    asynchronously(program)
    *_, last = db.transactions()
    assert (last.note, last.user) == ("pay", "ann")


def test_arun_tries_again(db: Database[Bank], pauses: list[float]) -> None:
    async def program() -> None:
        assert await db.arun(Contended(db, conflicts=2)) == 31
        with pytest.raises(WriteConflictError, match="after 2 attempts"):
            await db.arun(Contended(db, conflicts=5), attempts=2)

    asynchronously(program)


_request: ContextVar[str] = ContextVar("request", default="none")


def test_arun_has_the_context_of_its_task(db: Database[Bank]) -> None:
    async def program() -> None:
        _request.set("mine")
        assert await db.arun(lambda bank: _request.get()) == "mine"

    asynchronously(program)


def test_arun_is_nested_in_what_its_task_has_open(db: Database[Bank]) -> None:
    async def other() -> None:
        await db.arun(deposit)

    async def program() -> None:
        with db.transaction(note="outer") as bank:
            assert bank.ann.balance == 1
            assert await db.arun(lambda bank: bank.ann.balance) == 1
            with pytest.raises(NestedTransactionError, match=r"'outer' .*savepoint\(\)"):
                await db.arun(deposit)
            await asyncio.create_task(other())  # it has a context of its own
        await db.arun(deposit)

    asynchronously(program)
    assert balance(db) == 21


def test_arun_that_is_cancelled_before_the_commit_stores_nothing(
    db: Database[Bank], storage: HeldStorage
) -> None:
    reached, may_go_on = threading.Event(), threading.Event()

    def pay(bank: Bank) -> None:
        deposit(bank)
        reached.set()
        assert may_go_on.wait(PATIENCE_S)

    async def program() -> None:
        task = asyncio.create_task(db.arun(pay))
        await wait_for(reached)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_go_on.set()
        await end_threads()

    asynchronously(program)
    assert storage.commits == 0
    assert balance(db) == 1
    assert db.stats().aborts == 1


def test_arun_that_is_cancelled_before_it_has_a_thread_is_never_called(
    db: Database[Bank],
) -> None:
    calls: list[Bank] = []
    may_go_on = threading.Event()

    async def program() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        first = loop.run_in_executor(None, may_go_on.wait, PATIENCE_S)
        task = asyncio.create_task(db.arun(calls.append))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_go_on.set()
        assert await first
        await end_threads()

    asynchronously(program)
    assert calls == []


def test_arun_that_is_cancelled_between_two_attempts_does_not_try_again(
    db: Database[Bank], storage: HeldStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, may_go_on = threading.Event(), threading.Event()
    waited: list[bool] = []

    def pause(seconds: float) -> None:
        reached.set()
        waited.append(may_go_on.wait(PATIENCE_S))

    monkeypatch.setattr("durus.retrying.time.sleep", pause)
    storage.refusals = [WriteConflictError([b"12345678"])]

    async def program() -> None:
        task = asyncio.create_task(db.arun(deposit))
        await wait_for(reached)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_go_on.set()
        await end_threads()

    asynchronously(program)
    assert waited == [True]
    assert storage.commits == 1
    assert balance(db) == 1


def test_arun_that_is_cancelled_during_the_commit_waits_for_it(
    db: Database[Bank], storage: HeldStorage
) -> None:
    async def program() -> None:
        storage.hold()
        task = asyncio.create_task(db.arun(deposit))
        await wait_for(storage.reached)
        for _ in range(3):
            task.cancel()
            for _ in range(10):
                await asyncio.sleep(0)
        is_waiting = not task.done()
        storage.may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert is_waiting
        assert db.stats().commits == 1

    asynchronously(program)
    assert balance(db) == 11


def test_arun_whose_commit_is_refused_when_it_was_cancelled_does_not_try_again(
    db: Database[Bank], storage: HeldStorage, pauses: list[float]
) -> None:
    async def program() -> None:
        storage.refusals = [WriteConflictError([b"12345678"])]
        storage.hold()
        task = asyncio.create_task(db.arun(deposit))
        await wait_for(storage.reached)
        task.cancel()
        await asyncio.sleep(0)
        storage.may_go_on.set()
        with suppress(asyncio.CancelledError):
            await task
        assert storage.commits == 1

    asynchronously(program)
    assert pauses == []
    assert balance(db) == 1
    assert db.stats().aborts == 1


def test_an_error_that_nobody_waits_for_is_not_reported(
    db: Database[Bank], storage: HeldStorage, caplog: pytest.LogCaptureFixture
) -> None:
    async def program() -> None:
        storage.refusals = [StorageError("full")]
        storage.hold()
        task = asyncio.create_task(db.arun(deposit))
        await wait_for(storage.reached)
        task.cancel()
        await asyncio.sleep(0)
        storage.may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        gc.collect()

    asynchronously(program)
    assert caplog.records == []
    assert db.stats().aborts == 1


def test_arun_ends_when_the_function_raises_stop_iteration() -> None:
    with Database(MemoryStorage()) as db, pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(db.arun(lambda root: next(iter(root))))


def test_an_async_function_is_refused() -> None:
    async def change(root: Any) -> None:
        root["a"] = 1

    function: Any = change
    with Database(MemoryStorage()) as db:
        with pytest.raises(TypeError, match="async"):
            db.run(function)
        with pytest.raises(TypeError, match="async"):
            asyncio.run(db.arun(function))
        assert db.run(len) == 0
