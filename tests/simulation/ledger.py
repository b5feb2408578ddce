"""What simulated processes did and saw, and whether a log agrees with it afterwards.

Every object is a counter: its value is the number of transactions that wrote it.  So whatever
anybody read can be checked against the order of transactions that the log has in the end: a lost
update, a stale copy, a snapshot that changes, or something seen that vanished, all show there.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from durus.interfaces import NO_TID, ROOT_OID, CommittedTransaction, Oid, Tid
from tests.simulation.explorer import Violation

__all__ = ["Ledger", "Sighting", "State"]

State = dict[Oid, tuple[int, tuple[Oid, ...]]]
"""The values of objects, and what they refer to."""


class Sighting(NamedTuple):
    """Somebody saw this value of an object in a snapshot."""

    snapshot_tid: Tid
    oid: Oid
    value: int
    process: str


class Acknowledgement(NamedTuple):
    tid: Tid
    is_durable: bool


@dataclass(slots=True)
class Ledger:
    """Of one disk, as long as it lives."""

    may_lose: bool = False
    """Whether somebody commits without durability, so that a power cut may take some away."""
    begun: dict[int, frozenset[Oid]] = field(default_factory=dict)
    """What each transaction writes, by its id."""
    acknowledged: dict[int, Acknowledgement] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    """The transactions that were said not to be committed, and why."""
    sightings: set[Sighting] = field(default_factory=set)
    oids: set[Oid] = field(default_factory=set)
    """Those that were handed out."""

    def hand_out(self, oids: Sequence[Oid], process: str) -> None:
        again = self.oids.intersection(oids)
        if again or len(set(oids)) < len(oids):
            raise Violation(f"{process} was given oids that had been handed out: {again or oids}")
        self.oids.update(oids)

    def check(self, transactions: Sequence[CommittedTransaction], state: State) -> None:
        """Raises Violation when a log with this history and state breaks a promise."""
        tids = [transaction.tid for transaction in transactions]
        if not all(before < after for before, after in pairwise(tids)):
            raise Violation(f"tids do not ascend: {tids}")
        found = {transaction.id: transaction.tid for transaction in transactions}
        for id, acknowledgement in self.acknowledged.items():
            if found.get(id) != acknowledgement.tid:
                raise Violation(f"the acknowledged commit {acknowledgement.tid} is lost")
        for id, why in self.refused.items():
            if id in found:
                raise Violation(f"the refused commit {found[id]} is there; it was refused: {why}")
        if not found.keys() <= self.begun.keys():
            raise Violation("there is a transaction that nobody has committed")
        self._check_sightings(found)
        values = Counter(oid for id in found for oid in self.begun[id])
        if found and ROOT_OID not in state:
            raise Violation("there is no root")
        for oid, (value, refs) in state.items():
            if value != values[oid]:
                raise Violation(f"{number(oid)} is {value}, after {values[oid]} updates")
            if not state.keys() >= set(refs):
                raise Violation(f"{number(oid)} refers to {refs}, of which some are not there")

    def _check_sightings(self, found: dict[int, Tid]) -> None:
        history = sorted((tid, self.begun[id]) for id, tid in found.items())
        values: Counter[Oid] = Counter()
        position, last = 0, NO_TID
        for tid, oid, value, process in sorted(self.sightings):
            while position < len(history) and history[position][0] <= tid:
                last, written = history[position]
                values.update(written)
                position += 1
            if tid != last:
                raise Violation(f"{process} saw transaction {tid}, which has vanished")
            if value != values[oid]:
                raise Violation(
                    f"{process} saw {number(oid)} as {value} at {tid}, after {values[oid]} updates"
                )

    def lose_power(self, transactions: Sequence[CommittedTransaction]) -> None:
        """Forget what was lost, if it may be: what was not durable, from the end of the log."""
        last = transactions[-1].tid if transactions else NO_TID
        if self.may_lose:
            self.acknowledged = {
                id: acknowledgement
                for id, acknowledgement in self.acknowledged.items()
                if acknowledgement.tid <= last or acknowledgement.is_durable
            }
            self.sightings = {seen for seen in self.sightings if seen.snapshot_tid <= last}
        self.oids = {oid for t in transactions for oid in self.begun.get(t.id, ())}


def number(oid: Oid) -> str:
    return "the root" if oid == ROOT_OID else f"object {int.from_bytes(oid)}"
