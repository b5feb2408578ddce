"""What the classic formats and protocols of Durus are made of: numbers, strings, packed arrays.

The file formats and the network protocol of Durus 4.x are read and written with this; programs
import some of it too.  In these names an 'int4' is an unsigned number of 32 bits, an 'int8' one
of 64 bits, both big-endian, and an 'int8_str' is bytes after their length.

The arrays live in a file or a BytesIO, from its position at the time on:

    ByteArray   the bytes themselves
    BitArray    a ByteArray; bit 0 is the highest bit of the first byte
    WordArray   int8 length of what follows, int8 bytes per word, int8 number of words, the words
    IntArray    a WordArray of big-endian numbers; a word of 0xff bytes is blank, that is, unset
"""

from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pickle import Pickler, Unpickler, dumps, loads
from struct import pack, unpack
from typing import Any, Final, Protocol, TypeAlias, TypeVar, cast

from durus import _guard as _guard

__all__ = [
    "BitArray",
    "Byte",
    "ByteArray",
    "BytesIO",
    "IntArray",
    "IntSet",
    "Pickler",
    "ShortRead",
    "Unpickler",
    "WordArray",
    "all_bytes",
    "as_bytes",
    "byte_string",
    "dumps",
    "empty_byte_string",
    "int4_to_str",
    "int8_to_str",
    "iteritems",
    "join_bytes",
    "loads",
    "next",
    "read",
    "read_int4",
    "read_int4_str",
    "read_int8",
    "read_int8_str",
    "str_to_int4",
    "str_to_int8",
    "write",
    "write_all",
    "write_int4",
    "write_int4_str",
    "write_int8",
    "write_int8_str",
    "xrange",
]

T = TypeVar("T", covariant=True)

xrange = range
next = next
byte_string: Final = (bytearray, bytes)
empty_byte_string: Final = b""
join_bytes = empty_byte_string.join
all_bytes: Final = [bytes([value]) for value in range(256)]


class HasItems(Protocol[T]):
    def items(self) -> T: ...


class Readable(Protocol):
    def read(self, n: int, /) -> bytes: ...


class Receiver(Protocol):
    """What `read` also takes: a socket."""

    def recv(self, n: int, /) -> bytes: ...


class Writable(Protocol):
    def write(self, s: bytes, /) -> object: ...


class Sender(Protocol):
    """What `write` also takes: a socket."""

    def send(self, s: bytes, /) -> int: ...


class RandomAccessFile(Readable, Writable, Protocol):
    """What the arrays need: a binary file, a BytesIO, a `durus.file.File`."""

    def seek(self, offset: int, whence: int = 0, /) -> object: ...

    def tell(self) -> int: ...


ByteString: TypeAlias = bytes | bytearray


class ShortRead(OSError):  # noqa: N818 - the name of 4.3
    """There were fewer bytes than expected."""


def iteritems(x: HasItems[T]) -> T:
    return x.items()


def as_bytes(s: str | ByteString) -> bytes:
    """Bytes as they are; of a string, the latin-1 codes.  TypeError for anything else."""
    return s.encode("latin1") if isinstance(s, str) else bytes(memoryview(s))


def int8_to_str(n: int) -> bytes:
    return pack(">Q", n)


def str_to_int8(s: ByteString) -> int:
    n: int = unpack(">Q", s)[0]
    return n


def int4_to_str(n: int) -> bytes:
    return pack(">L", n)


def str_to_int4(s: ByteString) -> int:
    n: int = unpack(">L", s)[0]
    return n


def read(f: Readable | Receiver, n: int) -> bytes:
    """Exactly n bytes of a file or socket; ShortRead when it ends before."""
    parts: list[bytes] = []
    remaining = n
    get = getattr(f, "read", None) or cast(Receiver, f).recv
    while remaining > 0:
        part = get(min(remaining, 1_000_000))
        if not part:
            raise ShortRead(f"{n} bytes expected, {n - remaining} found")
        parts.append(part)
        remaining -= len(part)
    return join_bytes(parts)


