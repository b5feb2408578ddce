"""The import contract of the workspace, for import-linter (`hatch run contracts`).

All distributions contribute to one namespace package, so import-linter's own contract types
cannot tell them apart without lists of modules kept by hand.  This one reads from the folders
which distribution a module belongs to, and from each `pyproject.toml` what it may import:

* the standard library, itself, and the distributions that it requires;
* of another distribution of ours no private module, and no private name.

Imports for type checkers only count as well: the reader of a lower layer needs no higher one.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output
from packaging.utils import canonicalize_name

from scripts.distributions import Distribution, read_distributions

__all__ = ["DistributionContract", "find_violations"]

FREE_FOR_ALL = sys.stdlib_module_names | {
    "durus",
    "compression",
    "_typeshed",
    "typing_extensions",
}
"""`durus` is the namespace itself, and `compression` in the standard library since Python 3.14.
The last two are known to type checkers without being installed; that nobody imports them at run
time is found by the tests of the wheels, whose environments do not have them."""


class DistributionContract(Contract):
    """What import-linter calls."""

    type_name = "distributions"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        violations = list(find_violations(graph, read_distributions()))
        return ContractCheck(kept=not violations, metadata={"violations": violations})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for violation in check.metadata["violations"]:
            output.print_error(violation, bold=False)


def find_violations(graph: ImportGraph, distributions: Mapping[str, Distribution]) -> Iterator[str]:
    """One line for each import that the contract forbids."""
    owners = {
        module: distribution
        for distribution in distributions.values()
        for module, _ in distribution.module_paths()
    }
    for distribution in distributions.values():
        for module, path in distribution.module_paths():
            required = [*distribution.requirements]
            if distribution.needs_extra(module):
                required += distribution.optional_requirements
            allowed = {distribution.name, *(canonicalize_name(r.name) for r in required)}
            # What other versions of Python need is not installed here, and nobody can say what is
            # in it; but backports have the name that they are imported by.
            absent = {
                r.name.partition(".")[0] for r in required if r.marker and not r.marker.evaluate()
            }
            for line, imported, providers in _find_outer_imports(graph, module, owners):
                if not providers & allowed and imported not in absent:
                    yield (
                        f"{module} (line {line}) imports {imported}, but {distribution.name} does "
                        f"not require {' or '.join(sorted(providers)) or 'what provides it'}"
                    )
            for line, imported, name in _find_private_imports(path.read_text(encoding="utf-8")):
                if name == "_guard":  # it is there for every module, and imports nothing
                    continue
                owner = owners.get(f"{imported}.{name}") or owners.get(imported)
                if owner not in (None, distribution):
                    yield f"{module} (line {line}) imports {name or imported}, which is private"


def _find_outer_imports(
    graph: ImportGraph, module: str, owners: Mapping[str, Distribution]
) -> Iterator[tuple[int, str, set[str]]]:
    """(line, imported module, distributions that provide it); nothing for what all may import."""
    for imported in sorted(graph.find_modules_directly_imported_by(module)):
        if imported in owners:
            providers = {owners[imported].name}
        elif imported in FREE_FOR_ALL:
            continue
        else:
            names = packages_distributions().get(imported.partition(".")[0], ())
            providers = {canonicalize_name(name) for name in names}
        details = graph.get_import_details(importer=module, imported=imported)
        yield details[0]["line_number"], imported, providers


def _find_private_imports(source: str) -> Iterator[tuple[int, str, str]]:
    """(line, module, name) of every import of a private module, or of a private name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imports = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            imports = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in imports:
            parts = [*module.split("."), name]
            if any(part.startswith("_") and not part.endswith("__") for part in parts):
                yield node.lineno, module, name
