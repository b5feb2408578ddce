"""Verify the index file beside a log: does each of its entries lead to where the log says?

`durus.log_verify` calls it when it has read the log.  What is wrong with an index is no damage of
the database: whoever notices it reads the log instead.  But not everything can be noticed at once,
such as an entry that leads to an older revision; that is found here.  It is only read, also while
others update it, and the first thing that is wrong ends it: the remedy is always the same.
"""

import heapq
from collections.abc import Iterator
from itertools import groupby
from typing import Final

from durus.error import StorageError, format_oid
from durus.file_format import Finding
from durus.index_checkpoint import index_path
from durus.index_file import IndexFile
from durus.interfaces import Oid
from durus.log import Log
from durus.log_index import LogIndex

__all__ = ["IndexCheck"]

_NUMBER: Final = 0
_IS_INDEXED: Final = 1
_SLOT: Final = 2


class IndexCheck:
    """One index file, compared with the log beside it.

    It is opened before the size of the log is asked for: then, if nobody updates it, it knows of
    nothing that is behind there.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._path = index_path(log.path)
        self._index: IndexFile | None = None
        self._failure = ""
        try:
            self._index = IndexFile.open(log.file.system, self._path, writable=False)
        except FileNotFoundError:
            pass  # none is needed
        except (OSError, StorageError) as error:
            self._failure = f"cannot be used ({error})"

    def run(self, newest: LogIndex, size: int) -> Iterator[Finding]:
        """Yield what is wrong, if anything is: one finding at most.

        newest: the newest visible revisions in the first `size` bytes of the log, which is sound.
        """
        oid = None
        problem = self._failure
        if not problem and self._index is not None:
            try:
                problem = self._check_header(self._index, size)
                if not problem:
                    oid, problem = self._check_entries(self._index, newest, size)
            except (OSError, StorageError) as error:
                problem = f"cannot be used ({error})"
        if problem:
            yield Finding(
                None,
                None,
                oid,
                f"the index file {self._path} {problem}.  That is no damage of the database: "
                "delete the index file, and it is made anew",
            )

    def _check_header(self, index: IndexFile, size: int) -> str:
        """What is wrong with what the index says of the whole log; "" if nothing is."""
        log = self._log
        if not log.accepts(index):
            return "is of another file, or of another state of this one, and is not used"
        through_index = Log(log.file, index=index, scan=False)
        through_index.catch_up(size)
        if through_index.tid != log.tid:
            return f"leads to the last tid {through_index.tid}, and it is {log.tid}"
        if through_index.next_oid < log.next_oid:
            return f"leads to the next oid {through_index.next_oid}, and it is {log.next_oid}"
        if log.features_read_only & ~through_index.features_read_only:
            return "does not know all features of the log"
        return ""

    def _check_entries(
        self, index: IndexFile, newest: LogIndex, size: int
    ) -> tuple[Oid | None, str]:
        """The first oid whose entry is wrong, and what is wrong with it; "" if none is."""
        covers = index.header.covers.end  # while others update it, it may cover more; not less
        logged = ((number, False, slot) for number, slot in newest.items())
        indexed = ((number, True, slot) for number, slot in index.items())
        both = heapq.merge(logged, indexed)
        for number, group in groupby(both, key=lambda item: item[_NUMBER]):
            slots = {is_indexed: slot for _, is_indexed, slot in group}
            right, found = slots.get(False, 0), slots.get(True, 0)
            # What is behind `size` has just been written, by somebody who updates the index.
            if right != found and found < size:
                oid = Oid(number.to_bytes(8))
                oldest = self._find_revision(oid, right, found, covers)
                if oldest != found:
                    where = f"has oid {format_oid(oid)} at offset {found}"
                    if not found:
                        where = f"lacks oid {format_oid(oid)}"
                    it = f"at offset {oldest or right}"
                    return oid, f"{where}, and the log has it {it if right else 'nowhere'}"
        return None, ""

    def _find_revision(self, oid: Oid, slot: int, wanted: int, covers: int) -> int:
        """`wanted` if the index may say so, which covers the first `covers` bytes of the log.

        slot: of the newest revision, or 0.  Else the slot of the newest revision that it covers.
        """
        while slot >= covers and slot != wanted:
            _, head = self._log.read_slot(slot, oid)
            previous = self._log.read_transaction(head).find_previous(oid) or 0
            if previous >= slot:
                return wanted  # it is the log that is wrong here, and that has been reported
            slot = previous
        return slot
