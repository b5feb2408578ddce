"""How class pickle and state of a record are compressed in a log file: by zstd, as one block.

`docs/format.md` describes it; `log_record` has the rest of a record.  What makes small records
smaller is the dictionary of the file, which stands in its header: it has what repeats from record
to record, such as the names of attributes.  Invariants: a record is compressed only if that is
worth it; a block is unpacked to so many bytes as it says, and no more; and the library is imported
when something is compressed, so a file without that does not need it.
"""

import functools
import sys
from typing import TYPE_CHECKING, Final, Literal

from durus import _guard as _guard

if TYPE_CHECKING:
    from durus.zstd_frames import Frames

__all__ = [
    "CODEC_MAX",
    "DICTIONARY_SIZE_MAX",
    "LIBRARY_MISSING",
    "Compression",
    "RecordCodec",
    "has_library",
]

Compression = Literal["zstd", "none"]
"""How records are to be stored, as users say it."""

_ALONE: Final = 1
_WITH_DICTIONARY: Final = 2
CODEC_MAX: Final = 2
"""This release knows the codecs up to here; 0 is that of what is not compressed."""

DICTIONARY_SIZE_MAX: Final = 1 << 16

_ALONE_SIZE_MIN: Final = 512
"""Smaller records have nothing in them that repeats."""
_GAIN_MIN: Final = 16
_GAIN_PART: Final = 8
"""A record must become smaller by an eighth, and by 16 bytes: unpacking takes a while."""

_STATE_SIZE_MAX: Final = 0xFFFF_FFFF

LIBRARY_MISSING: Final = (
    "this Python was built without compression.zstd, which is needed to compress records and to "
    "read what is compressed"
    if sys.version_info >= (3, 14)
    else "backports.zstd is needed to compress records and to read what is compressed: "
    "python -m pip install backports.zstd"
)


@functools.cache
def has_library() -> bool:
    """Whether records can be compressed and unpacked; else `LIBRARY_MISSING` is the reason."""
    try:
        import durus.zstd_frames  # noqa: F401
    except ImportError:
        return False
    return True


class RecordCodec:
    """Compresses and unpacks the records of one file.  Any thread may call it."""

    def __init__(self, dictionary: bytes | None) -> None:
        """dictionary: that of the file; empty if it has none; None if, besides, it does not ask
        that what is committed to it be compressed.
        """
        self.dictionary = dictionary
        self._frames: dict[int, Frames | None] = {}

    @property
    def is_wanted(self) -> bool:
        """Whether the file asks that records be compressed, and that can be done here."""
        return self.dictionary is not None and has_library()

    def _frames_of(self, codec: int) -> "Frames | None":
        """What compresses and unpacks; None when the dictionary is damaged."""
        if codec not in self._frames:
            from durus.zstd_frames import Frames

            dictionary = self.dictionary if codec == _WITH_DICTIONARY else None
            try:
                self._frames[codec] = Frames(dictionary or b"")
            except ValueError:
                self._frames[codec] = None
        return self._frames[codec]

    def compress(self, class_pickle: bytes, state: bytes) -> tuple[int, bytes] | None:
        """The codec and the block; None when it is better to store the record as it is."""
        size = len(class_pickle) + len(state)
        if not self.dictionary and size < _ALONE_SIZE_MIN:
            return None
        codec = _WITH_DICTIONARY if self.dictionary else _ALONE
        frames = self._frames_of(codec)
        block = None if frames is None else frames.compress(class_pickle + state)
        if block is None or size - len(block) < max(_GAIN_MIN, size // _GAIN_PART):
            return None
        return codec, block

    def unpack(self, codec: int, block: bytes, class_size: int) -> tuple[bytes, bytes] | None:
        """Class pickle and state; None when they are damaged, or there is no such dictionary."""
        if codec == _WITH_DICTIONARY and not self.dictionary:
            return None
        frames = self._frames_of(codec)
        if frames is None:
            return None
        content = frames.unpack(block, class_size, class_size + _STATE_SIZE_MAX)
        return None if content is None else (content[:class_size], content[class_size:])
