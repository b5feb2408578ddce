"""Backups: what is written and continued, what is restored, and why it is not."""

import errno
import json
import os
import random
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import durus.backup
from durus import backup_folder, log_copy
from durus.backup import BackupResult, backup, restore, verify_backup
from durus.error import (
    CorruptionError,
    DatabaseReplacedError,
    HistoryUnavailableError,
    NotADatabaseError,
    StorageError,
    StorageLockedError,
    StorageOpenError,
    UnsupportedFormatError,
)
from durus.file_storage import FileStorage
from durus.file_system import FileStatus, OperatingSystem
from durus.index_checkpoint import index_path, write_checkpoint
from durus.interfaces import ROOT_OID, Oid, Progress, Tid
from durus.joined_log import JoinedLogFile
from durus.log_file import LogFile
from durus.log_format import MARK_SIZE
from durus.log_header import FileHeader
from durus.log_record import encode_record
from durus.log_verify import verify_file
from durus.log_writer import LogWriter
from durus.sqlite_storage import SqliteStorage
from durus.testing.storage_contract import commit, create, make_record, value, value_of
from durus.times import time_of

Values = dict[Oid, object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "backups"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """Where to restore to; what is there at the end is a sound database, with nothing beside it."""
    path = tmp_path / "restored" / "again.durus"
    path.parent.mkdir()
    yield path
    if path.exists():
        assert list(verify_file(str(path))) == []
    assert [name for name in os.listdir(path.parent) if name.endswith(".new")] == []


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tids_of(path: Path) -> list[Tid]:
    with closing(FileStorage(path, readonly=True)) as storage:
        return [transaction.tid for transaction in storage.transactions()]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def entries_of(folder: Path) -> list[dict[str, Any]]:
    """What the manifest says of each file."""
    files: list[dict[str, Any]] = json.loads((folder / "manifest.json").read_text())["files"]
    return files


def joined(folder: Path) -> bytes:
    """The log that the last full backup is, with its parts."""
    content = b""
    for entry in entries_of(folder):
        part = (folder / entry["name"]).read_bytes()
        content = part if entry["name"].startswith("full-") else content + part
    return content


# What is written


def test_a_full_backup_and_its_parts_are_the_log_byte_by_byte(
    path: Path, folder: Path, storage: FileStorage, oid: Oid
) -> None:
    kinds = []
    for number in range(4):
        made = backup(path, folder)
        kinds.append(made.kind)
        assert made.tid == storage.tid
        assert joined(folder) == path.read_bytes()
        for turn in range(number + 1):
            commit(storage, {oid: make_record(10 * number + turn)})
    assert kinds == ["full", "incremental", "incremental", "incremental"]
    assert list(verify_backup(folder)) == []
    (full,) = folder.glob("full-*.durus")
    assert list(verify_file(str(full))) == []
    with closing(FileStorage(full, readonly=True)) as opened:
        assert value(opened, oid) == 0


def test_names_and_manifest_say_what_is_in_a_file(
    path: Path, folder: Path, storage: FileStorage, oid: Oid
) -> None:
    backup(path, folder)
    before = storage.tid
    tids = [commit(storage, {oid: make_record(number)}).tid for number in range(3)]
    made = backup(path, folder)
    transactions = {t.tid: t for t in storage.transactions()}
    full, part = entries_of(folder)
    assert full["name"] == f"full-{before}.durus"
    assert part["name"] == f"inc-{tids[0]}-{tids[2]}.part"
    assert (part["start"], part["end"]) == (full["end"], path.stat().st_size)
    assert part["size"] == made.size == (folder / part["name"]).stat().st_size
    assert (part["first_tid"], part["last_tid"], part["transactions"]) == (tids[0], tids[2], 3)
    assert part["first_time_ns"] == transactions[tids[0]].time_ns
    assert part["last_time_ns"] == transactions[tids[2]].time_ns
    assert part["last_transaction_id"] == transactions[tids[2]].id
    new = str(folder / part["name"])
    assert made == BackupResult("incremental", "", new, part["size"], 3, tids[2])
    assert str(made) == f"{part['name']}: incremental backup, 3 transactions, {made.size} bytes"


def test_when_there_is_nothing_new_nothing_is_written(
    path: Path, folder: Path, storage: FileStorage
) -> None:
    first = backup(path, folder)
    assert str(first).startswith(f"full-{first.tid}.durus: full backup (the first one")
    before = {name: (folder / name).stat() for name in names_in(folder)}
    storage.reserve_oids(1)
    again = backup(path, folder)
    assert (again.kind, again.path, again.tid) == ("nothing", None, first.tid)
    assert str(again) == "there is nothing new since the last backup"
    assert {name: (folder / name).stat() for name in names_in(folder)} == before


def test_a_database_without_a_transaction_is_backed_up(
    path: Path, folder: Path, target: Path
) -> None:
    with closing(FileStorage(path)) as storage:
        assert backup(path, folder).path == str(folder / "full-0.durus")
        assert backup(path, folder).kind == "nothing"
        assert restore(folder, target).tid == 0
        target.unlink()
        (oid,) = create(storage, 1)
        assert backup(path, folder).kind == "incremental"
        assert restore(folder, target).tid == storage.tid
    with closing(FileStorage(target)) as restored:
        assert value(restored, oid) == 0


def test_a_full_backup_can_be_asked_for(
    path: Path, folder: Path, storage: FileStorage, oid: Oid
) -> None:
    first = backup(path, folder)
    second = backup(path, folder, full=True)
    assert (second.kind, second.reason) == ("full", "as was asked for")
    assert names_in(folder) == [
        f"full-{first.tid}-2.durus",
        f"full-{first.tid}.durus",
        "manifest.json",
    ]
    commit(storage, {oid: make_record("new")})
    backup(path, folder)
    assert joined(folder) == path.read_bytes()
    assert list(verify_backup(folder)) == []


def test_a_backup_has_the_permissions_of_the_database(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid
) -> None:
    path.chmod(0o640)
    backup(path, folder)
    commit(storage, {oid: make_record("new")})
    backup(path, folder)
    restore(folder, target)
    for file in [*folder.glob("full-*"), *folder.glob("inc-*"), target]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_what_others_commit_meanwhile_is_left_to_the_next_backup(
    path: Path, folder: Path, storage: FileStorage, oid: Oid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_copy, "_PIECE_SIZE", 64)
    before = storage.tid

    def commit_one(progress: Progress) -> None:
        commit(storage, {oid: make_record("meanwhile")})

    assert backup(path, folder, progress=commit_one).tid == before
    assert backup(path, folder).tid == storage.tid
    assert joined(folder) == path.read_bytes()


def test_a_pack_meanwhile_changes_nothing(
    path: Path, folder: Path, storage: FileStorage, oid: Oid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_copy, "_PIECE_SIZE", 64)
    for number in range(5):
        commit(storage, {oid: make_record(number)})
    before, tid = path.read_bytes(), storage.tid
    made = backup(path, folder, progress=lambda progress: storage.pack())
    assert (made.tid, joined(folder)) == (tid, before)
    assert backup(path, folder).reason == "the file was packed since the last one"
    assert joined(folder) == path.read_bytes()


def test_progress_is_reported(
    path: Path, folder: Path, target: Path, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_copy, "_PIECE_SIZE", 100)
    calls: list[tuple[Callable[[Callable[[Progress], None]], object], str]] = [
        (lambda report: backup(path, folder, progress=report), "copying"),
        (lambda report: restore(folder, target, progress=report), "restoring"),
        (lambda report: list(verify_backup(folder, progress=report)), "verifying"),
    ]
    for call, what in calls:
        seen: list[Progress] = []
        call(seen.append)
        assert {progress.what for progress in seen} == {what}
        done = [progress.done for progress in seen]
        assert done == sorted(done)
        assert done[-1] == seen[-1].total == path.stat().st_size


# What continues


def test_after_a_pack_there_is_a_full_backup(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid
) -> None:
    commit(storage, {oid: make_record("old")})
    backup(path, folder)
    storage.pack()
    made = backup(path, folder)
    assert (made.kind, made.reason) == ("full", "the file was packed since the last one")
    commit(storage, {oid: make_record("new")})
    assert backup(path, folder).kind == "incremental"
    restore(folder, target)
    assert target.read_bytes() == path.read_bytes()


def test_another_database_in_its_place_is_a_full_backup(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid, tmp_path: Path
) -> None:
    old = backup(path, folder).tid
    assert restore(folder, target).other_databases == ()
    target.unlink()
    with closing(FileStorage(tmp_path / "other")) as other:
        number, *_ = create(other, 3)
        before, between = other.tid, Tid(time.time_ns())
        commit(other, {number: make_record("newest")})
    (tmp_path / "other").rename(tmp_path / "file")
    made = backup(tmp_path / "file", folder)
    assert (made.kind, made.reason) == ("full", "the last one is of another database")
    first, second = (e["database_id"] for e in entries_of(folder))
    result = restore(folder, target)
    assert (result.tid, result.database_id, result.other_databases) == (made.tid, second, (first,))
    assert f" of database {second}, " in str(result)
    target.unlink()
    assert restore(folder, target, at=between).tid == before
    target.unlink()
    for at in (None, old, between, made.tid):
        result = restore(folder, target, at=at, database=first)
        assert (result.tid, result.database_id, result.other_databases) == (old, first, (second,))
        with closing(FileStorage(target)) as restored:
            assert value(restored, oid) == 0
        target.unlink()
    with pytest.raises(HistoryUnavailableError, match=f"there are backups of database {first}"):
        restore(folder, target, at=old)
    with pytest.raises(StorageOpenError, match=f"of database 00 in this .* {first} and {second}"):
        restore(folder, target, database="00")


def test_an_older_copy_in_its_place_is_a_full_backup(
    path: Path, folder: Path, oid: Oid, target: Path
) -> None:
    older = path.read_bytes()
    with closing(FileStorage(path)) as storage:
        newer = commit(storage, {oid: make_record("undone")}).tid
    backup(path, folder)
    path.write_bytes(older)
    assert "replaced by an older copy" in backup(path, folder).reason
    with closing(FileStorage(path)) as storage:
        latest = commit(storage, {oid: make_record("branch")}).tid  # of the same length
    assert backup(path, folder).kind == "incremental"
    assert list(verify_backup(folder)) == []
    assert restore(folder, target).tid == latest
    target.unlink()
    restore(folder, target, at=newer)
    with closing(FileStorage(target)) as restored:
        assert value(restored, oid) == "undone"


def test_an_older_copy_that_has_gone_on_is_a_full_backup(
    path: Path, folder: Path, oid: Oid
) -> None:
    older = path.read_bytes()
    with closing(FileStorage(path)) as storage:
        commit(storage, {oid: make_record("undone")})
    backup(path, folder)
    path.write_bytes(older)
    with closing(FileStorage(path)) as storage:
        for _ in range(3):
            commit(storage, {oid: make_record("branch")})
    made = backup(path, folder)
    assert made.kind == "full"
    assert "replaced by an older copy" in made.reason
    assert joined(folder) == path.read_bytes()


# What is not finished


def test_an_unfinished_tail_is_not_copied(path: Path, folder: Path, oid: Oid) -> None:
    sound = path.read_bytes()
    path.write_bytes(sound + sound[104:250])
    backup(path, folder)
    assert joined(folder) == sound
    with closing(FileStorage(path)) as storage:
        commit(storage, {oid: make_record("new")})  # and before that a void
    backup(path, folder)
    assert joined(folder) == path.read_bytes()


def test_a_mark_that_is_repeated_is_nothing_new(
    path: Path, folder: Path, target: Path, oid: Oid
) -> None:
    backup(path, folder)
    path.write_bytes(path.read_bytes() + b"what was not finished")
    with closing(FileStorage(path)) as storage:
        storage.reserve_oids(1)
        assert backup(path, folder).kind == "nothing"
        commit(storage, {oid: make_record("new")})
    assert backup(path, folder).transactions == 1
    assert joined(folder) == path.read_bytes()
    restore(folder, target)


def test_what_a_crash_has_left_without_its_mark_is_backed_up(
    path: Path, folder: Path, target: Path, oid: Oid
) -> None:
    with closing(FileStorage(path)) as storage:
        tid = commit(storage, {oid: make_record("acknowledged")}).tid
    path.write_bytes(path.read_bytes()[:-MARK_SIZE])  # the power was cut before it was on the disk
    made = backup(path, folder)
    assert (made.tid, joined(folder)) == (tid, path.read_bytes())
    assert list(verify_backup(folder)) == []
    for at in (None, tid):
        assert restore(folder, target, at=at).tid == tid
        with closing(FileStorage(target)) as storage:
            assert value(storage, oid) == "acknowledged"
            commit(storage, {oid: make_record("next")})
        assert list(verify_file(str(target))) == []
        target.unlink()
    with closing(FileStorage(path)) as storage:
        commit(storage, {oid: make_record("later")})
    made = backup(path, folder)
    assert made.reason == "the last one ends with what a crash had left without its mark"
    assert joined(folder) == path.read_bytes()


def test_such_a_transaction_may_be_all_that_is_new(path: Path, folder: Path, oid: Oid) -> None:
    backup(path, folder)
    with closing(FileStorage(path)) as storage:
        tid = commit(storage, {oid: make_record("acknowledged")}).tid
    path.write_bytes(path.read_bytes()[:-MARK_SIZE])
    made = backup(path, folder)
    assert (made.kind, made.tid, made.transactions) == ("incremental", tid, 1)
    assert joined(folder) == path.read_bytes()


class Watched(OperatingSystem):
    """Calls back before something is synced."""

    def __init__(self, before_sync: Callable[[], object]) -> None:
        self.before_sync: Callable[[], object] | None = before_sync

    def sync(self, fd: int) -> None:
        call, self.before_sync = self.before_sync, None
        if call is not None:
            call()
        super().sync(fd)


def test_what_is_just_being_committed_is_not_backed_up(path: Path, folder: Path, oid: Oid) -> None:
    sound = path.read_bytes()

    def back_up() -> None:
        backup(path, folder)
        assert joined(folder) == sound

    system = Watched(lambda: None)
    with closing(FileStorage(path, system=system)) as storage:
        system.before_sync = back_up
        commit(storage, {oid: make_record("not yet")})
        assert folder.exists()
        assert backup(path, folder).kind == "incremental"
    assert joined(folder) == path.read_bytes()


def test_a_transaction_that_a_power_cut_has_torn_before_its_mark_is_not_backed_up(
    path: Path, folder: Path, oid: Oid
) -> None:
    with closing(FileStorage(path, durability="none")) as storage:
        commit(storage, {oid: make_record("whole")})
        end = path.stat().st_size
        commit(storage, {oid: make_record("t" * 500)})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"t" * 500, b"t" * 200 + bytes(300)))
    backup(path, folder)
    assert joined(folder) == content[:end]
    assert list(verify_backup(folder)) == []
    with closing(FileStorage(path)) as storage:
        assert value(storage, oid) == "whole"
        commit(storage, {oid: make_record("next")})
    assert backup(path, folder).kind == "incremental"
    assert joined(folder) == path.read_bytes()


