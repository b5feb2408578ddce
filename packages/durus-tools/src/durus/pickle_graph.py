"""What the pickle of a state says, as a graph; nothing that it names is imported or called.

`durus.repickle` reads a pickle with it, and writes the graph again.  Numbers, texts and bytes are
as they are, and all else is a `Node`: an opcode, its operands, and the operations that then change
what it has made.  Invariant: what a node is made of is older than the node, and what changes it is
younger, as in the pickle; so the graph can be written in an order in which it can be loaded.
"""

import io
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, NamedTuple, NoReturn

from durus.class_pickle import has_old_names, modernize_name
from durus.error import ClassNotAllowedError, ObjectError
from durus.interfaces import Oid

__all__ = ["MARKED", "Name", "Node", "OldString", "Operation", "Reference", "read_pickle"]


class Name:
    """A class or a function, by the name that Python 3 has for it."""

    __slots__ = ("module", "qualname")

    def __init__(self, module: str, qualname: str) -> None:
        self.module = module
        self.qualname = qualname


class OldString:
    """A string of Python 2, which may be a text or bytes."""

    __slots__ = ("content",)

    def __init__(self, content: bytes) -> None:
        self.content = content


class Reference:
    """A persistent object: its oid, and its class as the pickle has it."""

    __slots__ = ("cls", "oid")

    def __init__(self, oid: Oid, cls: object) -> None:
        self.oid = oid
        self.cls = cls


class Operation(NamedTuple):
    """Changes what a node has made."""

    time: int
    opcode: bytes
    operands: Sequence[object]


class Node:
    """What an opcode makes of its operands."""

    __slots__ = ("opcode", "operands", "operations", "time")

    def __init__(self, time: int, opcode: bytes, operands: Sequence[object]) -> None:
        self.time = time
        """When this was made: what it is made of is older, and what changes it is younger."""
        self.opcode = opcode
        self.operands = operands
        self.operations: list[Operation] = []


_TUPLES: Final = {pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3}
MARKED: Final = {
    pickle.TUPLE,
    pickle.FROZENSET,
    pickle.APPENDS,
    pickle.SETITEMS,
    pickle.ADDITEMS,
}
"""The opcodes whose operands are all that is on the stack since a mark."""
_CALLS: Final = {pickle.REDUCE, pickle.NEWOBJ, pickle.NEWOBJ_EX}
_SETTER: Final = pickle.REDUCE + pickle.POP
"""As an operation: a call for its effect on one of its arguments."""

_DATES: Final = {"date", "datetime", "time"}
"""The classes of the module datetime that have bytes as their state."""


def _parts_of_tuple(value: object) -> Sequence[object] | None:
    if value == ():
        return ()
    if isinstance(value, Node) and value.opcode in _TUPLES:
        return value.operands
    return None


# Reading


