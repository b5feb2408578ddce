"""`durus history`, `undo`, `backup`, `restore` and `pack --keep`."""

import json
import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import click
import pytest

from durus.commands.moments import WHEN, WHEN_OR_NUMBER, show_time
from durus.connection import Connection
from durus.file_storage import FileStorage
from durus.interfaces import Tid
from durus.times import When, tid_at

Durus = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def tids(database: Path) -> list[Tid]:
    """Transactions that changed the root, oldest first; at each `number` was as its place."""
    tids = []
    with Connection(database) as connection:
        connection.user = "ann"
        for number in range(4):
            connection.root["number"] = number
            connection.note = f"number {number}"
            tid = connection.commit()
            assert tid is not None
            tids.append(tid)
    return tids


def number_in(path: Path) -> object:
    with FileStorage(path, readonly=True) as storage:
        return Connection(storage).root["number"]


def test_transactions_are_listed_newest_first(
    durus: Durus, database: Path, tids: list[Tid]
) -> None:
    finished = durus("history", database)
    assert (finished.returncode, finished.stderr) == (0, "")
    lines = finished.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[:4]] == [str(tid) for tid in reversed(tids)]
    assert lines[0].split("  ") == [
        str(tids[3]),
        show_time(tids[3]),
        "1 object",
        "ann",
        "number 3",
    ]
    assert durus("history", database, "--last", "2").stdout.splitlines() == lines[:2]


def test_the_time_that_is_shown_finds_the_transaction(
    durus: Durus, database: Path, tids: list[Tid]
) -> None:
    when = show_time(tids[1])
    since = durus("history", database, "--since", when, "--json")
    found = json.loads(since.stdout)
    assert found["path"] == str(database)
    listed = [(t["tid"], t["user"], t["note"]) for t in found["transactions"]]
    assert listed == [(tid, "ann", f"number {n}") for n, tid in enumerate(tids)][:1:-1]
    until = json.loads(durus("history", database, "--until", when, "--json").stdout)
    assert until["transactions"][0]["tid"] == tids[1]


def test_an_object_has_revisions(durus: Durus, database: Path, tids: list[Tid]) -> None:
    found = json.loads(durus("history", database, "0", "--since", str(tids[0]), "--json").stdout)
    assert found["oid"] == 0
    revisions = found["transactions"]
    assert [revision["tid"] for revision in revisions] == tids[::-1]
    assert revisions[0]["class"] == "durus.persistent_dict.PersistentDict"
    assert revisions[0]["note"] == "number 3"
    assert "PersistentDict" in durus("history", database, "0").stdout
    missing = durus("history", database, "99999")
    assert missing.returncode == 2
    assert missing.stderr == f"durus: {database}: there is no object with oid 99999\n"


@pytest.mark.parametrize("format", ["shelf", "dfs20"])
def test_files_of_4_x_have_the_history_since_their_last_pack(
    durus: Durus, tmp_path: Path, format: str
) -> None:
    path = tmp_path / "file"
    with FileStorage(path, format=format) as storage:
        connection = Connection(storage)
        for number in range(3):
            connection.root["number"] = number
            connection.commit()
    finished = durus("history", path)
    assert finished.stdout.splitlines()[0].endswith("  1 object")
    assert finished.stderr == ""
    assert len(finished.stdout.splitlines()) >= 3


def test_a_transaction_is_undone(durus: Durus, database: Path, tids: list[Tid]) -> None:
    finished = durus("undo", database, str(tids[3]), "--user", "bob", "--json")
    undone = json.loads(finished.stdout)
    assert (undone["path"], undone["undone"]) == (str(database), tids[3])
    assert number_in(database) == 2
    newest = durus("history", database, "--last", "1").stdout.split("  ")
    assert newest[0] == str(undone["tid"])
    assert newest[3:] == ["bob", "undo of number 3\n"]
    again = durus("undo", database, str(tids[3]))
    assert again.returncode == 2
    assert "changed later" in again.stderr
    assert str(database) in again.stderr
    assert again.stderr.endswith("undo the later ones first (1 object, by oid: 0)\n")
    unknown = durus("undo", database, "5")
    assert "there is no such transaction" in unknown.stderr


