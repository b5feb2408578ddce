"""Waypoints in a log: who looks for an old transaction need not walk back to it from the end.

A log has no index by tid; from its end one walks back from transaction to transaction.  `Log` notes
some of the places that it comes by, and begins the next walk at the nearest of them, so that
stepping through the whole history takes as long as one walk, and not one for each step.
Invariant: *a waypoint is the end of a transaction that was visible*, which it stays; where nobody
has walked there are none, and nothing is ever wrong without them.
"""

import threading
from array import array
from bisect import bisect_left
from typing import Final

from durus.interfaces import Tid
from durus.log_format import TransactionHead

__all__ = ["Waypoints"]

_DISTANCE: Final = 1 << 13
"""Bytes from one to the next, if no transaction is larger: some 50 small ones."""
_COUNT_MAX: Final = 1 << 18
"""4 MiB of memory; then no more are noted."""


class Waypoints:
    """The tids of transactions in one log file, ascending, and where these end."""

    def __init__(self) -> None:
        self._tids = array("Q")
        self._ends = array("Q")
        self._lock = threading.Lock()

    def note(self, head: TransactionHead) -> None:
        """Somebody comes by a transaction.  Which of them are waypoints is always the same."""
        if head.offset // _DISTANCE == head.end // _DISTANCE:
            return
        with self._lock:
            place = bisect_left(self._tids, head.tid)
            if self._tids[place : place + 1] == array("Q", [head.tid]):
                return
            if len(self._tids) < _COUNT_MAX:
                self._tids.insert(place, head.tid)
                self._ends.insert(place, head.end)

    def find_end(self, tid: Tid) -> int | None:
        """Where the first waypoint is that is not before the transaction `tid`."""
        with self._lock:
            place = bisect_left(self._tids, tid)
            return self._ends[place] if place < len(self._ends) else None

    def between(self, start: Tid, stop: Tid) -> list[Tid]:
        """The tids of those with start <= tid < stop, ascending."""
        with self._lock:
            tids = self._tids[bisect_left(self._tids, start) : bisect_left(self._tids, stop)]
        return [Tid(tid) for tid in tids]
