"""The bytes of a SHELF-1 file: its items, its transactions, and what may be wrong with them.

`docs/classic-files.md` draws them; `shelf` and the tools that read whole files ask here.  A
transaction is whole when its items fill it exactly.  There are no checksums, so this is strict:
what looks a little wrong is not whole.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from struct import pack, unpack
from typing import Final

from durus.classic_file import DamagedEndError, ReadAhead, is_record_start, name_of
from durus.classic_format import ClassicFormat, ParsedTransaction
from durus.error import CorruptionError
from durus.utils import int8_to_str, str_to_int8

__all__ = [
    "BASE_START",
    "EMPTY_SHELF",
    "ITEM_HEAD_SIZE",
    "PREFIX",
    "SHELF",
    "ItemCheck",
    "encode_item",
    "is_item",
    "is_record_item",
    "locate_base",
    "locate_transactions",
    "shelf_format_for",
    "walk_items",
]

PREFIX: Final = b"SHELF-1\n"
BASE_START: Final = len(PREFIX) + 8
"""Where the items of the base begin, after its length."""
EMPTY_SHELF: Final = PREFIX + bytes(8) + pack(">3Q", 16, 1, 0)
"""A file without items: a base of length 0, and a map of no words of 1 byte."""
ITEM_HEAD_SIZE: Final = 28
"""Length 8, name 8, and the oid and the length of the pickles that a record begins with."""

ItemCheck = Callable[[bytes, int], bool]
"""Whether an item may begin with these bytes (name and 12 more), and be so long in all."""


def is_item(head: bytes, size: int) -> bool:
    """Whether there is room for the name: all that a Shelf demands of its items."""
    return size >= 8 and len(head) >= 8


def is_record_item(head: bytes, size: int) -> bool:
    """Whether the value begins as a record of the oid that is its name does."""
    return head[:8] == head[8:16] and is_record_start(head[8:], size - 8)


def walk_items(
    reader: ReadAhead, position: int, end: int, check: ItemCheck = is_item
) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset and end of each item from `position` on, up to the first that is not whole."""
    end = min(end, reader.size)
    while position < end:
        head = reader.read(position, ITEM_HEAD_SIZE)
        size = int.from_bytes(head[:8])
        stop = position + 8 + size
        if stop > end or not check(head[8:], size):
            return
        yield head[8:16], position, stop
        position = stop


def _parse_items(check: ItemCheck, reader: ReadAhead, position: int, end: int) -> ParsedTransaction:
    offsets: dict[bytes, int] = {}
    for name, offset, stop in walk_items(reader, position, end, check):
        offsets[name] = offset
        position = stop
    return ParsedTransaction(offsets, position, position == end)


def _parse_transaction(check: ItemCheck, reader: ReadAhead, start: int) -> ParsedTransaction:
    """Read one transaction: its length, and items that fill it exactly."""
    length = reader.read(start, 8)
    if len(length) < 8:
        return ParsedTransaction({}, start, False)
    return _parse_items(check, reader, start + 8, start + 8 + str_to_int8(length))


def _find_damage(
    check: ItemCheck, reader: ReadAhead, start: int, after_empty: bool
) -> tuple[int, int | None]:
    """Where the transaction begins that is not whole at `start`, and where a later whole one does.

    after_empty: the one before has the length 0.  Then it is no transaction, but what 4.3 writes
      in the place of a length that it does not know yet, and these are its items.
    """
    parsed = [_parse_transaction(check, reader, start)]
    if after_empty:
        parsed.append(_parse_items(check, reader, start, reader.size))
        start -= 8
    # Whole items explain what is there.  Without any, the zeros of an empty transaction may have
    # been the first bytes of a later one.
    position = max((found.position for found in parsed if found.offsets), default=start)
    return start, _find_later(check, reader, position)


# The lengths of a transaction and of its first record, the oid twice, the pickles.  Nothing else
# looks like that; and no file has 2**48 bytes.
_TRANSACTION_START: Final = re.compile(rb"(?=\0\0.{6}\0\0.{6}(.{8})\1.{4}\x80)", re.DOTALL)
_SEARCHED_AT_ONCE: Final = 1 << 20


def _find_later(check: ItemCheck, reader: ReadAhead, position: int) -> int | None:
    """The offset of the first whole transaction at `position` or after it that has a record."""
    overlap = 8 + ITEM_HEAD_SIZE
    for start in range(position, reader.size, _SEARCHED_AT_ONCE):
        for match in _TRANSACTION_START.finditer(reader.read(start, _SEARCHED_AT_ONCE + overlap)):
            found = _parse_transaction(check, reader, start + match.start())
            follows = reader.read(found.position, overlap + 1)
            if found.is_whole and found.offsets and _may_follow(follows):
                return start + match.start()
    return None


def _may_follow(head: bytes) -> bool:
    """Whether a transaction, or what is left of one, may begin so."""
    return (
        len(head) <= 8 + ITEM_HEAD_SIZE
        or head.startswith(bytes(8))
        or _TRANSACTION_START.match(head) is not None
    )


def locate_base(reader: ReadAhead) -> int:
    """Where the base ends and the offset map begins, both found to be within the file.

    Raises CorruptionError, which is a DamagedEndError when the file ends before.
    """
    name = name_of(reader.file)
    head = reader.read(len(PREFIX), 8)
    start = BASE_START + int.from_bytes(head)
    size = reader.size
    if len(head) < 8 or start + 24 > size:
        raise DamagedEndError(name, 8, "the file ends within its packed part; restore a backup")
    length, word, words = unpack(">3Q", reader.read(start, 24))
    if not 0 < word <= 8 or length != 16 + word * words:
        raise CorruptionError(name, start, "this is no offset map; restore a backup")
    if start + 8 + length > size:
        raise DamagedEndError(name, start, "the file ends within its offset map; restore a backup")
    return start


def locate_transactions(reader: ReadAhead, base_end: int) -> int:
    """Where the transactions after the offset map begin."""
    return base_end + 8 + int.from_bytes(reader.read(base_end, 8))


def _locate_record(reader: ReadAhead, offset: int) -> tuple[int, int]:
    """Where the record of the item at `offset` begins, and its size."""
    return offset + 16, int.from_bytes(reader.read(offset, 8)) - 8


def encode_item(name: bytes, value: bytes) -> bytes:
    """Length, name, value."""
    return b"".join((int8_to_str(len(name) + len(value)), name, value))


def shelf_format_for(check: ItemCheck) -> ClassicFormat:
    """The format, for items that are all like this."""
    return ClassicFormat(
        name="SHELF-1",
        magic=PREFIX,
        empty=EMPTY_SHELF,
        parse=partial(_parse_transaction, check),
        find_damage=partial(_find_damage, check),
        locate_record=_locate_record,
    )


SHELF: Final = shelf_format_for(is_record_item)
"""The format of databases: all items are records."""