@pytest.mark.parametrize("tid", [5, 2**63, 2**64])
def test_a_transaction_in_sqlite_that_is_not_there_is_not_undone(
    durus: Durus, tmp_path: Path, tid: int
) -> None:
    path = tmp_path / "file.sqlite"
    with FileStorage(path, format="sqlite") as storage:
        Connection(storage).commit()
    finished = durus("undo", path, str(tid))
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"durus: {path}: transaction {tid} cannot be undone: there")
    assert durus("history", path, "--since", "9" * 20).stdout == f"{path}: no transactions\n"
    assert "1 object" in durus("history", path, "--until", "9" * 20).stdout


@pytest.mark.parametrize("format", ["shelf", "dfs20"])
def test_files_of_4_x_have_no_undo(durus: Durus, tmp_path: Path, format: str) -> None:
    path = tmp_path / "file"
    with FileStorage(path, format=format) as storage:
        connection = Connection(storage)
        for number in range(3):
            connection.root["number"] = number
            connection.commit()
    assert durus("history", path, "--since", "2").stdout.splitlines()[-1] == "2  1 object"
    finished = durus("undo", path, "2")
    assert finished.returncode == 2
    assert finished.stderr == (
        f"durus: {path}: undo is for logs and SQLite files, and this is neither; 'durus convert' "
        "makes one of it\n"
    )


def test_a_number_that_is_no_tid_is_not_taken_for_one(
    durus: Durus, database: Path, tids: list[Tid]
) -> None:
    before = database.read_bytes()
    for number in ("30", "20261101"):
        refused = durus("pack", database, "--keep", number)
        assert refused.returncode == 2
        assert f"'{number}' would be a tid" in refused.stderr
        assert "'30d' is so many days ago, and '2026-11-30' a date" in refused.stderr
    assert database.read_bytes() == before
    assert "would be a tid" in durus("history", database, "--since", "20261101").stderr


def test_history_is_kept_by_a_pack_if_asked(durus: Durus, database: Path, tids: list[Tid]) -> None:
    assert durus("pack", database, "--keep", str(tids[2]), "--keep-old").returncode == 0
    with FileStorage(database, readonly=True) as storage:
        assert Connection(storage, at=tids[2]).root["number"] == 2
    assert number_in(Path(f"{database}.old")) == 3
    assert durus("pack", database, "--keep", "30d").returncode == 0
    with FileStorage(database, readonly=True) as storage:
        assert Connection(storage, at=tids[2]).root["number"] == 2
    refused = durus("pack", "--keep", "1h", "--port", "1")
    assert refused.returncode == 2
    assert "are for a FILE" in refused.stderr


def test_a_file_without_history_keeps_none(durus: Durus, tmp_path: Path) -> None:
    path = tmp_path / "file.sqlite"
    with FileStorage(path, format="sqlite") as storage:
        Connection(storage).commit()
    finished = durus("pack", path, "--keep", "1h")
    assert finished.returncode == 2
    assert finished.stderr == (
        f"durus: {path}: --keep and --keep-old are for logs, and this is none\n"
    )


def test_backups_are_made_checked_and_restored(
    durus: Durus, database: Path, tids: list[Tid], tmp_path: Path
) -> None:
    folder, target = tmp_path / "backups", tmp_path / "restored.durus"
    first = durus("backup", database, folder)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith(f"{folder}/full-{tids[3]}.durus: full backup (")
    assert "nothing new" in durus("backup", database, folder).stdout
    with Connection(database) as connection:
        connection.root["number"] = 4
        connection.commit()
    second = json.loads(durus("backup", database, folder, "--json").stdout)
    assert (second["kind"], second["transactions"]) == ("incremental", 1)
    assert durus("backup", "--verify", folder).stdout == f"{folder}: sound\n"

    restored = durus("restore", folder, target)
    assert restored.stdout.startswith(f"{target}: restored, up to tid {second['tid']}, ")
    assert number_in(target) == 4
    existing = durus("restore", folder, target)
    assert existing.returncode == 2
    assert "nothing is overwritten" in existing.stderr
    target.unlink()
    assert durus("restore", folder, target, "--at", show_time(tids[1])).returncode == 0
    assert number_in(target) == 1
    target.unlink()
    assert durus("restore", folder, target, "--at", "1d").returncode == 2
    assert not target.exists()

    part = second["path"]
    with open(part, "r+b") as file:
        file.seek(-50, os.SEEK_END)
        file.write(b"damaged")
    broken = durus("backup", "--verify", folder)
    assert broken.returncode == 1
    assert os.path.basename(part) in broken.stdout


