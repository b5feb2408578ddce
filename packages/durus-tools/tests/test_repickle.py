"""Rewriting pickles: what is loaded from the new one is what was loaded from the old one."""

import copyreg
import datetime
import enum
import io
import pickle
import pickletools
import sys
import uuid
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durus.class_pickle import name_in_class_pickle
from durus.error import ClassNotAllowedError, ObjectError
from durus.interfaces import Oid, Record
from durus.record import record_from_classic, record_to_classic
from durus.repickle import is_of_python2, make_class_pickle, rewrite_record, rewrite_state

# What states are made of


class Color(enum.Enum):
    RED = 1
    BLUE = "blue"


class Point(NamedTuple):
    x: object
    y: object


@dataclass
class Mutable:
    value: object


@dataclass(frozen=True)
class Frozen:
    value: object


class Plain:
    pass


class Slotted:
    __slots__ = ("a", "b")


class WithState:
    def __init__(self) -> None:
        self.parts: object = None

    def __getstate__(self) -> tuple[str, object]:
        return "the state", self.parts

    def __setstate__(self, state: tuple[str, object]) -> None:
        assert state[0] == "the state"
        self.parts = state[1]


def restore(name: str) -> "Restored":
    found = Restored()
    found.name = name
    return found


class Restored:
    name: str
    value: object = None

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...], object]:
        return restore, (self.name,), {"value": self.value}


def set_value(target: "WithSetter", state: tuple[object]) -> str:
    (target.value,) = state
    return "what is returned is dropped"


class WithSetter:
    value: object = None

    def __reduce__(self) -> Any:
        return copyreg.__newobj__, (WithSetter,), (self.value,), None, None, set_value  # type: ignore[attr-defined]  # not in typeshed


class WithKeywords:
    def __new__(cls, *, value: object = None) -> "WithKeywords":
        made = super().__new__(cls)
        made.value = value
        return made

    value: object = None

    def __getnewargs_ex__(self) -> tuple[tuple[object, ...], dict[str, object]]:
        return (), {"value": self.value}

    def __getstate__(self) -> None:
        return None


class OwnList(list[object]):
    pass


class OwnDict(dict[object, object]):
    pass


class OwnSet(set[object]):
    pass


class OwnInt(int):
    pass


class Outer:
    class Inner:
        pass


class Stored:
    """A persistent object, of which pickles have the oid and the class."""

    def __init__(self, oid: bytes) -> None:
        self.oid = oid


# Pickling, and comparing what is loaded


class Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> object:
        return (obj.oid, type(obj)) if isinstance(obj, Stored) else None


class Unpickler(pickle.Unpickler):
    def __init__(self, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled))
        self.stored: dict[bytes, Stored] = {}

    def persistent_load(self, pid: Any) -> Stored:
        oid, cls = pid
        assert cls is Stored
        return self.stored.setdefault(oid, cls(oid))


def dump(state: object, protocol: int) -> bytes:
    file = io.BytesIO()
    Pickler(file, protocol).dump(state)
    return file.getvalue()


def load(pickled: bytes) -> Any:
    return Unpickler(pickled).load()


ATOMS = (type(None), bool, int, float, complex, str, bytes, type, enum.Enum)


class Comparison:
    """Whether two states are the same, part by part, and shared in the same places."""

    def __init__(self) -> None:
        self.partner: dict[int, object] = {}
        self.kept: list[object] = []

    def alike(self, a: object, b: object) -> bool:
        if type(a) is not type(b):
            return False
        if isinstance(a, ATOMS) or callable(a) or a == ():
            return repr(a) == repr(b)
        if id(a) in self.partner:
            return self.partner[id(a)] is b
        if any(partner is b for partner in self.partner.values()):
            return False
        self.partner[id(a)] = b
        self.kept.append(a)
        if isinstance(a, Stored):
            return vars(a) == vars(b)
        parts_a, parts_b = self.parts(a), self.parts(b)
        return len(parts_a) == len(parts_b) and all(map(self.alike, parts_a, parts_b))

    def parts(self, value: Any) -> list[object]:
        if type(value) in (list, tuple):
            return list(value)
        if type(value) is dict:
            return [part for item in value.items() for part in item]
        if type(value) in (set, frozenset):
            return sorted(value, key=repr)
        if type(value) is bytearray:
            return [bytes(value)]
        function, *rest = value.__reduce_ex__(4)
        parts: list[object] = [function, *rest[:2]]
        for items in rest[2:4]:
            parts.append(None if items is None else list(items))
        # These lists and tuples are made anew each time, so nobody shares them.
        self.kept.append(parts)
        return [*parts, *rest[4:]]


