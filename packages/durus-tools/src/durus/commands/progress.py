"""Showing that something long is under way: on stderr, and only if that is a terminal."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from durus import interfaces
from durus.commands.manner import printable

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["ProgressBar"]

_INTERVAL_S: Final = 0.1


class ProgressBar:
    """A bar while the `with` block lasts, then nothing; call it to say how far things are."""

    def __init__(self, description: str) -> None:
        self._description = printable(description)
        self._shown: Progress | None = None
        self._next_s = 0.0

    def __enter__(self) -> Self:
        if sys.stderr is not None and sys.stderr.isatty():
            self._shown = _make_progress()
            self._shown.add_task(self._description, total=None, count="")
            try:
                self._shown.start()
            except BaseException:
                self.stop()  # Ctrl-C: or the cursor would stay hidden
                raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __call__(self, done: int, total: int | None = None) -> None:
        """So much is done, of so much in all, if that is known."""
        if self._shown is not None and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _INTERVAL_S
            (task,) = self._shown.task_ids
            count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
            self._shown.update(task, completed=done, total=total, count=count)

    def report(self, progress: "interfaces.Progress") -> None:
        """The same, as libraries say it."""
        self(progress.done, progress.total or None)

    def stop(self) -> None:
        """Take the bar away, before something is printed."""
        if self._shown is not None:
            self._shown.stop()
            self._shown = None


def _make_progress() -> "Progress":
    # Imported when it is needed: most uses of a command draw nothing.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # stdout may be a pipe while stderr is a terminal
        redirect_stderr=False,
    )
