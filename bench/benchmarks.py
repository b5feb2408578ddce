"""The table of benchmarks.

To add one: a function in `bench.workloads`, one in `bench.floors`, and an entry here.
"""

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

__all__ = ["BENCHMARKS", "FLOOR", "OURS", "PEERS", "TITLES", "Benchmark", "FigureKind"]

OURS: Final = "durus5"
FLOOR: Final = "floor"
PEERS: Final = ("durus43", "durus43_synced", "zodb")
"""Those that need an environment of their own."""

TITLES: Final = {
    OURS: "Durus 5",
    "durus43": "Durus 4.3",
    "durus43_synced": "Durus 4.3 + fsync",
    "zodb": "ZODB",
    FLOOR: "floor",
}

_NOT_SYNCED: Final = (
    "Durus 4.3 as it is does not sync what it commits: a power cut may take it away.  "
    "With fsync it does the same work as the others."
)
_SMALL, _MEDIUM, _LARGE = 10_000, 100_000, 1_000_000
_QUICK_SIZES: Final = {0: 0, _SMALL: 200, _MEDIUM: 500, _LARGE: 2000}
_QUICK_ROUNDS: Final = 2
_QUICK_SHARE: Final = 20


class FigureKind(NamedTuple):
    """One of the figures that a round gives."""

    name: str
    unit: str
    more_is_better: bool = False
    shows_growth: bool = False
    """Whether to say how it depends on the number of objects in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """What is measured, of whom, and how often."""

    name: str
    title: str
    workload: str
    """The name of the function in `bench.workloads` and `bench.floors`."""
    figures: tuple[FigureKind, ...]
    """Empty: all that a round gives, in us."""
    peers: tuple[str, ...] = (OURS, *PEERS, FLOOR)
    sizes: tuple[int, ...] = (0,)
    """The numbers of objects in the file; 0 for a new one."""
    count: int
    """Operations in a round."""
    rounds: int
    members: int = 1
    """So many processes of a peer do the same at the same time."""
    note: str = ""
    """What one must know to read the table."""
    fresh: bool = False
    """Whether each round has a process of its own."""

    def quick(self) -> "Benchmark":
        """The same, with so little to do that only its working can be judged."""
        return replace(
            self,
            sizes=tuple(_QUICK_SIZES[size] for size in self.sizes),
            count=max(1, self.count // _QUICK_SHARE),
            rounds=_QUICK_ROUNDS,
        )


BENCHMARKS: Final = (
    Benchmark(
        name="commit",
        title="small durable commit, one process",
        workload="commit",
        figures=(FigureKind("commit_us", "us per commit", shows_growth=True),),
        sizes=(0, _SMALL, _MEDIUM, _LARGE),
        count=100,
        rounds=15,
        note=_NOT_SYNCED,
    ),
    Benchmark(
        name="budget",
        title="where the time of a small durable commit goes",
        workload="budget",
        figures=(),
        peers=(OURS,),
        count=200,
        rounds=7,
    ),
    Benchmark(
        name="processes",
        title="small durable commits by 4 processes on one file (floor: by 1)",
        workload="processes",
        figures=(FigureKind("per_second", "commits per second", more_is_better=True),),
        peers=(OURS, "durus43", "zodb", FLOOR),
        count=250,
        rounds=11,
        members=4,
    ),
    Benchmark(
        name="threads",
        title="small durable commits by 8 threads of one process (floor: by 1)",
        workload="threads",
        figures=(FigureKind("per_second", "commits per second", more_is_better=True),),
        peers=(OURS, "durus43", "zodb", FLOOR),
        count=100,
        rounds=11,
    ),
    Benchmark(
        name="open",
        title="open a file and load its root",
        workload="open_file",
        figures=(
            FigureKind("open_ms", "ms", shows_growth=True),
            FigureKind("private_mb", "MB of private memory"),
            FigureKind("dirty_mb", "MB of it dirty"),
        ),
        peers=(OURS, "durus43", "zodb", FLOOR),
        sizes=(_SMALL, _MEDIUM, _LARGE),
        count=1,
        rounds=7,
        fresh=True,
    ),
    Benchmark(
        name="load",
        title="cold load of objects in random order",
        workload="load",
        figures=(FigureKind("load_us", "us per object", shows_growth=True),),
        peers=(OURS, "durus43", "zodb", FLOOR),
        sizes=(_SMALL, _MEDIUM, _LARGE),
        count=5000,
        rounds=9,
    ),
    Benchmark(
        name="attribute",
        title="read an attribute of a loaded object (floor: of a plain one)",
        workload="attribute",
        figures=(FigureKind("attribute_ns", "ns per access"),),
        peers=(OURS, "durus43", "zodb", FLOOR),
        count=500_000,
        rounds=9,
    ),
    Benchmark(
        name="bulk",
        title="commit many new objects at once",
        workload="bulk",
        figures=(FigureKind("objects_per_second", "objects per second", more_is_better=True),),
        count=10_000,
        rounds=9,
        note=_NOT_SYNCED,
    ),
    Benchmark(
        name="pack",
        title="pack a file, of which nothing can be dropped (floor: copy and sync it)",
        workload="pack",
        figures=(
            FigureKind("objects_per_second", "objects per second", more_is_better=True),
            FigureKind("bytes_per_object", "bytes per object after it"),
        ),
        peers=(OURS, "durus43", "zodb", FLOOR),
        count=100_000,
        rounds=5,
    ),
    Benchmark(
        name="pack_wait",
        title="the longest small commit while another process packs (floor: copies) the file",
        workload="pack_wait",
        figures=(FigureKind("longest_ms", "ms"),),
        peers=(OURS, FLOOR),
        sizes=(_LARGE,),
        count=1,
        rounds=5,
    ),
    Benchmark(
        name="backup",
        title="back up a file of 100,000 objects (floor: copy and sync it)",
        workload="backup",
        figures=(FigureKind("mb_per_second", "MB per second", more_is_better=True),),
        peers=(OURS, FLOOR),
        count=100_000,
        rounds=7,
    ),
)
