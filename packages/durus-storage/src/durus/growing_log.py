"""The end of a log: what others left unfinished there, and what is appended.

Whoever appends holds the lock of the file, and settles the tail first: whole transactions that no
mark follows are made durable and marked, and what is not whole is sealed.  Invariant: a mark that
says so is written only after everything before it is durable.
"""

import contextlib
import errno

from durus.error import CommitOutcomeUnknownError, StorageError
from durus.interfaces import NO_TID, Tid
from durus.log import Log, Tail
from durus.log_batch import Batch
from durus.log_format import (
    MARK_SIZE,
    NOT_SYNCED,
    LoggedTransaction,
    Mark,
    Reservation,
    Void,
    encode_mark,
    encode_reservation,
    encode_void,
)

__all__ = ["GrowingLog"]


class GrowingLog(Log):
    """A log that this process appends to.  Only the holder of the file's lock calls what is here,
    and no two threads at once; `adopt_tail` needs the lock shared only."""

    keeps_lock = False
    """Whether the file is locked for as long as it is open."""
    adopted_size: int | None = None
    """The size of the file when its tail was last adopted."""
    _refused: int | None = None
    """What begins here must be sealed: its sync failed, so it must never become visible."""

    def settle_tail(self, size: int | None = None) -> None:
        """Finish what others, or a failure, left after the last mark; OSError, CorruptionError.

        size: of the file, if it is known.

        Whole transactions are made durable and marked: their commits may have been acknowledged.
        A partial one, or what was refused, is sealed.
        """
        tail = self.catch_up(size)
        if self._refused is not None and self._refused < self._visible_end:
            self._refused = None  # what was to be refused had been marked after all
        if self._refused is None and not tail.pending and tail.offset == tail.size:
            if not self._settled.is_marked:
                self._append_mark(self.tid)
                self.catch_up()
            return
        whole, garbage = self._split_tail(tail)
        if self._refused is not None:
            whole, garbage = [], self._refused
        if garbage < tail.size:
            self._append_void(garbage, tail.size)
        if self._refused is not None:
            self.file.sync()  # what it seals may be durable itself, and must not come back
            self._refused = None
        if whole:
            self.file.sync()
            self._append_mark(whole[-1].tid)
        elif not self._settled.is_marked:
            self._append_mark(self.tid)
        if self.catch_up().pending:  # its void is just what a torn one lacked to look like one
            self.settle_tail()

    def _split_tail(self, tail: Tail) -> tuple[list[LoggedTransaction], int]:
        """The whole transactions at the end, and where what is not whole begins."""
        for index, transaction in enumerate(tail.pending):
            if not self.is_whole(transaction):
                return tail.pending[:index], transaction.offset
        return tail.pending, tail.offset

    def adopt_tail(self) -> None:
        """Make whole transactions after the last mark visible in this process; OSError.

        A crash came between their sync and their mark, so their commits may have been
        acknowledged.  They are made durable first, and not marked: that is writing, and done by
        `settle_tail`.  The caller knows that nobody is committing.
        """
        with self._growing:
            tail = self.catch_up()
            whole, _ = self._split_tail(tail)
            if whole:
                self._sync_to_read()
                adopted = [t for t in whole if t.tid > self.tid]
                self._publish_until(whole[-1].tid, adopted, is_marked=False)
                self._tail = tail._replace(pending=tail.pending[len(whole) :])
            self.adopted_size = tail.size

    def make_durable(self) -> None:
        """Let all that is visible, with its mark, survive a power cut; OSError."""
        visible_end = self._visible_end
        try:
            self.file.sync()
        except OSError:
            # The next sync would pass over what this one has lost: the last mark, at least.
            self._refused = visible_end
            raise

    def _sync_to_read(self) -> None:
        try:
            self.file.sync()
        except OSError as error:
            if error.errno != errno.EROFS:  # nothing there can be lost, either
                raise

    def _append_mark(self, tid: Tid) -> None:
        mark = Mark(self.file.status().size, tid)
        self.file.append(encode_mark(self.header.file_id, mark))

    def _append_void(self, start: int, size: int) -> None:
        file_id = self.header.file_id
        void = Void(size, start)
        content = encode_void(file_id, void)
        if start == self._visible_end:  # the last mark and reservation may be sealed, too
            if self.tid != NO_TID:
                content += encode_mark(file_id, Mark(void.end, self.tid, NOT_SYNCED))
            again = Reservation(size + len(content), self.next_oid)
            content += encode_reservation(file_id, again)
        self.file.append(content)

    def append_reservation(self, next_oid: int) -> None:
        """Say that oids below `next_oid` have been handed out; OSError.  The tail is settled."""
        entry = Reservation(self.end, next_oid)
        self.file.append(encode_reservation(self.header.file_id, entry))
        self.catch_up()

    def append(self, batch: Batch, *, durable: bool) -> float:
        """Append transactions, and make them durable.  The tail is settled.

        `show` makes them visible in this process, as reading the file would.
        durable: False if a power cut may take them away; the mark says so.
        Returns the seconds that the sync took.
        Raises CommitOutcomeUnknownError (without an id) when it is not certain whether they were
        committed.  With all other exceptions, StorageError for what the operating system refuses,
        none was, unless the batch is appended.
        """
        content = batch.content
        start = self.end
        assert batch.transactions[0].offset == start == self._tail.size
        end = start + len(content)
        tid = batch.transactions[-1].tid
        mark = encode_mark(self.header.file_id, Mark(end, tid, 0 if durable else NOT_SYNCED))
        monotonic = self.file.system.monotonic
        sync_s = 0.0
        is_syncing = False
        try:
            self.file.append(content)
            if durable:
                before = monotonic()
                is_syncing = True
                self.file.sync()  # before the mark: none must read what a power cut could take
                is_syncing = False
                sync_s = monotonic() - before
            self.file.append(mark)
            batch.is_appended = True
        except BaseException as error:
            if batch.is_appended:
                raise
            try:
                is_known = self._withdraw(batch.transactions[0].end, is_whole=not is_syncing)
            except BaseException:  # an interrupt, again
                is_known = False
            if not is_known:
                raise CommitOutcomeUnknownError(None, str(error)) from error
            if isinstance(error, OSError):
                raise StorageError(
                    f"{self.path}: the transaction could not be written, and was not committed: "
                    f"{error}"
                ) from error
            raise
        return sync_s

    def show(self, batch: Batch) -> None:
        """Make visible what was appended, without reading it.  The lock is not needed for it."""
        last = batch.transactions[-1]
        end = last.end + MARK_SIZE
        with self._growing:
            if self._tail.size < end:  # else another thread has read it already
                self._publish_until(last.tid, list(batch.transactions))
                self._settled = self._settled._replace(end=end)
                self._tail = Tail([], end, end)
                self.file.extend_map(end)

    def _withdraw(self, end: int, *, is_whole: bool) -> bool:
        """After a failure: make sure that what was appended is not committed.

        end: where the first of the transactions was to end.  is_whole: whether no sync has failed,
        so that what is there may also be marked.  False when it is not certain.
        """
        # A failed sync may have lost everything since the last visible transaction, so all of it is
        # sealed, and its bytes are not synced once more as if nothing had happened.
        self._refused = refused = self._visible_end
        is_sealed = False
        with contextlib.suppress(OSError, StorageError):
            size = self.file.status().size
            if size < end:
                self._refused = None
                return True  # it was never whole, and whoever appends next will seal it
            self.catch_up()
            if self._visible_end != refused:
                return False  # its mark was written after all
            self._append_void(refused, size)
            is_sealed = True
            self.file.sync()
            self._refused = None
            self.catch_up()
            return True
        if is_whole and not is_sealed:
            self._refused = None  # others may be reading it already: who comes next marks it
        return False  # nor is the void durable, if there is one: it is appended again
