"""The FAQ's recipes for renaming classes and modules, over every kind of storage."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from durus.connection import Connection, gen_every_instance, touch_every_reference
from durus.storage import gen_oid_class, get_census
from tests.databases import DATABASES, Database, open_databases

CLASS = """
from durus.persistent import Persistent

class {name}(Persistent):
    def describe(self):
        return {name!r}, self.value
"""


class Modules:
    """Modules of an application, which come and go as in programs that run one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []

    def write(self, module: str, class_name: str) -> Any:
        (self.folder / f"{module}.py").write_text(CLASS.format(name=class_name))
        self.names.append(module)
        importlib.invalidate_caches()
        return importlib.import_module(module)

    def remove(self, module: str) -> None:
        (self.folder / f"{module}.py").unlink(missing_ok=True)
        sys.modules.pop(module, None)
        importlib.invalidate_caches()


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Modules]:
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # else an old .pyc may be found
    modules = Modules(folder)
    yield modules
    for name in modules.names:
        sys.modules.pop(name, None)


@pytest.fixture(params=list(DATABASES.values()), ids=list(DATABASES))
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with open_databases(request, tmp_path) as make:
        yield make()


def fill(database: Database, module: Any) -> None:
    """A program that stores instances of OldClass, here and there, and one of them twice."""
    connection = database.connect()
    root = connection.root
    root["first"] = root["again"] = module.OldClass()
    root["first"].value = 1
    root["deep"] = {"list": [module.OldClass()]}
    root["deep"]["list"][0].value = 2
    root["first"].next = root["deep"]["list"][0]
    connection.commit()


def assert_renamed(database: Database, module: Any, old: bytes) -> None:
    """A program that knows only the new name finds everything, and nothing says `old`."""
    connection = database.connect()
    root = connection.root
    new_class = module.NewClass
    assert type(root["first"]) is type(root["deep"]["list"][0]) is new_class
    assert root["first"] is root["again"]
    assert root["first"].describe() == ("NewClass", 1)
    assert root["first"].next.describe() == ("NewClass", 2)
    assert get_census(connection.get_storage()) == {b"PersistentDict": 1, b"NewClass": 2}
    assert not find_mentions(connection, old)


def find_mentions(connection: Connection[Any], word: bytes) -> list[bytes]:
    """The oids of the objects in whose pickles a word stands."""
    oids = [oid for oid, _ in gen_oid_class(connection.get_storage())]
    return [oid for oid in oids if word in connection.get_stored_pickle(oid)]


def test_a_class_is_renamed_by_putting_the_new_one_where_the_old_one_was(
    database: Database, modules: Modules
) -> None:
    old_module = modules.write("old_module", "OldClass")
    fill(database, old_module)

    new_module = modules.write("new_module", "NewClass")
    old_module.OldClass = new_module.NewClass
    connection = database.connect()
    for obj in gen_every_instance(connection, old_module.OldClass):
        obj._p_note_change()
    touch_every_reference(connection, "OldClass")
    connection.commit()

    modules.remove("old_module")
    assert_renamed(database, new_module, b"OldClass")


def test_a_class_is_renamed_inside_its_module(database: Database, modules: Modules) -> None:
    module = modules.write("old_module", "OldClass")
    fill(database, module)

    modules.remove("old_module")
    module = modules.write("old_module", "NewClass")
    module.OldClass = module.NewClass
    connection = database.connect()
    for obj in gen_every_instance(connection, module.OldClass):
        obj._p_note_change()
    touch_every_reference(connection, "OldClass")
    connection.commit()

    del module.OldClass
    assert_renamed(database, module, b"OldClass")


def test_instances_alone_can_be_changed_before_their_references(
    database: Database, modules: Modules
) -> None:
    """References say the old class until they are stored again; nothing is lost in between."""
    old_module = modules.write("old_module", "OldClass")
    fill(database, old_module)

    new_module = modules.write("new_module", "NewClass")
    old_module.OldClass = new_module.NewClass
    connection = database.connect()
    for obj in gen_every_instance(connection, old_module.OldClass):
        obj._p_note_change()
    connection.commit()

    connection = database.connect()
    assert connection.root["first"].describe() == ("NewClass", 1)
    touch_every_reference(connection, "OldClass")
    connection.commit()
    modules.remove("old_module")
    assert_renamed(database, new_module, b"OldClass")


def test_a_module_is_renamed_through_sys_modules(database: Database, modules: Modules) -> None:
    old_module = modules.write("oldmodule", "OldClass")
    fill(database, old_module)

    modules.remove("oldmodule")
    newmodule = modules.write("newmodule", "OldClass")
    sys.modules["oldmodule"] = newmodule
    connection = database.connect()
    for obj in gen_every_instance(connection, newmodule.OldClass):
        obj._p_note_change()
    touch_every_reference(connection, "oldmodule")
    connection.commit()

    modules.remove("oldmodule")
    newmodule.NewClass = newmodule.OldClass
    connection = database.connect()
    root = connection.root
    assert type(root["first"]) is newmodule.OldClass
    assert root["first"].describe() == ("OldClass", 1)
    assert root["deep"]["list"][0].describe() == ("OldClass", 2)
    assert not find_mentions(connection, b"oldmodule")
