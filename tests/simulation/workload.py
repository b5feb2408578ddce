"""What the simulated processes do: programs for `explorer.Process` that use a `FileStorage`.

Each begins transactions as a connection does: it keeps what it has read from one to the next, but
for what others have changed.  What it is told and what it sees goes into the `Ledger`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from durus.error import (
    CommitOutcomeUnknownError,
    ConflictError,
    DanglingReferenceError,
    DurusKeyError,
    HistoryUnavailableError,
    StorageError,
    StorageLockedError,
    StorageOpenError,
)
from durus.file_storage import FileStorage
from durus.group_commit import PendingCommit
from durus.interfaces import (
    NO_TID,
    ROOT_OID,
    CommitResult,
    Oid,
    Record,
    Revision,
    Snapshot,
    Tid,
    Transaction,
)
from durus.log_batch import PreparedTransaction
from tests.simulation.disk import SimulatedSystem
from tests.simulation.explorer import Process, Violation
from tests.simulation.ledger import Acknowledgement, Ledger, Sighting

__all__ = ["PATH", "ROLES", "Client", "read_record", "tolerating_failing_syncs", "work"]

PATH = "/folder/database"
COUNTERS = (Oid((1).to_bytes(8)), Oid((2).to_bytes(8)))
"""Objects that are always there."""
COMPRESSIONS: Final = (None, None, "none", "zstd")
GROUP_MAX = 3
LOOKS_MAX = 4
PADDING = b"\xa5"
"""Not 0, which is what there is where nothing has arrived."""
TID_STEP_NS = 1000
"""About so far apart are tids."""


def make_record(value: int, refs: Iterable[Oid], padding: int = 0) -> Record:
    return Record(b"counter", value.to_bytes(8) + PADDING * padding, b"".join(sorted(refs)))


def read_record(revision: Revision) -> tuple[int, tuple[Oid, ...]]:
    """The value of an object, and what it refers to."""
    _, state, refs = revision.record
    oids = tuple(Oid(refs[start : start + 8]) for start in range(0, len(refs), 8))
    return int.from_bytes(state[:8]), oids


class Accessed(frozenset[Oid]):
    def overlap(self, oids: Iterable[Oid]) -> list[Oid]:
        return [oid for oid in oids if oid in self]


def outcome(pending: PendingCommit) -> CommitResult:
    """What the committer of a transaction is told."""
    if pending.error is not None:
        raise pending.error
    assert pending.result is not None
    return pending.result


class Client:
    """A process that has the database open."""

    def __init__(
        self,
        process: Process,
        ledger: Ledger,
        system: SimulatedSystem | None = None,
        *,
        durable: bool = True,
        readonly: bool = False,
    ) -> None:
        """Open it.

        system: of the process, if it is another one.
        """
        self.process = process
        self.name = process.name
        self.random = process.random
        self.ledger = ledger
        self.durable = durable
        self.storage = FileStorage(
            PATH,
            readonly=readonly,
            durability="full" if durable else "none",
            lock_timeout_s=1e6,
            compression=process.random.choice(COMPRESSIONS),
            system=system or process.system,
        )
        self.tid = NO_TID
        self._copies: dict[Oid, tuple[int, tuple[Oid, ...]]] = {}
        self._snapshot: Snapshot | None = None
        self._accessed: set[Oid] = set()
        self.detached: list[Oid] = []
        """What it has taken from the root."""

    # Reading

    def begin(self, at: Tid | None = None) -> None:
        """Begin a transaction: keep the copies that nobody has changed; HistoryUnavailableError.

        at: look at what was there then.
        """
        self._snapshot = self.storage.snapshot(at)
        since = self.tid
        self.tid = self._snapshot.tid
        self._forget(self.storage.changes(since, self.tid) if since <= self.tid else None)
        self._accessed = set()

    def _forget(self, changed: frozenset[Oid] | None) -> None:
        for oid in list(self._copies) if changed is None else changed:
            self._copies.pop(oid, None)

    def read(self, oid: Oid) -> tuple[int, tuple[Oid, ...]]:
        """The value of an object, and what it refers to; DurusKeyError."""
        assert self._snapshot is not None
        self._accessed.add(oid)
        if oid not in self._copies:
            self._copies[oid] = read_record(self._snapshot.load(oid))
        found = self._copies[oid]
        self.ledger.sightings.add(Sighting(self.tid, oid, found[0], self.name))
        return found

    def look(self, oid: Oid) -> None:
        """Load an object, once more."""
        assert self._snapshot is not None
        value, _ = read_record(self._snapshot.load(oid))
        self.ledger.sightings.add(Sighting(self.tid, oid, value, self.name))

    def objects(self) -> list[Oid]:
        """All that there are; there is a root."""
        return [ROOT_OID, *self.read(ROOT_OID)[1]]

    # Writing

    def write(self, updates: Iterable[Oid], created: Iterable[Oid] = ()) -> Transaction:
        """A transaction that counts objects on; what is created hangs on the root."""
        created = frozenset(created)
        writes = {oid: make_record(1, (), self._padding()) for oid in sorted(created)}
        for oid in updates:
            value, refs = self.read(oid)
            if oid == ROOT_OID:
                refs = (*refs, *created)
            writes[oid] = make_record(value + 1, refs, self._padding())
        return self._transaction(writes, created)

    def detach(self, oid: Oid) -> Transaction:
        """A transaction that takes an object from the root."""
        value, refs = self.read(ROOT_OID)
        record = make_record(value + 1, set(refs) - {oid}, self._padding())
        return self._transaction({ROOT_OID: record}, frozenset())

    def attach_again(self, oid: Oid) -> Transaction:
        """A transaction that hangs an object on the root; DurusKeyError if it is not there."""
        value, refs = self.read(ROOT_OID)
        self.read(oid)
        record = make_record(value + 1, (*refs, oid), self._padding())
        return self._transaction({ROOT_OID: record}, frozenset())

    def check_outcome(self) -> None:
        """Ask for a transaction of whose commit somebody was told; Violation."""
        acknowledged = self.ledger.acknowledged
        if acknowledged:
            id = self.random.choice(list(acknowledged))
            tid = self.storage.find(id)
            if tid != acknowledged[id].tid:
                raise Violation(f"{self.name} is told {tid} of a commit {acknowledged[id].tid}")

    def has_root(self) -> bool:
        """Whether there is a root; who can makes one."""
        try:
            self.read(ROOT_OID)
        except DurusKeyError:
            if self.storage.readonly:
                return False
            writes = {oid: make_record(1, ()) for oid in COUNTERS}
            writes[ROOT_OID] = make_record(1, COUNTERS)
            self.commit(self._transaction(writes, frozenset(writes)))
            self.begin()
        return True

    def _padding(self) -> int:
        return self.random.choice((0, 700, 4000))

    def _transaction(self, writes: dict[Oid, Record], created: frozenset[Oid]) -> Transaction:
        id = self.random.getrandbits(64)
        self.ledger.begun[id] = frozenset(writes)
        accessed = Accessed(self._accessed | writes.keys())
        return Transaction(
            id=id,
            snapshot_tid=self.tid,
            accessed=accessed,
            created=created,
            writes=writes,
            time_ns=0,
        )

    def commit(self, transaction: Transaction) -> bool:
        """Commit: whether that was done; StorageError."""
        return self._settle(transaction, lambda: self.storage.commit(transaction))

    def commit_group(self, transactions: Sequence[Transaction]) -> None:
        """Commit for several threads of the process, as a leader does; StorageError."""
        group = [PendingCommit(PreparedTransaction(t)) for t in transactions]
        with self.storage._commits.leading:
            try:
                self.storage._commit_group(group)
            except StorageError as error:
                for pending in group:
                    if not pending.is_settled:
                        pending.error = error
        failure = None
        for transaction, pending in zip(transactions, group, strict=True):
            try:
                self._settle(transaction, functools.partial(outcome, pending))
            except StorageError as error:
                failure = error
        if failure is not None:
            raise failure

    def _settle(self, transaction: Transaction, outcome: Callable[[], CommitResult]) -> bool:
        """Note what becomes of a transaction: whether it is committed; StorageError."""
        id = transaction.id
        try:
            self._note(transaction, outcome())
        except CommitOutcomeUnknownError:
            tid = self.storage.find(id)
            if tid is None:
                self.ledger.refused[id] = "its outcome was unknown"
            else:
                self.ledger.acknowledged[id] = Acknowledgement(tid, self.durable)
            return tid is not None
        except (ConflictError, StorageError) as error:
            self.ledger.refused[id] = str(error)
            if not isinstance(error, ConflictError):
                raise
            return False
        return True

    def _note(self, transaction: Transaction, result: CommitResult) -> None:
        self.ledger.acknowledged[transaction.id] = Acknowledgement(result.tid, self.durable)
        # As a connection does: what others have changed meanwhile is to be loaded again.
        self._forget(result.changed)
        for oid, record in transaction.writes.items():
            self._copies[oid] = read_record(Revision(result.tid, record))
        self.tid = max(self.tid, result.tid)


def work(client: Client, role: str, count: int) -> None:
    """Do so many things, chosen as the role has it."""
    actions, weights = zip(*ROLES[role].items(), strict=True)
    for action in client.random.choices(actions, weights, k=count):
        with tolerating_failing_syncs(client.process):
            client.begin()
            if client.has_root():
                action(client)


@contextlib.contextmanager
def tolerating_failing_syncs(process: Process) -> Iterator[None]:
    """What the storage raises when the disk fails is no violation."""
    try:
        yield
    except StorageError as error:
        if not process.system.has_failed or type(error) not in (StorageError, StorageOpenError):
            raise


def increment(client: Client) -> None:
    objects = client.objects()
    some = client.random.sample(objects, client.random.randint(1, 2))
    while not client.commit(client.write(some)):
        client.begin()
        some = [oid for oid in some if oid in client.objects()] or [ROOT_OID]


def increment_in_group(client: Client) -> None:
    objects = client.objects()
    count = client.random.randint(1, GROUP_MAX)
    client.commit_group([client.write([client.random.choice(objects)]) for _ in range(count)])


def reserve(client: Client) -> None:
    oids = client.storage.reserve_oids(client.random.randint(1, 3))
    client.ledger.hand_out(oids, client.name)
    client.begin()
    look(client)


def attach(client: Client) -> None:
    oids = client.storage.reserve_oids(client.random.randint(1, 3))
    client.ledger.hand_out(oids, client.name)
    records = client.random.choice((oids, oids[:1]))
    client.commit(client.write([ROOT_OID], created=records))


def detach(client: Client) -> None:
    others = [oid for oid in client.objects()[1:] if oid not in COUNTERS]
    if others:
        oid = client.random.choice(others)
        client.commit(client.detach(oid))
        client.detached.append(oid)


def look(client: Client) -> None:
    """Look at some objects, and again while others go on: a snapshot does not change."""
    objects = client.objects()
    for oid in (*objects[-LOOKS_MAX:], *objects[:1]):
        client.look(oid)


def look_back(client: Client) -> None:
    with contextlib.suppress(HistoryUnavailableError):
        client.begin(at=Tid(client.tid - client.random.randrange(TID_STEP_NS * 10)))
        if client.tid:
            look(client)


def reattach(client: Client) -> None:
    """Refer again to an object that nothing led to, if no pack has removed it."""
    lost = [oid for oid in client.detached if oid not in client.objects()]
    if lost:
        oid = client.random.choice(lost)
        with contextlib.suppress(DurusKeyError, DanglingReferenceError):
            client.commit(client.attach_again(oid))


def pack(client: Client) -> None:
    with contextlib.suppress(StorageLockedError):  # another one is at it
        earlier = max(NO_TID, client.tid - TID_STEP_NS * 5)
        client.storage.pack(keep=client.random.choice((None, None, earlier)))
    client.begin()
    increment(client)


def ask(client: Client) -> None:
    """Ask whether an earlier transaction was committed."""
    client.check_outcome()
    client.begin()
    look(client)


ROLES: dict[str, dict[Callable[[Client], None], int]] = {
    "writer": {increment: 6, look: 1, ask: 1},
    "leader": {increment_in_group: 4, increment: 1},
    "creator": {attach: 4, detach: 2, increment: 1, reserve: 2},
    "reviver": {attach: 2, detach: 2, reattach: 4},
    "reader": {look: 3, look_back: 1},
    "packer": {pack: 1},
}
