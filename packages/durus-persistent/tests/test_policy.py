"""The loading policy: what it admits, imports, renames and finds missing."""

import array
import collections
import datetime
import decimal
import enum
import fractions
import http
import importlib
import io
import ipaddress
import pathlib
import pickle
import re
import sys
import time
import types
import uuid
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from durus.class_pickle import name_in_class_pickle
from durus.connection import Connection
from durus.error import ClassNotAllowedError, MissingClassError, ObjectError
from durus.interfaces import Oid
from durus.missing import MissingObject
from durus.persistent import Persistent, PersistentBase, PersistentObject, is_ghost
from durus.persistent_dict import PersistentDict
from durus.policy import LoadingPolicy
from durus.storage import MemoryStorage
from durus.storage import Storage as ClassicStorage

OID = Oid(bytes(7) + b"\x05")
PROTOCOLS = [2, 3, 4, 5]


class Account(Persistent):
    balance = 0

    class Entry(Persistent):
        class Note(Persistent):
            pass

    class _Hidden(Persistent):
        pass

    def close(self) -> None: ...


@dataclass
class Money:
    amount: int
    currency: str = "EUR"

    @dataclass
    class Rounded:
        digits: int


@dataclass(slots=True)
class Point:
    x: int
    y: int


class Pair(NamedTuple):
    first: int
    second: int


class Color(enum.Enum):
    RED = 1
    BLUE = [2]  # cannot be hashed


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Tags(list[str]):
    pass


class ShopError(Exception):
    pass


class Single:
    """A class that changes itself while its instances are loaded."""

    instance: "Single | None" = None

    def __new__(cls) -> "Single":
        if cls.instance is None:
            cls.instance = super().__new__(cls)
        return cls.instance


