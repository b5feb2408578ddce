"""Objects to records and back.

`ObjectWriter` turns the objects of one commit into records; `ObjectReader` turns a record into
the state of an object.  A reference is a pickle's persistent id: (oid, class).
"""

import io
import pickle
import sys
import warnings
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Iterable, Iterator
from itertools import chain
from types import BuiltinFunctionType, FunctionType
from typing import Any, Final, NoReturn, Protocol
from weakref import WeakKeyDictionary

from durus.cache import Cache
from durus.error import (
    DurusError,
    ForeignReferenceError,
    MissingClassError,
    ObjectError,
    UnstorableError,
)
from durus.interfaces import Oid, Record
from durus.missing import MissingObject
from durus.persistent import (
    GHOST,
    UNSAVED,
    ObjectConnection,
    PersistentBase,
    PersistentObject,
    _setattribute,
)
from durus.policy import LoadingPolicy
from durus.record import (
    extract_class_name,
    join_record,
    pack_record,
    split_oids,
    split_record,
    unpack_record,
)
from durus.schema_versions import VERSION_KEY, has_upgrades, take_version, version_of

__all__ = [
    "PICKLE_PROTOCOL",
    "WRITE_COMPRESSED_STATE_PICKLES",
    "ObjectReader",
    "ObjectWriter",
    "extract_class_name",
    "pack_record",
    "split_oids",
    "unpack_record",
]

WRITE_COMPRESSED_STATE_PICKLES = True
"""Whether records written to the formats of 4.x are compressed, as in 4.3."""

PICKLE_PROTOCOL: Final = 4
"""Of states.  Durus 4.3 reads it; its own protocol 2 needs a function call for every oid."""


class WritingConnection(ObjectConnection, Protocol):
    """What the writer asks of a connection."""

    def new_oid(self) -> Oid: ...


class ReadingConnection(ObjectConnection, Protocol):
    """What the reader asks of a connection."""

    def get_cache(self) -> Cache: ...


_OWN: Final = object()
"""Stands for the state that an object has."""

_NAMED: Final = (type, FunctionType, BuiltinFunctionType)
"""What is pickled by its name alone."""


def _is_missing(obj: object) -> bool:
    return isinstance(obj, type) and issubclass(obj, MissingObject)


class _MissingClassMet(Exception):  # noqa: N818 - no error: it leads to a second attempt
    """The state refers to an object whose class cannot be found here."""


class _StatePickler(pickle.Pickler):
    """Hands the persistent objects that a state refers to over to the writer."""

    def __init__(self, file: io.BytesIO, writer: "ObjectWriter") -> None:
        super().__init__(file, PICKLE_PROTOCOL)
        self._writer = writer

    def persistent_id(self, obj: Any) -> object:
        # Called for every object in a state, so it looks at the type and returns.
        return self._writer._persistent_id(obj) if isinstance(obj, PersistentBase) else None

    def reducer_override(self, obj: Any) -> Any:
        # Called for what is not of a builtin type.
        if _is_missing(obj):
            raise _MissingClassMet
        self._writer._note_name_of(obj)
        return NotImplemented


class _SlowStatePickler(pickle._Pickler):
    """As `_StatePickler`, in Python: it can write the name of a class that cannot be found."""

    def __init__(self, file: io.BytesIO, writer: "ObjectWriter") -> None:
        super().__init__(file, PICKLE_PROTOCOL)
        self._writer = writer

    def persistent_id(self, obj: Any) -> object:
        return self._writer._persistent_id(obj) if isinstance(obj, PersistentBase) else None

    def reducer_override(self, obj: Any) -> Any:
        if not _is_missing(obj):
            self._writer._note_name_of(obj)
        return NotImplemented

    def save_global(self: Any, obj: Any, name: str | None = None) -> None:  # Any: see typeshed
        if not _is_missing(obj):
            pickle._Pickler.save_global(self, obj, name)  # type: ignore[attr-defined]  # see above
            return
        self.save(obj.missing_module)
        self.save(obj.missing_qualname)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)


