"""`durus history`: what has been done to a database, or to one of its objects."""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

import click

from durus.class_pickle import name_in_class_pickle
from durus.commands.manner import (
    Command,
    about,
    counted,
    echo,
    echo_json,
    file_argument,
    json_option,
)
from durus.commands.moments import WHEN_OR_NUMBER, show_time
from durus.commands.progress import ProgressBar
from durus.error import DurusKeyError, ObjectError, StorageError
from durus.interfaces import CommittedTransaction, HistoryStorage, Oid, Revision, Tid
from durus.past import open_history
from durus.times import When, tid_at

__all__ = ["history"]

_LAST_DEFAULT = 20


@click.command(
    cls=Command,
    short_help="List the transactions of a database, or the revisions of an object.",
    examples=[
        "durus history app.durus",
        "durus history app.durus 42",
        "durus history app.durus --since 2d --json",
    ],
)
@file_argument()
@click.argument("oid", metavar="[OID]", type=click.IntRange(0, 2**64 - 1), required=False)
@click.option(
    "--last",
    type=click.IntRange(1),
    metavar="COUNT",
    help=f"So many, newest first; {_LAST_DEFAULT} unless --since is given.",
)
@click.option(
    "--since", type=WHEN_OR_NUMBER, metavar="WHEN", help="Those from this tid or time on."
)
@click.option("--until", type=WHEN_OR_NUMBER, metavar="WHEN", help="Those up to this tid or time.")
@json_option
def history(
    path: str,
    oid: int | None,
    last: int | None,
    since: When | None,
    until: When | None,
    as_json: bool,
) -> None:
    """List the transactions of FILE, newest first, as far back as they are kept.

    With OID, a number, those that wrote this object.  WHEN is a tid, a time such as '2026-11-30
    12:00', or so long ago, such as '30d' or '12h'.
    """
    start = None if since is None else tid_at(since)
    stop = None if until is None else Tid(tid_at(until) + 1)
    limit = last or (_LAST_DEFAULT if since is None else None)
    with about(path), ProgressBar(f"Reading {path}"):
        storage, _ = open_history(path)
        with contextlib.closing(storage):
            transactions = storage.transactions(start, stop)
            if oid is None:
                found = [_as_json(transaction) for transaction in _newest(transactions, limit)]
            else:
                revisions = _revisions(storage, Oid(oid.to_bytes(8)), start, stop)
                found = [_revision_as_json(storage, each) for each in islice(revisions, limit)]
    if as_json:
        echo_json({"path": path, "oid": oid, "transactions": found})
        return
    for each in found:
        echo(_describe(each))
    if not found:
        echo(f"{path}: no transactions")


def _newest(
    transactions: Iterable[CommittedTransaction], limit: int | None
) -> Iterator[CommittedTransaction]:
    yield from reversed(deque(transactions, limit))


def _revisions(
    storage: HistoryStorage, oid: Oid, start: Tid | None, stop: Tid | None
) -> Iterator[Revision]:
    try:
        for revision in storage.revisions(oid):
            if start is not None and revision.tid < start:
                return
            if stop is None or revision.tid < stop:
                yield revision
    except DurusKeyError as error:
        raise StorageError(f"there is no object with oid {int.from_bytes(oid)}") from error


def _as_json(transaction: CommittedTransaction) -> dict[str, object]:
    return {
        "tid": transaction.tid,
        "time_ns": transaction.time_ns,
        "user": transaction.user,
        "note": transaction.note,
        "objects": len(transaction.oids),
    }


def _revision_as_json(storage: HistoryStorage, revision: Revision) -> dict[str, object]:
    tid, record = revision
    written = next(iter(storage.transactions(tid, Tid(tid + 1))), None)
    try:
        name = ".".join(name_in_class_pickle(record.class_pickle))
    except ObjectError:
        name = "?"
    about_transaction = {"tid": tid} if written is None else _as_json(written)
    return {**about_transaction, "class": name, "bytes": sum(map(len, record))}


def _describe(found: dict[str, object]) -> str:
    """One line: the tid, and what is known besides."""
    parts = [str(found["tid"])]
    if found.get("time_ns"):  # else its tid is no time either
        parts.append(show_time(int(str(found["tid"]))))
    if "class" in found:
        parts.append(f"{found['class']}, {found['bytes']:,} bytes")
    else:
        parts.append(counted(int(str(found["objects"])), "object"))
    parts += [str(found[name]) for name in ("user", "note") if found.get(name)]
    return "  ".join(parts)