class OldReduce:
    """Pickled in the way of protocols 0 and 1, also by 2."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return super().__reduce_ex__(0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OldReduce) and vars(self) == vars(other)


def refuse_reference(pid: object) -> object:
    raise AssertionError(f"there is no reference in this state, but {pid!r}")


def load(state_pickle: bytes, policy: LoadingPolicy | None = None) -> Any:
    policy = policy or LoadingPolicy(import_classes=False)
    return policy.load_state(state_pickle, refuse_reference, OID, Account)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on the import path; what is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write_module(site: Path, name: str, source: str) -> None:
    path = site.joinpath(*name.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    for parent in path.relative_to(site).parents:
        if parent != Path("."):
            (site / parent / "__init__.py").touch()
    path.write_text(source)
    importlib.invalidate_caches()


PERSISTENT_CLASS = "from durus.persistent import Persistent\nclass Thing(Persistent): pass\n"


def named(module: str, name: str) -> bytes:
    """A pickle of protocol 2 of the class with this name."""
    return f"\x80\x02c{module}\n{name}\nq\x00.".encode("latin1")


# Values come back as they were.

VALUES: list[object] = [
    {"a": [1, 2.5, None, True, "x", (1,), {"k": {}}], 10**40: -1},
    b"",
    b"\x00\xff",
    bytearray(b"\x00\xff"),
    bytearray(),
    {1, 2},
    frozenset({1, 2}),
    set(),
    1 + 2j,
    range(1, 10**12, 3),
    slice(1, None, 2),
    ...,
    NotImplemented,
    type(None),
    type(...),
    int,
    datetime.date(2024, 2, 29),
    datetime.datetime(2024, 2, 29, 12, 30, 1, 5, fold=1),
    datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC),
    datetime.datetime(2024, 2, 29, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    datetime.time(1, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=2), "x")),
    datetime.timedelta(days=-1, seconds=3),
    decimal.Decimal("1.10"),
    fractions.Fraction(1, 3),
    uuid.UUID(int=5),
    uuid.SafeUUID.safe,
    collections.OrderedDict(b=1, a=2),
    collections.defaultdict(list, a=[1]),
    collections.deque([1, 2], maxlen=3),
    collections.Counter("abba"),
    collections.ChainMap({"a": 1}, {"b": 2}),
    collections.UserDict(a=1),
    collections.UserList([1]),
    pathlib.PurePosixPath("/a/b"),
    pathlib.PureWindowsPath("c:/a"),
    pathlib.Path("a/b"),
    ipaddress.ip_address("10.0.0.1"),
    ipaddress.ip_address("::1"),
    ipaddress.ip_network("10.0.0.0/8"),
    ipaddress.ip_network("2001:db8::/32"),
    ipaddress.ip_interface("10.0.0.1/8"),
    ipaddress.ip_interface("::1/64"),
    zoneinfo.ZoneInfo("UTC"),
    re.compile("a+", re.IGNORECASE),
    re.compile(b"a+"),
    types.SimpleNamespace(a=1),
    array.array("i", [1, 2, 3]),
    array.array("d", [0.5]),
    time.gmtime(0),
    http.HTTPStatus.OK,
    # of the application:
    Money(5),
    Money.Rounded(2),
    Point(1, 2),
    Pair(1, 2),
    Color.RED,
    Color.BLUE,
    [Right.READ, Right.READ | Right.WRITE],
    Tags(["a", "b"]),
    Money,
    Account.Entry,
    OldReduce(),
    [Color.RED, Money(1), Right.READ, Money.Rounded(1), "b"],
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:40])
def test_a_value_comes_back(value: object, protocol: int) -> None:
    loaded = load(pickle.dumps({"value": value, "b": 1}, protocol))["value"]
    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_exceptions_come_back(protocol: int) -> None:
    for error in (
        ValueError("x"),
        OSError(2, "gone", "name"),
        UnicodeDecodeError("a", b"b", 0, 1, ""),
    ):
        loaded = load(pickle.dumps(error, protocol))
        assert type(loaded) is type(error)
        assert loaded.args == error.args
    raised = ShopError("empty")
    raised.shelf = 5  # type: ignore[attr-defined]  # as programs do
    loaded = load(pickle.dumps(raised, protocol))
    assert (type(loaded), loaded.args, loaded.shelf) == (ShopError, ("empty",), 5)


def test_paths_written_by_python_3_13_come_back() -> None:
    state = b"\x80\x04\x8c\x0epathlib._local\x94\x8c\x0dPurePosixPath\x94\x93\x94\x8c\x03a/b\x85R."
    assert load(state) == pathlib.PurePosixPath("a/b")


def test_a_member_of_an_enum_may_have_been_pickled_by_getattr() -> None:
    state = pickle.dumps(getattr, 2)[:-1] + pickle.dumps(Color, 2)[2:-1] + b"X\x03\0\0\0RED\x86R."
    assert load(state) is Color.RED


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_class_that_changes_itself_while_loading_is_no_offence(protocol: int) -> None:
    state = pickle.dumps([Single(), "b"], protocol)
    Single.instance = None
    loaded = load(state)
    assert loaded[0] is Single.instance


def test_references_go_to_persistent_load() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return (OID, type(obj)) if isinstance(obj, PersistentBase) else None

    for protocol in PROTOCOLS:
        file = io.BytesIO()
        Pickler(file, protocol).dump([Account(), "b"])
        seen: list[object] = []
        LoadingPolicy().load_state(file.getvalue(), seen.append, OID, Account)
        assert seen == [(OID, Account)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_class_pickle_may_stand_before_the_state(protocol: int) -> None:
    """As in records of Durus 4.x, whose states use the memo of their class pickles."""
    for cls in (Account, Account.Entry):
        front = pickle.dumps(cls, 2)[:-1] + b"0"
        for value in ([Money(1), "b"], {"c": Color.RED}, [Single(), "b"]):
            Single.instance = None
            assert type(load(front + pickle.dumps(value, protocol))) is type(value)


# Class pickles.


@pytest.mark.parametrize("protocol", [0, 1, *PROTOCOLS])
def test_the_class_of_a_record_is_found(protocol: int) -> None:
    policy = LoadingPolicy(import_classes=False)
    for cls in (Account, Account.Entry, Account.Entry.Note, Account._Hidden, PersistentDict):
        class_pickle = pickle.dumps(cls, protocol)
        assert policy.load_class(class_pickle, OID) is cls
        assert policy.find_imported_class(class_pickle) is cls
        assert name_in_class_pickle(class_pickle) == (cls.__module__, cls.__qualname__)


def test_the_name_in_a_class_pickle_is_read_without_importing_it(site: Path) -> None:
    write_module(site, "unread.models", PERSISTENT_CLASS)
    assert name_in_class_pickle(named("unread.models", "Thing")) == ("unread.models", "Thing")
    assert LoadingPolicy().find_imported_class(named("unread.models", "Thing")) is None
    assert "unread" not in sys.modules


def test_a_name_of_python_2_is_given_as_python_3_has_it() -> None:
    assert name_in_class_pickle(named("copy_reg", "x")) == ("copyreg", "x")
    assert name_in_class_pickle(b"\x80\x04ccopy_reg\nx\n.") == ("copy_reg", "x")


@pytest.mark.parametrize(
    "damaged",
    [b"", b"\x80", b"\x80\x02ca\n", b"\x80\x02N.", pickle.dumps({}), b"\x80\x02cos\nx\n)R."],
)
def test_what_is_no_pickle_of_a_class_is_refused(damaged: bytes) -> None:
    with pytest.raises(ObjectError, match="no pickle of a class"):
        name_in_class_pickle(damaged)
    with pytest.raises(ObjectError, match=r"object 5: .*no pickle of a class"):
        LoadingPolicy().load_class(damaged, OID)
    assert LoadingPolicy().find_imported_class(damaged) is None


def test_a_plain_class_is_not_the_class_of_a_record() -> None:
    for cls in (Money, dict, PersistentBase):
        with pytest.raises(ClassNotAllowedError):
            LoadingPolicy().load_class(pickle.dumps(cls, 2), OID)


# What is imported.


def test_a_module_of_a_persistent_class_is_imported_as_in_4_x(site: Path) -> None:
    write_module(site, "warehouse.models", PERSISTENT_CLASS)
    cls = LoadingPolicy().load_class(named("warehouse.models", "Thing"), OID)
    assert cls is sys.modules["warehouse.models"].Thing


def test_without_import_classes_nothing_foreign_is_imported(site: Path) -> None:
    write_module(site, "stranger.models", PERSISTENT_CLASS)
    policy = LoadingPolicy(import_classes=False)
    with pytest.raises(ClassNotAllowedError, match=r'allow=\["stranger.models.Thing"\]'):
        policy.load_class(named("stranger.models", "Thing"), OID)
    assert "stranger" not in sys.modules


class RemoteStorage(ClassicStorage):
    """Says that its records come from a server."""

    is_remote = True

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.last_oid = -1

    def load(self, oid: bytes) -> bytes:
        return self.records[oid]

    def begin(self) -> None: ...

    def store(self, oid: bytes, record: bytes) -> None:
        self.records[oid] = record

    def end(self, handle_invalidations: object = None) -> None: ...

    def sync(self) -> list[bytes]:
        return []

    def new_oid(self) -> bytes:
        self.last_oid += 1
        return self.last_oid.to_bytes(8)


def test_a_server_imports_nothing_unless_the_program_says_so(site: Path) -> None:
    write_module(site, "stranger.models", PERSISTENT_CLASS)
    thing = named("stranger.models", "Thing")
    with Connection(RemoteStorage()) as careful, pytest.raises(ClassNotAllowedError):
        careful.reader.policy.load_class(thing, OID)
    with Connection(RemoteStorage(), import_classes=True) as trusting:
        assert trusting.reader.policy.load_class(thing, OID).__name__ == "Thing"


@pytest.mark.parametrize("allowed", ["guest", "guest.models", "guest.models.Thing"])
def test_allow_admits_a_package_a_module_or_a_class(site: Path, allowed: str) -> None:
    write_module(site, "guest.models", PERSISTENT_CLASS)
    policy = LoadingPolicy(import_classes=False, allow=[allowed])
    assert policy.load_class(named("guest.models", "Thing"), OID).__name__ == "Thing"


def test_modules_of_application_packages_are_imported_when_needed(site: Path) -> None:
    write_module(site, "bakery.models", PERSISTENT_CLASS)
    write_module(site, "bakery.prices", "class Price: pass\n")
    policy = LoadingPolicy(import_classes=False)
    importlib.import_module("bakery.models")
    assert load(named("bakery.prices", "Price"), policy).__name__ == "Price"


def test_a_plain_class_of_a_foreign_module_does_not_count(site: Path) -> None:
    write_module(site, "plainly.things", "class Thing: pass\ndef make(): pass\n")
    for name in ("Thing", "make"):
        with pytest.raises(ClassNotAllowedError, match=rf'allow=\["plainly.things.{name}"\]'):
            load(named("plainly.things", name), LoadingPolicy())
    policy = LoadingPolicy(allow=["plainly.things.Thing", "plainly.things.make"])
    assert load(named("plainly.things", "Thing"), policy).__name__ == "Thing"
    assert load(named("plainly.things", "make"), policy).__name__ == "make"
    with pytest.raises(ClassNotAllowedError):
        load(named("plainly.things", "make"), LoadingPolicy(allow=["plainly"]))


def test_modules_of_durus_are_imported_without_being_allowed() -> None:
    policy = LoadingPolicy(import_classes=False)
    for module, name in (("durus.btree", "BTree"), ("durus.persistent_set", "PersistentSet")):
        assert policy.load_class(named(module, name), OID).__name__ == name


def test_an_error_inside_a_module_is_not_taken_for_a_missing_class(site: Path) -> None:
    write_module(site, "broken.syntax", "def")
    write_module(site, "broken.imports", "import a_module_that_is_not_there")
    write_module(site, "broken.exits", "raise SystemExit(3)")
    for module, cause in (
        ("broken.syntax", SyntaxError),
        ("broken.imports", ModuleNotFoundError),
        ("broken.exits", SystemExit),
    ):
        with pytest.raises(ObjectError, match=f"object 5.*{module}") as caught:
            LoadingPolicy().load_class(named(module, "Thing"), OID)
        assert caught.value.__cause__ is not None
        assert isinstance(caught.value.__cause__.__cause__, cause)


def test_a_program_is_never_imported(site: Path) -> None:
    write_module(site, "program.__main__", "raise AssertionError('it runs')\n")
    cls = LoadingPolicy().load_class(named("program.__main__", "Thing"), OID)
    assert issubclass(cls, MissingObject)


# allow=


@pytest.mark.parametrize(
    "name", ["os", "subprocess", "builtins", "xml.dom", "os.path", "durus", "durus.connection"]
)
def test_modules_of_the_standard_library_and_of_durus_cannot_be_allowed(name: str) -> None:
    with pytest.raises(ValueError, match="would let records use everything"):
        LoadingPolicy(allow=[name])


def test_a_class_of_the_standard_library_can_be_allowed() -> None:
    policy = LoadingPolicy(allow=["email.message.Message"], import_classes=False)
    assert load(named("email.message", "Message"), policy).__name__ == "Message"
    with pytest.raises(ClassNotAllowedError):
        load(named("email.message", "EmailMessage"), policy)


def test_a_name_of_the_standard_library_that_is_not_there_cannot_be_allowed() -> None:
    for name in ("email.message.Massage", "os.gone.Gone"):
        with pytest.raises(ValueError, match="allow="):
            LoadingPolicy(allow=[name])


def test_allow_takes_no_single_string() -> None:
    with pytest.raises(TypeError, match=r'allow=\["shop"\]'):
        LoadingPolicy(allow="shop")


def test_what_a_refusal_asks_for_admits_the_name() -> None:
    state = pickle.dumps(["b", Account.close], 4)
    with pytest.raises(ClassNotAllowedError) as caught:
        load(state)
    match = re.search(r'allow=\["(.*?)"\]', str(caught.value))
    assert match is not None
    assert load(state, LoadingPolicy(allow=[match[1]])) == ["b", Account.close]


# aliases=


@pytest.mark.parametrize(
    ("old", "aliases"),
    [
        ("gone.models.Old", {"gone.models.Old": f"{__name__}.Account"}),
        ("gone.models.Account", {"gone.models": __name__}),
        ("gone.Account", {"gone": __name__}),
        ("gone.models.Note", {"gone.models.Note": f"{__name__}:Account.Entry.Note"}),
        ("gone.models.Old.Entry", {"gone.models.Old": f"{__name__}.Account"}),
        ("Queue.Account", {"Queue": __name__}),
        ("gone.Old", {"gone": "elsewhere", "gone.Old": f"{__name__}.Account"}),
    ],
)
def test_an_alias_renames_classes_modules_and_packages(old: str, aliases: dict[str, str]) -> None:
    policy = LoadingPolicy(aliases=aliases, import_classes=False)
    split = 2 if ".models." in old else 1
    module, name = ".".join(old.split(".")[:split]), ".".join(old.split(".")[split:])
    cls = policy.find_persistent_class(module, name)
    assert not issubclass(cls, MissingObject)
    assert issubclass(cls, PersistentObject)
    if "." not in name:
        assert policy.load_class(named(module, name), OID) is cls
        assert policy.find_imported_class(named(module, name)) is cls
        assert load(named(module, name), policy) is cls


def test_a_module_renamed_in_sys_modules_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "former", sys.modules[__name__])
    policy = LoadingPolicy(import_classes=False)
    assert policy.load_class(named("former", "Account"), OID) is Account


# Classes that cannot be found.


@pytest.mark.parametrize(
    ("module", "name"), [("gone.models", "Gone"), (__name__, "Gone"), (__name__, "Account.Gone")]
)
def test_a_missing_class_gives_the_same_placeholder_each_time(module: str, name: str) -> None:
    policy = LoadingPolicy()
    cls = policy.load_class(named(module, name), OID)
    assert issubclass(cls, MissingObject)
    assert (cls.missing_module, cls.missing_qualname) == (module, name)
    assert (cls.__module__, cls.__qualname__) == (module, name)
    assert policy.find_persistent_class(module, name) is cls
    assert load(named(module, name), policy) is cls


def test_a_missing_value_class_fails_its_container_with_the_name() -> None:
    for state in (b"\x80\x02cgone.models\nGone\n)\x81}b.", b"\x80\x02cgone.models\nGone\n)R."):
        with pytest.raises(
            MissingClassError, match=r"object 5.*Account.*gone\.models\.Gone.*alias"
        ):
            load(state, LoadingPolicy())


def test_a_placeholder_makes_no_package_an_application_package(site: Path) -> None:
    write_module(site, "intruder", "class Harm: pass\n")
    policy = LoadingPolicy()
    placeholder = policy.load_class(named("intruder", "Gone"), OID)
    assert issubclass(placeholder, MissingObject)
    with pytest.raises(ClassNotAllowedError):
        load(named("intruder", "Harm"), policy)


@pytest.fixture
def storage_with_a_missing_class(site: Path) -> MemoryStorage:
    write_module(site, "vanished", PERSISTENT_CLASS)
    storage = MemoryStorage()
    connection = Connection(storage)
    thing = importlib.import_module("vanished").Thing()
    thing.size = 7
    connection.root["thing"] = thing
    connection.root["other"] = Account()
    connection.commit()
    (site / "vanished.py").unlink()
    del sys.modules["vanished"]
    importlib.invalidate_caches()
    return storage


def test_an_object_of_a_missing_class_is_a_ghost_that_says_so(
    storage_with_a_missing_class: MemoryStorage,
) -> None:
    connection = Connection(storage_with_a_missing_class)
    thing = connection.root["thing"]
    assert is_ghost(thing)
    assert repr(thing) == f"<MissingClass vanished.Thing {int.from_bytes(thing._p_oid, 'big')}>"
    with pytest.raises(MissingClassError, match=r"vanished\.Thing.*import path.*aliases="):
        _ = thing.size
    with pytest.raises(MissingClassError):
        thing.size = 8
    assert repr(thing).startswith("<MissingClass")
    assert connection.root["other"].balance == 0
    connection.abort()
    assert is_ghost(thing)


def test_a_reference_to_a_missing_object_is_stored_as_it_was(
    storage_with_a_missing_class: MemoryStorage, site: Path
) -> None:
    connection = Connection(storage_with_a_missing_class)
    connection.root["more"] = [connection.root["thing"]]
    connection.commit()
    write_module(site, "vanished", PERSISTENT_CLASS)
    connection = Connection(storage_with_a_missing_class)
    assert connection.root["more"][0].size == 7


def test_an_alias_brings_a_missing_object_back(
    storage_with_a_missing_class: MemoryStorage,
) -> None:
    aliases = {"vanished.Thing": f"{__name__}.Account"}
    connection = Connection(storage_with_a_missing_class, aliases=aliases)
    assert connection.root["thing"].size == 7
    assert type(connection.root["thing"]) is Account