class _ReferencePickler(pickle.Pickler):
    """Takes every persistent object for storable, to find the value that is not."""

    def persistent_id(self, obj: Any) -> object:
        return 0 if isinstance(obj, PersistentBase) else None


class ObjectWriter:
    """Makes the records of one commit.

    Objects that are met for the first time get an oid and the connection; `new_objects` holds
    them, so that a commit that fails can take both back (`forget_new_objects`).

    What the policy would not load again is not stored: a state that has values of a type for the
    first time is loaded on trial.
    """

    def __init__(self, connection: WritingConnection, policy: LoadingPolicy | None = None) -> None:
        self.connection = connection
        self.new_objects: list[PersistentObject] = []
        self._policy = LoadingPolicy() if policy is None else policy
        self._known_loadable = self._policy.known_loadable
        self._to_try: set[object] = set()
        self._refs: dict[Oid, PersistentObject] = {}
        self._owner: PersistentObject | None = None
        self._generating = False
        self._class_pickles: dict[type, bytes] = {}

    def close(self) -> None:
        """Part of the interface of 4.3; there is nothing left to close."""

    def forget_new_objects(self) -> list[Oid]:
        """Take oid and connection back from the new objects; returns the oids."""
        oids = []
        for obj in self.new_objects:
            assert obj._p_oid is not None
            oids.append(obj._p_oid)
            _setattribute(obj, "_p_oid", None)
            _setattribute(obj, "_p_connection", None)
        self.new_objects.clear()
        return oids

    def gen_new_objects(self, obj: PersistentObject) -> Iterator[PersistentObject]:
        """`obj`, then the new objects, including those found while the caller writes these."""
        if self._generating:
            raise RuntimeError("gen_new_objects() already called.")
        self._generating = True
        return chain([obj], self.new_objects)

    def _adopt(self, obj: PersistentObject) -> None:
        """Give a new object its oid and the connection."""
        _setattribute(obj, "_p_oid", self.connection.new_oid())
        _setattribute(obj, "_p_connection", self.connection)
        self.new_objects.append(obj)

    def _persistent_id(self, obj: Any) -> tuple[Oid, type]:
        if obj._p_oid is None:
            self._adopt(obj)
        elif obj._p_connection is not self.connection:
            owner = "an object" if self._owner is None else f"<{self._owner._p_identity()}>"
            raise ForeignReferenceError(
                f"{owner} of {self.connection!r} refers to <{obj._p_identity()}> of "
                f"{obj._p_connection!r}: a connection stores its own objects only.  Take its "
                "instance of the object, with get(), or store a copy of the object and of all that "
                "it leads to, which copy() of a transaction makes, or durus.copying.copy_subgraph"
            )
        oid = obj._p_oid
        assert oid is not None
        self._refs[oid] = obj
        cls = type(obj)
        if not issubclass(cls, MissingObject):
            self._class_pickle(cls)
        return oid, cls

    def _note_name_of(self, obj: object) -> None:
        """A value that is no object of ours: can its type, or what it names, be loaded again?"""
        name = obj if isinstance(obj, _NAMED) else type(obj)
        if name not in self._known_loadable:
            self._to_try.add(name)

    def _class_pickle(self, cls: type) -> bytes:
        pickled = self._class_pickles.get(cls)
        if pickled is None:
            pickled = self._class_pickles[cls] = pickle_class(cls)
            self._known_loadable.add(cls)
        return pickled

    def make_record(self, obj: PersistentObject, state: object = _OWN) -> Record:
        """The record of `obj`, or of it with another state.

        Raises UnstorableError and ForeignReferenceError.
        """
        class_pickle = self._class_pickle(type(obj))
        if obj._p_oid is None:
            self._adopt(obj)
        self._owner = obj
        self._refs.clear()
        try:
            state = obj.__getstate__() if state is _OWN else state
            state_pickle = self._pickle(
                _with_version(type(obj), state) if has_upgrades() else state
            )
        except DurusError:
            raise
        except Exception as error:
            self._refuse(obj, state, error)
        if self._to_try:
            self._try_to_load(obj, state_pickle)
        refs = b"".join(sorted(self._refs.keys() - {obj._p_oid}))
        return Record(class_pickle, state_pickle, refs)

    def _pickle(self, state: object) -> bytes:
        file = io.BytesIO()
        try:
            _StatePickler(file, self).dump(state)
        except _MissingClassMet:
            file = io.BytesIO()
            _SlowStatePickler(file, self).dump(state)
        return file.getvalue()

    def _try_to_load(self, obj: PersistentObject, state_pickle: bytes) -> None:
        assert obj._p_oid is not None
        try:
            state = self._policy.load_state(
                state_pickle, lambda pid: self._refs[pid[0]], obj._p_oid, type(obj)
            )
            # What the policy has put in the place of a function is no value, and says so.
            _ReferencePickler(io.BytesIO(), PICKLE_PROTOCOL).dump(state)
        except (ObjectError, TypeError) as error:
            raise UnstorableError(
                f"it could not be loaded again, so nothing was stored.  {error}"
            ) from error
        self._known_loadable |= self._to_try
        self._to_try.clear()

    def _refuse(self, obj: PersistentObject, state: object, error: Exception) -> NoReturn:
        """Raise an UnstorableError that says where in the state the value is."""
        where = "".join(f", {step}" for step in _find_unstorable(state))
        raise UnstorableError(
            f"the state of <{obj._p_identity()}>{where} cannot be pickled: {error}.  Change it, or "
            "abort(); nothing was stored"
        ) from error

    def get_state(self, obj: PersistentObject) -> tuple[bytes, bytes]:
        """The two parts of a classic record: (class and state pickles, references)."""
        record = self.make_record(obj)
        return join_record(record), record.refs


