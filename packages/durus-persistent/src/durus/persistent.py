"""Persistent objects: the base classes of everything that is stored.

An object is in one of three states, its `_p_status`:

    GHOST    it has an oid and a connection, but its state is not here
    SAVED    its state is here, and is what the connection's transaction sees stored
    UNSAVED  its state is here, and is new or was changed

    from      event                                       to        who does it
    -         the constructor                             UNSAVED
    -         a reference to it is loaded                 GHOST     the connection
    GHOST     it is accessed: any name but _p_...         SAVED     `_p_load_state`
    GHOST     it is changed (loaded first)                UNSAVED   `_p_note_change`
    SAVED     it is changed                               UNSAVED   `_p_note_change`
    SAVED     others changed it, or the cache is full     GHOST     the connection
    UNSAVED   commit() succeeds                           SAVED     the connection
    UNSAVED   commit() fails                              UNSAVED
    UNSAVED   abort(), if it was ever stored              GHOST     the connection

Every access of an attribute compares one number: the object's `_p_serial` with the
`transaction_serial` of its connection.  When they differ the connection is told (`note_access`):
it loads a ghost, notes the access for the conflict check, and makes them equal, so this happens
once for each object and transaction.  The invariant behind it: *the serial of a ghost never
equals its connection's*.

The state layouts are those of Durus 4.3, so either can load what the other stored.
"""

import reprlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Protocol, TypeVar

from durus import _guard as _guard
from durus.error import DurusError, ObjectError, format_oid
from durus.interfaces import Oid, Tid

__all__ = [
    "GHOST",
    "SAVED",
    "UNSAVED",
    "ComputedAttribute",
    "ConnectionBase",
    "Persistent",
    "PersistentBase",
    "PersistentObject",
    "call_if_persistent",
    "is_ghost",
    "note_change",
    "oid_of",
    "tid_of",
]

UNSAVED: Final = 1
SAVED: Final = 0
GHOST: Final = -1

T = TypeVar("T")

_setattribute = object.__setattr__
_delattribute = object.__delattr__
_getattribute = object.__getattribute__


def _hasattribute(obj: object, name: str) -> bool:
    """Like hasattr, but never loads the state of a ghost."""
    try:
        _getattribute(obj, name)
    except AttributeError:
        return False
    return True


class ConnectionBase:
    """What every access of a persistent object needs of its connection."""

    __slots__ = ("transaction_serial",)

    transaction_serial: int

    # Hidden from type checkers, which take the result for what the constructor returns.
    if not TYPE_CHECKING:

        def __new__(cls, *args, **kwargs):
            connection = object.__new__(cls)
            connection.transaction_serial = 1
            return connection


class ObjectConnection(Protocol):
    """What persistent objects ask of the connection that they belong to."""

    transaction_serial: int

    def note_access(self, obj: "PersistentObject") -> None: ...

    def note_change(self, obj: "PersistentObject") -> None: ...

    def load_state(self, obj: "PersistentObject") -> None: ...


_GHOST_SAFE_NAMES = frozenset({"__repr__", "__class__", "__setstate__"})


class PersistentBase:
    """The attributes that the machinery needs, and the interception of every access."""

    __slots__ = ("_p_connection", "_p_oid", "_p_serial", "_p_status", "_p_tid")

    _p_status: int
    _p_serial: int
    _p_connection: ObjectConnection | None
    _p_oid: Oid | None
    _p_tid: Tid | None

    # Hidden from type checkers: __new__ because they take its result for what a constructor
    # returns, the others because with them every misspelt attribute is accepted.
    if not TYPE_CHECKING:

        def __new__(cls, *args, **kwargs):
            obj = object.__new__(cls)
            _setattribute(obj, "_p_status", UNSAVED)
            _setattribute(obj, "_p_serial", 0)
            _setattribute(obj, "_p_connection", None)
            _setattribute(obj, "_p_oid", None)
            _setattribute(obj, "_p_tid", None)
            return obj

        def __getattribute__(self, name):
            if name[:3] != "_p_" and name not in _GHOST_SAFE_NAMES:
                connection = _getattribute(self, "_p_connection")
                if (
                    connection is not None
                    and _getattribute(self, "_p_serial") != connection.transaction_serial
                ):
                    connection.note_access(self)
            return _getattribute(self, name)

        def __setattr__(self, name, value):
            if name[:3] == "_p_":
                if not hasattr(getattr(type(self), name, None), "__set__"):
                    raise AttributeError(
                        f"{name!r} cannot be set on {type(self).__name__!r} objects: names "
                        "with _p_ belong to Durus"
                    )
            elif name not in _GHOST_SAFE_NAMES:
                if name == "__orig_class__":  # typing sets it, and ignores the refusal
                    raise AttributeError("__orig_class__ is no part of a persistent state")
                self._p_note_change()
            _setattribute(self, name, value)

        def __delattr__(self, name):
            if name[:3] == "_p_":
                raise AttributeError(f"{name!r} cannot be deleted: names with _p_ belong to Durus")
            getattr(self, name)  # what is not there is no change
            self._p_note_change()
            _delattribute(self, name)


