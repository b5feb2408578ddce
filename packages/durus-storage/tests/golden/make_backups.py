"""Writes the folder `backup-1` here, and `backup-1-source.durus`, the log that it has backups of.

Run by hand, once for each version of the manifest, and never again:

    python make_backups.py

`test_golden_backups.py` restores the backups for ever, and continues them.
"""

from contextlib import closing
from pathlib import Path

from durus.backup import backup
from durus.file_storage import FileStorage
from durus.interfaces import ROOT_OID
from durus.testing.storage_contract import commit, make_record

FOLDER = Path(__file__).parent


def main() -> None:
    path, folder = FOLDER / "backup-1-source.durus", FOLDER / "backup-1"
    with closing(FileStorage(path)) as storage:
        commit(storage, {ROOT_OID: make_record(0)}, created=[ROOT_OID])
        commit(storage, {ROOT_OID: make_record(1)})
        backup(path, folder)
        commit(storage, {ROOT_OID: make_record(2)})
        backup(path, folder)
        storage.pack()
        commit(storage, {ROOT_OID: make_record(3)})
        backup(path, folder)
        commit(storage, {ROOT_OID: make_record(4)})
        backup(path, folder)
        commit(storage, {ROOT_OID: make_record(5)})


if __name__ == "__main__":
    main()
