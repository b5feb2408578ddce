"""What a program really asks of the operating system, as `strace` sees it from outside.

It is skipped where there is no `strace`, or where it may not trace: `apt-get install strace` (Linux
only), then `pytest tests/test_strace.py`; in a container it needs the capability SYS_PTRACE.
"""

import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

CALLS = """
    open openat creat write pwrite64 writev pwritev pwritev2 sendfile copy_file_range splice
    fsync fdatasync sync_file_range truncate ftruncate fallocate mmap
    link linkat rename renameat renameat2 unlink unlinkat
"""

BY_PATH = """
    open openat creat truncate link linkat rename renameat renameat2 unlink unlinkat
"""

START = """
import os, sys, threading
from contextlib import closing
from durus import file_storage, shared_log
from durus.file_storage import FileStorage
from durus.file_system import OperatingSystem
from durus.interfaces import ROOT_OID
from durus.testing.storage_contract import create, make_record, make_transaction

path = sys.argv[1]

def commit(storage, oid, number):
    note = f"<commit {number}>"
    storage.commit(make_transaction(storage.tid, {oid: make_record(number)}, note=note))
    os.write(1, f"<acked {number}>".encode())
"""


class Call(NamedTuple):
    name: str
    path: str
    """Of the file; the last one if there are two."""
    text: str
    start: int
    """The line where it began, and the one where it was done."""
    end: int

    @property
    def is_mark(self) -> bool:
        return r'"\366MRK' in self.text


_BEGUN = re.compile(r"^(?P<pid>\d+) +(?P<name>\w+)\((?P<text>.*)$")
_RESUMED = re.compile(r"^(?P<pid>\d+) +<\.\.\. \w+ resumed>")
_DESCRIPTOR = re.compile(r"\d+<(?P<path>/[^>]*)>")
_STRING = re.compile(r'"(?P<path>[^"]*)"')


def parse(lines: list[str]) -> list[Call]:
    """The calls in the order in which they began."""
    calls: list[Call] = []
    begun: dict[str, int] = {}
    for number, line in enumerate(lines):
        if match := _RESUMED.match(line):
            index = begun.pop(match["pid"])
            calls[index] = calls[index]._replace(end=number)
        elif match := _BEGUN.match(line):
            text = match["text"]
            if match["name"] in BY_PATH.split():
                path = _STRING.findall(text)[-1]
            else:
                descriptor = _DESCRIPTOR.search(text)
                path = descriptor["path"] if descriptor else ""
            if text.endswith("<unfinished ...>"):
                begun[match["pid"]] = len(calls)
            calls.append(Call(match["name"], path, text, number, number))
    return calls


@pytest.fixture(scope="module")
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("there is no strace: apt-get install strace")
    tried = subprocess.run([found, "-o", "/dev/null", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr.strip()}")
    return found


Trace = Callable[[str], list[Call]]


@pytest.fixture
def trace(strace: str, tmp_path: Path) -> Trace:
    def run(source: str) -> list[Call]:
        output = tmp_path / "trace"
        command: list[str | Path] = [strace, "-f", "-y", "-s", "100000", "-o", output]
        command += ["-e", "trace=" + ",".join("?" + name for name in CALLS.split())]
        program: list[str | Path] = [
            sys.executable,
            "-c",
            START + textwrap.dedent(source),
            tmp_path / "file",
        ]
        subprocess.run([*command, *program], check=True, stdout=subprocess.PIPE, timeout=120)
        return parse(output.read_text(errors="replace").splitlines())

    return run


ONE_THREAD = """
with closing(FileStorage(path)) as storage:
    oids = create(storage, 3)
    for number in range(20):
        commit(storage, oids[number % 3], number)
"""

THREADS = """
with closing(FileStorage(path)) as storage:
    oids = create(storage, 4)

    def run(first):
        for number in range(first, 40, 4):
            commit(storage, oids[first], number)

    threads = [threading.Thread(target=run, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""

PROCESSES = """
storage = FileStorage(path)
oids = create(storage, 3)
children = []
for first in range(3):
    child = os.fork()
    if child == 0:
        for number in range(first, 30, 3):
            commit(storage, oids[first], number)
        storage.close()
        os._exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
storage.close()
"""

WITH_AN_INDEX = (
    """
shared_log.CHECKPOINT_SIZE = 5
"""
    + ONE_THREAD
)

PROGRAMS = {
    "one-thread": (ONE_THREAD, 20),
    "threads": (THREADS, 40),
    "processes": (PROCESSES, 30),
    "with-an-index": (WITH_AN_INDEX, 20),
}


def find_unsynced(calls: list[Call], log: Path, commits: int) -> list[int]:
    """The commits that were acknowledged, or seen, before they were durable."""
    on_log = [call for call in calls if call.path == str(log)]
    (linked,) = (call for call in calls if call.name in ("link", "linkat"))
    named = [call for call in calls if call.name == "fsync" and call.path == str(log.parent)]
    unsynced = []
    for number in range(commits):
        (acknowledged,) = (call for call in calls if f"<acked {number}>" in call.text)
        (written,) = (call for call in on_log if f"<commit {number}>" in call.text)
        mark = next(call for call in on_log if call.is_mark and call.start > written.end)
        is_synced = any(
            call.name == "fdatasync" and written.end < call.start and call.end < mark.start
            for call in on_log
        )
        has_name = any(linked.end < call.start and call.end < written.start for call in named)
        if not (is_synced and has_name and mark.end < acknowledged.start):
            unsynced.append(number)
    return unsynced


@pytest.mark.parametrize(("source", "commits"), PROGRAMS.values(), ids=PROGRAMS)
def test_a_commit_is_synced_then_marked_then_acknowledged(
    trace: Trace, tmp_path: Path, source: str, commits: int
) -> None:
    assert find_unsynced(trace(source), tmp_path / "file", commits) == []


@pytest.mark.parametrize("name", ["sync", "sync_directory"])
def test_a_commit_that_is_not_synced_is_noticed(trace: Trace, tmp_path: Path, name: str) -> None:
    calls = trace(f"OperatingSystem.{name} = lambda self, file: None\n{ONE_THREAD}")
    assert find_unsynced(calls, tmp_path / "file", 20) == [*range(20)]


@pytest.mark.parametrize(("source", "commits"), PROGRAMS.values(), ids=PROGRAMS)
def test_a_log_is_appended_to_and_written_in_no_other_way(
    trace: Trace, tmp_path: Path, source: str, commits: int
) -> None:
    on_log = [call for call in trace(source) if call.path == str(tmp_path / "file")]
    named = {call.name for call in on_log}
    assert named - {"mmap", "link", "linkat"} == {"openat", "write", "fdatasync"}
    assert sum(call.name == "write" for call in on_log) > commits
    for call in on_log:
        if call.name == "openat" and "O_RDONLY" not in call.text:
            assert "O_APPEND" in call.text
            assert "O_TRUNC" not in call.text
        if call.name == "mmap":
            assert "PROT_WRITE" not in call.text
