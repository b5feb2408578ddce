"""`durus verify`."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

Durus = Callable[..., "subprocess.CompletedProcess[str]"]


def damage(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_sound_file_is_said_to_be_sound(durus: Durus, database: Path) -> None:
    finished = durus("verify", database)
    assert (finished.returncode, finished.stdout) == (0, f"{database}: sound\n")
    report = json.loads(durus("verify", database, "--json").stdout)
    assert report == {"path": str(database), "format": "log", "sound": True, "findings": []}


def test_damage_is_named_with_its_oid_and_offset(durus: Durus, database: Path) -> None:
    place = database.read_bytes().rindex(b"BTree")
    damage(database, place)
    finished = durus("verify", database)
    assert (finished.returncode, finished.stderr) == (1, "")
    *findings, summary = finished.stdout.splitlines()
    assert summary == f"{database}: {len(findings)} finding{'s' if len(findings) > 1 else ''}"
    assert all(line.startswith(f"{database}: offset ") for line in findings)
    assert any("oid 0" in line or "oid 1" in line for line in findings)


def test_damage_is_named_in_json_too(durus: Durus, database: Path) -> None:
    damage(database, database.read_bytes().rindex(b"BTree"))
    finished = durus("verify", database, "--json")
    assert (finished.returncode, finished.stderr) == (1, "")
    report = json.loads(finished.stdout)
    assert not report["sound"]
    (finding,) = (f for f in report["findings"] if f["oid"] is not None)
    assert {"offset", "tid", "oid", "problem"} == finding.keys()
    assert finding["oid"] in (0, 1)
    assert 0 < finding["offset"] <= len(database.read_bytes())


def test_a_damaged_header_is_damage(durus: Durus, database: Path) -> None:
    damage(database, 20)
    finished = durus("verify", database)
    assert (finished.returncode, finished.stderr) == (1, "")
    assert finished.stdout.startswith(f"{database}: offset 0: ")
    report = json.loads(durus("verify", database, "--json").stdout)
    assert [finding["offset"] for finding in report["findings"]] == [0]


def test_verifying_changes_nothing(durus: Durus, database: Path) -> None:
    before = database.read_bytes(), database.stat().st_mtime_ns
    durus("verify", database)
    assert (database.read_bytes(), database.stat().st_mtime_ns) == before
    assert [path.name for path in database.parent.iterdir()] == [database.name]