# Damage


def test_damage_in_what_is_new_is_found_and_the_backups_stay(path: Path, folder: Path) -> None:
    with closing(FileStorage(path)) as storage:
        a, b = create(storage, 2)
        backup(path, folder)
        start = path.stat().st_size
        tid = commit(storage, {a: make_record("needle"), b: make_record("other")}).tid
    sound, before = path.read_bytes(), contents_of(folder)
    for place in range(start, len(sound)):
        flip(path, place)
        with pytest.raises(CorruptionError) as caught:
            backup(path, folder)
        assert caught.value.path == str(path)
        assert contents_of(folder) == before
        if place == sound.index(b"needle"):
            assert (caught.value.oid, caught.value.tid) == (a, tid)
            assert caught.value.offset in range(place - 200, place)
        path.write_bytes(sound)
    assert backup(path, folder).kind == "incremental"


def test_damage_in_a_full_backup_is_found(path: Path, folder: Path, oid: Oid) -> None:
    with closing(FileStorage(path)) as storage:
        commit(storage, {oid: make_record("needle")})
        storage.pack()
        commit(storage, {oid: make_record("more")})
    sound = path.read_bytes()
    for place in range(0, len(sound), 3):
        flip(path, place)
        with pytest.raises(StorageError):
            backup(path, folder)
        assert not folder.exists() or names_in(folder) == []
        path.write_bytes(sound)


