"""`hatch run release durus-storage 5.1.0`: check, build and tag one distribution.

Either everything is as it should be, and then the sdist and the wheel are in `dist/` and an
annotated tag is set, or one line says what is not, and nothing was changed.  Nothing is pushed
or uploaded: what to do next is printed.  See docs/releasing.md.
"""

import re
import sys
import tempfile
from pathlib import Path
from shutil import copy

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from scripts.distributions import ROOT, Distribution, read_distributions
from scripts.environments import CommandFailedError
from scripts.releases import released_versions, run_git, tag_name
from scripts.wheels import build, find_wheel_faults

__all__ = ["ReleaseRefusedError", "main", "release"]

_ENTRY = re.compile(r"^## \[(?P<version>[^\]]+)\] - (?P<date>.+)$", re.MULTILINE)
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


class ReleaseRefusedError(Exception):
    """What has to be put right first."""


def release(root: Path, name: str, wanted: str) -> list[Path]:
    """Release version `wanted` of the distribution `name`; the files that were built."""
    distributions = read_distributions(root)
    if name not in distributions:
        raise ReleaseRefusedError(f"there is no package {name}, only {', '.join(distributions)}")
    distribution = distributions[name]
    version = _parse_version(wanted)
    _check_version(root, distribution, version)
    notes = _read_notes(distribution, version)
    _check_repository(root)
    for requirement in distribution.requirements:
        if requirement.name in distributions:
            _check_lower_layer(root, distribution, requirement)
    built = _build(root, distribution)
    # Without --cleanup git takes the headings of the notes for comments, and drops them.
    options = ["--annotate", "--cleanup=whitespace", "--message", notes]
    run_git(root, "tag", *options, tag_name(name, version))
    return built


def _parse_version(wanted: str) -> Version:
    try:
        version = Version(wanted)
    except InvalidVersion:
        raise ReleaseRefusedError(f"{wanted!r} is no version; write one like 5.1.0") from None
    if str(version) != wanted:
        raise ReleaseRefusedError(f"write the version as {version}, not as {wanted}")
    if version.local or version.is_devrelease:
        raise ReleaseRefusedError(f"{version} is a development version, which cannot be released")
    return version


def _check_version(root: Path, distribution: Distribution, version: Version) -> None:
    released = released_versions(root, distribution.name)
    if released and version <= released[-1]:
        raise ReleaseRefusedError(
            f"{distribution.name} {released[-1]} is released already: "
            f"{version} must be a larger version"
        )
    if distribution.version != version:
        raise ReleaseRefusedError(
            f"packages/{distribution.name}/pyproject.toml says version "
            f"{distribution.version}, not {version}: change it and commit"
        )


def _read_notes(distribution: Distribution, version: Version) -> str:
    """The changelog's newest entry, which must be that of `version` and dated."""
    path = f"packages/{distribution.name}/CHANGELOG.md"
    text = (distribution.folder / "CHANGELOG.md").read_text(encoding="utf-8")
    entries = list(_ENTRY.finditer(text))
    if not entries or entries[0]["version"] != str(version):
        raise ReleaseRefusedError(
            f"the first entry of {path} must be '## [{version}] - YYYY-MM-DD'"
        )
    if not _DATE.fullmatch(entries[0]["date"]):
        raise ReleaseRefusedError(
            f"{path} says '{entries[0]['date']}' for {version}: write the date of the release"
        )
    end = entries[1].start() if len(entries) > 1 else len(text)
    notes = text[entries[0].end() : end].strip()
    if not notes:
        raise ReleaseRefusedError(f"the entry for {version} in {path} is empty")
    return f"{distribution.name} {version}\n\n{notes}\n"


def _check_repository(root: Path) -> None:
    branch = run_git(root, "rev-parse", "--abbrev-ref", "HEAD").strip()
    if branch != "main":
        raise ReleaseRefusedError(f"releases are made on the branch main, this is {branch}")
    changed = run_git(root, "status", "--porcelain").rstrip()
    if changed:
        raise ReleaseRefusedError(f"commit or remove first what is not committed:\n{changed}")


def _check_lower_layer(root: Path, distribution: Distribution, requirement: Requirement) -> None:
    released = released_versions(root, requirement.name)
    if not any(requirement.specifier.contains(v, prereleases=True) for v in released):
        raise ReleaseRefusedError(
            f"{distribution.name} requires {requirement}, of which no release is tagged: "
            f"release {requirement.name} first"
        )


def _build(root: Path, distribution: Distribution) -> list[Path]:
    with tempfile.TemporaryDirectory() as folder:
        sdist, wheel = build(distribution.folder, Path(folder))
        faults = find_wheel_faults(wheel, distribution)
        if faults:
            raise ReleaseRefusedError(f"the wheel is wrong: {'; '.join(faults)}")
        target = root / "dist"
        target.mkdir(exist_ok=True)
        return [Path(copy(path, target)) for path in (sdist, wheel)]


def main(arguments: list[str]) -> int:
    """The exit status: 0 when released, 1 when refused, 2 when misunderstood."""
    if len(arguments) != 2:
        print("usage: hatch run release PACKAGE VERSION", file=sys.stderr)
        return 2
    name, wanted = arguments
    try:
        built = release(ROOT, name, wanted)
    except (ReleaseRefusedError, CommandFailedError) as refusal:
        print(f"not released: {refusal}", file=sys.stderr)
        return 1
    files = " ".join(str(path.relative_to(ROOT)) for path in built)
    print(f"{name} {wanted} is built and tagged.  What is left to do:")
    print(f"  git push origin main {name}-{wanted}")
    print(f"  hatch publish {files}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
