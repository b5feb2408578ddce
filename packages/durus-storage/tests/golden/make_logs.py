"""Writes the log files of this folder, and `logs.json`, which says what is in them.

Run by hand, once for each version of the format, and never again; what later releases add goes into
files of their own:

    python make_logs.py

`logs.json` has {file: {oid: [[tid, class pickle, state pickle, references], ...]}}: all revisions,
newest first; oids and tids as numbers, the rest as hexadecimal digits.  `test_golden_logs.py` reads
the files for ever.
"""

import json
import random
from contextlib import closing
from pathlib import Path

from durus.file_storage import FileStorage
from durus.file_system import OperatingSystem
from durus.interfaces import ROOT_OID, Oid, Record
from durus.log_header import FILE_HEADER_SIZE
from durus.log_open import make_missing_file
from durus.testing.storage_contract import commit, make_record
from durus.zstd_frames import train_dictionary

FOLDER = Path(__file__).parent
TEXT = "Files written today will be read for ever, by CI at least. "

CHANCE = random.Random(5)


def make_value(number: int) -> str:
    return f"customer {number}, {CHANCE.randbytes(6).hex()}, of {CHANCE.choice('ABC')} street"


def fill(path: Path) -> None:
    """Commit some objects: small ones, large ones, one that cannot be compressed."""
    with closing(FileStorage(path)) as storage:
        commit(storage, {ROOT_OID: make_record("root")}, created=[ROOT_OID])
        oids = list(storage.reserve_oids(12))
        records = {oid: make_record(make_value(number)) for number, oid in enumerate(oids)}
        records[oids[3]] = make_record(TEXT * 20, oids[5:8])
        records[oids[4]] = Record(b"any class", CHANCE.randbytes(600), b"")
        commit(storage, {ROOT_OID: make_record("root", oids), **records}, created=oids)
        commit(storage, {oids[5]: make_record(make_value(5)), oids[6]: make_record(TEXT * 30)})
    with path.open("ab") as file:  # as if killed while writing
        file.write(path.read_bytes()[FILE_HEADER_SIZE:][:60])
    with closing(FileStorage(path, durability="none")) as storage:
        commit(storage, {oids[5]: make_record(make_value(5))})
    with closing(FileStorage(path)) as storage:
        storage.reserve_oids(3)
        commit(storage, {oids[7]: make_record(make_value(7), [oids[8]])})


def read(path: Path) -> dict[int, list[list[object]]]:
    with closing(FileStorage(path, readonly=True)) as storage:
        oids = sorted({oid for transaction in storage.transactions() for oid in transaction.oids})
        return {
            int.from_bytes(oid): [
                [int(revision.tid), *(part.hex() for part in revision.record)]
                for revision in storage.revisions(Oid(oid))
            ]
            for oid in oids
        }


def main() -> None:
    samples = [make_record(make_value(number)) for number in range(2000)]
    contents = [record.class_pickle + record.state_pickle for record in samples]
    dictionaries = {
        "plain": None,
        "zstd": b"",
        "zstd-dictionary": train_dictionary(contents, 1024),
        "zstd-raw-dictionary": contents[0] + contents[1],
    }
    for name, dictionary in dictionaries.items():
        path = FOLDER / f"log-1-{name}.durus"
        make_missing_file(OperatingSystem(), str(path), dictionary=dictionary)
        fill(path)
    found = {path.name: read(path) for path in sorted(FOLDER.glob("log-1-*.durus"))}
    (FOLDER / "logs.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
