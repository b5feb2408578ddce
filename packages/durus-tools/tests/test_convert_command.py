"""`durus convert`; what it does to databases is tested with `durus.convert`."""

import json
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from durus.connection import Connection
from durus.file import File
from durus.file_format import recognise
from durus.interfaces import ROOT_OID
from durus.record import pack_record
from durus.shelf import Shelf

Durus = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("name", ["log", "shelf", "dfs20", "sqlite"])
def test_each_format_can_be_made(durus: Durus, database: Path, name: str) -> None:
    before = database.read_bytes(), database.stat().st_mtime_ns
    target = database.with_name("target")
    finished = durus("convert", database, target, "--to", name)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith(f"{target}: 3 objects, ")
    assert finished.stdout.endswith(f", converted from log to {name}\n")
    assert recognise(target) == name
    assert durus("verify", target).returncode == 0
    assert (database.read_bytes(), database.stat().st_mtime_ns) == before
    assert {path.name for path in database.parent.iterdir()} == {"app.durus", "target"}


def test_a_log_is_made_if_nothing_else_is_asked_for(durus: Durus, database: Path) -> None:
    target = database.with_name("target")
    assert "in 2 transactions" in durus("convert", database, target).stdout
    assert recognise(target) == "log"


def test_the_summary_is_there_as_json(durus: Durus, database: Path) -> None:
    target = database.with_name("target")
    finished = durus("convert", database, target, "--no-history", "--json")
    assert json.loads(finished.stdout) == {
        "source": str(database),
        "target": str(target),
        "source_format": "log",
        "target_format": "log",
        "transactions": 1,
        "objects": 3,
        "history": False,
        "warnings": [],
    }


def test_compression_is_chosen_or_as_in_the_source(durus: Durus, database: Path) -> None:
    with Connection(database) as connection:
        connection.root["long"] = "a sentence that is repeated; " * 1000
        connection.commit()
    plain = database.stat().st_size
    source = database
    for number, (options, is_small) in enumerate(
        [
            ([], False),
            (["--compression", "zstd"], True),
            ([], True),
            (["--no-history"], True),
            (["--compression", "none"], False),
            (["--compression", "none", "--to", "sqlite"], False),
        ]
    ):
        target = database.with_name(str(number))
        finished = durus("convert", source, target, *options)
        assert (finished.returncode, finished.stderr) == (0, "")
        assert (target.stat().st_size < plain / 10) == is_small
        assert durus("verify", target).returncode == 0
        source = target
    finished = durus(
        "convert", source, database.with_name("no"), "--to", "shelf", "--compression=zstd"
    )
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "--compression is for logs, and not for --to shelf" in finished.stderr
    assert not database.with_name("no").exists()


def test_a_file_of_python_2_is_noticed(durus: Durus, tmp_path: Path) -> None:
    path = tmp_path / "python2"
    data = b"\x80\x02cdurus.persistent_dict\nPersistentDict\nq\x01.\x80\x02}q\x02U\x04dataq\x03}s."
    with closing(File(str(path))) as file:
        for _ in Shelf.generate_shelf(file, [(ROOT_OID, pack_record(ROOT_OID, data, b""))]):
            pass
    warning = (
        "object 0, a durus.persistent_dict.PersistentDict, was written by Python 2, as others may "
        "be: without --python2 some of its strings may be wrong, or fail to load"
    )
    finished = durus("convert", path, tmp_path / "one", "--json")
    assert finished.stderr == f"durus: warning: {warning}\n"
    assert json.loads(finished.stdout)["warnings"] == [warning]
    assert durus("convert", path, tmp_path / "two", "--python2").stderr == ""


def test_objects_are_renumbered(durus: Durus, database: Path) -> None:
    target = database.with_name("target")
    code = "from durus.btree import BTree\nroot['tree'] = BTree()\nconnection.commit() and None\n"
    durus("client", "--file", database, stdin=code)
    assert durus("convert", database, target, "--renumber").returncode == 0
    answer = durus("client", "--file", target, "--readonly", stdin="root['tree']\n")
    assert answer.stdout == "<BTree 1>\n"


@pytest.mark.parametrize("kind", ["file", "folder", "link", "source"])
def test_an_existing_target_is_never_overwritten(durus: Durus, database: Path, kind: str) -> None:
    target = database.with_name("target")
    match kind:
        case "file":
            target.write_text("keep me")
        case "folder":
            target.mkdir()
        case "link":
            target.symlink_to("nowhere")
        case "source":
            target = database
    before = database.read_bytes()
    finished = durus("convert", database, target, "--to", "shelf")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith(f"durus: {target}: ")
    assert finished.stderr.count("\n") == 1
    assert database.read_bytes() == before
    if kind == "file":
        assert target.read_text() == "keep me"
    if kind == "link":
        assert not database.with_name("nowhere").exists()


def test_a_target_in_a_folder_that_is_not_there_is_one_line(durus: Durus, database: Path) -> None:
    target = database.parent / "nowhere" / "target"
    finished = durus("convert", database, target)
    assert finished.returncode == 2
    assert str(target) in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_a_damaged_source_leaves_no_target(durus: Durus, database: Path) -> None:
    content = bytearray(database.read_bytes())
    content[content.rindex(b"BTree")] ^= 1
    database.write_bytes(content)
    finished = durus("convert", database, database.with_name("target"))
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith(f"durus: {database}: damaged at offset ")
    assert finished.stderr.count("\n") == 1
    assert [path.name for path in database.parent.iterdir()] == [database.name]
