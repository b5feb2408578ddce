"""`durus pack`: drop what a database no longer needs, in a file or through its server."""

import contextlib
import os

import click

from durus.classic import as_storage
from durus.commands.database import connect, make_address, open_existing, server_options
from durus.commands.manner import Command, about, compression_option, echo, file_argument
from durus.commands.moments import WHEN
from durus.commands.progress import ProgressBar
from durus.error import StorageError
from durus.file_storage import FileStorage
from durus.formats import find_format
from durus.interfaces import PackableStorage, Storage
from durus.log_codec import Compression
from durus.times import When

__all__ = ["pack"]


@click.command(
    cls=Command,
    short_help="Drop old revisions and unreachable objects.",
    examples=[
        "durus pack app.durus",
        "durus pack app.durus --keep 30d",
        "durus pack app.durus --compression zstd",
        "durus pack --host db.example.org --port 2972",
    ],
)
@file_argument(required=False)
@click.option("--file", metavar="FILE", help="The same as FILE, as Durus 4.x has it.")
@click.option(
    "--keep",
    type=WHEN,
    metavar="WHEN",
    help="Keep the history since this tid or time, or so long ago: '30d', '12h'.",
)
@compression_option("Compress all records, or unpack all; otherwise they stay as they are.")
@click.option("--keep-old", is_flag=True, help="Leave the old file beside the new one: FILE.old.")
@server_options
def pack(
    path: str | None,
    file: str | None,
    keep: When | None,
    compression: Compression | None,
    keep_old: bool,
    host: str,
    port: int,
    address: str | None,
) -> None:
    """Remove old revisions, and objects that cannot be reached from the root.

    From FILE, or, without FILE, from the database of a server.  Others may read and commit
    meanwhile.
    """
    if path is not None and file is not None:
        raise click.UsageError("FILE and --file name the same thing: give one of them")
    path = file if path is None else path
    if path is not None:
        _pack_file(path, keep, keep_old=keep_old, compression=compression)
    elif keep is not None or keep_old or compression is not None:
        raise click.UsageError(
            "--keep, --keep-old and --compression are for a FILE: a server packs in its own manner"
        )
    else:
        _pack_on_server(host, port, address)


def _pack_file(
    path: str, keep: When | None, *, keep_old: bool, compression: Compression | None
) -> None:
    with about(path), contextlib.closing(_open(path, compression)) as storage:
        if not isinstance(storage, PackableStorage):
            raise StorageError(f"{path}: this database cannot be packed")
        size_before = os.stat(path).st_size
        with ProgressBar(f"Packing {path}") as progress:
            if isinstance(storage, FileStorage):
                storage.pack(keep=keep, keep_old=keep_old, progress=progress.report)
            elif keep is not None or keep_old:
                raise StorageError(f"{path}: --keep and --keep-old are for logs, and this is none")
            else:
                storage.pack()
    size = os.stat(path).st_size
    echo(f"{path}: packed, {size_before:,} bytes before, {size:,} now")


def _open(path: str, compression: Compression | None) -> Storage:
    if compression is None:
        return as_storage(open_existing(path))
    if find_format(path).name != "log":
        raise StorageError(f"{path}: --compression is for logs, and this is none")
    return FileStorage(path, create=False, compression=compression)


def _pack_on_server(host: str, port: int, address: str | None) -> None:
    server = make_address(host, port, address)
    name = str(server)
    with contextlib.closing(connect(server)) as storage, about(name):
        storage.pack()
    echo(f"{name}: the server has begun to pack, and serves its clients meanwhile")
