"""A `Database` in what programs are really run by: Flask, FastAPI, asyncio, gunicorn; and forks.

Pyramid's tests are those of `durus.transaction_manager`.
"""

import asyncio
import http.client
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import pytest

from durus.btree import BTree
from durus.database import Database, Transaction
from durus.error import (
    ConflictError,
    DurusError,
    StorageError,
    TransactionEndedError,
    TransactionInUseError,
)
from durus.file_storage import FileStorage
from durus.interfaces import CommitResult
from durus.interfaces import Transaction as StoredTransaction
from durus.log_verify import verify_file
from durus.persistent import Persistent
from durus.storage import MemoryStorage
from durus.storage_server import StorageServer
from tests.processes import fork, run_alone, say, wait_for_child

if TYPE_CHECKING:
    from fastapi import FastAPI
    from flask import Flask

T = TypeVar("T")

NAMES: Final = tuple(f"account {number}" for number in range(8))
PATIENCE_S: Final = 60.0


class Account(Persistent):
    def __init__(self) -> None:
        self.balance = 0


class Bank(Persistent):
    def __init__(self) -> None:
        self.accounts: BTree[str, Account] = BTree()
        self.accounts.update((name, Account()) for name in NAMES)


def deposit(bank: Bank, name: str = NAMES[0]) -> int:
    account = bank.accounts[name]
    account.balance += 1
    return account.balance


def total(bank: Bank) -> int:
    return sum(account.balance for account in bank.accounts.values())


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "bank.durus"
    yield path
    if path.exists():
        assert list(verify_file(str(path))) == []


@pytest.fixture
def db(path: Path) -> Iterator[Database[Bank]]:
    with Database(path, root_class=Bank) as db:
        yield db


