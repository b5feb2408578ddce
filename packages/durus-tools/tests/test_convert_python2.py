"""Databases of Python 2, as `db_to_py3k` of Durus 4.3 reads them: texts become texts.

There is no Python 2 here; its pickles are written by hand, byte for byte as cPickle did.
"""

import datetime
import zlib
from contextlib import closing
from pathlib import Path

import pytest

from durus.connection import Connection
from durus.convert import convert
from durus.error import ObjectError
from durus.file import File
from durus.formats import find_format
from durus.interfaces import Oid
from durus.persistent import Persistent
from durus.record import pack_record
from durus.shelf import Shelf
from durus.storage import open_storage


class Person(Persistent):
    name: str


class Address:
    """An old-style class of Python 2."""

    street: str


MODULE = __name__.encode()


def oid_of(number: int) -> Oid:
    return Oid(number.to_bytes(8))


def python2_record(oid: int, class_name: bytes, state: bytes, *refs: int) -> tuple[bytes, bytes]:
    """As Durus under Python 2 wrote it, with cPickle: one memo, which begins with q\\1."""
    class_pickle = b"\x80\x02c" + class_name + b"\nq\x01."
    data = class_pickle + zlib.compress(b"\x80\x02" + state + b".")
    packed = b"".join(oid_of(ref) for ref in refs)
    return oid_of(oid), pack_record(oid_of(oid), data, packed)


def write_python2_file(path: Path) -> None:
    """A SHELF-1 file of Python 2.

    {'name': 'Ren\\xc3\\xa9', 'title': u'Ren\\xe9', 'when': datetime(2008, 2, 29, 12, 30),
     'long': 1L << 40, 'people': PersistentList, 'address': Address (an old-style class),
     'oid': '\\0\\0\\0\\0\\0\\0\\0\\1', 'set': set(['a']), 'nested': {'a': ['b', ('c',)]}}
    """
    oid_1 = bytes(7) + b"\x01"
    oid_2 = bytes(7) + b"\x02"
    root = (
        b"}q\x02U\x04dataq\x03}q\x04("
        b"U\x04nameq\x05U\x05Ren\xc3\xa9q\x06"
        b"U\x05titleq\x07X\x05\x00\x00\x00Ren\xc3\xa9q\x08"
        b"U\x04whenq\tcdatetime\ndatetime\nq\nU\n\x07\xd8\x02\x1d\x0c\x1e\x00\x00\x00\x00q\x0b\x85q\x0cRq\r"
        b"U\x04longq\x0e\x8a\x06\x00\x00\x00\x00\x00\x01"
        b"U\x06peopleq\x0fU\x08" + oid_1 + b"q\x10cdurus.persistent_list\nPersistentList\nq\x11"
        b"\x86q\x12Q"
        b"U\x07addressq\x13(c" + MODULE + b"\nAddress\nq\x14oq\x15}q\x16U\x06streetq\x17"
        b"U\x0bHigh Streetq\x18sb"
        b"U\x03oidq\x19h\x10"
        b"U\x03setq\x1ac__builtin__\nset\nq\x1b]q\x1cU\x01aq\x1da\x85q\x1eRq\x1f"
        b'U\x06nestedq }q!h\x1d]q"(U\x01bq#U\x01cq$\x85q%es'
        b"us"
    )
    people = (
        b"}q\x02U\x04dataq\x03]q\x04("
        b"U\x08" + oid_2 + b"q\x05c" + MODULE + b"\nPerson\nq\x06\x86q\x07Q"
        b"h\x05h\x06\x86q\x08Qes"
    )
    person = (
        b"}q\x02(U\x04nameq\x03U\x03Annq\x04U\x07friendsq\x05]q\x06"
        b"U\x08" + oid_2 + b"q\x07h\x01\x86q\x08QaU\x04rootq\tU\x08" + bytes(8) + b"q\n"
        b"cdurus.persistent_dict\nPersistentDict\nq\x0b\x86q\x0cQu"
    )
    records = [
        python2_record(0, b"durus.persistent_dict\nPersistentDict", root, 1),
        python2_record(1, b"durus.persistent_list\nPersistentList", people, 2),
        python2_record(2, MODULE + b"\nPerson", person, 0),
    ]
    with closing(File(str(path))) as file:
        for _ in Shelf.generate_shelf(file, records):
            pass


@pytest.mark.parametrize("to", ["log", "shelf", "dfs20", "sqlite"])
@pytest.mark.parametrize("renumber", [False, True])
def test_a_database_of_python_2_is_read_as_texts(tmp_path: Path, to: str, renumber: bool) -> None:
    path, target = tmp_path / "python2", tmp_path / "target"
    write_python2_file(path)
    conversion = convert(path, target, to=to, python2=True, renumber=renumber)
    assert conversion.objects == 3
    assert conversion.warnings == (
        "object 0, a durus.persistent_dict.PersistentDict: b'Ren\\xc3\\xa9' is not ASCII, and "
        "stays bytes",
    )
    assert list(find_format(target).verify(str(target))) == []
    with Connection(target) as connection:
        root = connection.root
        address = root.pop("address")
        assert type(address) is Address
        assert address.street == "High Street"
        ann, again = root.pop("people")
        assert ann is again is ann.friends[0]
        assert ann.name == "Ann"
        assert ann.root is root
        assert dict(root) == {
            "name": b"Ren\xc3\xa9",
            "title": "René",
            "when": datetime.datetime(2008, 2, 29, 12, 30),
            "long": 1 << 40,
            "oid": bytes(7) + b"\x01",
            "set": {"a"},
            "nested": {"a": ["b", ("c",)]},
        }


def test_without_being_told_records_of_python_2_stay_as_they_are(tmp_path: Path) -> None:
    """A warning says so, and loading says what is wrong with one."""
    path, target = tmp_path / "python2", tmp_path / "target"
    write_python2_file(path)
    assert convert(path, target).warnings == (
        "object 0, a durus.persistent_dict.PersistentDict, was written by Python 2, as others may "
        "be: without python2=True some of its strings may be wrong, or fail to load",
    )
    with closing(open_storage(target)) as storage, pytest.raises(ObjectError, match="ascii"):
        Connection(storage)
    with pytest.raises(ObjectError, match=r"object 0, a durus.*Ren.*python2=True"):
        convert(path, tmp_path / "renumbered", renumber=True)
    assert not (tmp_path / "renumbered").exists()


def test_too_many_warnings_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "python2"
    strings = b"".join(b"U\x01" + bytes([number % 128 + 128]) for number in range(1500))
    root = b"}U\x04data}U\x01a](" + strings + b"ess"
    with closing(File(str(path))) as file:
        record = python2_record(0, b"durus.persistent_dict\nPersistentDict", root)
        for _ in Shelf.generate_shelf(file, [record]):
            pass
    warnings = convert(path, tmp_path / "target", python2=True).warnings
    assert len(warnings) == 1001
    assert warnings[-1] == "and 500 more like these"