def test_damage_ends_a_backup_soon(
    path: Path, folder: Path, oid: Oid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_copy, "_STRETCH_SIZE", 2000)
    with closing(FileStorage(path)) as storage:
        for number in range(20):
            commit(storage, {oid: make_record(f"needle-{number:02}" + 500 * "x")})
    flip(path, path.read_bytes().index(b"needle-02"))
    seen: list[Progress] = []
    with pytest.raises(CorruptionError):
        backup(path, folder, progress=seen.append)
    assert seen[-1].done < seen[-1].total // 2


def test_what_is_not_read_as_it_was_written_is_no_backup(
    path: Path, folder: Path, oid: Oid
) -> None:
    class Forgetful(OperatingSystem):
        def append(self, fd: int, content: bytes | memoryview) -> int:
            return super().append(fd, bytes(content).replace(b"needle", b"noodle"))

    with closing(FileStorage(path)) as storage:
        commit(storage, {oid: make_record("needle")})
    with pytest.raises(StorageError, match="not what is read now"):
        backup(path, folder, system=Forgetful())
    assert names_in(folder) == []


def test_damage_in_the_folder_is_found_by_verify_and_restore(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid
) -> None:
    tids = [storage.tid]
    for number in range(3):
        backup(path, folder)
        tids.append(commit(storage, {oid: make_record(f"needle-{number}")}).tid)
    backup(path, folder)
    part = next(folder.glob(f"inc-{tids[2]}-*"))
    place = part.read_bytes().index(b"needle-1")
    flip(part, place)
    wrong_sum, record = verify_backup(folder)
    assert f"{part.name}: its checksum is wrong; put back a copy" in wrong_sum.problem
    assert f"{part.name}: the checksum of the record is wrong" in record.problem
    assert (record.oid, record.tid) == (oid, tids[2])
    assert record.offset in range(place - 200, place)
    with pytest.raises(CorruptionError) as caught:
        restore(folder, target)
    assert (caught.value.path, caught.value.oid, caught.value.tid) == (str(part), oid, tids[2])
    assert names_in(target.parent) == []
    for tid in tids[:2]:  # what is before the damage can be had
        assert restore(folder, target, at=tid).tid == tid
        target.unlink()


def test_what_comes_before_damage_in_the_same_file_can_be_restored(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid
) -> None:
    tids = [commit(storage, {oid: make_record(f"needle-{n}")}).tid for n in range(6)]
    (full,) = [Path(backup(path, folder).path or "")]
    content = full.read_bytes()
    flip(full, content.rindex(tids[3].to_bytes(8), 0, content.index(b"needle-3")))
    for tid in tids[:3]:
        assert restore(folder, target, at=tid).tid == tid
        target.unlink()
    with pytest.raises(CorruptionError, match=full.name):
        restore(folder, target, at=tids[3])


