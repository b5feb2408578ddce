"""Virtual environments, for checks that need what is installed to be really installed.

Used by `scripts.oldest_layers` and by the integration tests.  Nothing of the environment that
runs them can be seen from inside, unless `lend_tools` is called.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CommandFailedError", "Environment", "find_environment", "make_environment", "run"]


class CommandFailedError(Exception):
    """A command that had to succeed did not; says what it printed."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment: Python, and what was installed into it."""

    python: Path

    def pip(self, *arguments: str | Path) -> str:
        """Run pip on this environment; what it printed."""
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        return run(*pip, "--python", self.python, *arguments).stdout

    def install(self, wheels: Path, *names: str, options: tuple[str, ...] = ()) -> None:
        """Install from a folder of wheels, and from nowhere else."""
        self.pip("install", "--no-index", "--find-links", wheels, *options, *names)

    def run(
        self, *arguments: str | Path, folder: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run its Python."""
        return run(self.python, *arguments, folder=folder, check=check)

    def lend_tools(self) -> None:
        """Make what is installed here (pytest and so on) importable there.

        The editable installs of our own packages are not lent: they are .pth files, which are
        not read in a folder that was itself added by a .pth file.
        """
        place = self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout
        borrowed = Path(place.strip(), "borrowed.pth")
        borrowed.write_text(sysconfig.get_path("purelib"), encoding="utf-8")

    def import_errors(self, package: str, *modules: str) -> dict[str, str]:
        """module -> message, of those that raise an ImportError when they are imported.

        They are modules of one package, and each is imported as if it were the first of it.
        """
        return dict(json.loads(self.run("-c", _IMPORT, package, *modules).stdout))


_IMPORT = """
import importlib, json, sys
_, package, *modules = sys.argv
errors = {}
for module in modules:
    try:
        importlib.import_module(module)
    except ImportError as error:
        errors[module] = str(error)
    for name in list(sys.modules):
        if name.partition(".")[0] == package:
            del sys.modules[name]
print(json.dumps(errors))
"""


def make_environment(folder: Path) -> Environment:
    """Make an environment without anything in it, not even pip."""
    venv.create(folder, symlinks=os.name != "nt")
    return find_environment(folder)


def find_environment(folder: Path) -> Environment:
    """The environment that was made in a folder."""
    return Environment(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def run(
    *command: str | Path, folder: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command; with `check`, CommandFailedError when it fails."""
    hidden = {"PYTHONPATH", "PIP_QUIET"}  # what is asked of pip here is its answer
    environment = {name: os.environ[name] for name in os.environ.keys() - hidden}
    finished = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if check and finished.returncode != 0:
        shown = " ".join(map(str, command))
        raise CommandFailedError(f"{shown}\n{finished.stdout}{finished.stderr}")
    return finished