def assert_alike(a: object, b: object) -> None:
    assert Comparison().alike(a, b)


# Random states

TEXTS = st.text(max_size=6)
NUMBERS = st.one_of(st.integers(), st.integers(-(2**80), 2**80), st.floats(allow_nan=False))
HASHABLE = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    TEXTS,
    st.text(min_size=250, max_size=260),
    st.binary(max_size=6),
    st.binary(min_size=250, max_size=260),
    st.complex_numbers(max_magnitude=10),
    st.datetimes(),
    st.datetimes(timezones=st.just(datetime.UTC)),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.uuids(),
    st.sampled_from(Color),
    st.just(Outer.Inner),
    st.integers().map(OwnInt),
    st.builds(range, st.integers(0, 9)),
    st.builds(Frozen, TEXTS),
    st.builds(Path, st.sampled_from(["a", "a/b"])),
)
LEAVES = st.one_of(HASHABLE, st.binary(max_size=6).map(bytearray))
MAKERS: list[Callable[[list[Any]], object]] = [
    list,
    tuple,
    lambda parts: dict(enumerate(parts)),
    OwnList,
    lambda parts: OwnDict(zip("abcd", parts, strict=False)),
    lambda parts: OrderedDict((f"key {i}", part) for i, part in enumerate(parts)),
    lambda parts: UserDict((f"key {i}", part) for i, part in enumerate(parts)),
    lambda parts: defaultdict(list, dict(enumerate(parts))),
    lambda parts: deque(parts, maxlen=7),
    lambda parts: Counter(str(len(parts))),
    lambda parts: Point(parts, len(parts)),
    lambda parts: Mutable(parts[0] if parts else None),
    lambda parts: with_attributes(Plain(), value=parts),
    lambda parts: with_attributes(Outer.Inner(), value=parts),
    lambda parts: with_attributes(Slotted(), a=parts),
    lambda parts: with_attributes(WithState(), parts=parts),
    lambda parts: with_attributes(Restored(), name="restored", value=parts),
    lambda parts: with_attributes(WithSetter(), value=parts),
    lambda parts: WithKeywords(value=tuple(parts)),
    lambda parts: Stored(len(parts).to_bytes(8, "big")),
]
SET_MAKERS: list[Callable[[Any], object]] = [set, frozenset, OwnSet]


def with_attributes(target: Any, **attributes: object) -> object:
    for name, value in attributes.items():
        setattr(target, name, value)
    return target


@st.composite
def states(draw: st.DrawFn) -> list[Any]:
    """Objects that refer to each other, some of them in circles."""
    pool: list[Any] = draw(st.lists(LEAVES, min_size=1, max_size=5))
    for _ in range(draw(st.integers(0, 10))):
        if draw(st.integers(0, 4)):
            parts = [pool[i] for i in draw(st.lists(st.integers(0, len(pool) - 1), max_size=4))]
            pool.append(draw(st.sampled_from(MAKERS))(parts))
        else:
            pool.append(draw(st.sampled_from(SET_MAKERS))(draw(st.sets(HASHABLE, max_size=4))))
    for target in list(pool):
        if draw(st.integers(0, 3)) == 0:
            part = pool[draw(st.integers(0, len(pool) - 1))]
            if isinstance(target, list):
                target.append(part)
            elif type(target) in (dict, OwnDict, defaultdict):
                target["added"] = part
            elif isinstance(target, Plain | Mutable | Outer.Inner):
                with_attributes(target, value=part)
    return pool


@settings(max_examples=400, deadline=None)
@given(states(), st.integers(0, 5))
def test_what_is_loaded_is_the_same(state: list[Any], protocol: int) -> None:
    if protocol < 2:  # which have no references but texts, no slots, no keywords
        state = [part for part in state if comes_back(part, protocol)]
    pickled = dump(state, protocol)
    rewritten, oids = rewrite_state(pickled)
    assert_alike(load(pickled), load(rewritten))
    assert rewritten[:2] == b"\x80\4"
    again, oids_again = rewrite_state(rewritten)
    assert_alike(load(pickled), load(again))
    assert oids_again == oids


