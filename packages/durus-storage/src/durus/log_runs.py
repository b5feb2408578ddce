"""The plain part of a log by a short way: runs of whole transactions with the mark that follows.

Nearly all of a log is that.  `CheckedLog` reads the runs here, and leaves the rest to `Log`.
Invariant: in a run each checksum has been compared, those of the records too, and each byte is
under one, or is what it must be.  No object is made for an entry, nor for a record.
"""

import struct
import sys
import zlib
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from durus.interfaces import Tid
from durus.log_file import LogFile
from durus.log_format import (
    DIRECTORY_ENTRY_SIZE,
    FIXED_SIZE,
    MARK_SIZE,
    MARK_TAG,
    NOT_SYNCED,
    RESERVATION_SIZE,
    RESERVATION_TAG,
    TRAILER_SIZE,
    TRANSACTION_TAG,
    Reservation,
    TransactionHead,
    decode_entry_head,
    encode_trailer,
)
from durus.log_header import END_TAG
from durus.log_record import RECORD_HEAD_SIZE, SLOT_HEAD_SIZE

__all__ = ["WINDOW_SIZE", "Runs", "are_slots", "read_runs", "sizes_in"]

WINDOW_SIZE: Final = 1 << 20
"""So much is read at once."""
_BATCH: Final = 1024
"""So many records are taken apart at once."""
_CRC_SIZE: Final = 4
_WORDS: Final = DIRECTORY_ENTRY_SIZE // 4
_FORMATS_MAX: Final = 4096
_TID_LIMIT: Final = 1 << 64

# As `durus.log_format` draws them.
_HEAD = struct.Struct(">4sIQQqQQIIIIII")
_MARK = struct.Struct(">4sIQQQQ4s")


_Place = tuple[int, Sequence[int]]
"""Where a transaction is, and the fields of its head."""


class Runs(NamedTuple):
    """What `read_runs` has found."""

    first: TransactionHead | None
    """The oldest and the newest of the transactions; None if there are none."""
    last: TransactionHead | None
    transactions: int
    end: int
    """Of the last run, and the reservations after it."""
    place: int
    """Where something else is: nothing; what ends after the limit; a transaction that is long, has
    flags or an extension; a mark that repeats one; damage..."""


def read_runs(
    file: LogFile, file_id: bytes, start: int, limit: int, after: Tid, newest: Tid | None
) -> Runs:
    """Read runs from `start` on, and reservations between them, as far as nothing else comes.

    limit: all that is read ends before it.
    after, newest: the tids are greater, and not greater, than these.
    """
    crc32 = zlib.crc32
    seed = crc32(file_id)
    tid: int = after
    tid_max = _TID_LIMIT if newest is None else newest
    first: _Place | None = None
    last: _Place | None = None
    run: list[_Place] = []
    transactions, end, place = 0, start, start
    window_start, window = start, b""
    while True:
        at = place - window_start
        tag = window[at : at + 4]
        if tag == TRANSACTION_TAG and at + FIXED_SIZE <= len(window):
            _, crc, *fields = _HEAD.unpack_from(window, at)
            if crc != crc32(window[at + 8 : at + FIXED_SIZE], crc32(place.to_bytes(8), seed)):
                break
            size = fields[0]
            if at + size <= len(window):
                if not tid < fields[1] <= tid_max or not _is_whole(fields, window, at):
                    break
                tid = fields[1]
                run.append((place, fields))
                place += size
                continue
        elif tag == MARK_TAG and at + MARK_SIZE <= len(window):
            mark = _MARK.unpack_from(window, at)
            checked = window[at + 8 : at + MARK_SIZE - TRAILER_SIZE]
            crc = crc32(checked, crc32(place.to_bytes(8), seed))
            flags = mark[4]
            right = (MARK_TAG, crc, MARK_SIZE, tid, flags, MARK_SIZE, END_TAG)
            if not run or mark != right or flags not in (0, NOT_SYNCED):
                break
            first, last = first or run[0], run[-1]
            transactions += len(run)
            run.clear()
            end = place = place + MARK_SIZE
            continue
        elif tag == RESERVATION_TAG and at + RESERVATION_SIZE <= len(window):
            entry = decode_entry_head(file_id, place, window[at : at + RESERVATION_SIZE])
            if run or not isinstance(entry, Reservation):
                break
            end = place = entry.end
            continue
        elif at + FIXED_SIZE <= len(window):
            break
        if window and not at:
            break  # it is longer than a window
        window_start, window = place, file.read(place, min(WINDOW_SIZE, limit - place))
        if not window:
            break
    return Runs(first and _head_of(*first), last and _head_of(*last), transactions, end, place)


def _head_of(place: int, fields: Sequence[int]) -> TransactionHead:
    size, tid, *others = fields
    return TransactionHead(place, size, Tid(tid), *others)


def _is_whole(fields: Sequence[int], window: bytes, at: int) -> bool:
    """Whether the transaction at `at` has no flags and no extension, and is whole.

    fields: of its head, as `TransactionHead` has them, without the offset.
    """
    size, _, _, _, _, count, user_size, note_size, extension_size, flags, rest_crc = fields
    rest = at + FIXED_SIZE
    directory = rest + user_size + note_size
    slots = directory + DIRECTORY_ENTRY_SIZE * count
    stop = at + size - TRAILER_SIZE
    if flags or extension_size or slots > stop:
        return False
    if window[stop : at + size] != encode_trailer(size):
        return False
    if zlib.crc32(window[rest:slots]) != rest_crc:
        return False
    sizes = sizes_in(window[directory:slots])
    return slots + sum(sizes) + SLOT_HEAD_SIZE * count == stop and are_slots(
        sizes, window, slots, slots - at
    )


def sizes_in(directory: bytes) -> "array[int]":
    """The sizes of the records, without the heads of their slots."""
    words = array("I", directory)
    if sys.byteorder == "little":
        words.byteswap()
    return words[_WORDS - 1 :: _WORDS]


class _Formats(dict[int, str]):
    """How `struct` takes the slot of a record of so many bytes apart."""

    def __missing__(self, size: int) -> str:
        fields = f"II{size - _CRC_SIZE}s"
        if len(self) < _FORMATS_MAX:
            self[size] = fields
        return fields


_formats = _Formats()


def are_slots(sizes: "array[int]", content: bytes, slot: int, distance: int) -> bool:
    """Whether undamaged records of these sizes are in `content`, which is long enough.

    slot: where the first slot is in `content`.
    distance: how far it is from the beginning of its transaction.
    """
    for start in range(0, len(sizes), _BATCH):
        batch = sizes[start : start + _BATCH]
        if min(batch) < RECORD_HEAD_SIZE:
            return False
        # One call takes all apart: in a loop, each record would cost twice as much.
        format = struct.Struct(">" + "".join(map(_formats.__getitem__, batch)))
        parts = format.unpack_from(content, slot)
        distances, checksums, contents = parts[0::3], parts[1::3], parts[2::3]
        if tuple(map(zlib.crc32, contents)) != checksums:
            return False
        places = tuple(accumulate(map(SLOT_HEAD_SIZE.__add__, batch), initial=distance))
        if places[:-1] != distances:
            return False
        distance = places[-1]
        slot += format.size
    return True
