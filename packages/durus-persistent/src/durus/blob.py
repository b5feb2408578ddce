"""`Blob`: a large binary value, which is streamed in and out.

The state of a blob is `{"_content": (size, chunk size, chunks)}`; a chunk is a `BlobChunk`, an
object of its own, so that pack, history, conversion and backup need to know nothing of blobs.
`durus.blob_spool` keeps what is not committed yet; `durus.blob_upload` stores chunks.  Invariants:

    * A chunk never changes: who writes makes new ones in the place of those that differ, and the
      others are shared, with older revisions and with copies of the blob.
    * All chunks of a blob have its chunk size; the last one has the rest, and is not empty.
    * Reading keeps no more than one chunk in memory, and none in the cache.
"""

import errno
import io
import operator
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, overload

from durus.blob_spool import PLACE_SIZE, Spooled, spool
from durus.error import ObjectError, UnstorableError
from durus.persistent import (
    GHOST,
    SAVED,
    ObjectConnection,
    PersistentObject,
    _delattribute,
    _hasattribute,
    _setattribute,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["CHUNK_SIZE", "Blob", "BlobChunk"]

CHUNK_SIZE: Final = PLACE_SIZE
"""The bytes of a chunk, if nobody asks for smaller ones."""

_CHUNKS_MAX: Final = 1 << 24
"""Of a blob, whose list of them is one record."""


class BlobChunk(PersistentObject):
    """Bytes that never change: a part of the content of blobs.

    Nothing that is done with a chunk loads it but `read`, and that does not keep it.
    """

    __slots__ = ("_held",)

    _held: bytes | Spooled

    if not TYPE_CHECKING:  # with it, every misspelt attribute is accepted
        __getattribute__ = object.__getattribute__

    def __init__(self, content: bytes) -> None:
        """A new chunk of up to `CHUNK_SIZE` bytes; OSError if there is no room to keep it."""
        _setattribute(self, "_held", spool(content))

    def read(self) -> bytes:
        """The content, loaded if it is stored.  ReadConflictError when a pack has removed it."""
        if self._p_status == GHOST:
            self._p_load_state()
        held = self._held
        if self._p_status == SAVED:
            self._p_set_status_ghost()
        return held if isinstance(held, bytes) else held.read()

    def __getstate__(self) -> bytes:
        return self.read()

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(None)
        if state is not None:
            if not isinstance(state, bytes):
                raise ObjectError(f"the state of <{self._p_identity()}> is no bytes: {type(state)}")
            _setattribute(self, "_held", state)

    def __deepcopy__(self, memo: object) -> Self:
        return self


_Content: TypeAlias = tuple[int, int, tuple[BlobChunk, ...]]
"""Size, chunk size, chunks."""

_Mode: TypeAlias = Literal["r", "rb", "w", "wb", "a", "ab", "r+", "rb+", "r+b"]


class Blob(PersistentObject):
    """Bytes of any number, read and written through files.

    A file for reading has the content that the blob had when it was opened, until the transaction
    ends.  What is written is the content when the file is closed, for this connection, and after
    its commit() for others.  While a file is open for writing the blob can be neither read nor
    stored, nor opened again.
    """

    __slots__ = ("_content", "_p_writer")

    _content: _Content
    _p_writer: "_BlobFile"  # while it is open for writing

    def __init__(self, content: "Buffer" = b"", *, chunk_size: int = CHUNK_SIZE) -> None:
        """A new blob.

        chunk_size: a change of a byte stores so many; up to `CHUNK_SIZE`.  There are 2**24 chunks
            at most: 4 TiB, if they are not smaller.
        """
        chunk_size = operator.index(chunk_size)
        if not 1 <= chunk_size <= CHUNK_SIZE:
            raise ValueError(f"chunks have 1 to {CHUNK_SIZE:,} bytes, not {chunk_size!r}")
        self._content = 0, chunk_size, ()
        if memoryview(content).nbytes:
            self.write_bytes(content)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """A new blob with the content of a file."""
        blob = cls()
        with open(path, "rb") as source, blob.open("w") as target:
            shutil.copyfileobj(source, target)
        return blob

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self._read_content()[0]

    def read_bytes(self) -> bytes:
        """All of the content, for small blobs."""
        with self.open() as file:
            return file.read()

    def write_bytes(self, content: "Buffer") -> None:
        """Replace the content."""
        source = memoryview(content).cast("B")  # or the TypeError comes when the old one is gone
        with self.open("w") as file:
            file.write(source)

    @overload
    def open(self, mode: Literal["r", "rb"] = "r") -> io.BufferedReader: ...

    @overload
    def open(self, mode: Literal["w", "wb", "a", "ab"]) -> io.BufferedWriter: ...

    @overload
    def open(self, mode: Literal["r+", "rb+", "r+b"]) -> io.BufferedRandom: ...

    def open(self, mode: _Mode = "r") -> io.BufferedReader | io.BufferedWriter | io.BufferedRandom:
        """Open the content as a binary file, which can be sought in.

        mode: "r" to read; "w" to replace it, "a" to append to it, "r+" to change it.

        ObjectError while the blob is open for writing, ReadOnlyError when it is of the past.
        """
        kind = mode.replace("b", "", 1)
        if kind not in ("r", "w", "a", "r+"):
            raise ValueError(f'a blob is opened with the mode "r", "w", "a" or "r+", not {mode!r}')
        content = self._read_content()
        if kind == "r":
            return io.BufferedReader(_BlobFile(self, kind, content))
        self._p_note_change()
        writer = self._p_writer = _BlobFile(self, kind, content)
        return io.BufferedRandom(writer) if kind == "r+" else io.BufferedWriter(writer)

    def _read_content(self) -> _Content:
        content = self._content
        if _hasattribute(self, "_p_writer"):
            raise ObjectError(self._p_open_for_writing())
        return content

    def __getstate__(self) -> Any:
        if _hasattribute(self, "_p_writer"):
            raise UnstorableError(self._p_open_for_writing())
        return super().__getstate__()

    def _p_open_for_writing(self) -> str:
        return f"<{self._p_identity()}> is open for writing: close that file first"


class _BlobFile(io.RawIOBase):
    """An open blob, below the buffer of `io`.  One chunk of it is here, in a buffer."""

    def __init__(self, blob: Blob, kind: str, content: _Content) -> None:
        """kind: the mode, without "b"; content: of the blob."""
        super().__init__()
        size, self._chunk_size, chunks = content
        if kind == "w":
            size, chunks = 0, ()
        self._blob = blob
        self._kind = kind
        self._transaction = _transaction_of(blob)
        self._size = size
        self._chunks = list(chunks)
        self._position = size if kind == "a" else 0
        self._buffer = bytearray()
        self._index: int | None = None
        """Which chunk is in the buffer; it may be the one after the last."""
        self._changed = False
        """Whether it is only there."""
        self._failure: BaseException | None = None
        """Why the last change failed: then this is not what shall be the content."""

    @property
    def mode(self) -> str:
        return f"{self._kind[0]}b{self._kind[1:]}"

    def readable(self) -> bool:
        return "r" in self._kind

    def writable(self) -> bool:
        return self._kind != "r"

    def seekable(self) -> bool:
        return True

    def _check_transaction(self) -> None:
        if self.writable():  # a blob that was never stored goes on after an abort()
            is_over = getattr(self._blob, "_p_writer", None) is not self
        else:
            is_over = _transaction_of(self._blob) != self._transaction
        if is_over:
            raise ObjectError(
                f"<{self._blob._p_identity()}> was opened in a transaction that is over: open it "
                "again in this one"
            )

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            raise ValueError(f"a blob knows no position from {whence!r}")
        position = offset + (0, self._position, self._size)[whence]
        if position < 0:
            raise ValueError(f"a file has no position {position}")
        self._position = position
        return position

    def readinto(self, buffer: "Buffer", /) -> int:
        self._check_transaction()
        target = memoryview(buffer).cast("B")
        if not target or self._position >= self._size:
            return 0
        index, offset = divmod(self._position, self._chunk_size)
        self._select(index)
        with memoryview(self._buffer)[offset : offset + len(target)] as source:
            target[: len(source)] = source
            self._position += len(source)
            return len(source)

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(self._chunk_size), b""))

    def write(self, buffer: "Buffer", /) -> int:
        """Write up to the end of a chunk."""
        self._check_transaction()
        source = memoryview(buffer).cast("B")
        if not source:
            return 0
        with self._changing():
            if self._kind == "a":
                self._position = self._size
            self._check_size(self._position + 1)
            self._grow(self._position)
            index, offset = divmod(self._position, self._chunk_size)
            self._select(index)
            count = min(len(source), self._chunk_size - offset)
            self._buffer[offset : offset + count] = source[:count]
            self._changed = True
            self._position += count
            self._size = max(self._size, self._position)
        return count

    def truncate(self, size: int | None = None, /) -> int:
        if not self.writable():
            raise io.UnsupportedOperation("truncate")
        self._check_transaction()
        size = self._position if size is None else size
        if size < 0:
            raise ValueError(f"a file has no size {size}")
        with self._changing():
            self._check_size(size)
            self._grow(size)
            if size < self._size:
                self._deselect()
                whole, rest = divmod(size, self._chunk_size)
                if rest:
                    self._select(whole)
                    del self._buffer[rest:]
                    self._changed = True
                del self._chunks[whole:]
                self._size = size
        return size

    def _check_size(self, size: int) -> None:
        size_max = _CHUNKS_MAX * self._chunk_size
        if size > size_max:
            raise OSError(
                errno.EFBIG,
                f"<{self._blob._p_identity()}> would have {size:,} bytes: with chunks of "
                f"{self._chunk_size:,}, {size_max:,} are the most",
            )

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._failure = error
            raise
        self._failure = None

    def _grow(self, size: int) -> None:
        """Add zeros up to a size; all whole chunks of them are one and the same."""
        while self._size < size:
            index, offset = divmod(self._size, self._chunk_size)
            whole = (size - self._size) // self._chunk_size
            if whole and not offset:
                self._deselect()
                self._chunks += [BlobChunk(bytes(self._chunk_size))] * whole
                self._size += whole * self._chunk_size
            else:
                self._select(index)
                count = min(size - self._size, self._chunk_size - offset)
                self._buffer += bytes(count)
                self._changed = True
                self._size += count

    def _select(self, index: int) -> None:
        """Take a chunk into the buffer."""
        if index == self._index:
            return
        self._deselect()
        content = b""
        if index < len(self._chunks):
            content = self._chunks[index].read()
            size = min(self._chunk_size, self._size - index * self._chunk_size)
            if len(content) != size:
                raise ObjectError(
                    f"<{self._chunks[index]._p_identity()}>, a part of "
                    f"<{self._blob._p_identity()}>, has {len(content)} bytes, and not {size}"
                )
        self._buffer = bytearray(content)
        self._index = index

    def _deselect(self) -> None:
        """Make a chunk of what is in the buffer, if it was changed."""
        if self._changed:
            assert self._index is not None
            self._chunks[self._index : self._index + 1] = [BlobChunk(bytes(self._buffer))]
            self._changed = False
        self._index = None

    def close(self) -> None:
        """Make what was written the content of the blob.

        That stays as it was if this fails, or the last change has failed.
        """
        if self.closed:
            return
        try:
            if self.writable():
                self._check_transaction()
                try:
                    if self._failure is not None:
                        raise self._failure
                    self._deselect()
                    self._blob._content = self._size, self._chunk_size, tuple(self._chunks)
                finally:
                    _delattribute(self._blob, "_p_writer")
        finally:
            self._chunks.clear()
            self._failure = None
            super().close()


def _transaction_of(blob: Blob) -> tuple[ObjectConnection, int] | None:
    connection = blob._p_connection
    return None if connection is None else (connection, connection.transaction_serial)
