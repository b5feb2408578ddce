"""The loading policy: what the pickles of a record may name, make and call.

Loading a pickle can run code, so nothing of a record reaches an unpickler but through here.  Two
questions are answered apart:

    what may be made     subclasses of `PersistentObject`; the value types of `_VALUES`; classes
                         of application packages: `__main__`, the packages of the persistent
                         classes that are imported, and what `allow=` names
    what may be called   the same classes, and the constructors of `_CONSTRUCTORS`

Every name that a pickle uses passes `LoadingPolicy._search`, whatever the opcode.  The invariants:

    * A class pickle is only read: what it names is neither imported nor called.
    * A pickle sets attributes (BUILD) only of objects that it has itself made: not of classes,
      functions and members of enums, which outlive it (`_Names`).
    * No module of the standard library is imported because a record names it.

`docs/security.md` says what that means to users.
"""

import array
import builtins
import copyreg
import io
import os
import pickle
import pickletools
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from operator import is_
from pkgutil import resolve_name
from types import ModuleType
from typing import Any, ClassVar, Final, NamedTuple, NoReturn

from durus.error import (
    ClassNotAllowedError,
    DurusError,
    MissingClassError,
    ObjectError,
    format_oid,
)
from durus.interfaces import Oid
from durus.persistent import PersistentObject

__all__ = ["LoadingPolicy", "MissingObject", "name_in_class_pickle"]

CACHED_NAMES_MAX: Final = 10_000
"""A policy remembers at most this many names; more of them than any application has."""

_UNTRUSTED: Final = sys.stdlib_module_names | {"durus"}
"""Packages that are never an application's, whatever they contain."""

_ABSENT: Final = object()

_VALUES: Final[Mapping[str, str]] = {
    "builtins": "object int float complex bool str bytes bytearray list tuple dict set frozenset "
    "range slice Ellipsis NotImplemented "
    + " ".join(
        name
        for name, value in vars(builtins).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    ),
    "array": "array",
    "collections": "ChainMap Counter OrderedDict UserDict UserList UserString defaultdict deque",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "http": "HTTPMethod HTTPStatus",
    "ipaddress": "IPv4Address IPv4Interface IPv4Network IPv6Address IPv6Interface IPv6Network",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "time": "struct_time",
    "types": "SimpleNamespace",
    "uuid": "SafeUUID UUID",
    "zoneinfo": "ZoneInfo",
}

_RENAMED_MODULES: Final = {"pathlib._local": "pathlib"}  # Python 3.13 writes the first


class MissingObject(PersistentObject):
    """An object whose class cannot be found: a ghost for ever, which says so when accessed.

    There is a subclass for every such class; it has the module and the qualified name of the
    original.  References to the object are stored again as they were.
    """

    __slots__ = ()

    missing_module: ClassVar[str] = "durus.policy"
    missing_qualname: ClassVar[str] = "MissingObject"

    def __new__(cls, *args: object, **kwargs: object) -> "MissingObject":
        # Called for values inside a state; ghosts are made by PersistentBase.__new__(cls).
        raise MissingClassError(cls._p_remedy())

    @classmethod
    def _p_remedy(cls) -> str:
        name = f"{cls.missing_module}.{cls.missing_qualname}"
        return (
            f"class {name} cannot be found.  Put its module on the import path, or say what it "
            f'is called now: aliases={{"{name}": "new.module.NewName"}}'
        )

    def _p_identity(self) -> str:
        cls = type(self)  # asking the object itself would load it
        oid = format_oid(self._p_oid)
        return f"MissingClass {cls.missing_module}.{cls.missing_qualname} {oid}"

    def _p_load_state(self) -> None:
        raise MissingClassError(f"object {format_oid(self._p_oid)}: {self._p_remedy()}")