def comes_back(part: object, protocol: int) -> bool:
    try:
        load(dump(part, protocol))
    except Exception:
        return False
    return True


def test_the_comparison_sees_what_is_shared_and_what_is_not() -> None:
    one: list[object] = []
    other: list[object] = []
    assert not Comparison().alike([one, one], [one, other])
    assert not Comparison().alike([one, other], [one, one])
    circle: list[object] = []
    circle.append(circle)
    assert not Comparison().alike(circle, [circle])
    assert not Comparison().alike(with_attributes(Plain(), a=1), with_attributes(Plain(), a=2))


VALUES = [
    datetime.datetime(2024, 2, 29, 12, 30, 1, 5),
    datetime.date(1, 1, 1),
    datetime.time(23, 59, 59),
    Decimal("1.50"),
    Fraction(1, 3),
    uuid.UUID(int=7),
    Color.RED,
    bytearray(b"abc"),
    b"",
    "",
    1j,
    frozenset({1, frozenset({2})}),
    Outer.Inner,
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_of_every_kind(value: object, protocol: int) -> None:
    rewritten, _ = rewrite_state(pickle.dumps([value, value], protocol))
    one, other = pickle.loads(rewritten)
    assert one == value
    assert type(one) is type(value)
    assert one is other


def test_circles_of_every_kind() -> None:
    own_list = OwnList()
    own_list.append((own_list,))
    plain = Plain()
    with_attributes(plain, value=frozenset([plain]))
    five: list[object] = []
    five.append((1, 2, 3, 4, five))
    keyed = OwnDict()
    keyed[Frozen(1)] = keyed
    state = [own_list, plain, five, keyed]
    for protocol in range(2, 6):
        pickled = pickle.dumps(state, protocol)
        loaded = pickle.loads(rewrite_state(pickled)[0])
        assert loaded[0][0][0] is loaded[0]
        assert next(iter(loaded[1].value)) is loaded[1]
        assert loaded[2][0][4] is loaded[2]
        assert loaded[3][Frozen(1)] is loaded[3]


def test_what_is_made_of_a_circle_is_made_of_all_of_it() -> None:
    """A list that its pickle reaches again before the arguments of a call are complete."""
    inner: list[Any] = []
    outer = OwnList([inner, "after it"])
    inner.append(outer)
    pickled = pickle.dumps(outer, 1)  # a call: OwnList([inner, "after it"])
    loaded = pickle.loads(rewrite_state(pickled)[0])
    assert loaded[0][0] is loaded
    assert loaded[1] == "after it"


def test_a_long_list_is_the_same() -> None:
    state = {"list": list(range(5000)), "texts": [str(i) for i in range(3000)]}
    for protocol in range(6):
        assert pickle.loads(rewrite_state(pickle.dumps(state, protocol))[0]) == state


# Nothing is imported or called


def test_names_are_neither_imported_nor_called(tmp_path: Path) -> None:
    (tmp_path / "durus_side_effect.py").write_text("raise SystemExit")
    marker = tmp_path / "marker"
    path = str(marker).encode()
    pickled = (
        b"\x80\2(cdurus_side_effect\nThing\n)\x81}X\1\0\0\0aK\1sb"
        b"cos\nmkdir\nX" + len(path).to_bytes(4, "little") + path + b"\x85R"
        b"cno.such.module\nf\n(K\1K\2K\3tRl."
    )
    sys.path.insert(0, str(tmp_path))
    try:
        rewritten, _ = rewrite_state(pickled)
    finally:
        sys.path.remove(str(tmp_path))
    assert not marker.exists()
    assert "durus_side_effect" not in sys.modules
    names = [arg for opcode, arg, _ in pickletools.genops(rewritten) if isinstance(arg, str)]
    assert {"durus_side_effect", "Thing", "os", "mkdir", "no.such.module", "f"} <= set(names)


def test_what_a_pickle_may_not_change_is_refused() -> None:
    for pickled in [
        b"\x80\2cmodule\nClass\n}X\1\0\0\0aK\1sb.",  # sets an attribute of a class
        b"\x80\2K\1}X\1\0\0\0aK\1sb.",
        b"\x80\2)K\1a.",
        b"\x80\2C\1xK\1a.",
    ]:
        with pytest.raises(ObjectError, match="tampered"):
            rewrite_state(pickled)


def test_extension_codes_are_refused() -> None:
    copyreg.add_extension("os", "system", 240)
    try:
        with pytest.raises(ClassNotAllowedError, match="extension code, 240"):
            rewrite_state(b"\x80\2\x82\xf0.")
    finally:
        copyreg.remove_extension("os", "system", 240)


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"no pickle",
        b"\x80\4K\1",
        b"\x80\4.",
        b"\x80\4h\7.",
        b"\x80\4\x97.",
        b"\x80\4K\1Q.",
        b"\x80\4C\7short!!cm\nC\n\x86Q.",
        b"\x80\4C\x08long enoK\1\x86Q.",
        b"Ptext\n.",
        b"\x80\x63K\1.",
        pickle.dumps({"a": [1, 2, "x" * 300]})[:-20],
    ],
)
def test_what_is_no_state_is_refused(pickled: bytes) -> None:
    with pytest.raises(ObjectError):
        rewrite_state(pickled)