def test_zeros_at_the_end_of_a_part_are_not_taken_for_an_unfinished_tail(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid
) -> None:
    backup(path, folder)
    tids, ends = [], []
    for number in range(4):
        tids.append(commit(storage, {oid: make_record(number)}).tid)
        ends.append(path.stat().st_size)
    part = Path(backup(path, folder).path or "")
    start = entries_of(folder)[1]["start"]
    content = part.read_bytes()
    sound = ends[1] - start
    part.write_bytes(content[:sound] + bytes(len(content) - sound))
    for at in tids[:2]:
        assert restore(folder, target, at=at).tid == at
        target.unlink()
    for at in (Tid(tids[1] + 1), tids[2], Tid(tids[3] - 1), tids[3]):
        with pytest.raises(CorruptionError) as caught:
            restore(folder, target, at=at)
        assert caught.value.path == str(part)
        assert caught.value.offset == (sound if at < tids[3] else None)
        assert "put back a copy" in str(caught.value)
    for place in range(0, len(content), 31):
        part.write_bytes(content[:place] + bytes(len(content) - place))
        for at in tids:
            with suppress(CorruptionError):
                assert restore(folder, target, at=at).tid == at
                target.unlink()


def test_a_part_that_was_exchanged_is_found(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid
) -> None:
    backup(path, folder)
    parts = []
    for number in range(2):
        commit(storage, {oid: make_record(number)})
        parts.append(Path(backup(path, folder).path or ""))
    one, two = (part.read_bytes() for part in parts)
    assert len(one) == len(two)
    parts[0].write_bytes(two)
    with pytest.raises(CorruptionError, match=parts[0].name):
        restore(folder, target)
    assert any(parts[0].name in finding.problem for finding in verify_backup(folder))


def test_damage_in_what_nobody_reads_is_found_too(
    path: Path, folder: Path, target: Path, oid: Oid
) -> None:
    sound = path.read_bytes()
    path.write_bytes(sound + b"garbage" * 20)
    with closing(FileStorage(path)) as storage:
        commit(storage, {oid: make_record("new")})  # and before that a void
    (full,) = [Path(backup(path, folder).path or "")]
    flip(full, len(sound) + 50)
    (finding,) = verify_backup(folder)
    assert finding.problem.startswith(f"{full.name}: its checksum is wrong")
    with pytest.raises(CorruptionError, match="its checksum is wrong; put back a copy"):
        restore(folder, target)
    assert names_in(target.parent) == []


def edit_manifest(folder: Path, number: int = 0, **values: object) -> None:
    """Let it say something else of a file, with a checksum that is right."""
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"][number].update(values)
    content["sha256"] = backup_folder._checksum(content["files"])
    manifest.write_text(json.dumps(content))


def test_a_manifest_that_does_not_fit_the_files_is_found(
    path: Path, folder: Path, target: Path, oid: Oid
) -> None:
    tid = backup(path, folder).tid
    edit_manifest(folder, last_transaction_id=7)
    (finding,) = verify_backup(folder)
    assert (finding.tid, "it ends with this transaction" in finding.problem) == (tid, True)
    edit_manifest(folder, last_tid=tid - 1)
    with pytest.raises(CorruptionError, match=f"do not end with transaction {tid - 1}"):
        restore(folder, target)


@pytest.mark.parametrize("is_full", [True, False])
def test_a_file_that_is_missing_or_shorter_is_named(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid, is_full: bool
) -> None:
    full = backup(path, folder)
    commit(storage, {oid: make_record("new")})
    part = backup(path, folder)
    commit(storage, {oid: make_record("newer")})
    damaged = Path((full if is_full else part).path or "")
    content = damaged.read_bytes()
    for broken, error, reason in [
        (None, StorageOpenError, "this backup is missing; put back a copy of"),
        (content[:-1], CorruptionError, f"it has {len(content) - 1} bytes, and had {len(content)}"),
        (content + b"x", CorruptionError, f"it has {len(content) + 1} bytes"),
    ]:
        if broken is None:
            damaged.unlink()
        else:
            damaged.write_bytes(broken)
        for call in (lambda: backup(path, folder), lambda: restore(folder, target)):
            with pytest.raises(error, match=reason) as caught:
                call()
            assert damaged.name in str(caught.value)
        (finding,) = verify_backup(folder)
        assert damaged.name in finding.problem
    assert backup(path, folder, full=True).kind == "full"
    assert backup(path, folder).kind == "nothing"
    assert restore(folder, target).tid == storage.tid


def test_a_damaged_manifest_is_said_to_be_so(
    path: Path, folder: Path, target: Path, oid: Oid
) -> None:
    backup(path, folder)
    manifest = folder / "manifest.json"
    sound = manifest.read_bytes()
    broken_ones = [sound[:-20], b"", b"[]", b"{}", b"7", sound.replace(b"files", b"filez")]
    broken_ones.append(200_000 * b"[")
    edit_manifest(folder, surprise=1)
    broken_ones.append(manifest.read_bytes())
    for place in range(0, len(sound), 5):
        content = bytearray(sound)
        content[place] ^= 1 << (place % 8)
        broken_ones.append(bytes(content))
    for broken in broken_ones:
        if json_or_none(broken) == json_or_none(sound):
            continue  # a blank has become another one
        manifest.write_bytes(broken)
        before = contents_of(folder)
        for call in (
            lambda: backup(path, folder),
            lambda: restore(folder, target),
            lambda: list(verify_backup(folder)),
        ):
            with pytest.raises((CorruptionError, UnsupportedFormatError)) as caught:
                call()
            assert str(manifest) in str(caught.value)
            assert "BackupFile" not in str(caught.value)
        assert contents_of(folder) == before