def _make_placeholder(module: str, qualname: str) -> type[MissingObject]:
    namespace = {
        "__slots__": (),
        "__module__": module,
        "__qualname__": qualname,
        "missing_module": module,
        "missing_qualname": qualname,
    }
    return type(qualname.rpartition(".")[2], (MissingObject,), namespace)


# The names in class pickles.


class _Name(NamedTuple):
    """What a name in a class pickle is read as; nothing is imported or called."""

    module: str
    qualname: str

    def __call__(self, owner: "_Name", name: str) -> "_Name":
        """getattr(Outer, "Inner"): how protocol 2 stores nested classes."""
        if self not in (("builtins", "getattr"), ("__builtin__", "getattr")):
            raise ClassNotAllowedError(f"it calls {self.module}.{self.qualname}")
        return _Name(owner.module, f"{owner.qualname}.{name}")


class _NameUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> _Name:
        return _Name(module, name)


@lru_cache(1000)
def _parse_class_pickle(class_pickle: bytes) -> tuple[str, str, bool]:
    """Module, qualified name, and whether they are as in Python 2."""
    try:
        _check_no_extensions(class_pickle)
        name = _NameUnpickler(io.BytesIO(class_pickle)).load()
        if type(name) is not _Name:
            raise ObjectError("it is no class")
    except Exception as error:
        kind = type(error) if isinstance(error, ObjectError) else ObjectError
        raise kind(f"{class_pickle[:100]!r} is no pickle of a class: {error}") from error
    return name.module, name.qualname, _has_old_names(class_pickle)


def name_in_class_pickle(class_pickle: bytes) -> tuple[str, str]:
    """The module and the qualified name of the class; nothing is imported or executed.

    Names that Python 2 called differently are given as Python 3 calls them.  Raises ObjectError
    when the bytes are no pickle of a class.
    """
    return _modern_name(*_parse_class_pickle(class_pickle))


def _has_old_names(pickled: bytes) -> bool:
    """Whether the names are those of Python 2, as in all protocols before 3."""
    return not (pickled[:1] == b"\x80" and pickled[1:2] >= b"\x03")


def _modern_name(module: str, name: str, old_names: bool) -> tuple[str, str]:
    """The name as Python 3 has it, mapped as `pickle` does."""
    if not old_names:
        return module, name
    return NAME_MAPPING.get((module, name)) or (IMPORT_MAPPING.get(module, module), name)


# What states may call beside classes.


class _Constructor:
    """A function that pickles may call; in itself it offers them nothing to change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *args: object) -> object:
        return self._call(*args)

    def __setstate__(self, state: object) -> NoReturn:
        _refuse_change(self._call)


def _refuse_change(target: object) -> NoReturn:
    raise ClassNotAllowedError(
        f"the record changes {target!r}, which is no part of it.  The file was tampered with"
    )


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Bytes, as protocol 2 writes them."""
    if type(text) is not str or encoding != "latin1":
        raise ClassNotAllowedError(f"_codecs.encode is for bytes only, not for {encoding!r}")
    return text.encode("latin1")


def _reconstruct(cls: type, base: type, state: object) -> object:
    """An object as protocols 0 and 1 made it: with the state of its builtin base class."""
    if issubclass(cls, PersistentObject):
        return cls.__new__(cls)  # object.__new__ would leave it half made
    return copyreg._reconstructor(cls, base, state)  # type: ignore[attr-defined]  # not in typeshed


def _type_of_constant(value: object) -> type:
    """The types of the constants have no names of their own; type() with a name makes classes."""
    if not any(value is constant for constant in (None, ..., NotImplemented)):
        raise ClassNotAllowedError(f"type() is for None, ... and NotImplemented, not {value!r}")
    return type(value)


_GETATTR: Final = ("builtins", "getattr")

