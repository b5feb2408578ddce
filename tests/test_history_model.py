"""History against a dictionary of versions: commits, undos, packs, moves through the past.

The model holds what every transaction wrote, and from that all that was there after it.  So it
knows which undos are refused, where a HistoryConnection must arrive, and what is seen there.  Two
storages of the same file stand for two processes.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from durus.connection import Connection
from durus.error import DurusKeyError, HistoryUnavailableError, ReadOnlyError, UndoError
from durus.file_storage import FileStorage
from durus.history import HistoryConnection, follow, revisions, undo
from durus.interfaces import NO_TID, ROOT_OID, HistoryStorage, Oid, Tid
from durus.persistent import Persistent, PersistentObject
from durus.storage import MemoryStorage
from tests.seeds import Seeds
from tests.storages import File, Kind, Memory, Overlay, Sqlite

NAMES = "abc"
a_name = st.sampled_from(NAMES)
a_change = st.tuples(a_name, st.sampled_from(["set", "set", "new", "delete"]))
an_index = st.integers(0, 1000)
a_side = st.integers(0, 1)

State = dict[Oid, Any]
"""What every object holds: a cell its number, the root the oids of the cells by name."""


class QuickFile(File):
    """A log whose commits do not wait for the disk."""

    def open(self, path: Path) -> FileStorage:
        return FileStorage(path, durability="none")


class Cell(Persistent):
    def __init__(self, value: int) -> None:
        self.value = value


@dataclass(frozen=True)
class Version:
    """What was there after a transaction."""

    tid: Tid
    user: str
    note: str
    wrote: frozenset[Oid]
    state: State


class HistoryMachine(RuleBasedStateMachine):
    kind: Kind

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "model.durus"
        self.counter = 0
        self.horizon = NO_TID
        self.removed: set[Oid] = set()
        """What the packs have removed."""
        self.versions: list[Version] = []
        self.storages: list[HistoryStorage] = []
        self.open_storages()
        first = self.connections[0].tid
        self.note_version(Version(first, "", "", frozenset([ROOT_OID]), {ROOT_OID: {}}))
        self.go_to_newest()

    def open_storages(self) -> None:
        first = self.kind.reopen(self.storages[0], self.path) if self.storages else None
        first = self.kind.open(self.path) if first is None else first
        second = first if isinstance(self.kind, Memory) else self.kind.open(self.path)
        assert isinstance(first, HistoryStorage)
        assert isinstance(second, HistoryStorage)
        self.storages = [first, second]
        self.connections = [Connection(storage) for storage in self.storages]

    def go_to_newest(self) -> None:
        self.history = HistoryConnection(self.storages[0])
        self.place = self.versions[-1]
        self.known: dict[Oid, PersistentObject] = {}
        """Objects of the history, which may not exist where it stands."""
        self.look()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.close()
            self.kind.check(self.path)
            self.folder.cleanup()

    def close(self) -> None:
        self.history.close()
        for connection, storage in zip(self.connections, self.storages, strict=True):
            connection.close()
            if not isinstance(self.kind, Memory):
                storage.close()

    # The model

    def note_version(self, version: Version) -> None:
        assert not self.versions or version.tid > self.versions[-1].tid
        self.versions.append(version)

    def version_before(self, tid: Tid) -> Version | None:
        """The newest that can be seen and is older than `tid`."""
        found = [v for v in self.versions if self.horizon <= v.tid < tid]
        return found[-1] if found else None

    def version_from(self, tid: Tid) -> Version | None:
        """The oldest that can be seen and is not older than `tid`."""
        found = [v for v in self.versions if v.tid >= max(self.horizon, tid)]
        return found[0] if found else None

    # Changes

    @rule(side=a_side, changes=st.lists(a_change, min_size=1, max_size=3))
    def commit(self, side: int, changes: list[tuple[str, Literal["set", "new", "delete"]]]) -> None:
        connection = self.connections[side]
        connection.abort()
        state = dict(self.versions[-1].state)
        cells: dict[str, Any] = {name: connection.root[name] for name in state[ROOT_OID]}
        wrote: dict[Oid, PersistentObject] = {}
        new: dict[str, int] = {}
        for name, change in changes:
            self.counter += 1
            if change == "delete":
                if name in cells:
                    del connection.root[name], cells[name]
                    new.pop(name, None)
                    wrote[ROOT_OID] = connection.root
            elif change == "new" or name not in cells:
                connection.root[name] = cells[name] = Cell(self.counter)
                new[name] = self.counter
                wrote[ROOT_OID] = connection.root
            elif name in new:
                cells[name].value = new[name] = self.counter
            else:
                cells[name].value = self.counter
                wrote[cells[name]._p_oid] = cells[name]
                state[cells[name]._p_oid] = self.counter
        user, note = f"user {self.counter}", f"note {self.counter}"
        connection.user, connection.note = user, note
        tid = connection.commit()
        if not wrote:
            assert tid is None
            return
        assert tid is not None
        for name, value in new.items():
            state[cells[name]._p_oid] = value
        state[ROOT_OID] = {name: cell._p_oid for name, cell in cells.items()}
        oids = frozenset(wrote) | {cells[name]._p_oid for name in new}
        self.note_version(Version(tid, user, note, oids, state))

    @rule(side=a_side, index=an_index)
    def undo(self, side: int, index: int) -> None:
        undone = self.versions[-1 - index % len(self.versions)]
        before = self.version_before(undone.tid)
        later = [version for version in self.versions if version.tid > undone.tid]
        conflicts = {oid for version in later for oid in version.wrote & undone.wrote}
        if before is None or conflicts:
            with pytest.raises(UndoError) as caught:
                undo(self.storages[side], undone.tid)
            assert before is None or set(caught.value.oids) == conflicts
            return
        tid = undo(self.storages[side], undone.tid, user="undoer")
        restored = {oid: before.state[oid] for oid in undone.wrote if oid in before.state}
        state = {**self.versions[-1].state, **restored}
        note = f"undo of {undone.note}"
        self.note_version(Version(tid, "undoer", note, frozenset(restored), state))

    @rule(side=a_side, index=st.integers(0, 20), nanoseconds=st.integers(-1, 1))
    def pack(self, side: int, index: int, nanoseconds: int) -> None:
        newest = self.versions[-1]
        storage = self.storages[side]
        if index and isinstance(storage, MemoryStorage | FileStorage):
            keep = self.versions[-1 - index % len(self.versions)].tid + nanoseconds
            storage.pack(keep=keep)
        else:
            keep = newest.tid
            self.connections[side].pack()
        horizon = max([v.tid for v in self.versions if v.tid <= keep], default=NO_TID)
        if horizon < self.horizon:
            return  # that past had gone already
        self.horizon = horizon
        kept = {oid for version in self.versions if version.tid > horizon for oid in version.wrote}
        for version in self.versions:
            if version.tid >= horizon:
                kept.update([ROOT_OID], version.state[ROOT_OID].values())
        everything = {oid for version in self.versions for oid in version.wrote}
        self.removed = everything - kept
        for version in self.versions:
            if version.tid >= horizon:
                for oid in self.removed & version.state.keys():
                    del version.state[oid]

    @rule()
    def reopen(self) -> None:
        self.close()
        self.open_storages()
        self.go_to_newest()

    # Moves

    def arrive(self, has_moved: bool, place: Version | None) -> None:
        assert has_moved == (place is not None)
        if place is not None:
            self.place = place
        self.look()

    def look(self) -> None:
        """See what there was, all of it."""
        place = self.place
        assert self.history.tid == place.tid
        cells = self.history.root
        assert {name: cell._p_oid for name, cell in cells.items()} == place.state[ROOT_OID]
        for cell in cells.values():
            assert cell.value == place.state[cell._p_oid]
            self.known[cell._p_oid] = cell
        self.known[ROOT_OID] = cells
        if place.tid > self.horizon:
            found = self.history.transaction
            assert found is not None
            assert (found.user, found.note) == (place.user, place.note)
            assert frozenset(found.oids) == place.wrote

    @rule()
    def previous(self) -> None:
        self.arrive(self.history.previous(), self.version_before(self.place.tid))

    @rule()
    def next(self) -> None:
        self.arrive(self.history.next(), self.version_from(Tid(self.place.tid + 1)))

    @rule(index=an_index)
    def previous_instance(self, index: int) -> None:
        obj = self.choose(index)
        written = self.written_in(obj._p_oid, self.place.tid)
        place = None if written is None else self.version_before(written)
        self.arrive(self.history.previous_instance(obj), place)

    @rule(index=an_index)
    def next_instance(self, index: int) -> None:
        obj = self.choose(index)
        later = [tid for tid in self.kept_revisions(obj._p_oid) if tid > self.place.tid]
        place = self.version_from(later[0]) if later else None
        self.arrive(self.history.next_instance(obj), place)

    def choose(self, index: int) -> Any:
        return self.known[sorted(self.known)[index % len(self.known)]]

    def written_in(self, oid: Oid, until: Tid) -> Tid | None:
        """The tid of the revision that is seen in a version."""
        tids = [v.tid for v in self.versions if oid in v.wrote and v.tid <= until]
        return tids[-1] if tids else None

    def kept_revisions(self, oid: Oid) -> list[Tid]:
        """The tids of the revisions of an object that no pack has dropped."""
        if oid in self.removed:
            return []
        oldest = self.written_in(oid, self.horizon) or NO_TID
        return [v.tid for v in self.versions if oid in v.wrote and v.tid >= oldest]

    @rule(index=an_index)
    def change_the_past(self, index: int) -> None:
        obj = self.choose(index)
        try:
            with pytest.raises(ReadOnlyError):
                obj.value = 0
        except DurusKeyError:
            assert obj._p_oid not in self.place.state
        assert self.history.commit() is None
        self.look()

    # What is seen in other ways

    @rule(side=a_side, index=an_index, nanoseconds=st.integers(0, 1))
    def look_back(self, side: int, index: int, nanoseconds: int) -> None:
        version = self.versions[index % len(self.versions)]
        storage = self.storages[side]
        at = Tid(version.tid + nanoseconds)
        if version.tid < self.horizon:
            with pytest.raises(HistoryUnavailableError):
                Connection(storage, at=at)
            return
        with Connection(storage, at=at) as past:
            assert past.tid == version.tid
            self.compare(past, version)

    @rule(side=a_side)
    def look_at_the_newest(self, side: int) -> None:
        self.connections[side].abort()
        self.compare(self.connections[side], self.versions[-1])

    def compare(self, connection: Connection, version: Version) -> None:
        found = {cell._p_oid: cell.value for cell in connection.root.values()}
        assert found == {oid: version.state[oid] for oid in version.state[ROOT_OID].values()}

    @rule(side=a_side, name=a_name)
    def list_revisions(self, side: int, name: str) -> None:
        connection = self.connections[side]
        connection.abort()
        if name in connection.root:
            cell = connection.root[name]
            found = [(revision.tid, revision.obj.value) for revision in revisions(cell)]
            states = {version.tid: version.state for version in self.versions}
            tids = self.kept_revisions(cell._p_oid)[::-1]
            assert found == [(tid, states[tid][cell._p_oid]) for tid in tids]

    @rule(side=a_side, index=an_index)
    def follow(self, side: int, index: int) -> None:
        since = self.versions[index % len(self.versions)].tid
        found = follow(self.storages[side], since)
        if since < self.horizon:
            try:
                joined = next(found)
            except HistoryUnavailableError:
                return  # too much to remember, or the storage was opened after the pack
            (packed,) = (version for version in self.versions if version.tid == self.horizon)
            forgotten = [v for v in self.versions if since < v.tid <= self.horizon]
            wrote = frozenset().union(*(version.wrote for version in forgotten))
            assert (joined.tid, joined.note) == (packed.tid, packed.note)
            assert wrote & {ROOT_OID, *packed.state[ROOT_OID].values()} <= {*joined.oids} <= wrote
            since = self.horizon
        later = [version for version in self.versions if version.tid > since]
        assert [(t.tid, t.note, frozenset(t.oids)) for t in found] == [
            (version.tid, version.note, version.wrote) for version in later
        ]


@pytest.mark.parametrize(
    ("kind", "examples"),
    [(Memory(), 50), (QuickFile(), 25), (Sqlite(), 8), (Overlay(), 25)],
    ids=["memory", "file", "sqlite", "overlay"],
)
def test_history_agrees_with_the_model(kind: Kind, examples: int, seeds: Seeds) -> None:
    machine = type("Machine", (HistoryMachine,), {"kind": kind})
    count = 20 * examples if seeds.is_long else examples
    run_state_machine_as_test(
        machine, settings=settings(max_examples=count, stateful_step_count=50, deadline=None)
    )
