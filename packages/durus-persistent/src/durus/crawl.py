"""Walking over everything that can be reached, breadth first, a batch of records at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from durus.interfaces import ROOT_OID, Oid, Revision, Snapshot
from durus.record import split_oids

__all__ = ["crawl", "crawl_snapshot"]

T = TypeVar("T")


def crawl(
    load_many: Callable[[list[Oid]], Iterable[tuple[Oid, T]]],
    refs_of: Callable[[T], bytes],
    start_oid: Oid = ROOT_OID,
    batch_size: int = 100,
) -> Iterator[tuple[Oid, T]]:
    """What `load_many` finds for `start_oid`, for what that refers to, and so on; each once."""
    seen = {start_oid}
    todo = deque(seen)
    while todo:
        batch = [todo.popleft() for _ in range(min(batch_size, len(todo)))]
        for oid, loaded in load_many(batch):
            yield oid, loaded
            for ref in split_oids(refs_of(loaded)):
                if ref not in seen:
                    seen.add(ref)
                    todo.append(ref)


def refs_of_revision(revision: Revision) -> bytes:
    """The packed oids that a revision refers to."""
    return revision.record.refs


def crawl_snapshot(
    snapshot: Snapshot, start_oid: Oid = ROOT_OID, batch_size: int = 100
) -> Iterator[tuple[Oid, Revision]]:
    """Every object of a snapshot that can be reached from `start_oid`."""
    return crawl(snapshot.load_many, refs_of_revision, start_oid, batch_size)
