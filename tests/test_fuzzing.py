"""Damaged files of all kinds, made from real ones: no crash, no hang, no wrong value.

A case mutates a log file, its index file, or both, and does everything that one can do with it.
Every value says which object it belongs to and when it was committed, so whatever is read can be
compared with what was written.  Steps and memory are bounded by what is asked of the file seam.
"""

import struct
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from durus.error import DurusError, StorageError
from durus.file_format import Finding
from durus.file_storage import FileStorage
from durus.file_system import OperatingSystem
from durus.index_checkpoint import index_path, write_checkpoint
from durus.index_file import PAGE_SIZE
from durus.interfaces import ROOT_OID, Oid, Revision, Tid
from durus.log_format import (
    FIXED_SIZE,
    MARK_SIZE,
    VOID_SIZE,
)
from durus.log_header import FILE_HEADER_SIZE
from durus.log_open import make_missing_file
from durus.log_verify import verify_file
from durus.testing.storage_contract import commit, make_record, value_of
from tests.seeds import Seeds

READ_MORE_MAX = 1 << 20
"""No read may ask for more than the file has, and so many bytes."""
EXTREMES = [0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 63, (1 << 64) - 1]


class TooManyReads(BaseException):
    """Something reads on and on."""


class Watched(OperatingSystem):
    """Counts what is read, and syncs nothing."""

    def __init__(self, reads_max: int = 1 << 60) -> None:
        self.reads = 0
        self.reads_max = reads_max
        self.largest = 0
        self.failing = False

    def read(self, fd: int, size: int, offset: int) -> bytes:
        self.reads += 1
        if self.reads > self.reads_max:
            raise TooManyReads
        self.largest = max(self.largest, size)
        return super().read(fd, size, offset)

    def sync(self, fd: int) -> None:
        if self.failing:
            self.failing = False
            raise OSError(5, "sync failed")

    def sync_directory(self, path: str) -> None:
        pass


@dataclass
class Original:
    """A sound file, and what was ever committed to it."""

    name: str
    log: bytes = b""
    index: bytes = b""
    ids: list[int] = field(default_factory=list)
    values: dict[Oid, dict[Tid, object]] = field(default_factory=dict)
    refused: set[object] = field(default_factory=set)
    """Values whose commit failed: if the void that says so is damaged, they may appear."""
    state: dict[Oid, tuple[Tid, object]] = field(default_factory=dict)
    tids: list[Tid] = field(default_factory=list)
    """The visible transactions."""

    @property
    def all_is_synced(self) -> bool:
        """Whether every bit is in an entry that a synced mark proves to be whole."""
        return self.name in ("plain", "packed", "compressed", "large")


