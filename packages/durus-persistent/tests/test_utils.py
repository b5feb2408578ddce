"""The numbers, strings and packed arrays of the classic formats: the checks of Durus 4.3."""

import pickle
from io import BytesIO
from typing import Any

import pytest

import durus.utils
from durus.utils import (
    BitArray,
    Byte,
    ByteArray,
    IntArray,
    IntSet,
    ShortRead,
    WordArray,
    all_bytes,
    as_bytes,
    byte_string,
    empty_byte_string,
    int4_to_str,
    int8_to_str,
    iteritems,
    join_bytes,
    read,
    read_int4,
    read_int4_str,
    read_int8,
    read_int8_str,
    str_to_int4,
    str_to_int8,
    write,
    write_all,
    write_int4,
    write_int4_str,
    write_int8,
    write_int8_str,
    xrange,
)


class Socket:
    """Receives single bytes, ten at most, and sends a few at a time."""

    def __init__(self, most: int = 3) -> None:
        self.most = most
        self.remaining = 10
        self.sent = b""

    def recv(self, n: int) -> bytes:
        self.remaining -= 1
        return b"x" if self.remaining >= 0 else b""

    def send(self, s: bytes) -> int:
        self.sent += s[: self.most]
        return min(len(s), self.most)


@pytest.mark.parametrize("n", [0, 1, 2, 2**30, 2**32 - 1])
def test_int4(n: int) -> None:
    assert len(int4_to_str(n)) == 4
    assert str_to_int4(int4_to_str(n)) == n
    file = BytesIO()
    write_int4(file, n)
    file.seek(0)
    assert read_int4(file) == n


@pytest.mark.parametrize("n", [0, 1, 2, 2**60, 2**64 - 1])
def test_int8(n: int) -> None:
    assert len(int8_to_str(n)) == 8
    assert str_to_int8(int8_to_str(n)) == n
    file = BytesIO()
    write_int8(file, n)
    file.seek(0)
    assert read_int8(file) == n


@pytest.mark.parametrize("s", [b"", b"a", b"ab", b"a" * 1000])
def test_strings(s: bytes) -> None:
    file = BytesIO()
    write(file, s)
    write_int4_str(file, s)
    write_int8_str(file, s)
    write_all(file, s, "é", bytearray(b"z"))
    file.seek(0)
    assert read(file, len(s)) == s
    assert read_int4_str(file) == s
    assert read_int8_str(file) == s
    assert file.read() == s + b"\xe9z"


def test_sockets() -> None:
    socket = Socket()
    write(socket, "x" * 100)
    assert socket.sent == b"x" * 100
    assert read(socket, 8) == b"x" * 8
    with pytest.raises(ShortRead):
        read(socket, 11)
    with pytest.raises(OSError, match="send"):
        write(Socket(most=0), "x")


def test_a_short_file() -> None:
    with pytest.raises(ShortRead, match="5 bytes expected, 3 found"):
        read(BytesIO(b"abc"), 5)


def test_byte_array() -> None:
    array = ByteArray(size=10000, file=BytesIO())
    assert list(array) == [b"\0"] * 10000
    for j in xrange(10000):
        array[j] = b"!"
    assert all(array[j] == b"!" for j in range(10000))
    assert array[0:3] == array[47:50] == b"!!!"
    array[1:3] = b"ab"
    assert array[0:4] == b"!ab!"
    assert len(array) == array.get_size() == 10000


def test_a_byte_array_grows_at_the_end_of_its_file_only() -> None:
    file = BytesIO()
    array = ByteArray(file=file)
    array.set_size(10000, init_byte=b"\xff")
    assert set(array) == {b"\xff"}
    assert sum(1 for _ in ByteArray().gen_set_size(10000)) == 2
    file.seek(0)
    with pytest.raises(AssertionError):
        ByteArray(size=20000, file=file)
    with pytest.raises(AssertionError):
        array.set_size(5)


def test_what_a_byte_array_refuses() -> None:
    array = ByteArray(size=50)
    wrong: list[int | slice] = [50, -1, slice(0, 51), slice(0, 50, 2)]
    for place in wrong:
        with pytest.raises(IndexError):
            array[place]
        with pytest.raises(IndexError):
            array[place] = b"x"
    with pytest.raises(ValueError, match="needed"):
        array[1] = b"xx"
    with pytest.raises(ValueError, match="needed"):
        array[1] = b""
    with pytest.raises(ValueError, match="needed"):
        array[0:50] = b"x" * 49
    with pytest.raises(IndexError):
        array.__getslice__(0, 51)
    with pytest.raises(IndexError):
        array.__setslice__(0, 51, b"x" * 51)


@pytest.mark.parametrize("sample", [[b"a"], [b"a", b"b"], [b"ab", b"cd", b"ef"]])
def test_word_array(sample: list[bytes]) -> None:
    array = WordArray(file=BytesIO(), bytes_per_word=len(sample[0]), number_of_words=len(sample))
    for j, word in enumerate(sample):
        array[j] = word
    assert list(array) == sample
    assert array[-1] == sample[-1]
    assert len(array) == len(sample)
    with pytest.raises(ValueError, match="needed"):
        array[0] = "sdf"
    for j in (10, -10):
        with pytest.raises(IndexError):
            array[j]
        with pytest.raises(IndexError):
            array[j] = "sf"


