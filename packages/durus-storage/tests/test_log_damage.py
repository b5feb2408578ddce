"""Files that were cut off or damaged: what is read is right, or an error; nothing is repaired.

Each test runs over a small file that has everything: several commits, a reservation, a partial
transaction sealed by a void, and one whose sync failed and that was refused.
"""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from durus.error import CorruptionError, StorageError
from durus.file_storage import FileStorage
from durus.file_system import OperatingSystem
from durus.interfaces import ROOT_OID, Oid, Tid
from durus.log_format import (
    MARK_SIZE,
    RESERVATION_SIZE,
    VOID_SIZE,
)
from durus.log_header import FILE_HEADER_SIZE
from durus.log_verify import verify_file
from durus.testing.storage_contract import commit, create, make_record, value_of

State = dict[Oid, list[tuple[Tid, object]]]


class Unsynced(OperatingSystem):
    """Syncs nothing, so that thousands of files are soon written; fails when it was told to."""

    failing = False

    def sync(self, fd: int) -> None:
        if self.failing:
            self.failing = False
            raise OSError(5, "sync failed")

    def sync_directory(self, path: str) -> None:
        pass


def read_state(storage: FileStorage) -> State:
    """All revisions of all objects; and the other ways to read agree with them."""
    state: State = {}
    tids = set()
    with closing(storage.snapshot()) as snapshot:
        for transaction in storage.transactions():
            tids.add(transaction.tid)
            for oid in transaction.oids:
                state[oid] = [(r.tid, value_of(r.record)) for r in storage.revisions(oid)]
                assert snapshot.load(oid).tid == state[oid][0][0]
    assert {tid for revisions in state.values() for tid, _ in revisions} == tids
    return state


class Written(NamedTuple):
    """A file, and what was to be seen in it when it had grown to some size."""

    content: bytes
    states: list[tuple[int, State]]
    unknown: list[range]
    """Sizes at which a refused transaction is whole, and the void that refuses it is not."""
    start: int
    """Files that begin in the same way need to be tested from here on only."""

    def state_at(self, size: int) -> State:
        return [state for end, state in self.states if end <= size][-1]


def write_file(path: Path, *, last: str) -> Written:
    """Write a file whose last entry is that of a commit, of a refused one or of a reservation."""
    system = Unsynced()
    states: list[tuple[int, State]] = [(FILE_HEADER_SIZE, {})]
    storage = FileStorage(path, system=system)

    unknown: list[range] = []

    def note_state() -> None:
        states.append((path.stat().st_size - MARK_SIZE, read_state(storage)))

    def refuse() -> None:
        system.failing = True
        with pytest.raises(StorageError, match="was not committed"):
            commit(storage, {ROOT_OID: make_record("refused")})
        # The mark and the reservation before are repeated.
        void_end = path.stat().st_size - MARK_SIZE - RESERVATION_SIZE
        unknown.append(range(void_end - VOID_SIZE, void_end))

    commit(storage, {ROOT_OID: make_record("a")}, created=[ROOT_OID])
    note_state()
    (oid,) = storage.reserve_oids(1)
    commit(storage, {ROOT_OID: make_record("b", [oid]), oid: make_record(1)}, created=[oid])
    note_state()
    storage.close()
    with path.open("ab") as file:
        file.write(path.read_bytes()[FILE_HEADER_SIZE:][:60])  # as if killed while writing
    storage = FileStorage(path, system=system)
    commit(storage, {oid: make_record(2)})
    note_state()
    refuse()
    commit(storage, {oid: make_record(3)})
    note_state()
    if last == "refused":
        refuse()
    elif last == "reserved":
        storage.reserve_oids(1)
    storage.close()
    start = FILE_HEADER_SIZE if last == "committed" else states[-1][0]
    return Written(path.read_bytes(), states, unknown, start)


LASTS = ["committed", "refused", "reserved"]


@pytest.mark.parametrize("last", LASTS)
def test_a_file_cut_off_anywhere_shows_the_last_whole_commit(tmp_path: Path, last: str) -> None:
    written = write_file(tmp_path / "whole", last=last)
    path = tmp_path / "cut"
    sizes = [*range(1, FILE_HEADER_SIZE), *range(written.start, len(written.content))]
    for size in sizes:
        path.write_bytes(written.content[:size])
        os.utime(path, ns=(1, 1))
        for readonly in (True, False):
            if size < FILE_HEADER_SIZE:
                with pytest.raises(StorageError, match=str(path)):
                    FileStorage(path, readonly=readonly)
            else:
                with closing(FileStorage(path, readonly=readonly)) as storage:
                    state = read_state(storage)
                if any(size in sizes for sizes in written.unknown):
                    assert state.pop(ROOT_OID)[0][1] == "refused"
                    assert state == {
                        oid: found
                        for oid, found in written.state_at(size).items()
                        if oid != ROOT_OID
                    }
                else:
                    assert state == written.state_at(size)
            assert path.read_bytes() == written.content[:size]
            assert path.stat().st_mtime_ns == 1