def json_or_none(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def test_a_manifest_cannot_name_files_elsewhere(path: Path, folder: Path, oid: Oid) -> None:
    backup(path, folder)
    edit_manifest(folder, name="../full-1.durus")
    with pytest.raises(CorruptionError, match="cannot be"):
        backup(path, folder)


def test_a_manifest_of_a_newer_release_is_left_alone(path: Path, folder: Path, oid: Oid) -> None:
    backup(path, folder)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(UnsupportedFormatError, match="newer release"):
        backup(path, folder)


def test_a_manifest_that_was_lost_is_asked_for(
    path: Path, folder: Path, target: Path, oid: Oid
) -> None:
    made = backup(path, folder)
    (folder / "manifest.json").unlink()
    before = contents_of(folder)
    with pytest.raises(StorageOpenError, match=f"full-{made.tid}.durus, but no manifest.json"):
        backup(path, folder)
    with pytest.raises(StorageOpenError, match=r"no manifest.json in it"):
        restore(folder, target)
    assert contents_of(folder) == before


def test_what_is_not_in_the_manifest_is_found_and_stays(
    path: Path, folder: Path, storage: FileStorage, oid: Oid
) -> None:
    backup(path, folder)
    tid = commit(storage, {oid: make_record("new")}).tid
    stranger = folder / f"inc-{tid}-{tid}.part"
    stranger.write_bytes(b"what somebody else has put there")
    assert backup(path, folder).path == str(folder / f"inc-{tid}-{tid}-2.part")
    (finding,) = verify_backup(folder)
    assert finding.problem == f"{stranger.name} is not in the manifest"
    assert stranger.read_bytes() == b"what somebody else has put there"


# What is refused


def test_a_folder_with_something_else_is_refused(path: Path, folder: Path, oid: Oid) -> None:
    folder.mkdir()
    (folder / ".hidden").touch()
    (folder / "lost+found").mkdir()
    (folder / "letters.txt").write_text("Dear ...")
    with pytest.raises(StorageOpenError, match=r"something else in it, letters.txt"):
        backup(path, folder)
    assert names_in(folder) == [".hidden", "letters.txt", "lost+found"]
    (folder / "letters.txt").unlink()
    backup(path, folder)
    (folder / "letters.txt").write_text("Dear ...")
    assert backup(path, folder).kind == "nothing"


def test_a_folder_that_is_none_or_cannot_be_made_is_refused(
    path: Path, tmp_path: Path, target: Path, oid: Oid
) -> None:
    for call in (lambda: backup(path, path), lambda: restore(path, target)):
        with pytest.raises(StorageOpenError, match="this is no folder"):
            call()
    with pytest.raises(StorageOpenError, match="the folder cannot be made: No such file"):
        backup(path, tmp_path / "missing" / "folder")
    with pytest.raises(StorageOpenError, match="there is no such folder"):
        restore(tmp_path / "missing", target)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageOpenError, match=r"there is no manifest.json in it"):
        list(verify_backup(tmp_path / "empty"))


def write_sqlite(path: Path) -> None:
    with closing(SqliteStorage(path)) as storage:
        create(storage, 1)


@pytest.mark.parametrize(
    ("write", "error", "reason"),
    [
        (lambda path: None, StorageOpenError, "no such file"),
        (lambda path: path.mkdir(), StorageOpenError, "this is a directory"),
        (lambda path: path.touch(), NotADatabaseError, "empty"),
        (lambda path: path.write_text("text"), NotADatabaseError, "no Durus database"),
        (
            lambda path: path.write_bytes(b"SHELF-1\n"),
            StorageOpenError,
            r"Durus 4.x \(SHELF-1\): copy it while .*durus convert",
        ),
        (write_sqlite, StorageOpenError, "SQLite database: make a backup by SQLite's own means"),
    ],
)
def test_what_is_no_log_is_refused(
    tmp_path: Path,
    folder: Path,
    write: Callable[[Path], object],
    error: type[StorageError],
    reason: str,
) -> None:
    source = tmp_path / "source"
    write(source)
    with pytest.raises(error, match=reason) as caught:
        backup(source, folder)
    assert str(source) in str(caught.value)
    assert not folder.exists()


def test_an_sqlite_file_is_not_opened(tmp_path: Path, folder: Path) -> None:
    class Watchful(OperatingSystem):
        def open(self, path: str, *, writable: bool, append: bool = True) -> int:
            raise AssertionError("when it is closed, SQLite has lost its locks")

    source = tmp_path / "source"
    with closing(SqliteStorage(source)) as storage:
        create(storage, 1)
        with pytest.raises(StorageOpenError, match="SQLite"):
            backup(source, folder, system=Watchful())


def test_nothing_is_overwritten(path: Path, folder: Path, target: Path, oid: Oid) -> None:
    backup(path, folder)
    restore(folder, target)
    content = target.read_bytes()
    seen: list[Progress] = []
    with pytest.raises(StorageOpenError, match="something is there already") as caught:
        restore(folder, target, progress=seen.append)
    assert seen == []
    assert caught.value.errno == errno.EEXIST
    assert target.read_bytes() == content


def test_what_appears_meanwhile_is_not_overwritten(
    path: Path, folder: Path, target: Path, oid: Oid
) -> None:
    backup(path, folder)

    def write(progress: Progress) -> None:
        target.write_bytes(path.read_bytes())

    with pytest.raises(StorageOpenError, match="something is there already"):
        restore(folder, target, progress=write)
    assert target.read_bytes() == path.read_bytes()


def test_a_target_whose_folder_is_missing_is_refused(
    path: Path, folder: Path, tmp_path: Path, oid: Oid
) -> None:
    backup(path, folder)
    with pytest.raises(StorageOpenError, match="missing does not exist"):
        restore(folder, tmp_path / "missing" / "file")


def test_a_second_backup_at_the_same_time_is_refused(path: Path, folder: Path, oid: Oid) -> None:
    def try_another(progress: Progress) -> None:
        with pytest.raises(StorageLockedError, match="this process is making a backup"):
            backup(path, folder)

    assert backup(path, folder, progress=try_another).kind == "full"
    assert "backup.lock" not in names_in(folder)