def test_a_word_array_is_found_again_in_its_file() -> None:
    file = BytesIO()
    array = WordArray(file=file, bytes_per_word=8, number_of_words=1000)
    for n in range(1000):
        array[n] = int8_to_str(2 * n)
    assert array[-1] == int8_to_str(1998)
    file.seek(0)
    again = WordArray(file=file)
    assert again.get_bytes_per_word() == 8
    again[-1] = b"mmmmmmmm"
    assert array[999] == b"mmmmmmmm"
    assert file.getvalue()[:24] == int8_to_str(8016) + int8_to_str(8) + int8_to_str(1000)
    assert len(file.getvalue()) == 8024


def test_what_is_no_word_array() -> None:
    with pytest.raises(ShortRead):
        WordArray(file=BytesIO(b"asdfasdfadsf"))
    with pytest.raises(AssertionError):
        WordArray(file=BytesIO(bytes(24)))
    with pytest.raises(TypeError):
        WordArray()


def test_int_array() -> None:
    file = BytesIO()
    for sample in ([], [0], [2, 1], range(7)):
        file.seek(0)
        array = IntArray(file=file, number_of_ints=10, maximum_int=10)
        for j, n in enumerate(sample):
            array[j] = n
        assert set(array) - {array.get_blank_value()} >= set(sample)
    with pytest.raises(IndexError):
        array[10]
    assert list(IntArray(file=BytesIO(file.getvalue()))) == list(array)


def test_int_array_with_blanks() -> None:
    array = IntArray(number_of_ints=10, maximum_int=300)
    assert [array.get(j) for j in range(10)] == [None] * 10
    assert array[1] == array.get_blank_value() == 0xFFFF
    array[1] = 42
    assert array.get(1) == array[1] == 42
    assert len(array) == 10
    with pytest.raises(ValueError, match="100000"):
        array[2] = 100000
    array = IntArray(number_of_ints=10)
    assert array.get(1, default=42) == array.get(100, default=42) == 42
    assert list(iteritems(array)) == []
    array[3] = 4
    array[8] = 9
    assert list(iteritems(array)) == [(3, 4), (8, 9)]


@pytest.mark.parametrize(("count", "maximum", "width"), [(10, 10, 1), (0, 0, 1), (3, 255, 2)])
def test_an_int_array_is_as_narrow_as_its_maximum_allows(
    count: int, maximum: int, width: int
) -> None:
    file = BytesIO()
    IntArray(file=file, number_of_ints=count, maximum_int=maximum)
    file.seek(0)
    assert len(IntArray(file=file)) == count
    assert len(file.getvalue()) == 24 + count * width
    with pytest.raises(TypeError):
        IntArray()


def test_bit_array() -> None:
    array = BitArray(20)
    assert len(array) == array.get_size() == 20
    assert str(array) == "0" * 20
    for value in (1, 0):
        for j in range(20):
            assert array[j] == 1 - value
            array[j] = value
            assert array[j] == array[j - 20] == value
        assert str(array) == str(value) * 20
        assert list(array) == [value] * 20
    for j in (-21, 20):
        with pytest.raises(IndexError):
            array[j]
        with pytest.raises(IndexError):
            array[j] = 1


def test_byte() -> None:
    byte = Byte(0)
    byte[2] = 1
    byte[-1] = 1
    assert byte[-1] == 1
    assert list(byte) == [0, 0, 1, 0, 0, 0, 0, 1]
    byte[-1] = 0
    assert int(byte) == Byte(b" ").value == 32
    assert str(byte) == " "
    assert byte.byte() == b" "
    for wrong in (300, -1, b"ab"):
        with pytest.raises(TypeError):
            Byte(wrong)
    for j in (-9, 8):
        with pytest.raises(IndexError):
            byte[j]
        with pytest.raises(IndexError):
            byte[j] = 1


@pytest.mark.parametrize("size", [0, 5, 1000])
def test_int_set(size: int) -> None:
    numbers = IntSet(size=size)
    for n in range(1000):
        assert n not in numbers
        numbers.add(n)
        assert n in numbers
        assert n == 0 or n - 1 in numbers
    for n in range(1001):
        numbers.discard(n)
        assert n not in numbers
        assert n >= 999 or n + 1 in numbers


def test_the_other_names() -> None:
    names: Any = durus.utils
    assert as_bytes("é") == b"\xe9"
    assert as_bytes(b"x") == b"x"
    with pytest.raises(TypeError):
        as_bytes(5)  # type: ignore[arg-type]  # the wrong call that is tested
    assert isinstance(b"", byte_string)
    assert join_bytes([b"a", b"b"]) == b"ab"
    assert empty_byte_string == b""
    assert all_bytes[255] == b"\xff"
    assert len(all_bytes) == 256
    assert names.next is next
    assert names.xrange is range
    assert names.BytesIO is BytesIO
    for name in ("dumps", "loads", "Pickler", "Unpickler"):
        assert getattr(names, name) is getattr(pickle, name)
