"""Type checkers accept a program that is right, and find the mistakes in one that is wrong."""

import importlib.util
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("typing")
ROOT = FOLDER.parent.parent
RIGHT = FOLDER / "right.py"
PROGRAMS = FOLDER / "programs.py"
WRONG = FOLDER / "wrong.py"

needs_pyright = pytest.mark.skipif(
    importlib.util.find_spec("pyright") is None, reason="pyright is not installed"
)


def expected_errors() -> dict[int, str]:
    """The lines of wrong.py with a mistake, and mypy's code for it."""
    errors = {}
    for number, line in enumerate(WRONG.read_text().splitlines(), start=1):
        if match := re.search(r"# error: ([\w-]+)$", line):
            errors[number] = match[1]
    return errors


def run(*command: str | Path) -> str:
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode in (0, 1), result.stdout + result.stderr
    return result.stdout


def run_mypy(path: Path) -> dict[int, str]:
    output = run("mypy", "--strict", "--follow-imports=silent", "--no-pretty", path)
    return {
        int(number): code
        for number, code in re.findall(rf"{path.name}:(\d+): error: .*\[([\w-]+)\]$", output, re.M)
    }


def run_pyright(path: Path) -> dict[int, str]:
    output = run("pyright", "--pythonpath", sys.executable, "--outputjson", path)
    return {
        error["range"]["start"]["line"] + 1: error["message"]
        for error in json.loads(output)["generalDiagnostics"]
    }


@pytest.mark.parametrize("path", [RIGHT, PROGRAMS], ids=lambda path: path.name)
def test_mypy_accepts_what_is_right(path: Path) -> None:
    assert run_mypy(path) == {}


def test_mypy_finds_what_is_wrong() -> None:
    assert run_mypy(WRONG) == expected_errors()


@needs_pyright
@pytest.mark.parametrize("path", [RIGHT, PROGRAMS], ids=lambda path: path.name)
def test_pyright_accepts_what_is_right(path: Path) -> None:
    assert run_pyright(path) == {}


@needs_pyright
def test_pyright_finds_what_is_wrong() -> None:
    errors = run_pyright(WRONG)
    assert set(errors) == set(expected_errors()), errors


def test_what_is_right_runs() -> None:
    runpy.run_path(str(RIGHT))
