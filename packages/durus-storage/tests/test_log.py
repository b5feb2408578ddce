"""What is visible in a log that is made entry by entry: marks, flags, interrupts."""

from contextlib import closing
from pathlib import Path

import pytest

from durus.error import CorruptionError, UnsupportedFormatError
from durus.file_storage import FileStorage
from durus.file_system import OperatingSystem
from durus.growing_log import GrowingLog
from durus.interfaces import NO_TID, ROOT_OID, Record, Tid
from durus.log_file import LogFile
from durus.log_format import (
    FIXED_SIZE,
    NOT_SYNCED,
    VOID_SIZE,
    LoggedTransaction,
    Mark,
    Reservation,
    Void,
    encode_mark,
    encode_reservation,
    encode_transaction,
    encode_void,
)
from durus.log_header import (
    FileHeader,
    encode_file_header,
)
from durus.log_index import RecentChanges
from durus.log_record import encode_record
from durus.log_verify import verify_file
from durus.testing.storage_contract import commit, make_record

FILE_ID = bytes(range(16))


class FileInParts:
    """A log that grows by one entry after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header = FileHeader(database_id=FILE_ID, file_id=FILE_ID, created_ns=0)
        path.write_bytes(encode_file_header(header))
        self.slot = 0

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def append(self, content: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(content)

    def add_transaction(
        self, tid: int, *, kept: float = 1.0, flags: int = 0, extension: bytes = b""
    ) -> None:
        """One that writes the root; only the first part of it if `kept` is less than 1."""
        offset = self.size
        record = encode_record(ROOT_OID, Record(b"class", b"state %d" % tid, b""))
        _, content = encode_transaction(
            FILE_ID,
            offset,
            tid=Tid(tid),
            time_ns=0,
            id=tid,
            next_oid=1,
            extension=extension,
            flags=flags,
            records=[(ROOT_OID, self.slot, record)],
        )
        self.slot = offset + len(content) - 12 - len(record) - 4
        self.append(content[: int(len(content) * kept)])

    def add_mark(self, tid: int, flags: int = 0) -> None:
        self.append(encode_mark(FILE_ID, Mark(self.size, Tid(tid), flags)))

    def open(self, recent: RecentChanges | None = None, *, scan: bool = True) -> GrowingLog:
        system = OperatingSystem()
        path = str(self.path)
        return GrowingLog(
            LogFile(system, path, system.open(path, writable=True)), recent, scan=scan
        )


@pytest.fixture
def file(tmp_path: Path) -> FileInParts:
    return FileInParts(tmp_path / "file")


def visible(log: GrowingLog) -> list[int]:
    return [head.tid for head in log.walk_back()]


def test_a_mark_makes_visible_what_is_before_it_up_to_its_tid(file: FileInParts) -> None:
    for tid in (1, 2, 3):
        file.add_transaction(tid)
    file.add_mark(2)
    log = file.open()
    assert (log.tid, visible(log)) == (2, [2, 1])
    assert [t.tid for t in log.catch_up().pending] == [3]
    assert list(verify_file(str(file.path))) == []
    file.add_transaction(4)
    file.add_mark(2)
    assert [t.tid for t in log.catch_up().pending] == [3, 4]
    file.add_mark(4)
    for found in (log, file.open()):
        assert found.catch_up().pending == []
        assert (found.tid, visible(found)) == (4, [4, 3, 2, 1])
    assert list(verify_file(str(file.path))) == []


def test_a_log_that_is_read_while_it_grows_shows_what_one_shows_that_is_opened(
    file: FileInParts, tmp_path: Path
) -> None:
    for tid in (1, 2, 3):
        file.add_transaction(tid)
    file.add_mark(2)
    file.add_transaction(4)
    refused = file.size
    file.add_transaction(5)
    file.append(encode_void(FILE_ID, Void(file.size, refused)))
    file.append(encode_reservation(FILE_ID, Reservation(file.size, 70)))
    file.add_mark(3)
    file.add_mark(4)
    torn = file.size
    file.add_transaction(6, kept=0.6)
    file.append(encode_void(FILE_ID, Void(file.size, torn)))
    file.add_transaction(7)
    file.add_mark(7, NOT_SYNCED)
    content = file.path.read_bytes()

    growing = FileInParts(tmp_path / "growing")
    log = growing.open()
    before = growing.size
    for size in range(before, len(content) + 1):
        growing.append(content[before:size])
        before = size
        opened = growing.open()
        tails = [
            (t.offset, t.size, [p.tid for p in t.pending])
            for t in (log.catch_up(), opened.catch_up())
        ]
        assert tails[0] == tails[1]
        for name in ("tid", "end", "next_oid", "unindexed"):
            assert getattr(log, name) == getattr(opened, name), (size, name)
        assert list(log.items()) == list(opened.items())
    assert (log.tid, visible(log)) == (7, [7, 4, 3, 2, 1])


def test_a_torn_transaction_that_ends_where_its_void_does_is_not_found_backwards(
    file: FileInParts,
) -> None:
    file.add_transaction(1)
    file.add_mark(1)
    slot, torn = file.slot, file.size
    file.add_transaction(2)
    content = bytearray(file.path.read_bytes()[:-VOID_SIZE])
    content[torn + FIXED_SIZE : torn + FIXED_SIZE + 16] = bytes(16)  # of its directory, too
    file.path.write_bytes(content)
    file.append(encode_void(FILE_ID, Void(file.size, torn)))
    file.slot = slot
    file.add_transaction(3)
    file.add_mark(3)
    log = file.open()
    assert (log.tid, visible(log)) == (3, [3, 1])
    assert list(verify_file(str(file.path))) == []


def test_an_error_in_the_middle_of_reading_is_the_same_when_it_is_read_again(
    file: FileInParts,
) -> None:
    file.add_transaction(1)
    file.add_transaction(2)
    log = file.open()
    file.add_mark(1)
    file.add_transaction(3)
    file.add_mark(9)
    for _ in range(3):
        with pytest.raises(CorruptionError, match="mark for tid 9 is out of place"):
            log.catch_up()
        assert (log.tid, log.unindexed) == (1, 2)


def test_a_mark_for_a_transaction_that_is_not_there_is_damage(file: FileInParts) -> None:
    file.add_transaction(1)
    file.add_transaction(3)
    file.add_mark(2)
    with pytest.raises(CorruptionError, match="mark for tid 2 is out of place"):
        file.open()
    assert [finding.problem for finding in verify_file(str(file.path))]


def test_a_torn_transaction_before_a_mark_for_another_is_unfinished(file: FileInParts) -> None:
    file.add_transaction(1)
    slot = file.slot
    file.add_transaction(2, kept=0.5)
    file.slot = slot
    file.add_mark(1)
    assert list(verify_file(str(file.path))) == []
    log = file.open()
    assert (log.tid, visible(log)) == (1, [1])
    with closing(FileStorage(file.path)) as storage:
        commit(storage, {ROOT_OID: make_record("next")})
        assert len(list(storage.revisions(ROOT_OID))) == 2
    log.catch_up()
    assert len(visible(log)) == 2
    assert list(verify_file(str(file.path))) == []


def test_a_torn_transaction_before_its_own_mark_is_damage(file: FileInParts) -> None:
    file.add_transaction(1)
    start = file.size
    file.add_transaction(2, kept=0.5)
    file.add_mark(1)
    file.add_mark(2)
    with pytest.raises(CorruptionError, match="whole once") as caught:
        file.open()
    assert caught.value.offset == start
    assert start in [finding.offset for finding in verify_file(str(file.path))]


def test_a_mark_for_less_than_what_was_adopted_says_nothing_new(file: FileInParts) -> None:
    file.add_transaction(1)
    file.add_transaction(2)
    file.add_mark(1)
    log = file.open()
    log.adopt_tail()
    assert (log.tid, visible(log)) == (2, [2, 1])
    file.add_mark(2)
    file.add_transaction(3)
    file.add_mark(3)
    log.catch_up()
    assert (log.tid, visible(log)) == (3, [3, 2, 1])


@pytest.mark.parametrize("adopts", [False, True])
def test_an_interrupt_between_two_transactions_of_a_mark_loses_nothing(
    file: FileInParts, adopts: bool
) -> None:
    class Interrupted(RecentChanges):
        count = 0

        def add(self, transaction: LoggedTransaction) -> None:
            self.count += 1
            if self.count == 2:
                raise KeyboardInterrupt
            super().add(transaction)

    for tid in (1, 2, 3):
        file.add_transaction(tid)
    if not adopts:
        file.add_mark(3)
    log = file.open(Interrupted(NO_TID), scan=False)
    with pytest.raises(KeyboardInterrupt):
        log.adopt_tail()
    assert (log.tid, visible(log)) == (1, [1])
    log.adopt_tail()
    assert (log.tid, visible(log)) == (3, [3, 2, 1])
    file.add_mark(3)
    assert log.catch_up().pending == []


@pytest.mark.parametrize("flags", [1, 0x80])
def test_a_transaction_with_an_unknown_flag_in_the_low_byte_is_refused(
    file: FileInParts, flags: int
) -> None:
    file.add_transaction(1, flags=flags)
    file.add_mark(1)
    for readonly in (True, False):
        with pytest.raises(UnsupportedFormatError, match=f"flags {flags:#x}"):
            FileStorage(file.path, readonly=readonly)


@pytest.mark.parametrize("marked", [True, False])
def test_a_transaction_with_an_unknown_flag_in_the_second_byte_forbids_writing(
    file: FileInParts, marked: bool
) -> None:
    file.add_transaction(1, flags=0x8000)
    if marked:
        file.add_mark(1)
    with pytest.raises(UnsupportedFormatError, match=r"0x8000.*readonly=True opens it"):
        FileStorage(file.path)
    with closing(FileStorage(file.path, readonly=True)) as storage:
        assert storage.snapshot().load(ROOT_OID).tid == 1


def test_other_unknown_flags_are_ignored(file: FileInParts) -> None:
    file.add_transaction(1, flags=0xFFFF_0000)
    file.add_mark(1, 1 << 32)
    FileStorage(file.path).close()
    assert list(verify_file(str(file.path))) == []


def test_a_mark_with_an_unknown_flag_is_refused(file: FileInParts) -> None:
    file.add_transaction(1)
    file.add_mark(1, 1 << 31)
    with pytest.raises(UnsupportedFormatError, match=r"mark.*flags 0x80000000"):
        FileStorage(file.path, readonly=True)


def test_an_unknown_extension_is_copied_or_refused_as_its_first_letter_says(
    file: FileInParts,
) -> None:
    file.add_transaction(1, extension=b"note\0\0\0\3abc", flags=1 << 16)
    file.add_mark(1)
    with closing(FileStorage(file.path)) as storage:
        storage.pack()
    (head,) = file.open().walk_back()
    packed = file.open().read_transaction(head)
    assert (packed.extension, packed.head.flags) == (b"note\0\0\0\3abc", 1 << 16)
    second = FileInParts(file.path)
    second.add_transaction(1, extension=b"Undo\0\0\0\0")
    second.add_mark(1)
    with pytest.raises(UnsupportedFormatError, match="extension b'Undo'"):
        FileStorage(file.path, readonly=True)
