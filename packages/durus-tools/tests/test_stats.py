"""`durus stats`."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

from durus.connection import Connection
from durus.file_storage import FileStorage
from durus.interfaces import Oid, Record, Transaction
from durus.oid_set import OidSet
from durus.persistent_list import PersistentList

Durus = Callable[..., "subprocess.CompletedProcess[str]"]


def write_classes(path: Path, class_pickles: list[bytes]) -> None:
    """Make a database whose root refers to objects with these class pickles."""
    oids = [Oid(number.to_bytes(8)) for number in range(1, len(class_pickles) + 1)]
    root_class = b"\x80\x02cdurus.persistent_dict\nPersistentDict\n."
    writes = {Oid(bytes(8)): Record(root_class, b"N.", b"".join(oids))}
    writes |= {
        oid: Record(class_pickle, b"N.", b"")
        for oid, class_pickle in zip(oids, class_pickles, strict=True)
    }
    with FileStorage(path) as storage:
        storage.commit(
            Transaction(
                id=1,
                snapshot_tid=storage.tid,
                accessed=OidSet(),
                created=frozenset(writes),
                writes=writes,
                time_ns=0,
            )
        )


def test_objects_and_bytes_are_counted_by_class(durus: Durus, database: Path) -> None:
    report = json.loads(durus("stats", database, "--json").stdout)
    classes, log = report.pop("classes"), report.pop("log")
    assert log["index_state"] == "none"
    assert classes.keys() == {
        "durus.persistent_dict.PersistentDict",
        "durus.btree.BTree",
        "durus.btree.BNode16",
    }
    assert [count["objects"] for count in classes.values()] == [1, 1, 1]
    with FileStorage(database, readonly=True) as storage:
        size = sum(
            len(b"".join(storage.snapshot().load(Oid(bytes([0] * 7 + [n]))).record))
            for n in range(3)
        )
        assert report == {
            "path": str(database),
            "format": "log",
            "file_bytes": database.stat().st_size,
            "tid": storage.tid,
            "objects": 3,
            "bytes": size,
        }
    assert sum(count["bytes"] for count in classes.values()) == size


def test_the_text_has_a_line_for_each_class(durus: Durus, database: Path) -> None:
    finished = durus("stats", database)
    assert finished.stderr == ""
    first, second, lock, sync, index, *table = finished.stdout.splitlines()
    assert first.startswith(f"{database}: ")
    assert first.endswith(f"{database.stat().st_size:,} bytes")
    assert second.startswith("newest transaction: tid ")
    assert lock.startswith("lock: free, after ")
    assert sync.startswith("sync: ")
    assert index.startswith("index: none, and ")
    assert [line.split()[::2] for line in table[1:-1]] == [
        ["1", "durus.btree.BNode16"],
        ["1", "durus.btree.BTree"],
        ["1", "durus.persistent_dict.PersistentDict"],
    ]
    assert table[-1].split()[0] == "3"


def test_it_says_who_has_the_file_locked(durus: Durus, database: Path) -> None:
    with database.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        finished = durus("stats", database)
        report = json.loads(durus("stats", database, "--json").stdout)["log"]
    assert finished.returncode == 0
    who = f"process {os.getpid()}" if sys.platform == "linux" else ""
    assert f"lock: {who}" in finished.stdout
    assert "has had it for more than a second" in finished.stdout
    assert report["lock_wait_s"] is None
    if sys.platform == "linux":
        assert report["lock_holder"] == {"pid": os.getpid(), "state": "running"}


def test_it_says_how_the_index_is(durus: Durus, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with Connection(str(path)) as connection:
        connection.root["many"] = [PersistentList() for _ in range(2000)]
        connection.commit()
    index = path.with_name("file.index")
    size = index.stat().st_size
    report = json.loads(durus("stats", path, "--json").stdout)["log"]
    assert (report["index_state"], report["index_bytes"]) == ("in use", size)
    assert report["unindexed"] == 0
    index.write_bytes(bytes(size))
    report = json.loads(durus("stats", path, "--json").stdout)["log"]
    assert report["index_state"] == "damaged"
    assert report["unindexed"] > 2000
    with path.open("ab") as file:
        file.write(b"torn")
    assert "unfinished: 4 bytes at the end" in durus("stats", path).stdout


def test_what_cannot_be_reached_is_not_counted(durus: Durus, database: Path) -> None:
    with Connection(database) as connection:
        del connection.root["tree"]
        connection.commit()
    assert json.loads(durus("stats", database, "--json").stdout)["objects"] == 1


def test_no_class_is_imported(durus: Durus, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        dedent("""
            import sys
            from durus.connection import Connection
            from durus.persistent import Persistent
            if __name__ != "app":
                import app
                with Connection("app.durus") as connection:
                    connection.root["it"] = app.Thing()
                    connection.commit()
            elif sys.argv[0] != "app.py":
                raise SystemExit("app was imported")
            class Thing(Persistent):
                pass
        """)
    )
    subprocess.run([sys.executable, "app.py"], cwd=tmp_path, check=True)
    finished = durus("stats", tmp_path / "app.durus", env={"PYTHONPATH": str(tmp_path)})
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "app.Thing\n" in finished.stdout


def test_what_is_no_class_is_counted_as_a_question_mark(durus: Durus, tmp_path: Path) -> None:
    path = tmp_path / "odd.durus"
    write_classes(path, [b"N.", b"", b"no pickle"])
    report = json.loads(durus("stats", path, "--json").stdout)
    assert report["classes"]["?"]["objects"] == 3


def test_no_class_name_steers_a_terminal(durus: Durus, tmp_path: Path) -> None:
    path = tmp_path / "hostile.durus"
    write_classes(path, [b"\x80\x03capp\nRed\x1b[31m\n."])
    finished = durus("stats", path)
    assert "\x1b" not in finished.stdout
    assert r"app.Red\x1b[31m" in finished.stdout


def test_a_damaged_record_is_one_line_with_its_place(durus: Durus, database: Path) -> None:
    content = bytearray(database.read_bytes())
    content[content.rindex(b"BTree")] ^= 1
    database.write_bytes(content)
    finished = durus("stats", database)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith(f"durus: {database}: damaged at offset ")
    assert finished.stderr.count("\n") == 1


def test_a_database_without_a_root_is_empty(durus: Durus, tmp_path: Path) -> None:
    FileStorage(tmp_path / "new.durus").close()
    report = json.loads(durus("stats", tmp_path / "new.durus", "--json").stdout)
    assert (report["objects"], report["classes"]) == (0, {})


def test_counting_changes_nothing(durus: Durus, database: Path) -> None:
    before = database.read_bytes(), database.stat().st_mtime_ns
    durus("stats", database)
    assert (database.read_bytes(), database.stat().st_mtime_ns) == before
    assert [path.name for path in database.parent.iterdir()] == [database.name]
