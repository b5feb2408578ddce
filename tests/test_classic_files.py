"""Files of Durus 4.3, changed in turn by it and by us; and what each leaves when it is killed.

One program, written for 4.3, runs under either.  At every turn it checks every value that it finds
against what must be there, and changes much of it.
"""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from durus.classic_file import DamagedEndError
from durus.classic_transfer import read_dfs20, read_shelf, write_dfs20, write_shelf
from durus.classic_verify import verify_dfs20, verify_shelf
from durus.error import StorageLockedError
from durus.file_format import StoredDatabase, StoredTransaction
from durus.file_storage2 import FileStorage2
from durus.interfaces import Oid, Record
from durus.shelf_storage import ShelfStorage
from scripts.environments import Environment

OURS = Environment(Path(sys.executable))
VERIFY = {"shelf": verify_shelf, "dfs20": verify_dfs20}
READ = {"shelf": read_shelf, "dfs20": read_dfs20}
WRITE = {"shelf": write_shelf, "dfs20": write_dfs20}

SHOP = """
from durus.persistent import Persistent

class Account(Persistent):
    def __init__(self, owner, balance):
        self.owner = owner
        self.balance = balance
        self.friends = []

class Branch(Account):
    pass
"""

OPEN = """
import sys
from durus.file_storage2 import FileStorage2
try:
    from durus.shelf_storage import ShelfStorage
except ImportError:  # 4.3
    from durus.file_storage import FileStorage as ShelfStorage

def open_storage(kind, path, **options):
    return (ShelfStorage if kind == "shelf" else FileStorage2)(path, **options)
"""

PROGRAM = """
import datetime
from decimal import Decimal
from durus.btree import BTree
from durus.connection import Connection
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.persistent_set import PersistentSet
from opening import open_storage, sys
from shop import Account, Branch

def large(turn):
    return bytes(range(256)) * 2000 + str(turn).encode()

def check(root, turn):
    assert root["turn"] == turn
    assert dict(root["dict"]) == {str(n): (n, "\\u20ac" * n) for n in range(3 * turn)}
    assert list(root["list"]) == [Decimal(n) / 4 for n in range(turn)]
    assert set(root["set"]) == {frozenset([n]) for n in range(turn)}
    assert root["when"] == datetime.datetime(2020, 1, 1 + turn, 12)
    expected = [n for n in range(100 * turn) if n % 7 or n // 100 == turn - 1]
    assert list(root["tree"]) == expected
    assert [root["tree"][n] for n in expected[::50]] == [-n for n in expected[::50]]
    assert root["large"]["value"] == large(turn)
    ann, bob = root["ann"], root["bob"]
    assert type(ann) is Account and type(bob) is Branch
    assert (ann.owner, ann.balance) == ("ann", 10 * turn)
    assert (bob.owner, bob.balance) == ("bob", -turn)
    assert ann.friends[0] is bob and bob.friends[0] is ann  # shared, and in a circle
    assert len(ann.friends) == 1 + turn
    for n, friend in enumerate(ann.friends[1:]):
        assert (friend.owner, friend.balance) == ("friend", n)
        assert friend.friends == [ann]

def begin(root):
    root["turn"] = 0
    root["dict"], root["list"], root["set"] = PersistentDict(), PersistentList(), PersistentSet()
    root["tree"] = BTree()
    root["large"] = PersistentDict(value=large(0))
    root["when"] = datetime.datetime(2020, 1, 1, 12)
    root["ann"], root["bob"] = ann, bob = Account("ann", 0), Branch("bob", 0)
    ann.friends.append(bob)
    bob.friends.append(ann)

def change(root, turn):
    root["turn"] = turn
    for n in range(3 * turn - 3, 3 * turn):
        root["dict"][str(n)] = (n, "\\u20ac" * n)
    root["list"].append(Decimal(turn - 1) / 4)
    root["set"].add(frozenset([turn - 1]))
    root["when"] += datetime.timedelta(days=1)
    for n in list(root["tree"]):
        if n % 7 == 0:
            del root["tree"][n]
    for n in range(100 * turn - 100, 100 * turn):
        root["tree"][n] = -n
    connection.commit()
    if turn % 2:
        root["large"]["value"] = large(turn)
    else:
        root["large"] = PersistentDict(value=large(turn))  # the old one is garbage now
    ann = root["ann"]
    ann.balance += 10
    root["bob"].balance -= 1
    friend = Account("friend", turn - 1)
    friend.friends.append(ann)
    ann.friends = ann.friends + [friend]
    connection.commit()

kind, path, turn, pack = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
storage = open_storage(kind, path)
connection = Connection(storage)
root = connection.get_root()
if turn == 1:
    begin(root)
    connection.commit()
check(root, turn - 1)
change(root, turn)
check(root, turn)
if pack == "pack":
    connection.pack()
    connection.abort()
    check(root, turn)
    root["dict"]["after the pack"] = 1
    connection.commit()
    del root["dict"]["after the pack"]
    connection.commit()
storage.close()
again = open_storage(kind, path, readonly=True)
connection = Connection(again)
check(connection.get_root(), turn)
again.close()
"""


