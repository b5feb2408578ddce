"""Whether a database is what its programs were told, when the power is back.

`Expectation` is told of the same operations as the disk, up to the cut.  Then

* every transaction that was acknowledged as durable, or that somebody saw, is there (with
  durability "none": what somebody saw need not be), and all that came before it;
* nothing is there that nobody committed, or that was refused;
* every object is what the last transaction that is there made of it; none is missing that can be
  reached from the root;
* nothing is found to be wrong with the file, and opening it has changed nothing;
* the next commit works, and all of this holds again; also without the index file.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

from durus.error import DurusError
from durus.file_format import Finding
from durus.file_storage import FileStorage
from durus.index_checkpoint import index_path
from durus.interfaces import ROOT_OID, Oid
from durus.log_verify import verify_file
from durus.record import split_oids
from durus.testing.storage_contract import make_record, make_transaction, value_of
from tests.power_cuts.machine import PATH
from tests.power_cuts.recording import Acknowledged, Began, Operation, Packed, Read, Refused
from tests.power_cuts.states import State
from tests.simulation.disk import SimulatedDisk, SimulatedSystem

__all__ = ["Expectation"]

_REINDEXED_MIN: Final = 6
"""With more objects than this, an index that is damaged is made anew in the next commits."""

Values = dict[Oid, tuple[object, frozenset[Oid]]]
"""What the objects are, and the oids that each refers to."""


@dataclass(slots=True)
class Expectation:
    """What was said about the database up to now.

    order: the ids of all that was committed until the end of the recording.
    """

    order: Sequence[int]
    begun: dict[int, Began] = field(default_factory=dict)
    """By transaction id."""
    promised: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    may_be_packed: bool = False

    def note(self, operation: Operation) -> None:
        match operation:
            case Began(id):
                self.begun[id] = operation
            case Acknowledged(id) | Read(id):
                if self.begun[id].is_durable:
                    self.promised.add(id)
            case Refused(id):
                self.refused.add(id)
            case Packed():
                self.may_be_packed = True

    def find_violation(self, state: State) -> str:
        """What is wrong with a state; "" if nothing is."""
        try:
            self._check(state.mount())
        except (AssertionError, DurusError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def _check(self, disk: SimulatedDisk) -> None:
        if PATH not in disk.names:
            assert not self.promised, "the file is lost"
            FileStorage(PATH, system=SimulatedSystem(disk)).close()
        _check_findings(verify_file(PATH, SimulatedSystem(disk)), with_index=False)
        before = contents(disk)
        with closing(open_storage(disk, readonly=True)) as storage:
            ids = ids_of(storage)
            self._check_transactions(ids)
            values = self._values(ids)
            self._check_values(storage, values)
        with closing(open_storage(disk)) as storage:
            assert ids_of(storage) == ids, "the second time there are other transactions"
            assert contents(disk) == before, "opening has written"
            self._check_values(storage, values)
            commit_next(storage, values)
        findings = list(verify_file(PATH, SimulatedSystem(disk)))
        for with_index in (True, False):
            if not with_index:
                disk.names.pop(index_path(PATH), None)
            with closing(open_storage(disk, readonly=True)) as storage:
                again = ids_of(storage)
                assert again[:-1] == ids, "after one more commit there are other transactions"
                self._check_values(storage, values)
        _check_findings(findings, with_index=len(values) > _REINDEXED_MIN)

    def _check_transactions(self, ids: list[int]) -> None:
        unknown = {*ids} - self.begun.keys()
        assert not unknown, f"{len(unknown)} transactions are there that nobody committed"
        assert not self.refused & {*ids}, "what was refused is there"
        decided = {*self.order}
        known = [id for id in ids if id in decided]
        assert known == self.order[: len(known)], "one is missing, or not in its place"
        lost = self.promised - {*ids}
        assert not lost, f"{len(lost)} transactions are lost"

    def _values(self, ids: list[int]) -> Values:
        values: Values = {}
        for id in ids:
            values.update(self.begun[id].writes)
        return values

    def _check_values(self, storage: FileStorage, values: Values) -> None:
        with closing(storage.snapshot()) as snapshot:
            found = {
                oid: (value_of(revision.record), frozenset(split_oids(revision.record.refs)))
                for oid, revision in snapshot.load_many(values)
            }
        wrong = [oid for oid, value in found.items() if value != values[oid]]
        assert not wrong, f"{len(wrong)} objects have other values"
        needed = reachable(values) if self.may_be_packed else values.keys()
        missing = needed - found.keys()
        assert not missing, f"{len(missing)} objects are missing"
        listed = {oid for oid, _ in storage.gen_oid_record()}
        assert listed == found.keys(), "walking over all objects finds others"


def open_storage(disk: SimulatedDisk, *, readonly: bool = False) -> FileStorage:
    return FileStorage(PATH, readonly, create=False, system=SimulatedSystem(disk))


def contents(disk: SimulatedDisk) -> dict[str, bytes]:
    return {path: bytes(inode.content) for path, inode in disk.names.items()}


def ids_of(storage: FileStorage) -> list[int]:
    return [transaction.id for transaction in storage.transactions()]


def reachable(values: Values) -> set[Oid]:
    """What can be reached from the root."""
    found: set[Oid] = set()
    waiting = [ROOT_OID] if ROOT_OID in values else []
    while waiting:
        oid = waiting.pop()
        if oid not in found:
            found.add(oid)
            waiting += values[oid][1]
    return found


def commit_next(storage: FileStorage, values: Values) -> None:
    """Create an object that the root refers to; `values` knows of it then."""
    (new,) = storage.reserve_oids(1)
    assert new not in values, "an oid is handed out again"
    count, refs = values.get(ROOT_OID, (0, frozenset[Oid]()))
    created = {new} if ROOT_OID in values else {new, ROOT_OID}
    values.update({ROOT_OID: (count, refs | {new}), new: ("next", frozenset())})
    writes = {oid: make_record(*values[oid]) for oid in (ROOT_OID, new)}
    storage.commit(make_transaction(storage.tid, writes, created=created))


def _check_findings(findings: Iterable[Finding], *, with_index: bool) -> None:
    """with_index: the index has been used since the power cut, so it is sound, or was made anew."""
    found = [finding for finding in findings if with_index or finding.offset is not None]
    assert not found, f"verify finds {found}"
