"""docs/compatibility.md says what has become of every public name of Durus 4.3, and it is true."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.compatibility import ABSENT, find_ours, find_problems, read_document
from scripts.environments import Environment
from scripts.public_names import (
    COMMAND_LINE,
    SCRIPTS,
    Name,
    Parameters,
    read_names,
    read_sdist,
)

DOCUMENT = Path(__file__).parents[1] / "docs" / "compatibility.md"

DUMP_NAMES = """
import importlib, inspect, json, pkgutil, durus

names = []
for info in pkgutil.iter_modules(durus.__path__, "durus."):
    module = importlib.import_module(info.name)
    for name, value in vars(module).items():
        if getattr(value, "__module__", "") != module.__name__:
            continue
        names.append([module.__name__, "", name])
        if inspect.isclass(value):
            names += [[module.__name__, name, member] for member in vars(value)]
print(json.dumps(names))
"""


@pytest.fixture(scope="module")
def names(durus43_sdist: Path) -> list[Name]:
    """The public names of Durus 4.3."""
    return read_names(read_sdist(durus43_sdist))


def test_the_document_has_every_name_of_durus43_and_tells_the_truth(names: list[Name]) -> None:
    problems = list(find_problems(names, read_document(DOCUMENT.read_text("utf-8")), find_ours))
    assert not problems, "\n".join(problems)


def test_nothing_that_durus43_defines_is_missing_in_the_list(
    names: list[Name], durus43_python: Path
) -> None:
    """What Python itself finds there when it runs, and does not begin with an underscore."""
    printed = Environment(durus43_python).run("-c", DUMP_NAMES).stdout
    found = {tuple(name) for name in json.loads(printed)}
    listed = {(name.module, name.owner, name.name) for name in names}
    missing = {
        (module, owner, name)
        for module, owner, name in found - listed
        if not owner.startswith("_") and (not name.startswith("_") or name.startswith("_p_"))
    }
    # Each stands with its base class, BNode, which has it too.
    assert missing == {
        ("durus.btree", f"BNode{2**i}", name)
        for i in range(2, 10)
        for name in ("minimum_degree", "items_is", "nodes_is")
    }


# The list


MODULE = """
import os
from os import getpid
from os.path import exists
from durus.utils import write as put
if sys.version < '3':
    def old(): pass
else:
    new = range
try:
    from durus._fast import Base
except ImportError:
    class Base(object): pass

LIMIT = _private = 3

class Shop(Base):
    __slots__ = ['goods', '__weakref__']
    kind = None

    def __init__(self, name, size=1):
        self.name, self._secret = name, size
        other.name2 = 1

    def __len__(self): pass
    def __clear(self): pass
    def sell(self, what, count=1, *args, **kwargs): pass
    trade = sell
    def make(cls): pass
    make = classmethod(make)
    def parse(text): pass
    parse = staticmethod(parse)

class Kiosk(Shop):
    kind = 'small'
    def sell(self, what): pass

for cls in [Shop] + Shop.__subclasses__():
    cls.kind_is = str
del cls

class _Hidden: pass
"""


def read_module(source: str, **others: str) -> dict[str, Name]:
    files = {"durus/shop.py": source}
    files |= {f"durus/{name}.py": other for name, other in others.items()}
    return {
        f"{name.owner}.{name.name}".lstrip("."): name
        for name in read_names(files)
        if name.module == "durus.shop"
    }


def test_the_list_has_what_modules_and_classes_define() -> None:
    assert set(read_module(MODULE)) == {
        "LIMIT",
        "new",
        "put",
        "Base",
        "Shop",
        "Shop.goods",
        "Shop.kind",
        "Shop.kind_is",
        "Shop.name",
        "Shop.__len__",
        "Shop.sell",
        "Shop.trade",
        "Shop.make",
        "Shop.parse",
        "Kiosk",
        "Kiosk.sell",
    }


def test_the_list_knows_what_functions_can_be_called_with() -> None:
    found = read_module(MODULE)
    sell = Parameters(("what", "count"), frozenset({"count"}), True, True)
    assert found["Shop.sell"].parameters == sell
    assert found["Shop.trade"].parameters == sell
    assert found["Shop"].parameters == Parameters(("name", "size"), frozenset({"size"}))
    assert found["Shop.make"].parameters == Parameters((), frozenset())
    assert found["Shop.parse"].parameters == Parameters(("text",), frozenset())
    assert found["LIMIT"].parameters is None


def test_an_import_is_listed_with_its_home_and_a_definition_comes_before_it() -> None:
    found = read_module(MODULE)
    assert found["put"].home == "durus.utils"
    assert found["Base"].home == ""


def test_what_is_imported_from_the_standard_library_counts_if_others_import_it_from_there() -> None:
    assert "getpid" in read_module(MODULE, user="from durus.shop import getpid")
    assert "getpid" not in read_module(MODULE, user="from os import getpid")


def test_the_list_has_what_the_c_module_exports() -> None:
    source = """
    static PyMethodDef methods[] = {
        {"_fast", fast, METH_VARARGS, fast_doc},
        {"slow", slow,
            METH_VARARGS, slow_doc},
        {NULL, NULL, 0, NULL}
    };
    PyDict_SetItemString(d, "Base", x);
    """
    assert read_names({"durus/_quick.c": source}) == [
        Name("durus._quick", "", name) for name in ("Base", "_fast", "slow")
    ]


def test_the_list_has_scripts_and_the_options_of_the_command() -> None:
    source = """
