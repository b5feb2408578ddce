"""`CheckedLog` sees what `Log` sees, however the log comes in, and lets no damage pass."""

import random
from pathlib import Path

import pytest

from durus import log_check, log_runs
from durus.error import CorruptionError, StorageError, UnsupportedFormatError
from durus.file_system import OperatingSystem
from durus.index_file import Anchor
from durus.interfaces import NO_TID, Oid, Record, Tid
from durus.log import Log
from durus.log_check import CheckedLog
from durus.log_file import LogFile
from durus.log_format import (
    NOT_SYNCED,
    Mark,
    Reservation,
    TransactionHead,
    Void,
    encode_mark,
    encode_reservation,
    encode_transaction,
    encode_void,
)
from durus.log_header import FILE_HEADER_SIZE, FileHeader, encode_file_header
from durus.log_record import encode_record
from durus.log_verify import verify_file

HEADER = FileHeader(database_id=bytes(16), file_id=bytes(range(16)), created_ns=1)
CASES = 60
IGNORABLE_FLAG = 1 << 20


class Written:
    """A log that is being written, and what is visible in it."""

    def __init__(self, choose: random.Random) -> None:
        self.content = bytearray(encode_file_header(HEADER))
        self.choose = choose
        self.newest: dict[Oid, int] = {}
        self.tid = 0
        self.waiting: list[TransactionHead] = []
        self.visible: list[TransactionHead] = []

    def write_transaction(self, *, size_max: int = 200, count_max: int = 5) -> None:
        choose = self.choose
        self.tid += choose.randint(1, 3)
        numbers = sorted(choose.sample(range(40), choose.randrange(count_max + 1)))
        records = []
        for number in numbers:
            oid = Oid(number.to_bytes(8))
            state = choose.randbytes(choose.randrange(size_max))
            record = encode_record(oid, Record(b"class", state, b""))
            records.append((oid, self.newest.get(oid, 0), record))
        is_odd = not choose.randrange(8)
        transaction, content = encode_transaction(
            HEADER.file_id,
            len(self.content),
            records,
            tid=Tid(self.tid),
            time_ns=-1,
            id=choose.getrandbits(64),
            next_oid=40,
            user=choose.choice(("", "somebody")),
            note=choose.choice(("", "\N{SNOWMAN}")),
            extension=b"note\0\0\0\1x" if is_odd and choose.randrange(2) else b"",
            flags=IGNORABLE_FLAG if is_odd else 0,
        )
        self.content += content
        self.waiting.append(transaction.head)
        for entry in transaction.entries():
            self.newest[Oid(entry.oid.to_bytes(8))] = entry.slot

    def write_mark(self, flags: int = 0) -> None:
        """For what is waiting; or once more for the last one."""
        self.visible += self.waiting
        self.waiting.clear()
        mark = Mark(len(self.content), self.visible[-1].tid, flags)
        self.content += encode_mark(HEADER.file_id, mark)

    def write_reservation(self) -> None:
        self.content += encode_reservation(HEADER.file_id, Reservation(len(self.content), 40))

    def write_sealed(self) -> None:
        """Part of a transaction, or a whole one, and the void that seals it."""
        start, newest, waiting = len(self.content), self.newest.copy(), self.waiting.copy()
        self.write_transaction()
        end = len(self.content)
        del self.content[self.choose.randrange(start + 1, end + 1) :]
        self.content += encode_void(HEADER.file_id, Void(len(self.content), start))
        if len(self.content) == end:  # it is just what was lacking
            self.content += encode_void(HEADER.file_id, Void(len(self.content), start))
        self.newest, self.waiting = newest, waiting

    def write_anything(self) -> None:
        for _ in range(self.choose.randint(1, 6)):
            if not self.choose.randrange(6):
                self.write_sealed()
            self.write_transaction()
        self.write_mark(NOT_SYNCED if not self.choose.randrange(5) else 0)
        while not self.choose.randrange(3):
            self.choose.choice((self.write_mark, self.write_reservation, self.write_sealed))()


