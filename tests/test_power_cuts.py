"""Power cuts: whatever they leave on the disk is the database that its programs were told of.

Real workloads are recorded at the file seam (`tests/power_cuts`); then the power is cut after each
operation, and the states that the disk may be in are opened with the real code.
"""

import re
from random import Random
from typing import Any

import pytest

from durus import file_storage, shared_log
from tests.power_cuts import workloads
from tests.power_cuts.explore import explore
from tests.power_cuts.workloads import WORKLOADS, Workload
from tests.seeds import Seeds

OTHERS = 75
"""So many states are looked at beside the extreme ones after each operation."""
ABOUT_INDEX = "the index file"
"""What verify says of an index: that is no damage of the database."""
ATTEMPTS = 20
"""So many recordings are tried until a violation is found."""


@pytest.fixture(autouse=True)
def often_updated_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index file is made and updated after a few commits."""
    monkeypatch.setattr(shared_log, "CHECKPOINT_SIZE", 6)
    monkeypatch.setattr(file_storage, "_CLOSE_CHECKPOINT_SIZE", 4)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.__name__)
def test_nothing_is_lost_or_found_after_a_power_cut(workload: Workload, seeds: Seeds) -> None:
    distinct = 0
    for seed in seeds.take(1, long=10):
        found = explore(workload, Random(seed), OTHERS)
        damages = [text for text in found.violations if ABOUT_INDEX not in text]
        assert damages == [], f"with --seed {seed}, of {found.distinct} states"
        distinct += found.distinct
    print(f"{distinct} distinct states of {workload.__name__}")


@pytest.mark.parametrize(
    "workload", [workloads.index_checkpoints, workloads.an_index_and_killed_writers]
)
def test_the_next_commits_make_an_index_anew_that_a_power_cut_tore(
    workload: Workload, seeds: Seeds
) -> None:
    for seed in seeds.take(1, long=10):
        found = explore(workload, Random(seed), OTHERS)
        assert found.violations == [], f"with --seed {seed}, of {found.distinct} states"


# Each rule has its reason: without it there are violations.

BROKEN = [
    ("sync", workloads.small_and_large_commits, "transactions are lost"),
    ("sync", workloads.groups_of_threads, "transactions are lost"),
    ("sync", workloads.packs, "no Durus database"),
    ("sync_directory", workloads.creating_a_file, "the file is lost"),
    ("sync_directory", workloads.packs, "transactions are lost"),
    ("sync_index", workloads.index_checkpoints, "objects"),
]


@pytest.mark.parametrize(("omitted", "workload", "violation"), BROKEN)
def test_without_a_sync_something_is_lost(
    omitted: str, workload: Workload, violation: str, seeds: Seeds
) -> None:
    assert_found(violation, workload, seeds, omits=omitted)


def test_a_mark_before_the_sync_makes_visible_what_is_then_lost(seeds: Seeds) -> None:
    workload = workloads.small_and_large_commits
    assert_found("transactions are lost", workload, seeds, delays_sync=True)
    assert_found("damaged", workload, seeds, delays_sync=True)


def test_an_index_of_what_is_not_synced_shows_what_is_not_there(seeds: Seeds) -> None:
    # Without a sync for each commit, the only ones are those before an index is written.
    workload = workloads.an_index_of_commits_that_need_not_last
    assert_found("objects|CorruptionError", workload, seeds, delays_sync=True)


def assert_found(violation: str, workload: Workload, seeds: Seeds, **rules: Any) -> None:
    for seed in range(seeds.first, seeds.first + ATTEMPTS):
        found = explore(workload, Random(seed), OTHERS, **rules)
        if any(re.search(violation, text) for text in found.violations):
            return
    pytest.fail(f"no violation was found, with --seed {seeds.first}")
