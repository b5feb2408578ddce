"""The floors: the work of `bench.workloads` of the same name, done with bare system calls.

A floor says what the machine itself takes at this moment; no database can be quicker.  How many
bytes there are to write is measured on Durus 5, in whose environment the floors run.
"""

import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench import workloads
from bench.peer import FIRST_NUMBER, TEXT, Item, Rounds, Session, Settings
from bench.peers.durus5 import PEER

__all__ = [
    "attribute",
    "backup",
    "bulk",
    "commit",
    "load",
    "open_file",
    "pack",
    "pack_wait",
    "processes",
    "threads",
]

_COMMITS_MEASURED = 100
_READ_SIZE = 512
"""More than a small record has; a page of the file is in memory anyhow."""


def _sync(fd: int) -> None:
    # Where it is missing, fsync is what there is (and on macOS neither reaches the medium).
    getattr(os, "fdatasync", os.fsync)(fd)


@contextmanager
def _growing_file(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _measure_growth(path: str, prepare: Callable[[Session], Any], commits: int) -> int:
    """How many bytes a commit of Durus 5 adds to its file, on average.

    prepare: makes the change that is to be committed.
    """
    database = Path(f"{path}.measured")
    opened = PEER.open(database)
    try:
        session = opened.connect()
        prepare(session)
        session.commit()
        before = database.stat().st_size
        for _ in range(commits):
            prepare(session)
            session.commit()
        return (database.stat().st_size - before) // commits
    finally:
        opened.close()


def _measure_commit(settings: Settings) -> int:
    def change(session: Session) -> None:
        item = session.root.setdefault("item", PEER.make_item(FIRST_NUMBER, TEXT))
        item.number += 1

    return _measure_growth(settings.database, change, _COMMITS_MEASURED)


def _append_often(fd: int, content: bytes, count: int) -> None:
    for _ in range(count):
        os.write(fd, content)
        _sync(fd)


def commit(settings: Settings) -> Rounds:
    """Append as many bytes as a small commit does, and sync them."""
    content = os.urandom(_measure_commit(settings))
    with _growing_file(settings.database) as fd:
        _append_often(fd, content, 10)
        yield {}
        while True:
            start = time.perf_counter()
            _append_often(fd, content, settings.count)
            elapsed_s = time.perf_counter() - start
            yield {"commit_us": elapsed_s / settings.count * 1e6, "bytes": len(content)}


def processes(settings: Settings) -> Rounds:
    """One process appends and syncs, one commit after the other."""
    for figures in commit(settings):
        yield {"per_second": 1e6 / figures["commit_us"]} if figures else {}


threads = processes


def open_file(settings: Settings) -> Rounds:
    """Open the file of Durus 5, ask for its size, and read a page at its start and at its end."""
    yield {}
    before, dirty_before = workloads.read_private_memory()
    start = time.perf_counter()
    fd = os.open(settings.database, os.O_RDONLY | os.O_CLOEXEC)
    size = os.fstat(fd).st_size
    os.pread(fd, 4096, 0)
    os.pread(fd, 4096, max(0, size - 4096))
    elapsed_s = time.perf_counter() - start
    after, dirty_after = workloads.read_private_memory()
    os.close(fd)
    yield {
        "open_ms": elapsed_s * 1e3,
        "private_mb": after - before,
        "dirty_mb": dirty_after - dirty_before,
    }


def load(settings: Settings) -> Rounds:
    """Read a few bytes at random places of the file of Durus 5."""
    rng = random.Random(settings.size)
    fd = os.open(settings.database, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        offsets = [rng.randrange(max(1, size - _READ_SIZE)) for _ in range(settings.count)]
        yield {}
        while True:
            start = time.perf_counter()
            for offset in offsets:
                os.pread(fd, _READ_SIZE, offset)
            yield {"load_us": (time.perf_counter() - start) / len(offsets) * 1e6}
    finally:
        os.close(fd)


class _PlainItem:
    """An object that is not persistent."""

    _p_oid: bytes | None = None

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self.text = text


def attribute(settings: Settings) -> Rounds:
    """Read an attribute of objects that are not persistent."""
    items: list[Item] = [_PlainItem(FIRST_NUMBER + i, TEXT) for i in range(100)]
    yield {}
    yield from workloads.read_attributes(items, settings.count)


def bulk(settings: Settings) -> Rounds:
    """Append as many bytes as the bulk commit does, and sync them."""

    def add(session: Session) -> None:
        workloads.make_new_batch(PEER, session, settings.count)

    content = os.urandom(_measure_growth(settings.database, add, 1))
    with _growing_file(settings.database) as fd:
        yield {}
        while True:
            start = time.perf_counter()
            _append_often(fd, content, 1)
            yield {"objects_per_second": settings.count / (time.perf_counter() - start)}


def _copy(source: Path, target: Path) -> float:
    """Copy a file as cp does, and sync it: the seconds that it took."""
    start = time.perf_counter()
    shutil.copyfile(source, target)
    fd = os.open(target, os.O_RDWR | os.O_CLOEXEC)
    try:
        _sync(fd)
    finally:
        os.close(fd)
    return time.perf_counter() - start


def pack(settings: Settings) -> Rounds:
    """Copy the file of Durus 5, and sync the copy."""
    source, target = Path(f"{settings.database}.original"), Path(settings.database)
    workloads.build_entries(PEER, str(source), settings.count)
    yield {}
    while True:
        yield {
            "objects_per_second": settings.count / _copy(source, target),
            "bytes_per_object": source.stat().st_size / settings.count,
        }


def pack_wait(settings: Settings) -> Rounds:
    """Append and sync while another process copies the file of Durus 5, and syncs the copy."""
    source, target = Path(settings.database), Path(f"{settings.database}.copied")
    content = os.urandom(_measure_commit(settings))
    context = multiprocessing.get_context("fork")
    with _growing_file(f"{settings.database}.appended") as fd:
        yield {}
        while True:
            copier = context.Process(target=_copy, args=(source, target))
            copier.start()
            yield workloads.longest_wait(copier, partial(_append_often, fd, content, 1))


def backup(settings: Settings) -> Rounds:
    """The same, in megabytes per second."""
    source, target = Path(f"{settings.database}.original"), Path(settings.database)
    workloads.build_entries(PEER, str(source), settings.count)
    yield {}
    while True:
        yield {"mb_per_second": source.stat().st_size / 1e6 / _copy(source, target)}