def write(f: Writable | Sender, s: str | ByteString) -> None:
    """Write all of it to a file or socket."""
    rest = as_bytes(s)
    if (put := getattr(f, "write", None)) is not None:
        put(rest)
        return
    failures = 0
    while rest:
        sent = cast(Sender, f).send(rest)
        failures += not sent
        if failures > 10:
            raise OSError(f"send() failed: {len(rest)} bytes are left")
        rest = rest[sent:]


def write_all(f: Writable | Sender, *args: str | ByteString) -> None:
    """Write all of these with one write."""
    write(f, join_bytes(as_bytes(s) for s in args))


def read_int8(f: Readable | Receiver) -> int:
    return str_to_int8(read(f, 8))


def write_int8(f: Writable | Sender, n: int) -> None:
    write(f, int8_to_str(n))


def read_int8_str(f: Readable | Receiver) -> bytes:
    return read(f, read_int8(f))


def write_int8_str(f: Writable | Sender, s: str | ByteString) -> None:
    write_int8(f, len(s))
    write(f, s)


def read_int4(f: Readable | Receiver) -> int:
    return str_to_int4(read(f, 4))


def write_int4(f: Writable | Sender, n: int) -> None:
    write(f, int4_to_str(n))


def read_int4_str(f: Readable | Receiver) -> bytes:
    return read(f, read_int4(f))


def write_int4_str(f: Writable | Sender, s: str | ByteString) -> None:
    write_int4(f, len(s))
    write(f, s)


def _position(j: int, size: int) -> int:
    """The index j of an array of this size, from 0 on; IndexError if there is no such place."""
    if not -size <= j < size:
        raise IndexError(j)
    return j % size


class ByteArray:
    """An array of bytes, from the file's present position on."""

    def __init__(self, size: int = 0, file: RandomAccessFile | None = None) -> None:
        self.file: RandomAccessFile = BytesIO() if file is None else file
        self.start = self.file.tell()
        self.size = 0
        self.set_size(size)

    def get_size(self) -> int:
        return self.size

    def set_size(self, size: int, init_byte: bytes = b"\0") -> None:
        """Grow to this size, with `init_byte` in what the file did not have."""
        for _ in self.gen_set_size(size, init_byte):
            pass

    def gen_set_size(self, size: int, init_byte: bytes = b"\0") -> Iterator[int]:
        """As set_size, in steps; yields the number of bytes that remain to be written."""
        if size < self.size:
            raise AssertionError(f"an array of {self.size} bytes cannot shrink to {size}")
        if size > self.size:
            self.file.seek(0, 2)
            end = self.file.tell()
            if end < self.start + size:
                if end != self.start + self.size:
                    raise AssertionError(
                        f"the array ends at {self.start + self.size} and cannot grow to {size} "
                        f"bytes: the file ends at {end}"
                    )
                remaining = size - self.size
                while remaining > 0:
                    chunk = init_byte * min(remaining, 8192)
                    self.file.write(chunk)
                    remaining -= len(chunk)
                    yield remaining
        self.size = size
        self.file.seek(self.start + self.size)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, j: int | slice) -> bytes:
        if isinstance(j, slice):
            return self.__getslice__(*_bounds(j))
        return self.__getslice__(j, j + 1)

    def __setitem__(self, j: int | slice, value: str | ByteString) -> None:
        if isinstance(j, slice):
            self.__setslice__(*_bounds(j), value)
        else:
            self.__setslice__(j, j + 1, value)

    def __getslice__(self, j: int, k: int) -> bytes:
        if not 0 <= j < k <= self.size:
            raise IndexError((j, k))
        self.file.seek(self.start + j)
        return read(self.file, k - j)

    def __setslice__(self, j: int, k: int, value: str | ByteString) -> None:
        if not 0 <= j < k <= self.size:
            raise IndexError((j, k))
        if len(value) != k - j:
            raise ValueError(f"{k - j} bytes are needed, not {len(value)}")
        self.file.seek(self.start + j)
        write(self.file, value)

    def __iter__(self) -> Iterator[bytes]:
        self.file.seek(self.start)
        for _ in range(self.size):
            yield read(self.file, 1)


