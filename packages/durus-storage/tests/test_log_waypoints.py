"""Waypoints: walks through a log that begin near to where they go, and find the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from durus import log_waypoints
from durus.error import HistoryUnavailableError
from durus.file_storage import FileStorage
from durus.interfaces import NO_TID, Oid, Tid
from durus.log import Log
from durus.log_format import TransactionHead
from durus.log_waypoints import Waypoints
from durus.testing.storage_contract import commit, create, make_record, value_of

A = Oid((1).to_bytes(8))


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileStorage]:
    """A log with a waypoint every few transactions."""
    monkeypatch.setattr(log_waypoints, "_DISTANCE", 500)
    with FileStorage(tmp_path / "test.durus", durability="none") as storage:
        yield storage


def fill(storage: FileStorage, count: int) -> list[Tid]:
    """Commit the numbers below `count` to A; the tids of that."""
    assert create(storage, 1) == [A]
    return [commit(storage, {A: make_record(number)}).tid for number in range(count)]


def value_at(storage: FileStorage, tid: Tid) -> object:
    return value_of(storage.snapshot(tid).load(A).record)


def tids_of(heads: Iterator[TransactionHead]) -> list[Tid]:
    return [head.tid for head in heads]


def note_places(log: Log, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where transactions are looked for from now on."""
    places: list[int] = []
    walk = log.walk_back_from

    def noting(end: int) -> Iterator[TransactionHead]:
        for head in walk(end):
            places.append(head.offset)
            yield head

    monkeypatch.setattr(log, "walk_back_from", noting)
    return places


def test_a_walk_finds_the_same_with_waypoints(storage: FileStorage) -> None:
    fill(storage, 60)
    log = storage._shared.current()
    everything = tids_of(log.walk_back())[::-1]
    assert everything == [transaction.tid for transaction in storage.transactions()]
    assert len(everything) == 62
    for place, tid in enumerate(everything):
        assert tids_of(log.walk_back(tid)) == everything[: place + 1][::-1]
        assert tids_of(log.walk_back(Tid(tid - 1))) == everything[:place][::-1]
        assert [t.tid for t in log.walk(tid, everything[-1])] == everything[place:-1]
        assert [t.tid for t in log.walk(NO_TID, tid)] == everything[:place]


def test_what_is_committed_after_a_walk_is_found_by_the_next(storage: FileStorage) -> None:
    tids = fill(storage, 60)
    assert next(storage.transactions(tids[3])).tid == tids[3]
    last = commit(storage, {A: make_record("last")}).tid
    assert [t.tid for t in storage.transactions(tids[3])] == [*tids[3:], last]
    assert storage.snapshot(tids[-1]).tid == tids[-1]


def test_an_old_transaction_is_near_once_somebody_was_there(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tids = fill(storage, 200)
    places = note_places(storage._shared.current(), monkeypatch)
    assert value_at(storage, tids[5]) == 5
    assert len(places) > 190
    for number in (100, 50, 5):
        places.clear()
        assert value_at(storage, tids[number]) == number
        assert next(storage.transactions(tids[number])).tid == tids[number]
        assert len(places) < 20


def test_after_a_pack_the_places_are_those_of_the_new_file(storage: FileStorage) -> None:
    tids = fill(storage, 60)
    assert value_at(storage, tids[5]) == 5
    storage.pack()
    last = commit(storage, {A: make_record("last")}).tid
    with pytest.raises(HistoryUnavailableError):
        storage.snapshot(tids[5])
    for _ in range(2):
        assert value_at(storage, tids[-1]) == 59
        assert [t.tid for t in storage.transactions()][-2:] == [tids[-1], last]


def head(tid: int, offset: int, size: int) -> TransactionHead:
    return TransactionHead(offset, size, Tid(tid), *[0] * 9)


def test_whoever_comes_by_the_waypoints_are_the_same() -> None:
    step = log_waypoints._DISTANCE // 10
    heads = [head(100 + i, i * step, step) for i in range(100)]
    some, all_of_them = Waypoints(), Waypoints()
    for found in heads[50:]:
        some.note(found)
    for found in [*heads[::-1], *heads]:
        all_of_them.note(found)
    tids = all_tids(all_of_them)
    assert tids == sorted(set(tids))
    assert len(tids) == 100 * step // log_waypoints._DISTANCE
    assert all_tids(some) == [tid for tid in tids if tid >= 150]
    for waypoints in (some, all_of_them):
        for tid in range(100, 200):
            waypoint = waypoints.find(Tid(tid))
            later = [t for t in all_tids(waypoints) if t >= tid]
            assert (waypoint and waypoint.tid) == (later[0] if later else None)
            assert waypoint is None or waypoint.end == heads[waypoint.tid - 100].end


def all_tids(waypoints: Waypoints) -> list[Tid]:
    tids: list[Tid] = []
    while waypoint := waypoints.find(Tid(tids[-1] + 1 if tids else NO_TID)):
        tids.append(waypoint.tid)
    return tids


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("size", [0.1, 1, 3.7])
def test_when_there_are_too_many_they_are_farther_apart(
    monkeypatch: pytest.MonkeyPatch, size: float, order: int
) -> None:
    monkeypatch.setattr(log_waypoints, "_COUNT_MAX", 20)
    waypoints = Waypoints()
    step = int(size * log_waypoints._DISTANCE)
    heads = [head(100 + i, i * step, step) for i in range(1000)]
    for found in heads[::order]:
        waypoints.note(found)
        assert len(waypoints._tids) <= 20
    tids = all_tids(waypoints)
    farthest = max(later - tid for tid, later in zip([100, *tids], [*tids, 1099], strict=True))
    assert farthest < 250  # they are everywhere, and none is left out for being too old or new
    for found in heads:
        waypoints.note(found)
    assert all_tids(waypoints) == tids or size > 1


def test_walking_back_appends_to_what_is_noted() -> None:
    waypoints = Waypoints()
    for tid in range(20, 0, -1):
        waypoints.note(head(tid, tid * log_waypoints._DISTANCE - 1, 2))
    assert list(waypoints._tids) == list(range(20, 0, -1))