def call_if_persistent(call: Callable[[PersistentBase], T], obj: object) -> T | None:
    """call(obj) if obj is persistent, else None."""
    return call(obj) if isinstance(obj, PersistentBase) else None


_base_delattr = PersistentBase.__delattr__


class PersistentObject(PersistentBase):
    """The base of all persistent classes; its state is in `__slots__` (or `__dict__`, if any)."""

    __slots__ = ("__weakref__",)

    _p_data_slots: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A frozen dataclass makes its __setattr__ and __delattr__ refuse, after the class is
        # made.  dataclasses raises TypeError if the class has one of its own, so each has.
        if "__delattr__" not in cls.__dict__:
            inherited = (base.__dict__.get("__delattr__") for base in cls.__mro__[1:-1])
            overridden = (d for d in inherited if d not in (None, _base_delattr))
            type.__setattr__(cls, "__delattr__", next(overridden, _base_delattr))

        # The same names may stand in a base class and, empty, in this one.
        cls._p_data_slots = tuple(dict.fromkeys(_gen_slots(cls)))

    def _p_gen_data_slots(self) -> Iterator[str]:
        """The names of the data slots that have values; loads nothing."""
        return (name for name in self._p_data_slots if _hasattribute(self, name))

    def __getstate__(self) -> Any:
        if self._p_status == GHOST:
            self._p_load_state()
        state = dict(_getattribute(self, "__dict__")) if _hasattribute(self, "__dict__") else {}
        for name in self._p_gen_data_slots():
            state[name] = _getattribute(self, name)
        return state

    def __setstate__(self, state: Mapping[str, Any] | None) -> None:
        """Replace the state; None empties it.  Neither load nor note anything."""
        attributes = _getattribute(self, "__dict__") if _hasattribute(self, "__dict__") else None
        if attributes is not None:
            attributes.clear()
        slots = self._p_data_slots
        for name in slots:
            if _hasattribute(self, name):
                _delattribute(self, name)
        if not state:
            return
        if not isinstance(state, dict):
            raise ObjectError(f"the state of <{self._p_identity()}> is no dict: {type(state)}")
        if attributes is not None and not slots:
            attributes.update(state)
            return
        for name, value in state.items():
            # Not simply setattr: a record must not set _p_oid, or call a property.
            if name in slots:
                _setattribute(self, name, value)
            elif attributes is not None:
                attributes[name] = value
            else:
                raise AttributeError(f"{type(self).__qualname__!r} objects have no slot {name!r}")

    def _p_identity(self) -> str:
        """The class and the oid (or the address): what repr shows without loading anything."""
        oid = self._p_oid
        identifier = f"@{id(self):x}" if oid is None else format_oid(oid)
        return f"{type(self).__name__} {identifier}"

    def __repr__(self) -> str:
        return f"<{self._p_identity()}>"

    def _p_load_state(self) -> None:
        assert self._p_status == GHOST
        assert self._p_connection is not None
        self._p_connection.load_state(self)
        if self._p_status == GHOST:
            self._p_set_status_saved()

    def _p_note_change(self) -> None:
        """Say that the state is about to change, so that commit() stores it and abort() undoes it.

        Assigning an attribute does this; changing a plain list or dict inside does not.
        """
        if self._p_status != UNSAVED:
            if self._p_status == GHOST:
                self._p_load_state()
            if self._p_connection is not None:
                self._p_connection.note_change(self)  # may refuse: the status stays as it was
            self._p_set_status_unsaved()

    def _p_format_oid(self) -> str:
        oid = self._p_oid
        return format_oid(oid.encode("latin1") if isinstance(oid, str) else oid)

    def _p_set_status_ghost(self) -> None:
        # First, so that an interrupt in here leaves nothing that is empty and counts as loaded.
        _setattribute(self, "_p_status", GHOST)
        _setattribute(self, "_p_serial", 0)
        PersistentObject.__setstate__(self, None)  # not what an application has made of it

    def _p_set_status_saved(self) -> None:
        _setattribute(self, "_p_status", SAVED)

    def _p_set_status_unsaved(self) -> None:
        if self._p_status == GHOST:
            self._p_load_state()
        _setattribute(self, "_p_status", UNSAVED)

    def _p_is_ghost(self) -> bool:
        return self._p_status == GHOST

    def _p_is_unsaved(self) -> bool:
        return self._p_status == UNSAVED

    def _p_is_saved(self) -> bool:
        return self._p_status == SAVED

    @property
    def _p_changed(self) -> bool:
        """Whether the object is new or changed.  Assigning True is `_p_note_change()`."""
        return self._p_status == UNSAVED

    @_p_changed.setter
    def _p_changed(self, changed: bool) -> None:
        if not changed:
            raise ValueError(
                f"a change of {self._p_identity()} cannot be taken back with _p_changed = "
                f"{changed!r}; the connection's abort() undoes the whole transaction"
            )
        self._p_note_change()

    @property
    def _p_jar(self) -> ObjectConnection | None:
        """The connection: ZODB's name for `_p_connection`."""
        return self._p_connection