def _bounds(j: slice) -> tuple[int, int]:
    if j.step not in (None, 1):
        raise IndexError(j)
    return j.start, j.stop


class Byte:
    """Eight bits that can be read and set; bit 0 is the highest."""

    def __init__(self, v: int | ByteString) -> None:
        value = ord(v) if isinstance(v, byte_string) and len(v) == 1 else v
        if not isinstance(value, int) or not 0 <= value <= 255:
            raise TypeError(f"one byte, or a number from 0 to 255, is needed, not {v!r}")
        self.value = value

    def __getitem__(self, j: int) -> int:
        return self.value >> (7 - _position(j, 8)) & 1

    def __setitem__(self, j: int, v: object) -> None:
        bit = 0x80 >> _position(j, 8)
        self.value = self.value | bit if v else self.value & ~bit

    def __iter__(self) -> Iterator[int]:
        return (self[j] for j in range(8))

    def __str__(self) -> str:
        return chr(self.value)

    def __int__(self) -> int:
        return self.value

    def byte(self) -> bytes:
        return all_bytes[self.value]


class BitArray:
    """An array of bits."""

    def __init__(self, size: int, file: RandomAccessFile | None = None) -> None:
        self.byte_array = ByteArray(file=file)
        self.set_size(size)

    def get_size(self) -> int:
        return self.size

    def set_size(self, size: int) -> None:
        self.byte_array.set_size((size + 7) // 8)
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, j: int) -> int:
        quotient, bit = divmod(_position(j, self.size), 8)
        return Byte(self.byte_array[quotient])[bit]

    def __setitem__(self, j: int, v: object) -> None:
        quotient, bit = divmod(_position(j, self.size), 8)
        byte = Byte(self.byte_array[quotient])
        byte[bit] = v
        self.byte_array[quotient] = byte.byte()

    def __iter__(self) -> Iterator[int]:
        return islice((bit for byte in self.byte_array for bit in Byte(byte)), self.size)

    def __str__(self) -> str:
        return "".join(map(str, self))


class WordArray:
    """An array of words of equal length; made first, if the file ends here."""

    def __init__(
        self,
        file: RandomAccessFile | None = None,
        bytes_per_word: int | None = None,
        number_of_words: int | None = None,
    ) -> None:
        self.file: RandomAccessFile = BytesIO() if file is None else file
        start = self.file.tell()
        self.file.seek(0, 2)
        if self.file.tell() == start:
            if bytes_per_word is None or number_of_words is None:
                raise TypeError("a new array needs bytes_per_word and number_of_words")
            for _ in self.generate(self.file, bytes_per_word, number_of_words, b"\0"):
                pass
        self.file.seek(start)
        length: int
        self.bytes_per_word: int
        self.number_of_words: int
        length, self.bytes_per_word, self.number_of_words = unpack(">3Q", read(self.file, 24))
        size = self.bytes_per_word * self.number_of_words
        if length != 16 + size:
            raise AssertionError(f"the array at {start} has {16 + size} bytes, but says {length}")
        self.byte_array = ByteArray(size, self.file)

    @staticmethod
    def generate(
        file: RandomAccessFile, bytes_per_word: int, number_of_words: int, init_byte: bytes
    ) -> Iterator[int]:
        """Make one at the end of the file, in steps; yields as ByteArray.gen_set_size does."""
        start = file.tell()
        size = bytes_per_word * number_of_words
        write(file, pack(">3Q", 16 + size, bytes_per_word, number_of_words))
        yield from ByteArray(file=file).gen_set_size(size, init_byte)
        file.seek(start)

    def get_bytes_per_word(self) -> int:
        return self.bytes_per_word

    def __len__(self) -> int:
        return self.number_of_words

    def _bytes_of(self, j: int) -> slice:
        start = _position(j, self.number_of_words) * self.bytes_per_word
        return slice(start, start + self.bytes_per_word)

    def __getitem__(self, j: int) -> bytes:
        return self.byte_array[self._bytes_of(j)]

    def __setitem__(self, j: int, word: str | ByteString) -> None:
        self.byte_array[self._bytes_of(j)] = word

    def __iter__(self) -> Iterator[bytes]:
        return (self[j] for j in range(self.number_of_words))


