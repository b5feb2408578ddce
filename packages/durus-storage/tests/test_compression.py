"""Files with compressed records: who compresses, what a pack makes of them, what may be missing."""

import functools
import os
import random
import shutil
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from durus import log_codec, log_pack, online_pack, pack_codec
from durus.backup import backup, restore
from durus.error import CorruptionError, StorageError, UnsupportedFormatError
from durus.file_storage import FileStorage
from durus.file_system import OperatingSystem
from durus.index_checkpoint import index_path, write_checkpoint
from durus.interfaces import NO_TID, ROOT_OID, Oid, Progress, Record, Tid
from durus.log_batch import PreparedTransaction
from durus.log_codec import Compression
from durus.log_format import LoggedTransaction
from durus.log_header import decode_file_header, encode_file_header
from durus.log_open import make_missing_file
from durus.log_record import SLOT_HEAD_SIZE, decode_record, encode_record
from durus.log_transfer import read_log, write_log
from durus.log_verify import verify_file
from durus.testing.storage_contract import (
    commit,
    create,
    make_record,
    make_transaction,
    value,
    value_of,
)

LONG = "a sentence that is repeated, so that it can be compressed; " * 30

InChild = Callable[[Callable[[], object]], int]


def customer(number: int, more: str = "") -> str:
    """The value of one of many small objects that are alike."""
    chance = random.Random(number)
    name = chance.randbytes(4).hex()
    return f"customer number {number} with the name {name}, who lives in {name[:2]} street{more}"


def fill(storage: FileStorage, count: int, first: int = 0) -> list[Oid]:
    """Create so many small objects that the root refers to, and that are alike."""
    if not first:
        commit(storage, {ROOT_OID: make_record("root")}, created=[ROOT_OID])
    oids = list(storage.reserve_oids(count))
    root = make_record("root", [*(Oid(n.to_bytes(8)) for n in range(1, first)), *oids])
    records = {oid: make_record(customer(int.from_bytes(oid))) for oid in oids}
    commit(storage, {ROOT_OID: root, **records}, created=oids)
    return oids


def codecs(path: Path) -> dict[int, int]:
    """How many records of each codec are in a file."""
    found: dict[int, int] = {}
    with closing(FileStorage(path, readonly=True)) as storage:
        log = storage._shared.current()
        for transaction in log.walk(NO_TID, Tid(log.tid + 1)):
            for entry in transaction.entries():
                content = log.file.read(entry.slot, SLOT_HEAD_SIZE + entry.size)
                stored = decode_record(content[SLOT_HEAD_SIZE:])
                assert stored is not None
                found[stored.codec] = found.get(stored.codec, 0) + 1
    return found


def find_codec(path: Path, oid: Oid) -> int:
    """The codec of the newest record."""
    with closing(FileStorage(path, readonly=True)) as storage:
        log = storage._shared.current()
        stored = decode_record(log.copy_record(log.find_slot(oid), oid))
        assert stored is not None
        return stored.codec


def dictionary_of(path: Path) -> bytes | None:
    header = decode_file_header(path.read_bytes())
    assert header is not None
    return header.dictionary


def read_all(path: Path) -> dict[Oid, list[tuple[Tid, Record]]]:
    """All revisions of all objects."""
    with closing(FileStorage(path, readonly=True)) as storage:
        oids = {oid for transaction in storage.transactions() for oid in transaction.oids}
        return {oid: [(r.tid, r.record) for r in storage.revisions(oid)] for oid in oids}


@pytest.fixture(autouse=True)
def sound(path: Path) -> Iterator[None]:
    """What a test leaves is sound."""
    yield
    if path.exists():
        assert list(verify_file(str(path))) == []


