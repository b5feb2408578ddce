"""`LogIndex` against a dict, whatever the oids are; what threads see while others add some."""

import itertools
import sys
import threading
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from durus.interfaces import NO_TID, Oid, Tid
from durus.log_format import LoggedTransaction, encode_transaction
from durus.log_index import LogIndex, RecentChanges

dense = st.integers(0, 600)
sparse = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 40).map(lambda n: n * 256 + 7))


def oid_of(number: int) -> Oid:
    return Oid(number.to_bytes(8))


@given(st.lists(st.tuples(st.one_of(dense, sparse), st.integers(1, 2**64 - 1)), max_size=300))
def test_it_finds_what_a_dict_finds(puts: list[tuple[int, int]]) -> None:
    index = LogIndex()
    expected: dict[int, int] = {}
    for number, slot in puts:
        index.put(number, slot)
        expected[number] = slot
    for number, slot in expected.items():
        assert index.find(oid_of(number)) == slot
        assert oid_of(number) in index
        for other in {max(0, number - 1), min(2**64 - 1, number + 1)} - expected.keys():
            assert index.find(oid_of(other)) == 0
            assert oid_of(other) not in index
    assert list(index.oids()) == [oid_of(number) for number in sorted(expected)]


def measure(numbers: range) -> float:
    """Bytes per oid."""
    tracemalloc.start()
    try:
        index = LogIndex()
        for number in numbers:
            index.put(number, 1 << 40)
        return tracemalloc.get_traced_memory()[0] / len(numbers)
    finally:
        tracemalloc.stop()


def test_neighbours_take_little_more_than_8_bytes_each() -> None:
    assert measure(range(100_000)) < 10


def test_oids_far_apart_take_some_hundred_bytes_each() -> None:
    assert measure(range(0, 10_000 << 40, 1 << 40)) < 600


def test_all_oids_can_be_listed_while_another_thread_adds_some() -> None:
    index = LogIndex()
    for number in range(10_000):
        index.put(number, 1)
    added = itertools.count(10_000, 7)
    done = threading.Event()

    def add() -> None:
        while not done.is_set():
            index.put(next(added), 1)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    writer = threading.Thread(target=add)
    writer.start()
    try:
        for _ in range(5):
            listed = list(index.oids())
            assert listed == sorted(listed)
            assert set(listed) >= {oid_of(number) for number in range(10_000)}
    finally:
        done.set()
        writer.join()
        sys.setswitchinterval(interval)


def test_at_no_moment_is_anything_missing_to_a_reader() -> None:
    """Looked at before every line of what adds to the index, as another thread might."""
    index = LogIndex()
    added: set[int] = set()

    def look(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        if frame.f_code is not LogIndex.put.__code__:
            return None
        sys.settrace(None)
        assert all(oid_of(number) in index for number in added)
        assert set(index.oids()) >= {oid_of(number) for number in added}
        sys.settrace(look)
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        for number in range(100):
            index.put(number, 1)
            added.add(number)
    finally:
        sys.settrace(before)
    assert len(added) == 100


def logged(tid: int) -> LoggedTransaction:
    oid = oid_of(tid)
    transaction, _ = encode_transaction(
        bytes(16), 500, tid=Tid(tid), time_ns=0, id=tid, next_oid=0, records=[(oid, 0, b"record")]
    )
    return transaction


def test_recent_changes_are_found_while_another_thread_adds_some() -> None:
    recent = RecentChanges(NO_TID)
    one = logged(1)
    known = 2000
    for tid in range(1, known + 1):
        recent.add(one._replace(head=one.head._replace(tid=Tid(tid))))
    done = threading.Event()

    def add_more() -> None:
        tid = known
        while not done.is_set() and tid < 40_000:  # more are forgotten again
            tid += 1
            recent.add(one._replace(head=one.head._replace(tid=Tid(tid))))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    writer = threading.Thread(target=add_more)
    try:
        writer.start()
        for _ in range(100):
            assert recent.find(Tid(known - 1000), Tid(known)) == frozenset([oid_of(1)])
    finally:
        done.set()
        writer.join()
        sys.setswitchinterval(interval)
