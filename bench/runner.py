"""Running benchmarks: the workers of all peers take turns, a round each.

Invariant: while one contestant is measured, the workers of all others wait.  Since they take turns,
a machine that becomes slower or quicker does so for all, and the ratio of two peers is taken of
rounds that followed each other.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bench.benchmarks import FLOOR, OURS, TITLES, Benchmark
from bench.peer import Figures, NotMeasuredError, Settings
from bench.workloads import combine_rates, oids_path

__all__ = ["Contest", "Contestant", "WorkerFailedError", "describe_peer", "run_benchmark"]

_ROOT = Path(__file__).resolve().parent.parent
_END_WAIT_MAX_S = 60


class WorkerFailedError(Exception):
    """A worker ended before it should; says what it printed last."""


def _environment() -> dict[str, str]:
    """Of a worker: what is installed in its Python, and nothing that comes before it."""
    return {name: os.environ[name] for name in os.environ.keys() - {"PYTHONPATH"}}


@dataclass(slots=True)
class Contestant:
    """A peer on a file of a size, and what was measured of it."""

    peer: str
    size: int
    rounds: list[Figures] = field(default_factory=list)
    not_measured: str = ""
    """Why not; empty if it was."""
    failed: bool = False
    """Whether it was not measured because something went wrong."""


@dataclass(frozen=True, slots=True)
class Contest:
    """What was measured in one benchmark."""

    benchmark: Benchmark
    contestants: list[Contestant]


class _Worker:
    """The other end of `bench.worker`."""

    def __init__(self, python: Path, peer: str, workload: str, settings: Settings) -> None:
        self._printed = tempfile.TemporaryFile(mode="w+", encoding="utf-8")  # noqa: SIM115 (end)
        self._process = subprocess.Popen(
            [python, "-m", "bench.worker", peer, workload, json.dumps(asdict(settings))],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            text=True,
            env=_environment(),
        )

    def ask(self) -> None:
        """Let it measure a round."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def read_answer(self) -> Figures:
        """NotMeasuredError, WorkerFailedError."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._printed.seek(0)
            lines = self._printed.read().strip().splitlines() or [f"exit status {status}"]
            raise WorkerFailedError(lines[-1])
        answer = json.loads(line)
        if "not_measured" in answer:
            raise NotMeasuredError(answer["not_measured"])
        figures: Figures = answer
        return figures

    def end(self) -> None:
        """Wait until it is in nobody's way."""
        try:
            with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
                self._process.communicate(timeout=_END_WAIT_MAX_S)
        finally:
            self._process.kill()
            self._process.communicate()
            self._printed.close()


class _Team:
    """The workers of one contestant: one, unless the benchmark wants more."""

    def __init__(self, python: Path, benchmark: Benchmark, peer: str, settings: Settings) -> None:
        self._workers: list[_Worker] = []
        self._members = 1 if peer == FLOOR else benchmark.members
        try:
            for member in range(self._members):
                own = replace(settings, member=member)
                worker = _Worker(python, peer, benchmark.workload, own)
                self._workers.append(worker)
                worker.read_answer()  # it is prepared, before the next one begins
        except BaseException:
            self.close()
            raise

    def measure(self) -> Figures:
        os.sync()  # else the first to sync pays for what others have only written
        for worker in self._workers:
            worker.ask()
        answers = [worker.read_answer() for worker in self._workers]
        return answers[0] if self._members == 1 else combine_rates(answers)

    def close(self) -> None:
        for worker in self._workers:
            worker.end()


@contextmanager
def _noting_failures(contestant: Contestant) -> Iterator[None]:
    """One that cannot be measured is in nobody's way."""
    try:
        yield
    except NotMeasuredError as error:
        contestant.not_measured = str(error)
    except (WorkerFailedError, BrokenPipeError) as error:
        contestant.not_measured = f"failed: {error}"
        contestant.failed = True


def describe_peer(python: Path, peer: str) -> Mapping[str, str]:
    """The versions of what is installed for a peer; WorkerFailedError."""
    finished = subprocess.run(
        [python, "-m", "bench.worker", peer, "describe", "{}"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    if finished.returncode != 0:
        raise WorkerFailedError(finished.stderr.strip())
    versions: Mapping[str, str] = json.loads(finished.stdout)
    return versions


def run_benchmark(benchmark: Benchmark, pythons: Mapping[str, Path], folder: Path) -> Contest:
    """Measure all peers that take part and have a Python.

    pythons: the Python of each peer's environment.
    folder: where the databases are; those with objects in them are there for the next benchmark.
    """
    contestants = [
        Contestant(peer, size)
        for size in benchmark.sizes
        for peer in benchmark.peers
        if peer in pythons
    ]

    def start_team(contestant: Contestant) -> _Team:
        peer, size = contestant.peer, contestant.size
        path = folder / f"{benchmark.name}-{peer}"
        if size:
            path = _build_database(OURS if peer == FLOOR else peer, size, pythons, folder)
        settings = Settings(database=str(path), size=size, count=benchmark.count)
        return _Team(pythons[peer], benchmark, peer, settings)

    with ExitStack() as stack:
        teams: dict[int, _Team] = {}
        for number in range(benchmark.rounds):
            for index in _take_turns(len(contestants), number):
                contestant = contestants[index]
                if contestant.not_measured:
                    continue
                with _noting_failures(contestant):
                    if benchmark.fresh:
                        with closing(start_team(contestant)) as team:
                            contestant.rounds.append(team.measure())
                        continue
                    if index not in teams:
                        teams[index] = stack.enter_context(closing(start_team(contestant)))
                    contestant.rounds.append(teams[index].measure())
    return Contest(benchmark, contestants)


def _take_turns(count: int, round_number: int) -> Sequence[int]:
    """Who is next: there and back again, so that nobody always comes after the same one."""
    forward = range(count)
    return forward if round_number % 2 == 0 else forward[::-1]


def _build_database(peer: str, size: int, pythons: Mapping[str, Path], folder: Path) -> Path:
    """The file with so many objects, which is made if it is not there yet."""
    path = folder / f"{peer}-{size}"
    if not oids_path(path).exists():  # which is written last
        for left_over in folder.glob(f"{path.name}*"):
            left_over.unlink()
        print(f"making a file of {TITLES[peer]} with {size:,} objects ...", file=sys.stderr)
        settings = Settings(database=str(path), size=size, count=0)
        worker = _Worker(pythons[peer], peer, "build", settings)
        try:
            worker.read_answer()
        finally:
            worker.end()
    return path
