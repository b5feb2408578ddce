"""Times as tids, and tids as times."""

import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durus.interfaces import NO_TID, Tid
from durus.times import tid_at, time_of

NEW_YEAR = 1_704_067_200 * 10**9
"""Nanoseconds from 1970 to 2024."""


def test_a_tid_stands_for_itself() -> None:
    assert tid_at(Tid(7)) == 7
    assert tid_at(0) == NO_TID


def test_an_aware_datetime_is_the_nanoseconds_since_1970() -> None:
    assert tid_at(datetime(2024, 1, 1, tzinfo=UTC)) == NEW_YEAR
    assert tid_at(datetime(2024, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))) == NEW_YEAR
    assert tid_at(datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=UTC)) == NEW_YEAR + 1000


def test_a_naive_datetime_is_refused_and_the_remedy_named() -> None:
    with pytest.raises(ValueError, match=r"datetime\.now\(UTC\).*astimezone"):
        tid_at(datetime(2024, 1, 1))


def test_a_timedelta_counts_back_from_now() -> None:
    assert tid_at(timedelta(days=1), NEW_YEAR) == NEW_YEAR - 86_400 * 10**9
    assert tid_at(timedelta(0), NEW_YEAR) == NEW_YEAR
    before = time.time_ns()
    assert before <= tid_at(timedelta(0)) <= time.time_ns()


def test_a_timedelta_into_the_future_is_refused() -> None:
    with pytest.raises(ValueError, match="future"):
        tid_at(timedelta(seconds=-1))


def test_before_1970_nothing_was_there() -> None:
    assert tid_at(datetime(1960, 1, 1, tzinfo=UTC)) == NO_TID
    assert tid_at(timedelta.max, NEW_YEAR) == NO_TID


@pytest.mark.parametrize("when", ["2024-01-01", 1.5, True, None])
def test_anything_else_is_refused(when: Any) -> None:
    with pytest.raises(TypeError):
        tid_at(when)


def test_a_negative_tid_is_refused() -> None:
    with pytest.raises(ValueError, match="no tid"):
        tid_at(-1)


def test_a_tid_has_a_time() -> None:
    assert time_of(NEW_YEAR) == datetime(2024, 1, 1, tzinfo=UTC)
    assert time_of(0).tzinfo is UTC


@given(st.integers(0, 2**62))
def test_the_time_of_a_tid_is_not_before_it_and_less_than_a_microsecond_after(ns: int) -> None:
    assert 0 <= tid_at(time_of(ns)) - ns < 1000
