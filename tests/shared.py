"""What takes long to build is built once for a run, however many processes the run has."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

__all__ = ["Shared"]


class Shared:
    """The fixture `shared`: folders for all processes of the run, which nobody changes later."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def make(self, name: str, fill: Callable[[Path], object]) -> Path:
        """A folder that one process has filled; others wait for it.

        When that fails, the next one who needs the folder tries again.
        """
        folder = self._place / name
        filled = self._place / f"{name}.filled"
        with (self._place / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not filled.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                filled.touch()
        return folder
