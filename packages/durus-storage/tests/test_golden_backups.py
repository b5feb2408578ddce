"""Backups that were made by the first release are restored for ever, and continued.

`golden/make_backups.py` made them.
"""

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from durus.backup import backup
from durus.file_storage import FileStorage
from durus.interfaces import ROOT_OID, Tid
from durus.log_verify import verify_file
from durus.restore import restore, verify_backup
from durus.testing.storage_contract import value

GOLDEN = Path(__file__).with_name("golden")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the backups, beside `source.durus`."""
    shutil.copy(GOLDEN / "backup-1-source.durus", tmp_path / "source.durus")
    return Path(shutil.copytree(GOLDEN / "backup-1", tmp_path / "backups"))


def restored(folder: Path, at: Tid | None = None) -> object:
    """The value of the root in what is restored."""
    target = folder.with_name(f"restored-{at}")
    restore(folder, target, at=at)
    assert list(verify_file(str(target))) == []
    with closing(FileStorage(target, readonly=True)) as storage:
        return value(storage, ROOT_OID)


def test_what_the_first_release_backed_up_is_restored_as_of_any_transaction(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["version"] == 1
    assert [file["last_tid"] for file in manifest["files"]] == sorted(
        file["last_tid"] for file in manifest["files"]
    )
    assert [restored(folder, file["last_tid"]) for file in manifest["files"]] == [1, 2, 3, 4]
    assert restored(folder, manifest["files"][0]["first_tid"]) == 0
    assert restored(folder) == 4
    assert list(verify_backup(folder)) == []


def test_the_backups_of_the_first_release_are_continued(folder: Path) -> None:
    source = folder.with_name("source.durus")
    before = json.loads((folder / "manifest.json").read_text())
    result = backup(source, folder)
    assert (result.kind, result.transactions) == ("incremental", 1)
    assert restored(folder) == 5
    after = json.loads((folder / "manifest.json").read_text())
    assert after["files"][:-1] == before["files"]
    assert after["files"][-1].keys() == before["files"][-1].keys()
    assert after.keys() == before.keys()
