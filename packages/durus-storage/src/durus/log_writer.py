"""Writing a log file from its header to its last mark: what pack and conversion have in common.

Invariants: the file is nobody's database yet, so it is synced once, at the end; the directories
name the slots of the previous revisions; and no more than `_MARK_INTERVAL` transactions wait for
the same mark.
"""

from collections.abc import Sequence
from typing import Final

from durus.interfaces import NO_TID, Oid, Tid
from durus.log_file import LogFile
from durus.log_format import (
    FileHeader,
    Mark,
    encode_file_header,
    encode_mark,
    encode_transaction,
)
from durus.log_index import LogIndex

__all__ = ["LogWriter"]

_MARK_INTERVAL: Final = 64
"""So many transactions share a mark: who opens the file holds what is unmarked in memory."""


class LogWriter:
    """Writes to an empty file, which is a log when `finish` returns.  All of it raises OSError."""

    def __init__(self, file: LogFile, header: FileHeader) -> None:
        self.index = LogIndex()
        self.tid = NO_TID
        """The newest transaction."""
        self._file = file
        self._file_id = header.file_id
        self._end = header.size
        self._unmarked = 0
        file.append(encode_file_header(header))

    def append(
        self,
        *,
        tid: Tid,
        time_ns: int,
        id: int,
        next_oid: int,
        user: str,
        note: str,
        extension: bytes = b"",
        flags: int = 0,
        records: Sequence[tuple[Oid, bytes]],
    ) -> None:
        """Append a transaction.

        records: oids, ascending, and encoded records.
        Raises ValueError when the tid is not larger than the last one, and StorageError when the
        transaction is too large.
        """
        if tid <= self.tid:
            raise ValueError(f"tid {tid} does not come after tid {self.tid}")
        transaction, content = encode_transaction(
            self._file_id,
            self._end,
            tid=tid,
            time_ns=time_ns,
            id=id,
            next_oid=next_oid,
            user=user,
            note=note,
            extension=extension,
            flags=flags,
            records=[(oid, self.index.find(oid), record) for oid, record in records],
        )
        self._file.append(content)
        self.index.add(transaction)
        self.tid = tid
        self._end += len(content)
        self._unmarked += 1
        if self._unmarked == _MARK_INTERVAL:
            self._append_mark()

    def _append_mark(self) -> None:
        mark = Mark(self._end, self.tid)
        self._file.append(encode_mark(self._file_id, mark))
        self._end = mark.end
        self._unmarked = 0

    def finish(self) -> None:
        """Mark the last transactions; durable on return."""
        if self._unmarked:
            self._append_mark()
        self._file.sync()
