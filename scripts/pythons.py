"""`hatch run pythons`: the tests on every supported Python that is found on the PATH.

hatch would download those that are missing, and fail where it cannot; so it is asked only for
those that are there.
"""

import subprocess
import sys

__all__ = ["main"]

VERSIONS = ("3.11", "3.12", "3.13", "3.14")  # those of the matrix in pyproject.toml


def main(options: list[str]) -> int:
    """The worst exit status of pytest."""
    worst = 0
    for version in VERSIONS:
        if _is_there(version):
            command = ["hatch", "run", f"pythons.py{version}:test", *options]
            worst = max(worst, subprocess.run(command, check=False).returncode)
        else:
            print(f"Python {version}: not found, not tested", flush=True)
    return worst


def _is_there(version: str) -> bool:
    # A name on the PATH is not enough: pyenv has some that only say what to install.
    try:
        found = subprocess.run(
            [f"python{version}", "-c", ""], stderr=subprocess.DEVNULL, check=False
        )
    except FileNotFoundError:
        return False
    return found.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
