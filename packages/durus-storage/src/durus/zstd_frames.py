"""zstd, from the standard library since Python 3.14, and from its backport before.

`log_codec` imports this module when something is to be compressed or unpacked, and says what to
install when the library is missing.  Invariant: nothing is unpacked to more bytes than its frame
says, and that is known before any is.
"""

import sys
from collections.abc import Sequence
from typing import Final

from durus import _guard as _guard

if sys.version_info >= (3, 14):
    from compression.zstd import (
        CompressionParameter,
        ZstdCompressor,
        ZstdDecompressor,
        ZstdDict,
        ZstdError,
        get_frame_info,
        train_dict,
    )
else:
    from backports.zstd import (
        CompressionParameter,
        ZstdCompressor,
        ZstdDecompressor,
        ZstdDict,
        ZstdError,
        get_frame_info,
        train_dict,
    )

__all__ = ["Frames", "train_dictionary"]

_MAGIC: Final = b"\x28\xb5\x2f\xfd"
"""The beginning of every frame, which is not stored."""
_MAGIC_OF_DICTIONARY: Final = b"\x37\xa4\x30\xec"
"""What begins so has tables, too; any other dictionary is bytes that are likely to come again."""
_OPTIONS: Final[dict[int, int]] = {
    CompressionParameter.compression_level: 3,
    CompressionParameter.checksum_flag: 0,  # a record has one
    CompressionParameter.dict_id_flag: 0,  # a file has one dictionary
}


class Frames:
    """Compresses, and unpacks, with one dictionary or none.  Any thread may call it."""

    def __init__(self, dictionary: bytes = b"") -> None:
        """ValueError when that is no dictionary, or a damaged one."""
        self._dictionary: tuple[ZstdDict, int] | None = None
        if dictionary:
            is_raw = not dictionary.startswith(_MAGIC_OF_DICTIONARY)
            # Prepared once, and not for each frame.
            self._dictionary = ZstdDict(dictionary, is_raw=is_raw).as_digested_dict
        self._compressor: ZstdCompressor | None = None

    def compress(self, content: bytes) -> bytes | None:
        """A frame, without its first four bytes; it says how long the content is.

        None when the dictionary is damaged.
        """
        try:
            if self._compressor is None:
                self._compressor = ZstdCompressor(options=_OPTIONS, zstd_dict=self._dictionary)
            return self._compressor.compress(content, ZstdCompressor.FLUSH_FRAME)[len(_MAGIC) :]
        except ZstdError:
            return None

    def unpack(self, frame: bytes, size_min: int, size_max: int) -> bytes | None:
        """The content of what `compress` gives; None when it is damaged, or of another size."""
        frame = _MAGIC + frame
        try:
            size = get_frame_info(frame).decompressed_size
            if size is None or not size_min <= size <= size_max:
                return None
            decompressor = ZstdDecompressor(self._dictionary)
            content = decompressor.decompress(frame, size)
        except ZstdError:
            return None
        is_whole = decompressor.eof and not decompressor.unused_data and len(content) == size
        return content if is_whole else None


def train_dictionary(samples: Sequence[bytes], size_max: int) -> bytes:
    """A dictionary for contents such as these; empty when they are too few."""
    try:
        return train_dict(samples, size_max).dict_content
    except (ZstdError, ValueError):
        return b""
