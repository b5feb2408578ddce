"""Where it is measured: the environment of the peers, and the machine.

The peers are the packages that their authors have published, in a virtual environment of their
own (Durus 4.3 cannot be installed beside Durus 5), which is made once and kept.
"""

import os
import platform
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

from scripts.environments import CommandFailedError, make_environment, run

__all__ = ["CACHE_FOLDER", "describe_machine", "prepare_peers"]

CACHE_FOLDER = Path(__file__).resolve().parent.parent / ".bench-cache"
"""Here is the environment of the peers, and while benchmarks run their databases; not in git."""

_REQUIREMENTS = ("durus==4.3", "ZODB>=6,<7", "BTrees")


def prepare_peers(folder: Path = CACHE_FOLDER) -> Path:
    """The Python of the environment with the peers; CommandFailedError if it cannot be made."""
    folder.mkdir(exist_ok=True)
    (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    place = folder / f"peers-{sys.implementation.cache_tag}"
    complete = place / "complete"
    python = place / "bin" / "python"
    wanted = " ".join(_REQUIREMENTS)
    if not complete.exists() or complete.read_text(encoding="utf-8") != wanted:
        print(f"installing {wanted} into {place} ...", file=sys.stderr)
        shutil.rmtree(place, ignore_errors=True)
        make_environment(place).pip("install", "--quiet", *_REQUIREMENTS)
        complete.write_text(wanted, encoding="utf-8")  # last: what an interrupt leaves is no use
    return python


def describe_machine(folder: Path) -> dict[str, str]:
    """What the figures depend on.

    folder: where the databases are.
    """
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _describe_commit(),
        "CPU": f"{os.cpu_count()} x {_read_cpu_model()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "file system": _find_file_system(folder),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def _describe_commit() -> str:
    try:
        described = run("git", "describe", "--always", "--dirty", folder=CACHE_FOLDER.parent)
    except (CommandFailedError, FileNotFoundError):
        return "unknown"
    return described.stdout.strip()


def _read_cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except FileNotFoundError:
        pass
    return platform.processor() or platform.machine()


def _find_file_system(folder: Path) -> str:
    """The type of the file system that `folder` is on."""
    place = folder.resolve()
    found = {}
    try:
        with open("/proc/self/mounts", encoding="utf-8") as mounts:
            for line in mounts:
                _, mounted_at, kind, *_ = line.split()
                found[Path(mounted_at)] = kind  # the last one hides those before
    except FileNotFoundError:
        return "unknown"
    return next((found[p] for p in (place, *place.parents) if p in found), "unknown")
