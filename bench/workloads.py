"""What is measured: each function is one workload, which every peer runs.

A worker calls the one it was asked for (`bench.worker`); `bench.floors` has functions of the same
names that do the same work with bare system calls, and the table in `bench.benchmarks` says how
often each runs.  A workload is a generator: it prepares, yields {}, and then measures a round at
each step.  Invariant: nothing is timed but the operation itself.
"""

import multiprocessing
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

from bench.peer import (
    FIRST_NUMBER,
    TEXT,
    Database,
    Figures,
    Item,
    NotMeasuredError,
    Peer,
    Rounds,
    Session,
    Settings,
)

__all__ = [
    "THREADS",
    "attribute",
    "backup",
    "build",
    "build_entries",
    "bulk",
    "combine_rates",
    "commit",
    "load",
    "longest_wait",
    "make_new_batch",
    "oids_path",
    "open_file",
    "pack",
    "pack_wait",
    "processes",
    "read_private_memory",
    "threads",
]

THREADS = 8
_BATCH_SIZE = 1000
_SAMPLE_SIZE = 10_000
_UNROLLED = 10


@contextmanager
def _opened(peer: Peer, path: str) -> Iterator[Database]:
    database = peer.open(Path(path))
    try:
        yield database
    finally:
        database.close()


def oids_path(database: Path) -> Path:
    """Where `build` notes the oids of random items of the file: 8 bytes each."""
    return database.with_name(f"{database.name}.oids")


def _read_oids(settings: Settings) -> list[bytes]:
    content = oids_path(Path(settings.database)).read_bytes()
    return [content[i : i + 8] for i in range(0, len(content), 8)]


def make_new_batch(peer: Peer, session: Session, count: int) -> list[Item]:
    """Add `count` new items below the root, to be committed at once."""
    items = [peer.make_item(FIRST_NUMBER + i, TEXT) for i in range(count)]
    # A chain, and no growing list: the root shall cost the same however many objects there are.
    session.root["newest"] = peer.make_batch(items, session.root.get("newest"))
    return items