def test_no_state_is_nested_too_deeply() -> None:
    depth = 100_000
    pickled = b"\x80\2" + b"]" * depth + b"K\7" + b"a" * depth + b"."
    loaded = pickle.loads(rewrite_state(pickled)[0])
    for _ in range(depth):
        (loaded,) = loaded
    assert loaded == 7
    in_tuples = b"\x80\2" + b"K\7" + b"\x85" * depth + b"."
    rewritten, _ = rewrite_state(in_tuples)
    assert rewrite_state(rewritten)[0] == rewritten


def test_what_is_shared_many_times_is_written_once() -> None:
    doubled: object = ["seed"]
    for _ in range(60):
        doubled = [doubled, doubled]
    assert len(rewrite_state(pickle.dumps(doubled))[0]) < 2000


# References


def test_references_get_the_oids_that_the_caller_gives_them() -> None:
    oids = [Oid(number.to_bytes(8, "big")) for number in (7, 300, 2**33)]
    objects = [Stored(oid) for oid in oids]
    state = {"one": objects[0], "all": objects, "oid": oids[0]}
    for protocol in range(1, 6):
        rewritten, found = rewrite_state(
            dump(state, protocol), lambda oid: Oid((int.from_bytes(oid) + 1).to_bytes(8))
        )
        loaded = load(rewritten)
        assert [stored.oid for stored in loaded["all"]] == [
            (number + 1).to_bytes(8, "big") for number in (7, 300, 2**33)
        ]
        assert loaded["one"] is loaded["all"][0]
        assert loaded["oid"] == oids[0]  # a value of the program's, and no reference
        assert found == {stored.oid for stored in loaded["all"]}


def test_references_by_the_name_of_a_class_stay_so() -> None:
    pickled = pickle.dumps(("", b"12345678", "module:Class"), 4)[:-3]
    pickled = b"\x80\4C\x0812345678\x8c\x0cmodule:Class\x86Q."
    rewritten, oids = rewrite_state(pickled)
    assert oids == {b"12345678"}
    assert [arg for _, arg, _ in pickletools.genops(rewritten) if isinstance(arg, str)] == [
        "module:Class"
    ]


def test_nested_classes_of_protocol_2_keep_their_references() -> None:
    # As protocol 2 has a nested class: getattr(Outer, "Inner").
    nested = b"c__builtin__\ngetattr\ncmodule\nOuter\nX\5\0\0\0Inner\x86R"
    pickled = b"\x80\2C\x0812345678" + nested + b"\x86Q."
    rewritten, oids = rewrite_state(pickled)
    assert oids == {b"12345678"}
    names = [arg for _, arg, _ in pickletools.genops(rewritten) if isinstance(arg, str)]
    assert names == ["builtins", "getattr", "module", "Outer", "Inner"]


# Records