_CONSTRUCTORS: Final[Mapping[tuple[str, str], _Constructor]] = {
    ("_codecs", "encode"): _Constructor(_encode_latin1),
    ("array", "_array_reconstructor"): _Constructor(
        array._array_reconstructor  # type: ignore[attr-defined]  # not in typeshed
    ),
    ("builtins", "type"): _Constructor(_type_of_constant),
    ("copyreg", "__newobj__"): _Constructor(lambda cls, *args: cls.__new__(cls, *args)),
    ("copyreg", "__newobj_ex__"): _Constructor(
        lambda cls, args, kwargs: cls.__new__(cls, *args, **kwargs)
    ),
    ("copyreg", "_reconstructor"): _Constructor(_reconstruct),
    ("re", "_compile"): _Constructor(lambda pattern, flags: re.compile(pattern, flags)),
}


def _check_no_extensions(pickled: bytes) -> None:
    """Refuse extension codes: the C unpickler takes some objects for them without asking."""
    if copyreg._inverted_registry:  # type: ignore[attr-defined]  # not in typeshed
        for opcode, code, _ in pickletools.genops(pickled):
            if opcode.name.startswith("EXT"):
                raise ClassNotAllowedError(
                    f"a record may not use an extension code, {code}.  Durus writes none: the "
                    "file was tampered with"
                )


# Loading a state.


class _CareNeeded(Exception):  # noqa: N818 - no error: it leads to a second attempt
    """The state names something that only a careful unpickler may have."""


_IMMUTABLE_TYPE: Final = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE


class _Names:
    """The names in one state: finds them, and sees whether what they stand for gets changed.

    A pickle may apply BUILD to anything, so also to a class, of which it then sets attributes.
    The C unpickler has no hook there.  So what could be changed is copied and compared
    afterwards; and on a difference, which application code may also have made, the state is
    loaded again by the Python unpickler, which has one.
    """

    def __init__(self, policy: "LoadingPolicy", pickled: bytes) -> None:
        self._policy = policy
        self._old_names = _has_old_names(pickled)
        self._builds = pickle.BUILD in pickled
        self._copies: list[tuple[type | dict[Any, Any], dict[Any, Any]]] = []
        self._shared: list[object] = []
        self.careful = False

    def find_class(self, module: str, name: str, old_names: bool | None = None) -> object:
        found = self._policy._find(
            module, name, self._old_names if old_names is None else old_names
        )
        if found is _GETATTR:
            return _Constructor(self._get_nested)
        if self._builds:
            self._watch(found)
        return found

    def _get_nested(self, owner: object, name: object) -> object:
        """getattr, for the classes and the constructor that are pickled by it."""
        if isinstance(owner, type) and type(name) is str:
            if (owner.__module__, owner.__name__, name) == ("zoneinfo", "ZoneInfo", "_unpickle"):
                return _Constructor(getattr(owner, name))
            if issubclass(owner, Enum) and name in owner.__members__:
                return owner.__members__[name]
            if not name.startswith("__"):
                return self.find_class(owner.__module__, f"{owner.__qualname__}.{name}", False)
        raise ClassNotAllowedError(
            f"getattr({owner!r}, {name!r}) is not allowed in a record.  The file was tampered with"
        )

    def _watch(self, found: object) -> None:
        if not isinstance(found, type):
            if not self.careful and not isinstance(found, _Constructor):
                raise _CareNeeded
            self._shared.append(found)
        elif not found.__flags__ & _IMMUTABLE_TYPE and not hasattr(found, "__setstate__"):
            self._copies.append((found, vars(found).copy()))
            if issubclass(found, Enum):
                by_value = found._value2member_map_
                members = [*by_value.values()]
                if len(members) < len(found._member_map_):  # a value that cannot be hashed
                    members += found._member_map_.values()
                for changeable in (by_value, *map(vars, members)):
                    self._copies.append((changeable, changeable.copy()))

    def were_changed(self) -> bool:
        for owner, before in self._copies:
            now = dict(owner if isinstance(owner, dict) else vars(owner))
            if len(now) != len(before) or not (
                all(map(is_, now, before)) and all(map(is_, now.values(), before.values()))
            ):
                return True
        return False

    def put_back(self) -> None:
        """Undo the changes."""
        for owner, before in reversed(self._copies):
            if isinstance(owner, dict):
                owner.clear()
                owner.update(before)
                continue
            for name in vars(owner).keys() - before.keys():
                type.__delattr__(owner, name)
            for name, value in before.items():
                if vars(owner).get(name, _ABSENT) is not value:
                    type.__setattr__(owner, name, value)

    def check_build(self, target: object) -> None:
        """Refuse BUILD on what the pickle did not make."""
        if isinstance(target, type | Enum) or any(target is shared for shared in self._shared):
            _refuse_change(target)


