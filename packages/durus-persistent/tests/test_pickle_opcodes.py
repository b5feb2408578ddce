"""Pickles are looked through before they are unpickled: memos without end, extension codes."""

import contextlib
import copyreg
import pickle
import pickletools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durus.error import ClassNotAllowedError
from durus.pickle_opcodes import check_opcodes

LARGE = [b"r\xff\xff\xff\x7f", b"r\0\0\x10\0", b"r\0\0\0\xff", b"p2147483647\n", b"p-1\n"]
"""Opcodes that put something far into the memo, or before it."""

scalars = st.none() | st.integers() | st.floats() | st.text(max_size=300) | st.binary(max_size=300)
values = st.recursive(
    scalars | st.sampled_from([dict, pickle.PickleError, "r" * 70_000, b"p" * 70_000]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)
protocols = st.integers(0, pickle.HIGHEST_PROTOCOL)


@pytest.fixture
def extension() -> Iterator[int]:
    copyreg.add_extension("os", "system", 240)
    yield 240
    copyreg.remove_extension("os", "system", 240)


@given(values, protocols)
def test_what_pickle_makes_passes(value: object, protocol: int) -> None:
    check_opcodes(pickle.dumps(value, protocol))


@given(values, protocols, st.sampled_from(LARGE), st.data())
def test_a_large_index_is_found_at_every_opcode(
    value: object, protocol: int, opcode: bytes, data: st.DataObject
) -> None:
    pickled = pickle.dumps([value, "r" * 100, "a text"], protocol)
    places = [place for _, _, place in pickletools.genops(pickled) if place is not None]
    place = data.draw(st.sampled_from(places))
    with pytest.raises(pickle.UnpicklingError, match=r"puts something at index .*tampered"):
        check_opcodes(pickled[:place] + opcode + pickled[place:])


@given(st.binary(max_size=100))
def test_other_bytes_are_passed_or_refused(junk: bytes) -> None:
    for pickled in (b"\x80\x04" + junk, b"\x80\x02p0\n" + junk, junk + b"Nr"):
        with contextlib.suppress(pickle.UnpicklingError, ValueError):
            check_opcodes(pickled)


def test_as_many_objects_as_there_are_may_be_remembered() -> None:
    pickled = pickle.dumps([str(n) for n in range(1 << 20)], 2)
    assert pickled.endswith(b"r\0\0\x10\0e.")  # as in LARGE
    check_opcodes(pickled)


@pytest.mark.parametrize("opcode", [b"\x82\xf0", b"\x83\xf0\0", b"\x84\xf0\0\0\0"])
def test_an_extension_code_is_refused(opcode: bytes, extension: int) -> None:
    with pytest.raises(ClassNotAllowedError, match=r"extension code, 240.*tampered"):
        check_opcodes(pickle.dumps(["x" * 100], 4)[:-1] + opcode + b".")
    check_opcodes(pickle.dumps(["\x82\xf0", b"\x84\xf0\0\0\0"], 4))