class _Reader(pickle._Unpickler):
    """Makes the graph.  It is Python's own unpickler but for what would make objects."""

    # What typeshed does not tell of the base class.
    stack: list[Any]
    append: Callable[[object], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled))
        self._old_names = has_old_names(pickled)
        self._names: dict[tuple[str, str], Name] = {}
        self._time = 0

    def find_class(self, module: str, name: str) -> Name:
        key = modernize_name(module, name, self._old_names)
        if key not in self._names:
            self._names[key] = Name(*map(sys.intern, key))
        return self._names[key]

    def persistent_load(self, pid: object) -> Reference:
        oid, cls = _parts_of_tuple(pid) or (None, None)
        if isinstance(oid, OldString):
            oid = oid.content
        if type(oid) is not bytes or len(oid) != 8 or not isinstance(cls, Name | Node | str):
            raise ObjectError("it has a reference that is none to a persistent object")
        return Reference(Oid(oid), cls)

    def get_extension(self, code: int) -> NoReturn:
        raise ClassNotAllowedError(
            f"a record may not use an extension code, {code}.  Durus writes none: the file was "
            "tampered with"
        )

    def _decode_string(self, content: bytes) -> OldString:
        return OldString(content)

    # What makes objects

    def _pop(self, count: int) -> list[Any]:
        operands = self.stack[-count:]
        del self.stack[-count:]
        return operands

    def _make(self, opcode: bytes, operands: Sequence[object] = ()) -> None:
        self._time += 1
        self.append(Node(self._time, opcode, operands))

    def _call(self, function: object, arguments: object) -> None:
        if isinstance(function, Name):
            match function.module, function.qualname, _parts_of_tuple(arguments):
                case "_codecs", "encode", [str(text), "latin1"]:  # as protocol 2 has bytes
                    self.append(text.encode("latin1"))
                    return
                case "builtins", "bytes", []:
                    self.append(b"")
                    return
                case "datetime", name, [OldString() as first, *_] if name in _DATES:
                    assert isinstance(arguments, Node)
                    arguments.operands = [first.content, *arguments.operands[1:]]
        self._make(pickle.REDUCE, [function, arguments])

    def load_tuple(self) -> None:
        operands = self.pop_mark()
        if operands:
            self._make(pickle.TUPLE, operands)
        else:
            self.append(())

    def load_tuple1(self) -> None:
        self._make(pickle.TUPLE1, self._pop(1))

    def load_tuple2(self) -> None:
        self._make(pickle.TUPLE2, self._pop(2))

    def load_tuple3(self) -> None:
        self._make(pickle.TUPLE3, self._pop(3))

    def load_empty_list(self) -> None:
        self._make(pickle.EMPTY_LIST)

    def load_empty_dictionary(self) -> None:
        self._make(pickle.EMPTY_DICT)

    def load_empty_set(self) -> None:
        self._make(pickle.EMPTY_SET)

    def load_list(self) -> None:
        items = self.pop_mark()
        self._make(pickle.EMPTY_LIST)
        if items:
            self._operate(pickle.APPENDS, items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self._make(pickle.EMPTY_DICT)
        if items:
            self._operate(pickle.SETITEMS, items)

    def load_frozenset(self) -> None:
        self._make(pickle.FROZENSET, self.pop_mark())

    def load_bytearray8(self) -> None:
        super().load_bytearray8()  # type: ignore[misc]  # not in typeshed
        content = bytes(self.stack.pop())
        self.append(self.find_class("builtins", "bytearray"))
        self._make(pickle.TUPLE1, [content])
        self.load_reduce()

    def load_reduce(self) -> None:
        self._call(*self._pop(2))

    def load_newobj(self) -> None:
        self._make(pickle.NEWOBJ, self._pop(2))

    def load_newobj_ex(self) -> None:
        self._make(pickle.NEWOBJ_EX, self._pop(3))

    def _instantiate(self, cls: object, arguments: list[object]) -> None:
        """INST and OBJ: instances of the old-style classes of Python 2."""
        if arguments:
            self._make(pickle.TUPLE, arguments)
            self._call(cls, self.stack.pop())
        else:
            self._make(pickle.NEWOBJ, [cls, ()])

    # What changes them

    def _operate(self, opcode: bytes, operands: Sequence[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, Node):
            raise ObjectError("it changes what is no part of it.  The file was tampered with")
        self._time += 1
        target.operations.append(Operation(self._time, opcode, operands))

    def load_pop(self) -> None:
        """What is dropped was mostly made in vain; but it may be a call that changes an object."""
        match self.stack[-1:]:
            case [Node(opcode=pickle.REDUCE, operands=[_, arguments]) as dropped]:
                match _parts_of_tuple(arguments):
                    case [Node(opcode=opcode) as changed, _] if opcode in _CALLS:
                        operation = Operation(dropped.time, _SETTER, dropped.operands)
                        changed.operations.append(operation)
        super().load_pop()  # type: ignore[misc]  # not in typeshed

    def load_append(self) -> None:
        self._operate(pickle.APPEND, self._pop(1))

    def load_appends(self) -> None:
        self._operate(pickle.APPENDS, self.pop_mark())

    def load_setitem(self) -> None:
        self._operate(pickle.SETITEM, self._pop(2))

    def load_setitems(self) -> None:
        self._operate(pickle.SETITEMS, self.pop_mark())

    def load_additems(self) -> None:
        self._operate(pickle.ADDITEMS, self.pop_mark())

    def load_build(self) -> None:
        self._operate(pickle.BUILD, self._pop(1))

    _loaders: ClassVar[dict[int, Any]] = {
        pickle.TUPLE[0]: load_tuple,
        pickle.TUPLE1[0]: load_tuple1,
        pickle.TUPLE2[0]: load_tuple2,
        pickle.TUPLE3[0]: load_tuple3,
        pickle.EMPTY_LIST[0]: load_empty_list,
        pickle.EMPTY_DICT[0]: load_empty_dictionary,
        pickle.EMPTY_SET[0]: load_empty_set,
        pickle.LIST[0]: load_list,
        pickle.DICT[0]: load_dict,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.POP[0]: load_pop,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.ADDITEMS[0]: load_additems,
        pickle.BUILD[0]: load_build,
    }
    dispatch = {**pickle._Unpickler.dispatch, **_loaders}


def read_pickle(pickled: bytes) -> object:
    """The graph of a pickle; ObjectError when it is none, or no state of a persistent object."""
    try:
        root: object = _Reader(pickled).load()
    except ObjectError:
        raise
    except Exception as error:
        raise ObjectError(
            f"the state is no pickle that can be read: {type(error).__name__}: {error}"
        ) from error
    return root