def in_threads(calls: list[Callable[[], T]]) -> list[T]:
    """Call all of them at once, each in a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(lambda call: call(), calls))


# Flask


def make_flask(db: Database[Bank]) -> "Flask":
    pytest.importorskip("flask")
    from flask import Flask, Response, abort, g, request

    app = Flask(__name__)

    @app.before_request
    def begin() -> None:
        if request.path != "/closed":
            g.tx = db.transaction()
            g.root = g.tx.__enter__()

    @app.after_request
    def commit(response: Response) -> Response:
        if "tx" in g and response.status_code < 400:
            g.tx.commit()
        return response

    @app.teardown_request
    def end(error: BaseException | None) -> None:
        if "tx" in g:
            g.tx.abort()

    @app.errorhandler(LookupError)
    def explain(error: LookupError) -> tuple[str, int]:
        return "no such account", 404

    @app.post("/refuse/<name>")
    def refuse(name: str) -> str:
        deposit(g.root, name)
        abort(403)

    @app.post("/closed")
    def closed() -> str:
        return "closed"

    @app.post("/deposit/<name>")
    def add(name: str) -> str:
        g.tx.note = f"deposit {name}"
        return str(deposit(g.root, name))

    @app.post("/fail/<name>")
    def fail(name: str) -> str:
        deposit(g.root, name)
        raise ZeroDivisionError

    @app.get("/total")
    def show() -> str:
        return str(total(g.root))

    @app.get("/stream")
    def stream() -> Any:
        accounts = g.root.accounts
        return app.response_class(f"{name}: {accounts[name].balance}\n" for name in NAMES)

    @app.get("/stream/apart")
    def stream_apart() -> Any:
        def lines() -> Iterator[str]:
            with db.snapshot() as bank:
                for name, account in bank.accounts.items():
                    yield f"{name}: {account.balance}\n"

        return app.response_class(lines())

    return app


def test_a_flask_request_commits(db: Database[Bank]) -> None:
    client = make_flask(db).test_client()
    assert client.post(f"/deposit/{NAMES[1]}").text == "1"
    assert client.post(f"/deposit/{NAMES[1]}").text == "2"
    assert client.get("/total").text == "2"
    *_, last = db.transactions()
    assert last.note == f"deposit {NAMES[1]}"


def test_a_flask_request_that_fails_aborts(db: Database[Bank]) -> None:
    client = make_flask(db).test_client()
    assert client.post(f"/fail/{NAMES[1]}").status_code == 500
    assert client.get("/total").text == "0"
    assert db.stats().aborts == 1


def test_a_flask_request_whose_error_is_handled_aborts(db: Database[Bank]) -> None:
    client = make_flask(db).test_client()
    assert client.post(f"/refuse/{NAMES[0]}").status_code == 403
    assert client.post("/deposit/nobody").status_code == 404
    assert client.post("/closed").status_code == 200  # and has no transaction
    assert db.run(total) == 0


def test_flask_requests_in_many_threads_lose_nothing(db: Database[Bank]) -> None:
    app = make_flask(db)

    def post(number: int) -> int:
        client = app.test_client()
        done = 0
        for step in range(20):
            response = client.post(f"/deposit/{NAMES[(number * step) % len(NAMES)]}")
            assert response.status_code in (200, 500)  # 500: a conflict
            done += response.status_code == 200
        return done

    stored = in_threads([partial(post, number) for number in range(8)])
    assert db.run(total) == sum(stored) > 0


def test_a_flask_request_that_conflicts_hinders_no_later_one(db: Database[Bank]) -> None:
    """Though nothing aborts it, and it stays alive with the error."""
    pytest.importorskip("flask")
    from flask import Flask, g

    app = Flask(__name__)

    @app.before_request
    def begin() -> None:
        g.tx = db.transaction()
        g.root = g.tx.__enter__()

    @app.teardown_request
    def end(error: BaseException | None) -> None:
        g.tx.commit()

    @app.get("/meet")
    def meet() -> str:
        deposit(g.root)
        Context().run(db.run, deposit)
        return ""

    @app.post("/deposit")
    def add() -> str:
        return str(deposit(g.root))

    client = app.test_client()
    with pytest.raises(ConflictError) as info:
        client.get("/meet")
    assert client.post("/deposit").text == "2"
    assert info.value.conflicts


def test_a_body_that_flask_streams_after_the_end_needs_a_snapshot_of_its_own(
    db: Database[Bank],
) -> None:
    client = make_flask(db).test_client()
    with pytest.raises(TransactionEndedError, match="after the end of its transaction"):
        client.get("/stream")
    assert client.get("/stream/apart").text.splitlines() == [f"{name}: 0" for name in NAMES]


# FastAPI


def make_fastapi(db: Database[Bank], scope: Any) -> "FastAPI":
    pytest.importorskip("fastapi")
    from fastapi import Depends, FastAPI, HTTPException, Request
    from fastapi.responses import JSONResponse

    app = FastAPI()
    meeting = threading.Barrier(len(NAMES))
    app.state.calls = []

    def transaction() -> Iterator[Transaction[Bank]]:
        with (tx := db.transaction()):
            yield tx

    Tx = Annotated[Transaction[Bank], Depends(transaction, scope=scope)]  # noqa: N806

    def add(name: str, tx: Any) -> int:
        tx.note = f"deposit {name}"
        tx.on_commit(lambda: app.state.calls.append((name, tx.tid)))
        return deposit(tx.root, name)

    @app.post("/deposit/{name}")
    def add_one(name: str, tx: Tx) -> int:
        return add(name, tx)

    @app.post("/meet/{name}")
    def meet(name: str, tx: Tx) -> int:
        """So many of them are under way at once, in as many threads."""
        balance = add(name, tx)
        meeting.wait(PATIENCE_S)
        return balance

    @app.post("/refuse/{name}")
    def refuse(name: str, tx: Tx) -> None:
        add(name, tx)
        raise HTTPException(409)

    @app.post("/run/{name}")
    async def run(name: str) -> int:
        return await db.arun(lambda bank: deposit(bank, name), note="run")

    @app.get("/total")
    async def show() -> int:
        return await db.arun(total)

    @app.exception_handler(ConflictError)
    async def conflict(request: Request, error: ConflictError) -> JSONResponse:
        return JSONResponse(str(error), 409)

    return app


def ask(app: "FastAPI", *requests: str) -> list[Any]:
    """Send requests to an ASGI application, all at once; the answers."""
    pytest.importorskip("httpx")
    import httpx

    async def send() -> list[Any]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://bank") as client:
            sent = [client.request(*request.split(" ", 1)) for request in requests]
            return await asyncio.gather(*sent)

    return asyncio.run(send())


scopes = pytest.mark.parametrize("scope", [None, "request", "function"])


@scopes
def test_a_fastapi_dependency_commits(db: Database[Bank], scope: str | None) -> None:
    app = make_fastapi(db, scope)
    (response,) = ask(app, f"POST /deposit/{NAMES[1]}")
    assert response.json() == 1
    *_, last = db.transactions()
    assert (last.note, db.run(total)) == (f"deposit {NAMES[1]}", 1)
    assert app.state.calls == [(NAMES[1], last.tid)]


@scopes
def test_a_fastapi_endpoint_that_fails_aborts(db: Database[Bank], scope: str | None) -> None:
    app = make_fastapi(db, scope)
    (response,) = ask(app, f"POST /refuse/{NAMES[1]}")
    assert (response.status_code, db.run(total), app.state.calls) == (409, 0, [])
    assert db.stats().aborts == 1


@scopes
def test_fastapi_requests_at_once_have_a_transaction_each(
    db: Database[Bank], scope: str | None
) -> None:
    app = make_fastapi(db, scope)
    responses = ask(app, *(f"POST /meet/{name}" for name in NAMES))
    assert [response.json() for response in responses] == [1] * len(NAMES)
    assert sorted(name for name, _ in app.state.calls) == list(NAMES)
    assert db.run(total) == len(NAMES)


def test_a_conflict_becomes_a_response_when_fastapi_commits_before_it_answers(
    db: Database[Bank],
) -> None:
    app = make_fastapi(db, "function")
    responses = ask(app, *(f"POST /meet/{NAMES[0]}" for _ in NAMES))
    codes = sorted(response.status_code for response in responses)
    assert codes == [200] + [409] * (len(NAMES) - 1)
    assert db.run(total) == 1


def test_async_endpoints_run_transactions_at_once(db: Database[Bank]) -> None:
    responses = ask(make_fastapi(db, "function"), *[f"POST /run/{NAMES[0]}"] * 30)
    assert sorted(response.json() for response in responses) == list(range(1, 31))
    (response,) = ask(make_fastapi(db, "function"), "GET /total")
    assert response.json() == 30


# asyncio


class HeldStorage(MemoryStorage):
    """A storage whose commits, once it is held, wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.is_held = False
        self.commits = threading.Event()
        self.may_go_on = threading.Event()

    def commit(self, transaction: StoredTransaction) -> CommitResult:
        if self.is_held:
            self.commits.set()
            assert self.may_go_on.wait(PATIENCE_S)
        return super().commit(transaction)


