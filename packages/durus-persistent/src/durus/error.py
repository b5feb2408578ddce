"""Every error of Durus, in one tree under `DurusError`.

Each says what happened, to which object or where in which file, and what to do about it.

    DurusError
      ConflictError                  another transaction was first: abort() and start again
        WriteConflictError             found by commit()
        ReadConflictError              found when an object was loaded
      TransactionError               a transaction of a Database is used in the wrong way
        TransactionEndedError          after its end
        TransactionInUseError          by two threads at once
        NestedTransactionError         inside of another one
      DurusKeyError                  no object with this oid
      ObjectError                    something is wrong with one object or its class
        UnstorableError                its state, or its class, cannot be stored
        UnnotedChangeError             it was changed, and nobody has noted it (strict mode)
        ForeignReferenceError          it belongs to another connection
        ClassNotAllowedError           its record names something that must not be loaded
        MissingClassError              its class cannot be found
        WrongClassError                it is of another class than was asked for
      StorageError                   something is wrong with a storage
        DanglingReferenceError         a commit refers to an object that does not exist
        UndoError                      a transaction cannot be undone
        CommitOutcomeUnknownError      the commit may or may not have happened
        StorageClosedError             it was closed
        ServerLostError                its server does not answer any more
        ReadOnlyError                  it was opened read-only
        StorageLockedError             another process has it
        DatabaseReplacedError          another file took its place while it was open
        StorageOpenError               it cannot be opened; the file is left as it was
          NotADatabaseError              the file is something else
          UnsupportedFormatError         the file was written by a newer release
        CorruptionError                its bytes are damaged
        HistoryUnavailableError        the past that was asked for is not kept
      KeyOrderError                  a BTree key that cannot be ordered
      EmptyTreeError                 the first or last item of a BTree that has none
      ProtocolError                  client and server do not understand each other

The names of Durus 4.3 are kept; where 4.3 raised a builtin error, ours also derives from it.
"""

import pickle
from collections.abc import Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING

from durus import _guard as _guard

if TYPE_CHECKING:
    from durus.conflicts import Conflict

__all__ = [
    "ClassNotAllowedError",
    "CommitOutcomeUnknownError",
    "ConflictError",
    "CorruptionError",
    "DanglingReferenceError",
    "DatabaseReplacedError",
    "DurusError",
    "DurusKeyError",
    "EmptyTreeError",
    "ForeignReferenceError",
    "HistoryUnavailableError",
    "KeyOrderError",
    "MissingClassError",
    "NestedTransactionError",
    "NotADatabaseError",
    "ObjectError",
    "ProtocolError",
    "ReadConflictError",
    "ReadOnlyError",
    "ServerLostError",
    "StorageClosedError",
    "StorageError",
    "StorageLockedError",
    "StorageOpenError",
    "TransactionEndedError",
    "TransactionError",
    "TransactionInUseError",
    "UndoError",
    "UnnotedChangeError",
    "UnstorableError",
    "UnsupportedFormatError",
    "WriteConflictError",
    "WrongClassError",
]


def format_oid(oid: bytes | None) -> str:
    """The oid as users see it: a decimal number, or 'None'."""
    return "None" if oid is None else str(int.from_bytes(oid, "big"))


def _format_oids(oids: Sequence[bytes]) -> str:
    shown = ", ".join(format_oid(oid) for oid in oids[:10])
    return f"[{shown}, ...]" if len(oids) > 10 else f"[{shown}]"


class DurusError(Exception):
    """Any error of Durus."""


class ConflictError(DurusError):
    """Another transaction changed objects that this one used: abort() and start again.

    `oids` are the objects concerned, or None when they are not known; `conflicts` says more of the
    first of them, where more is known.  `attempts` is how often `Database.run` has tried.
    """

    conflicts: "tuple[Conflict, ...]" = ()
    attempts: int | None = None

    def __init__(self, oids: Sequence[bytes] | None = None) -> None:
        super().__init__(oids)
        self.oids = oids

    def __str__(self) -> str:
        if self.oids is None:
            text = "conflicting oids not available"
        else:
            text = f"oids={_format_oids(self.oids)}"
        if self.conflicts:
            text += f": {'; '.join(map(str, self.conflicts))}"
        if self.attempts is not None:
            text += f"; given up after {self.attempts} attempts"
        return text


class WriteConflictError(ConflictError):
    """Found by commit(): an object that this transaction accessed was changed by another one."""


class ReadConflictError(ConflictError):
    """Found by loading an object: its state does not fit with what was already accessed."""


class TransactionError(DurusError):
    """A transaction of a Database is used in a way that it cannot be."""


class TransactionEndedError(TransactionError):
    """A transaction, or an object of it, is used after the transaction's end."""


class TransactionInUseError(TransactionError):
    """Two threads use a transaction at the same moment."""


class NestedTransactionError(TransactionError):
    """A second transaction would write while the first one of the same context is open."""


class DurusKeyError(KeyError, DurusError):
    """There is no object with this oid.  `oids` holds the one that was asked for, if it is one."""

    def __init__(self, oid: bytes | int) -> None:
        super().__init__(oid)
        self._asked_for = oid
        self.oids = [oid] if isinstance(oid, bytes) else []

    def __str__(self) -> str:
        oid = self._asked_for
        if isinstance(oid, bytes) and len(oid) == 8:
            return f"no object with oid {format_oid(oid)}"
        return f"no object with oid {oid!r}: an oid is 8 bytes, or a number that fits into them"


