"""Whole programs that were written for Durus 4.3 print the same here, unchanged.

The programs are in `classic_programs.md`.  Each runs in folders of its own with both systems.
"""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.test_docs import FILE_NAME, Block, read_blocks

PROGRAMS = [
    block
    for block in read_blocks(Path(__file__).with_name("classic_programs.md"))
    if not FILE_NAME.match(block.code)
]


def run(python: str | Path, program: Block, folder: Path) -> str:
    """What the program prints."""
    folder.mkdir()
    for name, code in {**program.files, "program.py": program.code}.items():
        (folder / name).write_text(code, encoding="utf-8")
    finished = subprocess.run(
        [python, "program.py"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("program", PROGRAMS, ids=[program.name for program in PROGRAMS])
def test_a_program_for_durus_43_prints_the_same_here(
    program: Block, durus43_python: Path, tmp_path: Path
) -> None:
    here = run(sys.executable, program, tmp_path / "here")
    assert here
    # The server of 4.3 packs while it serves: what a client hears of that depends on the moment,
    # and now and then it hangs.
    expected = ""
    for attempt in range(3):
        with suppress(subprocess.TimeoutExpired):
            expected = run(durus43_python, program, tmp_path / f"durus43-{attempt}")
            if expected == here:
                return
    assert here == expected
