"""Conversion beside Durus 4.3: of what it wrote, for it to go on with, and from its server.

One program, written for 4.3, runs under either and prints all that it finds, in one text.
"""

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import pytest

from durus.client_storage import ClientStorage
from durus.connection import Connection
from durus.convert import convert
from durus.error import StorageError
from durus.file import File
from durus.file_storage import FileStorage
from durus.formats import find_format
from durus.interfaces import Oid
from durus.persistent_dict import PersistentDict
from durus.record import pack_record
from durus.shelf import Shelf
from durus.storage import open_storage
from durus.storage_server import wait_for_server
from scripts.environments import Environment, run

OURS: Final = Environment(Path(sys.executable))

MODEL: Final = """
from durus.persistent import Persistent

class Person(Persistent):
    def __init__(self, name):
        self.name = name
        self.friends = []

class Address(object):
    def __init__(self, street):
        self.street = street
"""

PROGRAM: Final = """
import sys
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from durus.btree import BTree
from durus.connection import Connection
from durus.persistent import PersistentBase
from durus.persistent_dict import PersistentDict
from durus.persistent_list import PersistentList
from durus.persistent_set import PersistentSet
from model import Address, Person

def open_storage(kind, path):
    if kind == "any":
        from durus.storage import open_storage
        return open_storage(path)
    if kind == "sqlite4":
        from durus.sqlite_storage import SqliteStorage
        return SqliteStorage(path)
    if kind == "dfs20":
        from durus.file_storage2 import FileStorage2
        return FileStorage2(path)
    from durus.file_storage import FileStorage
    return FileStorage(path)

def fill(root):
    ann, bob = Person("Ann"), Person("Bob")
    ann.friends, bob.friends = [bob, bob], [ann]
    root["people"] = PersistentDict(ann=ann, bob=bob)
    tree = root["tree"] = BTree()
    for number in range(500):
        tree[number] = PersistentList([number, str(number), ann])
    root["set"] = PersistentSet(["a", "b"])
    shared = ["shared"]
    root["values"] = [
        1.5, 2**70, -1, True, None, u"\\u20ac", b"\\xff\\x00", (), (1, (2, 3)), {"a": shared},
        set([1]), frozenset([2]), shared, bytearray(b"abc"), Decimal("1.50"), b"",
        datetime(2024, 2, 29, 12), date(2024, 2, 29), time(1, 2), timedelta(3),
    ]
    root["address"] = Address("High Street")
    root["circle"] = circle = []
    circle.append(circle)
    root["class"] = Person
    root["count"] = 0

def change(root):
    root["count"] += 1
    count = root["count"]
    root["people"]["new %d" % count] = person = Person("New")
    person.friends = [root["people"]["ann"]]
    for number in list(root["tree"])[::7]:
        root["tree"][number].append(count)
    del root["tree"][next(iter(root["tree"]))]
    root["set"].add("c%d" % count)

def show(value, seen, shown):
    if isinstance(value, (PersistentBase, list, dict, Address)):
        # Named by the place where it was met first: oids may differ.
        if id(value) in seen:
            return "<%d>" % seen[id(value)][0]
        seen[id(value)] = len(seen), value
    if isinstance(value, BTree):
        inner = show(list(value.items()), seen, shown)
    elif isinstance(value, PersistentSet):
        inner = show(sorted(value), seen, shown)
    elif isinstance(value, PersistentBase):
        inner = show(value.__getstate__(), seen, shown)
    elif isinstance(value, Address):
        inner = show(vars(value), seen, shown)
    elif isinstance(value, dict):
        inner = ", ".join(
            "%s: %s" % (show(key, seen, shown), show(value[key], seen, shown))
            for key in sorted(value)
        )
    elif isinstance(value, (list, tuple)):
        inner = ", ".join([show(part, seen, shown) for part in value])
    else:
        inner = repr(value)
    return "%s(%s)" % (type(value).__name__, inner)

action, kind, path = sys.argv[1:]
sys.setrecursionlimit(10**6)
storage = open_storage(kind, path)
connection = Connection(storage)
root = connection.get_root()
if action == "fill":
    fill(root)
    connection.commit()
    root["garbage"] = Person("Nobody")
    connection.commit()
    if kind != "sqlite4":  # its new_oid goes on at a used one
        connection.pack()
    root["garbage"] = None
    root["count"] = 7
    connection.commit()
elif action == "change":
    change(root)
    connection.commit()
print(show(root, {}, []))
storage.close()
"""


