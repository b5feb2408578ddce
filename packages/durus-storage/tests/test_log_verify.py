"""Verify names what is wrong, with offset, tid and oid; and only that."""

import struct
from contextlib import closing
from pathlib import Path

import pytest

from durus.error import NotADatabaseError
from durus.file_format import Finding
from durus.file_storage import FileStorage
from durus.interfaces import ROOT_OID, Oid, Record, Tid
from durus.log_format import (
    Mark,
    encode_mark,
    encode_transaction,
)
from durus.log_header import (
    FileHeader,
    encode_file_header,
)
from durus.log_record import encode_record
from durus.log_verify import verify_file
from durus.testing.storage_contract import commit, create, make_record

FILE_ID = bytes(16)
ONE = Oid((1).to_bytes(8))
Written = list[tuple[Oid, int, bytes]]


def write_log(path: Path, *transactions: tuple[int, int, Written]) -> None:
    """A file of transactions: tid, next oid, records."""
    header = FileHeader(database_id=FILE_ID, file_id=FILE_ID, created_ns=0)
    content = encode_file_header(header)
    for tid, next_oid, records in transactions:
        _, transaction = encode_transaction(
            FILE_ID,
            len(content),
            tid=Tid(tid),
            time_ns=0,
            id=tid,
            next_oid=next_oid,
            records=records,
        )
        content += transaction
        content += encode_mark(FILE_ID, Mark(len(content), Tid(tid)))
    path.write_bytes(content)


def simple(oid: Oid, refs: bytes = b"") -> bytes:
    return encode_record(oid, Record(b"c", b"s", refs))


@pytest.mark.parametrize(
    ("transactions", "oid", "problem"),
    [
        ([(5, 2, [(ONE, 0, simple(ONE))]), (4, 2, [])], None, "tid"),
        ([(5, 2, [(ONE, 0, simple(ROOT_OID))])], ONE, "record of oid 0"),
        ([(5, 2, [(ONE, 0, simple(ONE)), (ROOT_OID, 0, simple(ROOT_OID))])], ROOT_OID, "ascend"),
        ([(5, 2, [(ONE, 77, simple(ONE))])], ONE, "wrong previous"),
        ([(5, 1, [(ONE, 0, simple(ONE))])], None, "next oid"),
        ([(5, 2, [(ONE, 0, simple(ONE, ROOT_OID))])], ONE, "refers to oid 0"),
        ([(5, 2, [(ONE, 0, simple(ONE, ONE + ONE))])], ONE, "references do not ascend"),
    ],
)
def test_what_a_wrong_writer_would_do_is_found(
    tmp_path: Path, transactions: list[tuple[int, int, Written]], oid: Oid | None, problem: str
) -> None:
    path = tmp_path / "file"
    write_log(path, *transactions)
    findings = list(verify_file(str(path)))
    assert any(found.oid == oid and problem in found.problem for found in findings)


def test_it_goes_on_after_damage_and_names_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with closing(FileStorage(path)) as storage:
        oids = create(storage, 3)
        for number, oid in enumerate(oids):
            commit(storage, {oid: make_record(f"needle-{number}")})
    content = bytearray(path.read_bytes())
    for number in (0, 2):
        content[content.index(b"needle-%d" % number)] ^= 1
    path.write_bytes(content)
    findings = list(verify_file(str(path)))
    assert [found.oid for found in findings] == [oids[0], oids[2]]
    assert all(found.tid is not None for found in findings)
    start = content.index(struct.pack(">Q", findings[0].tid or 0)) - 16
    content[start] ^= 1
    path.write_bytes(content)
    assert [f.oid for f in verify_file(str(path)) if f.oid] == [oids[2]]
    assert start in [found.offset for found in verify_file(str(path))]


def test_a_finding_reads_well() -> None:
    finding = Finding(300, Tid(7), ONE, "the record is damaged")
    assert str(finding) == "offset 300, tid 7, oid 1: the record is damaged"
    assert str(Finding(8, None, None, "so it is")) == "offset 8: so it is"


def test_what_is_no_log_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"text")
    with pytest.raises(NotADatabaseError):
        next(verify_file(str(path)))
