"""`ClassicHistory`: the past of a SHELF-1 or DFS20 file, as far as it still stands in it.

A commit to such a file appends to it, so the older records are there until the next pack.
`durus.history.HistoryConnection` and `Connection(path, at=...)` read them by this.  The packed
part, if there is anything in it, counts as the first transaction.  Tids are 1, 2, 3, ..., as the
formats have neither tids nor times.  Invariant: *what was there when the file was opened is seen,
and nothing else*, whoever commits or packs meanwhile.
"""

import contextlib
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Final, NamedTuple, NoReturn

from durus import dfs20_format, shelf_format
from durus.classic_file import ReadAhead, is_record_start, open_classic_file
from durus.classic_format import ClassicFormat
from durus.dfs20_format import DFS20
from durus.error import (
    CorruptionError,
    DurusKeyError,
    HistoryUnavailableError,
    ReadOnlyError,
    StorageClosedError,
    StorageError,
    format_oid,
)
from durus.interfaces import (
    CHANGES_MAX,
    NO_TID,
    CommittedTransaction,
    Oid,
    Record,
    Revision,
    Snapshot,
    Tid,
    Transaction,
)
from durus.record import record_from_classic
from durus.shelf import OffsetMap
from durus.shelf_format import SHELF

__all__ = ["ClassicHistory"]

_TID_LIMIT: Final = 1 << 48
"""No file has so many bytes.  Times are far larger."""


class _Base(NamedTuple):
    """What the last pack has written."""

    find: Callable[[Oid], int | None]
    """The offset of the record of an oid."""
    oids: Callable[[], Iterator[Oid]]
    """All of them, ascending."""
    end: int
    """Where the transactions after it begin."""


def _find_shelf_base(reader: ReadAhead) -> _Base:
    base_end = shelf_format.locate_base(reader)
    reader.file.seek(base_end)
    offset_map = OffsetMap(reader.file)
    return _Base(
        lambda oid: offset_map.get(int.from_bytes(oid)),
        lambda: (Oid(number.to_bytes(8)) for number in offset_map),
        shelf_format.locate_transactions(reader, base_end),
    )


def _find_dfs20_base(reader: ReadAhead) -> _Base:
    offsets, _, end = dfs20_format.read_index(reader)
    return _Base(offsets.get, lambda: iter(sorted(map(Oid, offsets))), end)


class _ClassicSnapshot:
    """What there was up to one tid."""

    def __init__(self, history: "ClassicHistory", tid: Tid) -> None:
        self.tid = tid
        self._history: ClassicHistory | None = history

    def load(self, oid: Oid) -> Revision:
        if self._history is None:
            raise StorageClosedError("the snapshot is closed")
        return next(self._history.revisions_until(oid, self.tid))

    def load_many(self, oids: Iterable[Oid]) -> Iterator[tuple[Oid, Revision]]:
        for oid in oids:
            with contextlib.suppress(DurusKeyError):
                yield oid, self.load(oid)

    def close(self) -> None:
        self._history = None


