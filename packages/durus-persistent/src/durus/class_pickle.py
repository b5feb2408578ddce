"""The name in a class pickle, read without importing or calling anything.

The first pickle of a record names the class of its object.  `LoadingPolicy` looks the name up, and
tools that inspect a database show it.  What the names of Python 2 are today is here, too.
"""

import io
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from functools import lru_cache
from typing import NamedTuple

from durus.error import ClassNotAllowedError, ObjectError
from durus.pickle_opcodes import check_opcodes

__all__ = [
    "has_old_names",
    "modernize_name",
    "name_in_class_pickle",
    "parse_class_pickle",
]


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
def parse_class_pickle(class_pickle: bytes) -> tuple[str, str, bool]:
    """Module, qualified name, and whether they are as in Python 2."""
    try:
        check_opcodes(class_pickle)
        name = _NameUnpickler(io.BytesIO(class_pickle)).load()
        if type(name) is not _Name:
            raise ObjectError("it is no class")
    except Exception as error:
        kind = type(error) if isinstance(error, ObjectError) else ObjectError
        raise kind(f"{class_pickle[:100]!r} is no pickle of a class: {error}") from error
    return name.module, name.qualname, has_old_names(class_pickle)


def name_in_class_pickle(class_pickle: bytes) -> tuple[str, str]:
    """The module and the qualified name of the class; nothing is imported or executed.

    Names that Python 2 called differently are given as Python 3 calls them.  Raises ObjectError
    when the bytes are no pickle of a class.
    """
    return modernize_name(*parse_class_pickle(class_pickle))


def has_old_names(pickled: bytes) -> bool:
    """Whether the names are those of Python 2, as in all protocols before 3."""
    return not (pickled[:1] == b"\x80" and pickled[1:2] >= b"\x03")


def modernize_name(module: str, name: str, old_names: bool) -> tuple[str, str]:
    """The name as Python 3 has it, mapped as `pickle` does."""
    if not old_names:
        return module, name
    return NAME_MAPPING.get((module, name)) or (IMPORT_MAPPING.get(module, module), name)
