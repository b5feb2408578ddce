"""The upgrades that were declared for classes, and the version that stands in a state."""

from collections.abc import Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

from durus.error import ObjectError
from durus.persistent import PersistentObject

__all__ = ["VERSION_KEY", "declare", "has_upgrades", "take_version", "upgrades_since", "version_of"]

VERSION_KEY: Final = "_p_schema_version"
"""The key in a state; there is none for version 1."""

_Upgrade = Callable[[Any], None]

_declared: "WeakKeyDictionary[type, dict[int, _Upgrade]]" = WeakKeyDictionary()
"""By the version to which they lead."""


def has_upgrades() -> bool:
    """Whether there are any."""
    return bool(_declared)


def declare(cls: type, to: int, upgrade: _Upgrade) -> None:
    """Declare an upgrade; ValueError and TypeError."""
    if type(to) is not int:
        raise TypeError(f"an upgrade leads to a version, which is a number, and not to {to!r}")
    if not (isinstance(cls, type) and issubclass(cls, PersistentObject)):
        raise TypeError(f"upgrades are for persistent classes, and {cls!r} is none")
    steps = _declared.setdefault(cls, {})
    if to < 2 or to in steps:
        was = "is declared already" if to in steps else "is none: they begin with 2"
        raise ValueError(f"an upgrade of {cls.__module__}.{cls.__qualname__} to {to} {was}")
    steps[to] = upgrade


def _upgrades_of(cls: type) -> dict[int, _Upgrade]:
    return next((_declared[base] for base in cls.__mro__ if base in _declared), {})


def version_of(cls: type) -> int:
    """The newest version of a class."""
    return max(_upgrades_of(cls), default=1)


def take_version(state: Any) -> int:
    """The version in a state that was loaded; the key is taken out."""
    if isinstance(state, dict) and VERSION_KEY in state:
        version = state.pop(VERSION_KEY)
        return version if isinstance(version, int) else 0
    return 1


def upgrades_since(cls: type, version: int) -> list[_Upgrade]:
    """What makes a state of this version one of the newest; ObjectError if that is not known."""
    steps = _upgrades_of(cls)
    newest = max(steps, default=1)
    name = f"{cls.__module__}.{cls.__qualname__}"
    if not 1 <= version <= newest:
        raise ObjectError(
            f"its state is of version {version} of {name}, and this program knows up to {newest}: "
            "import the module that declares the upgrades, or use a newer release of the program"
        )
    missing = [to for to in range(version + 1, newest) if to not in steps]
    if missing:
        raise ObjectError(f"no upgrade of {name} to version {missing[0]} was declared")
    return [steps[to] for to in range(version + 1, newest + 1)]
