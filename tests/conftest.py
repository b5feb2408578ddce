"""What the integration tests share: our wheels and Durus 4.3, built once for a run; and seeds."""

import os
import random
import sys
from pathlib import Path

import pytest

from scripts.distributions import read_distributions
from scripts.environments import make_environment, run
from scripts.wheels import build
from tests.seeds import SEED_LIMIT, Seeds

_seeds = pytest.StashKey[Seeds]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="try many more random cases")
    parser.addoption("--seed", type=int, help="the first seed of random cases; else a fresh one")


def pytest_configure(config: pytest.Config) -> None:
    first = config.getoption("seed")
    if first is None:
        first = random.randrange(SEED_LIMIT)
    config.stash[_seeds] = Seeds(first, is_long=config.getoption("long"))


def pytest_report_header(config: pytest.Config) -> str:
    return f"random cases begin with --seed {config.stash[_seeds].first}"


@pytest.fixture(scope="session")
def seeds(pytestconfig: pytest.Config) -> Seeds:
    """What random cases are made from."""
    return pytestconfig.stash[_seeds]


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our wheels, built from the sdists, and those that they need."""
    folder = tmp_path_factory.mktemp("wheels")
    distributions = read_distributions()
    for distribution in distributions.values():
        sdist, _ = build(distribution.folder, folder)
        sdist.unlink()
    for distribution in distributions.values():
        for requirement in distribution.requirements:
            if requirement.name not in distributions:
                _fetch("download", "--dest", folder, str(requirement))
    return folder


@pytest.fixture(scope="session")
def durus43_sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of Durus 4.3, as its authors published it."""
    folder = tmp_path_factory.mktemp("durus43_sdist")
    _fetch("download", "--no-deps", "--no-binary", "durus", "--dest", folder, "durus==4.3")
    (sdist,) = folder.iterdir()
    return sdist


@pytest.fixture(scope="session")
def durus43_wheel(durus43_sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of Durus 4.3, built from its source distribution (with a C compiler)."""
    folder = tmp_path_factory.mktemp("durus43_wheel")
    _fetch("wheel", "--no-deps", "--wheel-dir", folder, durus43_sdist)
    (wheel,) = folder.iterdir()
    return wheel


@pytest.fixture(scope="session")
def durus43_python(durus43_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has Durus 4.3 in it, and nothing else."""
    environment = make_environment(tmp_path_factory.mktemp("durus43"))
    environment.pip("install", "--no-index", durus43_wheel)
    return environment.python


def _fetch(*arguments: str | Path) -> None:
    """Run pip where it needs a package index: without one, skip; but never in CI."""
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
    finished = run(sys.executable, *pip, *arguments, check=False)
    if finished.returncode != 0:
        reason = f"pip cannot fetch {arguments[-1]}: {finished.stderr.strip()}"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