def test_on_a_network_file_system_it_waits_for_who_has_the_file_open(
    path: Path, folder: Path, oid: Oid, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Network(OperatingSystem):
        def network_file_system(self, fd: int) -> str | None:
            return "nfs4"

    monkeypatch.setattr(durus.backup, "_LOCK_TIMEOUT_S", 0)
    with closing(FileStorage(path, system=Network())), pytest.raises(StorageLockedError):
        backup(path, folder, system=Network())
    with closing(FileStorage(path, readonly=True, system=Network())):
        assert backup(path, folder, system=Network()).kind == "full"
    with closing(FileStorage(path, system=Network())) as storage:
        commit(storage, {oid: make_record("new")})


def test_an_exception_of_the_callback_ends_it(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid
) -> None:
    class StopError(Exception):
        pass

    def stop(progress: Progress) -> None:
        raise StopError

    backup(path, folder)
    commit(storage, {oid: make_record("new")})
    before = contents_of(folder)
    with pytest.raises(StopError):
        backup(path, folder, progress=stop)
    with pytest.raises(StopError):
        restore(folder, target, progress=stop)
    assert contents_of(folder) == before
    assert names_in(target.parent) == []


# What is restored


def test_what_is_restored_is_the_database(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid
) -> None:
    for number in range(3):
        commit(storage, {oid: make_record(number)})
        backup(path, folder)
    result = restore(folder, target)
    assert (result.path, result.tid) == (str(target), storage.tid)
    assert result.size == path.stat().st_size
    assert target.read_bytes() == path.read_bytes()
    with closing(FileStorage(target)) as restored:
        assert [value_of(r.record) for r in restored.revisions(oid)] == [2, 1, 0, 0]
        commit(restored, {oid: make_record("next")})
        restored.pack()
        assert value(restored, oid) == "next"


def test_the_database_is_restored_as_it_was_at_any_transaction(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid
) -> None:
    for number in range(1, 10):
        commit(storage, {oid: make_record(number)})
        if number % 4 == 0:
            backup(path, folder)
    backup(path, folder)
    transactions = list(storage.transactions())
    for number, transaction in enumerate(transactions):
        later = transactions[number + 1].tid if number + 1 < len(transactions) else 1 << 63
        for at in (transaction.tid, Tid(later - 1), time_of(transaction.tid)):
            result = restore(folder, target, at=at)
            assert (result.tid, result.time_ns) == (transaction.tid, transaction.time_ns)
            with closing(FileStorage(target)) as restored:
                assert [t.tid for t in restored.transactions()] == [
                    t.tid for t in transactions[: number + 1]
                ]
                if number:
                    assert value(restored, oid) == number - 1
                commit(restored, {ROOT_OID: make_record("next")})
            assert list(verify_file(str(target))) == []
            target.unlink()


def test_a_time_ago_and_a_local_time_are_understood(
    path: Path, folder: Path, target: Path, oid: Oid
) -> None:
    tid = backup(path, folder).tid
    restore(folder, target, at=timedelta(0))
    target.unlink()
    restore(folder, target, at=time_of(tid).astimezone())
    target.unlink()
    with pytest.raises(ValueError, match="time zone"):
        restore(folder, target, at=datetime(2026, 1, 1))
    with pytest.raises(HistoryUnavailableError, match="the first transaction in them is"):
        restore(folder, target, at=timedelta(days=100 * 365))


def test_a_mark_for_several_transactions_is_cut_before_them(
    path: Path, folder: Path, target: Path
) -> None:
    system = OperatingSystem()
    file = LogFile(system, str(path), system.create(str(path)))
    writer = LogWriter(file, FileHeader(database_id=bytes(16), file_id=bytes(16), created_ns=1))
    for tid in range(1, 200):
        record = encode_record(ROOT_OID, make_record(tid))
        writer.append([(ROOT_OID, record)], tid=Tid(tid), time_ns=tid, id=tid, next_oid=1)
    writer.finish()
    backup(path, folder)
    for tid in (1, 2, 63, 64, 65, 100, 198, 199):
        restore(folder, target, at=Tid(tid))
        assert tids_of(target) == list(range(1, tid + 1))
        with closing(FileStorage(target)) as restored:
            assert value(restored, ROOT_OID) == tid
            commit(restored, {ROOT_OID: make_record("next")})
        assert list(verify_file(str(target))) == []
        target.unlink()


def test_what_was_committed_between_the_last_part_and_the_next_full_backup_is_restored(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid
) -> None:
    backup(path, folder)
    before = commit(storage, {oid: make_record("before")}).tid
    storage.pack()
    after = commit(storage, {oid: make_record("after")}).tid
    backup(path, folder)
    for at, tid in ((before, before), (Tid(after - 1), before), (after, after)):
        assert restore(folder, target, at=at).tid == tid
        target.unlink()


def test_what_was_packed_away_is_found_in_earlier_backups_or_said_to_be_gone(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid
) -> None:
    first = storage.tid
    commit(storage, {oid: make_record("unseen")})
    storage.pack()
    horizon = storage.tid
    backup(path, folder)
    with pytest.raises(HistoryUnavailableError, match=f"before tid {horizon} had been packed"):
        restore(folder, target, at=first)
    seen = commit(storage, {oid: make_record("seen")}).tid
    backup(path, folder)
    commit(storage, {oid: make_record("last")})
    storage.pack()
    backup(path, folder)
    restore(folder, target, at=seen)
    with closing(FileStorage(target)) as restored:
        assert value(restored, oid) == "seen"


def test_what_was_packed_away_before_the_next_backup_is_not_what_was_there_before(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid
) -> None:
    known = backup(path, folder).tid
    quiet = Tid(time.time_ns())
    tids = [commit(storage, {oid: make_record(number)}).tid for number in range(3)]
    storage.pack()
    backup(path, folder)
    for at, tid in ((known, known), (quiet, known), (tids[2], tids[2])):
        assert restore(folder, target, at=at).tid == tid
        target.unlink()
    for at in (tids[0], tids[1], Tid(tids[2] - 1)):
        with pytest.raises(HistoryUnavailableError) as caught:
            restore(folder, target, at=at)
        assert f"history before tid {tids[2]} had been packed away" in str(caught.value)
        assert f"what was there until tid {known} (" in str(caught.value)


def test_a_clock_that_was_wrong_at_a_backup_makes_it_no_older_than_what_is_in_it(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid
) -> None:
    backup(path, folder)
    old = commit(storage, {oid: make_record("old")}).tid
    backup(path, folder)
    commit(storage, {oid: make_record("new")})
    storage.pack()
    backup(path, folder)
    edit_manifest(folder, 2, made_ns=1)
    assert restore(folder, target, at=old).tid == old
    with closing(FileStorage(target)) as restored:
        assert value(restored, oid) == "old"


def test_a_backup_that_is_not_needed_may_be_missing_or_damaged(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid
) -> None:
    tids = [storage.tid]
    for full in (False, False, True, False):
        tids.append(commit(storage, {oid: make_record(0)}).tid)
        between = commit(storage, {oid: make_record(0)}).tid
        tids.append(between)
        backup(path, folder, full=full)
    files = [folder / entry["name"] for entry in entries_of(folder)]
    assert [file.name[:4] for file in files] == ["full", "inc-", "full", "inc-"]
    # What each can be restored without: the later full backup has all that the older one has.
    for file, unavailable in zip(files, ([], [], tids[5:], tids[7:]), strict=True):
        sound = file.read_bytes()
        for content in (None, bytes(len(sound)), sound[:-100] + bytes(100), sound + b"x"):
            if content is None:
                file.unlink()
            else:
                file.write_bytes(content)
            for at in tids:
                if at in unavailable and content is None:
                    with pytest.raises(StorageOpenError, match=file.name):
                        restore(folder, target, at=at)
                    continue
                with suppress(CorruptionError, StorageOpenError):
                    assert restore(folder, target, at=at).tid == at
                    target.unlink()
                    continue
                assert at in unavailable
            file.write_bytes(sound)


def test_another_full_backup_is_not_taken_for_one_of_the_same_history(
    path: Path, folder: Path, target: Path, oid: Oid
) -> None:
    older = path.read_bytes()
    with closing(FileStorage(path)) as storage:
        undone = [commit(storage, {oid: make_record("undone")}).tid for _ in range(2)]
    full = Path(backup(path, folder).path or "")
    path.write_bytes(older)
    with closing(FileStorage(path)) as storage:
        commit(storage, {oid: make_record("branch")})
    backup(path, folder)
    full.unlink()
    for at in undone:
        with pytest.raises(StorageOpenError, match="this backup is missing"):
            restore(folder, target, at=at)


def test_what_was_undone_by_an_older_copy_is_there_for_its_time_only(
    path: Path, folder: Path, target: Path, oid: Oid
) -> None:
    older = path.read_bytes()
    with closing(FileStorage(path)) as storage:
        undone = commit(storage, {oid: make_record("undone")}).tid
    backup(path, folder)
    path.write_bytes(older)
    backup(path, folder)
    first, second = entries_of(folder)
    for at, expected in [
        (undone + 1, "undone"),
        (first["made_ns"], "undone"),
        (second["made_ns"] - 1, "undone"),
        (second["made_ns"], 0),
    ]:
        restore(folder, target, at=at)
        with closing(FileStorage(target)) as restored:
            assert value(restored, oid) == expected
        target.unlink()


def test_an_index_file_that_lies_there_is_no_matter(
    path: Path, folder: Path, target: Path, tmp_path: Path, oid: Oid
) -> None:
    with closing(FileStorage(path)) as storage:
        old = commit(storage, {oid: make_record("old")}).tid
        commit(storage, {oid: make_record("new")})
        write_checkpoint(storage._shared.current())
        backup(path, folder)
    with closing(FileStorage(tmp_path / "other")) as other:
        create(other, 1)
        write_checkpoint(other._shared.current())
    for source in (path, tmp_path / "other"):
        index = Path(index_path(str(target)))
        index.write_bytes(Path(index_path(str(source))).read_bytes())
        restore(folder, target, at=old)
        with closing(FileStorage(target)) as restored:
            assert value(restored, oid) == "old"
            commit(restored, {oid: make_record("branch")})
            write_checkpoint(restored._shared.current())
        with closing(FileStorage(target)) as restored:
            assert value(restored, oid) == "branch"
        assert list(verify_file(str(target))) == []
        target.unlink()


def test_who_has_the_file_open_learns_that_an_older_one_took_its_place(
    path: Path, folder: Path, target: Path, oid: Oid
) -> None:
    with closing(FileStorage(path)) as storage:
        backup(path, folder)
        commit(storage, {oid: make_record("new")})
        restore(folder, target)
        target.rename(path)
        with pytest.raises(DatabaseReplacedError, match="an older copy"):
            commit(storage, {oid: make_record("lost")})
    with closing(FileStorage(path)) as storage:
        assert value(storage, oid) == 0
        commit(storage, {oid: make_record("branch")})
    assert backup(path, folder).kind == "incremental"
    assert list(verify_backup(folder)) == []


def test_backups_can_be_moved_and_read_where_nothing_can_be_written(
    path: Path, folder: Path, target: Path, tmp_path: Path, oid: Oid
) -> None:
    class ReadOnlyFolder(OperatingSystem):
        def create(self, path: str, like: FileStatus | None = None, *, append: bool = True) -> int:
            if "elsewhere" in path:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return super().create(path, like, append=append)

        def rename(self, source: str, target: str) -> None:
            assert "elsewhere" not in source
            super().rename(source, target)

    backup(path, folder)
    elsewhere = folder.rename(tmp_path / "elsewhere")
    system = ReadOnlyFolder()
    assert list(verify_backup(elsewhere, system=system)) == []
    restore(elsewhere, target, system=system)
    with pytest.raises(StorageError, match=r"no backup was made: .*Read-only"):
        backup(path, elsewhere, system=system)


def test_many_parts_need_few_open_files(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid
) -> None:
    class Counting(OperatingSystem):
        opened = 0
        opened_max = 0
        syncs = 0

        def open(self, path: str, *, writable: bool, append: bool = True) -> int:
            self.opened += 1
            self.opened_max = max(self.opened_max, self.opened)
            return super().open(path, writable=writable, append=append)

        def close(self, fd: int) -> None:
            self.opened -= 1
            super().close(fd)

        def sync(self, fd: int) -> None:
            self.syncs += 1

    system = Counting()
    for number in range(50):
        commit(storage, {oid: make_record(number)})
        backup(path, folder, system=system)
    system.syncs = 0
    restore(folder, target, system=system)
    assert target.read_bytes() == path.read_bytes()
    assert list(verify_backup(folder, system=system)) == []
    assert system.syncs == 1
    assert system.opened_max < 8


# What a restore makes aside


def aside_of(target: Path) -> Path:
    return target.with_name(f".durus-{target.name}.new")


def test_what_a_killed_restore_has_left_goes_with_the_next_one(
    path: Path, folder: Path, target: Path, oid: Oid
) -> None:
    backup(path, folder)
    aside_of(target).write_bytes(b"half")
    restore(folder, target)
    assert names_in(target.parent) == [target.name]


def test_of_two_restorations_to_one_name_the_second_is_refused(
    path: Path, folder: Path, target: Path, oid: Oid
) -> None:
    backup(path, folder)

    def try_another(progress: Progress) -> None:
        assert aside_of(target).exists()
        with pytest.raises(StorageLockedError, match="another process is restoring to this name"):
            restore(folder, target)

    restore(folder, target, progress=try_another)
    assert target.read_bytes() == path.read_bytes()
    assert names_in(target.parent) == [target.name]
    with closing(FileStorage(target)) as restored:
        commit(restored, {oid: make_record("new")})


def test_of_read_only_backups_a_database_is_made_that_its_owner_may_write(
    path: Path, folder: Path, target: Path, oid: Oid
) -> None:
    Path(backup(path, folder).path or "").chmod(0o440)
    restore(folder, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_mark_of_its_own_is_synced_before_the_file_appears_for_all(
    path: Path, folder: Path, target: Path, storage: FileStorage, oid: Oid
) -> None:
    class Noting(OperatingSystem):
        calls: list[str] = []

        def append(self, fd: int, content: bytes | memoryview) -> int:
            self.calls.append("append")
            return super().append(fd, content)

        def sync(self, fd: int) -> None:
            self.calls.append("sync")
            super().sync(fd)

        def link(self, source: str, target: str) -> None:
            self.calls.append("link")
            super().link(source, target)

        def unlock(self, fd: int) -> None:
            self.calls.append("unlock")
            super().unlock(fd)

    at = storage.tid
    commit(storage, {oid: make_record("newer")})
    backup(path, folder)
    restore(folder, target, at=at, system=Noting())
    assert Noting.calls == ["append", "sync", "append", "sync", "link", "unlock"]


# When calls of the operating system fail


class Failing(OperatingSystem):
    """The n-th call fails, before or after it was made; and all later ones, if it is to be so.

    Of what is appended by a call that fails, half arrives.
    """

    def __init__(self, call: int, *, after: bool, repeats: bool) -> None:
        self.calls_left = call
        self.after = after
        self.repeats = repeats
        self.has_failed = False
        self.failed = ""
        """The first call that has failed, unless it did so by itself."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or name in vars(self) or name in ("close", "unlock"):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls_left -= 1
            if self.calls_left and not (self.repeats and self.calls_left < 0):
                return found(*arguments, **options)
            self.has_failed = True
            if name == "append":
                os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
            elif self.after:
                result = found(*arguments, **options)
                if name in ("open", "create"):
                    os.close(result)
            self.failed = self.failed or name
            raise OSError(errno.ENOSPC, f"{name} failed")

        return call


WAYS = [(False, False), (True, False), (False, True), (True, True)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database, and beside it a folder `backups` of what it was at first."""
    path = tmp_path_factory.mktemp("source") / "file"
    with closing(FileStorage(path)) as storage:
        (oid,) = create(storage, 1)
        backup(path, path.parent / "backups")
        commit(storage, {oid: make_record("second")})
        backup(path, path.parent / "backups")
        commit(storage, {oid: make_record("third")})
    return path


def copy_folder(source: Path, folder: Path) -> None:
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize("is_full", [True, False])
@pytest.mark.parametrize(("after", "repeats"), WAYS)
def test_a_backup_fails_at_any_call(
    tmp_path: Path, source: Path, after: bool, repeats: bool, is_full: bool
) -> None:
    third = tids_of(source)[-1]
    second = tids_of(source)[-2]
    for call in range(1, 1000):
        folder = tmp_path / str(call)
        copy_folder(source.parent / "backups", folder)
        before = contents_of(folder)
        system = Failing(call, after=after, repeats=repeats)
        try:
            backup(source, folder, full=is_full, system=system)
            outcome = third
            assert system.failed in ("", "unlink")  # at the end, when it has been made
        except StorageError:
            outcome = second
        left = contents_of(folder)
        assert {name: left[name] for name in before if name != "manifest.json"} == {
            name: content for name, content in before.items() if name != "manifest.json"
        }
        if not system.has_failed:
            break
        # It may have been made all the same, if the failure was at the very end.
        assert list(verify_backup(folder)) == []
        at_once = restore(folder, tmp_path / f"{call}.at-once").tid
        assert at_once in (outcome, third)
        kind = backup(source, folder).kind
        assert kind == ("incremental" if at_once == second else "nothing")
        assert [name for name in names_in(folder) if name.endswith((".new", ".lock"))] == []
        assert restore(folder, tmp_path / f"{call}.restored").tid == third
    assert call > 30


@pytest.mark.parametrize(("after", "repeats"), WAYS)
def test_a_restore_fails_at_any_call(
    tmp_path: Path, source: Path, after: bool, repeats: bool
) -> None:
    folder = source.parent / "backups"
    before = contents_of(folder)
    for call in range(1, 1000):
        target = tmp_path / str(call) / "file"
        target.parent.mkdir()
        system = Failing(call, after=after, repeats=repeats)
        with suppress(StorageError):
            restore(folder, target, system=system)
            assert system.failed in ("", "unlink")
        if target.exists():  # when that is only not known to be durable
            assert list(verify_file(str(target))) == []
            assert tids_of(target) == tids_of(source)[:-1]
        if not system.has_failed:
            break
        assert contents_of(folder) == before
    assert call > 15


def test_a_full_disk_is_foreseen(path: Path, folder: Path, oid: Oid) -> None:
    class Full(OperatingSystem):
        def free_space(self, path: str) -> int:
            return 1000

    size = path.stat().st_size
    needs = f"takes {size} bytes, 1,048,576 are left to others, and 1,000 are free there"
    with pytest.raises(StorageError, match=f"{needs}; no backup was made"):
        backup(path, folder, system=Full())
    assert names_in(folder) == []


def test_a_disk_that_is_full_all_the_same_names_the_file(
    path: Path, folder: Path, oid: Oid
) -> None:
    class Full(OperatingSystem):
        def append(self, fd: int, content: bytes | memoryview) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match=rf"No space left .*: '{folder}/backup.new'"):
        backup(path, folder, system=Full())
    assert names_in(folder) == []


def test_what_a_killed_backup_has_left_is_cleared_away(
    path: Path, folder: Path, storage: FileStorage, oid: Oid
) -> None:
    full = Path(backup(path, folder).path or "")
    commit(storage, {oid: make_record("new")})
    made = Path(backup(path, folder).path or "")
    made.rename(f"{made}.new")  # it was killed when the manifest had been written
    for name in ("backup.new", "full-9.durus.new", "manifest.json.new", "backup.lock"):
        (folder / name).write_bytes(b"half")
    assert list(verify_backup(folder)) == []
    assert backup(path, folder).kind == "nothing"
    assert names_in(folder) == [full.name, made.name, "manifest.json"]


# The log that a backup is


@pytest.mark.parametrize("seed", range(20))
def test_files_are_read_as_one(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    content = choose.randbytes(200)
    starts = sorted({0, *choose.sample(range(1, 200), choose.randrange(5))})
    files = []
    for start, end in zip(starts, [*starts[1:], 200], strict=True):
        path = tmp_path / str(start)
        path.write_bytes(content[start:end])
        system = OperatingSystem()
        files.append(LogFile(system, str(path), system.open(str(path), writable=False)))
    file = JoinedLogFile(starts, files.__getitem__)
    assert file.status().size == 200
    for _ in range(200):
        place, size = choose.randrange(210), choose.randrange(210)
        assert file.read(place, size) == content[place : place + size]
        path_there, place_there = file.locate(place % 200)
        assert Path(path_there).read_bytes()[place_there] == content[place % 200]
