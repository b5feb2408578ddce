"""Programs that run beside a test, in processes of their own: functions of the test's module.

What they print with `say` the test reads, line by line.  Whoever waits for what does not come fails
after two minutes.
"""

import os
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

__all__ = ["Process", "fork", "hear", "run_alone", "running", "say", "wait_for_child"]

PATIENCE_S: Final = 120.0

_ROOT = Path(__file__).parent.parent
_START = """
import importlib, sys
_, module, name, *arguments = sys.argv
getattr(importlib.import_module(module), name)(*arguments)
"""


class Process:
    """A program that runs.  Its arguments arrive as texts."""

    def __init__(self, program: Callable[..., None], *arguments: object) -> None:
        names = [program.__module__, program.__name__]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _START, *names, *map(str, arguments)],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin = self._process.stdin
        self._stdout = self._process.stdout
        self._heard = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, line: object = "") -> None:
        """Give the program a line, which it hears."""
        self._stdin.write(f"{line}\n".encode())

    def ask(self, line: object) -> str:
        """Give it a line, and wait for the answer."""
        self.tell(line)
        return self.read_line()

    def read_line(self) -> str:
        """Wait for the next line."""
        end = time.monotonic() + PATIENCE_S
        while b"\n" not in self._heard:
            has_ended = self._process.poll() is not None  # and perhaps left a child behind
            if not self._listen(1) and (has_ended or time.monotonic() > end):
                raise AssertionError(f"process {self.pid} said nothing but {self._heard!r}")
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def read_lines(self, seconds: float) -> list[str]:
        """What it says in this time."""
        end = time.monotonic() + seconds
        while self._listen(max(0, end - time.monotonic())):
            pass
        *lines, self._heard = self._heard.split(b"\n")
        return [line.decode() for line in lines]

    def _listen(self, seconds: float) -> bool:
        """Whether there was more to hear; not at its end."""
        if not select.select([self._stdout], [], [], max(0, seconds))[0]:
            return False
        heard = os.read(self._stdout.fileno(), 1 << 16)
        self._heard += heard
        return bool(heard)

    def wait_until_stopped(self) -> None:
        """Wait until it has been suspended, by a SIGSTOP."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def wait(self) -> int:
        """Wait for its end; the exit status, or the negative number of the signal."""
        return self._process.wait(PATIENCE_S)

    def finish(self) -> list[str]:
        """Wait for its end, which must be a good one; what it has said since."""
        self._stdin.close()
        lines = self._rest()
        assert self.wait() == 0
        return lines

    def kill(self) -> list[str]:
        """End it at once; what it has said since."""
        self._process.kill()
        self._process.wait()
        return self.read_lines(0)  # a process that it has forked may still be there

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()

    def _rest(self) -> list[str]:
        end = time.monotonic() + PATIENCE_S
        while self._listen(end - time.monotonic()):
            pass
        *lines, self._heard = self._heard.split(b"\n")
        return [line.decode() for line in lines]


@contextmanager
def running(
    program: Callable[..., None], *arguments: object, count: int = 1
) -> Iterator[list[Process]]:
    """Several processes, all of which have said that they are ready."""
    with ExitStack() as stack:
        processes = []
        for _ in range(count):
            process = Process(program, *arguments)
            stack.callback(process.close)
            processes.append(process)
        for process in processes:
            assert process.read_line() == "ready"
        yield processes


def run_alone(program: Callable[..., None], *arguments: object) -> list[str]:
    """Run a program to its end, which must be a good one; what it said."""
    process = Process(program, *arguments)
    try:
        return process.finish()
    finally:
        process.close()


# For programs


def say(*words: object) -> None:
    """Print a line, in one piece however many processes print."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def hear() -> str:
    """Wait for a line of the test's; "" at the end."""
    return sys.stdin.readline().rstrip("\n")


def fork(call: Callable[[], object]) -> int:
    """Call something in a forked child, which then ends; its pid."""
    with warnings.catch_warnings():  # newer Pythons warn of forks while there are threads
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        call()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait_for_child(pid: int) -> None:
    """Wait for its end, which must be a good one."""
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
