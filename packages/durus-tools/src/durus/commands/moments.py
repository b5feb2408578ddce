"""Moments on the command line: tids, times, and so long ago.

`WHEN` is a click parameter type.  Invariant: what is printed of a time can be typed in again.
"""

import re
from datetime import datetime, timedelta
from typing import Any, Final

import click

from durus.interfaces import Tid
from durus.times import When, time_of

__all__ = ["WHEN", "show_time"]

_UNITS: Final = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGO = re.compile(rf"(\d+(?:\.\d+)?)({'|'.join(_UNITS)})", re.ASCII)


class _WhenType(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3
    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> When:
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]  # a default, which is one already
        if value.isascii() and value.isdigit():
            return Tid(int(value))
        try:
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


WHEN: Final = _WhenType()


def show_time(ns: int) -> str:
    """The local time that is so many nanoseconds after 1970, and not a moment before."""
    try:
        return time_of(ns).astimezone().isoformat(" ", "microseconds")
    except (OverflowError, ValueError, OSError):
        return f"{ns} ns"  # a clock that was wrong
