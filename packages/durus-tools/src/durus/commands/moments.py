"""Moments on the command line: tids, times, and so long ago.

`WHEN` is a click parameter type, and `WHEN_OR_NUMBER` one for files of Durus 4.x, too, whose
transactions are just numbered.  Invariants: what is printed of a time can be typed in again; a
number that was meant for something else is not taken for a tid.
"""

import re
from datetime import datetime, timedelta
from typing import Any, Final

import click

from durus.interfaces import Tid
from durus.times import When, time_of

__all__ = ["WHEN", "WHEN_OR_NUMBER", "show_time"]

_UNITS: Final = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGO = re.compile(rf"(\d+(?:\.\d+)?)({'|'.join(_UNITS)})", re.ASCII)
_TID_MIN: Final = 10**17
"""Nanoseconds: in 1973.  No transaction has a smaller tid, unless a clock was very wrong."""
_NUMBER_MAX: Final = 10**7
"""Less than any date without its hyphens."""


class _WhenType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3
    name = "when"

    def __init__(self, *, accepts_numbers: bool = False) -> None:
        self.accepts_numbers = accepts_numbers

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> When:
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]  # a default, which is one already
        try:
            if value.isascii() and value.isdigit():
                if not self._is_tid(int(value)):
                    self.fail(
                        f"{value!r} would be a tid, and these are much larger: '30d' is so many "
                        "days ago, and '2026-11-30' a date",
                        param,
                        ctx,
                    )
                return Tid(int(value))
            ago = _AGO.fullmatch(value)
            if ago is not None:
                return timedelta(**{_UNITS[ago[2]]: float(ago[1])})
            return datetime.fromisoformat(value).astimezone()  # local, unless it says otherwise
        except (ValueError, OverflowError, OSError):
            self.fail(
                f"{value!r} is no tid, no time such as '2026-11-30 12:00' (or '...+01:00', else it "
                "is local), and not so long ago as '30d', '12h', '90min'",
                param,
                ctx,
            )

    def _is_tid(self, number: int) -> bool:
        return number >= _TID_MIN or (self.accepts_numbers and number <= _NUMBER_MAX)


WHEN: Final = _WhenType()
WHEN_OR_NUMBER: Final = _WhenType(accepts_numbers=True)


def show_time(ns: int) -> str:
    """The local time that is so many nanoseconds after 1970, and not a moment before."""
    try:
        return time_of(ns).astimezone().isoformat(" ", "microseconds")
    except (OverflowError, ValueError, OSError):
        return f"{ns} ns"  # a clock that was wrong
