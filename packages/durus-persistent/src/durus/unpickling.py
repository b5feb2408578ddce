"""Loading one pickle of a state, with what its names stand for decided elsewhere.

`LoadingPolicy` calls `load_pickle` for every state, and gives it the function that finds what a
name stands for; of what it may find beside classes, `CONSTRUCTORS` are kept here.  Invariant: a
pickle sets attributes (BUILD) only of objects that it has itself made: not of classes, functions
and members of enums, which outlive it.
"""

import array
import copyreg
import io
import pickle
import re
from collections.abc import Callable, Mapping
from enum import Enum
from operator import is_
from typing import Any, Final, NoReturn

from durus.class_pickle import has_old_names
from durus.error import ClassNotAllowedError
from durus.persistent import PersistentObject
from durus.pickle_opcodes import check_opcodes

__all__ = ["CONSTRUCTORS", "load_pickle"]


class _Constructor:
    """A function that pickles may call; in itself it offers them nothing to change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *args: object) -> object:
        return self._call(*args)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self._call!r} cannot be a value in a record")

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


_GETATTR: Final = object()
"""What getattr is found as: `_Names` then gives the pickle a method of its own for it."""

CONSTRUCTORS: Final[Mapping[tuple[str, str], object]] = {
    ("_codecs", "encode"): _Constructor(_encode_latin1),
    ("array", "_array_reconstructor"): _Constructor(
        array._array_reconstructor  # type: ignore[attr-defined]  # not in typeshed
    ),
    ("builtins", "getattr"): _GETATTR,
    ("builtins", "type"): _Constructor(_type_of_constant),
    ("copyreg", "__newobj__"): _Constructor(lambda cls, *args: cls.__new__(cls, *args)),
    ("copyreg", "__newobj_ex__"): _Constructor(
        lambda cls, args, kwargs: cls.__new__(cls, *args, **kwargs)
    ),
    ("copyreg", "_reconstructor"): _Constructor(_reconstruct),
    ("re", "_compile"): _Constructor(lambda pattern, flags: re.compile(pattern, flags)),
}
"""By module and name, what states may call beside classes."""


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

    def __init__(self, find: Callable[[str, str, bool], object], pickled: bytes) -> None:
        self._find = find
        self._old_names = has_old_names(pickled)
        self._builds = pickle.BUILD in pickled
        self._copies: list[tuple[type | dict[Any, Any], dict[Any, Any]]] = []
        self._shared: list[object] = []
        self.careful = False

    def find_class(self, module: str, name: str, old_names: bool | None = None) -> object:
        found = self._find(module, name, self._old_names if old_names is None else old_names)
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
            now = vars(owner)
            for name in now.keys() - before.keys():
                type.__delattr__(owner, name)
            for name, value in before.items():
                if name not in now or now[name] is not value:
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
        self.names.check_build(self.stack[-2])  # type: ignore[attr-defined]  # see above
        super().load_build()  # type: ignore[misc]  # see above

    dispatch = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,  # type: ignore[dict-item]  # see above
    }


def load_pickle(
    pickled: bytes,
    find: Callable[[str, str, bool], object],
    persistent_load: Callable[[Any], object],
) -> Any:
    """What the pickle of a state makes.

    find: gives what a name stands for, from module, name, and whether they are as in Python 2.
    persistent_load: makes an object of each reference.
    Raises ClassNotAllowedError, and whatever `find` and broken pickles raise.
    """
    check_opcodes(pickled)
    names = _Names(find, pickled)
    # Without a frame the C unpickler calls read() once for each opcode.
    framed = pickled
    if pickled[1:2] < b"\x04":
        framed = pickle.FRAME + len(pickled).to_bytes(8, "little") + pickled
    try:
        state = _load(_Unpickler(io.BytesIO(framed)), names, persistent_load)
        if not names.were_changed():
            return state
    except Exception as error:
        if not isinstance(error, _CareNeeded) and not names.were_changed():
            raise
    names.careful = True
    careful = _CarefulUnpickler(io.BytesIO(pickled))
    careful.names = names
    try:
        return _load(careful, names, persistent_load)
    except BaseException:  # not only by check_build: what was changed may be in its way
        names.put_back()
        raise


def _load(
    unpickler: pickle.Unpickler | pickle._Unpickler,
    names: _Names,
    persistent_load: Callable[[Any], object],
) -> Any:
    # As attributes, not methods: one call less for each name and each reference.
    unpickler.find_class = names.find_class  # type: ignore[method-assign]  # see above
    unpickler.persistent_load = persistent_load  # type: ignore[method-assign]  # see above
    return unpickler.load()