class Programs:
    """The program, run by 4.3 and by us."""

    def __init__(self, folder: Path, python: Path) -> None:
        (folder / "model.py").write_text(MODEL)
        (folder / "program.py").write_text(PROGRAM)
        self.folder = folder
        self.theirs = Environment(python)

    def run(self, environment: Environment, action: str, kind: str, path: Path) -> str:
        """What it prints: all that is in the database."""
        program = self.folder / "program.py"
        return environment.run(program, action, kind, path, folder=self.folder).stdout

    def show(self, path: Path) -> str:
        return self.run(OURS, "show", "any", path)

    def change(self, path: Path) -> str:
        return self.run(OURS, "change", "any", path)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, durus43_python: Path) -> Programs:
    return Programs(tmp_path_factory.mktemp("programs"), durus43_python)


@pytest.fixture(scope="module")
def written(programs: Programs) -> dict[str, tuple[Path, str]]:
    """Files of 4.3, and what is in them."""
    found = {}
    for kind in ("shelf", "dfs20", "sqlite4"):
        path = programs.folder / kind
        found[kind] = path, programs.run(programs.theirs, "fill", kind, path)
    return found


def check_sound(path: Path) -> None:
    assert list(find_format(path).verify(str(path))) == []


@pytest.mark.parametrize("renumber", [False, True])
@pytest.mark.parametrize("to", ["log", "shelf", "dfs20", "sqlite"])
@pytest.mark.parametrize("kind", ["shelf", "dfs20", "sqlite4"])
def test_what_4_3_wrote_is_there_after_conversion(
    tmp_path: Path,
    programs: Programs,
    written: dict[str, tuple[Path, str]],
    kind: str,
    to: str,
    renumber: bool,
) -> None:
    path, content = written[kind]
    target = tmp_path / "target"
    conversion = convert(path, target, to=to, renumber=renumber)
    assert conversion.source_format == kind
    assert conversion.warnings == ()
    check_sound(target)
    assert programs.show(target) == content


@pytest.mark.parametrize("renumber", [False, True])
@pytest.mark.parametrize("kind", ["shelf", "dfs20"])
@pytest.mark.parametrize("source", ["shelf", "dfs20", "sqlite4", "ours"])
def test_4_3_goes_on_with_what_was_converted(
    tmp_path: Path,
    programs: Programs,
    written: dict[str, tuple[Path, str]],
    source: str,
    kind: str,
    renumber: bool,
) -> None:
    if source == "ours":
        path = tmp_path / "log"
        content = programs.run(OURS, "fill", "any", path)
    else:
        path, content = written[source]
    target = tmp_path / "target"
    convert(path, target, to=kind, renumber=renumber)
    assert programs.run(programs.theirs, "show", kind, target) == content
    changed = programs.run(programs.theirs, "change", kind, target)
    assert changed != content
    assert programs.show(target) == changed
    again = programs.change(target)
    assert programs.run(programs.theirs, "show", kind, target) == again
    check_sound(target)
    back = tmp_path / "back"
    convert(target, back)
    check_sound(back)
    assert programs.show(back) == again


# Python 2


