"""The loading policy: what the pickles of a record may name, make and call.

Loading a pickle can run code, so nothing of a record reaches an unpickler but through here; a
connection has one `LoadingPolicy`.  Two questions are answered apart:

    what may be made     subclasses of `PersistentObject`; the value types of `_VALUES`; classes
                         of application packages: `__main__`, the packages of the persistent
                         classes that are imported, and what `allow=` names
    what may be called   the same classes, and `durus.unpickling.CONSTRUCTORS`

Every name that a pickle uses passes `LoadingPolicy._search`, whatever the opcode.  The invariants:

    * A class pickle is only read: what it names is neither imported nor called
      (`durus.class_pickle`).
    * A pickle changes only objects that it has itself made (`durus.unpickling`).
    * No module of the standard library is imported because a record names it.

`docs/security.md` says what that means to users.
"""

import builtins
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pkgutil import resolve_name
from types import ModuleType
from typing import Any, Final, NoReturn

from durus.class_pickle import modernize_name, parse_class_pickle
from durus.error import ClassNotAllowedError, DurusError, ObjectError, format_oid
from durus.interfaces import Oid
from durus.missing import MissingObject, make_placeholder
from durus.persistent import PersistentObject
from durus.unpickling import CONSTRUCTORS, load_pickle

__all__ = ["LoadingPolicy", "name_and_packages"]

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
        for alias in self._aliases.items():
            if not all(isinstance(name, str) and name for name in alias):
                raise TypeError(f'aliases= takes names: {{"old.Old": "new.New"}}, and not {alias}')
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
            return self.find_persistent_class(*parse_class_pickle(class_pickle))
        except Exception as error:
            _blame(f"the class of object {format_oid(oid)}", error)

    def find_persistent_class(
        self, module: str, qualname: str, old_names: bool = False
    ) -> type[PersistentObject]:
        """The class of this name; a subclass of `MissingObject` if it cannot be found.

        old_names: whether the name is as in Python 2.  Raises ClassNotAllowedError.
        """
        found = self._find(module, qualname, old_names)
        if isinstance(found, type) and issubclass(found, PersistentObject):
            return found
        raise ClassNotAllowedError(
            f"{module}.{qualname} is no subclass of PersistentObject, so it cannot be the class of "
            "a record.  If it once was, make it one again; otherwise the file was tampered with"
        )

    def find_imported_class(self, class_pickle: bytes) -> type[PersistentObject] | None:
        """The class of a record, if it is imported already; else None."""
        try:
            module, qualname = self._rename(*parse_class_pickle(class_pickle))
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
            return load_pickle(state_pickle, self._find, persistent_load)
        except Exception as error:
            name = f"{cls.__module__}.{cls.__qualname__}"
            _blame(f"the state of object {format_oid(oid)}, of class {name}", error)

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
        full_name = f"{module}.{name}"
        for prefix in name_and_packages(full_name) if self._aliases else ():
            alias = self._aliases.get(prefix)
            if alias is not None:
                if len(prefix) <= len(module):
                    return alias + module[len(prefix) :], name
                new_module, _, new_name = alias.rpartition(":" if ":" in alias else ".")
                return new_module, new_name + full_name[len(prefix) :]
        return modernize_name(module, name, old_names)

    def _search(self, module: str, name: str) -> object:
        """What a name of today stands for, if the policy admits it."""
        module = _RENAMED_MODULES.get(module, module)
        if (module, name) in CONSTRUCTORS:
            return CONSTRUCTORS[module, name]
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
            return self._missing.setdefault((module, name), make_placeholder(module, name))
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
        if any(prefix in self._allowed for prefix in name_and_packages(module)):
            return True
        if top not in self._packages:
            self._packages.update(_packages_of_subclasses(PersistentObject))
        return top in self._packages


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


def name_and_packages(name: str) -> Iterator[str]:
    """A dotted name, and what it is in: "a.b.c", "a.b", "a"."""
    while name:
        yield name
        name = name.rpartition(".")[0]


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
