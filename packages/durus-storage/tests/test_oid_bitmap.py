"""`OidBitmap` against a set, and what can be reached."""

import tracemalloc
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durus.interfaces import ROOT_OID, Oid
from durus.oid_bitmap import OidBitmap, find_reachable


def oid_of(number: int) -> Oid:
    return Oid(number.to_bytes(8))


oids = st.one_of(st.integers(0, 5000), st.integers(0, 2**64 - 1)).map(oid_of)


@given(st.lists(oids, max_size=200), st.lists(oids, max_size=50))
def test_it_holds_what_a_set_holds(added: list[Oid], discarded: list[Oid]) -> None:
    bitmap = OidBitmap(added)
    expected = set(added)
    for oid in [*discarded, *added[::3]]:
        bitmap.discard(oid)
        expected.discard(oid)
    assert list(bitmap) == sorted(expected)
    assert len(bitmap) == len(expected)
    assert [oid for oid in added + discarded if oid in bitmap] == [
        oid for oid in added + discarded if oid in expected
    ]


@given(st.lists(oids, max_size=100), st.lists(oids, max_size=100))
def test_everything_is_taken_out_once_and_what_is_added_meanwhile_too(
    first: list[Oid], later: list[Oid]
) -> None:
    bitmap = OidBitmap(first)
    taken: list[Oid] = []
    to_add = list(later)
    for batch in bitmap.take_all():
        assert batch
        taken += batch
        while to_add:
            bitmap.add(to_add.pop())
    assert set(taken) == set(first) | (set(later) if first else set())
    assert len(taken) <= len(set(first)) + len(set(later))
    assert not list(bitmap)


@given(st.lists(oids, max_size=200))
def test_a_rank_is_the_place_among_all(added: list[Oid]) -> None:
    ranks = OidBitmap(added).ranks()
    ordered = sorted(set(added))
    assert [ranks[oid] for oid in ordered] == list(range(len(ordered)))
    for oid in {oid_of(7), oid_of(2**40)} - set(added):
        with pytest.raises(KeyError):
            ranks[oid]


Graph = dict[int, list[int]]
graphs = st.dictionaries(st.integers(0, 30), st.lists(st.integers(0, 40), max_size=4), max_size=30)


@given(graphs)
def test_what_can_be_reached_is_found_and_what_is_missing_too(graph: Graph) -> None:
    expected: set[int] = set()
    missing: set[int] = set()
    todo = [0]
    while todo:
        number = todo.pop()
        if number in expected | missing:
            continue
        if number in graph:
            expected.add(number)
            todo += graph[number]
        else:
            missing.add(number)

    def load_refs(oids: Iterable[Oid]) -> Iterator[tuple[Oid, bytes]]:
        for oid in oids:
            number = int.from_bytes(oid)
            assert number not in asked
            asked.add(number)
            if number in graph:
                yield oid, b"".join(map(oid_of, graph[number]))

    asked: set[int] = set()
    found, absent = find_reachable(load_refs)
    assert [int.from_bytes(oid) for oid in found] == sorted(expected)
    assert [int.from_bytes(oid) for oid in absent] == sorted(missing)


def measure(numbers: range) -> float:
    """Bytes per oid."""
    tracemalloc.start()
    try:
        bitmap = OidBitmap(map(oid_of, numbers))
        assert ROOT_OID in bitmap
        return tracemalloc.get_traced_memory()[0] / len(numbers)
    finally:
        tracemalloc.stop()


def test_neighbours_take_two_bits_each() -> None:
    assert measure(range(200_000)) < 0.3


def test_oids_far_apart_take_some_hundred_bytes_each() -> None:
    assert measure(range(0, 5_000 << 40, 1 << 40)) < 500
