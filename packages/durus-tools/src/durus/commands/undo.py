"""`durus undo`: undo a transaction of a database file, by a new one."""

import contextlib

import click

from durus.commands.database import open_existing
from durus.commands.manner import Command, about, echo, echo_json, file_argument, json_option
from durus.interfaces import Tid
from durus.undo import undo as undo_transaction

__all__ = ["undo"]


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
    with about(path), contextlib.closing(open_existing(path)) as storage:
        undone = undo_transaction(storage, Tid(tid), user=user, note=note)
    if as_json:
        echo_json({"path": path, "undone": tid, "tid": undone})
    else:
        echo(f"{path}: transaction {tid} is undone by transaction {undone}")