def build(peer: Peer, settings: Settings) -> Rounds:
    """Make a file with `size` items, through the calls that applications use."""
    rng = random.Random(settings.size)
    batches = max(1, settings.size // _BATCH_SIZE)
    sample: list[bytes] = []
    with _opened(peer, settings.database) as database:
        session = database.connect()
        for _ in range(batches):
            items = make_new_batch(peer, session, settings.size // batches)
            session.commit()
            chosen = rng.sample(items, min(len(items), max(1, _SAMPLE_SIZE // batches)))
            sample += (item._p_oid for item in chosen if item._p_oid is not None)
        session.close()
    rng.shuffle(sample)
    oids_path(Path(settings.database)).write_bytes(b"".join(sample))
    yield {}


def _own_item(peer: Peer, session: Session, settings: Settings) -> Item:
    """An item for this process alone: an old one of a file that was built, else a new one."""
    if settings.size:
        found: Item = session.get(_read_oids(settings)[settings.member])
        return found
    session.root[f"item {settings.member}"] = item = peer.make_item(FIRST_NUMBER, TEXT)
    session.commit()
    return item


def _commit_often(session: Session, item: Item, count: int) -> None:
    for _ in range(count):
        item.number = item.number + 1
        session.commit()


def commit(peer: Peer, settings: Settings) -> Rounds:
    """Change one small object and commit, again and again."""
    with _opened(peer, settings.database) as database:
        session = database.connect()
        item = _own_item(peer, session, settings)
        _commit_often(session, item, 10)
        yield {}
        while True:
            start = time.perf_counter()
            _commit_often(session, item, settings.count)
            yield {"commit_us": (time.perf_counter() - start) / settings.count * 1e6}


def _clock(operation: Callable[[], None], count: int) -> Figures:
    start = time.monotonic()
    operation()
    return {"start_s": start, "end_s": time.monotonic(), "count": count}


def combine_rates(members: Sequence[Figures]) -> Figures:
    """Operations per second, of all who ran at the same time, from the first to the last."""
    elapsed_s = max(m["end_s"] for m in members) - min(m["start_s"] for m in members)
    return {"per_second": sum(member["count"] for member in members) / elapsed_s}


def processes(peer: Peer, settings: Settings) -> Rounds:
    """As `commit`; the runner has several processes do it at once, and combines their rounds."""
    with _opened(peer, settings.database) as database:
        session = database.connect()
        item = _own_item(peer, session, settings)
        _commit_often(session, item, 10)
        yield {}
        while True:
            yield _clock(lambda: _commit_often(session, item, settings.count), settings.count)


def threads(peer: Peer, settings: Settings) -> Rounds:
    """As `commit`, by several threads with a connection and an object each."""
    with _opened(peer, settings.database) as database:
        session = database.connect()
        for number in range(THREADS):
            session.root[f"item {number}"] = peer.make_item(FIRST_NUMBER, TEXT)
        session.commit()
        session.close()
        yield {}
        while True:
            yield _run_threads(database, settings.count)


def _run_threads(database: Database, count: int) -> Figures:
    barrier = threading.Barrier(THREADS)
    finished: list[Figures] = []

    def run(number: int) -> None:
        session = database.connect()
        item = session.root[f"item {number}"]
        session.commit()
        barrier.wait()
        finished.append(_clock(lambda: _commit_often(session, item, count), count))
        session.close()

    running = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if len(finished) < THREADS:
        raise NotMeasuredError("a thread failed")
    return combine_rates(finished)


def read_private_memory() -> tuple[float, float]:
    """The private memory of this process, and what of it is dirty: MB."""
    sizes = {"Private_Clean": 0, "Private_Dirty": 0}
    try:
        with open("/proc/self/smaps_rollup", encoding="ascii") as rollup:
            for line in rollup:
                name, _, rest = line.partition(":")
                if name in sizes:
                    sizes[name] += int(rest.split()[0])
    except FileNotFoundError as error:
        raise NotMeasuredError("memory is measured on Linux only") from error
    return sum(sizes.values()) / 1000, sizes["Private_Dirty"] / 1000


def open_file(peer: Peer, settings: Settings) -> Rounds:
    """Open a file and load its root, once, in a process that has opened another one before."""
    other = Path(f"{settings.database}.other")
    with _opened(peer, str(other)) as database:  # so that every module is imported
        database.connect().close()
    yield {}
    private, dirty = read_private_memory()
    start = time.perf_counter()
    with _opened(peer, settings.database) as database:
        session = database.connect()
        newest = session.root["newest"]
        elapsed_s = time.perf_counter() - start
        private_after, dirty_after = read_private_memory()
        assert newest is not None
        session.close()
    yield {
        "open_ms": elapsed_s * 1e3,
        "private_mb": private_after - private,
        "dirty_mb": dirty_after - dirty,
    }


def load(peer: Peer, settings: Settings) -> Rounds:
    """Load objects that are in no cache of the database, in random order."""
    oids = _read_oids(settings)[: settings.count]
    with _opened(peer, settings.database) as database:
        yield {}
        while True:
            session = database.connect()
            get = session.get
            start = time.perf_counter()
            for oid in oids:
                _ = get(oid).number
            elapsed_s = time.perf_counter() - start
            session.close()
            yield {"load_us": elapsed_s / len(oids) * 1e6}


def attribute(peer: Peer, settings: Settings) -> Rounds:
    """Read an attribute of objects that are loaded, and were accessed in this transaction."""
    with _opened(peer, settings.database) as database:
        session = database.connect()
        items = make_new_batch(peer, session, 100)
        session.commit()
        yield {}
        yield from read_attributes(items, settings.count)


def read_attributes(items: list[Item], count: int) -> Rounds:
    """Read an attribute of each item, `count` times in all."""
    repeats = max(1, count // (len(items) * _UNROLLED))
    while True:
        sum(item.number for item in items)  # the first access in a transaction is another matter
        start = time.perf_counter()
        for _ in range(repeats):
            for item in items:  # as often in each step that the loop itself hardly counts
                _ = item.number
                _ = item.number
                _ = item.number
                _ = item.number
                _ = item.number
                _ = item.number
                _ = item.number
                _ = item.number
                _ = item.number
                _ = item.number
        elapsed_s = time.perf_counter() - start
        yield {"attribute_ns": elapsed_s / (repeats * len(items) * _UNROLLED) * 1e9}


def bulk(peer: Peer, settings: Settings) -> Rounds:
    """Commit many new small objects at once."""
    with _opened(peer, settings.database) as database:
        session = database.connect()
        make_new_batch(peer, session, 10)
        session.commit()
        yield {}
        while True:
            make_new_batch(peer, session, settings.count)
            start = time.perf_counter()
            session.commit()
            yield {"objects_per_second": settings.count / (time.perf_counter() - start)}


def build_entries(peer: Peer, path: str, count: int) -> None:
    """Make a file with a chain of `count` entries, a thousand in each commit."""
    rng = random.Random(count)
    previous = None
    with _opened(peer, path) as database:
        session = database.connect()
        for number in range(count):
            data = f"{rng.getrandbits(480):0120x}"
            previous = peer.make_entry(FIRST_NUMBER + number, "a short text", data, previous)
            if number % _BATCH_SIZE == _BATCH_SIZE - 1 or number == count - 1:
                session.root["newest"] = previous
                session.commit()
        session.close()


def pack(peer: Peer, settings: Settings) -> Rounds:
    """Pack a copy of a file in which everything can be reached, and see how large it is then."""
    original, copy = f"{settings.database}.original", settings.database
    build_entries(peer, original, settings.count)
    yield {}
    while True:
        for suffix in ("", ".index"):
            if os.path.exists(original + suffix):
                shutil.copyfile(original + suffix, copy + suffix)
        with _opened(peer, copy) as database:
            start = time.perf_counter()
            database.pack()
            elapsed_s = time.perf_counter() - start
        yield {
            "objects_per_second": settings.count / elapsed_s,
            "bytes_per_object": os.path.getsize(copy) / settings.count,
        }


def longest_wait(other: BaseProcess, operation: Callable[[], object]) -> Figures:
    """Do something again and again until another process ends."""
    longest_s = 0.0
    while other.is_alive():
        start = time.perf_counter()
        operation()
        longest_s = max(longest_s, time.perf_counter() - start)
    return {"longest_ms": longest_s * 1e3}


def _pack_when_told(peer: Peer, path: str, told: Event) -> None:
    told.wait()
    with _opened(peer, path) as database:
        database.pack()


def pack_wait(peer: Peer, settings: Settings) -> Rounds:
    """Commit small changes while another process packs the file."""
    copy = f"{settings.database}.copy"
    context = multiprocessing.get_context("fork")
    yield {}
    while True:
        shutil.copyfile(settings.database, copy)
        told = context.Event()
        packer = context.Process(target=_pack_when_told, args=(peer, copy, told))
        packer.start()
        with _opened(peer, copy) as database:
            session = database.connect()
            item = _own_item(peer, session, settings)
            _commit_often(session, item, 10)
            told.set()
            figures = longest_wait(packer, partial(_commit_often, session, item, 1))
            session.close()
        if packer.exitcode != 0:
            raise NotMeasuredError("the packer failed")
        yield figures


def backup(peer: Peer, settings: Settings) -> Rounds:
    """Make a full backup of a file, in a new folder."""
    path, folder = Path(settings.database), Path(f"{settings.database}.backups")
    build_entries(peer, str(path), settings.count)
    yield {}
    while True:
        start = time.perf_counter()
        peer.back_up(path, folder)
        elapsed_s = time.perf_counter() - start
        yield {"mb_per_second": path.stat().st_size / 1e6 / elapsed_s}
        shutil.rmtree(folder)