class _Unpickler(pickle.Unpickler):
    """The C unpickler; `find_class` and `persistent_load` are set as attributes."""


class _CarefulUnpickler(pickle._Unpickler):
    """The Python unpickler, which asks before BUILD; ten times as slow."""

    names: _Names

    # What follows is not in typeshed.
    def load_build(self) -> None:
        self.names.check_build(self.stack[-2])  # type: ignore[attr-defined]
        super().load_build()  # type: ignore[misc]

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}  # type: ignore[dict-item]


class LoadingPolicy:
    """Decides what the records of one connection may name.  May be shared by threads.

    allow: packages, modules, or full names of classes and functions, which count as the
      application's.  ValueError for a package or module of the standard library or of Durus.
    aliases: {"old.module.Old": "new.module.New"}, or modules and packages: {"old": "new"}.
      A nested new name is written "new.module:Outer.Inner".
    import_classes: whether a module outside the application packages is imported to look there
      for a persistent class, as Durus 4.x does.  False for files and servers of others.
    """

    def __init__(
        self,
        *,
        allow: Iterable[str] = (),
        aliases: Mapping[str, str] | None = None,
        import_classes: bool = True,
    ) -> None:
        if isinstance(allow, str):
            raise TypeError(f'allow= takes a list of names: allow=["{allow}"]')
        self._allowed = frozenset(allow)
        for name in self._allowed:
            _check_allowed(name)
        self._aliases = dict(aliases or {})
        self._import_classes = import_classes
        self._packages = {"__main__"}
        self._found: dict[tuple[str, str, bool], object] = {}
        self._missing: dict[tuple[str, str], type[MissingObject]] = {}
        self.known_loadable: set[object] = set()
        """Types and functions of which the writer knows that they can be loaded again."""

    def load_class(self, class_pickle: bytes, oid: Oid) -> type[PersistentObject]:
        """The class of a record; a subclass of `MissingObject` if it cannot be found.

        Raises ClassNotAllowedError, and ObjectError if the bytes are no pickle of a class.
        """
        try:
            return self._find_persistent(*_parse_class_pickle(class_pickle))
        except Exception as error:
            _blame(f"the class of object {format_oid(oid)}", error)

    def find_persistent_class(self, module: str, qualname: str) -> type[PersistentObject]:
        """The class of this name; a subclass of `MissingObject` if it cannot be found."""
        return self._find_persistent(module, qualname, False)

    def find_imported_class(self, class_pickle: bytes) -> type[PersistentObject] | None:
        """The class of a record, if it is imported already; else None."""
        try:
            module, qualname = self._rename(*_parse_class_pickle(class_pickle))
        except ObjectError:
            return None
        found = _look_up(sys.modules.get(module), qualname)
        return found if isinstance(found, type) and issubclass(found, PersistentObject) else None

    def load_state(
        self,
        state_pickle: bytes,
        persistent_load: Callable[[Any], object],
        oid: Oid,
        cls: type,
    ) -> Any:
        """The state in a record; `persistent_load` makes objects of the references in it.

        Raises ClassNotAllowedError, MissingClassError for a value whose class cannot be found,
        and ObjectError for a pickle that cannot be loaded; all name `oid` and `cls`.
        """
        try:
            _check_no_extensions(state_pickle)
            names = _Names(self, state_pickle)
            # Without a frame the C unpickler calls read() once for each opcode.
            framed = state_pickle
            if state_pickle[1:2] < b"\x04":
                framed = pickle.FRAME + len(state_pickle).to_bytes(8, "little") + state_pickle
            try:
                state = _load(_Unpickler(io.BytesIO(framed)), names, persistent_load)
                if not names.were_changed():
                    return state
            except Exception as error:
                if not isinstance(error, _CareNeeded) and not names.were_changed():
                    raise
            names.careful = True
            careful = _CarefulUnpickler(io.BytesIO(state_pickle))
            careful.names = names
            try:
                return _load(careful, names, persistent_load)
            except BaseException:  # not only by check_build: what was changed may be in its way
                names.put_back()
                raise
        except Exception as error:
            name = f"{cls.__module__}.{cls.__qualname__}"
            _blame(f"the state of object {format_oid(oid)}, of class {name}", error)

    # Names.

    def _find_persistent(self, module: str, name: str, old_names: bool) -> type[PersistentObject]:
        found = self._find(module, name, old_names)
        if isinstance(found, type) and issubclass(found, PersistentObject):
            return found
        raise ClassNotAllowedError(
            f"{module}.{name} is no subclass of PersistentObject, so it cannot be the class of a "
            "record.  If it once was, make it one again; otherwise the file was tampered with"
        )

    def _find(self, module: str, name: str, old_names: bool) -> object:
        """What a name in a pickle stands for."""
        key = module, name, old_names
        found = self._found.get(key, _ABSENT)
        if found is _ABSENT:
            found = self._search(*self._rename(*key))
            if len(self._found) >= CACHED_NAMES_MAX:
                self._found.clear()
                self._missing.clear()
            self._found[key] = found
        return found

    def _rename(self, module: str, name: str, old_names: bool) -> tuple[str, str]:
        """The name as it is today, by the aliases or else by what Python 3 renamed."""
        prefix = f"{module}.{name}" if self._aliases else ""
        while prefix:
            alias = self._aliases.get(prefix)
            if alias is None:
                prefix = prefix.rpartition(".")[0]
            elif len(prefix) <= len(module):
                return alias + module[len(prefix) :], name
            else:
                new_module, _, new_name = alias.rpartition(":" if ":" in alias else ".")
                return new_module, new_name + f"{module}.{name}"[len(prefix) :]
        return _modern_name(module, name, old_names)

    def _search(self, module: str, name: str) -> object:
        """What a name of today stands for, if the policy admits it."""
        module = _RENAMED_MODULES.get(module, module)
        if (module, name) == _GETATTR:
            return _GETATTR
        if (module, name) in _CONSTRUCTORS:
            return _CONSTRUCTORS[module, name]
        if name in _VALUES.get(module, "").split():
            return getattr(import_module(module), name)
        exact = f"{module}.{name}" in self._allowed
        top = module.partition(".")[0]
        if _is_standard(top) and not exact:
            return _refuse(module, name)
        importable = exact or top == "durus" or self._import_classes or self._is_application(module)
        home = _import(module) if importable else sys.modules.get(module)
        found = _look_up(home, name, through_anything=exact)
        if found is _ABSENT and importable:
            return self._missing.setdefault((module, name), _make_placeholder(module, name))
        if isinstance(found, type):
            if issubclass(found, PersistentObject) or exact:
                return found
            # Its own module, as application modules also have what they imported from elsewhere.
            if self._is_application(found.__module__) and not issubclass(found, type):
                return found
        elif exact and found is not _ABSENT and not isinstance(found, ModuleType):
            return found
        return _refuse(module, name)

    def _is_application(self, module: object) -> bool:
        """Whether a module belongs to the application."""
        if not isinstance(module, str):
            return False
        top = module.partition(".")[0]
        if top in _UNTRUSTED:
            return False
        prefix = module
        while prefix:
            if prefix in self._allowed:
                return True
            prefix = prefix.rpartition(".")[0]
        if top not in self._packages:
            self._packages.update(_packages_of_subclasses(PersistentObject))
        return top in self._packages