class ObjectError(DurusError):
    """Something is wrong with one object or with its class."""


class UnstorableError(ObjectError, TypeError, pickle.PicklingError):
    """The state or the class of an object cannot be stored."""


class UnnotedChangeError(ObjectError):
    """Found in strict mode: an object was changed in place, and would not be stored."""


class ForeignReferenceError(ObjectError, ValueError):
    """An object refers to an object of another connection."""


class ClassNotAllowedError(ObjectError, pickle.UnpicklingError):
    """A record names something that must not be loaded; `allow=` may admit it."""


class MissingClassError(ObjectError):
    """The class of an object cannot be found; the rest of the database stays usable."""


class WrongClassError(ObjectError, TypeError, AssertionError):
    """An object, perhaps the root, is of another class than was asked for.

    (4.3 raised AssertionError.)
    """


class StorageError(DurusError):
    """Something is wrong with a storage."""


class DanglingReferenceError(StorageError):
    """A commit refers to objects that do not exist; `oids` are those objects."""

    def __init__(self, oids: Sequence[bytes]) -> None:
        super().__init__(oids)
        self.oids = oids

    def __str__(self) -> str:
        return (
            f"the transaction refers to objects that do not exist, oids={_format_oids(self.oids)}"
            ".  A pack has removed them since they were loaded: abort(), and make new ones of what "
            "is still needed"
        )


class UndoError(StorageError):
    """Transaction `tid` cannot be undone, for the `reason`; `oids` are the objects concerned."""

    def __init__(self, tid: int, reason: str, oids: Sequence[bytes] = ()) -> None:
        super().__init__(tid, reason, oids)
        self.tid = tid
        self.reason = reason
        self.oids = oids

    def __str__(self) -> str:
        whose = f", oids={_format_oids(self.oids)}" if self.oids else ""
        return f"transaction {self.tid} cannot be undone: {self.reason}{whose}"


class CommitOutcomeUnknownError(StorageError):
    """The commit failed half-way: ask `find(transaction_id)` whether it happened.

    A classic storage that is called by itself gives its transactions no id: then it is None.
    """

    def __init__(self, transaction_id: int | None, reason: str) -> None:
        super().__init__(transaction_id, reason)
        self.transaction_id = transaction_id
        self.reason = reason

    def __str__(self) -> str:
        which = "the transaction"
        if self.transaction_id is not None:
            which = f"transaction {self.transaction_id:016x}"
        return (
            f"it is not known whether {which} was committed: {self.reason}.  find() of a storage "
            "that keeps history will tell; with any other, look whether the change is there"
        )


class StorageClosedError(StorageError, ValueError):
    """The storage was closed (a ValueError, as for a closed file)."""


class ServerLostError(StorageError, ConnectionError):
    """The connection to a storage server was lost, or could not be made."""


class ReadOnlyError(StorageError, AssertionError):
    """The storage, or the snapshot, is read-only (4.3 raised AssertionError)."""


class StorageLockedError(StorageError, OSError):
    """Somebody else has the file locked, and has not given it up in time."""


class DatabaseReplacedError(StorageError):
    """Another file has taken the place of the database while it was open, or none has."""


class StorageOpenError(StorageError, OSError):
    """The storage cannot be opened or made; what is there is left as it is.

    An OSError, as in 4.3; `errno` is set when the operating system refused.
    """

    def __init__(self, path: str | PathLike[str], reason: str, errno: int | None = None) -> None:
        super().__init__(f"{fspath(path)}: {reason}")
        self.filename = fspath(path)
        self.errno = errno

    def __str__(self) -> str:
        return str(self.args[0])  # not in OSError's form, which has no place for the remedy


class NotADatabaseError(StorageOpenError, AssertionError):
    """The file is not a Durus database (4.3 raised AssertionError)."""


class UnsupportedFormatError(StorageOpenError):
    """The file was written by a newer release."""


class CorruptionError(StorageError):
    """Bytes of the file are damaged: `path`, `reason`; `offset`, `oid` and `tid` where known."""

    def __init__(
        self,
        path: str | PathLike[str],
        offset: int | None,
        reason: str,
        oid: bytes | None = None,
        tid: int | None = None,
    ) -> None:
        self.path = fspath(path)
        self.offset = offset
        self.oid = oid
        self.tid = tid
        self.reason = reason
        where = f"{self.path}: damaged" + ("" if offset is None else f" at offset {offset}")
        known = [] if oid is None else [f"oid {format_oid(oid)}"]
        known += [] if tid is None else [f"tid {tid}"]
        whose = f" ({', '.join(known)})" if known else ""
        super().__init__(f"{where}{whose}: {reason}")


class HistoryUnavailableError(StorageError):
    """The past that was asked for was packed away, or this storage keeps none."""


class KeyOrderError(DurusError, TypeError):
    """A BTree key that cannot be ordered against itself or the other keys."""


class EmptyTreeError(DurusError, ValueError, AssertionError):
    """The first or last item of an empty BTree (4.3 raised AssertionError)."""


class ProtocolError(DurusError):
    """Client and server do not understand each other."""
