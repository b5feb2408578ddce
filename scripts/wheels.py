"""Building the distributions, and checking what was built.

Used by `scripts.release` and by the integration tests, so that what is tested is what is
released.  Building fetches nothing: the build backend comes from the environment.
"""

import sys
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from scripts.distributions import Distribution
from scripts.environments import run

__all__ = ["TYPED_BY", "build", "find_wheel_faults", "read_metadata"]

TYPED_BY = "durus-persistent"
"""The one distribution that ships `py.typed`: every other requires it, and a second copy of the
file would be deleted with whichever is uninstalled first."""


def build(folder: Path, target: Path) -> tuple[Path, Path]:
    """Build the sdist of the distribution in `folder`, and from it the wheel, into `target`."""
    before = set(target.glob("*"))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, folder)
    built = set(target.glob("*")) - before
    (sdist,) = (path for path in built if path.name.endswith(".tar.gz"))
    (wheel,) = (path for path in built if path.suffix == ".whl")
    return sdist, wheel


def read_metadata(wheel: Path) -> Message:
    """The METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return BytesParser().parsebytes(archive.read(name))


def find_wheel_faults(wheel: Path, distribution: Distribution) -> list[str]:
    """What is wrong with a wheel of `distribution`; empty when it may be released."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        path.relative_to(distribution.source).as_posix() for _, path in distribution.module_paths()
    }
    if distribution.name == TYPED_BY:
        expected.add("durus/py.typed")
        if "durus/testing/__init__.py" in expected:
            expected.add("durus/testing/py.typed")  # pyright wants one in a regular package, too
    files = {name for name in names if ".dist-info/" not in name}
    compiled = {name for name in files if name.endswith((".so", ".pyd"))}
    faults = [f"it lacks {name}" for name in sorted(expected - files)]
    faults += [f"it should not hold {name}" for name in sorted(files - expected - compiled)]
    if "durus/__init__.py" in expected:
        faults.append("durus/__init__.py exists: nobody may own the namespace package")
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        faults.append("it lacks the LICENSE")
    metadata = read_metadata(wheel)
    if metadata["Version"] != str(distribution.version):
        faults.append(f"its version is {metadata['Version']}, not {distribution.version}")
    if metadata["Requires-Python"] != ">=3.11":
        faults.append(f"Requires-Python is {metadata['Requires-Python']}, not >=3.11")
    for line in metadata.get_all("Requires-Dist", []):
        requirement = Requirement(line)
        if requirement.name.startswith("durus-") and not _is_one_major(requirement.specifier):
            faults.append(f"it requires {requirement}, which is no range like >=5.0,<6")
    return faults


def _is_one_major(specifiers: SpecifierSet) -> bool:
    bounds = {specifier.operator: Version(specifier.version) for specifier in specifiers}
    return set(bounds) == {">=", "<"} and bounds["<"] == Version(str(bounds[">="].major + 1))