def test_python_2_is_read_as_4_3_does(
    tmp_path: Path, programs: Programs, durus43_sdist: Path
) -> None:
    """4.3 has a script for it: what that makes of the file, and what we do, is the same."""
    with tarfile.open(durus43_sdist) as sdist:
        script = sdist.extractfile("durus-4.3/bin/db_to_py3k.py")
        assert script is not None
        (tmp_path / "db_to_py3k.py").write_bytes(script.read())
    (tmp_path / "model.py").write_text(MODEL)
    path, theirs, ours = (tmp_path / name for name in ("python2", "theirs", "ours"))
    state = (
        b"\x80\x02}q\x02U\x04dataq\x03}q\x04("
        b"U\x04nameq\x05U\x05Ren\xc3\xa9q\x06"
        b"U\x05titleq\x07X\x05\x00\x00\x00Ren\xc3\xa9q\x08"
        b"U\x04whenq\tcdatetime\ndatetime\nq\nU\n\x07\xd8\x02\x1d\x0c\x1e\x00\x00\x00\x00q\x0b\x85"
        b"q\x0cRq\rU\x04longq\x0e\x8a\x06\x00\x00\x00\x00\x00\x01"
        b"U\x07addressq\x0f(cmodel\nAddress\nq\x10oq\x11}q\x12U\x06streetq\x13U\x04Highq\x14sb"
        b"U\x03oidq\x15U\x08\x00\x00\x00\x00\x00\x00\x00\x01q\x16"
        b"U\x06personq\x17h\x16cmodel\nPerson\nq\x18\x86q\x19Q"
        b"us."
    )
    class_pickles = [
        b"\x80\x02cdurus.persistent_dict\nPersistentDict\nq\x01.",
        b"\x80\x02cmodel\nPerson\nq\x01.",
    ]
    oids = [Oid(number.to_bytes(8, "big")) for number in range(2)]
    records = [
        (oids[0], pack_record(oids[0], class_pickles[0] + state, oids[1])),
        (oids[1], pack_record(oids[1], class_pickles[1] + b"\x80\x02}U\x04nameU\x03Anns.", b"")),
    ]
    with closing(File(str(path))) as file:
        for _ in Shelf.generate_shelf(file, records):
            pass
    run(programs.theirs.python, "db_to_py3k.py", path, theirs, folder=tmp_path)
    (warning,) = convert(path, ours, python2=True).warnings
    assert "Ren" in warning
    shown = programs.run(programs.theirs, "show", "shelf", theirs)
    assert "bytes(b'Ren" in shown
    assert programs.show(ours) == shown


# Servers


@contextmanager
def serving(environment: Environment, path: Path, address: Path) -> Iterator[str]:
    """A server of the file at `path`; its URI."""
    command = [environment.python, "-m", "durus", "-s", "--file", path, "--address", address]
    server = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_server(address=str(address), maxtries=100, sleeptime=0.1)
        yield f"durus+unix://{address}"
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize("whose", ["theirs", "ours"])
def test_what_a_server_has_is_converted(
    tmp_path: Path, programs: Programs, written: dict[str, tuple[Path, str]], whose: str
) -> None:
    path, content = written["shelf"]
    environment = programs.theirs if whose == "theirs" else OURS
    copy, target = tmp_path / "copy", tmp_path / "target"
    copy.write_bytes(path.read_bytes())
    with serving(environment, copy, tmp_path / "socket") as uri:
        conversion = convert(uri, target)
    assert (conversion.source_format, conversion.history) == ("durus+unix", False)
    check_sound(target)
    assert programs.show(target) == content


def test_a_change_on_the_server_meanwhile_is_told(tmp_path: Path) -> None:
    """The protocol of 4.x has no snapshots that last."""
    path, target = tmp_path / "file", tmp_path / "target"
    with closing(FileStorage(path)) as storage:
        connection = Connection(storage)
        for number in range(300):
            connection.root[str(number)] = PersistentDict()
        connection.commit()
    with serving(OURS, path, tmp_path / "socket") as uri:
        other = Connection(ClientStorage(address=str(tmp_path / "socket")))

        def change(done: int, total: int | None) -> None:
            for number in range(300):
                other.root[str(number)]["changed"] = done
            other.commit()

        with pytest.raises(StorageError, match=r"was changed while it was read.*Try again"):
            convert(uri, target, progress=change)
        other.get_storage().close()
        assert not target.exists()
        convert(uri, target)
    with closing(open_storage(target)) as storage_again:
        assert Connection(storage_again).root["299"]["changed"]