def write_log(seed: int, rounds: int = 6) -> Written:
    written = Written(random.Random(seed))
    for _ in range(rounds):
        written.write_anything()
    return written


def open_file(path: Path) -> LogFile:
    system = OperatingSystem()
    return LogFile(system, str(path), system.open(str(path), writable=False))


def check_in_pieces(path: Path, choose: random.Random) -> CheckedLog:
    """Check a file as if it grew."""
    log = CheckedLog(open_file(path))
    size = path.stat().st_size
    for piece in sorted(choose.choices(range(FILE_HEADER_SIZE, size + 1), k=5)):
        log.check(piece)
    log.finish(size)
    return log


@pytest.fixture(params=["windows as they are", "small windows"])
def windows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small windows":
        for module in (log_check, log_runs):
            monkeypatch.setattr(module, "WINDOW_SIZE", 500)
            monkeypatch.setattr(module, "_BATCH", 3)
        monkeypatch.setattr(log_check, "_STRIDE", 2000)


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("seed", range(CASES))
def test_it_sees_what_is_visible(path: Path, seed: int) -> None:
    written = write_log(seed)
    path.write_bytes(written.content)
    log = check_in_pieces(path, random.Random(seed))
    visible = written.visible
    assert (log.first, log.last, log.count) == (visible[0], visible[-1], len(visible))
    reader = Log(open_file(path))
    last = visible[-1]
    assert log.anchor == Anchor(reader.end, last.offset, last.tid, last.id)
    assert log.end == len(written.content)
    assert log.is_marked


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("seed", range(CASES))
def test_it_goes_on_where_another_one_has_ended(path: Path, seed: int) -> None:
    written = write_log(seed, 3)
    path.write_bytes(written.content)
    before = check_in_pieces(path, random.Random(seed))
    count = len(written.visible)
    written.write_anything()
    path.write_bytes(written.content)
    log = CheckedLog(open_file(path), before.anchor)
    assert log.anchor == before.anchor
    log.finish(len(written.content))
    assert (log.count, log.tid) == (len(written.visible) - count, written.visible[-1].tid)
    assert log.first == written.visible[count]


def test_it_does_not_go_on_in_another_log(path: Path) -> None:
    written = write_log(1)
    path.write_bytes(written.content)
    anchor = check_in_pieces(path, random.Random(1)).anchor
    for wrong in (
        anchor._replace(tid=Tid(anchor.tid - 1)),
        anchor._replace(transaction_id=anchor.transaction_id ^ 1),
        anchor._replace(offset=anchor.offset - 1),
        anchor._replace(end=anchor.end + 44),
    ):
        with pytest.raises(CorruptionError, match="another transaction was here"):
            CheckedLog(open_file(path), wrong)


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("seed", range(8))
def test_it_finds_the_newest_transaction_up_to_a_tid(path: Path, seed: int) -> None:
    written = write_log(seed)
    path.write_bytes(written.content)
    for tid in range(written.tid + 2):
        log = CheckedLog(open_file(path))
        is_certain = log.find_last(Tid(tid), len(written.content))
        older = [head for head in written.visible if head.tid <= tid]
        assert is_certain == (tid <= written.visible[-1].tid)
        assert log.last == (older[-1] if older else None)


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_is_found_as_verify_finds_it(path: Path, seed: int) -> None:
    written = write_log(seed, 2)
    found = 0
    for place in range(seed, len(written.content), 3):
        content = written.content.copy()
        content[place] ^= 1 << (place % 8)
        path.write_bytes(content)
        try:
            is_sound = not list(verify_file(str(path)))
        except StorageError:
            is_sound = False
        try:
            log = check_in_pieces(path, random.Random(place))
        except (CorruptionError, UnsupportedFormatError):
            assert not is_sound, place
            found += 1
        except StorageError:  # no header
            assert place < FILE_HEADER_SIZE
        else:
            assert is_sound, place
            assert log.tid == Log(open_file(path)).tid
    assert found > len(written.content) // 12


def flip(path: Path, needle: bytes) -> int:
    content = bytearray(path.read_bytes())
    place = content.index(needle)
    content[place] ^= 1
    path.write_bytes(content)
    return place


