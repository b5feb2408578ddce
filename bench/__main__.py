"""`hatch run bench`: Durus 5 beside Durus 4.3, ZODB and the floors; see docs/benchmarks.md."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.benchmarks import BENCHMARKS, FLOOR, OURS, PEERS, TITLES
from bench.environments import CACHE_FOLDER, describe_machine, prepare_peers
from bench.report import describe_contest, format_contest, format_environment
from bench.runner import describe_peer, run_benchmark
from scripts.environments import CommandFailedError

__all__ = ["main"]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hatch run bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="so little of all that it only shows that it works"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=[benchmark.name for benchmark in BENCHMARKS],
        help="of %(choices)s",
    )
    parser.add_argument(
        "--no-peers", action="store_true", help="only Durus 5 and the floors: needs no network"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--folder",
        type=Path,
        default=CACHE_FOLDER,
        help="where the databases are made, and removed again (default: here, in .bench-cache)",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0, or 1 when something could not be measured that should have been."""
    options = _parse(arguments)
    pythons = dict.fromkeys((OURS, FLOOR), Path(sys.executable))
    if not options.no_peers:
        try:
            pythons |= dict.fromkeys(PEERS, prepare_peers())
        except CommandFailedError as error:
            print(f"the peers cannot be installed (--no-peers does without): {error}")
            return 1
    options.folder.mkdir(exist_ok=True)
    environment = describe_machine(options.folder)
    for peer in [peer for peer in pythons if peer not in (FLOOR, "durus43_synced")]:
        versions = describe_peer(pythons[peer], peer)
        described = ", ".join(f"{name} {version}" for name, version in versions.items())
        environment[TITLES[peer]] = described
    print(format_environment(environment), flush=True)
    contests = []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="databases-") as folder:
        for benchmark in BENCHMARKS:
            if options.only and benchmark.name not in options.only:
                continue
            chosen = benchmark.quick() if options.quick else benchmark
            contest = run_benchmark(chosen, pythons, Path(folder))
            contests.append(contest)
            print(f"\n{format_contest(contest)}", flush=True)
    if options.json is not None:
        report = {
            "quick": options.quick,
            "environment": environment,
            "benchmarks": [describe_contest(contest) for contest in contests],
        }
        options.json.write_text(f"{json.dumps(report, indent=1)}\n", encoding="utf-8")
    return int(any(c.failed for contest in contests for c in contest.contestants))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