def test_a_wrong_number_of_paths_is_a_mistake(durus: Durus, database: Path) -> None:
    assert "give SOURCE and FOLDER" in durus("backup", database).stderr
    assert "give FOLDER" in durus("backup", "--verify", database, database).stderr
    assert "--full means nothing" in durus("backup", "--verify", "--full", database).stderr


def test_of_a_folder_with_backups_of_two_databases_one_is_chosen(
    durus: Durus, database: Path, tids: list[Tid], tmp_path: Path
) -> None:
    folder, target, other = (tmp_path / name for name in ("backups", "restored", "other.durus"))
    durus("backup", database, folder)
    with Connection(other) as connection:
        connection.root["number"] = 7
        connection.commit()
    durus("backup", other, folder)
    restored = durus("restore", folder, target, "--json")
    report = json.loads(restored.stdout)
    (first,) = report["other_databases"]
    assert report == {
        "source": str(folder),
        "target": str(target),
        "size": target.stat().st_size,
        "tid": report["tid"],
        "database_id": report["database_id"],
        "other_databases": [first],
    }
    assert number_in(target) == 7
    assert restored.stderr == (
        f"durus: {folder} has backups of several databases; this is {report['database_id']}, that "
        f"of the newest one (--database {first} restores another)\n"
    )
    target.unlink()
    assert durus("restore", folder, target, "--database", first).stderr == ""
    assert number_in(target) == 3


@pytest.mark.parametrize("command", ["verify", "stats"])
def test_a_folder_of_backups_is_read_by_other_commands(
    durus: Durus, database: Path, tmp_path: Path, command: str
) -> None:
    folder = tmp_path / "backups"
    durus("backup", database, folder)
    finished = durus(command, folder)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == (
        f"durus: {folder}: this is a folder of backups: 'durus backup --verify' checks it, and "
        "'durus restore' makes a database of it\n"
    )


def test_a_backup_that_is_missing_is_said_in_options(
    durus: Durus, database: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "backups"
    durus("backup", database, folder)
    next(folder.glob("full-*")).unlink()
    assert "A new full backup (--full) does not need it" in durus("backup", database, folder).stderr


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("1796073391926227165", 1796073391926227165),
        ("9" * 30, 10**30 - 1),
        ("1.5h", timedelta(minutes=90)),
        ("30d", timedelta(days=30)),
        ("90min", timedelta(minutes=90)),
        ("2026-11-30T12:00+01:00", datetime(2026, 11, 30, 11, tzinfo=UTC)),
        ("2026-11-30", datetime(2026, 11, 30).astimezone()),
    ],
)
def test_moments(text: str, when: When) -> None:
    assert WHEN.convert(text, None, None) == when


@pytest.mark.parametrize(
    "text", ["", "yesterday", "-1d", "3 d", "1e400d", "9" * 400 + "d", "²", "9" * 5000]
)
def test_what_is_no_moment_is_a_mistake(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no tid, no time"):
        WHEN.convert(text, None, None)


@pytest.mark.parametrize("text", ["0", "30", "20261101", "1796073391926"])
def test_small_numbers_are_no_moments(text: str) -> None:
    with pytest.raises(click.BadParameter, match="would be a tid"):
        WHEN.convert(text, None, None)


def test_transactions_of_4_x_are_numbered() -> None:
    assert WHEN_OR_NUMBER.convert("17", None, None) == 17
    with pytest.raises(click.BadParameter, match="would be a tid"):
        WHEN_OR_NUMBER.convert("20261101", None, None)


def test_a_time_is_shown_as_it_can_be_typed() -> None:
    for tid in (Tid(1796073391926227165), Tid(1)):
        when = WHEN.convert(show_time(tid), None, None)
        assert tid <= tid_at(when) < tid + 1000
    assert show_time(2**63) != ""
    assert datetime.fromisoformat(show_time(0)).astimezone(timezone(timedelta(0))).year == 1970
