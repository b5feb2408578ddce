"""A flipped bit, anywhere in a file that has everything: it is found, and its place is named.

Exceptions are what nobody ever reads, because a void seals it, and what may be lost: an unfinished
end; a reservation, or a mark that repeats another one, at the end; and transactions that unsynced
marks alone follow.
"""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from durus import log_file
from durus.error import CorruptionError, StorageError
from durus.file_format import Finding
from durus.file_storage import FileStorage
from durus.file_system import OperatingSystem
from durus.growing_log import GrowingLog
from durus.index_checkpoint import index_path, write_checkpoint
from durus.interfaces import ROOT_OID, Oid, Tid
from durus.log import Log
from durus.log_file import LogFile
from durus.log_format import (
    TRAILER_SIZE,
    LoggedTransaction,
    Mark,
    Reservation,
    Void,
)
from durus.log_header import FileHeader, decode_file_header
from durus.log_open import make_missing_file
from durus.log_record import SLOT_HEAD_SIZE, decode_record
from durus.log_verify import verify_file
from durus.testing.storage_contract import commit, create, make_record, value_of

State = dict[Oid, list[tuple[Tid, object]]]


class Unsynced(OperatingSystem):
    """Syncs nothing, as nobody cuts the power; fails when it was told to."""

    failing = False

    def sync(self, fd: int) -> None:
        if self.failing:
            self.failing = False
            raise OSError(5, "sync failed")

    def sync_directory(self, path: str) -> None:
        pass


class Region(NamedTuple):
    """Bytes that belong together, and what is to be said when they are damaged."""

    start: int
    end: int
    entry: range
    """Where the entry is that they are a part of."""
    tid: Tid | None = None
    oid: Oid | None = None
    is_harmless: bool = False
    lost_since: Tid | None = None
    """The transactions from this one on may be lost, if it is harmless."""
    is_entry: bool = True
    """Or else what a void seals, or an unfinished end."""


def refuse(storage: FileStorage, system: Unsynced) -> None:
    system.failing = True
    with pytest.raises(StorageError, match="was not committed"):
        commit(storage, {ROOT_OID: make_record("refused")})


def read_header(path: Path) -> FileHeader:
    header = decode_file_header(path.read_bytes())
    assert header is not None
    return header


def write_partial(path: Path) -> None:
    """What a process leaves that is killed while it writes."""
    with path.open("ab") as file:
        file.write(path.read_bytes()[read_header(path).size :][:60])


def write_file(path: Path, last: str) -> None:
    """Write a packed file that has gone on, with entries of all kinds, and this one at its end."""
    system = Unsynced()
    if last == "compressed":
        record = make_record("")
        dictionary = record.class_pickle + record.state_pickle
        make_missing_file(system, str(path), dictionary=dictionary)
    with closing(FileStorage(path, system=system)) as storage:
        (oid,) = create(storage, 1)
        commit(storage, {oid: make_record("old")})
        storage.pack()  # several transactions share a mark
        (new,) = storage.reserve_oids(1)
        writes = {oid: make_record("a", [new]), new: make_record("b")}
        commit(storage, writes, created=[new])
    write_partial(path)
    with closing(FileStorage(path, system=system, durability="none")) as storage:
        commit(storage, {oid: make_record("unsynced", [new])})
        commit(storage, {new: make_record("unsynced, too")})
    with closing(FileStorage(path, system=system)) as storage:
        refuse(storage, system)
        commit(storage, {ROOT_OID: make_record("c", [oid])})
        match last:
            case "refused":
                refuse(storage, system)
            case "reserved":
                storage.reserve_oids(1)
            case "unsynced":
                storage._durable = False
                commit(storage, {ROOT_OID: make_record("d", [oid])})
                commit(storage, {ROOT_OID: make_record("e", [oid])})
    if last == "unfinished":
        write_partial(path)
    if last == "compressed":
        with closing(FileStorage(path)) as storage:
            log = storage._shared.current()
            for oid in log.oids():
                stored = decode_record(log.copy_record(log.find_slot(oid), oid))
                assert stored is not None
                assert stored.codec == 2


