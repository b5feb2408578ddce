"""The distributions of this workspace, as their own files describe them.

Used by the other scripts and by the integration tests.  Nothing is listed here that stands in
`packages/*/pyproject.toml` or follows from the folders: a new distribution or module needs no
change in any script.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

__all__ = [
    "ROOT",
    "TESTING",
    "Distribution",
    "find_closure",
    "is_for_testing",
    "parse_distribution",
    "read_distributions",
]

ROOT = Path(__file__).resolve().parent.parent

TESTING = "durus.testing"
"""The package for tests of storages and applications."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """One of `packages/*`."""

    name: str
    version: Version
    folder: Path
    requirements: tuple[Requirement, ...]
    """What it cannot run without."""
    optional_requirements: tuple[Requirement, ...]
    extra_modules: tuple[str, ...] = ()
    """Modules, and packages with all that is in them, which need one of the extras."""

    @property
    def source(self) -> Path:
        return self.folder / "src"

    def module_paths(self) -> Iterator[tuple[str, Path]]:
        """The dotted name and the path of each Python module that it contributes."""
        for path in sorted(self.source.rglob("*.py")):
            parts = path.relative_to(self.source).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path

    def runtime_modules(self) -> list[str]:
        """The modules that can be imported without any extra."""
        return [module for module, _ in self.module_paths() if not self.needs_extra(module)]

    def needs_extra(self, module: str) -> bool:
        """Whether a module of it can be imported with one of the extras only."""
        return any(f"{module}.".startswith(f"{extra}.") for extra in self.extra_modules)


def is_for_testing(module: str) -> bool:
    """Whether the module belongs to `durus.testing`."""
    return module == TESTING or module.startswith(f"{TESTING}.")


def parse_distribution(pyproject: str, folder: Path) -> Distribution:
    """The distribution that the text of a `pyproject.toml` in `folder` describes."""
    content = tomllib.loads(pyproject)
    project = content["project"]
    optional = project.get("optional-dependencies", {})
    return Distribution(
        name=canonicalize_name(project["name"]),
        version=Version(project["version"]),
        folder=folder,
        requirements=_parse_requirements(project.get("dependencies", ())),
        optional_requirements=_parse_requirements(
            [line for lines in optional.values() for line in lines]
        ),
        extra_modules=tuple(content.get("tool", {}).get("durus", {}).get("extra-modules", ())),
    )


def _parse_requirements(lines: Sequence[str]) -> tuple[Requirement, ...]:
    return tuple(Requirement(line) for line in lines)


def read_distributions(root: Path = ROOT) -> dict[str, Distribution]:
    """The distributions under `root`, by name; each after those that it requires."""
    found = {
        distribution.name: distribution
        for distribution in (
            parse_distribution(path.read_text(encoding="utf-8"), path.parent)
            for path in sorted(root.glob("packages/*/pyproject.toml"))
        )
    }
    below = {name: _required_names(found[name]) & found.keys() for name in found}
    return {name: found[name] for name in TopologicalSorter(below).static_order()}


def find_closure(name: str, distributions: Mapping[str, Distribution]) -> list[Distribution]:
    """A distribution and those of ours that it cannot run without, lower layers first."""
    needed = {name}
    for candidate in reversed(list(distributions.values())):
        if candidate.name in needed:
            needed |= _required_names(candidate)
    return [distribution for distribution in distributions.values() if distribution.name in needed]


def _required_names(distribution: Distribution) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in distribution.requirements}
