"""A machine on which programs use one database, while everything that they do is recorded.

A `Machine` has a simulated disk, and any number of `Program`s, each a process with a `FileStorage`
of the same file.  One of them only looks: after everything that is written it notes what can be
seen, as that must not vanish.
"""

from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from random import Random
from typing import Any, Final

from durus.error import CommitOutcomeUnknownError, ConflictError, StorageError
from durus.file_storage import FileStorage
from durus.interfaces import ROOT_OID, Oid, Snapshot
from durus.testing.storage_contract import make_record, make_transaction, value_of
from tests.power_cuts.recording import (
    Acknowledged,
    Began,
    Packed,
    Read,
    Recording,
    RecordingSystem,
    Refused,
)
from tests.simulation.disk import ProcessKilled, SimulatedDisk, SimulatedSystem

__all__ = ["PATH", "Machine", "Program"]

PATH: Final = "/folder/file"

Values = Mapping[Oid, object]


class Machine:
    """rules: options of `RecordingSystem`, which break a rule in all its programs."""

    def __init__(self, random: Random, **rules: Any) -> None:
        self.random = random
        self.recording = Recording()
        self.disk = SimulatedDisk()
        self._rules = rules
        self._processes = 0
        self._reader: FileStorage | None = None
        self._is_reading = False
        self._seen = 0

    def start(self, **options: Any) -> "Program":
        """Start a program that opens the database; options of `FileStorage`."""
        return Program(self, self.new_system(), **options)

    def new_system(self) -> RecordingSystem:
        self._processes += 1
        inner = SimulatedSystem(self.disk, self._processes)
        return RecordingSystem(self.recording, inner, **self._rules)

    def watch(self) -> None:
        """Look at the database after everything that is written from now on."""
        self._reader = FileStorage(PATH, readonly=True, system=self.new_system())
        self.recording.after_write = self._read

    def _read(self) -> None:
        if self._is_reading or self._reader is None:
            return
        self._is_reading = True
        try:
            with closing(self._reader.snapshot()):
                newest = self._reader.tid
                if newest != self._seen:
                    self._seen = newest
                    (last,) = self._reader.transactions(newest)
                    self.recording.note(Read(last.id))
        finally:
            self._is_reading = False


class Program:
    """One process: it commits, and notes what it is told."""

    def __init__(self, machine: Machine, system: RecordingSystem, **options: Any) -> None:
        self.system = system
        self.is_durable = options.get("durability") != "none"
        self._recording = machine.recording
        self._random = machine.random
        self.storage = FileStorage(PATH, system=system, **options)

    # Commits.  The root's value is a number, and it refers to all other objects.

    def begin_database(self) -> None:
        """Create the root."""
        self.commit({ROOT_OID: 0}, created=[ROOT_OID])

    def create(self, count: int, size: int = 0) -> list[Oid]:
        """Create objects with values of so many bytes, and refer to them."""
        oids = list(self.storage.reserve_oids(count))
        self.commit({oid: self.new_value(size) for oid in oids}, created=oids)
        return oids

    def change(self, oids: Iterable[Oid], size: int = 0) -> bool:
        return self.commit({oid: self.new_value(size) for oid in oids})

    def forget(self, oids: Iterable[Oid]) -> bool:
        """Let the root refer to them no more."""
        return self.commit({}, forgotten=oids)

    def new_value(self, size: int) -> object:
        return self._random.randbytes(size) if size else self._random.randrange(1 << 30)

    def oids(self) -> list[Oid]:
        """What the root refers to."""
        with closing(self.storage.snapshot()) as snapshot:
            return refs_of_root(snapshot)

    def commit(
        self, values: Values, *, created: Iterable[Oid] = (), forgotten: Iterable[Oid] = ()
    ) -> bool:
        """Commit on top of what is there now: whether that was done, as far as one is told."""
        with closing(self.storage.snapshot()) as snapshot:
            created = frozenset(created)
            writes = {oid: (value, frozenset[Oid]()) for oid, value in values.items()}
            root_changes = created - {ROOT_OID} or frozenset(forgotten)
            if root_changes:
                count = value_of(snapshot.load(ROOT_OID).record)
                assert isinstance(count, int)
                refs = (frozenset(refs_of_root(snapshot)) | created) - frozenset(forgotten)
                writes[ROOT_OID] = (count + 1, refs)
            transaction = make_transaction(
                snapshot.tid,
                {oid: make_record(value, refs) for oid, (value, refs) in writes.items()},
                created=created,
            )
        note = self._recording.note
        note(Began(transaction.id, writes, self.is_durable))
        try:
            self.storage.commit(transaction)
        except CommitOutcomeUnknownError:
            if self.storage.find(transaction.id) is not None:
                note(Acknowledged(transaction.id))
                return True
            note(Refused(transaction.id))
            return False
        except (StorageError, ConflictError):
            note(Refused(transaction.id))
            return False
        note(Acknowledged(transaction.id))
        return True

    def pack(self) -> None:
        self._recording.note(Packed())
        self.storage.pack()

    def close(self) -> None:
        self.storage.close()

    def kill_in_commit(self, oids: Iterable[Oid], size: int, kills_after: int) -> None:
        """Kill the process when it has written so many bytes more, or when it has committed."""
        self.system.kills_after = kills_after
        with suppress(ProcessKilled):
            self.change(oids, size)
        self.system.kill()

    def kill_in_pack(self, kills_after: int) -> None:
        """Kill the process when it has written so many bytes more, or when it has packed."""
        self.system.kills_after = kills_after
        with suppress(ProcessKilled):
            self.pack()
        self.system.kill()


def refs_of_root(snapshot: Snapshot) -> list[Oid]:
    refs = snapshot.load(ROOT_OID).record.refs
    return [Oid(refs[start : start + 8]) for start in range(0, len(refs), 8)]
