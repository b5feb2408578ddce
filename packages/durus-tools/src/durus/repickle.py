"""Rewriting the pickle of a state, without importing or calling anything that it names.

`durus.convert` uses it where references get new oids, and for what Python 2 has pickled.  A pickle
is read as a graph (`durus.pickle_graph`), which is written again at protocol 4.  Invariant:
*loading the new pickle makes what loading the old one makes, by the same calls, and shared in the
same places*; but for references and the strings of Python 2, about which the caller decides.

Neither reading nor writing is recursive: no state is nested too deeply.
"""

import pickle
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, TypeAlias

from durus.class_pickle import name_in_class_pickle
from durus.error import ObjectError
from durus.interfaces import Oid, Record
from durus.pickle_graph import (
    MARKED,
    Name,
    Node,
    OldString,
    Operation,
    Reference,
    read_pickle,
)

__all__ = ["is_of_python2", "make_class_pickle", "rewrite_record", "rewrite_state"]

_STRINGS: Final = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
"""What Python 2 alone has: they are neither texts nor bytes."""
_TEXTS: Final = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}


def _encode_sized(short: bytes, medium: bytes, long: bytes, content: bytes) -> bytes:
    size = len(content)
    if size < 1 << 8:
        return short + size.to_bytes(1, "little") + content
    if size < 1 << 32:
        return medium + size.to_bytes(4, "little") + content
    return long + size.to_bytes(8, "little") + content


