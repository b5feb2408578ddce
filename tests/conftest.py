"""What the integration tests share: our wheels and Durus 4.3, built once for a run; and seeds.

A run may have several processes, the workers of pytest-xdist: they begin with the same seed, and
what one of them has built is there for all.
"""

import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.distributions import read_distributions
from scripts.environments import find_environment, make_environment, run
from scripts.wheels import build
from tests.seeds import SEED_LIMIT, Seeds
from tests.shared import Shared

_seeds = pytest.StashKey[Seeds]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="try many more random cases")
    parser.addoption("--seed", type=int, help="the first seed of random cases; else a fresh one")


def pytest_configure(config: pytest.Config) -> None:
    first = config.getoption("seed")
    if first is None:
        first = _from_controller(config).get("first_seed", random.randrange(SEED_LIMIT))
    config.stash[_seeds] = Seeds(first, is_long=config.getoption("long"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give a worker of pytest-xdist what it will find with `_from_controller`."""
    node.workerinput["first_seed"] = node.config.stash[_seeds].first


def _from_controller(config: pytest.Config) -> dict[str, Any]:
    """What the process that started this one has given it; empty if this is no worker."""
    return getattr(config, "workerinput", {})


def pytest_report_header(config: pytest.Config) -> str:
    return f"random cases begin with --seed {config.stash[_seeds].first}"


@pytest.fixture(scope="session")
def seeds(pytestconfig: pytest.Config) -> Seeds:
    """What random cases are made from."""
    return pytestconfig.stash[_seeds]


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Where things are built once for all processes of the run."""
    place = tmp_path_factory.getbasetemp()
    return Shared(place.parent if _from_controller(pytestconfig) else place)


@pytest.fixture(scope="session")
def wheels(shared: Shared) -> Path:
    """A folder with our wheels, built from the sdists, and those that they need."""

    def fill(folder: Path) -> None:
        distributions = read_distributions()
        for distribution in distributions.values():
            sdist, _ = build(distribution.folder, folder)
            sdist.unlink()
        for distribution in distributions.values():
            for requirement in distribution.requirements:
                if requirement.name not in distributions:
                    _fetch("download", "--dest", folder, str(requirement))

    return shared.make("wheels", fill)


@pytest.fixture(scope="session")
def durus43_sdist(shared: Shared) -> Path:
    """The source distribution of Durus 4.3, as its authors published it."""
    options = ("--no-deps", "--no-binary", "durus", "--dest")
    folder = shared.make(
        "durus43_sdist", lambda folder: _fetch("download", *options, folder, "durus==4.3")
    )
    (sdist,) = folder.iterdir()
    return sdist


@pytest.fixture(scope="session")
def durus43_wheel(durus43_sdist: Path, shared: Shared) -> Path:
    """The wheel of Durus 4.3, built from its source distribution (with a C compiler)."""
    folder = shared.make(
        "durus43_wheel",
        lambda folder: _fetch("wheel", "--no-deps", "--wheel-dir", folder, durus43_sdist),
    )
    (wheel,) = folder.iterdir()
    return wheel


@pytest.fixture(scope="session")
def durus43_python(durus43_wheel: Path, shared: Shared) -> Path:
    """The Python of an environment that has Durus 4.3 in it, and nothing else."""
    folder = shared.make(
        "durus43",
        lambda folder: make_environment(folder).pip("install", "--no-index", durus43_wheel),
    )
    return find_environment(folder).python


def _fetch(*arguments: str | Path) -> None:
    """Run pip where it needs a package index: without one, skip; but never in CI."""
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
    finished = run(sys.executable, *pip, *arguments, check=False)
    if finished.returncode != 0:
        reason = f"pip cannot fetch {arguments[-1]}: {finished.stderr.strip()}"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
