"""Verify compares the index file with the log beside it, and says that it can be deleted."""

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from durus.file_format import Finding
from durus.file_storage import FileStorage
from durus.file_system import FileStatus, OperatingSystem
from durus.index_checkpoint import index_path, write_checkpoint
from durus.index_file import PAGE_SIZE, IndexFile, IndexHeader, decode_header, encode_header
from durus.interfaces import Oid, Tid
from durus.log_verify import verify_file
from durus.testing.storage_contract import commit, create, make_record, value_of

Entries = dict[int, int]
SYSTEM = OperatingSystem()


def checkpoint(storage: FileStorage) -> None:
    """Let the index file cover what is there, though it is not much."""
    write_checkpoint(storage._shared.current())


def write_database(path: Path) -> list[Oid]:
    """A database with an index file that covers all of it but one commit."""
    with closing(FileStorage(path)) as storage:
        oids = create(storage, 5)
        for number, oid in enumerate(oids):
            commit(storage, {oid: make_record(f"value {number}")})
        checkpoint(storage)
        commit(storage, {oids[0]: make_record("after")})
    return oids


def index_of(path: Path) -> Path:
    return Path(index_path(str(path)))


def read_header(path: Path) -> IndexHeader:
    header = decode_header(index_of(path).read_bytes()[:PAGE_SIZE])
    assert header is not None
    return header


def write_header(path: Path, header: IndexHeader) -> None:
    with index_of(path).open("r+b") as file:
        file.write(encode_header(header))


def rewrite_entries(path: Path, change: Callable[[Entries], None]) -> None:
    """Make the index anew, with other entries."""
    old = IndexFile.open(SYSTEM, str(index_of(path)), writable=False)
    entries = dict(old.items())
    change(entries)
    aside = f"{path}.new"
    IndexFile.create(SYSTEM, aside, None, old.header.file_id).update(
        sorted(entries.items()),
        old.header.covers,
        next_oid=old.header.next_oid,
        features_read_only=0,
        sync=False,
    )
    os.replace(aside, index_of(path))


def verify(path: Path) -> list[Finding]:
    """What verify finds; it changes nothing."""
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.parent.iterdir()}
    findings = list(verify_file(str(path)))
    after = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.parent.iterdir()}
    assert after == before
    return findings


def find_in_index(path: Path) -> Finding:
    """The only finding, which says that the index file can be deleted; and so it can."""
    (finding,) = verify(path)
    assert (finding.offset, finding.tid) == (None, None)
    assert f"the index file {index_of(path)} " in finding.problem
    assert "no damage of the database: delete the index file" in finding.problem
    index_of(path).unlink()
    assert verify(path) == []
    return finding


def test_an_index_that_covers_a_part_of_the_log_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_database(path)
    assert index_of(path).exists()
    assert verify(path) == []


def test_an_old_copy_of_the_index_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "file"
    oids = write_database(path)
    old = index_of(path).read_bytes()
    with closing(FileStorage(path)) as storage:
        new = list(storage.reserve_oids(1))
        commit(storage, {new[0]: make_record("new"), oids[1]: make_record("1")}, created=new)
        commit(storage, {oids[1]: make_record("2")})
        checkpoint(storage)
    assert index_of(path).read_bytes() != old
    index_of(path).write_bytes(old)
    assert verify(path) == []


def test_an_index_whose_update_was_interrupted_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "file"
    oids = write_database(path)
    before = read_header(path)
    with closing(FileStorage(path)) as storage:
        commit(storage, {oids[1]: make_record("newer")})
        checkpoint(storage)
    after = read_header(path)
    assert after.covers != before.covers
    write_header(path, after._replace(covers=before.covers))
    assert verify(path) == []


def test_slots_behind_the_place_until_which_it_was_updated_are_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    oids = write_database(path)
    before = read_header(path)
    with closing(FileStorage(path)) as storage:
        commit(storage, {oids[1]: make_record("newer")})
        checkpoint(storage)
    write_header(path, before)
    assert "leads to nowhere" in find_in_index(path).problem