def read_regions(path: Path) -> list[Region]:
    """What stands where in a sound file, up to its end."""
    system = OperatingSystem()
    log = Log(LogFile(system, str(path), system.open(str(path), writable=False)))
    size = path.stat().st_size
    header = range(log.header.size)
    regions = [Region(0, header.stop, header)]
    entries: list[LoggedTransaction | Mark | Void | Reservation] = []
    voids = [entry for entry in log.search(0, size) if isinstance(entry, Void)]
    marks: dict[Tid, Mark] = {}
    for found in log.search(0, size):
        if isinstance(found, Mark):
            marks.setdefault(found.tid, found)  # others repeat it
    synced_end = max(mark.end for mark in marks.values() if mark.synced)
    position = header.stop
    while position < size:
        seal = next((void for void in voids if void.start <= position < void.offset), None)
        entry = None if seal is not None else log.read_entry(position, size)
        end = seal.offset if seal is not None else entry.end if entry is not None else size
        place = range(position, end)
        if isinstance(entry, Void):
            place = range(entry.start, end)  # walking backwards, one comes there
        if isinstance(entry, LoggedTransaction):
            regions += _split_transaction(entry, place, is_harmless=position >= synced_end)
        else:
            may_be_lost = isinstance(entry, Reservation) or (
                isinstance(entry, Mark) and entry not in marks.values()
            )
            is_harmless = entry is None or (may_be_lost and position >= synced_end)
            regions.append(
                Region(position, end, place, is_harmless=is_harmless, is_entry=entry is not None)
            )
        if entry is not None:
            entries.append(entry)
        position = end
    assert {type(entry) for entry in entries} == {LoggedTransaction, Mark, Void, Reservation}
    assert regions[-1].end == size
    return regions


def _split_transaction(
    transaction: LoggedTransaction, place: range, *, is_harmless: bool
) -> Iterator[Region]:
    tid = transaction.tid
    lost_since = tid if is_harmless else None
    position = place.start
    for entry in transaction.entries():
        end = entry.slot + SLOT_HEAD_SIZE + entry.size
        if position < entry.slot:
            yield Region(position, entry.slot, place, None, None, is_harmless, lost_since)
        oid = Oid(entry.oid.to_bytes(8))
        yield Region(entry.slot, end, place, tid, oid, is_harmless, lost_since)
        position = end
    yield Region(position, place.stop, place, None, None, is_harmless, lost_since)


def read_state(path: Path, *, use_map: bool = False) -> State:
    """All revisions of all objects, read in all ways that there are."""
    state: State = {}
    with (
        closing(FileStorage(path, readonly=True, mmap=use_map)) as storage,
        closing(storage.snapshot()) as snapshot,
    ):
        for transaction in storage.transactions():
            for oid in transaction.oids:
                state[oid] = [(r.tid, value_of(r.record)) for r in storage.revisions(oid)]
                assert snapshot.load(oid).tid == state[oid][0][0]
    return state


def before(state: State, tid: Tid | None) -> State:
    """What there was before this transaction; all of it if there is none."""
    if tid is None:
        return state
    kept = {oid: [one for one in found if one[0] < tid] for oid, found in state.items()}
    return {oid: found for oid, found in kept.items() if found}