def write_one(
    path: Path, *states: bytes, is_marked: bool = True, flags: int = 0, extension: bytes = b""
) -> TransactionHead:
    """A file with one transaction, of objects with these states."""
    records = [
        (Oid(number.to_bytes(8)), 0, encode_record(Oid(number.to_bytes(8)), Record(b"c", s, b"")))
        for number, s in enumerate(states)
    ]
    content = encode_file_header(HEADER)
    transaction, encoded = encode_transaction(
        HEADER.file_id,
        len(content),
        records,
        tid=Tid(7),
        time_ns=7,
        id=7,
        next_oid=len(states),
        flags=flags,
        extension=extension,
    )
    content += encoded
    if is_marked:
        content += encode_mark(HEADER.file_id, Mark(len(content), Tid(7)))
    path.write_bytes(content)
    return transaction.head


@pytest.mark.usefixtures("windows")
def test_a_damaged_record_is_named(path: Path) -> None:
    write_one(path, b"first", b"needle" * 500, b"last")
    place = flip(path, b"needle")
    with pytest.raises(CorruptionError) as caught:
        check_in_pieces(path, random.Random(1))
    error = caught.value
    assert (error.oid, error.tid, error.path) == (bytes(7) + b"\1", 7, str(path))
    assert error.offset is not None
    assert error.offset < place <= error.offset + 40


@pytest.mark.usefixtures("windows")
def test_the_way_from_a_record_to_its_transaction_is_checked(path: Path) -> None:
    head = write_one(path, b"first", b"x" * 3000)
    content = bytearray(path.read_bytes())
    content[head.slots_offset + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptionError, match="does not lead") as caught:
        check_in_pieces(path, random.Random(1))
    assert (caught.value.offset, caught.value.tid) == (head.slots_offset, 7)


def test_somebody_else_may_be_blamed(path: Path) -> None:
    write_one(path, b"needle")
    flip(path, b"needle")
    log = CheckedLog(open_file(path), blame=lambda offset: ("another", offset - 100))
    with pytest.raises(CorruptionError) as caught:
        log.finish(path.stat().st_size)
    assert caught.value.path == "another"
    assert 0 < (caught.value.offset or 0) < 100


def test_what_is_not_marked_is_not_visible(path: Path) -> None:
    head = write_one(path, b"first", is_marked=False)
    log = check_in_pieces(path, random.Random(1))
    assert (log.tid, log.last, log.end) == (NO_TID, None, head.offset)
    log.adopt_tail()
    assert (log.tid, log.last, log.end) == (7, head, head.end)
    assert not log.is_marked


def test_what_only_a_newer_release_knows_is_refused(path: Path) -> None:
    write_one(path, b"first", flags=1)
    with pytest.raises(UnsupportedFormatError, match="flags 0x1"):
        check_in_pieces(path, random.Random(1))
    write_one(path, b"first", extension=b"NEED\0\0\0\1x")
    with pytest.raises(UnsupportedFormatError, match="NEED"):
        check_in_pieces(path, random.Random(1))


class Counted(OperatingSystem):
    """Counts the bytes that are read, and the most of them at once."""

    count = 0
    largest = 0

    def read(self, fd: int, size: int, offset: int) -> bytes:
        content = super().read(fd, size, offset)
        self.count += len(content)
        self.largest = max(self.largest, len(content))
        return content


@pytest.mark.parametrize("states", [[b"x" * 100] * 40_000, [b"x" * 6_000_000], [b"", b"x" * 3000]])
def test_all_is_read_twice_at_most_and_little_of_it_at_once(
    path: Path, states: list[bytes]
) -> None:
    head = write_one(path, *states)
    system = Counted()
    file = LogFile(system, str(path), system.open(str(path), writable=False))
    log = CheckedLog(file)
    size = path.stat().st_size
    for piece in range(0, size, 1 << 20):
        log.check(piece)
    log.finish(size)
    assert log.last == head
    assert system.count < 2.1 * size + (1 << 16)
    assert system.largest <= 1 << 20
