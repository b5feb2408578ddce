"""The documentation tells the truth: each block of Python in it runs, as a program of its own.

A block that begins with a comment such as `# model.py` is a file that the later blocks of the
page import.  A block must print the block of text that follows it, or what is said in comments
after its calls of print: `print(1 + 1)  # 2`; in either, ` ...` at the end of a line stands for
more.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted(
    [
        REPOSITORY / "README.md",
        *REPOSITORY.glob("docs/*.md"),
        *REPOSITORY.glob("packages/*/README.md"),
    ]
)

FENCED = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (\w+\.py)\n")
PRINTED = re.compile(r"^\s*print\(.*\)  # (.*)$", re.MULTILINE)


class Block(NamedTuple):
    """A block of a page, and the files that its page has shown before."""

    name: str
    code: str
    printed: list[str]
    files: dict[str, str]


def read_blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    blocks: list[Block] = []
    files: dict[str, str] = {}
    for match in FENCED.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        name = f"{page.relative_to(REPOSITORY)}:{line}"
        printed = (match[2] or "").splitlines() or PRINTED.findall(match[1])
        blocks.append(Block(name, match[1], printed, dict(files)))
        if file_name := FILE_NAME.match(match[1]):
            files[file_name[1]] = match[1]
    return blocks


BLOCKS = [block for page in PAGES for block in read_blocks(page)]


@pytest.mark.parametrize("block", BLOCKS, ids=[block.name for block in BLOCKS])
def test_a_block_of_python_runs(block: Block, tmp_path: Path) -> None:
    for file_name, code in block.files.items():
        (tmp_path / file_name).write_text(code, encoding="utf-8")
    file_name_match = FILE_NAME.match(block.code)
    program = tmp_path / (file_name_match[1] if file_name_match else "program.py")
    program.write_text(block.code, encoding="utf-8")
    # Pyramid itself imports what is deprecated.
    warnings = [] if "import Configurator" in block.code else ["-W", "error"]
    run = subprocess.run(
        [sys.executable, *warnings, program.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    if block.printed:
        printed = run.stdout.splitlines()
        for i, line in enumerate(block.printed[: len(printed)]):
            if line.endswith(" ...") and printed[i].startswith(line[:-4]):
                printed[i] = line
        assert printed == block.printed


def test_the_guide_has_blocks() -> None:
    assert any(block.name.startswith("docs/objects.md") for block in BLOCKS)