@pytest.fixture
def held() -> HeldStorage:
    return HeldStorage()


@pytest.fixture
def held_db(held: HeldStorage) -> Iterator[Database[Bank]]:
    with Database(held, root_class=Bank) as db:
        held.is_held = True
        yield db


async def end_threads() -> None:
    await asyncio.get_running_loop().shutdown_default_executor()


def test_arun_gives_the_result_and_raises_what_the_function_raises(db: Database[Bank]) -> None:
    assert asyncio.run(db.arun(deposit)) == 1
    with pytest.raises(KeyError):
        asyncio.run(db.arun(lambda bank: deposit(bank) and deposit(bank, "nobody")))
    assert db.run(total) == 1


def test_arun_retries(db: Database[Bank]) -> None:
    async def program() -> list[int]:
        return await asyncio.gather(*(db.arun(deposit) for _ in range(20)))

    assert sorted(asyncio.run(program())) == list(range(1, 21))


def test_the_event_loop_goes_on_while_a_transaction_waits(db: Database[Bank]) -> None:
    async def program() -> None:
        told = threading.Event()
        waiting = asyncio.ensure_future(db.arun(lambda bank: told.wait(PATIENCE_S)))
        await asyncio.sleep(0)
        told.set()
        assert await waiting

    asyncio.run(program())


