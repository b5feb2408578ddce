"""A look at the opcodes of a pickle, before an unpickler follows them.

For class pickles, states and whatever else comes out of a file.  The C unpickler makes its memo, an
array, as large as the largest index that it is told to put something at, and takes some objects for
extension codes without asking.  Invariant: *what passes here makes no memo of more than 16 MB or
16 bytes for each of its own, and has no extension codes*.
"""

import copyreg
import pickle
import pickletools
import re
from collections import defaultdict
from typing import Final

from durus.error import ClassNotAllowedError

__all__ = ["check_opcodes"]

_INDEX_HARMLESS: Final = 1 << 20
"""Less than this is no great memo, whoever asks for it."""

_LOOKED_AT: Final = {"STOP", "PUT", "LONG_BINPUT", "EXT1", "EXT2", "EXT4"}
_EXTENSIONS: Final = {pickle.EXT1: 1, pickle.EXT2: 2, pickle.EXT4: 4}
"""How many bytes the code takes."""
_WIDTHS: Final = {
    opcode.code.encode("latin1"): {-2: 1, -3: 4, -4: 4, -5: 8}[opcode.arg.n]
    for opcode in pickletools.opcodes
    if opcode.arg is not None and opcode.arg.n < -1
}
"""How many bytes the length of a text takes, by opcode."""
_LENGTH_PASSED: Final = 64
"""Shorter texts are left to the pattern, which tries one length after the other."""


def _compile_passed() -> re.Pattern[bytes]:
    """What matches opcodes up to the next that must be looked at, or has a long text."""
    codes: defaultdict[str | int, bytes] = defaultdict(bytes)
    for opcode in pickletools.opcodes:
        argument = opcode.arg
        if opcode.name in _LOOKED_AT:
            continue
        kind = 0 if argument is None else argument.n
        two_lines = argument is pickletools.stringnl_noescape_pair
        codes["lines" if two_lines else kind] += re.escape(opcode.code.encode("latin1"))

    def texts(zeros: bytes) -> bytes:
        """A short length, the other bytes of which are 0, and so many bytes."""
        lengths = (b"%b%b.{%d}" % (re.escape(bytes([n])), zeros, n) for n in range(_LENGTH_PASSED))
        return b"(?:%b)" % b"|".join(lengths)

    line = rb"[^\n]*\n"
    alternatives = [b"[%b]%b" % (codes[-2], texts(b"")), b"[%b]%b" % (codes[-4], texts(rb"\0\0\0"))]
    alternatives += [b"[%b].{%d}" % (codes[size], size) for size in (1, 2, 4, 8)]
    alternatives += [rb"r..[\0-\x0f]\0", b"[%b]%b" % (codes[-1], line)]
    alternatives += [b"[%b]%b%b" % (codes["lines"], line, line)]
    others = b"[%b]" % codes[0]
    pattern = b"%b*(?:(?:%b)%b*){1,1000}|%b+" % (others, b"|".join(alternatives), others, others)
    # So many at a time, as the matcher remembers each.
    return re.compile(pattern, re.DOTALL)


_PASSED: Final = _compile_passed()


def check_opcodes(pickled: bytes) -> None:
    """Refuse a pickle that would make an unpickler do harm before anybody is asked.

    Raises pickle.UnpicklingError, which is a ClassNotAllowedError for an extension code.
    """
    if not (
        pickle.LONG_BINPUT in pickled or pickle.PUT in pickled or copyreg._inverted_registry  # type: ignore[attr-defined]  # not in typeshed
    ):
        return
    position = 0
    while position < len(pickled) - 1:  # the last byte alone cannot do harm
        passed = _PASSED.match(pickled, position)
        position = passed.end() if passed else _look_at(pickled, position)


def _look_at(pickled: bytes, position: int) -> int:
    """Where the opcode after this one is; the end, if no unpickler goes on."""
    code = pickled[position : position + 1]
    argument = position + 1

    def read(size: int) -> int:
        return int.from_bytes(pickled[argument : argument + size], "little")

    if code in _WIDTHS:
        return argument + _WIDTHS[code] + read(_WIDTHS[code])
    if code == pickle.LONG_BINPUT:
        _check_index(read(4), pickled)
        return argument + 4
    if code == pickle.PUT:
        end = pickled.find(b"\n", argument) + 1
        _check_index(int(pickled[argument:end]), pickled)
        return end
    if code in _EXTENSIONS:
        raise ClassNotAllowedError(
            f"a record may not use an extension code, {read(_EXTENSIONS[code])}.  Durus writes "
            "none: the file was tampered with"
        )
    return len(pickled)


def _check_index(index: int, pickled: bytes) -> None:
    if not 0 <= index < max(_INDEX_HARMLESS, len(pickled)):
        raise pickle.UnpicklingError(
            f"a pickle of {len(pickled)} bytes puts something at index {index} of its memo.  The "
            "file was tampered with"
        )
