"""Times and tids: how "the database as it was at ..." is said.

Tids are nanoseconds since 1970 (or more, where the clock went back), so a time is a tid that need
not be that of any transaction.  Invariant: *who asks for a time means the newest transaction with a
tid up to `tid_at(time)`*; snapshots, pack and restoring from a backup all keep to that.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from durus.interfaces import NO_TID, Tid

__all__ = ["When", "tid_at", "time_of"]

When: TypeAlias = Tid | int | datetime | timedelta
"""A tid, an aware datetime, or so long ago."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def tid_at(when: When, now_ns: int | None = None) -> Tid:
    """The largest tid that a transaction may have which was there at this time.

    when: a tid, which stands for itself; an aware datetime; or a timedelta, counted back from now.
    now_ns: nanoseconds since 1970, if it is not to be asked of the clock.

    Raises ValueError for a datetime without a time zone, and for a tid or a timedelta below 0;
    TypeError for anything else.
    """
    if isinstance(when, datetime):
        if when.utcoffset() is None:
            raise ValueError(
                f"{when!r} has no time zone, so it is no moment: use datetime.now(UTC), or "
                ".astimezone() if it is a local time"
            )
        return Tid(max(NO_TID, (when - _EPOCH) // _MICROSECOND * 1000))
    if isinstance(when, timedelta):
        if when < timedelta(0):
            raise ValueError(f"{when!r} would be in the future: a timedelta counts back from now")
        now_ns = time.time_ns() if now_ns is None else now_ns
        return Tid(max(NO_TID, now_ns - when // _MICROSECOND * 1000))
    if not isinstance(when, int) or isinstance(when, bool):
        raise TypeError(f"{when!r} is no tid, no datetime and no timedelta")
    if when < NO_TID:
        raise ValueError(f"{when!r} is no tid: they begin with 1")
    return Tid(when)


def time_of(ns: int) -> datetime:
    """The UTC time that is so many nanoseconds after 1970, such as a tid or a `time_ns`.

    A datetime counts microseconds: it is rounded up, so `tid_at(time_of(tid))` is never before
    `tid`.
    """
    return _EPOCH + timedelta(microseconds=-(-ns // 1000))