@pytest.fixture(scope="module")
def packed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that was packed with compression, so that it has a dictionary."""
    path = tmp_path_factory.mktemp("packed") / "file"
    with closing(FileStorage(path, compression="zstd")) as storage:
        fill(storage, 1200)
        commit(storage, {Oid((3).to_bytes(8)): make_record(LONG)})
        storage.pack()
    return path


@pytest.fixture
def packed(packed_file: Path, path: Path) -> Path:
    shutil.copy(packed_file, path)
    return path


# Who compresses


@pytest.mark.parametrize(
    ("made", "opened", "compressed"),
    [
        (None, None, False),
        ("none", None, False),
        ("zstd", None, True),
        ("zstd", "none", False),
        (None, "zstd", True),
        ("zstd", "zstd", True),
    ],
)
def test_the_file_says_whether_to_compress_unless_the_program_does(
    path: Path, made: Compression | None, opened: Compression | None, compressed: bool
) -> None:
    FileStorage(path, compression=made).close()
    size = path.stat().st_size
    with closing(FileStorage(path, compression=opened)) as storage:
        (oid,) = create(storage, 1)
        commit(storage, {oid: make_record(LONG)})
        assert value(storage, oid) == LONG
    assert (path.stat().st_size - size < len(LONG)) == compressed
    assert codecs(path).get(1, 0) == compressed
    with closing(FileStorage(path, readonly=True)) as storage:
        assert value(storage, oid) == LONG


def test_an_empty_file_becomes_one_that_compresses(path: Path) -> None:
    path.touch()
    FileStorage(path, compression="zstd").close()
    assert dictionary_of(path) == b""


def test_another_compression_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="compression is 'zstd' or 'none', not 'zlib'"):
        FileStorage(path, compression="zlib")  # type: ignore[arg-type] # that is the test
    assert not path.exists()


def test_a_temporary_file_can_be_compressed() -> None:
    with closing(FileStorage(compression="zstd")) as storage:
        (oid,) = create(storage, 1)
        commit(storage, {oid: make_record(LONG)})
        assert value(storage, oid) == LONG


# Pack


def test_a_pack_gives_the_file_a_dictionary_that_later_commits_use(packed: Path) -> None:
    assert dictionary_of(packed)
    assert codecs(packed) == {2: 1201}
    plain = len(encode_record(ROOT_OID, make_record(customer(5))))
    assert packed.stat().st_size < 0.75 * 1200 * plain
    with closing(FileStorage(packed)) as storage:
        size = packed.stat().st_size
        commit(storage, {Oid((5).to_bytes(8)): make_record(customer(500))})
        assert value(storage, Oid((5).to_bytes(8))) == customer(500)
        overhead = 72 + 20 + 12 + 4 + 44 + len("ann")
        assert packed.stat().st_size - size - overhead < 0.75 * plain
    assert codecs(packed) == {2: 1202}


def test_packing_changes_no_record(path: Path) -> None:
    def pack(compression: Compression | None) -> None:
        with closing(FileStorage(path, compression=compression)) as storage:
            storage.pack(keep=Tid(1))  # so all of it
        assert list(verify_file(str(path))) == []
        assert read_all(path) == before

    with closing(FileStorage(path)) as storage:
        oids = fill(storage, 1200)
        commit(storage, {oids[0]: make_record(LONG), oids[1]: make_record(LONG, [oids[5]])})
        commit(storage, {oids[0]: make_record(customer(2))})
    before = read_all(path)
    plain = path.stat().st_size
    pack("zstd")
    compressed = path.stat().st_size
    assert compressed < 0.6 * plain
    dictionary = dictionary_of(path)
    assert dictionary
    assert codecs(path)[2] > 1200
    for how in (None, "zstd"):
        pack(how)
        assert path.stat().st_size == compressed
        assert dictionary_of(path) == dictionary
    pack("none")
    assert dictionary_of(path) is None
    assert set(codecs(path)) == {0}
    assert abs(path.stat().st_size - plain) < 1000  # marks
    pack(None)
    assert set(codecs(path)) == {0}


def test_a_pack_of_few_objects_makes_no_dictionary(path: Path) -> None:
    with closing(FileStorage(path)) as storage:
        oids = fill(storage, 100)
        commit(storage, {oids[0]: make_record(LONG)})
    with closing(FileStorage(path, compression="zstd")) as storage:
        storage.pack()
        assert value(storage, oids[0]) == LONG
    assert dictionary_of(path) == b""
    assert codecs(path) == {0: 100, 1: 1}


def test_a_dictionary_that_gains_nothing_is_not_made(path: Path) -> None:
    with closing(FileStorage(path, compression="zstd")) as storage:
        create(storage, 0)
        oids = list(storage.reserve_oids(1100))
        records = {oid: Record(b"c", random.Random(oid).randbytes(90), b"") for oid in oids}
        commit(storage, {ROOT_OID: make_record(0, oids), **records}, created=oids)
        storage.pack()
    assert dictionary_of(path) == b""


def test_what_was_stored_plainly_meanwhile_is_compressed_by_a_pack_that_is_told_to(
    packed: Path,
) -> None:
    oid = Oid((7).to_bytes(8))
    with closing(FileStorage(packed, compression="none")) as storage:
        commit(storage, {oid: make_record(customer(7, "!"))})
        storage._compression = None
        storage.pack()
        assert codecs(packed) == {0: 1, 2: 1200}
        storage._compression = "zstd"
        storage.pack()
        assert codecs(packed) == {2: 1201}
        assert value(storage, oid) == customer(7, "!")


def test_a_clearly_better_dictionary_takes_the_place_of_the_old_one(packed: Path) -> None:
    old = dictionary_of(packed)
    with closing(FileStorage(packed, compression="zstd")) as storage:
        oids = list(storage.reserve_oids(5000))
        texts = [f"<invoice><total>{n * 7}</total><currency>EUR</currency>" for n in range(5000)]
        records = {oid: make_record(text) for oid, text in zip(oids, texts, strict=True)}
        root = storage.snapshot().load(ROOT_OID).record
        refs = b"".join(sorted([*oids, *(root.refs[n : n + 8] for n in range(0, 9600, 8))]))
        commit(storage, {ROOT_OID: root._replace(refs=refs), **records}, created=oids)
        before = read_all(packed)
        storage.pack()
    assert dictionary_of(packed) not in (old, b"", None)
    after = read_all(packed)
    assert after.keys() == before.keys()
    assert all(after[oid][0] == before[oid][0] for oid in before)


def test_a_dictionary_that_is_hardly_better_is_not_taken(packed: Path) -> None:
    old = dictionary_of(packed)
    with closing(FileStorage(packed, compression="zstd")) as storage:
        fill(storage, 300, 1201)
        storage.pack()
    assert dictionary_of(packed) == old


def test_a_transaction_that_does_not_fit_into_memory_is_compressed_in_two_passes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_pack, "_HELD_MAX", 10_000)
    passes = []
    store = log_pack.LogPack._store_records

    def count(*arguments: object) -> Iterator[bytes]:
        passes.append(1)
        return store(*arguments)  # type: ignore[arg-type] # of the method

    monkeypatch.setattr(log_pack.LogPack, "_store_records", count)
    with closing(FileStorage(path)) as storage:
        oids = fill(storage, 1200)
        commit(storage, {oids[0]: make_record(LONG)})
    before = read_all(path)
    manners: list[Compression] = ["zstd", "none"]
    for compression in manners:
        with closing(FileStorage(path, compression=compression)) as storage:
            storage.pack()
        assert len(passes) == 4  # of the large transaction two
        passes.clear()
        after = read_all(path)
        assert all(after[oid][0] == before[oid][0] for oid in before)
        assert list(verify_file(str(path))) == []


def test_room_for_what_is_unpacked_is_asked_for_first(packed: Path) -> None:
    with closing(FileStorage(packed, compression="none")) as storage:
        log = storage._shared.open_another()
        pack = log_pack.LogPack(log, log.tid, lambda progress: None, "none")
        pack.mark(set())
        stored = packed.stat().st_size
        storage.pack()
        assert packed.stat().st_size > 1.5 * stored
        assert pack.size > 0.9 * packed.stat().st_size


def test_unknown_pieces_of_the_header_are_kept_or_refused(path: Path) -> None:
    FileStorage(path).close()
    header = decode_file_header(path.read_bytes())
    assert header is not None
    path.write_bytes(encode_file_header(replace(header, extension=b"more\0\0\0\3abc")))
    with closing(FileStorage(path)) as storage:
        create(storage, 1)
        for compression in (None, "zstd", "none"):
            storage._compression = compression
            storage.pack()
            found = decode_file_header(path.read_bytes())
            assert found is not None
            assert b"more\0\0\0\3abc" in found.extension
            assert (found.dictionary is not None) == (compression == "zstd")
    content = path.read_bytes()
    path.write_bytes(encode_file_header(replace(header, extension=b"More\0\0\0\3abc")))
    with pytest.raises(UnsupportedFormatError, match="newer release"):
        FileStorage(path)
    path.write_bytes(content)


# Others


@pytest.mark.parametrize("before", ["none", "zstd"])
@pytest.mark.parametrize("after", ["none", "zstd"])
def test_what_was_prepared_before_a_pack_of_another_process_is_readable_after_it(
    packed: Path, before: Compression, after: Compression
) -> None:
    """Else it would need a dictionary that is gone."""
    oid = Oid((9).to_bytes(8))
    with closing(FileStorage(packed, compression=before)) as other:
        other.pack()
    with closing(FileStorage(packed)) as storage:
        writes = {
            oid: make_record(customer(9, "!")),
            ROOT_OID: storage.snapshot().load(ROOT_OID)[1],
        }
        prepared = PreparedTransaction(
            make_transaction(storage.snapshot().tid, writes), storage._choose_codec()
        )
        with closing(FileStorage(packed, compression=after)) as other:
            other.pack()
        storage._commits.commit(prepared)
        assert value(storage, oid) == customer(9, "!")
        assert bool(dictionary_of(packed)) == (after == "zstd")
    assert (codecs(packed).get(2, 0) > 0) == (after == "zstd")


@pytest.mark.parametrize("meanwhile", ["none", "zstd"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_others_commit_in_either_manner_during_a_pack(
    packed: Path,
    compression: Compression,
    meanwhile: Compression,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: dict[Oid, object] = {}

    def write(progress: Progress | None) -> None:
        for number in range(5):
            oid = Oid((10 + len(written)).to_bytes(8))
            text = LONG if number % 2 else customer(number, "meanwhile")
            commit(other, {oid: make_record(text)})
            written[oid] = text

    copy_most = online_pack._Attempt._copy_most

    def write_and_copy(*arguments: Any) -> None:
        write(None)
        copy_most(*arguments)
        write(None)  # for the last round, under the lock

    monkeypatch.setattr(online_pack._Attempt, "_copy_most", write_and_copy)

    with (
        closing(FileStorage(packed, compression=compression)) as storage,
        closing(FileStorage(packed, compression=meanwhile)) as other,
    ):
        storage.pack(progress=write)
        assert len(written) == 25  # once as it copies, and twice around each of two last copies
        for one in (storage, other):
            assert {oid: value(one, oid) for oid in written} == written
        commit(other, {oid: make_record("after") for oid in written})
        assert {value(storage, oid) for oid in written} == {"after"}


def test_a_snapshot_reads_what_was_compressed_in_a_file_that_was_packed_away(packed: Path) -> None:
    with closing(FileStorage(packed, compression="none")) as storage:
        snapshot = storage.snapshot()
        storage.pack()
        assert value_of(snapshot.load(Oid((5).to_bytes(8))).record) == customer(5)
        assert value(storage, Oid((5).to_bytes(8))) == customer(5)


def test_an_index_serves_a_file_with_a_dictionary(packed: Path) -> None:
    with closing(FileStorage(packed)) as storage:
        write_checkpoint(storage._shared.current())
    assert os.path.exists(index_path(str(packed)))
    with closing(FileStorage(packed, readonly=True)) as storage:
        assert storage._shared.current().index.base is not None
        assert value(storage, Oid((5).to_bytes(8))) == customer(5)


def test_a_process_goes_on_as_another_one_has_packed_the_file(
    path: Path, in_child: InChild
) -> None:
    oid = Oid((5).to_bytes(8))

    def pack(compression: Compression) -> None:
        with closing(FileStorage(path, compression=compression)) as storage:
            storage.pack()
            assert value(storage, oid) == customer(5)

    manners: dict[Compression, int] = {"zstd": 2, "none": 0}
    with closing(FileStorage(path)) as storage:
        fill(storage, 1200)
        for compression, codec in manners.items():
            assert in_child(functools.partial(pack, compression)) == 0
            commit(storage, {oid: make_record(customer(77))})
            assert value(storage, oid) == customer(77)
            assert find_codec(path, oid) == codec
            commit(storage, {oid: make_record(customer(5))})


def test_threads_and_children_compress_at_the_same_time(packed: Path, in_child: InChild) -> None:
    storage = FileStorage(packed)

    def write(first: int) -> None:
        for number in range(first, first + 20):
            oid = Oid((1 + number).to_bytes(8))
            commit(storage, {oid: make_record(LONG + str(number))})

    def work() -> None:
        threads = [threading.Thread(target=write, args=(first,)) for first in range(0, 80, 20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    work()
    assert in_child(work) == 0
    assert [value(storage, Oid((1 + n).to_bytes(8))) for n in range(80)] == [
        LONG + str(n) for n in range(80)
    ]
    storage.close()


def test_a_backup_of_a_compressed_file_is_restored(packed: Path, tmp_path: Path) -> None:
    folder, target = tmp_path / "backups", tmp_path / "restored"
    backup(packed, folder)
    with closing(FileStorage(packed)) as storage:
        commit(storage, {Oid((5).to_bytes(8)): make_record(customer(5, "!"))})
    assert backup(packed, folder).kind == "incremental"
    restore(folder, target)
    assert read_all(target) == read_all(packed)
    assert dictionary_of(target) == dictionary_of(packed)
    assert target.read_bytes() == packed.read_bytes()


@pytest.mark.parametrize("dictionary", [None, b"", "its own"])
def test_conversion_reads_what_is_compressed_and_writes_as_it_is_told(
    packed: Path, tmp_path: Path, dictionary: bytes | str | None
) -> None:
    target = tmp_path / "target"
    with read_log(str(packed)) as database:
        assert database.dictionary == dictionary_of(packed) != b""
        if not isinstance(dictionary, str):
            database = replace(database, dictionary=dictionary)
        write_log(str(target), database)
    assert read_all(target) == read_all(packed)
    assert dictionary_of(target) == database.dictionary
    assert list(verify_file(str(target))) == []
    if dictionary is None:
        assert codecs(target).keys() == {0}
    elif dictionary == b"":
        assert codecs(target)[1] == 1  # the long one
    else:
        assert codecs(target) == codecs(packed)


# Damage


def find_record(path: Path, oid: Oid) -> tuple[LoggedTransaction, int, int]:
    """The transaction, the slot and the size of the newest record."""
    with closing(FileStorage(path, readonly=True)) as storage:
        log = storage._shared.current()
        slot = log.find_slot(oid)
        for transaction in log.walk(NO_TID, Tid(log.tid + 1)):
            for entry in transaction.entries():
                if entry.slot == slot:
                    return transaction, slot, entry.size
    raise AssertionError(oid)


def forge(path: Path, oid: Oid, change: Callable[[bytes], bytes]) -> tuple[Tid, int]:
    """Change a record, and make its checksum right; its tid, and the offset of its slot."""
    transaction, slot, size = find_record(path, oid)
    content = bytearray(path.read_bytes())
    start = slot + SLOT_HEAD_SIZE
    record = change(bytes(content[start + 4 : start + size]))
    assert len(record) == size - 4
    content[start : start + size] = zlib.crc32(record).to_bytes(4) + record
    path.write_bytes(content)
    return transaction.tid, slot


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record[:-3] + b"\0\0\0",
        lambda record: record[:10] + b"\xff\xff" + record[12:],  # the length of the class pickle
        lambda record: record[:20] + bytes(len(record) - 20),
        lambda record: record[:8] + b"\1" + record[9:],  # without the dictionary that it needs
    ],
    ids=["its end", "the class pickle", "all", "another codec"],
)
def test_a_block_that_cannot_be_unpacked_is_damage_with_oid_tid_and_offset(
    packed: Path, change: Callable[[bytes], bytes]
) -> None:
    oid = Oid((5).to_bytes(8))
    tid, slot = forge(packed, oid, change)
    findings = list(verify_file(str(packed)))
    assert [(f.offset, f.tid, f.oid) for f in findings] == [(slot, tid, oid)]
    assert "cannot be unpacked" in findings[0].problem
    with closing(FileStorage(packed)) as storage:
        with pytest.raises(CorruptionError, match="cannot be unpacked") as caught:
            value(storage, oid)
        assert (caught.value.offset, caught.value.oid, caught.value.tid) == (slot, oid, tid)
        assert value(storage, Oid((6).to_bytes(8))) == customer(6)
        storage._compression = "none"
        with pytest.raises(CorruptionError):
            storage.pack()
        storage._compression = "zstd"
        storage.pack()  # copies it as it is
        with pytest.raises(CorruptionError):
            value(storage, oid)
    packed.unlink()


@pytest.mark.parametrize("compression", [None, "none", "zstd"])
def test_a_compressed_record_of_nothing_is_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch, compression: Compression | None
) -> None:
    with monkeypatch.context() as context, closing(FileStorage(path, compression="zstd")) as made:
        (oid,) = create(made, 1)
        context.setattr(log_codec.RecordCodec, "compress", lambda *parts: (1, b""))
        commit(made, {oid: make_record("value")})
    with closing(FileStorage(path, compression=compression)) as storage:
        with pytest.raises(CorruptionError, match=r"oid 1, .*the record is wrong"):
            storage.pack()
        with pytest.raises(CorruptionError, match=r"oid 1, .*the record is wrong"):
            value(storage, oid)
    assert [finding.oid for finding in verify_file(str(path))] == [oid]
    path.unlink()


def test_a_damaged_dictionary_is_found_when_the_file_is_opened(packed: Path) -> None:
    sound = packed.read_bytes()
    for place in (8, 95, 97, 103, 200, len(dictionary_of(packed) or b"") + 100):
        content = bytearray(sound)
        content[place] ^= 1
        packed.write_bytes(content)
        with pytest.raises((CorruptionError, UnsupportedFormatError)):
            FileStorage(packed, readonly=True)
    packed.write_bytes(sound)


def test_a_file_whose_dictionary_is_none_can_be_used(path: Path) -> None:
    make_missing_file(
        OperatingSystem(), str(path), dictionary=b"\x37\xa4\x30\xec" + bytes(range(100))
    )
    with closing(FileStorage(path)) as storage:
        (oid,) = create(storage, 1)
        commit(storage, {oid: make_record(LONG)})
        assert value(storage, oid) == LONG
    assert set(codecs(path)) == {0}


def test_a_dictionary_may_be_any_bytes(path: Path) -> None:
    record = make_record(customer(1))
    dictionary = record.class_pickle + record.state_pickle
    make_missing_file(OperatingSystem(), str(path), dictionary=dictionary)
    with closing(FileStorage(path)) as storage:
        oids = fill(storage, 3)
        assert [value(storage, oid) for oid in oids] == [customer(n) for n in (1, 2, 3)]
    assert codecs(path)[2] >= 3


# Without the library


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("backports.zstd", "compression.zstd", "durus.zstd_frames"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delattr("durus.zstd_frames", raising=False)
    log_codec.has_library.cache_clear()
    yield
    log_codec.has_library.cache_clear()


@pytest.fixture
def packed_before(packed: Path, request: pytest.FixtureRequest) -> Path:
    """A packed file, in which a few objects are stored plainly; then the library is gone."""
    with closing(FileStorage(packed, compression="none")) as storage:
        commit(storage, {Oid((1).to_bytes(8)): make_record("plain")})
    request.getfixturevalue("without_library")
    return packed


REMEDY = "compression.zstd" if sys.version_info >= (3, 14) else "pip install backports.zstd"


@pytest.mark.usefixtures("without_library")
def test_without_the_library_compression_is_refused_and_all_else_works(path: Path) -> None:
    with pytest.raises(StorageError, match=REMEDY):
        FileStorage(path, compression="zstd")
    assert not path.exists()
    with closing(FileStorage(path, compression="none")) as storage:
        (oid,) = create(storage, 1)
        commit(storage, {oid: make_record(LONG)})
        storage.pack()
        assert value(storage, oid) == LONG


def test_without_the_library_only_what_is_compressed_cannot_be_read(
    packed_before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Oid((1).to_bytes(8)), Oid((2).to_bytes(8))
    with closing(FileStorage(packed_before)) as storage:
        assert value(storage, one) == "plain"
        with pytest.raises(UnsupportedFormatError, match=REMEDY):
            value(storage, two)
        commit(storage, {one: make_record(LONG)})
        storage.pack()
        assert value(storage, one) == LONG
        with pytest.raises(UnsupportedFormatError, match=REMEDY):
            value(storage, two)
        with pytest.raises(UnsupportedFormatError, match=REMEDY):
            list(verify_file(str(packed_before)))
        storage._compression = "none"
        with pytest.raises(UnsupportedFormatError, match=REMEDY):
            storage.pack()
    monkeypatch.undo()
    log_codec.has_library.cache_clear()
    with closing(FileStorage(packed_before)) as storage:
        assert value(storage, one) == LONG
        assert value(storage, two) == customer(2)


# The choice of a dictionary


def test_a_sample_is_taken_of_all_objects(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_codec, "_SAMPLE_COUNT", 50)
    with closing(FileStorage(path)) as storage:
        fill(storage, 500)
        sample = pack_codec._Sample(storage._shared.current())
        assert sample.of == 501
        assert len(sample.contents) == len(set(sample.contents)) == 50
        assert sample.growth == 1.0


def test_a_dictionary_must_be_worth_its_own_room() -> None:
    records = [make_record(customer(number)) for number in range(2000)]
    contents = [record.class_pickle + record.state_pickle for record in records]
    assert pack_codec._choose_dictionary(contents, 2000, b"") != b""
    assert pack_codec._choose_dictionary(contents, 10, b"") == b""


def test_what_is_damaged_is_no_part_of_a_sample(path: Path) -> None:
    with closing(FileStorage(path)) as storage:
        fill(storage, 5)
    sound = path.read_bytes()
    _, slot, size = find_record(path, Oid((3).to_bytes(8)))
    content = bytearray(sound)
    content[slot + size] ^= 1
    path.write_bytes(content)
    with closing(FileStorage(path)) as storage:
        assert len(pack_codec._Sample(storage._shared.current()).contents) == 5
    path.write_bytes(sound)


@pytest.mark.parametrize("count", [0, 1])
def test_there_is_nothing_to_choose_of(path: Path, count: int) -> None:
    with closing(FileStorage(path, compression="zstd")) as storage:
        if count:
            create(storage, 0)
        choose = functools.partial(pack_codec.PackCodec, storage._shared.current())
        assert choose("zstd").dictionary == b""
        assert choose("none").dictionary is None
        assert choose("none").growth == 1.0
