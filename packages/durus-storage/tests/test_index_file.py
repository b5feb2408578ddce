"""The index file agrees with a dict, whatever is updated, interrupted, cached or read meanwhile."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durus import index_file
from durus.file_system import OperatingSystem
from durus.index_file import (
    FAN_OUT,
    PAGE_SIZE,
    Anchor,
    IndexDamagedError,
    IndexFile,
    decode_header,
    encode_header,
)
from durus.interfaces import Tid

FILE_ID = bytes(range(16))
SYSTEM = OperatingSystem()
Entries = dict[int, int]

# Neighbours, what is at the ends of pages, and what is far apart.
near = st.integers(0, 2 * FAN_OUT)
edges = st.builds(
    lambda power, factor, shift: max(0, FAN_OUT**power * factor + shift),
    st.integers(0, 5),
    st.integers(0, 3),
    st.integers(-2, 2),
)
numbers = near | edges | st.integers(0, 2**48 - 1)
groups_of_numbers = st.lists(st.lists(numbers, min_size=1, max_size=30), min_size=1, max_size=6)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "index")


def make_index(path: str, system: OperatingSystem = SYSTEM) -> IndexFile:
    return IndexFile.create(system, path, None, FILE_ID)


def open_index(path: str, *, writable: bool = False) -> IndexFile:
    return IndexFile.open(SYSTEM, path, writable=writable)


def anchor_at(end: int) -> Anchor:
    return Anchor(end, max(0, end - 10), Tid(end), end)


def update(index: IndexFile, entries: Entries, end: int) -> None:
    """Cover the first `end` bytes of a log."""
    index.update(sorted(entries.items()), anchor_at(end), next_oid=end, features_read_only=0)


def contents_of(index: IndexFile) -> Entries:
    """What it holds, whichever way it is read."""
    entries = dict(index.items())
    assert list(entries) == sorted(entries)
    for number, slot in entries.items():
        assert index.find(number) == slot
    return entries


class Log:
    """What an index is of: slots that only grow, being handed out one after the other."""

    def __init__(self) -> None:
        self.end = 100
        self.newest: Entries = {}
        self.slots: dict[int, list[int]] = {}

    def write(self, numbers: list[int]) -> Entries:
        """The slots of a transaction that writes these."""
        written: Entries = {}
        for number in dict.fromkeys(numbers):
            self.end += 50
            written[number] = self.end
            self.slots.setdefault(number, []).append(self.end)
        self.newest.update(written)
        self.end += 50
        return written

    def check(self, index: IndexFile) -> None:
        """Whether each slot is one that the log has, and no older than it may be."""
        covers = index.header.covers.end  # by and by it may learn that it covers more
        found = dict(index.items())
        assert list(found) == sorted(found)
        assert found.keys() <= self.newest.keys()
        for number, slots in self.slots.items():
            covered = max((slot for slot in slots if slot < covers), default=0)
            for slot in (found.get(number, 0), index.find(number)):
                assert slot == 0 or slot in slots
                assert covered <= slot < index.header.until.end


@given(groups_of_numbers)
@settings(max_examples=60, deadline=None)
def test_it_agrees_with_a_dict_after_several_updates(groups: list[list[int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "index")
        index = make_index(path)
        log = Log()
        for group in groups:
            update(index, log.write(group), log.end)
            assert contents_of(index) == log.newest
            assert contents_of(open_index(path)) == log.newest
        absent = {number + 1 for number in log.newest} | {0, 2**48 - 1, 2**64 - 1}
        for number in absent - log.newest.keys():
            assert index.find(number) == 0
        for start in [*log.newest, *absent][::10]:
            rest = {number: slot for number, slot in log.newest.items() if number >= start}
            assert dict(index.items(start)) == rest


def test_an_index_of_nothing_has_nothing(path: str) -> None:
    index = make_index(path)
    assert contents_of(index) == {}
    assert index.find(0) == index.find(2**64 - 1) == 0


def test_it_is_as_large_as_the_neighbourhoods_that_there_are(path: str) -> None:
    index = make_index(path)
    update(index, {number: number + 1 for number in range(10 * FAN_OUT)}, 10**6)
    assert os.path.getsize(path) == PAGE_SIZE * (1 + 10 + 1)
    # One that is far away adds a level, or two, and the way down to it.
    update(index, {FAN_OUT**3: 5}, 10**6 + 1)
    assert os.path.getsize(path) <= PAGE_SIZE * (1 + 10 + 1 + 2 + 3)


def test_an_update_writes_the_pages_that_change_and_no_others(path: str) -> None:
    index = make_index(path)
    update(index, {number: number + 1 for number in range(10 * FAN_OUT)}, 10**6)
    before = Path(path).read_bytes()
    update(index, {5: 10**6 + 5}, 2 * 10**6)
    after = Path(path).read_bytes()
    pages = range(0, len(before), PAGE_SIZE)
    changed = [page for page in pages if before[page:][:PAGE_SIZE] != after[page:][:PAGE_SIZE]]
    assert len(after) == len(before)
    assert len(changed) == 2  # one, and the header


def test_a_slot_never_becomes_older(path: str) -> None:
    index = make_index(path)
    update(index, {7: 500}, 1000)
    update(index, {7: 400, 8: 450}, 1001)
    assert contents_of(index) == {7: 500, 8: 450}


@given(groups_of_numbers, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_reader_that_keeps_an_old_header_finds_nothing_that_is_too_old(
    groups: list[list[int]], warm: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "index")
        index = make_index(path)
        log = Log()
        readers: list[IndexFile] = []
        for position, group in enumerate(groups):
            update(index, log.write(group), log.end)
            readers.append(open_index(path))
            for reader in readers:
                if position >= warm:  # before, they have no pages in their caches
                    log.check(reader)
        for reader in readers:
            log.check(reader)
            reader.renew()
            assert contents_of(reader) == log.newest


def test_a_reader_in_the_middle_of_all_items_sees_each_once_while_others_are_added(
    path: str,
) -> None:
    index = make_index(path)
    log = Log()
    update(index, log.write([number * 200 for number in range(20)]), log.end)
    reader = open_index(path)
    before = dict(log.newest)
    found: list[tuple[int, int]] = []
    for step, item in enumerate(reader.items()):
        found.append(item)
        update(index, log.write([step * 200, step * 200 + 1, 10**9 + step]), log.end)
    assert [number for number, _ in found] == sorted({number for number, _ in found})
    seen = dict(found)
    assert before.keys() <= seen.keys()
    for number, slot in seen.items():
        assert slot in log.slots[number]
        assert slot >= before.get(number, 0)


def test_few_pages_are_kept_and_what_is_found_is_right(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_file, "_CACHED_PAGES_MAX", 3)
    index = make_index(path)
    log = Log()
    update(index, log.write([number * FAN_OUT for number in range(100)]), log.end)
    update(index, log.write([number * FAN_OUT + 1 for number in range(0, 100, 7)]), log.end)
    reader = open_index(path)
    for number in [*log.newest, *reversed(log.newest)]:
        assert reader.find(number) == log.newest[number]
        assert len(reader._pages) <= 6
    assert contents_of(reader) == log.newest
    assert len(reader._pages) <= 6


class Stopping(OperatingSystem):
    """Stops at its n-th write or sync: before it, half-way, or after it."""

    def __init__(self, remaining: int, kept: float) -> None:
        self.remaining = remaining
        self.kept = kept

    def _is_last(self) -> bool:
        self.remaining -= 1
        if self.remaining < 0:
            raise OSError(errno.EIO, "stopped")
        return self.remaining == 0

    def write(self, fd: int, content: bytes, offset: int) -> int:
        if self._is_last():
            super().write(fd, content[: int(len(content) * self.kept)], offset)
            raise OSError(errno.EIO, "stopped")
        return super().write(fd, content, offset)

    def sync(self, fd: int) -> None:
        self._is_last()


def interrupted_updates(path: str, kept: float) -> Iterator[tuple[Log, Log]]:
    """Leave an index at the path, its second update interrupted after each write in turn.

    Yields the log as the first update covered it, and as the second was to.
    """
    for remaining in range(1, 100):
        with suppress(FileNotFoundError):
            os.unlink(path)
        log, covered = Log(), Log()
        first = [0, 1, 5, FAN_OUT, 3 * FAN_OUT, 600]
        second = [1, 2, FAN_OUT + 1, 20 * FAN_OUT, FAN_OUT**2 + 5, FAN_OUT**3]
        index = make_index(path)
        update(index, log.write(first), log.end)
        covered.write(first)
        written = log.write(second)
        system = Stopping(remaining, kept)
        index = IndexFile.open(system, path, writable=True)
        try:
            update(index, written, log.end)
        except OSError:
            yield covered, log
        else:
            assert remaining > 8
            return
    raise AssertionError("the update has no end")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_after_an_interrupted_update_it_is_used_rightly_or_refused(path: str, kept: float) -> None:
    used = refused = 0
    for _, log in interrupted_updates(path, kept):
        try:
            reader = open_index(path)
            log.check(reader)
            used += 1
        except IndexDamagedError:
            refused += 1
    assert used
    assert refused or kept in (0.0, 1.0)


@pytest.mark.parametrize("kept", [0.0, 1.0])
def test_after_an_interrupted_update_another_one_completes_it(path: str, kept: float) -> None:
    for covered, log in interrupted_updates(path, kept):
        index = open_index(path, writable=True)
        if index.header.covers.end < log.end:
            assert index.header.covers.end == covered.end
            # It may have other pages than the first attempt, and those of that one are lost.
            update(index, {n: s for n, s in log.newest.items() if s >= covered.end}, log.end)
        assert contents_of(index) == log.newest
        assert contents_of(open_index(path)) == log.newest


def test_a_reader_goes_on_while_an_update_is_interrupted(path: str) -> None:
    for covered, log in interrupted_updates(path, 1.0):
        # As one that was opened before: its header is that of the first update.
        reader = open_index(path)
        reader.header = reader.header._replace(
            covers=anchor_at(covered.end), until=anchor_at(covered.end)
        )
        log.check(reader)


def test_the_header_says_until_where_it_may_have_been_updated_before_it_is(path: str) -> None:
    for _, log in interrupted_updates(path, 1.0):
        header = decode_header(Path(path).read_bytes()[:PAGE_SIZE])
        assert header is not None
        assert header.covers.end <= header.until.end == log.end


def test_a_slot_behind_until_is_damage(path: str) -> None:
    index = make_index(path)
    update(index, {7: 500, 8: 600}, 1000)
    content = Path(path).read_bytes()
    header = decode_header(content[:PAGE_SIZE])
    assert header is not None
    old = header._replace(covers=anchor_at(550), until=anchor_at(550))
    Path(path).write_bytes(encode_header(old) + content[PAGE_SIZE:])
    reader = open_index(path)
    assert reader.find(7) == 500
    with pytest.raises(IndexDamagedError, match="leads to nowhere"):
        reader.find(8)
    with pytest.raises(IndexDamagedError, match="leads to nowhere"):
        list(reader.items())


def test_pages_of_the_index_of_another_file_are_damage(path: str, tmp_path: Path) -> None:
    update(make_index(path), {7: 500}, 1000)
    other = str(tmp_path / "other")
    update(IndexFile.create(SYSTEM, other, None, bytes(16)), {7: 400}, 1000)
    pages = Path(other).read_bytes()[PAGE_SIZE:]
    with Path(path).open("r+b") as file:
        file.seek(PAGE_SIZE)
        file.write(pages)
    with pytest.raises(IndexDamagedError, match="page 1"):
        open_index(path).find(7)


def test_pages_that_changed_places_are_damage(path: str) -> None:
    update(make_index(path), {7: 500, FAN_OUT: 600}, 1000)
    content = Path(path).read_bytes()
    pages = [content[start : start + PAGE_SIZE] for start in range(0, len(content), PAGE_SIZE)]
    assert len(pages) == 4
    for swapped in ([0, 2, 1, 3], [0, 1, 3, 2], [0, 3, 2, 1]):
        Path(path).write_bytes(b"".join(pages[page] for page in swapped))
        reader = open_index(path)
        with pytest.raises(IndexDamagedError):
            list(reader.items())


@pytest.mark.parametrize("damage", ["version", "page size", "magic", "height", "cut off", "empty"])
def test_another_version_or_no_index_is_refused(
    path: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make_index(path)
    update(index, {7: 500}, 1000)
    content = Path(path).read_bytes()
    match damage:
        case "version":
            monkeypatch.setattr(index_file, "VERSION", 2)
        case "page size":
            monkeypatch.setattr(index_file, "PAGE_SIZE", 8192)
        case "magic":
            monkeypatch.setattr(index_file, "MAGIC", b"\x89DUR\r\n\x1a\n")
    header = index.header._replace(height=9) if damage == "height" else index.header
    first = encode_header(header)
    monkeypatch.undo()
    size = {"cut off": PAGE_SIZE - 1, "empty": 0}.get(damage, len(content))
    Path(path).write_bytes((first + content[len(first) :])[:size])
    with pytest.raises(IndexDamagedError, match="header of the index is damaged"):
        open_index(path)


def test_a_page_that_is_being_written_is_read_again(path: str) -> None:
    update(make_index(path), {7: 500}, 1000)

    class Torn(OperatingSystem):
        """Sees half a page, the first times, as one may while another process writes it."""

        remaining = 2

        def read(self, fd: int, size: int, offset: int) -> bytes:
            content = super().read(fd, size, offset)
            if offset and self.remaining:
                self.remaining -= 1
                return content[:2000] + bytes(len(content) - 2000)
            return content

    assert IndexFile.open(Torn(), path, writable=False).find(7) == 500