def test_an_entry_that_leads_to_an_older_revision_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    oids = write_database(path)
    stale = dict(IndexFile.open(SYSTEM, str(index_of(path)), writable=False).items())
    with closing(FileStorage(path)) as storage:
        commit(storage, {oids[1]: make_record("newer"), oids[3]: make_record("newer")})
        checkpoint(storage)
        # So that the newest revision is in neither case the one that the index should know.
        commit(storage, {oids[3]: make_record("newest")})
    index = index_of(path).read_bytes()
    for oid in (oids[1], oids[3]):
        number = int.from_bytes(oid)

        def make_stale(entries: Entries, number: int = number) -> None:
            entries[number] = stale[number]

        index_of(path).write_bytes(index)
        rewrite_entries(path, make_stale)
        finding = find_in_index(path)
        assert finding.oid == oid
        assert f"at offset {stale[number]}, and the log has it at offset " in finding.problem


@pytest.mark.parametrize("place", ["another object", "no record", "the file header"])
def test_an_entry_that_leads_to_something_else_is_found(tmp_path: Path, place: str) -> None:
    path = tmp_path / "file"
    oids = write_database(path)
    numbers = [int.from_bytes(oid) for oid in oids]

    def change(entries: Entries) -> None:
        entries[numbers[2]] = {
            "another object": entries[numbers[3]],
            "no record": entries[numbers[2]] + 1,
            "the file header": 8,
        }[place]

    rewrite_entries(path, change)
    assert find_in_index(path).oid == oids[2]


def test_an_entry_that_is_missing_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    oids = write_database(path)

    def change(entries: Entries) -> None:
        del entries[int.from_bytes(oids[4])]

    rewrite_entries(path, change)
    finding = find_in_index(path)
    assert finding.oid == oids[4]
    assert "lacks oid" in finding.problem


def test_an_entry_of_an_object_that_does_not_exist_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_database(path)

    def change(entries: Entries) -> None:
        entries[1 << 40] = max(entries.values())

    rewrite_entries(path, change)
    finding = find_in_index(path)
    assert finding.oid == (1 << 40).to_bytes(8)
    assert "the log has it nowhere" in finding.problem


def test_a_next_oid_that_is_in_use_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_database(path)
    with closing(FileStorage(path)) as storage:
        checkpoint(storage)  # else what comes after it says the next oid as well
    write_header(path, read_header(path)._replace(next_oid=3))
    assert "leads to the next oid 3, and it is " in find_in_index(path).problem


@pytest.mark.parametrize("damage", ["cut off", "zeros", "empty", "a directory"])
def test_an_index_that_cannot_be_read_is_found(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "file"
    write_database(path)
    index = index_of(path)
    content = index.read_bytes()
    if damage == "a directory":
        index.unlink()
        index.mkdir()
        (finding,) = verify_file(str(path))
        assert "no damage of the database" in finding.problem
        return
    index.write_bytes(
        {"cut off": content[:-1], "zeros": content[:PAGE_SIZE] + bytes(PAGE_SIZE), "empty": b""}[
            damage
        ]
    )
    assert "damaged" in find_in_index(path).problem


def test_the_index_of_another_database_is_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    path, other = tmp_path / "a" / "file", tmp_path / "b" / "file"
    write_database(path)
    write_database(other)
    shutil.copy(index_of(other), index_of(path))
    assert "of another file, or of another state of this one" in find_in_index(path).problem


def test_the_index_of_a_later_state_of_the_log_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    oids = write_database(path)
    backup = path.read_bytes()
    with closing(FileStorage(path)) as storage:
        commit(storage, {oids[1]: make_record("lost")})
        checkpoint(storage)
    path.write_bytes(backup)
    with closing(FileStorage(path)) as storage:  # it goes on in another way
        for number in range(5):
            commit(storage, {oids[1]: make_record(f"another {number}")})
    assert "another state of this one" in find_in_index(path).problem


class Meanwhile(OperatingSystem):
    """Lets something be done before each of its reads."""

    def __init__(self) -> None:
        self.step: Callable[[], None] | None = None
        self.steps = 0

    def read(self, fd: int, size: int, offset: int) -> bytes:
        step, self.step = self.step, None  # its own reads are nothing to it
        if step is not None:
            step()
            self.steps += 1
            self.step = step
        return super().read(fd, size, offset)


def test_what_others_commit_and_index_meanwhile_is_no_finding(tmp_path: Path) -> None:
    path = tmp_path / "file"
    oids = write_database(path)
    system = Meanwhile()
    with closing(FileStorage(path)) as storage:

        def go_on() -> None:
            new = list(storage.reserve_oids(1))
            writes = {oids[system.steps % 5]: make_record("changed"), new[0]: make_record("new")}
            commit(storage, writes, created=new)
            checkpoint(storage)

        system.step = go_on
        assert list(verify_file(str(path), system)) == []
    assert system.steps > 10
    assert verify(path) == []


def test_an_index_of_what_was_cut_off_is_not_used_when_the_file_has_grown_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    oids = write_database(path)
    with closing(FileStorage(path)) as storage:
        commit(storage, {oids[1]: make_record("lost", [oids[2]])})
        checkpoint(storage)
    # As a copy of the folder, made while it was in use, the log first: the transaction that the
    # index knows is only begun there, and will be sealed.
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 60)
    with closing(FileStorage(path)) as storage:
        for number in range(3):
            commit(storage, {oids[3]: make_record(number)})
        right = dict(storage.gen_oid_record())
    assert "another state of this one" in verify(path)[0].problem
    with closing(FileStorage(path, readonly=True)) as storage:
        assert dict(storage.gen_oid_record()) == right


