"""The benchmark suite runs, and its report has the expected shape; no figure decides a test."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.benchmarks import BENCHMARKS, FLOOR, OURS, Benchmark
from bench.budget import Span, split, sum_up
from bench.report import format_contest, summarise
from bench.runner import Contest, Contestant, run_benchmark
from bench.workloads import combine_rates
from tests.shared import Shared

REPOSITORY = Path(__file__).parents[1]


def run_bench(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *options]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def quick_run(shared: Shared) -> tuple[str, dict[str, Any]]:
    """What a quick run without peers has printed, and its JSON."""

    def fill(folder: Path) -> None:
        report = folder / "report.json"
        finished = run_bench("--quick", "--no-peers", "--folder", folder, "--json", report)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        assert list(folder.iterdir()) == [report]
        (folder / "printed").write_text(finished.stdout, encoding="utf-8")

    folder = shared.make("bench", fill)
    report = (folder / "report.json").read_text(encoding="utf-8")
    return (folder / "printed").read_text(encoding="utf-8"), json.loads(report)


def test_a_quick_run_measures_every_benchmark(quick_run: tuple[str, dict[str, Any]]) -> None:
    printed, report = quick_run
    assert [found["name"] for found in report["benchmarks"]] == [b.name for b in BENCHMARKS]
    for benchmark, found in zip(BENCHMARKS, report["benchmarks"], strict=True):
        assert f"\n{benchmark.name}: {benchmark.title}\n" in printed
        assert [(result["peer"], result["size"]) for result in found["results"]] == [
            (peer, size)
            for size in benchmark.quick().sizes
            for peer in benchmark.peers
            if peer in (OURS, FLOOR)
        ]


def test_each_figure_has_a_unit_a_median_its_spread_and_its_rounds(
    quick_run: tuple[str, dict[str, Any]],
) -> None:
    for benchmark, found in zip(BENCHMARKS, quick_run[1]["benchmarks"], strict=True):
        for result in found["results"]:
            expected = [kind.name for kind in benchmark.figures] or list(result["figures"])
            assert list(result["figures"]) == expected
            for figure in result["figures"].values():
                assert figure["unit"]
                assert figure["least"] <= figure["median"] <= figure["most"]
                assert len(figure["rounds"]) == benchmark.quick().rounds
                assert (figure["ratio"] is None) or result["peer"] == FLOOR


def test_a_run_says_what_it_ran_on(quick_run: tuple[str, dict[str, Any]]) -> None:
    environment = quick_run[1]["environment"]
    wanted = ["date", "commit", "CPU", "kernel", "file system", "Python", "Durus 5"]
    assert list(environment) == wanted
    assert all(environment.values())


def test_one_benchmark_can_be_chosen(tmp_path: Path) -> None:
    finished = run_bench("--quick", "--no-peers", "--folder", tmp_path, "--only", "attribute")
    assert finished.returncode == 0, finished.stderr
    assert "\nattribute: " in finished.stdout
    assert "\ncommit: " not in finished.stdout


def test_a_peer_that_fails_is_named_and_hinders_no_other(tmp_path: Path) -> None:
    pythons = {OURS: Path(sys.executable), "no_such_peer": Path(sys.executable)}
    benchmark = Benchmark(
        name="any",
        title="of a peer that is not there",
        workload="attribute",
        figures=(),
        peers=("no_such_peer", OURS),
        count=1,
        rounds=2,
    )
    failed, ours = run_benchmark(benchmark, pythons, tmp_path).contestants
    assert failed.failed
    assert "No module named 'bench.peers.no_such_peer'" in failed.not_measured
    assert len(ours.rounds) == 2


def test_the_ratio_is_taken_of_rounds_that_followed_each_other() -> None:
    ours = Contestant(OURS, 0, [{"us": 2.0}, {"us": 20.0}, {"us": 200.0}])
    floor = Contestant(FLOOR, 0, [{"us": 1.0}, {"us": 10.0}, {"us": 50.0}])
    assert summarise("us", floor, ours) == (10.0, 1.0, 50.0, [1.0, 10.0, 50.0], 2.0)


def test_what_was_not_measured_is_in_the_table_with_its_reason() -> None:
    (benchmark,) = (b for b in BENCHMARKS if b.name == "processes")
    contestants = [
        Contestant(OURS, 0, [{"per_second": 5.0}]),
        Contestant("zodb", 0, not_measured="it needs a server"),
    ]
    printed = format_contest(Contest(benchmark, contestants))
    assert "ZODB was not measured: it needs a server" in printed


def test_processes_that_ran_together_count_from_the_first_start_to_the_last_end() -> None:
    members = [
        {"start_s": 10.0, "end_s": 12.0, "count": 30},
        {"start_s": 11.0, "end_s": 14.0, "count": 50},
    ]
    assert combine_rates(members) == {"per_second": 20.0}


def test_the_parts_of_the_budget_add_up_to_the_whole_commit() -> None:
    whole = Span("whole", 100.0, 120.0)
    commit = Span("commit", 103.0, 115.0)
    calls = [Span("append", 104.0, 105.0), Span("append", 107.0, 108.0), Span("stat", 116.0, 118.0)]
    assert split(whole, commit, calls) == {
        "Python: objects, pickling": 3.0,
        "Python: until append": 1.0,
        "system: append": 1.0,
        "Python: until append 2": 2.0,
        "system: append 2": 1.0,
        "Python: storage, at last": 7.0,
        "Python: until stat": 1.0,
        "system: stat": 2.0,
        "Python: objects, next transaction": 2.0,
    }


def test_the_budget_averages_parts_and_does_not_tell_rare_ones_apart() -> None:
    usual = {"Python: a": 1e-6, "system: b": 2e-6}
    averages = sum_up([usual, usual, {**usual, "system: rename": 9e-6}])
    assert averages == pytest.approx(
        {
            "all": 6.0,
            "Python": 1.0,
            "system": 5.0,
            "Python: a": 1.0,
            "system: b": 2.0,
            "Python: now and then": 0.0,
            "system: now and then": 3.0,
        }
    )
