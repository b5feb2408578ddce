"""`durus undo`: undo a transaction of a database file, by a new one."""

import contextlib
from typing import Final

import click

from durus.classic import as_storage
from durus.commands.database import open_existing
from durus.commands.manner import (
    Command,
    CommandError,
    about,
    counted,
    echo,
    echo_json,
    file_argument,
    json_option,
)
from durus.error import StorageError, UndoError
from durus.interfaces import HistoryStorage, Tid
from durus.undo import undo as undo_transaction

__all__ = ["undo"]

_OIDS_SHOWN: Final = 10


@click.command(
    cls=Command,
    short_help="Undo a transaction, by a new one.",
    examples=["durus history app.durus", "durus undo app.durus 1796070193000000000 --user ann"],
)
@file_argument()
@click.argument("tid", metavar="TID", type=click.IntRange(1))
@click.option("--user", default="", help="Who does it, for the new transaction.")
@click.option("--note", help="Its note; by default it says what is undone.")
@json_option
def undo(path: str, tid: int, user: str, note: str | None, as_json: bool) -> None:
    """Give the objects that the transaction TID of FILE changed the states back that they had.

    'durus history FILE' lists the transactions.  Nothing is done if a later one changed one of the
    same objects.  The undo is a transaction, too, and can be undone.
    """
    with about(path), contextlib.closing(as_storage(open_existing(path))) as storage:
        if not isinstance(storage, HistoryStorage):
            raise StorageError(
                f"{path}: undo is for logs and SQLite files, and this is neither; 'durus convert' "
                "makes one of it"
            )
        try:
            undone = undo_transaction(storage, Tid(tid), user=user, note=note)
        except UndoError as error:
            raise CommandError(f"{path}: {_describe(error)}") from error
    if as_json:
        echo_json({"path": path, "undone": tid, "tid": undone})
    else:
        echo(f"{path}: transaction {tid} is undone by transaction {undone}")


def _describe(error: UndoError) -> str:
    reason = f"transaction {error.tid} cannot be undone: {error.reason}"
    if not error.oids:
        return reason
    shown = ", ".join(str(int.from_bytes(oid)) for oid in error.oids[:_OIDS_SHOWN])
    more = ", ..." if len(error.oids) > _OIDS_SHOWN else ""
    return f"{reason} ({counted(len(error.oids), 'object')}, by oid: {shown}{more})"
