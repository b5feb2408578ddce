"""The import contract refuses what it should; `hatch run contracts` applies it to the real code."""

from pathlib import Path

from grimp import ImportGraph
from packaging.requirements import Requirement
from packaging.version import Version

from scripts.contracts import find_violations
from scripts.distributions import Distribution


def make_distribution(
    folder: Path, name: str, requires: list[str], modules: dict[str, str]
) -> Distribution:
    for module, source in modules.items():
        path = folder / name / "src" / "durus" / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return Distribution(
        name, Version("5.0.0"), folder / name, tuple(map(Requirement, requires)), ()
    )


def find(folder: Path, low: dict[str, str], high: dict[str, str]) -> list[str]:
    """The violations of two distributions, of which durus-high requires durus-low."""
    distributions = [
        make_distribution(folder, "durus-low", [], low),
        make_distribution(folder, "durus-high", ["durus-low>=5.0,<6"], high),
    ]
    graph = ImportGraph()
    for module in [*low, *high]:
        graph.add_module(f"durus.{module}")
    for module, source in (low | high).items():
        for number, line in enumerate(source.splitlines(), 1):
            imported = line.split()[1]
            graph.add_import(
                importer=f"durus.{module}",
                imported=imported,
                line_number=number,
                line_contents=line,
            )
    return list(find_violations(graph, {d.name: d for d in distributions}))


def test_downward_imports_and_the_standard_library_are_allowed(tmp_path: Path) -> None:
    low = {"a": "import pickle", "_b": "from durus.a import x\nfrom durus.a import _y"}
    assert find(tmp_path, low, {"c": "from durus.a import x\nimport os"}) == []


def test_an_upward_import_is_refused(tmp_path: Path) -> None:
    violations = find(tmp_path, {"a": "import sys\nimport durus.c"}, {"c": ""})
    assert violations == [
        "durus.a (line 2) imports durus.c, but durus-low does not require durus-high"
    ]


def test_a_package_that_is_not_required_is_refused(tmp_path: Path) -> None:
    violations = find(tmp_path, {"a": "import pytest"}, {})
    assert violations == ["durus.a (line 1) imports pytest, but durus-low does not require pytest"]


def test_a_backport_that_this_python_does_not_need_is_allowed(tmp_path: Path) -> None:
    distribution = make_distribution(
        tmp_path, "durus-low", ["later.thing; python_version < '3'"], {"a": ""}
    )
    graph = ImportGraph()
    for number, imported in enumerate(("later", "compression", "never"), 1):
        graph.add_import(
            importer="durus.a", imported=imported, line_number=number, line_contents=""
        )
    (violation,) = find_violations(graph, {"durus-low": distribution})
    assert violation.startswith("durus.a (line 3) imports never")


def test_a_private_name_of_another_distribution_is_refused(tmp_path: Path) -> None:
    violations = find(tmp_path, {"a": ""}, {"c": "from durus.a import _x"})
    assert violations == ["durus.c (line 1) imports _x, which is private"]


def test_a_private_module_of_another_distribution_is_refused(tmp_path: Path) -> None:
    violations = find(tmp_path, {"_b": ""}, {"c": "import durus._b"})
    assert violations == ["durus.c (line 1) imports durus._b, which is private"]
