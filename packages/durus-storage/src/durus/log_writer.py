"""Writing a log file from its header to its last mark: what pack and conversion have in common.

Invariants: the file is nobody's database yet, so it is synced when somebody asks for it; the
directories name the slots of the previous revisions; and no more than `_MARK_INTERVAL`
transactions wait for the same mark.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Unpack

from durus.error import StorageError
from durus.index_file import Anchor
from durus.interfaces import NO_TID, Oid, Tid
from durus.log_file import LogFile
from durus.log_format import (
    LoggedTransaction,
    Mark,
    Reservation,
    TransactionFields,
    encode_mark,
    encode_reservation,
    encode_slots,
    encode_trailer,
    encode_transaction_start,
)
from durus.log_header import FileHeader, encode_file_header
from durus.log_index import LogIndex

__all__ = ["LogWriter"]

_MARK_INTERVAL: Final = 64
"""So many transactions share a mark: who opens the file holds what is unmarked in memory."""
_BUFFER_SIZE: Final = 1 << 16
_SYNC_INTERVAL: Final = 1 << 23
"""After so many bytes the file is synced, lest at the end all others wait for the disk."""


class LogWriter:
    """Writes to an empty file, which is a log when `finish` returns.  All of it raises OSError."""

    def __init__(self, file: LogFile, header: FileHeader, index: LogIndex | None = None) -> None:
        """index: where the slots of what is written are noted."""
        self.index = LogIndex() if index is None else index
        self.last: LoggedTransaction | None = None
        """The newest transaction."""
        self.end = 0
        """So long is the file, with what is still to be written."""
        self.next_oid = header.next_oid
        self._file = file
        self.file_id = header.file_id
        self.unindexed = 0
        """How many transactions and records have been written."""
        self._unmarked = 0
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._unsynced = 0
        self._write(encode_file_header(header))

    @property
    def tid(self) -> Tid:
        """That of the newest transaction."""
        return self.last.tid if self.last else NO_TID

    @property
    def anchor(self) -> Anchor:
        """The place after the last mark.  There is a transaction, and nothing after its mark."""
        assert self.last is not None
        assert not self._unmarked
        return Anchor(self.end, self.last.offset, self.last.tid, self.last.head.id)

    def append(
        self, records: Sequence[tuple[Oid, bytes]], **fields: Unpack[TransactionFields]
    ) -> None:
        """Append a transaction.

        records: oids, ascending, and encoded records.
        Raises ValueError when the tid is not larger than the last one, and StorageError when the
        transaction is too large.
        """
        entries = [
            (int.from_bytes(oid), self.index.find(oid), len(record)) for oid, record in records
        ]
        self.append_slots(
            entries,
            lambda distance: encode_slots(distance, (record for _, record in records)),
            **fields,
        )

    def append_slots(
        self,
        entries: Sequence[tuple[int, int, int]],
        slots: Callable[[int], Iterable[bytes]],
        **fields: Unpack[TransactionFields],
    ) -> None:
        """Append a transaction whose records need not be in memory together.

        entries: numbers of oids, ascending, slots of their previous revisions in this file (or 0),
            and the sizes of their records.
        slots: gives their slots, in parts, being told the distance of the first from the start.
        Raises as `append`.
        """
        if fields["tid"] <= self.tid:
            raise ValueError(f"tid {fields['tid']} does not come after tid {self.tid}")
        offset = self.end
        transaction, start = encode_transaction_start(self.file_id, offset, entries, **fields)
        self._write(start)
        for part in slots(len(start)):
            self._write(part)
        size = transaction.head.size
        self._write(encode_trailer(size))
        if self.end != offset + size:
            raise StorageError(f"{self._file.path}: the records are not what was announced")
        self.index.add(transaction)
        self.unindexed += 1 + len(entries)
        self.last = transaction
        self.next_oid = max(self.next_oid, fields["next_oid"])
        self._unmarked += 1
        if self._unmarked == _MARK_INTERVAL:
            self.mark()

    def reserve(self, next_oid: int) -> None:
        """Say that oids below `next_oid` have been handed out, if the file does not say so yet."""
        if next_oid > self.next_oid:
            self._write(encode_reservation(self.file_id, Reservation(self.end, next_oid)))
            self.next_oid = next_oid

    def mark(self) -> None:
        """Mark what has been appended."""
        if self._unmarked:
            self._write(encode_mark(self.file_id, Mark(self.end, self.tid)))
            self._unmarked = 0

    def _write(self, content: bytes) -> None:
        self._buffer.append(content)
        self._buffered += len(content)
        self.end += len(content)
        if self._buffered >= _BUFFER_SIZE:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory to the file."""
        content = b"".join(self._buffer)
        self._buffer.clear()
        self._buffered = 0
        if content:
            self._file.append(content)
            self._unsynced += len(content)
        if self._unsynced >= _SYNC_INTERVAL:
            self.sync()

    def sync(self) -> None:
        self._file.sync()
        self._unsynced = 0

    def finish(self) -> None:
        """Mark the last transactions; durable on return.  More may be appended after it."""
        self.mark()
        self.flush()
        self.sync()