def _load(
    unpickler: pickle.Unpickler | pickle._Unpickler,
    names: _Names,
    persistent_load: Callable[[Any], object],
) -> Any:
    # As attributes, not methods: one call less for each name and each reference.
    unpickler.find_class = names.find_class  # type: ignore[method-assign]  # see above
    unpickler.persistent_load = persistent_load  # type: ignore[method-assign]  # see above
    return unpickler.load()


def _blame(whose: str, error: Exception) -> NoReturn:
    """Raise an error that says with what object something is wrong."""
    if isinstance(error, ObjectError):
        raise type(error)(f"{whose}: {error}") from error
    if isinstance(error, DurusError):  # a conflict, say
        raise error
    raise ObjectError(f"{whose}, cannot be loaded: {type(error).__name__}: {error}") from error


def _check_allowed(name: str) -> None:
    """Refuse in `allow=` what would admit more than anybody can oversee."""
    if name.partition(".")[0] not in _UNTRUSTED:
        return
    try:
        found = resolve_name(name) if "." in name else None
    except (ImportError, AttributeError) as error:
        raise ValueError(f'allow=["{name}"]: {error}') from error
    if found is None or isinstance(found, ModuleType):
        raise ValueError(
            f'allow=["{name}"] would let records use everything in {name}.  Of the standard '
            'library and of Durus, allow single classes: allow=["email.message.Message"]'
        )


