"""`LogWriter`: what it writes is a log at every mark, and leads to older revisions."""

from pathlib import Path

import pytest

from durus.file_system import OperatingSystem
from durus.interfaces import NO_TID, Oid, Tid
from durus.log import Log
from durus.log_file import LogFile
from durus.log_format import MARK_SIZE
from durus.log_header import FileHeader
from durus.log_index import LogIndex
from durus.log_record import encode_record
from durus.log_verify import verify_file
from durus.log_writer import LogWriter
from durus.testing.storage_contract import make_record, value_of

HEADER = FileHeader(database_id=bytes(16), file_id=bytes(range(16)), created_ns=1)


def make_file(path: Path) -> LogFile:
    system = OperatingSystem()
    return LogFile(system, str(path), system.create(str(path)))


def append(writer: LogWriter, tid: int, *numbers: int) -> None:
    oids = [Oid(number.to_bytes(8)) for number in numbers]
    writer.append(
        tid=Tid(tid),
        time_ns=tid,
        id=tid,
        next_oid=max([0, *(number + 1 for number in numbers)]),
        user="",
        note="",
        records=[(oid, encode_record(oid, make_record(tid))) for oid in oids],
    )


def test_older_revisions_are_found(tmp_path: Path) -> None:
    file = make_file(tmp_path / "file")
    writer = LogWriter(file, HEADER)
    for tid in range(1, 200):
        append(writer, tid, *range(tid % 3, 10, tid % 5 + 1))
    writer.finish()
    assert list(verify_file(file.path)) == []
    log = Log(file)
    assert log.tid == writer.tid == 199
    wanted = [tid for tid in range(199, 0, -1) if 7 in range(tid % 3, 10, tid % 5 + 1)]
    found = [value_of(r.record) for r in log.revisions(Oid((7).to_bytes(8)), log.tid)]
    assert found == wanted


def test_it_knows_where_everything_is(tmp_path: Path) -> None:
    file = make_file(tmp_path / "file")
    writer = LogWriter(file, HEADER)
    append(writer, 1, 0, 5, 300)
    append(writer, 2, 5)
    writer.finish()
    log = Log(file)
    assert list(writer.index.items()) == list(log.items())
    assert isinstance(writer.index, LogIndex)


def test_nothing_is_visible_before_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "file"
    file = make_file(path)
    writer = LogWriter(file, HEADER)
    for tid in range(1, 64):
        append(writer, tid, 0)
    writer.flush()
    assert Log(file).tid == NO_TID
    append(writer, 64, 0)
    writer.flush()
    assert Log(file).tid == 64
    size = path.stat().st_size
    writer.finish()
    assert path.stat().st_size == size  # that mark is enough
    append(writer, 65)
    writer.finish()
    assert Log(file).tid == 65
    path.write_bytes(path.read_bytes()[:-MARK_SIZE])


def test_without_transactions_it_is_an_empty_log(tmp_path: Path) -> None:
    file = make_file(tmp_path / "file")
    LogWriter(file, HEADER).finish()
    assert Log(file).tid == NO_TID
    assert list(verify_file(file.path)) == []


def test_tids_must_ascend(tmp_path: Path) -> None:
    file = make_file(tmp_path / "file")
    writer = LogWriter(file, HEADER)
    append(writer, 7, 0)
    with pytest.raises(ValueError, match="tid 7 does not come after tid 7"):
        append(writer, 7, 0)
    append(writer, 8, 0)
    writer.finish()
    assert list(verify_file(file.path)) == []
