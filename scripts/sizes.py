"""`hatch run sizes`: the lines of code of each distribution, beside its budget.

Size is a feature.  A line counts when it holds code: blank lines, comments and docstrings are
free.  So are tests, also those that ship as `durus.testing`: they have a row of their own.
Going over a budget fails nothing, but needs a reason.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

from scripts.distributions import is_for_testing, read_distributions

__all__ = ["count_c_lines", "count_python_lines", "main"]

BUDGETS = {
    "durus-persistent": 2500,
    "durus-storage": 4500,
    "durus-net": 3000,
    "durus-tools": 5000,
}
C_BUDGETS = {"durus-persistent": 1500}
MODULE_LINES_MAX = 500

_LAYOUT = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}
_C_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


def count_python_lines(source: str) -> int:
    """The lines of Python that hold code; a string that is a statement is a docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def count_c_lines(source: str) -> int:
    """The lines of C that hold code."""
    code = _C_COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), source)
    return sum(1 for line in code.splitlines() if line.strip())


def main() -> None:
    """Print the table, and then each module that is long enough to be two."""
    long_modules: list[str] = []
    print(f"{'lines of code':<28}{'used':>7}{'budget':>8}")
    for distribution in read_distributions().values():
        used = for_testing = 0
        for module, path in distribution.module_paths():
            source = path.read_text(encoding="utf-8")
            if is_for_testing(module):
                for_testing += count_python_lines(source)
                continue
            used += count_python_lines(source)
            total = source.count("\n")
            if total > MODULE_LINES_MAX:
                name = path.relative_to(distribution.source)
                long_modules.append(f"{name} has {total} lines: is there a second noun in it?")
        _print_row(distribution.name, used, BUDGETS.get(distribution.name))
        if for_testing:
            _print_row(f"{distribution.name}, testing", for_testing, None)
        used = sum(_count_c_file(path) for path in distribution.source.rglob("*.[ch]"))
        if used:
            _print_row(f"{distribution.name}, C", used, C_BUDGETS.get(distribution.name))
    print("\n".join(long_modules))


def _count_c_file(path: Path) -> int:
    return count_c_lines(path.read_text(encoding="utf-8"))


def _print_row(what: str, used: int, budget: int | None) -> None:
    verdict = "  OVER" if budget is not None and used > budget else ""
    print(f"{what:<28}{used:>7}{'' if budget is None else budget:>8}{verdict}")


if __name__ == "__main__":
    main()
