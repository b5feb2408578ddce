"""Hostile pickles: each is refused with the right error, and nothing of it happens."""

import codecs
import contextlib
import copyreg
import enum
import functools
import importlib
import io
import logging
import operator
import os
import pathlib
import pickle
import runpy
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from durus.connection import Connection, touch_every_reference
from durus.error import ClassNotAllowedError, MissingClassError, ObjectError
from durus.interfaces import Oid, Transaction
from durus.oid_set import OidSet
from durus.persistent import ConnectionBase, Persistent, PersistentBase
from durus.policy import LoadingPolicy
from durus.storage import MemoryStorage

OID = Oid(bytes(7) + b"\x05")
HERE = __name__
REFUSAL = rf"object 5.*{HERE}\.Account.*allow=\["

imported_from_elsewhere = Popen, os
"""As application modules have such names beside their own classes."""

done: list[object] = []
"""What must stay empty."""


class Account(Persistent):
    def close(self) -> None:
        done.append(self)


class Derived(Account):
    pass


@dataclass
class Money:
    amount: int
    currency: str = "EUR"


class Color(enum.Enum):
    RED = 1
    BLUE = [2]  # cannot be hashed


class Right(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


class Meta(type):
    pass


class Trap:
    def __get__(self, instance: object, owner: type) -> type:
        done.append(owner)
        return Money


class Runner:
    """What a class refers to is not a part of it."""

    trap = Trap()

    process = Popen
    shell = os.system
    library = os


def harm(*args: object) -> object:
    done.append(args)
    return dict


def scale(factor: int = 1) -> int:
    return factor


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[str]:
    """A file that the exploits try to make."""
    done.clear()
    path = tmp_path / "marker"
    yield str(path)
    assert not path.exists()
    assert done == []


def load(state_pickle: bytes, policy: LoadingPolicy | None = None) -> Any:
    # The worst case: what may be imported is imported.
    policy = policy or LoadingPolicy(import_classes=True)
    return policy.load_state(state_pickle, lambda pid: pid, OID, Account)


class Code(bytes):
    """Opcodes that push one object."""


def name(module: str, qualname: str) -> Code:
    return Code(f"c{module}\n{qualname}\n".encode())


def push(value: object) -> bytes:
    match value:
        case Code():
            return value
        case tuple():
            return b"(" + b"".join(map(push, value)) + b"t"
        case dict():
            return b"(" + b"".join(push(k) + push(v) for k, v in value.items()) + b"d"
        case _:
            return pickle.dumps(value, 0)[:-1]


def call(function: bytes, *args: object) -> Code:
    return Code(function + push(args) + b"R")


def build(target: bytes, state: object) -> Code:
    return Code(target + push(state) + b"b")


def finish(*opcodes: bytes, protocol: int = 4) -> bytes:
    return b"\x80" + bytes([protocol]) + b"0".join(opcodes) + b"."


class Exploit:
    """Pickled as a call of `function`."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.reduced = function, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.reduced


EXPLOITS: list[tuple[Callable[..., object], tuple[object, ...]]] = [
    (os.system, ("touch {}",)),
    (os.mkdir, ("{}",)),
    (os.popen, ("touch {}",)),
    (subprocess.Popen, (["touch", "{}"],)),
    (subprocess.run, (["touch", "{}"],)),
    (shutil.copyfile, (__file__, "{}")),
    (eval, ("open('{}', 'w')",)),
    (exec, ("open('{}', 'w')",)),
    (compile, ("1", "x", "eval")),
    (open, ("{}", "w")),
    (io.FileIO, ("{}", "w")),
    (__import__, ("antigravity",)),
    (importlib.import_module, ("antigravity",)),
    (runpy.run_path, (__file__,)),
    (logging.FileHandler, ("{}",)),
    (pathlib.Path.touch, (pathlib.Path("{}"),)),
    (operator.attrgetter, ("__class__",)),
    (operator.methodcaller, ("touch",)),
    (functools.partial, (print, "x")),
    (functools.reduce, (print, [1, 2])),
    (map, (print, [1])),
    (setattr, (Money, "amount", 1)),
    (vars, (Money,)),
    (globals, ()),
    (codecs.decode, ("x", "rot13")),
    (copyreg.add_extension, ("os", "system", 240)),
    (pickle.loads, (b"N.",)),
    (sys.exit, ()),
    (enum.EnumMeta, ("x",)),
    (harm, ()),
    (scale, ()),
    (Account.close, (1,)),
    (Meta, ("x", (), {})),
    (Connection, ("{}",)),
    (touch_every_reference, ("x",)),
    (MemoryStorage, ()),
    (LoadingPolicy, ()),
    (ConnectionBase, ()),
    (PersistentBase, ()),
]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(("function", "args"), EXPLOITS)
def test_a_call_is_refused(
    function: Callable[..., object], args: tuple[object, ...], protocol: int, marker: str
) -> None:
    filled = [
        type(arg)(str(arg).format(marker)) if isinstance(arg, str | pathlib.Path) else arg
        for arg in args
    ]
    state = pickle.dumps({"b": Exploit(function, *filled)}, protocol)
    with pytest.raises(ClassNotAllowedError, match=REFUSAL):
        load(state)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("module", "qualname"),
    [
        ("posix", "system"),
        ("nt", "system"),
        ("os", "system"),
        ("subprocess", "Popen"),
        ("types", "FunctionType"),
        ("types", "ModuleType"),
        ("builtins", "eval"),
        ("builtins", "super"),
        ("builtins", "property"),
        ("builtins", "memoryview"),
        ("operator", "itemgetter"),
        ("codecs", "encode"),
        ("_codecs", "decode"),
        ("antigravity", "webbrowser"),
        ("this", "s"),
        ("test.autotest", "main"),
        # Through what other modules have:
        (HERE, "os.system"),
        (HERE, "os"),
        (HERE, "Popen"),
        (HERE, "Runner.process"),
        (HERE, "Runner.shell"),
        (HERE, "Runner.trap"),
        (HERE, "Derived.close"),
        (HERE, "Runner.library.system"),
        (HERE, "Money.__init__"),
        (HERE, "Money.__init__.__globals__"),
        (HERE, "Money.__class__"),
        (HERE, "Money.__eq__"),
        (HERE, "Runner.__module__"),
        (HERE, "Money.__subclasses__"),
        (HERE, "Account.close"),
        (HERE, "Account.__base__"),
        (HERE, "Color.RED"),
        (HERE, "done"),
        (HERE, "done.append"),
        (HERE, "Connection"),
        ("datetime", "sys.modules"),
        ("datetime", "datetime.now"),
        ("uuid", "os.system"),
        ("uuid", "UUID.__init__.__globals__"),
        ("durus.policy", "sys.modules"),
        ("durus.policy", "resolve_name"),
        ("durus.unpickling", "_Constructor"),
        ("durus.unpickling", "load_pickle"),
        ("durus.persistent", "note_change"),
        ("durus.storage", "open_storage"),
    ],
)
def test_a_name_is_refused(module: str, qualname: str, protocol: int, marker: str) -> None:
    for use in (b"", push((marker,)) + b"R", b")\x81", push((marker,)) + b"}\x92"):
        with pytest.raises(ClassNotAllowedError, match=REFUSAL):
            load(finish(name(module, qualname) + use, protocol=protocol))


@pytest.mark.parametrize("import_classes", [True, False])
def test_no_opcode_goes_round_the_names(import_classes: bool, marker: str) -> None:
    text = push("os") + push("system")
    for opcodes in (
        name("os", "system") + push((f"touch {marker}",)) + b"R",
        text + b"\x93" + push((f"touch {marker}",)) + b"R",
        b"(" + push(f"touch {marker}") + b"ios\nsystem\n",
        b"(" + name("os", "system") + push(f"touch {marker}") + b"o",
    ):
        with pytest.raises(ClassNotAllowedError, match=r"system.*tampered"):
            load(finish(opcodes), LoadingPolicy(import_classes=import_classes))


def test_a_call_without_a_protocol_or_an_end_is_refused(marker: str) -> None:
    opcodes = name("os", "system") + push((f"touch {marker}",)) + b"R"
    for state in (opcodes + b".", opcodes, b"N0" + opcodes):
        with pytest.raises(ClassNotAllowedError):
            load(state)


def test_an_extension_code_is_refused(marker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    copyreg.add_extension("os", "system", 240)
    try:
        pickle.loads(b"\x80\x02\x82\xf0.")  # now the C unpickler knows it by its code alone
        use = push((f"touch {marker}",)) + b"R"
        for opcode in (b"\x82\xf0", b"\x83\xf0\0", b"\x84\xf0\0\0\0"):
            with pytest.raises(ClassNotAllowedError, match=r"object 5.*extension code, 240"):
                load(finish(opcode + use))
            with pytest.raises(ClassNotAllowedError, match="extension code"):
                LoadingPolicy().load_class(finish(opcode + use), OID)
        assert load(pickle.dumps("\x82")) == "\x82"
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_a_class_pickle_is_not_executed(marker: str) -> None:
    for opcodes in (
        call(name("os", "system"), f"touch {marker}"),
        b"(" + push(f"touch {marker}") + b"ios\nsystem\n",
        build(name(HERE, "Money"), (None, {"currency": "ZZZ"})),
        name(HERE, "Money") + b")\x81",
        call(name("os", "system"), name(HERE, "Account"), "x"),
        call(name("builtins", "getattr"), name("os", "path"), 5),
        push("x"),
    ):
        with pytest.raises(ObjectError, match="object 5"):
            LoadingPolicy().load_class(finish(opcodes), OID)
    for target in (("os", "system"), ("subprocess", "Popen"), (HERE, "Money"), (HERE, "Popen")):
        with pytest.raises(ClassNotAllowedError, match="object 5"):
            LoadingPolicy().load_class(finish(name(*target)), OID)
    assert Money.currency == "EUR"


@pytest.mark.parametrize("function", ["eval", "execfile", "input", "apply", "open"])
def test_names_of_python_2_are_mapped_and_refused(function: str, marker: str) -> None:
    for module in ("__builtin__", "os", "commands"):
        state = finish(call(name(module, function), marker), protocol=2)
        with pytest.raises(ClassNotAllowedError, match=REFUSAL):
            load(state)


def test_a_module_of_the_standard_library_is_not_imported() -> None:
    assert "this" not in sys.modules
    for module in ("this", "antigravity", "test.autotest", "idlelib.run"):
        before = set(sys.modules)
        with pytest.raises(ClassNotAllowedError):
            load(finish(name(module, "x")))
        assert module not in set(sys.modules) - before


# getattr and the other functions that pickles need.


@pytest.mark.parametrize(
    "opcodes",
    [
        call(name("builtins", "getattr"), name(HERE, "Money"), "__init__"),
        call(name("builtins", "getattr"), name(HERE, "Money"), "__class__"),
        call(name("builtins", "getattr"), name(HERE, "Account"), "close"),
        call(name("builtins", "getattr"), name(HERE, "Runner"), "process"),
        call(name("builtins", "getattr"), name(HERE, "Runner"), "shell"),
        call(name("builtins", "getattr"), name("datetime", "datetime"), "now"),
        call(name("builtins", "getattr"), name("pathlib", "Path"), "touch"),
        call(name("builtins", "getattr"), name("zoneinfo", "ZoneInfo"), "from_file"),
        call(name("builtins", "getattr"), name("zoneinfo", "ZoneInfo"), "clear_cache"),
        call(name("builtins", "getattr"), "x", "format"),
        call(name("builtins", "getattr"), name("builtins", "getattr"), "_call"),
        call(name("builtins", "getattr"), name(HERE, "Money"), 5),
        call(name("builtins", "type"), "X"),
        call(name("builtins", "type"), "X", Code(b")"), Code(b"}")),
        call(name("builtins", "type"), call(name(HERE, "Money"), 1)),
        name("builtins", "type") + push(("X", Code(b")"), Code(b"}"))) + b"\x81",
        call(name("_codecs", "encode"), "x", "rot13"),
        call(name("_codecs", "encode"), "x", "utf-8"),
        call(name("_codecs", "encode"), 5, "latin1"),
        call(name("copyreg", "_reconstructor"), "x", name("builtins", "object"), None),
        call(name("copyreg", "__newobj__"), name("builtins", "getattr")),
        call(name("re", "_compile"), 5, 6),
        call(name("array", "_array_reconstructor"), name(HERE, "Money"), "i", 0, "x"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_admitted_functions_do_one_thing_only(opcodes: bytes, protocol: int) -> None:
    with pytest.raises(ObjectError, match=rf"object 5.*{HERE}\.Account"):
        load(finish(opcodes, protocol=protocol))
    assert not [cls for cls in object.__subclasses__() if cls.__name__ == "X"]


@pytest.mark.parametrize("function", ["_reconstructor", "__newobj__", "__newobj_ex__"])
def test_copyreg_makes_only_what_is_admitted(function: str, marker: str) -> None:
    args: tuple[object, ...] = {
        "_reconstructor": (name("builtins", "object"), None),
        "__newobj__": (),
        "__newobj_ex__": ((), {}),
    }[function]
    state = finish(call(name("copyreg", function), name("subprocess", "Popen"), *args))
    with pytest.raises(ClassNotAllowedError, match=REFUSAL):
        load(state)
    state = finish(call(name("copyreg", function), name("gone.models", "Gone"), *args))
    with pytest.raises(MissingClassError, match=r"object 5.*gone\.models\.Gone"):
        load(state)


@pytest.mark.parametrize(
    "target",
    [("_codecs", "encode"), ("builtins", "getattr"), ("builtins", "type"), ("re", "_compile")],
)
def test_the_admitted_functions_cannot_be_changed(target: tuple[str, str], marker: str) -> None:
    for state in ({"_call": 5}, (None, {"_call": 5}), (None, {"__class__": 5})):
        with pytest.raises(ClassNotAllowedError, match="changes"):
            load(finish(build(name(*target), state)))
    assert load(pickle.dumps([b"\xff", type(None)], 2)) == [b"\xff", type(None)]


# BUILD on what outlives the pickle.


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("opcodes", "value"),
    [
        (build(name(HERE, "Money"), (None, {"currency": "ZZZ"})), lambda: Money.currency),
        (build(name(HERE, "Money"), (None, {"added": 1})), lambda: hasattr(Money, "added")),
        (
            build(name(HERE, "Money"), (None, {"__init__": name("builtins", "set")})),
            lambda: Money.__init__,
        ),
        (
            build(name(HERE, "Money"), (None, {"currency": "ZZZ"})) + b"0cos\nsystem\n",
            lambda: Money.currency,
        ),
        (
            build(call(name("builtins", "getattr"), name(HERE, "Color"), "RED"), {"_value_": 7}),
            lambda: Color.RED.value,
        ),
        (
            build(name("fractions", "Fraction"), (None, {"numerator": 7})),
            lambda: Fraction(1).numerator,
        ),
        (build(name("uuid", "UUID"), (None, {"hex": 7})), lambda: uuid.UUID(int=1).hex),
        (build(name("pathlib", "PurePath"), (None, {"name": 7})), lambda: Path("a").name),
        (build(name("builtins", "ValueError"), (None, {"x": 7})), lambda: hasattr(ValueError, "x")),
        (build(name(HERE, "Account"), (None, {"x": 7})), lambda: hasattr(Account, "x")),
        (
            build(name("durus.persistent", "Persistent"), (None, {"x": 7})),
            lambda: hasattr(Account, "x"),
        ),
        (build(name("gone.models", "Gone"), (None, {"__new__": 7})), lambda: 0),
        (build(call(name(HERE, "Color"), 1), {"_value_": 7}), lambda: Color.RED.value),
        (build(call(name(HERE, "Color"), 1), (None, {"_name_": 7})), lambda: Color.RED.name),
        (build(call(name(HERE, "Color"), [2]), {"_value_": 7}), lambda: Color.BLUE.value),
        (build(name(HERE, "Color"), (None, {"added": 7})), lambda: hasattr(Color, "added")),
        (build(call(name(HERE, "Right"), 7), {"_value_": 1}), lambda: Right(7).value),
        (build(call(name("uuid", "SafeUUID"), 0), {"_value_": 1}), lambda: uuid.SafeUUID(0).value),
        (
            Code(name(HERE, "Money") + b"2" + push((None, {"added": 1})) + b"b"),
            lambda: hasattr(Money, "added"),
        ),
    ],
)
def test_classes_and_members_of_enums_cannot_be_changed(
    opcodes: bytes, value: Callable[[], object], protocol: int, marker: str
) -> None:
    before = value()
    with pytest.raises(ObjectError, match="object 5"):
        load(finish(opcodes, protocol=protocol))
    assert value() == before


def test_a_change_of_a_class_is_said_to_be_tampering() -> None:
    with pytest.raises(ClassNotAllowedError, match=r"object 5.*Account.*changes.*Money.*tampered"):
        load(finish(build(name(HERE, "Money"), (None, {"currency": "ZZZ"}))))


def test_a_change_that_is_hidden_by_equality_is_undone() -> None:
    opcodes = build(name(HERE, "Money"), (None, {"currency": call(name("builtins", "str"), "EUR")}))
    before = Money.currency
    with pytest.raises(ClassNotAllowedError):
        load(finish(call(name(HERE, "Money"), 1), opcodes, b"K\x01"))
    assert Money.currency is before


def test_a_change_that_makes_the_second_attempt_fail_is_undone() -> None:
    before = dict(vars(Money))
    change = build(name(HERE, "Money"), (None, {"__init__": name("builtins", "range")}))
    with pytest.raises(ObjectError, match="object 5"):
        load(finish(call(name(HERE, "Money"), "x"), change))
    assert dict(vars(Money)) == before


def test_an_allowed_function_cannot_be_changed() -> None:
    policy = LoadingPolicy(allow=[f"{HERE}.scale"])
    assert load(finish(call(name(HERE, "scale"), 3)), policy) == 3
    for state in ({"x": 1}, (None, {"__defaults__": (5,)}), (None, {"x": 1})):
        with pytest.raises(ClassNotAllowedError, match=r"changes.*scale"):
            load(finish(build(name(HERE, "scale"), state)), policy)
    assert scale() == 1
    assert vars(scale) == {}


def test_what_the_pickle_made_itself_may_be_built() -> None:
    opcodes = build(Code(name(HERE, "Money") + b")\x81"), {"amount": 5, "currency": "USD"})
    assert load(finish(opcodes)) == Money(5, "USD")


# Malformed and oversize pickles.


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b".",
        b"\x80",
        b"\x80\x04",
        b"\x80\xff.",
        b"\x80\x04N",
        b"\x80\x04K.",
        b"\x80\x04X\xff\xff\xff\x7fabc.",
        b"\x80\x04X\x01\0\0\0\xff.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fN.",
        b"\x80\x04h\x05.",
        b"\x80\x04t.",
        b"\x80\x04R.",
        b"\x80\x04NNR.",
        b"\x80\x04NN\x81.",
        b"\x80\x04Nb.",
        b"\x80\x04N}b.",
        b"\x80\x04]NNs.",
        b"\x80\x04}]Ns.",
        b"\x80\x04\x97.",
        b"\x80\x04\xfe.",
        b"\x80\x04Nr\xff\xff\xff\x7f.",
        b"\x80\x04cdatetime\ndatetime\nN\x85R.",
        b"\x80\x04cuuid\nUUID\n)R.",
        b"\x80\x04cdecimal\nDecimal\nX\x01\0\0\0x\x85R.",
        b"\x80\x02U\x01\xff.",
        b"\x80\x04c\xff\nx\n.",
        b"\x80\x04ca\nb\0\n.",
        b"this is no pickle",
    ],
)
def test_a_malformed_state_is_one_clear_error(state: bytes) -> None:
    with pytest.raises(ObjectError, match=rf"object 5.*{HERE}\.Account") as caught:
        load(state)
    assert caught.value.__cause__ is not None


def test_a_tiny_pickle_gets_no_memo_of_gigabytes() -> None:
    refusal = r"object 5.*puts something at index 268435455 of its memo.*tampered"
    with pytest.raises(ObjectError, match=refusal):
        load(b"\x80\x04Nr\xff\xff\xff\x0f.")
    with pytest.raises(ObjectError, match=refusal):
        LoadingPolicy().load_class(name(HERE, "Account") + b"r\xff\xff\xff\x0f.", OID)


def test_every_cut_of_a_state_is_one_clear_error() -> None:
    for protocol in (2, 4):
        value = {"a": [1, 2**70, 1.5, b"x", {3}], "b": Money(1), "c": Color.RED, "d": Fraction(1)}
        state = pickle.dumps(value, protocol)
        for end in range(len(state)):
            with pytest.raises(ObjectError, match="object 5"):
                load(state[:end])


def test_deep_nesting_is_an_error_or_a_value() -> None:
    depth = 50_000
    loaded = load(finish(b"]" * depth + b"a" * (depth - 1)))
    assert len(loaded) == 1

    def descend(pid: object) -> object:
        return descend(pid)

    with pytest.raises(ObjectError, match=r"object 5.*RecursionError"):
        LoadingPolicy().load_state(b"\x80\x04NQ.", descend, OID, Account)


def test_an_error_of_persistent_load_keeps_its_kind() -> None:
    def refuse(pid: object) -> object:
        raise ObjectError(f"{pid!r} is no reference")

    with pytest.raises(ObjectError, match=r"object 5.*7 is no reference"):
        LoadingPolicy().load_state(b"\x80\x04K\x07Q.", refuse, OID, Account)


def test_a_hostile_record_leaves_the_rest_of_the_database_usable(marker: str) -> None:
    storage = MemoryStorage()
    connection = Connection(storage)
    connection.root["good"], connection.root["bad"] = Account(), Account()
    connection.commit()
    bad = connection.root["bad"]._p_oid
    hostile = pickle.dumps({"harm": Exploit(os.system, f"touch {marker}")}, 4)
    overwrite_state(storage, bad, hostile)
    connection = Connection(storage)
    with pytest.raises(ClassNotAllowedError, match=r"allow=\[\"posix.system\"\]"):
        _ = connection.root["bad"].harm
    connection.root["good"].balance = 5
    connection.commit()
    assert Connection(storage).root["good"].balance == 5


def overwrite_state(storage: MemoryStorage, oid: Oid, state_pickle: bytes) -> None:
    with contextlib.closing(storage.snapshot()) as snapshot:
        record = snapshot.load(oid).record._replace(state_pickle=state_pickle)
        storage.commit(
            Transaction(
                id=1,
                snapshot_tid=snapshot.tid,
                accessed=OidSet(),
                created=frozenset(),
                writes={oid: record},
                time_ns=0,
            )
        )
