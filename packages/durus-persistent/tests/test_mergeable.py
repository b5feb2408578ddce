"""Counters, queues and classes of one's own that several transactions change at the same time."""

import contextvars
import gc
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from durus.connection import Connection
from durus.counter import Counter
from durus.database import Database, Transaction
from durus.error import (
    ConflictError,
    ReadOnlyError,
    TransactionEndedError,
    UnnotedChangeError,
    UnstorableError,
    WriteConflictError,
)
from durus.interfaces import CommitResult, Tid
from durus.interfaces import Transaction as StoredTransaction
from durus.mergeable import Mergeable, blind
from durus.persistent import Persistent, note_change, oid_of
from durus.persistent_dict import PersistentDict
from durus.persistent_queue import PersistentQueue
from durus.schema import VERSION_KEY
from durus.storage import MemoryStorage, OverlayStorage
from durus.storage import Storage as ClassicStorage

T = TypeVar("T")
Root = PersistentDict[str, Any]
States = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


class Node(Persistent):
    def __init__(self, value: Any = None) -> None:
        self.value = value


class Highest(Mergeable):
    """The greatest number that anybody has seen, and how many there were."""

    resolve: Callable[[States], Any] | None = None
    """What tests put in the place of the hook."""

    def __init__(self) -> None:
        self.number = 0
        self.count = 0

    @blind
    def see(self, number: int) -> None:
        self.number = max(self.number, number)
        self.count += 1

    @blind
    def see_both(self, first: int, second: int) -> None:
        self.see(first)
        self.see(second)

    @blind
    def fail(self) -> None:
        self.count += 1
        raise LookupError("after the change")

    def _p_resolve_conflict(self, old: Any, committed: Any, mine: Any) -> Any:
        if Highest.resolve is not None:
            return Highest.resolve((old, committed, mine))
        count = committed["count"] + mine["count"] - old["count"]
        return {"number": max(committed["number"], mine["number"]), "count": count}


class WithoutHook(Mergeable):
    def __init__(self) -> None:
        self.value = 0

    @blind
    def change(self) -> None:
        self.value += 1


class Shape(Mergeable, ABC):
    """A class may have abstract methods besides."""

    @abstractmethod
    def draw(self) -> None: ...


class Circle(Shape):
    def draw(self) -> None: ...