class ClassicHistory:
    """A `HistoryStorage` that is read-only, of the transactions since a file's last pack.

    It takes no lock: others may have the file open for writing.  What they commit later is seen by
    opening it anew.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises StorageOpenError, and CorruptionError, as opening the file for use does."""
        self._path = os.path.abspath(path)
        self._pid = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        """While the file is read."""
        self._file = open_classic_file(self._path, b"", readonly=True)
        try:
            self._format: ClassicFormat = DFS20 if DFS20.is_in(self._file) else SHELF
            self._format.check_is_in(self._file)
            self._reader = ReadAhead(self._file)
            self._read_file()
        except BaseException:
            self._file.close()
            raise

    def _read_file(self) -> None:
        find_base = _find_dfs20_base if self._format is DFS20 else _find_shelf_base
        self._base = find_base(self._reader)
        has_base = next(self._base.oids(), None) is not None
        self._horizon = Tid(1) if has_base else NO_TID
        """That of the base; no snapshot is older."""
        self._transactions: list[tuple[Oid, ...]] = []
        """Those after the base."""
        self._places: dict[Oid, list[tuple[Tid, int]]] = {}
        """The offsets of what they wrote."""
        for parsed in self._format.read_transactions(self._reader, self._base.end):
            if parsed.offsets:
                oids = sorted(map(Oid, parsed.offsets))
                self._transactions.append(tuple(oids))
                for oid in oids:
                    self._places.setdefault(oid, []).append((self.tid, parsed.offsets[oid]))

    def __str__(self) -> str:
        return f"{type(self).__name__}({self._path!r})"

    def get_filename(self) -> str:
        """The absolute path of the file."""
        return self._path

    @property
    def tid(self) -> Tid:
        return Tid(self._horizon + len(self._transactions))

    @property
    def readonly(self) -> bool:
        return True

    def snapshot(self, at: Tid | None = None) -> Snapshot:
        self._check_open()
        if at is None:
            at = self.tid
        if at >= _TID_LIMIT:
            raise HistoryUnavailableError(
                f"{self._path}: the transactions of a {self._format.name} file have no times; ask "
                f"for one of the tids up to {self.tid}, which are counted from the last pack on"
            )
        if at < self._horizon:
            raise HistoryUnavailableError(
                f"{self._path}: there is no snapshot at tid {at}: what was before tid "
                f"{self._horizon} has been packed away"
            )
        return _ClassicSnapshot(self, min(at, self.tid))

    def changes(self, since: Tid, until: Tid) -> frozenset[Oid] | None:
        self._check_open()
        if since < self._horizon:
            return None
        start, stop = since - self._horizon, max(until - self._horizon, 0)
        changed = {oid for oids in self._transactions[start:stop] for oid in oids}
        return None if len(changed) > CHANGES_MAX else frozenset(changed)

    def transactions(
        self, start: Tid | None = None, stop: Tid | None = None
    ) -> Iterator[CommittedTransaction]:
        """The transactions with start <= tid < stop, oldest first; the first is the packed part."""
        self._check_open()
        first = max(1, 1 if start is None else start)
        end = self.tid + 1 if stop is None else min(stop, self.tid + 1)
        return (
            CommittedTransaction(
                tid=Tid(tid), id=0, time_ns=0, user="", note="", oids=self._oids_of(Tid(tid))
            )
            for tid in range(first, end)
        )

    def _oids_of(self, tid: Tid) -> Sequence[Oid]:
        if tid > self._horizon:
            return self._transactions[tid - self._horizon - 1]
        with self._lock:
            self._check_open()
            return tuple(self._base.oids())

    def revisions(self, oid: Oid) -> Iterator[Revision]:
        return self.revisions_until(oid, self.tid)

    def revisions_until(self, oid: Oid, tid: Tid) -> Iterator[Revision]:
        """The revisions that are not newer than `tid`, newest first; DurusKeyError without any."""
        with self._lock:
            self._check_open()
            later = self._places.get(oid, [])
            places = later[: bisect_right(later, tid, key=itemgetter(0))]
            offset = self._base.find(oid)
        if offset is not None:
            places.insert(0, (self._horizon, offset))
        if not places:
            raise DurusKeyError(oid)
        return (Revision(tid, self._load(oid, offset)) for tid, offset in reversed(places))

    def _load(self, oid: Oid, offset: int) -> Record:
        with self._lock:
            self._check_open()
            start, size = self._format.locate_record(self._reader, offset)
            classic = self._reader.read(start, size)
        if len(classic) < size or not is_record_start(classic[:12], size):
            raise CorruptionError(self._path, offset, "there is no whole record here", oid)
        found, record = record_from_classic(classic)
        if found != oid:
            reason = f"this is the record of oid {format_oid(found)}"
            raise CorruptionError(self._path, offset, reason, oid)
        return record

    def find(self, transaction_id: int) -> Tid | None:
        """None: the transactions of such a file have no ids."""
        self._check_open()
        return None

    def commit(self, transaction: Transaction) -> NoReturn:
        self._refuse_to_write()

    def reserve_oids(self, count: int) -> NoReturn:
        self._refuse_to_write()

    def _refuse_to_write(self) -> NoReturn:
        self._check_open()
        raise ReadOnlyError(f"{self} shows the past of the file, and is read-only")

    def close(self) -> None:
        self._closed = True
        self._file.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StorageClosedError(f"{self} is closed")
        if os.getpid() != self._pid:
            raise StorageError(
                f"{self} was opened by process {self._pid} before it forked this one; open the "
                "file in the process that reads it"
            )