def _refuse(module: str, name: str) -> NoReturn:
    raise ClassNotAllowedError(
        f"a record may not use {module}.{name}.  If your program stored it, admit it with "
        f'allow=["{module}.{name}"]; if you did not expect this name, the file was tampered with'
    )


def _is_standard(top: str) -> bool:
    """Whether a top-level module is of the standard library."""
    if top == "test":  # not in the list, and importing some of it runs Python's own tests
        spec = find_spec(top)
        return spec is not None and (spec.origin or "").startswith(os.path.dirname(os.__file__))
    return top in sys.stdlib_module_names


def _packages_of_subclasses(cls: type) -> set[str]:
    """The top-level packages of the subclasses of `cls`."""
    packages: set[str] = set()
    subclasses: list[type] = type.__subclasses__(cls)
    for subclass in subclasses:
        if subclass is not MissingObject:  # its subclasses have the modules that records name
            packages.add(subclass.__module__.partition(".")[0])
            packages |= _packages_of_subclasses(subclass)
    return packages


def _import(module: str) -> ModuleType | None:
    """The module, or None if there is none; ObjectError with the cause if it cannot be imported."""
    parts = module.split(".")
    if "__main__" in parts[1:] or not all(map(str.isidentifier, parts)):
        return sys.modules.get(module)  # importing a __main__ would run it
    try:
        return import_module(module)
    except (Exception, SystemExit) as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent is not None and f"{module}.".startswith(f"{absent}."):
            return None
        raise ObjectError(f"importing {module} failed, {type(error).__name__}: {error}") from error


def _look_up(home: object, name: str, through_anything: bool = False) -> object:
    """What `name` stands for in a module; only classes are gone through, or None."""
    found = home
    for part in name.split("."):
        if home is None or found is _ABSENT:
            return _ABSENT
        if found is home or through_anything:
            found = getattr(found, part, _ABSENT)
        elif isinstance(found, type) and not part.startswith("__"):
            bases = (vars(base) for base in found.__mro__)  # getattr would run descriptors
            found = next((base[part] for base in bases if part in base), _ABSENT)
        else:
            return None
    return found
