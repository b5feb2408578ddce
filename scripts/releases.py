"""What was released: the tags `durus-storage-5.1.0`, and what the repository held there."""

import tarfile
from pathlib import Path

from packaging.version import InvalidVersion, Version

from scripts.environments import run

__all__ = ["export_release", "read_released_file", "released_versions", "run_git", "tag_name"]


def tag_name(name: str, version: Version) -> str:
    """The tag of a release."""
    return f"{name}-{version}"


def released_versions(root: Path, name: str) -> list[Version]:
    """The versions of this distribution that have a tag, oldest first."""
    versions: list[Version] = []
    for tag in run_git(root, "tag", "--list", f"{name}-*").split():
        try:
            versions.append(Version(tag.removeprefix(f"{name}-")))
        except InvalidVersion:
            continue  # somebody's tag that is no release
    return sorted(versions)


def read_released_file(root: Path, name: str, version: Version, path: str) -> str:
    """A file of `packages/<name>` as it was released."""
    place = f"{tag_name(name, version)}:packages/{name}/{path}"
    return run_git(root, "show", place)


def export_release(root: Path, name: str, version: Version, target: Path) -> Path:
    """Write `packages/<name>` as it was released below `target`; its folder."""
    target.mkdir(parents=True, exist_ok=True)
    archive = target / f"{name}.tar"
    tag = tag_name(name, version)
    run_git(root, "archive", f"--output={archive}", tag, f"packages/{name}")
    with tarfile.open(archive) as files:
        files.extractall(target, filter="data")
    return target / "packages" / name


def run_git(root: Path, *arguments: str) -> str:
    """The output of a git command that must succeed."""
    return run("git", *arguments, folder=root).stdout