def _encode_text(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return _encode_sized(pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.BINUNICODE8, content)


def _encode_bytes(content: bytes) -> bytes:
    return _encode_sized(pickle.SHORT_BINBYTES, pickle.BINBYTES, pickle.BINBYTES8, content)


def _frame(opcodes: bytes) -> bytes:
    """A pickle of protocol 4."""
    size = len(opcodes).to_bytes(8, "little")
    return b"".join([pickle.PROTO, b"\4", pickle.FRAME, size, opcodes])


_Changes: TypeAlias = list[tuple[Operation, Node]]


class _Writer:
    """Writes a graph, depth first, each node where it is met first.

    What consists of others is written by an iterator: it yields those others at the places where
    they belong, and writes opcodes in between.

    A circle may lead from the operands of a node to an operation that is younger than the node, and
    needs it; that has to wait until the node is made.
    """

    def __init__(
        self, map_oid: Callable[[Oid], Oid], decode: Callable[[bytes], str | bytes]
    ) -> None:
        self.oids: set[Oid] = set()
        """What was referred to, after the mapping."""
        self._map_oid = map_oid
        self._decode = decode
        self._opcodes = bytearray()
        self._memo: dict[int, int] = {}
        """By id() of what the graph holds: the place in the memo of whoever loads the pickle."""
        self._unmade: list[tuple[Node, _Changes]] = []
        """The nodes whose operands are being written, oldest last, and what waits for each."""

    def write(self, root: object) -> bytes:
        """The pickle of the graph."""
        unfinished: list[Iterator[object]] = [iter((root,))]
        while unfinished:
            for part in unfinished[-1]:
                rest = self._begin(part)
                if rest is not None:
                    unfinished.append(rest)
                    break
            else:
                unfinished.pop()
        self._opcodes += pickle.STOP
        return _frame(bytes(self._opcodes))

    def _begin(self, part: object) -> Iterator[object] | None:
        """Write the part; if that needs others to be written, what does it."""
        if part is None or isinstance(part, bool | int | float):
            self._opcodes += pickle.dumps(part, 2)[2:-1]  # without PROTO and STOP
            return None
        if part == ():
            self._opcodes += pickle.EMPTY_TUPLE
            return None
        if isinstance(part, Reference):
            return self._write_reference(part)
        if id(part) in self._memo:
            self._recall(part)
            return None
        match part:
            case Node():
                return self._write_node(part)
            case Name():
                return self._write_name(part)
            case str():
                self._opcodes += _encode_text(part)
            case bytes():
                self._opcodes += _encode_bytes(part)
            case OldString():
                decoded = self._decode(part.content)
                if isinstance(decoded, str):
                    self._opcodes += _encode_text(decoded)
                else:
                    self._opcodes += _encode_bytes(decoded)
            case _:
                raise ObjectError(f"a {type(part).__name__} cannot be written")
        self._memoize(part)
        return None

    def _memoize(self, part: object) -> None:
        self._memo[id(part)] = len(self._memo)
        self._opcodes += pickle.MEMOIZE

    def _recall(self, part: object) -> None:
        place = self._memo[id(part)]
        if place < 1 << 8:
            self._opcodes += pickle.BINGET + place.to_bytes(1, "little")
        else:
            self._opcodes += pickle.LONG_BINGET + place.to_bytes(4, "little")

    def _write_name(self, name: Name) -> Iterator[object]:
        yield name.module
        yield name.qualname
        self._opcodes += pickle.STACK_GLOBAL
        self._memoize(name)

    def _write_reference(self, reference: Reference) -> Iterator[object]:
        oid = self._map_oid(reference.oid)
        self.oids.add(oid)
        self._opcodes += _encode_bytes(oid)
        yield reference.cls
        self._opcodes += pickle.TUPLE2 + pickle.BINPERSID

    def _write_node(self, node: Node) -> Iterator[object]:
        waiting: _Changes = []
        self._unmade.append((node, waiting))
        yield from self._write_instruction(node.opcode, node.operands)
        self._unmade.pop()
        self._memoize(node)
        for operation in node.operations:
            self._wait_or_be_next(operation, node, waiting)
        for operation, target in sorted(waiting, key=lambda change: change[0].time):
            if target is not node:
                self._recall(target)
            yield from self._write_instruction(operation.opcode, operation.operands)
            if target is not node:
                self._opcodes += pickle.POP

    def _wait_or_be_next(self, operation: Operation, node: Node, next_ones: _Changes) -> None:
        unmade = self._unmade  # what is made of others is younger than they are
        if unmade and unmade[-1][0].time < operation.time:
            place = bisect_left(unmade, -operation.time, key=lambda wanted: -wanted[0].time)
            next_ones = unmade[place][1]
        next_ones.append((operation, node))

    def _write_instruction(self, opcode: bytes, operands: Sequence[object]) -> Iterator[object]:
        if opcode in MARKED:
            self._opcodes += pickle.MARK
        yield from operands
        self._opcodes += opcode


def _decode_as_pickle_does(content: bytes) -> str:
    try:
        return content.decode("ascii")
    except UnicodeDecodeError as error:
        raise ObjectError(
            f"it has a string of Python 2 that is not ASCII, {content[:100]!r}: convert it with "
            "python2=True"
        ) from error


def rewrite_state(
    state_pickle: bytes,
    map_oid: Callable[[Oid], Oid] = lambda oid: oid,
    decode: Callable[[bytes], str | bytes] = _decode_as_pickle_does,
) -> tuple[bytes, set[Oid]]:
    """A pickle that is loaded as the same state, and the oids to which it refers.

    map_oid: is asked for every reference, and gives its new oid.
    decode: is given the strings of Python 2, and makes texts or bytes of them; not of those that
      are the state of a date or time, which stay bytes.

    Raises ObjectError when it is no such pickle, and what the two functions raise.
    """
    graph = read_pickle(state_pickle)
    writer = _Writer(map_oid, decode)
    return writer.write(graph), writer.oids


def is_of_python2(state_pickle: bytes) -> bool:
    """Whether Python 2 has written it, as far as its first string or text tells.

    That is the name of an attribute, as a rule: a string in Python 2, a text in Python 3.
    """
    with suppress(ValueError):  # else it is no pickle
        for opcode, _, _ in pickletools.genops(state_pickle):
            if opcode.name in _STRINGS or opcode.name in _TEXTS:
                return opcode.name in _STRINGS
    return False


def make_class_pickle(module: str, qualname: str) -> bytes:
    """The class pickle for a class of this name, as Python 3 has it."""
    # As `durus.serialize.pickle_class` chooses between the two.
    text = f"{module}\n{qualname}\n"
    renamed = module in IMPORT_MAPPING or (module, qualname) in NAME_MAPPING
    if not renamed and "." not in qualname and text.isascii() and text.count("\n") == 2:
        return pickle.PROTO + b"\2" + pickle.GLOBAL + text.encode() + pickle.STOP
    names = _encode_text(module) + _encode_text(qualname)
    return _frame(names + pickle.STACK_GLOBAL + pickle.STOP)


def rewrite_record(
    oid: Oid,
    record: Record,
    map_oid: Callable[[Oid], Oid] = lambda oid: oid,
    decode: Callable[[bytes], str | bytes] = _decode_as_pickle_does,
) -> Record:
    """The record of an object with both pickles rewritten; `oid` is its new one.

    Otherwise as `rewrite_state`.
    """
    state, oids = rewrite_state(record.state_pickle, map_oid, decode)
    # In the records of 4.3 the state follows the class in one stream, so a class pickle that
    # memoizes something would shift the memo of the new state: this one does not.
    class_pickle = make_class_pickle(*name_in_class_pickle(record.class_pickle))
    return Record(class_pickle, state, b"".join(sorted(oids - {oid})))
