"""Conversion between all formats: nothing is lost, and the target is complete or not there."""

import datetime
import errno
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from durus.btree import BTree
from durus.connection import Connection
from durus.convert import Conversion, convert
from durus.crawl import crawl_snapshot
from durus.error import (
    CorruptionError,
    NotADatabaseError,
    StorageError,
    StorageOpenError,
)
from durus.file_format import StoredDatabase, StoredTransaction
from durus.file_storage import FileStorage
from durus.file_system import OperatingSystem
from durus.formats import FORMATS, find_format
from durus.interfaces import OID_LIMIT, ROOT_OID, HistoryStorage, Oid, Record, Tid
from durus.persistent import Persistent
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.persistent_set import PersistentSet
from durus.record import record_to_classic, split_oids
from durus.storage import open_storage
from durus.testing.storage_contract import commit, create, make_record, value_of

WRITTEN = ["log", "shelf", "dfs20", "sqlite"]
WITH_HISTORY = ["log", "sqlite"]
formats = pytest.mark.parametrize("to", WRITTEN)


class Person(Persistent):
    def __init__(self, name: str) -> None:
        self.name = name
        self.friends: list[Person] = []


class Address:
    """No persistent object: a part of the one that it belongs to."""

    def __init__(self, street: str) -> None:
        self.street = street


class Outer:
    class Inner(Persistent):
        value = 0


def fill(path: Path, count: int = 300) -> None:
    """A database with many kinds of objects, and some transactions."""
    with Connection(path) as connection:
        root = connection.root
        tree = root["tree"] = BTree()
        for number in range(count):
            tree[number] = PersistentList([number, str(number)])
        connection.commit()
        ann, bob = Person("Ann"), Person("Bob")
        ann.friends, bob.friends = [bob, bob], [ann]
        root["people"] = PersistentDict(ann=ann, bob=bob)
        root["set"] = PersistentSet(["a", "b"])
        root["values"] = [1.5, 2**70, "é", b"\xff", datetime.datetime(2024, 2, 29), None]
        root["address"] = Address("High Street")
        connection.commit()
        root["garbage"] = PersistentList(["no more"])
        connection.commit()
        del root["garbage"]
        inner = root["inner"] = Outer.Inner()
        inner.value = 7
        connection.commit()


