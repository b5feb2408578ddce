"""`hatch run types`: mypy --strict over everything that is Python here.

The unit tests of each distribution are a run of their own, since test files of several
distributions may have the same name, which one run refuses.
"""

import subprocess
import sys

from scripts.distributions import ROOT, read_distributions

__all__ = ["main"]


def main(options: list[str]) -> int:
    """The worst exit status of the runs of mypy; all are run."""
    distributions = read_distributions().values()
    shared = [*(d.source for d in distributions), ROOT / "scripts", ROOT / "tests"]
    shared += [ROOT / "examples", ROOT / "bench", ROOT / "conftest.py"]
    runs = [shared, *([distribution.folder / "tests"] for distribution in distributions)]
    worst = 0
    for run in runs:
        paths = [
            path.relative_to(ROOT) for path in run if path.is_file() or any(path.rglob("*.py"))
        ]
        if paths:
            print("mypy", *paths, flush=True)
            command = [sys.executable, "-m", "mypy", *options, *map(str, paths)]
            worst = max(worst, subprocess.run(command, cwd=ROOT, check=False).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
