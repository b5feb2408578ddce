"""Durus 4.3 in the same environment: every module says what to do, and doing that helps.

Durus 4.x owns `durus/__init__.py`, and files with the same names as ours.  pip installs either
over the other without a word, and uninstalling 4.x afterwards deletes files of ours.
"""

from pathlib import Path

import pytest

from scripts.distributions import read_distributions
from scripts.environments import Environment, make_environment

DISTRIBUTIONS = read_distributions()
OURS = [module for d in DISTRIBUTIONS.values() for module in d.runtime_modules()]


def uninstall_durus4_and_reinstall(environment: Environment, wheels: Path) -> None:
    """The remedy that the error names."""
    environment.pip("uninstall", "-y", "durus")
    options = ("--force-reinstall", "--no-deps")
    environment.install(wheels, *DISTRIBUTIONS, options=options)


def assert_names_the_remedy(error: str) -> None:
    assert "Durus 4.x is installed in the same environment" in error
    assert "pip uninstall -y durus" in error
    assert "--force-reinstall" in error


@pytest.fixture(scope="module")
def ours_over_durus4(
    durus43_wheel: Path, wheels: Path, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    environment = make_environment(tmp_path_factory.mktemp("ours_over_durus4"))
    environment.pip("install", "--no-index", durus43_wheel)
    environment.install(wheels, *DISTRIBUTIONS)
    return environment


@pytest.fixture(scope="module")
def durus4_over_ours(
    durus43_wheel: Path, wheels: Path, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    environment = make_environment(tmp_path_factory.mktemp("durus4_over_ours"))
    environment.install(wheels, *DISTRIBUTIONS)
    environment.pip("install", "--no-index", durus43_wheel)
    return environment


def test_durus43_itself_works_when_it_is_alone(durus43_python: Path) -> None:
    code = "import durus._persistent; from durus.connection import Connection"
    Environment(durus43_python).run("-c", code)


def test_installed_over_durus4_every_module_names_the_remedy(
    ours_over_durus4: Environment,
) -> None:
    errors = ours_over_durus4.import_errors("durus", *OURS)
    assert list(errors) == OURS
    for error in errors.values():
        assert_names_the_remedy(error)


def test_the_remedy_helps_when_ours_came_second(
    ours_over_durus4: Environment, wheels: Path
) -> None:
    uninstall_durus4_and_reinstall(ours_over_durus4, wheels)
    assert ours_over_durus4.import_errors("durus", *OURS) == {}


def test_under_durus4_our_own_modules_name_the_remedy(durus4_over_ours: Environment) -> None:
    # Modules of the same name are those of 4.3 now; only what it does not have is still ours.
    (error,) = durus4_over_ours.import_errors("durus", "durus.interfaces").values()
    assert_names_the_remedy(error)


def test_the_remedy_helps_when_ours_came_first(durus4_over_ours: Environment, wheels: Path) -> None:
    uninstall_durus4_and_reinstall(durus4_over_ours, wheels)
    assert durus4_over_ours.import_errors("durus", *OURS) == {}


def test_uninstalling_durus4_without_reinstalling_breaks_ours(
    durus43_wheel: Path, wheels: Path, tmp_path: Path
) -> None:
    """Why the remedy says to reinstall."""
    environment = make_environment(tmp_path)
    environment.pip("install", "--no-index", durus43_wheel)
    environment.install(wheels, "durus-persistent")
    environment.pip("uninstall", "-y", "durus")
    (error,) = environment.import_errors("durus", "durus.persistent").values()
    assert "durus.persistent" in error