class IntArray:
    """An array of numbers, as short as `maximum_int` allows; made first, if the file ends here."""

    def __init__(
        self,
        file: RandomAccessFile | None = None,
        number_of_ints: int | None = None,
        maximum_int: int | None = None,
    ) -> None:
        self.file: RandomAccessFile = BytesIO() if file is None else file
        start = self.file.tell()
        self.file.seek(0, 2)
        if self.file.tell() == start:
            if number_of_ints is None:
                raise TypeError("a new array needs number_of_ints")
            for _ in self.generate(self.file, number_of_ints, maximum_int):
                pass
        self.file.seek(start)
        self.word_array = WordArray(self.file)
        self.pad = bytes(8 - self.word_array.get_bytes_per_word())
        self.blank = b"\xff" * self.word_array.get_bytes_per_word()

    @staticmethod
    def generate(
        file: RandomAccessFile, number_of_ints: int, maximum_int: int | None
    ) -> Iterator[int]:
        """Make one at the end of the file, in steps; all numbers are blank."""
        maximum = 2**64 - 1 if maximum_int is None else maximum_int + 1  # blank is no number
        bytes_per_word = len(int8_to_str(maximum).lstrip(b"\0"))
        return WordArray.generate(file, bytes_per_word, number_of_ints, b"\xff")

    def get_blank_value(self) -> int:
        """What a blank word reads as."""
        return str_to_int8(self.pad + self.blank)

    def get(self, j: int, default: Any = None) -> Any:
        """The number at j, or `default` if it is blank or there is no such place."""
        try:
            word = self.word_array[j]
        except IndexError:
            return default
        return default if word == self.blank else str_to_int8(self.pad + word)

    def __len__(self) -> int:
        return len(self.word_array)

    def __getitem__(self, j: int) -> int:
        return str_to_int8(self.pad + self.word_array[j])

    def __setitem__(self, j: int, value: int) -> None:
        s = int8_to_str(value)
        if not s.startswith(self.pad):
            raise ValueError(f"{value} needs more than the {len(self.blank)} bytes of a word")
        self.word_array[j] = s[len(self.pad) :]

    def __iter__(self) -> Iterator[int]:
        return (str_to_int8(self.pad + word) for word in self.word_array)

    def iteritems(self) -> Iterator[tuple[int, int]]:
        """The (index, number) of all that are not blank."""
        blank = self.get_blank_value()
        return ((j, value) for j, value in enumerate(self) if value != blank)

    items = iteritems


class IntSet:
    """A set of numbers from 0 on; takes a bit for each up to the greatest."""

    def __init__(self, size: int = 2**10 - 1, file: RandomAccessFile | None = None) -> None:
        self.bit_array = BitArray(size, file)

    def add(self, n: int) -> None:
        if n >= self.bit_array.get_size():
            self.bit_array.set_size(max(n + 1, int(n * 1.2)))
        self.bit_array[n] = 1

    def discard(self, n: int) -> None:
        if n < self.bit_array.get_size():
            self.bit_array[n] = 0

    def __contains__(self, n: int) -> bool:
        return n < self.bit_array.get_size() and self.bit_array[n] == 1