class Flipper:
    """Flips bits of a file, one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = path.read_bytes()

    def flips(self, regions: list[Region], stride: int = 1) -> Iterator[tuple[int, Region]]:
        """Each bit, or one in so many, while it is flipped; and the region that it is in."""
        with self.path.open("r+b", buffering=0) as file:
            for region in regions:
                for bit in range(8 * region.start, 8 * region.end, stride):
                    place = bit // 8
                    os.pwrite(file.fileno(), bytes([self.content[place] ^ 1 << bit % 8]), place)
                    yield place, region
                    os.pwrite(file.fileno(), self.content[place : place + 1], place)


def try_to_read(path: Path, *, use_map: bool) -> State | StorageError:
    try:
        return read_state(path, use_map=use_map)
    except StorageError as error:
        return error


def verify(path: Path) -> list[Finding] | StorageError:
    try:
        return list(verify_file(str(path)))
    except StorageError as error:
        return error


LASTS = ["committed", "refused", "reserved", "unsynced", "unfinished", "compressed"]


def that_differ(regions: list[Region], last: str) -> list[Region]:
    """All regions, or those that a file has which is otherwise the same as the first one."""
    match last:
        case "committed":
            return regions
        case "compressed":
            return [region for region in regions if region.start == 0 or region.oid is not None]
        case _:
            return regions[-6:]


@pytest.mark.parametrize("last", LASTS)
def test_verify_finds_every_flipped_bit_and_names_its_place(tmp_path: Path, last: str) -> None:
    path = tmp_path / "file"
    write_file(path, last)
    regions = read_regions(path)
    assert list(verify_file(str(path))) == []
    for place, region in Flipper(path).flips(that_differ(regions, last)):
        findings = verify(path)
        if isinstance(findings, StorageError):
            assert region.start == 0, place
            assert str(path) in str(findings)
            continue
        assert region.start > 0
        assert (not findings) == region.is_harmless, (place, region)
        named = [
            finding
            for finding in findings
            if finding.offset is not None and finding.offset in region.entry
        ]
        assert named or region.is_harmless, (place, region, findings)
        if region.oid is not None and not region.is_harmless:
            names = [(finding.offset, finding.tid, finding.oid) for finding in findings]
            assert (region.start, region.tid, region.oid) in names, (place, region, findings)
    assert list(verify_file(str(path))) == []


def make_index(path: Path) -> None:
    system = OperatingSystem()
    write_checkpoint(GrowingLog(LogFile(system, str(path), system.open(str(path), writable=False))))
    assert Path(index_path(str(path))).exists()


@pytest.mark.parametrize("use_index", [False, True], ids=["", "index"])
@pytest.mark.parametrize("use_map", [False, True], ids=["", "map"])
@pytest.mark.parametrize("last", LASTS)
def test_who_reads_a_flipped_bit_is_told_the_place(
    tmp_path: Path, last: str, use_map: bool, use_index: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "_MAP_GROWTH_MIN", 1)
    path = tmp_path / "file"
    write_file(path, last)
    if use_index:
        make_index(path)
    right = read_state(path, use_map=use_map)
    regions = that_differ(read_regions(path), last)
    stride = 5 if use_map or use_index else 1 if last == LASTS[0] else 3
    for place, region in Flipper(path).flips(regions, stride):
        # What an index covers is durable for certain, and nobody looks for its end.
        may_be_reported = not region.is_harmless or (use_index and region.is_entry)
        found = try_to_read(path, use_map=use_map)
        match found:
            case CorruptionError(path=name, offset=offset):
                assert may_be_reported, (place, region)
                assert name == str(path)
                # Who walks backwards by a length that is damaged comes to another place.
                is_length = use_index and place >= region.entry.stop - TRAILER_SIZE
                assert offset in region.entry or is_length, (place, region, found)
            case StorageError():
                assert place < 16, (place, region)
                assert str(path) in str(found)
            case _:
                assert region.is_harmless, (place, region)
                assert found in (right, before(right, region.lost_since))


@pytest.mark.parametrize("last", ["committed", "compressed"])
def test_who_reads_a_damaged_record_is_told_the_oid_the_tid_and_the_offset(
    tmp_path: Path, last: str
) -> None:
    path = tmp_path / "file"
    write_file(path, last)
    regions = [
        region._replace(start=region.start + SLOT_HEAD_SIZE)  # else it belongs to no transaction
        for region in read_regions(path)
        if region.oid is not None
    ]
    named = set()
    for place, region in Flipper(path).flips(regions, 13):
        found = try_to_read(path, use_map=False)
        assert isinstance(found, CorruptionError), (place, region)
        if found.oid is not None:
            slot = region.start - SLOT_HEAD_SIZE
            assert (found.offset, found.oid, found.tid) == (slot, region.oid, region.tid)
            assert f"oid {int.from_bytes(region.oid or b'')}, tid {region.tid}" in str(found)
            named.add(region)
    assert len(named) == len(regions)


@pytest.mark.parametrize("last", LASTS)
def test_commits_go_on_after_a_flipped_bit_that_harms_nobody(tmp_path: Path, last: str) -> None:
    path = tmp_path / "file"
    write_file(path, last)
    right = read_state(path)
    regions = [region for region in read_regions(path) if region.is_harmless]
    tried = 0
    for _, region in Flipper(path).flips(regions, 37):
        tried += 1
        content = path.read_bytes()
        with closing(FileStorage(path, system=Unsynced())) as storage:
            commit(storage, {ROOT_OID: make_record("new")})
        found = read_state(path)
        assert found[ROOT_OID].pop(0)[1] == "new"
        assert found == before(right, region.lost_since)
        assert list(verify_file(str(path))) == []
        assert path.read_bytes().startswith(content)
        os.truncate(path, len(content))
    assert tried
