"""What was measured, as tables for people and as JSON for programs.

The figure of a contestant is the median of its rounds, its spread the least and the most.  A ratio
is Durus 5 divided by the other, round by round, and then the median of that.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bench.benchmarks import FLOOR, OURS, PEERS, TITLES, FigureKind
from bench.runner import Contest, Contestant

__all__ = ["Summary", "describe_contest", "format_contest", "format_environment", "summarise"]


class Summary(NamedTuple):
    """One figure of one contestant."""

    median: float
    least: float
    most: float
    rounds: list[float]
    ratio: float | None
    """The dividend, as a rule Durus 5, divided by this; None where that makes no sense."""


def summarise(name: str, contestant: Contestant, dividend: Contestant | None) -> Summary:
    """Sum up a figure.

    dividend: what is divided by this for the ratio, if it was measured.
    """
    values = [figures[name] for figures in contestant.rounds]
    ratio = None
    if dividend is not None and dividend is not contestant and not dividend.not_measured:
        pairs = zip((figures[name] for figures in dividend.rounds), values, strict=False)
        ratios = [above / below for above, below in pairs if above > 0 and below > 0]
        ratio = statistics.median(ratios) if ratios else None
    return Summary(statistics.median(values), min(values), max(values), values, ratio)


def _figures(contest: Contest) -> Sequence[FigureKind]:
    if contest.benchmark.figures:
        return contest.benchmark.figures
    names = dict.fromkeys(
        name for c in contest.contestants for figures in c.rounds for name in figures
    )
    for contestant in contest.contestants:  # what was not in every round counts as 0
        contestant.rounds = [
            {name: figures.get(name, 0.0) for name in names} for figures in contestant.rounds
        ]
    return [FigureKind(name, "us") for name in names]


def _find_ours(contest: Contest, size: int) -> Contestant | None:
    return next((c for c in contest.contestants if c.peer == OURS and c.size == size), None)


def describe_contest(contest: Contest) -> dict[str, Any]:
    """For JSON."""
    results: list[dict[str, Any]] = []
    kinds = _figures(contest)
    for contestant in contest.contestants:
        result: dict[str, Any] = {"peer": contestant.peer, "size": contestant.size}
        if contestant.not_measured:
            result["not_measured"] = contestant.not_measured
        else:
            ours = _find_ours(contest, contestant.size)
            result["figures"] = {
                kind.name: {"unit": kind.unit, **summarise(kind.name, contestant, ours)._asdict()}
                for kind in kinds
            }
        results.append(result)
    return {
        "name": contest.benchmark.name,
        "title": contest.benchmark.title,
        "results": results,
    }


def format_environment(environment: Mapping[str, str]) -> str:
    """A line for each thing to know."""
    width = max(map(len, environment))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in environment.items())


def format_contest(contest: Contest) -> str:
    """The tables of a benchmark."""
    return "\n".join(_lines(contest))


def _lines(contest: Contest) -> Iterator[str]:
    yield f"{contest.benchmark.name}: {contest.benchmark.title}"
    if contest.benchmark.note and any(c.peer in PEERS for c in contest.contestants):
        yield f"  {contest.benchmark.note}"
    measured = [c for c in contest.contestants if not c.not_measured]
    kinds = _figures(contest)
    if not contest.benchmark.figures:
        yield from _align([("", "us", "min .. max"), *_budget_rows(kinds, measured)])
    for kind in kinds if contest.benchmark.figures else ():
        rows = [_row(contest, kind, contestant) for contestant in measured]
        better = "more" if kind.more_is_better else "less"
        head = (f"{kind.unit}, {better} is better", "objects", "median", "min .. max", "ours / its")
        yield from _align([head, *rows])
        if kind.shows_growth:
            yield from _growth(kind, measured)
    reasons = {
        f"  {TITLES[c.peer]} was not measured: {c.not_measured}"
        for c in contest.contestants
        if c.not_measured
    }
    yield from sorted(reasons)


def _row(contest: Contest, kind: FigureKind, contestant: Contestant) -> tuple[str, ...]:
    found = summarise(kind.name, contestant, _find_ours(contest, contestant.size))
    return (
        TITLES[contestant.peer],
        f"{contestant.size:,}" if contestant.size else "new file",
        _number(found.median),
        f"{_number(found.least)} .. {_number(found.most)}",
        "" if found.ratio is None else _number(found.ratio),
    )


def _budget_rows(
    kinds: Sequence[FigureKind], measured: Sequence[Contestant]
) -> Iterator[tuple[str, ...]]:
    for contestant in measured:
        for kind in kinds:
            found = summarise(kind.name, contestant, None)
            spread = f"{_number(found.least)} .. {_number(found.most)}"
            yield kind.name, _number(found.median), spread


def _growth(kind: FigureKind, measured: Sequence[Contestant]) -> Iterator[str]:
    """For each peer, what it takes on the largest file as a multiple of the smallest."""
    for peer in dict.fromkeys(contestant.peer for contestant in measured):
        with_objects = [c for c in measured if c.peer == peer and c.size]
        if peer == FLOOR or len(with_objects) < 2:
            continue
        first, last = with_objects[0], with_objects[-1]
        growth = summarise(kind.name, first, last).ratio
        if growth is not None:
            yield (
                f"  {TITLES[peer]}: {growth:.2f} times as much with {last.size:,} objects "
                f"as with {first.size:,}"
            )


def _number(value: float) -> str:
    """With two or three digits that mean something."""
    if 0 < value < 0.1:
        return f"{value:.2g}"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _align(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns: the first to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        yield "  ".join(["", first.ljust(widths[0]), *cells]).rstrip()