def test_arun_that_is_cancelled_before_the_commit_stores_nothing(db: Database[Bank]) -> None:
    is_in, may_go_on = threading.Event(), threading.Event()

    def slowly(bank: Bank) -> None:
        deposit(bank)
        is_in.set()
        assert may_go_on.wait(PATIENCE_S)

    async def program() -> None:
        task = asyncio.ensure_future(db.arun(slowly))
        await asyncio.to_thread(is_in.wait, PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_go_on.set()
        await end_threads()

    asyncio.run(program())
    assert db.run(total) == 0
    assert db.stats().aborts == 1


def test_arun_that_is_cancelled_before_it_gets_a_thread_is_never_called(
    db: Database[Bank],
) -> None:
    async def program() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        may_go_on = threading.Event()
        first = loop.run_in_executor(None, may_go_on.wait, PATIENCE_S)
        task = asyncio.ensure_future(db.arun(lambda bank: pytest.fail("called")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_go_on.set()
        assert await first
        await end_threads()

    asyncio.run(program())
    assert db.stats().aborts == 0


@pytest.mark.parametrize("times", [1, 3])
def test_arun_that_is_cancelled_during_the_commit_waits_for_it(
    held: HeldStorage, held_db: Database[Bank], times: int
) -> None:
    async def program() -> None:
        task = asyncio.ensure_future(held_db.arun(deposit))
        await asyncio.to_thread(held.commits.wait, PATIENCE_S)
        for _ in range(times):
            task.cancel()
            for _ in range(10):
                await asyncio.sleep(0)
        assert not task.done()
        held.may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert held_db.stats().commits == 1

    asyncio.run(program())
    assert held_db.run(total) == 1


def test_a_commit_is_waited_for_at_the_end_of_the_event_loop(
    held: HeldStorage, held_db: Database[Bank]
) -> None:
    stored: list[bool] = []

    async def in_background() -> None:
        try:
            await held_db.arun(deposit)
        finally:
            stored.append(held_db.stats().commits == 1)

    async def program() -> asyncio.Task[None]:
        task = asyncio.ensure_future(in_background())
        await asyncio.to_thread(held.commits.wait, PATIENCE_S)
        asyncio.get_running_loop().call_later(0.05, held.may_go_on.set)
        return task

    task = asyncio.run(program())
    assert task.cancelled()
    assert stored == [True]


def test_a_conflict_is_not_tried_again_when_arun_was_cancelled(
    held: HeldStorage, held_db: Database[Bank]
) -> None:
    calls = 0

    def count(bank: Bank) -> None:
        nonlocal calls
        calls += 1
        deposit(bank)

    async def program() -> None:
        task = asyncio.ensure_future(held_db.arun(count))
        await asyncio.to_thread(held.commits.wait, PATIENCE_S)
        held.is_held = False
        await asyncio.to_thread(held_db.run, deposit)
        task.cancel()
        await asyncio.sleep(0)
        held.may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await end_threads()

    asyncio.run(program())
    assert (calls, held_db.run(total)) == (1, 1)


def test_a_transaction_goes_from_thread_to_thread(db: Database[Bank]) -> None:
    async def program() -> None:
        loop = asyncio.get_running_loop()
        pools = [ThreadPoolExecutor(1) for _ in range(3)]
        tx = db.transaction()
        bank = await loop.run_in_executor(pools[0], tx.__enter__)
        assert await loop.run_in_executor(pools[1], deposit, bank) == 1
        assert deposit(bank) == 2
        savepoint = await loop.run_in_executor(pools[0], tx.savepoint)
        deposit(bank)
        await loop.run_in_executor(pools[1], savepoint.rollback)
        await loop.run_in_executor(pools[2], tx.__exit__, None, None, None)
        assert tx.tid is not None
        for pool in pools:
            pool.shutdown()

    asyncio.run(program())
    assert db.run(total) == 2


def test_a_transaction_after_its_end_is_refused_in_any_thread(db: Database[Bank]) -> None:
    with (tx := db.transaction()) as bank:
        account = bank.accounts[NAMES[0]]
    uses: list[Callable[[], object]] = [
        lambda: account.balance,
        lambda: setattr(account, "balance", 1),
        lambda: deposit(bank),
        lambda: tx.root,
        tx.savepoint,
        tx.commit,
        lambda: tx.on_commit(print),
    ]

    async def program() -> None:
        for use in uses:
            with pytest.raises(TransactionEndedError):
                await asyncio.to_thread(use)

    asyncio.run(program())
    assert db.run(total) == 0


loading, may_load = threading.Event(), threading.Event()


class Slow(Persistent):
    """Its state is loaded when the test allows it."""

    def __init__(self) -> None:
        self.value = 1

    def __setstate__(self, state: Any) -> None:
        loading.set()
        assert may_load.wait(PATIENCE_S)
        super().__setstate__(state)


class Both(Persistent):
    def __init__(self) -> None:
        self.slow = Slow()
        self.account = Account()


def test_a_transaction_in_two_threads_at_once_is_refused() -> None:
    storage = MemoryStorage()
    Database(storage, root_class=Both).close()
    with Database(storage, root_class=Both) as db:  # which has not loaded anything yet
        tx = db.transaction()
        both = tx.root
        uses: list[Callable[[], object]] = [
            lambda: both.account.balance,
            lambda: setattr(both, "account", None),
            tx.savepoint,
            tx.commit,
            tx.abort,
            lambda: tx.get(0),
        ]

        async def program() -> None:
            slow, account = both.slow, both.account
            assert account is both.account
            loading.clear()
            may_load.clear()
            first = asyncio.ensure_future(asyncio.to_thread(lambda: slow.value))
            await asyncio.to_thread(loading.wait, PATIENCE_S)
            for use in uses:
                with pytest.raises(TransactionInUseError, match="two threads at the same moment"):
                    await asyncio.to_thread(use)
            may_load.set()
            assert await first == 1
            account.balance = 5

        asyncio.run(program())
        tx.commit()
        assert db.run(lambda both: both.account.balance) == 5


# Forks: each function is the program of the test after it.

WORKERS: Final = 4
STEPS: Final = 10


def fork_workers(path: str) -> None:
    with Database(path, root_class=Bank) as db:
        db.run(deposit)
        open_in_parent = db.transaction(note="the parent's")
        bank = open_in_parent.root
        assert deposit(bank, NAMES[1]) == 1

        def work() -> None:
            uses: list[Callable[[], object]] = [
                lambda: bank.accounts[NAMES[2]].balance,
                open_in_parent.commit,
            ]
            for use in uses:
                with pytest.raises(StorageError, match="before it forked this one"):
                    use()
            open_in_parent.abort()
            for _ in range(STEPS):
                db.run(deposit)
            with db.transaction() as mine:
                mine.accounts[f"worker {os.getpid()}"] = Account()
            with db.snapshot() as seen:
                assert seen.accounts[NAMES[0]].balance > STEPS
                assert seen.accounts[NAMES[1]].balance == 0
            db.close()

        children = [fork(work) for _ in range(WORKERS)]
        for child in children:
            wait_for_child(child)
        open_in_parent.abort()
        say(db.run(lambda bank: bank.accounts[NAMES[0]].balance))
        say(db.run(lambda bank: sum(name.startswith("worker") for name in bank.accounts)))
        db.run(deposit)


def test_workers_that_were_forked_from_an_open_database_commit_and_read(path: Path) -> None:
    assert run_alone(fork_workers, path) == [str(1 + WORKERS * STEPS), str(WORKERS)]


def go_on_after_a_fork(path: str) -> None:
    with Database(path, root_class=Bank) as db:
        tx = db.transaction()
        deposit(tx.root, NAMES[1])

        def work() -> None:
            db.run(deposit)

        wait_for_child(fork(work))
        assert deposit(tx.root, NAMES[1]) == 2
        tx.commit()
        say(db.run(total))


def test_a_transaction_of_the_parent_goes_on_in_the_parent(path: Path) -> None:
    assert run_alone(go_on_after_a_fork, path) == ["3"]


def fork_in_use(path: str) -> None:
    """Another thread is in the middle of a commit when the process forks."""
    storage = FileStorage(path)
    with closing(storage), Database(storage, root_class=Bank) as db:
        stop = threading.Event()

        def go_on() -> None:
            while not stop.is_set():
                db.run(deposit)

        thread = threading.Thread(target=go_on)
        thread.start()
        for _ in range(WORKERS):
            wait_for_child(fork(lambda: db.run(lambda bank: deposit(bank, NAMES[1]))))
        stop.set()
        thread.join()
        say(db.run(lambda bank: bank.accounts[NAMES[1]].balance))


def test_a_process_forks_while_another_thread_commits(path: Path) -> None:
    assert run_alone(fork_in_use, path) == [str(WORKERS)]


def fork_workers_of(uri: str) -> None:
    with Database(uri, root_class=Bank) as db:
        db.run(deposit)
        tx = db.transaction()
        account = tx.root.accounts[NAMES[0]]
        assert account.balance == 1

        def work() -> None:
            with pytest.raises(StorageError, match="before it forked this one"):
                account.balance = 5
            for _ in range(STEPS):
                db.run(deposit)
            db.run(lambda bank: bank.accounts.update({f"worker {os.getpid()}": Account()}))
            db.close()

        children = [fork(work) for _ in range(WORKERS)]
        tx.abort()
        for _ in range(STEPS):
            db.run(deposit)
        for child in children:
            wait_for_child(child)
        say(db.run(lambda bank: bank.accounts[NAMES[0]].balance))
        say(db.run(lambda bank: sum(name.startswith("worker") for name in bank.accounts)))


def test_workers_that_were_forked_share_an_sqlite_file(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'bank.sqlite'}"
    assert run_alone(fork_workers_of, uri) == [str(1 + (WORKERS + 1) * STEPS), str(WORKERS)]


def test_workers_that_were_forked_share_a_server(path: Path) -> None:
    with closing(FileStorage(path)) as storage, StorageServer(storage, port=0).running() as address:
        found = run_alone(fork_workers_of, f"durus://{address}")
    assert found == [str(1 + (WORKERS + 1) * STEPS), str(WORKERS)]


# gunicorn


def make_preloaded(path: str) -> "Flask":
    """The application that gunicorn loads before it forks."""
    from flask import Flask

    app = Flask(__name__)
    meeting = multiprocessing.get_context("fork").Barrier(WORKERS)
    db = Database(path, root_class=Bank)
    db.run(deposit)
    parents = db.transaction(note="the parent's")
    account = parents.root.accounts[NAMES[0]]
    parent_pid = os.getpid()

    @app.post("/deposit")
    def add() -> Any:
        """Every worker does it at once, so each request has a worker of its own."""
        meeting.wait(PATIENCE_S)
        balance = db.run(deposit)
        try:
            refused = str(account.balance)
        except DurusError as error:
            refused = str(error)
        return {"balance": balance, "refused": refused, "pid": os.getpid(), "parent": parent_pid}

    return app


def test_workers_of_gunicorn_share_a_database_that_was_opened_before_they_were_forked(
    path: Path,
) -> None:
    pytest.importorskip("gunicorn")
    pytest.importorskip("flask")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", str(WORKERS)]
        command += ["--timeout", "300", "--graceful-timeout", "5", "--log-level", "error"]
        command += ["--no-control-socket", "--bind", f"fd://{listening.fileno()}"]
        command += [f"{__name__}:make_preloaded({str(path)!r})"]
        server = subprocess.Popen(
            command, cwd=Path(__file__).parent.parent, pass_fds=[listening.fileno()]
        )

    def post() -> Any:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as client:
            client.request("POST", "/deposit")
            response = client.getresponse()
            assert response.status == 200
            return json.loads(response.read())

    try:
        answers = [answer for _ in range(5) for answer in in_threads([post] * WORKERS)]
    finally:
        server.terminate()
        server.wait(PATIENCE_S)
    assert sorted(answer["balance"] for answer in answers) == list(range(2, 2 + 5 * WORKERS))
    assert len({answer["pid"] for answer in answers}) == WORKERS
    assert all(answer["parent"] == server.pid for answer in answers)
    for answer in answers:
        assert f"begun by process {server.pid} before it forked this one" in answer["refused"]
    with Database(path, root_class=Bank) as db:
        assert db.run(total) == 1 + 5 * WORKERS