def serve_main():
    parser.add_option('--port', type='int')
def main():
    if arg == '-s':
        serve_main()
"""
    listed = read_names({"bin/durus": "", "durus/__main__.py": source})
    assert Name(SCRIPTS, "", "durus") in listed
    assert Name(COMMAND_LINE, "durus", "-s") in listed
    assert Name(COMMAND_LINE, "durus -s", "--port") in listed


# The comparison


HOME = object()
"""What every other module has under every name."""


def problems_of(source: str, document: str, **ours: object) -> list[str]:
    """What is found when 4.3 is one module, durus.shop, and this is what we have."""

    def find(name: Name) -> object:
        key = "_".join(filter(None, (name.owner, name.name)))
        return ours.get(key, ABSENT) if name.module == "durus.shop" else HOME

    document = f"## `durus.shop`\n\n| name | in Durus 5 | |\n|---|---|---|\n{document}\n"
    return list(find_problems(read_module(source).values(), read_document(document), find))


def test_a_document_that_is_right_has_no_problems() -> None:
    source = "from durus.utils import put\nA = B = C = 1\nclass D:\n    def sell(self): pass"
    document = """
| `A` | same | As ever. |
| `B` | changed | Larger. |
| `C` | gone | Nobody used it. |
| `D` | same | |
| `D`: `sell` | same | |
| imported: `put` | same | |
"""
    ours = {"A": 1, "B": 2, "D": object(), "D_sell": lambda: None, "put": HOME}
    assert problems_of(source, document, **ours) == []


def test_a_name_that_the_document_leaves_out_is_found() -> None:
    found = problems_of("A = 1\nclass B:\n    def sell(self): pass", "| `B` | same | |", B=2)
    assert found == [
        "durus.shop.A is not in the document",
        "durus.shop.B.sell is not in the document",
    ]


def test_a_name_that_durus43_does_not_have_is_found() -> None:
    found = problems_of("A = 1", "| `A`, `Z` | same | |", A=1)
    assert found == ["durus.shop.Z is in the document, but 4.3 has no such name"]


def test_a_name_that_stands_there_twice_is_found() -> None:
    found = problems_of("A = 1", "| `A` | same | |\n| `A` | changed | Larger. |", A=1)
    assert found == ["durus.shop.A is in the document 2 times"]


@pytest.mark.parametrize("status", ["same", "changed"])
def test_a_name_that_is_there_no_more_is_found(status: str) -> None:
    found = problems_of("A = 1", f"| `A` | {status} | It is. |")
    assert found == [f"durus.shop.A is said to be {status}, but we do not have it"]


def test_a_gone_name_that_is_there_is_found() -> None:
    found = problems_of("A = 1", "| `A` | gone | It is. |", A=1)
    assert found == ["durus.shop.A is said to be gone, but we have it"]


def test_a_change_needs_a_how_and_a_loss_a_why() -> None:
    found = problems_of("A = B = 1", "| `A` | gone | |\n| `B` | changed | |", B=1)
    assert found == [
        "durus.shop.A is said to be gone, but not why",
        "durus.shop.B is said to be changed, but not how",
    ]


def test_any_other_status_is_found() -> None:
    found = problems_of("A = 1", "| `A` | similar | |", A=1)
    assert found == ["durus.shop.A: 'similar' is none of same, changed, gone"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("a, b=1", lambda a, b=2: ...),
        ("a, b", lambda a, b=2: ...),
        ("a", lambda a, b=1, *c, d=2, **e: ...),
        ("a, *b", lambda a, b=1: ...),
        ("a, **b", lambda a, *, b=1: ...),
        ("a, *b, **c", lambda a, *b, **c: ...),
    ],
)
def test_a_function_is_the_same_if_it_takes_every_call(
    theirs: str, ours: Callable[..., Any]
) -> None:
    assert problems_of(f"def f({theirs}): pass", "| `f` | same | |", f=ours) == []


@pytest.mark.parametrize(
    ("theirs", "ours", "problem"),
    [
        ("a", lambda: ..., "it has no parameter 'a' at position 1"),
        ("a", lambda b: ..., "its parameter 1 is 'b' and not 'a'"),
        ("a, b", lambda b, a: ..., "its parameter 1 is 'b' and not 'a'"),
        ("a=1", lambda a: ..., "its parameter 'a' has no default"),
        ("a", lambda a, /: ..., "its parameter 'a' cannot be given by keyword"),
        ("a", lambda *, a: ..., "it has no parameter 'a' at position 1"),
        ("a", lambda a, b: ..., "it needs a parameter 'b'"),
        ("a", lambda a, *, b: ..., "it needs a parameter 'b'"),
        ("*a", lambda *, a=1: ..., "it takes no further arguments"),
        ("**a", lambda a=1, /: ..., "it takes no further keywords"),
        ("a", 1, "it cannot be called"),
    ],
)
def test_a_function_that_takes_less_is_found(theirs: str, ours: object, problem: str) -> None:
    source = f"def f({theirs}): pass"
    found = problems_of(source, "| `f` | same | |", f=ours)
    assert found == [f"durus.shop.f is said to be the same, but {problem}"]
    assert problems_of(source, "| `f` | changed | It is. |", f=ours) == []


def test_a_class_is_called_as_its_init_says() -> None:
    class Ours:
        def __init__(self, b: int) -> None:
            pass

    source = "class A:\n    def __init__(self, a): pass"
    found = problems_of(source, "| `A` | same | |", A=Ours)
    assert found == ["durus.shop.A is said to be the same, but its parameter 1 is 'b' and not 'a'"]


def test_a_special_method_needs_no_entry_but_must_be_there() -> None:
    source = "class A:\n    def __len__(self): pass"
    assert problems_of(source, "| `A` | same | |", A=1, A___len__=len) == []
    found = problems_of(source, "| `A` | same | |", A=1)
    assert found == ["durus.shop.A.__len__ is said to be same, but we do not have it"]
    assert problems_of(source, "| `A` | same | |\n| `A`: `__len__` | gone | Why? |", A=1) == []
    assert problems_of(source, "| `A` | gone | Nobody used it. |") == []


def test_an_import_must_be_that_of_its_home() -> None:
    found = problems_of("from durus.utils import a", "| imported: `a` | same | |", a="another")
    assert found == ["durus.shop.a is said to be the same, but is not that of durus.utils"]


def test_an_import_stands_among_the_imports_and_nothing_else_does() -> None:
    ours = {"a": HOME, "B": 1}
    document = "| `a` | same | |\n| imported: `B` | same | |"
    found = problems_of("from durus.utils import a\nB = 1", document, **ours)
    assert found == [
        "durus.shop.a was imported there, and the document says otherwise",
        "durus.shop.B was defined there, and the document says otherwise",
    ]


# What we have


@pytest.mark.parametrize(
    ("module", "owner", "name"),
    [
        ("durus.connection", "", "ROOT_OID"),
        ("durus.connection", "Connection", "commit"),
        ("durus.connection", "Connection", "transaction_serial"),  # a slot of a base class
        ("durus.connection", "Connection", "reader"),  # of instances
        ("durus.persistent", "ComputedAttribute", "value"),
        ("durus.persistent_dict", "PersistentDict", "__ne__"),  # Python makes it of __eq__
        (SCRIPTS, "", "durus"),
    ],
)
def test_what_we_have_is_found(module: str, owner: str, name: str) -> None:
    assert find_ours(Name(module, owner, name)) is not ABSENT


@pytest.mark.parametrize(
    ("module", "owner", "name"),
    [
        ("durus.no_such_module", "", "name"),
        ("durus.connection", "", "no_such_name"),
        ("durus.connection", "NoSuchClass", "name"),
        ("durus.connection", "Connection", "no_such_name"),
        ("durus.connection", "ROOT_OID", "hex"),  # no class
        ("durus.connection", "Cache", "__str__"),  # what every object has
        (SCRIPTS, "", "no_such_script"),
    ],
)
def test_what_we_do_not_have_is_not_found(module: str, owner: str, name: str) -> None:
    assert find_ours(Name(module, owner, name)) is ABSENT


def test_an_option_is_found_in_the_help_of_the_command() -> None:
    assert find_ours(Name(COMMAND_LINE, "durus -s", "--port")) is not ABSENT
    assert find_ours(Name(COMMAND_LINE, "durus -s", "--por")) is ABSENT