def _gen_slots(cls: type) -> Iterator[str]:
    """The names under which the slots of `cls` that hold state are attributes."""
    for base in cls.__mro__:
        slots = () if base is PersistentBase else base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name in ("__weakref__", "__dict__"):
                continue
            if name.startswith("__") and not name.endswith("__"):  # Python mangles it
                name = f"_{base.__name__.lstrip('_')}{name}"
            yield name


class Persistent(PersistentObject):
    """The usual base class: attributes are kept in `__dict__` and stored by name.

    Names in `__slots__` of a subclass, as `dataclass(slots=True)` makes them, are stored too.
    """

    def __getstate__(self) -> dict[str, Any]:
        if self._p_status == GHOST:
            self._p_load_state()
        state: dict[str, Any] = _getattribute(self, "__dict__")
        if not self._p_data_slots:
            return state
        return {**state, **{name: _getattribute(self, name) for name in self._p_gen_data_slots()}}


class ComputedAttribute(PersistentObject, Generic[T]):
    """A value computed from other persistent objects, kept until somebody invalidates it.

    It has no stored state, but an oid: invalidating it in one connection makes every other
    connection forget its value too.
    """

    __slots__ = ("value",)

    value: T

    def __getstate__(self) -> None:
        return None

    def _p_load_state(self) -> None:
        self._p_set_status_saved()  # there is no state to read

    def invalidate(self) -> None:
        """Forget the value, here at once and elsewhere from the next commit on."""
        self.__setstate__(None)
        self._p_note_change()

    def get(self, compute: Callable[[], T]) -> T:
        """The value, computed by `compute()` if it is not known."""
        if _hasattribute(self, "value"):
            value: T = _getattribute(self, "value")
        else:
            value = compute()
            _setattribute(self, "value", value)  # not a change
        return value


class _ItemsRepr(reprlib.Repr):
    """Shows at most ten items, and persistent ones by their identity, so it loads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 10
        self.maxstring = self.maxother = 100

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, PersistentObject):
            return f"<{x._p_identity()}>"
        return super().repr1(x, level)

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        # The inherited method sorts the keys, and so would load persistent ones.
        if level <= 0:
            return "{...}" if x else "{}"
        pairs = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for key, value in islice(x.items(), self.maxdict)
        ]
        return f"{{{', '.join(pairs + ['...'] * (len(x) > self.maxdict))}}}"


repr_items = _ItemsRepr().repr


def repr_container(obj: PersistentObject, slot: str) -> str:
    """The repr of a container whose items are in `slot`; of itself alone if it cannot be loaded."""
    identity = obj._p_identity()
    try:
        items = getattr(obj, slot)
    except (DurusError, AttributeError):  # it cannot be loaded, or is not yet initialised
        return f"<{identity}>"
    if isinstance(items, set):
        items = list(islice(items, 11))  # as 4.3 shows them
    return f"<{identity} {repr_items(items)}>"


def note_change(obj: PersistentObject) -> None:
    """Say that a plain list, dict or the like inside `obj` is about to change."""
    obj._p_note_change()


def oid_of(obj: PersistentObject) -> Oid | None:
    """The oid of `obj`, or None when it was never stored."""
    return obj._p_oid


def tid_of(obj: PersistentObject) -> Tid | None:
    """The tid of the transaction that wrote the stored state of `obj`; None if never stored."""
    if obj._p_status == GHOST:
        obj._p_load_state()
    return obj._p_tid


def is_ghost(obj: PersistentObject) -> bool:
    """Whether the state of `obj` still waits to be loaded."""
    return obj._p_status == GHOST