def check_content(path: Path, count: int = 300) -> None:
    with Connection(path) as connection:
        root = connection.root
        assert {key: list(part) for key, part in root["tree"].items()} == {
            number: [number, str(number)] for number in range(count)
        }
        ann = root["people"]["ann"]
        assert ann.friends[0] is ann.friends[1] is root["people"]["bob"]
        assert ann.friends[0].friends == [ann]
        assert sorted(root["set"]) == ["a", "b"]
        assert root["values"] == [1.5, 2**70, "é", b"\xff", datetime.datetime(2024, 2, 29), None]
        assert root["address"].street == "High Street"
        assert root["inner"].value == 7
        assert type(root["inner"]) is Outer.Inner


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same database in every format."""
    folder = tmp_path_factory.mktemp("sources")
    log = folder / "log"
    fill(log)
    found = {"log": log}
    for name in ["shelf", "dfs20", "sqlite"]:
        found[name] = folder / name
        convert(log, found[name], to=name)
    found["sqlite4"] = folder / "sqlite4"
    with closing(sqlite3.connect(found["sqlite4"])) as file:
        file.execute("CREATE TABLE objects (id integer primary key, data blob, refs blob)")
        for oid, record in newest_records(log).items():
            classic = record_to_classic(oid, record, compress=True)
            size = int.from_bytes(classic[8:12])
            row = int.from_bytes(oid), classic[12 : 12 + size], classic[12 + size :]
            file.execute("INSERT INTO objects VALUES (?, ?, ?)", row)
        file.commit()
    return found


def newest_records(path: Path) -> dict[Oid, Record]:
    """What can be reached from the root."""
    with (
        closing(open_storage(path, readonly=True)) as storage,
        closing(storage.snapshot()) as snapshot,
    ):
        return {oid: revision.record for oid, revision in crawl_snapshot(snapshot)}


def oid_of(number: int) -> Oid:
    return Oid(number.to_bytes(8))


def check_sound(path: Path) -> None:
    assert list(find_format(path).verify(str(path))) == []


# All formats


@formats
@pytest.mark.parametrize("source", [*WRITTEN, "sqlite4"])
def test_every_format_becomes_every_other(
    tmp_path: Path, sources: dict[str, Path], source: str, to: str
) -> None:
    target = tmp_path / "target"
    before = sources[source].read_bytes()
    conversion = convert(sources[source], target, to=to)
    assert find_format(target).name == to
    check_sound(target)
    check_content(target)
    assert newest_records(target).keys() == newest_records(sources["log"]).keys()
    assert (conversion.source_format, conversion.target_format) == (source, to)
    assert conversion.warnings == ()
    assert conversion.history == (to in WITH_HISTORY and source != "sqlite4")
    assert sources[source].read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


@formats
def test_what_was_converted_can_be_changed(
    tmp_path: Path, sources: dict[str, Path], to: str
) -> None:
    target = tmp_path / "target"
    convert(sources["dfs20"], target, to=to, renumber=True)
    with Connection(target) as connection:
        connection.root["new"] = Person("Cid")
        connection.root["people"]["ann"].name = "Anna"
        connection.commit()
        connection.pack()
    check_content(target)
    with Connection(target) as connection:
        assert connection.root["new"].name == "Cid"
        assert connection.root["people"]["ann"].name == "Anna"
    check_sound(target)


@formats
def test_an_empty_database_stays_empty(tmp_path: Path, to: str) -> None:
    for source in WRITTEN:
        path = tmp_path / source
        FileStorage(path, format=source).close()
        target = tmp_path / f"{source}-{to}"
        conversion = convert(path, target, to=to)
        assert conversion.objects == 0
        check_sound(target)
        with Connection(target) as connection:
            connection.root["a"] = 1
            connection.commit()
        with Connection(target) as connection:
            assert connection.root["a"] == 1


def test_what_was_done_is_said(tmp_path: Path, sources: dict[str, Path]) -> None:
    reachable = len(newest_records(sources["log"]))
    conversion = convert(sources["log"], tmp_path / "a", to="log")
    assert conversion == Conversion(
        source_format="log",
        target_format="log",
        transactions=5,
        objects=reachable + 1,  # and what is garbage
        history=True,
    )
    conversion = convert(sources["log"], tmp_path / "b", history=False)
    assert asdict(conversion) == {
        "source_format": "log",
        "target_format": "log",
        "transactions": 1,
        "objects": reachable,
        "history": False,
        "warnings": (),
    }


def test_progress_is_told(tmp_path: Path, sources: dict[str, Path]) -> None:
    told: list[tuple[int, int | None]] = []
    convert(sources["log"], tmp_path / "a", progress=lambda *what: told.append(what))
    assert told == sorted(told)
    assert told[-1][0] >= 300
    assert told[-1][1] is None
    told.clear()
    convert(sources["log"], tmp_path / "b", to="shelf", progress=lambda *what: told.append(what))
    objects = len(newest_records(sources["log"]))
    assert (objects // 100 * 100, None) in told
    assert told[-1] == (objects, objects)


# History


def history_of(path: Path) -> list[Any]:
    """Everything that history can tell."""
    with closing(open_storage(path, readonly=True)) as storage:
        assert isinstance(storage, HistoryStorage)
        transactions = list(storage.transactions())
        oids = sorted({oid for transaction in transactions for oid in transaction.oids})
        return [
            [(t.tid, t.id, t.time_ns, t.user, t.note, list(t.oids)) for t in transactions],
            [(oid, list(storage.revisions(oid))) for oid in oids],
            [storage.find(t.id) for t in transactions],
            storage.tid,
        ]


@pytest.mark.parametrize("packed", [False, True])
def test_history_is_the_same_there_and_back(tmp_path: Path, packed: bool) -> None:
    paths = [tmp_path / name for name in ("log", "sqlite", "again", "sqlite-again")]
    with closing(FileStorage(paths[0])) as storage:
        a, b = create(storage, 2)
        for value in range(150):
            commit(storage, {a: make_record(f"{value} é"), b: make_record(value, [a])})
        if packed:
            storage.pack()
            horizon = storage.tid
        commit(storage, {a: make_record("last")})
        reserved = storage.reserve_oids(1)[0]
    convert(paths[0], paths[1], to="sqlite")
    convert(paths[1], paths[2], to="log")
    convert(paths[2], paths[3], to="sqlite")
    for path in paths[1:]:
        check_sound(path)
        assert history_of(path) == history_of(paths[0])
        if packed:
            with closing(open_storage(path)) as converted:
                assert isinstance(converted, HistoryStorage)
                with pytest.raises(StorageError, match="packed"):
                    converted.snapshot(Tid(horizon - 1))
                converted.snapshot(horizon).close()
        with closing(open_storage(path)) as converted:
            assert converted.reserve_oids(1)[0] > reserved


@pytest.mark.parametrize("to", WITH_HISTORY)
@pytest.mark.parametrize("source", ["shelf", "dfs20"])
def test_transactions_since_the_last_pack_are_kept(tmp_path: Path, source: str, to: str) -> None:
    path, target = tmp_path / "source", tmp_path / "target"
    with closing(FileStorage(path, format=source)) as storage:
        connection = Connection(storage)
        connection.root["count"] = 0
        connection.commit()
        connection.pack()
        for count in range(1, 4):
            connection.root["count"] = count
            connection.commit()
    conversion = convert(path, target, to=to)
    assert conversion.transactions == 4
    assert conversion.history
    with closing(open_storage(target)) as converted:
        assert isinstance(converted, HistoryStorage)
        for expected, transaction in enumerate(converted.transactions()):
            with closing(converted.snapshot(transaction.tid)) as snapshot:
                state = snapshot.load(ROOT_OID).record.state_pickle
                assert b"count" in state
                assert bytes([0x4B, expected]) in state  # BININT1
    with Connection(target) as connection:
        assert connection.root["count"] == 3


def test_without_history_there_are_only_the_newest_revisions(tmp_path: Path) -> None:
    path, target = tmp_path / "source", tmp_path / "target"
    with closing(FileStorage(path)) as storage:
        a, garbage = create(storage, 2)
        commit(storage, {ROOT_OID: make_record("root", [a]), a: make_record("new")})
        last = storage.reserve_oids(1)[0]
    convert(path, target, history=False)
    check_sound(target)
    with closing(FileStorage(target)) as converted:
        (transaction,) = converted.transactions()
        assert transaction.oids == [ROOT_OID, a]
        assert [value_of(r.record) for r in converted.revisions(a)] == ["new"]
        assert converted.reserve_oids(1)[0] > last  # an oid is never given again
    assert garbage not in newest_records(target)


def test_the_source_may_be_in_use(tmp_path: Path) -> None:
    """What is converted is what was there when it began."""
    for history in (True, False):
        path, target = tmp_path / f"source-{history}", tmp_path / f"target-{history}"
        fill(path)
        with closing(FileStorage(path)) as storage:

            def change(done: int, total: int | None) -> None:
                commit(storage, {ROOT_OID: make_record("changed")})
                storage.pack()

            convert(path, target, history=history, progress=change)
        check_content(target)


# New oids


@formats
@pytest.mark.parametrize("source", WRITTEN)
def test_renumbered_oids_have_no_gaps(
    tmp_path: Path, sources: dict[str, Path], source: str, to: str
) -> None:
    target = tmp_path / "target"
    conversion = convert(sources[source], target, to=to, renumber=True)
    assert not conversion.history
    before, after = newest_records(sources[source]), newest_records(target)
    assert sorted(after) == [oid_of(number) for number in range(len(before))]
    new_oids = dict(zip(sorted(before), sorted(after), strict=True))
    for oid, new_oid in new_oids.items():
        refs = [new_oids[ref] for ref in split_oids(before[oid].refs)]
        assert split_oids(after[new_oid].refs) == sorted(refs)
    check_sound(target)
    check_content(target)
    with closing(open_storage(target)) as storage:
        assert storage.reserve_oids(1) == [oid_of(len(before))]


def test_renumbering_twice_changes_nothing_more(tmp_path: Path, sources: dict[str, Path]) -> None:
    convert(sources["log"], tmp_path / "once", renumber=True)
    convert(tmp_path / "once", tmp_path / "twice", renumber=True)
    assert newest_records(tmp_path / "once") == newest_records(tmp_path / "twice")


def write_file(path: Path, name: str, records: Iterable[tuple[Oid, Record]]) -> None:
    write = FORMATS[name].write
    assert write is not None
    write(str(path), StoredDatabase(transactions=[StoredTransaction(records=records)]))


def make_root(*refs: Oid) -> Record:
    """A root whose state is a list of references to these objects."""
    names = b"cdurus.persistent\nPersistent\n\x86Qe"
    state = b"\x80\x04]" + b"".join(b"(C\x08" + ref + names for ref in refs) + b"."
    return Record(b"\x80\x02cdurus.persistent\nPersistent\n.", state, b"".join(refs))


def test_an_oid_that_is_too_large_for_a_log_can_be_renumbered(tmp_path: Path) -> None:
    path, target = tmp_path / "source", tmp_path / "target"
    large = oid_of(2**64 - 1)
    write_file(path, "dfs20", [(ROOT_OID, make_root(large)), (large, make_record("far away"))])
    for to in WITH_HISTORY:
        with pytest.raises(StorageError):
            convert(path, target, to=to)
        assert not target.exists()
    with pytest.raises(StorageError, match="renumber=True"):
        convert(path, target)
    convert(path, target, renumber=True)
    found = newest_records(target)
    assert list(found) == [ROOT_OID, oid_of(1)]
    assert value_of(found[oid_of(1)]) == "far away"


def test_a_reference_to_nothing_never_leads_to_something(tmp_path: Path) -> None:
    path = tmp_path / "source"
    a, nowhere = oid_of(7), oid_of(12345)
    write_file(path, "log", [(ROOT_OID, make_root(a, nowhere)), (a, make_record("there"))])
    kept = convert(path, tmp_path / "kept", history=False)
    assert kept.warnings == ("oid 12345 is referred to, but there is no such object",)
    assert newest_records(tmp_path / "kept")[ROOT_OID].refs == a + nowhere
    with closing(FileStorage(tmp_path / "kept")) as storage:
        assert storage.reserve_oids(1)[0] > nowhere
    renumbered = convert(path, tmp_path / "renumbered", renumber=True)
    assert renumbered.warnings == kept.warnings
    (first, second) = split_oids(newest_records(tmp_path / "renumbered")[ROOT_OID].refs)
    assert first == oid_of(1)
    assert int.from_bytes(second) > OID_LIMIT


# What is refused, and what is left then


def make_text(path: Path) -> None:
    path.write_text("no database")


def damage(path: Path) -> None:
    fill(path)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"High Street")] ^= 1
    path.write_bytes(content)


BAD_SOURCES: list[tuple[str, Callable[[Path], object], type[Exception], str]] = [
    ("missing", lambda path: None, StorageOpenError, "there is no such file"),
    ("directory", lambda path: path.mkdir(), StorageOpenError, "this is a directory"),
    ("empty", lambda path: path.touch(), NotADatabaseError, "the file is empty"),
    ("text", make_text, NotADatabaseError, "this is no Durus database"),
    ("damaged", damage, CorruptionError, "checksum"),
]


@formats
@pytest.mark.parametrize(
    ("make", "error", "message"), [b[1:] for b in BAD_SOURCES], ids=[b[0] for b in BAD_SOURCES]
)
def test_a_bad_source_leaves_nothing(
    tmp_path: Path, make: Callable[[Path], object], error: type[Exception], message: str, to: str
) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    make(source)
    folder.mkdir()
    with pytest.raises(error, match=message) as caught:
        convert(source, folder / "target", to=to)
    assert str(source) in str(caught.value)
    assert list(folder.iterdir()) == []


def test_a_bad_target_is_named(tmp_path: Path, sources: dict[str, Path]) -> None:
    taken, loop = tmp_path / "taken", tmp_path / "loop"
    taken.write_text("precious")
    loop.symlink_to("nowhere")
    for target in (taken, loop, tmp_path, sources["log"]):
        with pytest.raises(StorageOpenError, match="nothing is overwritten") as caught:
            convert(sources["log"], target)
        assert caught.value.errno == errno.EEXIST
        assert str(target) in str(caught.value)
    assert taken.read_text() == "precious"
    with pytest.raises(StorageOpenError, match=f"directory {tmp_path}/no does not exist") as caught:
        convert(sources["log"], tmp_path / "no" / "target")
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("to", ["sqlite4", "zodb", ""])
def test_a_format_that_cannot_be_written_is_refused(
    tmp_path: Path, sources: dict[str, Path], to: str
) -> None:
    with pytest.raises(ValueError, match=f"'{to}'.*only log, shelf, dfs20, sqlite"):
        convert(sources["log"], tmp_path / "target", to=to)
    assert list(tmp_path.iterdir()) == []


def test_a_compression_that_there_cannot_be_is_refused(
    tmp_path: Path, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    with pytest.raises(ValueError, match="'zstd' or 'none', not 'zlib'"):
        convert(sources["log"], target, compression="zlib")  # type: ignore[arg-type]  # see name
    with pytest.raises(ValueError, match=r"only a log can be compressed, .* 'dfs20'"):
        convert(sources["log"], target, to="dfs20", compression="zstd")
    monkeypatch.setattr("durus.convert.has_library", lambda: False)
    with pytest.raises(StorageError, match="needed to compress records"):
        convert(sources["log"], target, compression="zstd")
    assert list(tmp_path.iterdir()) == []


@formats
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "of the caller's")])
def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, sources: dict[str, Path], to: str, error: Any
) -> None:
    for call in range(1, 1000):
        calls = 0

        def interrupt(done: int, total: int | None) -> None:
            nonlocal calls
            calls += 1
            if calls == call:  # noqa: B023 (called here)
                raise error

        try:
            convert(sources["log"], tmp_path / "target", to=to, progress=interrupt)
        except (KeyboardInterrupt, OSError) as caught:
            assert caught is error or type(caught) is error  # noqa: PT017 (not in the end)
            assert list(tmp_path.iterdir()) == []
        else:
            assert call > 3
            break
    check_content(tmp_path / "target")


@formats
def test_a_target_that_appears_meanwhile_is_left_alone(
    tmp_path: Path, sources: dict[str, Path], to: str
) -> None:
    target = tmp_path / "target"
    with pytest.raises(StorageOpenError, match="nothing is overwritten") as caught:
        convert(sources["log"], target, to=to, progress=lambda *what: target.write_text("precious"))
    assert caught.value.errno == errno.EEXIST
    assert target.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [target]


def test_nothing_has_the_name_of_the_target_before_it_is_complete(
    tmp_path: Path, sources: dict[str, Path]
) -> None:
    target = tmp_path / "target"

    def look(done: int, total: int | None) -> None:
        assert not target.exists()
        assert all(path.name.startswith(".durus-") for path in tmp_path.iterdir())

    for to in WRITTEN:
        convert(sources["log"], target, to=to, progress=look)
        assert list(tmp_path.iterdir()) == [target]
        target.unlink()


@formats
def test_a_full_disk_is_told_of_the_target(
    tmp_path: Path, sources: dict[str, Path], to: str
) -> None:
    """A limit of the file size stands for the disk."""
    program = f"""
        import resource, signal, sys
        from durus.convert import convert
        from durus.error import StorageError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
        try:
            convert({str(sources["log"])!r}, {str(tmp_path / "target")!r}, to={to!r})
        except StorageError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert str(tmp_path / "target") in finished.stdout
    assert ".durus-" not in finished.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["log", "sqlite"])
