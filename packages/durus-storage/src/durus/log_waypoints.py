"""Waypoints in a log: who looks for an old transaction need not walk back to it from the end.

A log has no index by tid; from its end one walks back from transaction to transaction.  `Log` notes
some of the places that it comes by, and begins the next walk at the nearest of them, so that
stepping through the whole history takes as long as one walk, and not one for each step.
Invariant: *a waypoint is the end of a transaction that was visible*, which it stays; where nobody
has walked there are none, and nothing is ever wrong without them.
"""

import threading
from array import array
from bisect import bisect_left, bisect_right
from operator import neg
from typing import Final, NamedTuple

from durus.interfaces import Tid
from durus.log_format import TransactionHead

__all__ = ["Waypoint", "Waypoints"]

_DISTANCE: Final = 1 << 13
"""Bytes from one to the next at first, if no transaction is larger: some 50 small ones."""
_COUNT_MAX: Final = 1 << 16
"""1 MiB of memory; then every other one goes, and they are twice as far apart."""


class Waypoint(NamedTuple):
    """A transaction, and where it ends."""

    tid: Tid
    end: int


class Waypoints:
    """Those of one log file."""

    def __init__(self) -> None:
        # Newest first: who walks back comes by older and older ones, and appends them.
        self._tids = array("Q")
        self._ends = array("Q")
        self._distance = _DISTANCE
        self._lock = threading.Lock()

    def note(self, head: TransactionHead) -> None:
        """Somebody comes by a transaction.  Which of them are waypoints is always the same."""
        if not self._is_waypoint(head):
            return
        with self._lock:
            place = bisect_left(self._tids, -head.tid, key=neg)
            if self._tids[place : place + 1] == array("Q", [head.tid]):
                return
            self._tids.insert(place, head.tid)
            self._ends.insert(place, head.end)
            while len(self._tids) > _COUNT_MAX:
                self._thin_out()

    def _is_waypoint(self, head: TransactionHead) -> bool:
        return head.offset // self._distance != head.end // self._distance

    def _thin_out(self) -> None:
        """Double the distance.  Of those that end in the same stretch the oldest stays."""
        self._distance *= 2
        stretches = [end // self._distance for end in self._ends]
        stretches.append(-1)
        places = [i for i in range(len(self._ends)) if stretches[i] != stretches[i + 1]]
        self._tids = array("Q", [self._tids[place] for place in places])
        self._ends = array("Q", [self._ends[place] for place in places])

    def find(self, tid: Tid) -> Waypoint | None:
        """The first one that is not before the transaction `tid`."""
        with self._lock:
            place = bisect_right(self._tids, -tid, key=neg)
            return Waypoint(Tid(self._tids[place - 1]), self._ends[place - 1]) if place else None
