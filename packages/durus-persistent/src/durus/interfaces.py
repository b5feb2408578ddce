"""What the layers of Durus say to each other: the values and the storage Protocols.

A storage is a log of transactions.  It is shared by any number of connections and threads, and
everything that they ask of it stands here:

    snapshot()      a view that never changes
    commit()        validate and append one transaction, all or nothing, durable
    changes()       what others committed: invalidations
    reserve_oids()  oids for new objects, never handed out twice

What not every storage can do is a Protocol of its own: `HistoryStorage`, `PackableStorage`,
`PackableHistoryStorage`.
`durus.testing.storage_contract` checks an implementation; `durus.classic` adapts the storages of
Durus 4.x.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, NewType, Protocol, runtime_checkable

from durus import _guard as _guard

if TYPE_CHECKING:
    from os import PathLike

    from durus.times import When

__all__ = [
    "CHANGES_MAX",
    "NO_TID",
    "OID_LIMIT",
    "ROOT_OID",
    "AccessedOids",
    "BackupStorage",
    "CommitResult",
    "CommittedTransaction",
    "HistoryStorage",
    "Oid",
    "PackableHistoryStorage",
    "PackableStorage",
    "Progress",
    "Record",
    "Revision",
    "Snapshot",
    "Storage",
    "StorageOpener",
    "Tid",
    "Transaction",
    "check_created",
]

Oid = NewType("Oid", bytes)
"""Identifies an object: 8 bytes, big-endian, counted up from the root's 0."""

Tid = NewType("Tid", int)
"""Identifies a transaction: nanoseconds since 1970, or more; every one larger than the last."""

ROOT_OID: Final = Oid(bytes(8))
NO_TID: Final = Tid(0)
"""The tid of a database that has no transaction yet."""

OID_LIMIT: Final = 2**48
"""Oids are smaller; they are handed out one after the other, so none comes near it."""

CHANGES_MAX: Final = 100_000
"""More changed oids than this are not listed: the cache is dropped instead."""


class Record(NamedTuple):
    """One object as it is stored.

    The two pickles are independent: each can be loaded without the other.  Storages never look
    into them.
    """

    class_pickle: bytes
    """A pickle of the class alone."""
    state_pickle: bytes
    """A pickle of what `__getstate__` returned, references being persistent ids (oid, class)."""
    refs: bytes
    """The oids of the objects that the state refers to: 8 bytes each, ascending, each once."""


class Revision(NamedTuple):
    """A record, and the transaction that wrote it (`NO_TID` when that is not known)."""

    tid: Tid
    record: Record