def test_the_names_in_class_pickles_are_kept() -> None:
    for module, qualname in [
        ("durus.btree", "BTree"),
        ("app.models", "Outer.Inner"),
        ("copy_reg", "Own"),
        ("StringIO", "StringIO"),
        ("app", "Größe"),
        ("a" * 300, "B"),
        ("lines\nof", "a\nname"),
    ]:
        class_pickle = make_class_pickle(module, qualname)
        assert name_in_class_pickle(class_pickle) == (module, qualname)


def test_a_class_pickle_that_memoizes_does_not_shift_the_memo_of_a_new_state() -> None:
    """In the records of 4.3 the state follows the class in one stream, with one memo."""
    oid = Oid(bytes(8))
    shared = ["shared"]
    state_pickle = pickle.dumps({"a": shared, "b": shared}, 4)
    for class_pickle in (
        b"\x80\2cdurus.persistent\nPersistent\nq\0.",
        pickle.dumps(Outer.Inner, 4),
    ):
        new = rewrite_record(oid, Record(class_pickle, state_pickle, b""))
        _, read = record_from_classic(record_to_classic(oid, new))
        loaded = pickle.loads(read.state_pickle)
        assert loaded == {"a": ["shared"], "b": ["shared"]}
        assert loaded["a"] is loaded["b"]
        pickles = io.BytesIO(new.class_pickle + new.state_pickle)
        classic = pickle.Unpickler(pickles)  # as 4.3 reads it
        classic.load()
        assert classic.load() == loaded


def test_a_record_does_not_list_itself_as_a_reference() -> None:
    oid = Oid((7).to_bytes(8, "big"))
    class_pickle = b"\x80\2cdurus.persistent\nPersistent\n."
    state_pickle = dump([Stored(oid), Stored(bytes(8))], 4)
    new = rewrite_record(oid, Record(class_pickle, state_pickle, b"wrong"))
    assert new.refs == bytes(8)


# What Python 2 wrote


def decode(content: bytes) -> str | bytes:
    try:
        return content.decode("ascii")
    except UnicodeDecodeError:
        return content


OLD: list[tuple[str, bytes, object]] = [
    ("a text", b"U\5hello", "hello"),
    ("bytes", b"U\3\xff\xfe\xfd", b"\xff\xfe\xfd"),
    ("a long string", b"T\x2c\1\0\0" + b"x" * 300, "x" * 300),
    ("protocol 0", b"S'it\\'s \\x41\\n'\np1\n", "it's A\n"),
    ("unicode", b"X\3\0\0\0\xc3\xa9!", "é!"),
    ("protocol 0 unicode", b"V\\u20ac\np1\n", "€"),
    ("a long", b"\x8a\x06\xff\xff\xff\xff\xff\x00", 2**40 - 1),
    ("protocol 0 long", b"L123456789012345678901234567890L\n", 123456789012345678901234567890),
    ("a bool", b"I01\n", True),
    (
        "a datetime",
        b"cdatetime\ndatetime\nq\1U\n\x07\xe8\x02\x1d\x0c\x1e\x01\x00\x00\x05\x85q\2Rq\3",
        datetime.datetime(2024, 2, 29, 12, 30, 1, 5),
    ),
    ("a date", b"cdatetime\ndate\nq\1U\4\x07\xe8\x02\x1d\x85q\2Rq\3", datetime.date(2024, 2, 29)),
    ("a time", b"cdatetime\ntime\nU\6\x17;;\x00\x00\xff\x85R", datetime.time(23, 59, 59, 255)),
    ("a timedelta", b"cdatetime\ntimedelta\nK\1K\2K\3\x87R", datetime.timedelta(1, 2, 3)),
    ("a decimal", b"cdecimal\nDecimal\nU\0041.50\x85R", Decimal("1.50")),
    ("a set", b"c__builtin__\nset\n]q\1(U\1aU\1be\x85R", {"a", "b"}),
    ("an xrange", b"c__builtin__\nxrange\nK\0K\3K\1\x87R", range(0, 3, 1)),
    ("a uuid", b"cuuid\nUUID\n)\x81}U\3intK\7sb", uuid.UUID(int=7)),
    ("an ordered dict", b"ccollections\nOrderedDict\n]](U\1aK\1ea\x85R", OrderedDict(a=1)),
    ("a constant", b"c__builtin__\nNotImplemented\n", NotImplemented),
]


