"""The header of a log file, in bytes; `log_format` draws it, and `docs/format.md` says why.

Invariant: every bit is covered by the checksum.  The extension is made of pieces, as those of
transactions are: who does not know one may ignore it, and pack copies it, if the first letter of
its tag is a small one; else the file is refused.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from durus.interfaces import NO_TID, Tid

__all__ = [
    "END_TAG",
    "FILE_HEADER_SIZE",
    "FILE_HEADER_SIZE_MAX",
    "MAGIC",
    "VERSION",
    "FileHeader",
    "decode_file_header",
    "encode_file_header",
    "is_extension",
    "read_pieces",
    "with_dictionary",
]

MAGIC: Final = b"\x89DUR\r\n\x1a\n"
VERSION: Final = 1
END_TAG: Final = b"END\xf7"

_START = struct.Struct(">8sII16s16sQQQQQQ")
_CRC_SIZE: Final = 4

FILE_HEADER_SIZE: Final = _START.size + len(END_TAG) + _CRC_SIZE
"""That of a header without an extension."""
FILE_HEADER_SIZE_MAX: Final = 1 << 20

_DICTIONARY_TAG: Final = b"zstd"
_DICTIONARY_SIZE_MIN: Final = 8
"""Shorter ones the library refuses; and empty is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHeader:
    """The beginning of a file: written once, before the file gets its name."""

    database_id: bytes
    """16 random bytes, kept by pack and backup."""
    file_id: bytes
    """16 random bytes, new for every file."""
    created_ns: int
    horizon: Tid = NO_TID
    """What was before this transaction has been packed away; 0: nothing was."""
    next_oid: int = 0
    version: int = VERSION
    features_refuse: int = 0
    """Who does not know one of these must not open the file."""
    features_read_only: int = 0
    """Who does not know one of these may read only."""
    features_ignore: int = 0
    extension: bytes = b""
    """Pieces, as transactions have them, too."""

    @property
    def size(self) -> int:
        return FILE_HEADER_SIZE + len(self.extension)

    @property
    def dictionary(self) -> bytes | None:
        """What `durus.log_codec.RecordCodec` wants to know."""
        found = (content for tag, content in read_pieces(self.extension) if tag == _DICTIONARY_TAG)
        return next(found, None)


def with_dictionary(extension: bytes, dictionary: bytes | None) -> bytes:
    """The extension of a header, with another dictionary, or none."""
    pieces = [piece for piece in read_pieces(extension) if piece[0] != _DICTIONARY_TAG]
    if dictionary is not None:
        pieces.append((_DICTIONARY_TAG, dictionary))
    return _encode_pieces(pieces)


def read_pieces(extension: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Tags of 4 letters, and what belongs to them."""
    start = 0
    while start < len(extension):
        content = start + 8
        stop = content + int.from_bytes(extension[start + 4 : content])
        yield extension[start : start + 4], extension[content:stop]
        start = stop


def _encode_pieces(pieces: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(tag + len(content).to_bytes(4) + content for tag, content in pieces)


def is_extension(content: bytes) -> bool:
    pieces = list(read_pieces(content))
    return _encode_pieces(pieces) == content and all(tag.isalpha() for tag, _ in pieces)


def encode_file_header(header: FileHeader) -> bytes:
    start = _START.pack(
        MAGIC,
        header.version,
        header.size,
        header.database_id,
        header.file_id,
        header.features_refuse,
        header.features_read_only,
        header.features_ignore,
        header.horizon,
        header.next_oid,
        header.created_ns,
    )
    content = start + header.extension + END_TAG
    return content + zlib.crc32(content).to_bytes(4)


def decode_file_header(content: bytes) -> FileHeader | None:
    """The header at the start of `content`; None when it is cut off or damaged.

    Later versions keep the first 16 bytes, and that the last 4 are the checksum of the others.
    """
    if len(content) < FILE_HEADER_SIZE:
        return None
    _, version, size, database_id, file_id, *numbers = _START.unpack_from(content)
    if not FILE_HEADER_SIZE <= size <= len(content):
        return None
    if zlib.crc32(content[: size - 4]) != int.from_bytes(content[size - 4 : size]):
        return None
    header = FileHeader(
        database_id=database_id,
        file_id=file_id,
        created_ns=numbers[5],
        horizon=Tid(numbers[3]),
        next_oid=numbers[4],
        version=version,
        features_refuse=numbers[0],
        features_read_only=numbers[1],
        features_ignore=numbers[2],
        extension=content[_START.size : size - len(END_TAG) - _CRC_SIZE],
    )
    if version == VERSION:
        dictionary = header.dictionary
        is_dictionary = not dictionary or len(dictionary) >= _DICTIONARY_SIZE_MIN
        if not is_extension(header.extension) or not is_dictionary:
            return None
    return header