@pytest.mark.parametrize("last", LASTS)
def test_after_a_cut_commits_go_on_and_keep_everything(tmp_path: Path, last: str) -> None:
    written = write_file(tmp_path / "whole", last=last)
    path = tmp_path / "cut"
    for size in range(written.start, len(written.content)):
        path.write_bytes(written.content[:size])
        with closing(FileStorage(path, system=Unsynced())) as storage:
            (oid,) = storage.reserve_oids(1)  # settles the tail
            before = read_state(storage)
            commit(storage, {oid: make_record("new")}, created=[oid])
            after = read_state(storage)
        # A whole transaction whose mark was cut off is taken over, however it had ended; that
        # which had been refused among them, when the void that said so was cut off as well.
        for at, found in written.state_at(size).items():
            assert before[at][-len(found) :] == found
        assert {at: found for at, found in after.items() if at != oid} == before
        assert path.read_bytes()[:size] == written.content[:size]
        with closing(FileStorage(path, readonly=True)) as storage:
            assert read_state(storage) == after
        assert list(verify_file(str(path))) == []


def insert_byte(content: bytes, place: int) -> bytes:
    return content[:place] + b"\r" + content[place:]


def delete_byte(content: bytes, place: int) -> bytes:
    return content[:place] + content[place + 1 :]


def insert_text(content: bytes, place: int) -> bytes:
    return content[:place] + b"<<<<<<< HEAD\n" + content[place:]


def delete_line(content: bytes, place: int) -> bytes:
    return content[:place] + content[place + 50 :]


@pytest.mark.parametrize("change", [insert_byte, delete_byte, insert_text, delete_line])
def test_what_has_changed_its_place_is_reported_and_never_sealed(
    tmp_path: Path, change: Callable[[bytes, int], bytes]
) -> None:
    path = tmp_path / "file"
    written = write_file(path, last="committed")
    right = written.states[-1][1]
    # Up to the last mark, which proves that all of this was whole once.
    removed = max(0, len(written.content) - len(change(written.content, FILE_HEADER_SIZE)))
    last_mark = len(written.content) - MARK_SIZE
    for place in range(FILE_HEADER_SIZE, last_mark - removed + 1):
        content = change(written.content, place)
        path.write_bytes(content)
        try:
            with closing(FileStorage(path, readonly=True)) as storage:
                assert read_state(storage) == right, place
            with closing(FileStorage(path, system=Unsynced())) as storage:
                commit(storage, {ROOT_OID: make_record("new")})
                found = read_state(storage)
            assert found[ROOT_OID].pop(0)[1] == "new"
            assert found == right, place
        except CorruptionError:
            assert path.read_bytes() == content  # nothing was sealed
            assert list(verify_file(str(path)))
        else:
            assert place + removed == last_mark  # all is there: only the mark is in another place


def damage(path: Path, change: Callable[[bytearray], None]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def test_a_damaged_record_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with closing(FileStorage(path)) as storage:
        a, b = create(storage, 2)
        commit(storage, {a: make_record("needle"), b: make_record("other")})
    place = path.read_bytes().index(b"needle")

    def change(content: bytearray) -> None:
        content[place] ^= 1

    damage(path, change)
    with closing(FileStorage(path)) as storage, closing(storage.snapshot()) as snapshot:
        with pytest.raises(CorruptionError) as caught:
            snapshot.load(a)
        assert caught.value.oid == a
        assert caught.value.path == str(path)
        assert caught.value.offset is not None
        assert 0 < place - caught.value.offset < 200
        assert value_of(snapshot.load(b).record) == "other"
        commit(storage, {a: make_record("mended")})
    (finding,) = verify_file(str(path))
    assert (finding.oid, finding.offset) == (a, caught.value.offset)


def test_a_hole_before_a_mark_is_corruption_and_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with closing(FileStorage(path)) as storage:
        (a,) = create(storage, 1)
        start = path.stat().st_size
        for value in range(3):
            commit(storage, {a: make_record(value)})

    def change(content: bytearray) -> None:
        content[start : start + 100] = bytes(100)

    damage(path, change)
    for readonly in (True, False):
        with pytest.raises(CorruptionError, match=f"offset {start}") as caught:
            FileStorage(path, readonly=readonly)
        assert caught.value.offset == start
    assert start in [finding.offset for finding in verify_file(str(path))]


def test_a_transaction_at_the_end_with_a_hole_in_its_records_is_not_taken_over(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    with closing(FileStorage(path)) as storage:
        (a,) = create(storage, 1)
        commit(storage, {a: make_record("x" * 5000)})

    def change(content: bytearray) -> None:
        del content[-44:]  # the mark
        content[-3000:-2000] = bytes(1000)

    damage(path, change)
    with closing(FileStorage(path)) as storage:
        commit(storage, {ROOT_OID: make_record("new", [a])})
        with closing(storage.snapshot()) as snapshot:
            assert value_of(snapshot.load(a).record) == 0
    assert list(verify_file(str(path))) == []
