"""Files that were written by the first release are read for ever, continued, and packed.

`golden/make_logs.py` wrote them.
"""

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from durus.file_storage import FileStorage
from durus.interfaces import NO_TID, ROOT_OID, Oid, Record, Tid
from durus.log_codec import Compression
from durus.log_record import SLOT_HEAD_SIZE, decode_record
from durus.log_verify import verify_file
from durus.testing.storage_contract import commit, make_record, value

GOLDEN = Path(__file__).with_name("golden")
FILES: dict[str, dict[str, list[tuple[int, str, str, str]]]] = json.loads(
    (GOLDEN / "logs.json").read_text()
)
CODECS = {
    "log-1-plain.durus": {0},
    "log-1-zstd.durus": {0, 1},
    "log-1-zstd-dictionary.durus": {0, 2},
    "log-1-zstd-raw-dictionary.durus": {0, 2},
}

Revisions = dict[Oid, list[tuple[Tid, Record]]]


def expected(name: str) -> Revisions:
    return {
        Oid(int(oid).to_bytes(8)): [
            (Tid(tid), Record(*map(bytes.fromhex, parts))) for tid, *parts in revisions
        ]
        for oid, revisions in FILES[name].items()
    }


def read(path: Path) -> Revisions:
    with closing(FileStorage(path, readonly=True)) as storage:
        oids = {oid for transaction in storage.transactions() for oid in transaction.oids}
        return {oid: [(r.tid, r.record) for r in storage.revisions(oid)] for oid in oids}


def find_codecs(path: Path) -> set[int]:
    codecs = set()
    with closing(FileStorage(path, readonly=True)) as storage:
        log = storage._shared.current()
        for transaction in log.walk(NO_TID, Tid(log.tid + 1)):
            for entry in transaction.entries():
                stored = decode_record(log.file.read(entry.slot + SLOT_HEAD_SIZE, entry.size))
                assert stored is not None
                codecs.add(stored.codec)
    return codecs


def test_every_golden_file_is_known() -> None:
    files = {path.name for path in GOLDEN.glob("log-*.durus")}
    assert files == FILES.keys() == CODECS.keys()


@pytest.fixture(params=sorted(FILES))
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Revisions]:
    path = tmp_path / "golden.durus"
    shutil.copy(GOLDEN / request.param, path)
    return path, expected(request.param)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_golden_file_is_read(name: str) -> None:
    path = GOLDEN / name
    before = path.read_bytes()
    assert read(path) == expected(name)
    assert find_codecs(path) == CODECS[name]
    assert list(verify_file(str(path))) == []
    assert path.read_bytes() == before


@pytest.mark.parametrize("compression", [None, "none", "zstd"])
def test_a_golden_file_is_continued_and_packed(
    golden: tuple[Path, Revisions], compression: Compression | None
) -> None:
    path, revisions = golden
    before = path.read_bytes()
    one = Oid((1).to_bytes(8))
    with closing(FileStorage(path, compression=compression)) as storage:
        for text in ("next", "next" * 200):
            tid = commit(storage, {one: make_record(text)}).tid
            revisions[one].insert(0, (tid, make_record(text)))
    assert path.read_bytes().startswith(before)
    assert read(path) == revisions
    with closing(FileStorage(path, compression=compression)) as storage:
        storage.pack()
        assert value(storage, ROOT_OID) == "root"
    assert read(path) == {oid: found[:1] for oid, found in revisions.items()}
    assert list(verify_file(str(path))) == []
