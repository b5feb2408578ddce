"""`durus backup` and `durus restore`.  The work is in `durus.backup`."""

import os

import click

from durus.backup import backup as back_up
from durus.backup import restore as restore_backup
from durus.backup import verify_backup
from durus.backup_folder import MANIFEST
from durus.commands.manner import (
    Command,
    CommandError,
    ExitStatus,
    about,
    counted,
    echo,
    echo_json,
    json_option,
    note,
    source_argument,
    target_argument,
    with_options,
)
from durus.commands.moments import WHEN, show_time
from durus.commands.progress import ProgressBar
from durus.times import When

__all__ = ["backup", "refuse_backups", "restore"]


def refuse_backups(path: str) -> None:
    """CommandError if a folder of backups is given to a command that reads database files."""
    if os.path.exists(os.path.join(path, MANIFEST)):
        raise CommandError(
            f"{path}: this is a folder of backups: 'durus backup --verify' checks it, and 'durus "
            "restore' makes a database of it"
        )


@click.command(
    cls=Command,
    short_help="Back up a log file, while it is in use.",
    examples=[
        "durus backup app.durus /backup/app",
        "durus backup app.durus /backup/app --full",
        "durus backup --verify /backup/app",
    ],
)
@click.argument("paths", metavar="SOURCE FOLDER", nargs=-1, required=True)
@click.option("--full", is_flag=True, help="Make a full backup, whatever is there.")
@click.option("--verify", is_flag=True, help="Check the backups in FOLDER, and make none.")
@json_option
def backup(paths: tuple[str, ...], full: bool, verify: bool, as_json: bool) -> ExitStatus:
    """Back up the log SOURCE into FOLDER: all of it, or what has come since the last backup.

    Others may read, commit and pack meanwhile.  Everything is checked on the way.  With --verify
    only FOLDER is given, and the backups in it are checked; the exit status is 1 if something is
    wrong with them.
    """
    if len(paths) != 2 - verify:
        raise click.UsageError(f"give {'FOLDER' if verify else 'SOURCE and FOLDER'}")
    if verify and full:
        raise click.UsageError("--verify makes no backup, so --full means nothing with it")
    if verify:
        return _verify(paths[0], as_json=as_json)
    source, folder = paths
    with about(source, folder), ProgressBar(f"Backing up {source}") as progress:
        result = back_up(source, folder, full=full, progress=progress.report)
    if as_json:
        echo_json({"source": source, "folder": folder, **result._asdict()})
    elif result.path is None:
        echo(f"{folder}: {result.reason}")
    else:
        because = f" ({result.reason})" if result.reason else ""
        echo(
            f"{result.path}: {result.kind} backup{because}, "
            f"{counted(result.transactions, 'transaction')}, {counted(result.size, 'byte')}"
        )
    return ExitStatus.OK


def _verify(folder: str, *, as_json: bool) -> ExitStatus:
    with about(folder), ProgressBar(f"Checking {folder}") as progress:
        findings = [str(finding) for finding in verify_backup(folder, progress=progress.report)]
    if as_json:
        echo_json({"folder": folder, "sound": not findings, "findings": findings})
    else:
        for finding in findings:
            echo(f"{folder}: {with_options(finding)}")
        echo(f"{folder}: {counted(len(findings), 'finding') if findings else 'sound'}")
    return ExitStatus.DAMAGED if findings else ExitStatus.OK


@click.command(
    cls=Command,
    short_help="Make a database file from backups.",
    examples=[
        "durus restore /backup/app restored.durus",
        "durus restore /backup/app before.durus --at '2026-11-30 12:00'",
    ],
)
@source_argument
@target_argument
@click.option(
    "--at", type=WHEN, metavar="WHEN", help="As it was at this tid or time, or so long ago."
)
@click.option("--database", metavar="ID", help="Which one, if SOURCE has backups of several.")
@json_option
def restore(source: str, target: str, at: When | None, database: str | None, as_json: bool) -> None:
    """Make the new file TARGET from the backups in the folder SOURCE.

    TARGET must not exist, and appears only when it is complete.  WHEN is a tid, a time such as
    '2026-11-30 12:00', or so long ago, such as '2d' or '90min'.  ID is in the manifest; unless said
    otherwise, it is the database of the newest backup.
    """
    with about(source, target), ProgressBar(f"Restoring {target}") as progress:
        try:
            result = restore_backup(
                source, target, at=at, database=database, progress=progress.report
            )
        except ValueError as error:
            raise CommandError(f"--at: {error}") from error
    if result.other_databases and database is None:
        others = " or ".join(result.other_databases)
        note(
            f"{source} has backups of several databases; this is {result.database_id}, that of the "
            f"newest one (--database {others} restores another)"
        )
    if as_json:
        echo_json(
            {
                "source": source,
                "target": target,
                "size": result.size,
                "tid": result.tid,
                "database_id": result.database_id,
                "other_databases": result.other_databases,
            }
        )
    else:
        until = f"up to tid {result.tid}, {show_time(result.tid)}" if result.tid else "empty"
        echo(f"{target}: restored, {until}, {counted(result.size, 'byte')}")