class DictStorage(ClassicStorage):
    """A storage as a program for Durus 4.x may have written it: it keeps no history."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.pending: dict[bytes, bytes] = {}
        self.last = -1

    def load(self, oid: bytes) -> bytes:
        return self.records[oid]

    def begin(self) -> None:
        self.pending = {}

    def store(self, oid: bytes, record: bytes) -> None:
        self.pending[oid] = record

    def end(self, handle_invalidations: object = None) -> None:
        self.records.update(self.pending)

    def sync(self) -> list[bytes]:
        return []

    def new_oid(self) -> bytes:
        self.last += 1
        return self.last.to_bytes(8, "big")


class BusyStorage(MemoryStorage):
    """A storage in which somebody else commits just before each commit."""

    before: Callable[[], object] | None = None
    times = 0

    def commit(self, transaction: StoredTransaction) -> CommitResult:
        if self.before is not None and self.times:
            self.times -= 1
            before, self.before = self.before, None
            before()
            self.before = before
        return super().commit(transaction)


@pytest.fixture
def storage() -> BusyStorage:
    return BusyStorage()


@pytest.fixture
def db(storage: BusyStorage) -> Iterator[Database]:
    with Database(storage) as db:
        with db.transaction() as root:
            root["counter"] = Counter(100)
            root["queue"] = PersistentQueue(["first"])
            root["highest"] = Highest()
            root["node"] = Node(1)
        yield db


@pytest.fixture
def tx(db: Database) -> Iterator[Transaction]:
    transaction = db.transaction()
    yield transaction
    transaction.abort()


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[States], Any]], None]:
    """Set what `Highest` does in the place of its hook."""
    return lambda resolve: monkeypatch.setattr(Highest, "resolve", staticmethod(resolve))


def elsewhere(call: Callable[[], T]) -> T:
    """Do something in another transaction while one is open here."""
    return contextvars.Context().run(call)


def others(db: Database, change: Callable[[Root], object]) -> None:
    """Somebody else commits a change."""

    def run(root: Root) -> None:
        change(root)

    elsewhere(lambda: db.run(run))


def others_count(db: Database, by: int = 1) -> None:
    others(db, lambda root: root["counter"].increment(by))


def count_and_set_node(root: Root) -> None:
    root["counter"].increment()
    root["node"].value = 9


def value_of(db: Database) -> int:
    return elsewhere(lambda: db.run(lambda root: int(root["counter"].value)))


def items_of(db: Database) -> list[Any]:
    return elsewhere(lambda: db.run(lambda root: list(root["queue"])))


def conflicts_of(tx: Transaction) -> list[bytes]:
    """What the commit says is in conflict."""
    with pytest.raises(WriteConflictError) as caught:
        tx.commit()
    return list(caught.value.oids or ())


def in_threads(count: int, work: Callable[[int], object]) -> None:
    """Do it in so many threads; what one raises is raised here."""
    failed: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that they are in each other's way
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval_s)
    if failed:
        raise failed[0]


# Merging.


def test_two_transactions_count_without_a_conflict(db: Database, tx: Transaction) -> None:
    tx.root["counter"].increment(5)
    others_count(db, 20)
    tx.commit()
    assert value_of(db) == 125
    assert db.stats().conflicts == 0


def test_two_connections_count_without_a_conflict() -> None:
    storage = MemoryStorage()
    first = Connection(storage)
    first.root["counter"] = Counter()
    first.commit()
    second = Connection(storage)
    first.root["counter"].increment(3)
    second.root["counter"].decrement()
    first.commit()
    second.commit()
    assert second.root["counter"].value == 2
    first.abort()
    assert first.root["counter"].value == 2


def test_after_a_merge_the_merged_value_is_seen(db: Database, tx: Transaction) -> None:
    tx.root["counter"].increment()
    tx.root["queue"].append("mine")
    others_count(db)
    tx.commit()
    with db.transaction() as root:
        assert root["counter"].value == 102
        assert list(root["queue"]) == ["first", "mine"]
        root["counter"].reset(7)  # the next commit is built on the right revision
    assert value_of(db) == 7


def test_a_merge_also_shows_what_others_have_changed_meanwhile(
    db: Database, tx: Transaction
) -> None:
    connection = tx.root._p_connection
    assert isinstance(connection, Connection)
    assert tx.root["node"].value == 1  # it is in the cache
    tx.commit()
    tx = db.transaction()
    tx.root["counter"].increment()
    others(db, count_and_set_node)
    tx.commit()
    assert db.run(lambda root: (root._p_connection is connection, root["node"].value)) == (True, 9)


@pytest.mark.parametrize("kind", [BusyStorage, lambda: OverlayStorage(MemoryStorage())])
def test_threads_reach_the_exact_sum_and_see_no_conflict(
    kind: Callable[[], MemoryStorage],
) -> None:
    with Database(kind()) as db:
        with db.transaction() as root:
            root["counter"] = Counter()

        def count(number: int) -> None:
            for _ in range(25):
                with db.transaction() as root:
                    root["counter"].increment(number)

        in_threads(8, count)
        assert value_of(db) == 25 * sum(range(8))
        assert db.stats().conflicts == 0


def test_who_looks_before_counting_never_counts_too_far(db: Database) -> None:
    with db.transaction() as root:
        root["counter"].reset()

    def count_to_ten(root: Root) -> None:
        if root["counter"].value < 10:
            root["counter"].increment()

    in_threads(6, lambda number: [db.run(count_to_ten) for _ in range(5)])
    assert value_of(db) == 10


def test_what_several_have_appended_stands_in_the_order_of_their_commits(db: Database) -> None:
    transactions = [elsewhere(db.transaction) for _ in range(3)]
    for number, transaction in enumerate(transactions):

        def append(transaction: Transaction = transaction, number: int = number) -> None:
            transaction.root["queue"].append(f"{number}a")
            transaction.root["queue"].extend([f"{number}b", f"{number}c"])

        elsewhere(append)
    for number in (2, 0, 1):
        transactions[number].commit()
    expected = [f"{number}{letter}" for number in (2, 0, 1) for letter in "abc"]
    assert items_of(db) == ["first", *expected]


def test_threads_append_and_nothing_is_lost_or_moved(db: Database) -> None:
    def append(number: int) -> None:
        for n in range(20):
            with db.transaction() as root:
                root["queue"].append((number, n))

    in_threads(4, append)
    items = items_of(db)[1:]
    assert sorted(items) == [(number, n) for number in range(4) for n in range(20)]
    for number in range(4):
        assert [n for by, n in items if by == number] == list(range(20))
    assert db.stats().conflicts == 0


def test_queue_items_may_be_new_objects(db: Database, tx: Transaction) -> None:
    mine = Node("mine")
    tx.root["queue"].append(mine)
    others(db, lambda root: root["queue"].append(Node("theirs")))
    tx.commit()
    assert db.run(lambda root: [node.value for node in list(root["queue"])[1:]]) == [
        "theirs",
        "mine",
    ]
    with db.transaction() as root:
        assert root["queue"][2] is mine  # one oid, one object


def test_a_commit_that_is_merged_again_and_again(
    db: Database, storage: BusyStorage, tx: Transaction
) -> None:
    tx.root["counter"].increment(5)
    storage.before, storage.times = lambda: others_count(db), 30
    tx.commit()
    assert value_of(db) == 135


def test_each_merge_begins_with_what_this_transaction_has_done(
    db: Database, storage: BusyStorage, tx: Transaction
) -> None:
    tx.root["queue"].append("mine")
    names = iter("abc")
    storage.before = lambda: others(db, lambda root: root["queue"].append(next(names)))
    storage.times = 3
    tx.commit()
    assert items_of(db) == ["first", "a", "b", "c", "mine"]


# Blind on all kinds of objects.


def test_a_blind_change_of_a_ghost_reads_nothing(db: Database) -> None:
    with Database(db.storage) as fresh:
        tx = fresh.transaction()
        counter = tx.root["counter"]
        assert counter._p_is_ghost()
        counter.increment()
        others_count(db)
        tx.commit()
    assert value_of(db) == 102


def test_a_new_object_is_changed_as_any_other(db: Database, tx: Transaction) -> None:
    tx.root["new"] = new = Counter()
    new.increment(2)
    tx.savepoint()
    new.increment(3)
    tx.commit()
    assert db.run(lambda root: root["new"].value) == 5


def test_a_blind_change_after_a_savepoint_is_still_merged(db: Database, tx: Transaction) -> None:
    tx.root["counter"].increment(1)
    tx.savepoint()
    tx.root["counter"].increment(10)
    tx.savepoint()
    others_count(db, 1000)
    tx.commit()
    assert value_of(db) == 1111


def test_a_blind_change_that_was_rolled_back_is_not_stored(db: Database, tx: Transaction) -> None:
    tx.root["counter"].increment(1)
    savepoint = tx.savepoint()
    tx.root["counter"].increment(10)
    savepoint.rollback()
    others_count(db, 1000)
    tx.commit()
    assert value_of(db) == 1101


def test_an_object_that_has_left_the_cache_after_a_savepoint_is_merged(db: Database) -> None:
    with db.transaction() as root:
        root["inner"] = PersistentDict(counter=Counter(1))
    with db.transaction() as root:
        oid = oid_of(root["inner"]["counter"])
    assert oid is not None
    with Database(db.storage) as fresh:  # in which nothing refers to it
        tx = fresh.transaction()
        tx.get(oid, Counter).increment()
        tx.savepoint()
        connection = tx.root._p_connection
        assert isinstance(connection, Connection)
        connection.cache.trim(is_idle=True)
        connection.cache.recent_objects.map.clear()
        gc.collect()
        assert oid not in connection.cache.objects
        others(db, lambda root: root["inner"]["counter"].increment())
        tx.commit()
    assert db.run(lambda root: root["inner"]["counter"].value) == 3


def test_a_blind_method_may_call_others(db: Database, tx: Transaction) -> None:
    tx.root["highest"].see_both(3, 9)
    others(db, lambda root: root["highest"].see(5))
    tx.commit()
    assert db.run(lambda root: (root["highest"].number, root["highest"].count)) == (9, 3)


def test_a_blind_method_that_fails_leaves_the_object_as_one_that_nobody_has_read(
    db: Database, tx: Transaction
) -> None:
    with pytest.raises(LookupError):
        tx.root["highest"].fail()
    others(db, lambda root: root["highest"].see(5))
    tx.commit()
    assert db.run(lambda root: root["highest"].count) == 2


def test_to_name_a_blind_method_is_no_access(db: Database, tx: Transaction) -> None:
    count = tx.root["counter"].increment
    others_count(db)
    tx.root["node"].value = 2
    tx.commit()  # nothing of the counter was read
    with pytest.raises(TransactionEndedError):
        count()


def test_a_snapshot_and_the_past_refuse_blind_changes(db: Database) -> None:
    with db.snapshot() as root, pytest.raises(ReadOnlyError):
        root["counter"].increment()
    with Connection(db.storage, at=Tid(db.storage.tid)) as past:
        with pytest.raises(ReadOnlyError):
            past.root["queue"].append(1)
        assert list(past.root["queue"]) == ["first"]


def test_a_mergeable_class_may_be_abstract() -> None:
    assert isinstance(Circle(), Shape)


# What is never merged.


def read(counter: Counter) -> None:
    _ = counter.value


def assign(counter: Counter) -> None:
    counter._value = 100


def reset(counter: Counter) -> None:
    counter.reset(100)


def state(counter: Counter) -> None:
    counter.__getstate__()


def note(counter: Counter) -> None:
    note_change(counter)


def look_inside(counter: Counter) -> None:
    assert hasattr(counter, "_value")


@pytest.mark.parametrize("use", [read, assign, reset, state, note, look_inside])
@pytest.mark.parametrize("when", ["before", "after", "after a savepoint"])
def test_what_was_used_otherwise_conflicts(
    db: Database, tx: Transaction, use: Callable[[Counter], None], when: str
) -> None:
    counter = tx.root["counter"]
    if when == "before":
        use(counter)
    counter.increment()
    if when == "after a savepoint":
        tx.savepoint()
    if when != "before":
        use(counter)
    others_count(db)
    assert conflicts_of(tx) == [oid_of(counter)]
    tx.abort()
    assert value_of(db) == 101


QUEUE_USES: list[Callable[[PersistentQueue[Any]], object]] = [
    len,
    bool,
    list,
    repr,
    lambda queue: queue[0],
    lambda queue: "first" in queue,
    lambda queue: queue.popleft(),
    lambda queue: queue.clear(),
]


@pytest.mark.parametrize("use", QUEUE_USES)
def test_all_else_reads_the_queue(
    db: Database, tx: Transaction, use: Callable[[PersistentQueue[Any]], object]
) -> None:
    queue = tx.root["queue"]
    use(queue)
    queue.append("mine")
    others(db, lambda root: root["queue"].append("theirs"))
    assert conflicts_of(tx) == [oid_of(queue)]
    tx.abort()
    assert items_of(db) == ["first", "theirs"]


def test_what_was_read_and_rolled_back_is_not_merged(db: Database, tx: Transaction) -> None:
    counter = tx.root["counter"]
    savepoint = tx.savepoint()
    assert counter.value == 100
    savepoint.rollback()
    counter.increment()
    others_count(db)
    assert conflicts_of(tx) == [oid_of(counter)]


def test_the_conflict_of_another_object_names_that_one_alone(db: Database, tx: Transaction) -> None:
    tx.root["counter"].increment()
    tx.root["node"].value += 1
    others(db, count_and_set_node)
    assert conflicts_of(tx) == [oid_of(tx.root["node"])]
    assert tx.root["node"].value == 2  # memory is as before
    tx.abort()
    assert value_of(db) == 101
    assert db.run(lambda root: root["node"].value) == 9


def test_a_conflict_that_comes_while_merging_is_found(
    db: Database, storage: BusyStorage, tx: Transaction
) -> None:
    tx.root["counter"].increment()
    assert tx.root["node"].value == 1
    changes: Iterator[Callable[[Root], object]] = iter(
        [
            lambda root: root["counter"].increment(),
            lambda root: setattr(root["node"], "value", 2),
        ]
    )
    storage.before, storage.times = lambda: others(db, next(changes)), 2
    assert conflicts_of(tx) == [oid_of(tx.root["node"])]
    assert value_of(db) == 101


def test_a_reset_by_others_is_what_counting_goes_on_from(db: Database, tx: Transaction) -> None:
    tx.root["counter"].increment(5)
    others(db, lambda root: root["counter"].reset(0))
    tx.commit()
    assert value_of(db) == 5


def test_an_object_without_the_hook_conflicts(db: Database) -> None:
    with db.transaction() as root:
        root["x"] = WithoutHook()
    tx = db.transaction()
    tx.root["x"].change()
    others(db, lambda root: root["x"].change())
    assert conflicts_of(tx) == [oid_of(tx.root["x"])]
    tx.abort()


def test_a_storage_without_history_has_the_classic_rule() -> None:
    with Database(DictStorage()) as db:
        with db.transaction() as root:
            root["counter"] = Counter(100)
        tx = db.transaction()
        tx.root["counter"].increment()
        others_count(db)
        with pytest.raises(ConflictError):
            tx.commit()
        tx.abort()
        in_threads(4, lambda number: [db.run(lambda r: r["counter"].increment()) for _ in range(5)])
        assert value_of(db) == 121


def test_a_counter_that_a_pack_has_removed_is_a_conflict(db: Database, tx: Transaction) -> None:
    with db.transaction() as root:
        root["box"] = PersistentDict(counter=Counter())
    with db.snapshot() as root:
        oid = oid_of(root["box"]["counter"])
    assert oid is not None
    tx.get(oid, Counter).increment()
    others(db, lambda root: root.pop("box"))
    db.pack()
    with pytest.raises(ConflictError):
        tx.commit()
    tx.abort()


def test_a_removed_counter_beside_one_that_can_be_merged_ends_in_a_conflict_at_once(
    db: Database, tx: Transaction
) -> None:
    with db.transaction() as root:
        root["box"] = PersistentDict(counter=Counter())
    with db.snapshot() as root:
        oid, other = oid_of(root["box"]["counter"]), oid_of(root["counter"])
    assert oid is not None
    assert other is not None
    tx.get(oid, Counter).increment()
    tx.get(other, Counter).increment()
    others(db, lambda root: root.pop("box"))
    db.pack()
    others_count(db)
    assert conflicts_of(tx) == [oid]
    tx.abort()
    assert value_of(db) == 101


# The hook.


def test_the_hook_gets_three_states(
    db: Database, tx: Transaction, hook: Callable[[Callable[[States], Any]], None]
) -> None:
    seen: list[States] = []

    def resolve(states: States) -> dict[str, int]:
        seen.append(states)
        return {"number": 7, "count": 7}

    hook(resolve)
    tx.root["highest"].see(1)
    tx.savepoint()
    tx.root["highest"].see(2)
    others(db, lambda root: root["highest"].see(3))
    tx.commit()
    assert seen == [
        ({"number": 0, "count": 0}, {"number": 3, "count": 1}, {"number": 2, "count": 2})
    ]
    assert db.run(lambda root: root["highest"].number) == 7


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (NotImplementedError(), WriteConflictError),
        (ValueError("no"), ValueError),
        (KeyError("count"), KeyError),
    ],
)
def test_a_hook_that_raises_ends_the_commit_and_memory_is_as_before(
    db: Database,
    tx: Transaction,
    hook: Callable[[Callable[[States], Any]], None],
    error: Exception,
    raised: type[Exception],
) -> None:
    def refuse(states: States) -> Any:
        raise error

    hook(refuse)
    tx.root["highest"].see(5)
    tx.root["new"] = new = Node("new")
    others(db, lambda root: root["highest"].see(3))
    with pytest.raises(raised):
        tx.commit()
    assert oid_of(new) is None
    assert tx.root["highest"].number == 5
    assert tx.root["new"] is new
    tx.abort()
    assert db.run(lambda root: (root["highest"].number, "new" in root)) == (3, False)


def test_a_hook_that_fails_once_leaves_what_can_be_committed_later(
    db: Database, tx: Transaction, hook: Callable[[Callable[[States], Any]], None]
) -> None:
    def refuse(states: States) -> Any:
        raise ValueError("not now")

    hook(refuse)
    tx.root["highest"].see(5)
    tx.root["new"] = Node("new")
    others(db, lambda root: root["highest"].see(3))
    with pytest.raises(ValueError, match="not now"):
        tx.commit()
    hook(lambda states: {"number": 5, "count": 2})
    tx.commit()
    assert db.run(lambda root: (root["highest"].number, root["new"].value)) == (5, "new")


def test_a_state_that_cannot_be_pickled_is_refused_by_name(
    db: Database, tx: Transaction, hook: Callable[[Callable[[States], Any]], None]
) -> None:
    hook(lambda states: {"number": threading.Lock()})
    tx.root["highest"].see(5)
    others(db, lambda root: root["highest"].see(3))
    with pytest.raises(UnstorableError, match=r"<Highest \d+>, attribute 'number' \(lock\)"):
        tx.commit()
    hook(lambda states: {"number": 5, "count": 2})
    tx.commit()  # the hook and the error have read nothing, so it is still merged


def test_a_hook_that_makes_new_objects_is_refused(
    db: Database, tx: Transaction, hook: Callable[[Callable[[States], Any]], None]
) -> None:
    made = Node("made by the hook")
    hook(lambda states: {"number": 1, "count": 2, "node": made})
    tx.root["highest"].see(5)
    others(db, lambda root: root["highest"].see(3))
    with pytest.raises(UnstorableError, match="new persistent objects"):
        tx.commit()
    assert oid_of(made) is None
    tx.abort()


def test_a_hook_that_changes_objects_is_refused(
    db: Database, tx: Transaction, hook: Callable[[Callable[[States], Any]], None]
) -> None:
    highest = tx.root["highest"]

    def change(states: States) -> Any:
        highest.number = 7
        return states[2]

    hook(change)
    tx.savepoint()
    highest.see(5)
    tx.savepoint()
    others(db, lambda root: root["highest"].see(3))
    with pytest.raises(UnstorableError, match=r"_p_resolve_conflict of <Highest \d+> has changed"):
        tx.commit()
    tx.abort()
    assert db.run(lambda root: root["highest"].number) == 3


@pytest.mark.parametrize("state", [{"count": 1, "extra": 2}, {"count": 1, VERSION_KEY: 1}])
def test_a_hook_whose_state_cannot_be_loaded_is_refused(
    state: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Forgetful, "_p_resolve_conflict", lambda *states: state)
    first: Connection[Any] = Connection(MemoryStorage())
    first.root["count"] = Forgetful()
    first.commit()
    second: Connection[Any] = Connection(first.storage)
    for connection in (first, second):
        connection.root["count"].add()
    second.commit()
    with pytest.raises(UnstorableError, match=r"_p_resolve_conflict .* cannot be loaded"):
        first.commit()


def test_a_blind_change_in_place_is_found_by_a_strict_connection() -> None:
    connection: Connection[Any] = Connection(MemoryStorage(), strict=True)
    connection.root["log"] = Log()
    connection.commit()
    connection.root["log"].add("lost")
    with pytest.raises(UnnotedChangeError, match="'items'"):
        connection.commit()


class Log(Mergeable):
    def __init__(self) -> None:
        self.items: list[str] = []

    @blind
    def add(self, item: str) -> None:
        self.items.append(item)  # and nobody notes it


def test_pickling_at_the_commit_is_no_access(
    db: Database, storage: BusyStorage, tx: Transaction
) -> None:
    counter = tx.root["counter"]
    counter.increment()
    tx.root["bad"] = lambda: None
    with pytest.raises(UnstorableError):
        tx.commit()
    with pytest.raises(UnstorableError):
        tx.savepoint()
    del tx.root["bad"]
    others_count(db)
    tx.commit()
    assert value_of(db) == 102


def test_what_an_iterable_reads_of_the_queue_is_an_access() -> None:
    storage = MemoryStorage()
    queue: PersistentQueue[int] = PersistentQueue()
    first: Connection[Any] = Connection(storage)
    first.root["queue"] = queue
    first.commit()
    second: Connection[Any] = Connection(storage)
    for connection in (first, second):
        mine = connection.root["queue"]
        mine.extend(item for item in [5] if item not in mine)
    second.commit()
    with pytest.raises(WriteConflictError):
        first.commit()


def test_a_hook_that_forgets_to_return_the_state_is_refused() -> None:
    storage = MemoryStorage()
    first: Connection[Any] = Connection(storage)
    first.root["forgetful"] = Forgetful()
    first.commit()
    second: Connection[Any] = Connection(storage)
    for connection in (first, second):
        connection.root["forgetful"].add()
    second.commit()
    with pytest.raises(UnstorableError, match=r"_p_resolve_conflict.*NoneType"):
        first.commit()


class Forgetful(Mergeable):
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    @blind
    def add(self) -> None:
        self.count += 1

    def _p_resolve_conflict(self, old: Any, committed: Any, mine: Any) -> Any:
        committed["count"] += mine["count"] - old["count"]
