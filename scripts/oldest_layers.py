"""`hatch run oldest`: each layer against the oldest lower layers that it claims to work with.

Here all layers change together, so a range such as `durus-persistent>=5.0,<6` would soon be a
promise that nobody keeps.  Therefore the unit tests of each distribution run in an environment
where what it requires of ours is the oldest release that the range allows, built from its tag.
A layer that was never released is taken from the working tree; where that is so of all below,
there is nothing to test, and a line says so.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from scripts.distributions import (
    ROOT,
    Distribution,
    find_closure,
    parse_distribution,
    read_distributions,
)
from scripts.environments import Environment, make_environment
from scripts.releases import export_release, read_released_file, released_versions
from scripts.wheels import build

__all__ = ["choose_oldest", "main", "make_oldest_environment"]


def choose_oldest(
    root: Path, distribution: Distribution, distributions: Mapping[str, Distribution]
) -> dict[str, Version]:
    """For each of our layers below `distribution`, the oldest release that fits.

    A release fits when the ranges of all that were chosen above it allow it; so one choice can
    raise another, and never lower it.  Layers without a fitting release are left out.
    """
    ranges: dict[str, SpecifierSet] = {}
    chosen: dict[str, Version] = {}
    waiting = [distribution]
    while waiting:
        for requirement in waiting.pop().requirements:
            name = requirement.name
            if name not in distributions:
                continue
            ranges[name] = ranges.get(name, SpecifierSet()) & requirement.specifier
            fitting = [v for v in released_versions(root, name) if ranges[name].contains(v)]
            if fitting and chosen.get(name) != fitting[0]:
                chosen[name] = fitting[0]
                pyproject = read_released_file(root, name, fitting[0], "pyproject.toml")
                waiting.append(parse_distribution(pyproject, root))
    return chosen


def make_oldest_environment(
    root: Path,
    distribution: Distribution,
    distributions: Mapping[str, Distribution],
    chosen: Mapping[str, Version],
    folder: Path,
) -> Environment:
    """An environment in `folder` with `distribution` above the chosen releases, and pytest."""
    wheels = folder / "wheels"
    for layer in find_closure(distribution.name, distributions):
        version = chosen.get(layer.name)
        source = export_release(root, layer.name, version, folder) if version else layer.folder
        build(source, wheels)
    environment = make_environment(folder / "environment")
    environment.install(wheels, distribution.name)
    environment.lend_tools()
    return environment


def main(root: Path = ROOT) -> int:
    """The worst exit status of pytest; all distributions are tested."""
    worst = 0
    distributions = read_distributions(root)
    for distribution in distributions.values():
        if find_closure(distribution.name, distributions) == [distribution]:
            continue
        chosen = choose_oldest(root, distribution, distributions)
        if not chosen:
            print(f"{distribution.name}: no layer below it has a tagged release yet")
            continue
        shown = ", ".join(f"{name} {version}" for name, version in chosen.items())
        print(f"{distribution.name} against {shown}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            environment = make_oldest_environment(
                root, distribution, distributions, chosen, Path(folder)
            )
            options = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
            tests = distribution.folder / "tests"
            finished = environment.run(*options, tests, folder=root, check=False)
        print(finished.stdout, finished.stderr, sep="")
        worst = max(worst, finished.returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
