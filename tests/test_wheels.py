"""Each distribution works when it is installed from its wheel, alone with what it requires.

The applications in `wheels/` are what a user's program would be: they run, and type checkers
accept the right ones and refuse the wrong ones, on exactly the lines marked `# error`.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from scripts.distributions import Distribution, find_closure, read_distributions
from scripts.environments import Environment, find_environment, make_environment, run
from scripts.wheels import find_wheel_faults, read_metadata
from tests.shared import Shared

APPS = Path(__file__).parent / "wheels"
DISTRIBUTIONS = read_distributions()
NAMES = list(DISTRIBUTIONS)

RIGHT = [
    ("durus-persistent", "persistent_app.py"),
    ("durus-storage", "storage_app.py"),
    ("durus-net", "net_app.py"),
]
WRONG = [
    ("durus-persistent", "wrong_persistent_app.py"),
    ("durus-storage", "wrong_storage_app.py"),
]


def find_required(name: str) -> set[str]:
    """A distribution and all that it requires, as its pyproject.toml says it."""
    return {distribution.name for distribution in find_closure(name, DISTRIBUTIONS)}


@pytest.fixture(scope="session")
def environments(wheels: Path, shared: Shared) -> Callable[[str], Environment]:
    """environments(name): an environment into which only this distribution was installed."""

    def get(name: str) -> Environment:
        return find_environment(
            shared.make(name, lambda folder: make_environment(folder).install(wheels, name))
        )

    return get


def find_wheel(wheels: Path, distribution: Distribution) -> Path:
    (wheel,) = wheels.glob(f"{distribution.name.replace('-', '_')}-*.whl")
    return wheel


@pytest.mark.parametrize("name", NAMES)
def test_a_wheel_holds_what_it_should_and_nothing_else(name: str, wheels: Path) -> None:
    distribution = DISTRIBUTIONS[name]
    assert find_wheel_faults(find_wheel(wheels, distribution), distribution) == []


def test_no_module_is_in_two_distributions() -> None:
    modules = [module for d in DISTRIBUTIONS.values() for module, _ in d.module_paths()]
    assert sorted(modules) == sorted(set(modules))


@pytest.mark.parametrize("name", NAMES)
def test_installing_one_brings_only_what_it_requires(
    name: str, environments: Callable[[str], Environment]
) -> None:
    rows = json.loads(environments(name).pip("list", "--format", "json"))
    listed = {canonicalize_name(row["name"]) for row in rows}
    required = {
        canonicalize_name(r.name)
        for d in find_closure(name, DISTRIBUTIONS)
        for r in d.requirements
        if r.marker is None or r.marker.evaluate()
    }
    assert listed >= required | {name}
    # Packages of others may bring more.
    assert (listed if required <= set(NAMES) else listed & set(NAMES)) == find_required(name)


def test_what_packages_of_others_are_needed() -> None:
    needed = {
        d.name: {r.name for r in d.requirements if r.name not in NAMES}
        for d in DISTRIBUTIONS.values()
    }
    assert {name: found for name, found in needed.items() if found} == {
        "durus-storage": {"backports.zstd"},
        "durus-tools": {"click", "rich"},
    }


def test_a_client_needs_no_storage_layer() -> None:
    assert find_required("durus-net") == {"durus-net", "durus-persistent"}


@pytest.mark.parametrize("name", NAMES)
def test_every_module_can_be_imported(
    name: str, environments: Callable[[str], Environment]
) -> None:
    for module in DISTRIBUTIONS[name].runtime_modules():
        environments(name).run("-W", "error", "-c", f"import {module}")


def test_the_contract_for_storages_needs_pytest_only(wheels: Path, tmp_path: Path) -> None:
    environment = make_environment(tmp_path)
    environment.install(wheels, "durus-persistent")
    environment.lend_tools()
    environment.run("-c", "import durus.testing.storage_contract")
    extra = read_metadata(find_wheel(wheels, DISTRIBUTIONS["durus-persistent"]))
    assert extra.get_all("Provides-Extra") == ["testing", "transaction"]


@pytest.mark.parametrize(("name", "app"), RIGHT)
def test_a_right_application_runs(
    name: str, app: str, environments: Callable[[str], Environment], tmp_path: Path
) -> None:
    finished = environments(name).run(APPS / app, folder=tmp_path)
    assert finished.stdout.splitlines()[-1] == f"{Path(app).stem} works"


@pytest.mark.parametrize("find_errors", ["mypy", "pyright"])
@pytest.mark.parametrize(("name", "app"), RIGHT + WRONG)
def test_type_checkers_refuse_the_marked_lines_and_no_others(
    name: str,
    app: str,
    find_errors: str,
    environments: Callable[[str], Environment],
    tmp_path: Path,
) -> None:
    copy = tmp_path / app
    shutil.copy(APPS / app, copy)
    python = environments(name).python
    find = find_mypy_errors if find_errors == "mypy" else find_pyright_errors
    found = find(copy, python)
    lines = copy.read_text(encoding="utf-8").splitlines()
    expected = {number for number, line in enumerate(lines, 1) if line.endswith("# error")}
    assert set(found) == expected, found


def find_mypy_errors(app: Path, python: Path) -> dict[int, str]:
    """line -> message, as `mypy --strict` sees the application."""
    options = ["--strict", "--config-file=", "--cache-dir", str(app.parent / "cache")]
    options += ["--no-error-summary", "--output=json", "--python-executable", str(python)]
    finished = run(sys.executable, "-m", "mypy", *options, app.name, folder=app.parent, check=False)
    assert finished.stderr == ""
    reports = map(json.loads, finished.stdout.splitlines())
    return {row["line"]: row["message"] for row in reports if row["severity"] == "error"}


def find_pyright_errors(app: Path, python: Path) -> dict[int, str]:
    """line -> message, as pyright sees it in strict mode."""
    configuration = {"typeCheckingMode": "strict", "include": [app.name]}
    (app.parent / "pyrightconfig.json").write_text(json.dumps(configuration))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", str(python)]
    finished = run(*command, folder=app.parent, check=False)
    report = json.loads(finished.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    rows = report["generalDiagnostics"]
    return {
        row["range"]["start"]["line"] + 1: row["message"]
        for row in rows
        if row["severity"] == "error"
    }