def test_a_target_whose_directory_cannot_be_synced_is_there_and_whole(
    tmp_path: Path, sources: dict[str, Path], to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"

    def sync_directory(system: OperatingSystem, path: str) -> None:
        if target.exists():  # when the last step is that alone
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(OperatingSystem, "sync_directory", sync_directory)
    with pytest.raises(StorageOpenError, match="directory cannot be synced: Input") as caught:
        convert(sources["log"], target, to=to)
    assert str(target) in str(caught.value)
    monkeypatch.undo()
    check_content(target)


@formats
def test_a_file_system_without_links_has_room_for_a_target(
    tmp_path: Path, sources: dict[str, Path], to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)  # as on FAT
    target = tmp_path / "target"
    convert(sources["log"], target, to=to)
    assert list(tmp_path.iterdir()) == [target]
    check_content(target)


# Sources by URI


def test_a_file_may_be_given_as_a_uri(tmp_path: Path, sources: dict[str, Path]) -> None:
    assert convert(f"file:{sources['shelf']}", tmp_path / "a").source_format == "shelf"
    conversion = convert(f"sqlite:///{sources['sqlite']}", tmp_path / "b")
    assert (conversion.source_format, conversion.history) == ("sqlite", True)
    check_content(tmp_path / "a")
    check_content(tmp_path / "b")


def test_a_uri_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    for uri, message in [("memory:", "nothing to convert"), ("nothing://x", "no storage for")]:
        with pytest.raises(StorageOpenError, match=message) as caught:
            convert(uri, tmp_path / "target")
        assert uri in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# Memory

LIMITED = """
    import resource, sys
    import durus.sqlite_storage  # what is imported is not counted
    from durus.convert import convert
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    limit = used + int(sys.argv[5]) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(convert(sys.argv[1], sys.argv[2], to=sys.argv[3], history=sys.argv[4] == "True").objects)
"""


def convert_in_little_memory(
    source: Path, target: Path, *, to: str, history: bool, mebibytes: int
) -> int:
    """The number of objects."""
    arguments = [source, target, to, history, mebibytes]
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return int(finished.stdout)


def many_transactions(count: int) -> Iterator[StoredTransaction]:
    """A root, and objects of 1 KiB, a hundred in each transaction; each refers to the next."""
    text = "x" * 1000
    for first in range(0, count, 100):
        records = [
            (oid_of(number), make_record(text, [oid_of(number + 1)] if number + 1 < count else []))
            for number in range(first, first + 100)
        ]
        yield StoredTransaction(records=records, tid=Tid(10**18 + first))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("source", WRITTEN)
def test_memory_does_not_hold_the_objects(tmp_path: Path, source: str) -> None:
    path = tmp_path / "source"
    write = FORMATS[source].write
    assert write is not None
    write(str(path), StoredDatabase(transactions=many_transactions(16_000)))
    assert path.stat().st_size > 2**20
    for to, history in [("log", True), ("log", False), ("shelf", False), ("sqlite", False)]:
        target = tmp_path / f"{to}-{history}"
        found = convert_in_little_memory(path, target, to=to, history=history, mebibytes=12)
        assert found == 16_000