@pytest.fixture(params=["shelf", "dfs20"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def theirs(durus43_python: Path) -> Environment:
    return Environment(durus43_python)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, code in (("shop", SHOP), ("opening", OPEN), ("program", PROGRAM)):
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    return tmp_path


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "database"


def take_turn(who: Environment, kind: str, path: Path, turn: int, pack: bool = False) -> None:
    arguments = (kind, str(path), str(turn), "pack" if pack else "")
    who.run("program.py", *arguments, folder=path.parent)


def open_ours(kind: str, path: Path, *, repair: bool = False) -> ShelfStorage | FileStorage2:
    return (ShelfStorage if kind == "shelf" else FileStorage2)(path, repair=repair)


def contents(kind: str, path: Path) -> dict[bytes, bytes]:
    with open_ours(kind, path) as storage:
        return dict(storage.gen_oid_record())


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_a_file_is_changed_and_packed_in_turn(
    kind: str, path: Path, theirs: Environment, first: str
) -> None:
    both = (OURS, theirs) if first == "ours" else (theirs, OURS)
    for turn in range(1, 13):
        # Each packs what itself has written, what the other one has, and what that has packed.
        take_turn(both[turn % 2 - 1], kind, path, turn, pack=turn in (3, 4, 5, 8, 9, 12))
        assert list(VERIFY[kind](str(path))) == []


def test_both_pack_to_the_same(kind: str, path: Path, theirs: Environment) -> None:
    for turn in range(1, 5):
        take_turn((OURS, theirs)[turn % 2], kind, path, turn, pack=turn == 2)
    other = path.with_name("other")
    shutil.copyfile(path, other)
    with open_ours(kind, path) as storage:
        storage.pack()
        removed = storage.sync()
    pack = "from opening import *\nopen_storage(*sys.argv[1:]).pack()"
    theirs.run("-c", pack, kind, other, folder=path.parent)
    assert contents(kind, path) == contents(kind, other)
    assert removed
    if kind == "shelf":
        assert path.read_bytes() == other.read_bytes()
    for prepack in (path, other):
        assert (path.parent / f"{prepack.name}.prepack").exists()
        assert not (path.parent / f"{prepack.name}.pack").exists()


@pytest.mark.parametrize("target", ["shelf", "dfs20"])
def test_a_file_that_was_written_whole_is_used_by_4_3(
    kind: str, target: str, path: Path, theirs: Environment
) -> None:
    take_turn(theirs, kind, path, 1, pack=True)
    take_turn(theirs, kind, path, 2)
    newest: dict[Oid, Record] = {}
    with READ[kind](str(path)) as database:
        for transaction in database.transactions:
            newest.update(transaction.records)
    written = path.with_name("written")
    records = StoredTransaction(records=newest.items())
    WRITE[target](str(written), StoredDatabase(transactions=[records]))
    for turn, who in ((3, theirs), (4, OURS), (5, theirs)):
        take_turn(who, target, written, turn, pack=turn == 5)
        assert list(VERIFY[target](str(written))) == []


# Killed.

KILLED = """
import os, signal
from durus.connection import Connection
from durus.file import File
from opening import open_storage, sys

kind, path, calls, halves = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
connection = Connection(open_storage(kind, path))
root = connection.get_root()
root["dict"]["lost"] = "x" * 1000
root["list"].append("lost")
write = File.write

def write_and_die(self, content):
    global calls
    calls -= 1
    if not calls:
        write(self, content[: len(content) * halves // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, content)

File.write = write_and_die
connection.commit()
print(calls)
"""


def test_what_a_killed_4_3_leaves_is_repaired(
    kind: str, folder: Path, path: Path, theirs: Environment
) -> None:
    (folder / "killed.py").write_text(KILLED, encoding="utf-8")
    take_turn(theirs, kind, path, 1, pack=True)
    content, before = path.read_bytes(), contents(kind, path)
    finished = theirs.run("killed.py", kind, str(path), "1000", "0", folder=folder)
    calls = 1000 - int(finished.stdout)
    whole = path.read_bytes()
    assert calls in (5, 8)  # of two records
    damaged = 0
    for call in range(1, calls + 1):
        for halves in (0, 1, 2):
            path.write_bytes(content)
            killed = theirs.run(
                "killed.py", kind, str(path), str(call), str(halves), folder=folder, check=False
            )
            assert killed.returncode == -signal.SIGKILL
            left = path.read_bytes()
            offset = repair_if_damaged(kind, path)
            if offset is None:
                # A whole transaction, or lengths of 0, which are transactions of nothing.
                assert left == whole or not left[len(content) :].strip(b"\0")
                assert (contents(kind, path) == before) == (left != whole)
            else:
                assert offset == len(content)
                assert path.read_bytes() == content
                assert contents(kind, path) == before
                damaged += 1
    assert damaged > 2 * calls
    path.write_bytes(whole[:-5])
    repair_if_damaged(kind, path)
    take_turn(theirs, kind, path, 2)
    take_turn(OURS, kind, path, 3, pack=True)


def repair_if_damaged(kind: str, path: Path) -> int | None:
    """Where the damage was; None if there was none."""
    left = path.read_bytes()
    try:
        open_ours(kind, path).close()
    except DamagedEndError as error:
        offset = error.offset
    else:
        return None
    assert path.read_bytes() == left
    open_ours(kind, path, repair=True).close()
    return offset


# The lock.

HOLD = """
from opening import *
storage = open_storage(*sys.argv[1:])
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_open(who: Environment, kind: str, path: Path) -> Iterator[int]:
    """Another process has the file open; its id."""
    with subprocess.Popen(
        [who.python, "-c", HOLD, kind, path],
        cwd=path.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield process.pid


def test_what_4_3_has_open_we_only_read(kind: str, path: Path, theirs: Environment) -> None:
    take_turn(theirs, kind, path, 1)
    with held_open(theirs, kind, path) as pid:
        for repair in (False, True):
            with pytest.raises(StorageLockedError, match=f"process {pid} has the file") as caught:
                open_ours(kind, path, repair=repair)
            assert str(path) in str(caught.value)
        code = "from opening import *\nfrom durus.connection import Connection\n"
        code += "connection = Connection(open_storage(*sys.argv[1:], readonly=True))\n"
        code += "print(connection.get_root()['turn'])"
        assert OURS.run("-c", code, kind, path, folder=path.parent).stdout == "1\n"
    open_ours(kind, path).close()


def test_what_we_have_open_4_3_only_reads(kind: str, path: Path, theirs: Environment) -> None:
    take_turn(theirs, kind, path, 1)
    opening = "from opening import *\nfrom durus.connection import Connection\n"
    opening += "connection = Connection(open_storage(*sys.argv[1:]{}))\n"
    opening += "print(connection.get_root()['turn'])"
    with held_open(OURS, kind, path):
        refused = theirs.run("-c", opening.format(""), kind, path, folder=path.parent, check=False)
        assert refused.returncode == 1
        assert "BlockingIOError" in refused.stderr
        readonly = opening.format(", readonly=True")
        assert theirs.run("-c", readonly, kind, path, folder=path.parent).stdout == "1\n"
    assert theirs.run("-c", opening.format(""), kind, path, folder=path.parent).stdout == "1\n"


def test_after_our_pack_4_3_cannot_open_what_we_have_open(
    kind: str, path: Path, theirs: Environment
) -> None:
    take_turn(OURS, kind, path, 1)
    code = "from opening import *\nopen_storage(*sys.argv[1:])"
    with open_ours(kind, path) as storage:
        storage.pack()
        refused = theirs.run("-c", code, kind, path, folder=path.parent, check=False)
        assert "BlockingIOError" in refused.stderr
    theirs.run("-c", code, kind, path, folder=path.parent)