class Workload:
    """Makes an `Original`."""

    def __init__(self, name: str, folder: Path, random: Random) -> None:
        self.original = Original(name)
        self.path = folder / name
        self.random = random
        self.system = Watched()
        self.storage = self.open()
        self.oids: list[Oid] = []
        self.counter = 0

    def open(self, **options: object) -> FileStorage:
        return FileStorage(self.path, system=self.system, **options)  # type: ignore[arg-type]

    def reopen(self, **options: object) -> None:
        self.storage.close()
        self.storage = self.open(**options)

    def value(self, oid: Oid, size: int = 0) -> str:
        self.counter += 1
        return f"{int.from_bytes(oid)}:{self.counter}:" + self.random.randbytes(size // 2).hex()

    def write(self, oids: list[Oid], *, size: int = 20, new: int = 0) -> None:
        """Commit new values of these objects, and as many new ones, which the root refers to."""
        created = list(self.storage.reserve_oids(new)) if new else []
        values = {oid: self.value(oid, self.random.randrange(size)) for oid in [*oids, *created]}
        if not self.oids:
            self.oids.append(ROOT_OID)
            created.append(ROOT_OID)
        values[ROOT_OID] = self.value(ROOT_OID)
        self.oids += [oid for oid in created if oid != ROOT_OID]
        records = {oid: make_record(value) for oid, value in values.items()}
        records[ROOT_OID] = make_record(values[ROOT_OID], self.oids)
        tid = commit(self.storage, records, created=created).tid
        for oid, value in values.items():
            self.original.values.setdefault(oid, {})[tid] = value

    def some(self, count: int) -> list[Oid]:
        return self.random.sample(self.oids, min(count, len(self.oids)))

    def write_several(self, count: int) -> None:
        for _ in range(count):
            self.write(self.some(self.random.randint(1, 3)), new=self.random.randint(0, 2))

    def leave_partial(self) -> None:
        """What is there when a process is killed while it writes; this one goes on after it."""
        self.storage.close()
        content = self.path.read_bytes()
        with self.path.open("ab") as file:
            file.write(content[FILE_HEADER_SIZE:][: self.random.randint(1, 90)])
        self.storage = self.open()

    def refuse(self) -> None:
        value = self.value(ROOT_OID)
        self.original.refused.add(value)
        self.system.failing = True
        with pytest.raises(StorageError):
            commit(self.storage, {ROOT_OID: make_record(value, self.oids)})

    def index(self) -> None:
        write_checkpoint(self.storage._shared.current())

    def finish(self) -> Original:
        original = self.original
        self.storage.close()
        original.log = self.path.read_bytes()
        original.index = Path(index_path(str(self.path))).read_bytes()
        assert list(verify_file(str(self.path))) == []
        with closing(self.open(readonly=True)) as storage:
            for transaction in storage.transactions():
                original.tids.append(transaction.tid)
                original.ids.append(transaction.id)
            with closing(storage.snapshot()) as snapshot:
                for oid, revision in snapshot.load_many(self.oids):
                    original.state[oid] = revision.tid, value_of(revision.record)
        assert all(original.values[oid][tid] == v for oid, (tid, v) in original.state.items())
        return original


def make_originals(folder: Path, random: Random) -> list[Original]:
    def begin(name: str) -> Workload:
        made = Workload(name, folder, random)
        made.write([], new=2)
        made.write_several(3)
        return made

    plain = begin("plain")
    plain.index()
    plain.write_several(3)

    mixed = begin("mixed")
    mixed.leave_partial()
    mixed.write_several(2)
    mixed.refuse()
    mixed.index()
    mixed.write_several(2)
    mixed.storage.reserve_oids(1000)
    mixed.refuse()
    mixed.write_several(1)

    packed = begin("packed")
    packed.storage.pack()
    packed.write_several(2)
    packed.index()
    packed.write_several(1)

    unsynced = begin("unsynced")
    unsynced.reopen(durability="none")
    unsynced.write_several(3)
    unsynced.index()
    unsynced.reopen()
    unsynced.write_several(1)
    unsynced.reopen(durability="none")
    unsynced.write_several(2)

    tail = begin("tail")
    tail.index()
    tail.write_several(3)
    tail.storage.close()
    with tail.path.open("r+b") as file:  # a whole transaction without its mark, and a part of one
        file.truncate(tail.path.stat().st_size - MARK_SIZE)
        file.seek(0, 2)
        file.write(tail.path.read_bytes()[FILE_HEADER_SIZE:][:99])

    record = make_record("12:34:")
    dictionary = record.class_pickle + record.state_pickle
    make_missing_file(OperatingSystem(), str(folder / "compressed"), dictionary=dictionary)
    compressed = begin("compressed")
    compressed.write(compressed.some(2), size=5000)
    compressed.storage.pack()
    compressed.index()
    compressed.reopen(compression="none")
    compressed.write_several(2)
    compressed.reopen()
    compressed.write_several(2)

    large = begin("large")
    large.write([], new=600)
    large.write(large.some(3), size=1_500_000)
    large.write_several(2)
    large.index()
    large.write_several(2)

    made = (plain, mixed, packed, unsynced, tail, compressed, large)
    return [one.finish() for one in made]


# Mutations: each takes bytes and gives others.

Mutation = Callable[[bytearray, Random], bytes | bytearray]


def _range(content: bytearray, random: Random) -> tuple[int, int]:
    """A part of it: most are short, some are long."""
    start = random.randrange(len(content))
    longest = len(content) - start
    length = min(longest, 1 << random.randint(0, max(1, longest.bit_length())))
    return start, start + random.randint(1, max(1, length))


def flip(content: bytearray, random: Random) -> bytearray:
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return content


def flip_some(content: bytearray, random: Random) -> bytearray:
    for _ in range(random.randint(2, 10)):
        flip(content, random)
    return content


def overwrite(content: bytearray, random: Random) -> bytearray:
    start, end = _range(content, random)
    size = len(content[start:end])
    content[start:end] = random.choice([bytes(size), b"\xff" * size, random.randbytes(size)])
    return content


def delete(content: bytearray, random: Random) -> bytearray:
    start, end = _range(content, random)
    del content[start:end]
    return content


def insert(content: bytearray, random: Random) -> bytearray:
    place = random.randrange(len(content) + 1)
    size = random.choice([1, 2, 44, 512, 4096])
    content[place:place] = random.choice([bytes(size), random.randbytes(size)])
    return content


def duplicate(content: bytearray, random: Random) -> bytearray:
    start, end = _range(content, random)
    place = random.randrange(len(content) + 1)
    content[place:place] = content[start:end]
    return content


def copy_over(content: bytearray, random: Random) -> bytearray:
    start, end = _range(content, random)
    part = content[start:end]
    place = random.randrange(len(content))
    content[place : place + len(part)] = part
    return content


def swap(content: bytearray, random: Random) -> bytearray:
    (a, b), (c, d) = sorted([_range(content, random), _range(content, random)])
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[max(b, d) :]


def truncate(content: bytearray, random: Random) -> bytearray:
    return content[: random.randrange(len(content))]


def extend(content: bytearray, random: Random) -> bytearray:
    return content + random.choice([bytes(random.randint(1, 9000)), random.randbytes(99)])


def set_number(content: bytearray, random: Random) -> bytearray:
    """Set what may be a length, or an offset, to an extreme."""
    size = random.choice([2, 4, 8])
    place = random.randrange(0, len(content), random.choice([1, 4]))
    number = random.choice([*EXTREMES, len(content), len(content) + 1, random.getrandbits(64)])
    content[place : place + size] = (number % (1 << 8 * size)).to_bytes(size)
    return content


MUTATIONS: list[Mutation] = [
    flip,
    flip_some,
    overwrite,
    delete,
    insert,
    duplicate,
    copy_over,
    swap,
    truncate,
    extend,
    set_number,
]


def splice(content: bytearray, other: bytes, random: Random) -> bytearray:
    """The beginning of one file, and the rest of another one."""
    place = random.randrange(FILE_HEADER_SIZE, len(content))
    return content[:place] + other[random.choice([place, random.randrange(len(other))]) :]


def forge(content: bytearray, random: Random) -> bytearray:
    """Change a number in an entry, and make its checksum right: what a wrong writer would do."""
    tags = [b"\xf5TXN", b"\xf6MRK", b"\xf9VOD", b"\xfaOID"]
    last = len(content) - FIXED_SIZE
    places = [p for p in range(FILE_HEADER_SIZE, last) if content[p : p + 4] in tags]
    place = random.choice(places)
    tag = content[place : place + 4]
    end = {tags[0]: FIXED_SIZE, tags[1]: MARK_SIZE - 12}.get(bytes(tag), VOID_SIZE - 12)
    size = random.choice([4, 8])
    field_place = random.randrange(place + 8, place + end - size + 1, 4)
    number = random.choice([*EXTREMES, len(content), len(content) - place, random.getrandbits(32)])
    content[field_place : field_place + size] = (number % (1 << 8 * size)).to_bytes(size)
    if tag == tags[0] and random.random() < 0.5:  # and one in its directory, whose checksum is here
        rest_size = sum(struct.unpack_from(">III", content, place + 52))
        rest_size += 20 * int.from_bytes(content[place + 48 : place + 52])
        if 0 < rest_size < len(content):
            rest = content[place + FIXED_SIZE : place + FIXED_SIZE + rest_size]
            at = random.randrange(max(1, len(rest) - 8))
            rest[at : at + size] = (number % (1 << 8 * size)).to_bytes(size)
            content[place + FIXED_SIZE : place + FIXED_SIZE + len(rest)] = rest
            content[place + 68 : place + 72] = zlib.crc32(rest).to_bytes(4)
    start = zlib.crc32(place.to_bytes(8), zlib.crc32(content[32:48]))
    checksum = zlib.crc32(content[place + 8 : place + end], start)
    content[place + 4 : place + 8] = checksum.to_bytes(4)
    return content


def forge_index(content: bytearray, random: Random) -> bytearray:
    """Change a number in a page of the index, and make its checksum right."""
    page = random.randrange(len(content) // PAGE_SIZE)
    start = page * PAGE_SIZE
    used = [p for p in range(start, start + PAGE_SIZE - 8, 8) if any(content[p : p + 8])]
    place = random.choice(used) if random.random() < 0.8 else start + 8 * random.randrange(511)
    number = random.choice([*EXTREMES, page, page + 1, 2, random.getrandbits(12)])
    content[place : place + 8] = number.to_bytes(8)
    checked = content[start : start + PAGE_SIZE - 8]
    seed = zlib.crc32(page.to_bytes(8), zlib.crc32(content[16:32])) if page else 0
    content[start + PAGE_SIZE - 8 : start + PAGE_SIZE - 4] = zlib.crc32(checked, seed).to_bytes(4)
    return content


@dataclass
class Case:
    """Two mutated files, and what may be expected of them."""

    original: Original
    log: bytes
    index: bytes
    what: str
    donor: Original | None = None
    """Whose bytes are in it as well: a record is valid anywhere, also in another file's directory
    that names the same object and the same length."""
    is_forged: bool = False
    """A checksum says that what is wrong is right: then it may be read."""


def make_case(originals: list[Original], random: Random) -> Case:
    original = random.choice(originals if random.random() < 0.05 else originals[:-1])
    log, index = original.log, original.index
    target = random.choices(["log", "index", "both", "forged", "spliced"], [8, 2, 1, 3, 1])[0]
    names = [target]
    if target in ("log", "both"):
        for mutation in random.choices(MUTATIONS, k=random.choice([1, 1, 1, 2, 4])):
            log = bytes(mutation(bytearray(log or b"\0"), random))
            names.append(mutation.__name__)
    if target in ("index", "both"):
        for mutation in random.choices(MUTATIONS, k=random.choice([1, 1, 2])):
            index = bytes(mutation(bytearray(index or b"\0"), random))
            names.append(mutation.__name__)
    if target == "forged":
        if random.random() < 0.75:
            log = bytes(forge(bytearray(log), random))
        else:
            index = bytes(forge_index(bytearray(index), random))
    donor = random.choice(originals) if target == "spliced" else None
    if donor is not None:
        log = bytes(splice(bytearray(log), donor.log, random))
        if random.random() < 0.5:
            index = bytes(splice(bytearray(index), donor.index, random))
    if random.random() < 0.4:
        index = b""
    what = f"{original.name}: {' '.join(names)}"
    return Case(original, log, index, what, donor, is_forged=target == "forged")


# What is done with a case, and what must hold.


class Trial:
    """Everything that one can do with a case."""

    def __init__(self, case: Case, path: Path, random: Random) -> None:
        self.case = case
        self.path = path
        self.random = random
        self.size = len(case.log) + len(case.index)
        self.new: Oid | None = None
        """What this trial has committed itself."""
        path.write_bytes(case.log)
        self.index_file = Path(index_path(str(path)))
        self.index_file.unlink(missing_ok=True)
        if case.index:
            self.index_file.write_bytes(case.index)

    def watched(self) -> Watched:
        # All entries several times; and a search for the next mark at each place that has its tag.
        return Watched(reads_max=2000 + self.size // 8)

    def run(self) -> None:
        findings = self.verify()
        visible = self.read_all(use_index=True)
        if self.case.log == self.case.original.log and not self.case.is_forged:
            assert visible == self.case.original.state  # nothing but the index is damaged
        if visible is not None and self.case.index:
            self.compare_without_index(visible)
        if self.case.what.endswith(": log flip"):
            assert findings or not self.case.original.all_is_synced
        assert self.path.read_bytes() == self.case.log  # so far, nobody has written
        self.commit(visible)

    def compare_without_index(self, visible: dict[Oid, tuple[Tid, object]]) -> None:
        self.index_file.unlink()
        without = self.read_all(use_index=False)
        self.index_file.write_bytes(self.case.index)
        # An index also proves that what unsynced marks have made visible was durable.
        if (
            without is not None
            and self.case.original.name != "unsynced"
            and not self.case.is_forged
        ):
            common = without.keys() & visible.keys()
            assert all(without[oid] == visible[oid] for oid in common)

    def verify(self) -> list[Finding | DurusError]:
        system = self.watched()
        findings: list[Finding | DurusError] = []
        try:
            findings.extend(verify_file(str(self.path), system))
        except DurusError as error:
            findings.append(error)
        self.check_reads(system)
        return findings

    def check_reads(self, system: Watched) -> None:
        assert system.largest <= self.size + READ_MORE_MAX, system.largest

    def read_all(self, *, use_index: bool) -> dict[Oid, tuple[Tid, object]] | None:
        """What can be read of the newest state; None when the file cannot be opened."""
        system = self.watched()
        try:
            storage = FileStorage(
                self.path, readonly=True, mmap=self.random.random() < 0.2, system=system
            )
        except DurusError:
            self.check_reads(system)
            return None
        with closing(storage):
            found = self.read_storage(storage)
        self.check_reads(system)
        return found

    def read_storage(self, storage: FileStorage) -> dict[Oid, tuple[Tid, object]]:
        original = self.case.original
        found: dict[Oid, tuple[Tid, object]] = {}
        tids: list[Tid] = []
        with suppress(DurusError):
            for transaction in storage.transactions():
                tids.append(transaction.tid)
            self.check_tids(tids)
        with suppress(DurusError):
            for oid, _ in storage.gen_oid_record():
                assert oid in original.values or oid == self.new or self.case.is_forged
        with suppress(DurusError):
            storage.find(self.random.choice(original.ids))
        with suppress(DurusError):
            storage.changes(Tid(0), storage.tid)
        with closing(storage.snapshot()) as snapshot:
            for oid in original.values:
                with suppress(DurusError):
                    revision = snapshot.load(oid)
                    found[oid] = revision.tid, self.value_of(oid, revision)
                with suppress(DurusError):
                    for revision in storage.revisions(oid):
                        self.value_of(oid, revision)
        with (
            suppress(DurusError),
            closing(storage.snapshot(self.random.choice(original.tids))) as s,
        ):
            for oid in original.values:
                with suppress(DurusError):
                    self.value_of(oid, s.load(oid))
        return found

    def check_tids(self, tids: list[Tid]) -> None:
        """What is visible is a beginning of what was; then perhaps what had been refused."""
        if not self.case.is_forged:
            known = [tid for tid in tids if tid in self.case.original.tids]
            assert known == self.case.original.tids[: len(known)]
            more = len(self.case.original.refused) + (self.new is not None)
            assert len(tids) - len(known) <= more

    def value_of(self, oid: Oid, revision: Revision) -> object:
        if self.case.is_forged:
            return revision.record
        value = value_of(revision.record)
        if oid == self.new and value == "new":
            return value  # an object whose creation was lost may have had this oid
        for original in (self.case.original, self.case.donor):
            if original is not None and value in original.values.get(oid, {}).values():
                return value
        assert oid == ROOT_OID
        assert value in self.case.original.refused
        return value

    def commit(self, before: dict[Oid, tuple[Tid, object]] | None) -> None:
        """A commit harms nothing: it succeeds and is seen, or fails with an error."""
        system = self.watched()
        errors: tuple[type[Exception], ...] = (DurusError,)
        if self.case.is_forged:  # it may say that all oids have been handed out
            errors += (ValueError, struct.error)
        try:
            with closing(FileStorage(self.path, system=system, mmap=False)) as storage:
                (oid,) = storage.reserve_oids(1)
                commit(storage, {oid: make_record("new")}, created=[oid])
                write_checkpoint(storage._shared.current())
        except errors:
            assert self.path.read_bytes().startswith(self.case.log)
            return
        assert self.path.read_bytes().startswith(self.case.log)
        self.new = oid
        after = self.read_all(use_index=True)
        if not self.case.is_forged:
            assert after is not None
            after.pop(oid, None)
            assert before is None or after == before
            with closing(FileStorage(self.path, readonly=True)) as storage:
                assert value_of(storage.snapshot().load(oid).record) == "new"
        self.verify()
        if self.random.random() < 0.2:
            self.pack()

    def pack(self) -> None:
        errors = (DurusError, ValueError) if self.case.is_forged else (DurusError,)  # tids go back
        with suppress(*errors), closing(FileStorage(self.path, system=self.watched())) as storage:
            storage.pack()
        self.read_all(use_index=True)
        self.verify()


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Original]:
    return make_originals(tmp_path_factory.mktemp("originals"), Random(1))


def test_a_mutated_file_gives_errors_or_what_was_committed(
    originals: list[Original], seeds: Seeds, tmp_path: Path
) -> None:
    whats: Counter[str] = Counter()
    for count, seed in enumerate(seeds.take(600, 20_000)):
        random = Random(seed)
        case = make_case(originals, random)
        whats[case.what.split()[1]] += 1
        try:
            if count % 20:
                Trial(case, tmp_path / "case", random).run()
            else:
                run_in_little_memory(Trial(case, tmp_path / "case", random))
        except BaseException as error:
            error.add_note(f"case {case.what}, --seed {seed}; its files are in {tmp_path}")
            raise
    assert len(whats) == 5  # log, index, both, forged, spliced


def run_in_little_memory(trial: Trial) -> None:
    tracemalloc.start()
    try:
        trial.run()
        assert tracemalloc.get_traced_memory()[1] <= 10 * trial.size + (8 << 20)
    finally:
        tracemalloc.stop()
