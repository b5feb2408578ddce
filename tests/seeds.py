"""The seeds of tests that try random cases: fresh ones in each run, and printed.

Options of pytest: `--long` tries many more, and `--seed N` begins with N, to see a failure again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["SEED_LIMIT", "Seeds"]

SEED_LIMIT = 1 << 32


@dataclass(frozen=True, slots=True)
class Seeds:
    """The fixture `seeds`.

    A case that fails says its seed; with that one as `--seed` it comes first.
    """

    first: int
    is_long: bool

    def take(self, count: int, long: int) -> Iterator[int]:
        """So many seeds, or `long` of them in a long run: the first one and those that follow."""
        first = self.first
        return iter(range(first, first + (long if self.is_long else count)))
