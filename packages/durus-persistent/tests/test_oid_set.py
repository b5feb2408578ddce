"""The set of accessed oids: a superset always, exact while small, bounded."""

from hypothesis import given, settings
from hypothesis import strategies as st

from durus.interfaces import Oid
from durus.oid_set import BLOCKS_MAX, OidSet


def oid(number: int) -> Oid:
    return Oid(number.to_bytes(8, "big"))


numbers = st.integers(0, 2**64 - 1)


@given(st.lists(numbers), st.lists(numbers))
def test_a_small_set_is_exact(added: list[int], asked: list[int]) -> None:
    accessed = OidSet(map(oid, added))
    asked += added
    assert accessed.overlap(map(oid, asked)) == [oid(n) for n in asked if n in added]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 2**24), st.integers(1, 4 * BLOCKS_MAX))
def test_a_large_set_is_a_superset_in_bounded_memory(start: int, step: int, count: int) -> None:
    oids = [oid(start + i * step) for i in range(count)]
    accessed = OidSet(oids)
    assert accessed.overlap(oids) == oids
    assert len(accessed._blocks) <= BLOCKS_MAX


@settings(max_examples=30, deadline=None)
@given(st.sets(numbers, min_size=1))
def test_a_coarse_set_keeps_what_it_held(added: set[int]) -> None:
    accessed = OidSet(map(oid, added))
    for number in range(BLOCKS_MAX + 1):
        accessed.add(oid(number << 40))
    assert accessed.overlap(map(oid, added)) == [oid(n) for n in added]


def test_a_set_is_exact_up_to_its_bound() -> None:
    accessed = OidSet(oid(2 * i) for i in range(BLOCKS_MAX))
    assert accessed.overlap([oid(2 * i + 1) for i in range(BLOCKS_MAX)]) == []
    accessed.add(oid(2 * BLOCKS_MAX))
    assert accessed.overlap([oid(1)]) == [oid(1)]


def test_a_dense_set_stays_fine_enough_to_tell_far_from_near() -> None:
    accessed = OidSet(map(oid, range(100_000)))
    assert accessed.overlap([oid(200_000)]) == []


def test_everything_overlaps_with_everything() -> None:
    accessed = OidSet()
    accessed.add_everything()
    accessed.add(oid(7))
    assert accessed.overlap([oid(0), oid(2**64 - 1)]) == [oid(0), oid(2**64 - 1)]


def test_an_empty_set_is_false_and_overlaps_with_nothing() -> None:
    accessed = OidSet()
    assert not accessed
    assert accessed.overlap([oid(0)]) == []
    accessed.add(oid(0))
    assert accessed


def test_a_cleared_set_is_empty_and_exact_again() -> None:
    accessed = OidSet()
    accessed.add_everything()
    accessed.clear()
    assert not accessed
    accessed.add(oid(1))
    assert accessed.overlap([oid(0), oid(1)]) == [oid(1)]


def test_what_is_excluded_is_not_in_it_however_large_it_grows() -> None:
    accessed = OidSet([oid(1)])
    accessed.exclude([oid(7)])
    accessed.add_everything()
    assert accessed.overlap([oid(1), oid(7), oid(8)]) == [oid(1), oid(8)]
    accessed.clear()
    accessed.add(oid(7))
    assert accessed.overlap([oid(7)]) == [oid(7)]