class AccessedOids(Protocol):
    """The oids that a transaction read or wrote, or a superset of them."""

    def overlap(self, oids: Iterable[Oid]) -> list[Oid]:
        """Those of `oids` that were (or, with a superset, may have been) accessed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """Everything that one commit carries to the storage; ValueError if it cannot be stored."""

    id: int
    """Random, 64 bits: answers 'was it committed?' when an answer was lost."""
    snapshot_tid: Tid
    """What the transaction read is of this tid, or older."""
    accessed: AccessedOids
    """What it read and wrote."""
    created: frozenset[Oid]
    """Those of `writes` that must not exist yet."""
    writes: Mapping[Oid, Record]
    """The new records; not empty."""
    time_ns: int
    """Wall clock, nanoseconds since 1970."""
    user: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if not self.created <= self.writes.keys():
            missing = min(self.created - self.writes.keys())
            raise ValueError(f"{missing!r} is to be created, and there is no record of it")
        for text in (self.user, self.note):
            if not isinstance(text, str):
                raise ValueError(f"the user and the note of a transaction are texts, not {text!r}")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{text!r} cannot be stored as a user or note: {error}") from error


class CommitResult(NamedTuple):
    """What a commit answers."""

    tid: Tid
    changed: frozenset[Oid] | None
    """What others committed between the transaction's snapshot and `tid`, as `changes()` says it.
    The committer must forget its copies of these; without that it would lose updates later."""


@dataclass(frozen=True, slots=True)
class CommittedTransaction:
    """A transaction in the log, without its records."""

    tid: Tid
    id: int
    time_ns: int
    user: str
    note: str
    oids: Sequence[Oid]


class Progress(NamedTuple):
    """How far something long has come, as a callback is told now and then."""

    what: str
    """What is being done now, such as "copying"."""
    done: int
    total: int
    """What `done` will be at the end of this; 0 if that is not known."""


class Snapshot(Protocol):
    """A view of the storage at one tid, which nothing changes, until it is closed."""

    @property
    def tid(self) -> Tid: ...

    def load(self, oid: Oid) -> Revision:
        """The newest revision of `oid` that is not newer than this snapshot.

        Raises DurusKeyError when there is none, CorruptionError when its bytes are damaged, and,
        on a storage without history, ReadConflictError when the revision was since replaced.
        """
        ...

    def load_many(self, oids: Iterable[Oid]) -> Iterator[tuple[Oid, Revision]]:
        """Several at once, in any order; oids that do not exist are left out."""
        ...

    def close(self) -> None:
        """The storage may forget what only this snapshot sees.  Closing twice is no error."""
        ...


@runtime_checkable
class Storage(Protocol):
    """What every storage can do.  All of it may be called from several threads."""

    @property
    def tid(self) -> Tid:
        """The newest tid that is known in this process; cheap, asks nobody outside, never fails."""
        ...

    @property
    def readonly(self) -> bool: ...

    def snapshot(self) -> Snapshot:
        """A view of the newest published transaction.  This is where others' commits are seen."""
        ...

    def commit(self, transaction: Transaction) -> CommitResult:
        """Validate and append the transaction; durable when this returns.

        Raises WriteConflictError (naming the oids) when an accessed object was changed after the
        transaction's snapshot, when one to be created exists, or when another one that it writes
        does not (a pack has removed it); ValueError when an oid to be created is not less than
        `OID_LIMIT`; DanglingReferenceError when a record
        refers to an object that neither exists nor is created, ReadOnlyError,
        StorageClosedError; with all of these nothing happened.  CommitOutcomeUnknownError when
        that cannot be said.
        """
        ...

    def changes(self, since: Tid, until: Tid) -> frozenset[Oid] | None:
        """The oids written by transactions with since < tid <= until.

        None: too many (more than `CHANGES_MAX`) or too long ago; forget everything you have.
        """
        ...

    def reserve_oids(self, count: int) -> Sequence[Oid]:
        """`count` oids (1 or more) that are in no use and will not be handed out again."""
        ...

    def close(self) -> None:
        """Further calls raise StorageClosedError, those of open snapshots too.

        Closing twice is no error.
        """
        ...


@runtime_checkable
class HistoryStorage(Storage, Protocol):
    """A storage that keeps older revisions, as far back as its last pack."""

    def snapshot(self, at: Tid | None = None) -> Snapshot:
        """A view of the newest transaction, or of the newest with a tid <= `at`.

        Raises HistoryUnavailableError when that past was packed away.
        """
        ...

    def transactions(
        self, start: Tid | None = None, stop: Tid | None = None
    ) -> Iterator[CommittedTransaction]:
        """The transactions with start <= tid < stop, oldest first."""
        ...

    def revisions(self, oid: Oid) -> Iterator[Revision]:
        """The revisions of an object, newest first; DurusKeyError when there is none."""
        ...

    def find(self, transaction_id: int) -> Tid | None:
        """The tid of the transaction with this id, or None when it is not in the log."""
        ...


@runtime_checkable
class PackableStorage(Storage, Protocol):
    """A storage that can drop what is no longer needed."""

    def pack(self) -> None:
        """Forget history, and the objects that cannot be reached from the root."""
        ...


@runtime_checkable
class PackableHistoryStorage(HistoryStorage, Protocol):
    """A storage that can drop its history up to some time."""

    def pack(
        self,
        *,
        keep: "When | None" = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Forget the history before `keep`, all of it by default, and what nothing leads to.

        Kept is what the root, as it was at `keep`, and all that was written later lead to.  Open
        snapshots go on.  progress: is called now and then; what it raises ends the pack.
        """
        ...


@runtime_checkable
class BackupStorage(Storage, Protocol):
    """A storage that can be backed up while it is in use."""

    def backup(
        self,
        folder: "str | PathLike[str]",
        *,
        progress: Callable[[Progress], None] | None = None,
    ) -> object:
        """Bring the backups in a folder up to date; it is made if it is not there."""
        ...


class StorageOpener(Protocol):
    """What the entry point group `durus.storages` holds, one for each URI scheme."""

    def __call__(self, uri: str, *, readonly: bool, create: bool) -> Storage:
        """Open the storage that `uri` names; for the scheme 'file' it is a plain path."""
        ...


def check_created(created: Iterable[Oid]) -> None:
    """ValueError if one of the oids is so large that nothing could count on from there."""
    for oid in created:
        if len(oid) != 8 or int.from_bytes(oid) >= OID_LIMIT:
            raise ValueError(f"{oid!r} is no oid: 8 bytes, and less than 2**48 as a number")