def test_an_index_that_ends_within_another_entry_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "file"
    oids = write_database(path)
    with closing(FileStorage(path)) as storage:
        storage.reserve_oids(1000)
        checkpoint(storage)
    with path.open("r+b") as file:  # a copy that ends in the middle of the reservation
        file.truncate(path.stat().st_size - 10)
    with closing(FileStorage(path)) as storage:
        for number in range(3):
            commit(storage, {oids[3]: make_record(number)})
        right = dict(storage.gen_oid_record())
    with closing(FileStorage(path)) as storage:
        assert dict(storage.gen_oid_record()) == right
        commit(storage, {oids[4]: make_record("more")})
    assert [f for f in verify_file(str(path)) if "the index file" not in f.problem] == []


class AfterCall(OperatingSystem):
    """Lets something be done after the next call of this name, as another thread might."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps: list[Callable[[], None]] = []
        self.synced: dict[tuple[int, int], int] = {}
        """How long each file was when it was last synced."""

    def _end(self, name: str) -> None:
        if name == self.name and self.steps:
            self.steps.pop()()

    def create(self, path: str, like: FileStatus | None = None, *, append: bool = True) -> int:
        fd = super().create(path, like, append=append)
        self._end("create")
        return fd

    def sync(self, fd: int) -> None:
        super().sync(fd)
        status = self.status(fd)
        self.synced[status.identity] = status.size
        self._end("sync")


@pytest.mark.parametrize(("name", "is_new"), [("create", True), ("sync", True), ("sync", False)])
def test_an_index_is_right_though_another_thread_sees_new_commits_while_it_is_written(
    tmp_path: Path, name: str, is_new: bool
) -> None:
    path = tmp_path / "file"
    oids = write_database(path)
    if is_new:
        index_of(path).unlink()
    system = AfterCall(name)
    with closing(FileStorage(path, system=system)) as storage, closing(FileStorage(path)) as other:

        def catch_up() -> None:
            commit(other, {oids[1]: make_record("meanwhile")})
            storage.snapshot().close()

        commit(storage, {oids[2]: make_record("last")})
        system.steps.append(catch_up)
        checkpoint(storage)
        assert not system.steps
    assert list(verify_file(str(path))) == []
    log = path.stat()
    assert read_header(path).covers.end <= system.synced[log.st_dev, log.st_ino]


def read_all(path: Path, oids: list[Oid]) -> dict[Oid, tuple[Tid, object]]:
    with (
        closing(FileStorage(path, readonly=True)) as storage,
        closing(storage.snapshot()) as snapshot,
    ):
        found = {
            oid: (revision.tid, value_of(revision.record))
            for oid, revision in snapshot.load_many(reversed(oids))
        }
        assert {oid for oid, _ in storage.gen_oid_record()} == found.keys()
    return found


def test_every_flipped_bit_of_the_index_is_found_and_changes_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "file"
    oids = [Oid(bytes(8)), *write_database(path)]
    right = read_all(path, oids)
    content = index_of(path).read_bytes()
    assert len(content) == 2 * PAGE_SIZE
    # All that is not zero, bit by bit; and, so that it does not take long, some bits of the rest.
    bits = [8 * place + bit for place, byte in enumerate(content) if byte for bit in range(8)]
    bits += range(0, 8 * len(content), 149)
    with index_of(path).open("r+b", buffering=0) as file:
        for bit in bits:
            place = bit // 8
            os.pwrite(file.fileno(), bytes([content[place] ^ 1 << bit % 8]), place)
            (finding,) = verify_file(str(path))
            assert "the index file" in finding.problem
            assert read_all(path, oids) == right
            os.pwrite(file.fileno(), content[place : place + 1], place)
    assert list(verify_file(str(path))) == []