def _with_version(cls: type, state: Any) -> Any:
    """A state with the version of its schema, unless that is 1."""
    version = version_of(cls)
    if version == 1:
        return state
    if not isinstance(state, dict):
        raise UnstorableError(
            f"upgrades are declared for {cls.__module__}.{cls.__qualname__}, so its state must be "
            f"a dict, which has room for the version: __getstate__ returned a {type(state)}"
        )
    return {**state, VERSION_KEY: version}


def _find_unstorable(value: object, name: str = "attribute", depth: int = 10) -> Iterator[str]:
    """The way to a value that cannot be pickled: attribute, key or index, and its type."""
    parts: Iterable[tuple[object, object]] = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    for step, part in parts:
        try:
            _ReferencePickler(io.BytesIO(), PICKLE_PROTOCOL).dump(part)
        except Exception:
            yield f"{name} {step!r} ({type(part).__name__})"
            if depth:
                yield from _find_unstorable(part, "item", depth - 1)
            return


_OWN_FRAMES: Final = ("durus.", "contextlib")

_warned_main_classes: set[str] = set()
_class_pickles: "WeakKeyDictionary[type, tuple[str, bytes]]" = WeakKeyDictionary()
"""Of the classes that were pickled before, with the names that they had."""


def _count_own_frames() -> int:
    """How many frames up the program is that called Durus."""
    frame = sys._getframe(1)
    count = 0
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OWN_FRAMES):
        frame = frame.f_back
        count += 1
    return count


def pickle_class(cls: type) -> bytes:
    """The class pickle of `cls`; refuses a class that cannot be found again by its name."""
    module, qualname = cls.__module__, cls.__qualname__
    name, pickled = _class_pickles.get(cls, ("", b""))
    if name == f"{module}.{qualname}" and getattr(sys.modules.get(module), qualname, None) is cls:
        return pickled
    if "<locals>" in qualname:
        raise UnstorableError(
            f"class {module}.{qualname} is defined inside a function, so no other program can "
            "load its objects.  Define it at the top level of a module"
        )
    if module == "__main__" and qualname not in _warned_main_classes:
        _warned_main_classes.add(qualname)
        warnings.warn(
            f"objects of class {qualname} of __main__ are being stored: only this script can load "
            "them.  Define the class in a module and import it",
            stacklevel=_count_own_frames() + 1,
        )
    # Protocol 2 is what the tools of 4.3 read, but it has no nested names, and it renames the
    # modules that changed their names in Python 3.
    protocol = 2 if "." not in qualname and module not in IMPORT_MAPPING else 4
    try:
        pickled = pickle.dumps(cls, protocol)
    except Exception as error:
        raise UnstorableError(
            f"class {module}.{qualname} cannot be found by that name: {error}.  Its objects could "
            "not be loaded again"
        ) from error
    if pickled.endswith(b"q\x00."):  # what the memo would be for, the state, is another pickle
        pickled = pickled.removesuffix(b"q\x00.") + b"."
    _class_pickles[cls] = f"{module}.{qualname}", pickled
    return pickled


