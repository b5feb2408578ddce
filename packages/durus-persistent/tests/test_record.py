"""The classic record: what goes into one comes out, whatever the class pickle is like."""

import io
import os
import pickle
import zlib

import pytest

from durus.interfaces import Oid, Record
from durus.record import join_record, record_from_classic, record_to_classic, split_record


class Outer:
    class Inner:
        pass


OID = Oid((7).to_bytes(8, "big"))
SHARED = ["shared"]
STATE = {"a": SHARED, "b": SHARED}
CLASS = b"\x80\x02cdurus.persistent\nPersistent\n."
CLASS_PICKLES = [
    pytest.param(CLASS, id="ours"),
    pytest.param(b"\x80\x02cdurus.persistent\nPersistent\nq\x00.", id="memoized"),
    pytest.param(pickle.dumps(Outer.Inner, 4), id="nested"),
    pytest.param(pickle.dumps(Outer.Inner, 2), id="nested-protocol-2"),
    pytest.param(pickle.dumps(Outer, 4), id="protocol-4"),
]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("class_pickle", CLASS_PICKLES)
def test_a_state_comes_back(class_pickle: bytes, protocol: int, compress: bool) -> None:
    """In a classic record one memo serves both pickles; a state that was made alone must not be
    shifted by what the class pickle puts there."""
    record = Record(class_pickle, pickle.dumps(STATE, protocol), b"")
    for _ in range(3):
        oid, record = record_from_classic(record_to_classic(OID, record, compress=compress))
        assert oid == OID
        loaded = pickle.loads(record.state_pickle)
        assert loaded == STATE
        assert loaded["a"] is loaded["b"]
        assert pickle.loads(record.class_pickle) is pickle.loads(class_pickle)


@pytest.mark.parametrize("class_pickle", CLASS_PICKLES)
def test_durus_4_reads_the_state_after_the_class(class_pickle: bytes) -> None:
    record = Record(class_pickle, pickle.dumps(STATE, 4), b"")
    unpickler = pickle.Unpickler(io.BytesIO(join_record(record)))
    unpickler.load()
    loaded = unpickler.load()
    assert loaded == STATE
    assert loaded["a"] is loaded["b"]


def test_what_is_compressed_already_is_not_compressed_once_more() -> None:
    for content, gains in [
        (os.urandom(1 << 18), False),
        (bytes(1 << 18), True),
        ((os.urandom(600) + bytes(600)) * 219, True),
        (os.urandom(1 << 16) + bytes(3 << 16), True),
        (os.urandom(1000), True),  # as 4.3 does
    ]:
        record = Record(CLASS, pickle.dumps(content, 4), b"")
        data = join_record(record, compress=True)
        assert data.startswith(CLASS + (b"x" if gains else b"\x80"))
        assert split_record(data) == record
    # It would be taken for compressed, if it stood there as it is.
    no_pickle = Record(CLASS, zlib.compress(os.urandom(1 << 18)), b"")
    assert split_record(join_record(no_pickle, compress=True)) == no_pickle


def test_what_4_3_wrote_goes_back_byte_for_byte() -> None:
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 2)
    pickler.dump(Outer)
    pickler.dump({"class": Outer, **STATE})
    classic = b"".join([OID, len(file.getvalue()).to_bytes(4, "big"), file.getvalue()])
    oid, record = record_from_classic(classic)
    assert pickle.loads(record.state_pickle)["class"] is Outer
    assert record_to_classic(oid, record) == classic


def test_what_is_no_pickle_comes_back_as_it_is() -> None:
    for record in (Record(b"", b"what is this", b""), Record(b"\x80\x02no pickle", b"state", b"")):
        assert join_record(record) == record.class_pickle + record.state_pickle