@pytest.mark.parametrize(("content", "value"), [o[1:] for o in OLD], ids=[o[0] for o in OLD])
def test_what_python_2_wrote_is_loaded(content: bytes, value: object) -> None:
    for protocol in (b"\x80\2", b""):
        rewritten, _ = rewrite_state(protocol + content + b".", decode=decode)
        loaded = pickle.loads(rewritten)
        assert loaded == value
        assert type(loaded) is type(value)


OLD_INSTANCES = [
    b"(i%b\nPlain\np1\n(dp2\nS'value'\np3\nI7\nsb.",  # protocol 0: INST
    b"(c%b\nPlain\nq\1oq\2}q\3U\5valueq\4K\7sb.",  # protocol 1: OBJ
    b"\x80\2(c%b\nPlain\nq\1oq\2}q\3U\5valueq\4K\7sb.",
    b"\x80\2c%b\nPlain\nq\1)\x81q\2}q\3U\5valueq\4K\7sb.",  # of a new-style class
    b"ccopy_reg\n_reconstructor\n(c%b\nPlain\nc__builtin__\nobject\nNtR}U\5valueK\7sb.",
]


@pytest.mark.parametrize("pickled", OLD_INSTANCES)
def test_instances_of_python_2_become_instances(pickled: bytes) -> None:
    rewritten, _ = rewrite_state(pickled % __name__.encode(), decode=decode)
    loaded = pickle.loads(rewritten)
    assert type(loaded) is Plain
    assert vars(loaded) == {"value": 7}


def test_the_oid_in_a_reference_of_python_2_is_never_decoded() -> None:
    for oid in (bytes(7) + b"\5", b"ABCDEFGH", b"\0\0\0\1\xff\xff\xff\xff"):
        pickled = b"\x80\2U\x08" + oid + b"q\1cmodule\nClass\nq\2\x86Q."

        def refuse(content: bytes) -> str | bytes:
            raise AssertionError(content)

        rewritten, oids = rewrite_state(pickled, decode=refuse)
        assert oids == {oid}
        assert oid in rewritten


def test_a_string_that_is_not_ascii_is_refused_without_a_decision() -> None:
    assert pickle.loads(rewrite_state(b"\x80\2U\2ab.")[0]) == "ab"
    with pytest.raises(ObjectError, match=r"\\xff.*python2=True"):
        rewrite_state(b"\x80\2U\1\xff.")


def test_shared_strings_of_python_2_stay_shared() -> None:
    rewritten, _ = rewrite_state(b"\x80\2](U\3\xff\xfe\xfdq\1h\1h\1e.", decode=decode)
    one, other, third = pickle.loads(rewritten)
    assert one == b"\xff\xfe\xfd"
    assert one is other is third


def test_names_of_python_2_are_mapped_but_those_of_python_3_are_not() -> None:
    def names(pickled: bytes) -> Iterator[object]:
        rewritten, _ = rewrite_state(pickled)
        return (arg for _, arg, _ in pickletools.genops(rewritten) if isinstance(arg, str))

    assert list(names(b"\x80\2cQueue\nQueue\n.")) == ["queue", "Queue"]
    assert list(names(b"\x80\4\x8c\5Queue\x8c\4Full\x93.")) == ["Queue", "Full"]


# Whether Python 2 has written it


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_python_3_writes_is_not_of_python_2(protocol: int) -> None:
    for state in ({"name": b"\xff", "tags": {"a"}}, {1: b"U\x04name"}, b"S'name'\n", Point(1, 2)):
        assert not is_of_python2(pickle.dumps(state, protocol))


@pytest.mark.parametrize(
    ("state", "is_so"),
    [
        (b"\x80\x02}U\x04nameK\x01s.", True),
        (b"\x80\x02}T\x04\0\0\0nameK\x01s.", True),
        (b"(dp0\nS'name'\np1\nI1\ns.", True),
        (b"\x80\x02}K\x01X\x01\0\0\0as.", False),
        (b"\x80\x02}.", False),
        (b"\x80\x02U\x09short", False),
        (b"no pickle", False),
        (b"", False),
    ],
)
def test_strings_are_of_python_2(state: bytes, is_so: bool) -> None:
    assert is_of_python2(state) == is_so