class ObjectReader:
    """Makes the states of a connection's objects from their records."""

    def __init__(self, connection: ReadingConnection, policy: LoadingPolicy | None = None) -> None:
        self.connection = connection
        self.policy = LoadingPolicy() if policy is None else policy
        self.load_count = 0

    def _persistent_load(self, pid: Any) -> PersistentObject:
        """The object for a reference: the one in the cache, or a new ghost."""
        try:
            oid, cls = pid
            valid = type(oid) is bytes and len(oid) == 8 and issubclass(cls, PersistentObject)
        except (TypeError, ValueError) as error:
            raise ObjectError(f"{pid!r} is no reference to a persistent object") from error
        if not valid:
            raise ObjectError(f"{pid!r} is no reference to a persistent object")
        obj: PersistentObject
        obj = self.connection.get_cache().get_instance(oid, cls, self.connection)
        return obj

    def load_state(self, obj: PersistentObject, record: Record) -> int:
        """Give `obj` the state in its record; a wrong class is put right first.

        Returns the schema version of that state (see `durus.schema`).
        """
        assert obj._p_oid is not None
        cls = self.policy.load_class(record.class_pickle, obj._p_oid)
        if obj.__class__ is not cls:
            if issubclass(cls, MissingObject):
                raise MissingClassError(f"<{obj._p_identity()}>: {cls._p_remedy()}")
            try:
                obj.__class__ = cls
            except TypeError as error:
                raise ObjectError(
                    f"<{obj._p_identity()}> is stored as a {cls.__module__}.{cls.__qualname__}, "
                    f"but was referred to as a {type(obj).__module__}.{type(obj).__qualname__}.  "
                    "After a class was renamed, touch_every_reference() renews the references"
                ) from error
        self.load_count += 1
        state = self.read_state(record, obj)
        version = take_version(state)
        try:
            # No ghost meanwhile, so that a __setstate__ of the application may use the object.
            _setattribute(obj, "_p_status", UNSAVED)
            obj.__setstate__(state)
        except AttributeError as error:  # which hasattr(obj, name) would take for an answer
            raise ObjectError(f"<{obj._p_identity()}> cannot take its state: {error}") from error
        finally:
            _setattribute(obj, "_p_status", GHOST)
        return version

    def read_state(self, record: Record, obj: PersistentObject) -> Any:
        """The state in a record of `obj`, which stays as it is."""
        assert obj._p_oid is not None
        return self.policy.load_state(
            record.state_pickle, self._persistent_load, obj._p_oid, type(obj)
        )

    def get_ghost(self, data: bytes) -> PersistentObject:
        """A ghost of the class in the first part of a classic record, without oid."""
        cls = self.policy.load_class(split_record(data).class_pickle, Oid(bytes(8)))
        ghost = PersistentBase.__new__(cls)
        ghost._p_set_status_ghost()
        return ghost

    def get_state(self, data: bytes, load: bool = True) -> Any:
        """The state in the first part of a classic record, or with load=False its pickle."""
        self.load_count += 1
        record = split_record(data)
        if not load:
            return record.state_pickle
        cls = self.policy.load_class(record.class_pickle, Oid(bytes(8)))
        return self.policy.load_state(
            record.state_pickle, self._persistent_load, Oid(bytes(8)), cls
        )

    def get_state_pickle(self, data: bytes) -> bytes:
        """The pickle of the state in the first part of a classic record."""
        pickled: bytes = self.get_state(data, load=False)
        return pickled

    def get_load_count(self) -> int:
        """How many states were loaded."""
        return self.load_count
