"""What is installed here?  Keeps the answer in a Durus database, and asks it.

    python examples/installed.py [FILE]          bring FILE up to date, ask it, change it
    python examples/installed.py [FILE] --ask    only ask

The first run makes FILE, the others update it.  `discovery.py` reads what is installed,
`inventory.py` is the model that is stored; what Durus has to do with it all is here.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from heapq import nlargest

from discovery import discover, normalize_name
from durus.connection import Connection
from durus.error import DurusError, WriteConflictError
from durus.file_storage import FileStorage
from inventory import Distribution, Environment

LINES_MAX = 5
"""So many lines of a list are shown."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Keep what is installed in this Python environment in a Durus database.",
        epilog="example: python examples/installed.py --about pip",
    )
    parser.add_argument("file", nargs="?", default="installed.durus", help="the database")
    parser.add_argument("--ask", action="store_true", help="only ask what is in the file")
    parser.add_argument("--about", metavar="NAME", default="", help="ask for this distribution")
    options = parser.parse_args()
    path = os.path.abspath(options.file)
    try:
        if options.ask:
            ask(path, options.about)
        else:
            store(path)
            sys.stdout.flush()
            again = [sys.executable, __file__, path, "--ask", f"--about={options.about}"]
            subprocess.run(again, check=True)
            change(path, options.about)
    except (DurusError, OSError) as error:
        print(f"installed.py: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:  # it has said why
        return error.returncode
    return 0


def store(path: str) -> None:
    """Bring the database up to date with what is installed."""
    print(f"What is installed in {sys.prefix} (Python {platform.python_version()}),")
    print(f"kept in {path} ({'an existing file' if os.path.exists(path) else 'a new file'})")

    print("\n1. Store it")
    start = time.perf_counter()
    found = discover()
    report("read", format_count(len(found.distributions), "distribution"), start)
    show_lines("not read: ", found.problems)

    start = time.perf_counter()
    with closing(FileStorage(path)) as storage:
        connection = Connection(storage, root_class=Environment)
        environment = connection.root
        report("open", describe_past(environment), start)

        start = time.perf_counter()
        changes = environment.update(found.distributions)
        environment.prefix = sys.prefix
        environment.seen = datetime.now(UTC)
        tally = [f"{len(lines)} {what}" for what, lines in changes._asdict().items() if lines]
        report("update", ", ".join(tally) or "nothing changed", start)
        for what, lines in changes._asdict().items():
            show_lines(f"{what}: ", lines)

        start = time.perf_counter()
        tid_before = storage.tid
        connection.note = "what is installed"
        tid = connection.commit()
        assert tid is not None  # at least `seen` was assigned
        written = storage.changes(tid_before, tid)
        objects = "many objects" if written is None else format_count(len(written), "object")
        size = format_size(os.path.getsize(path))
        report("commit", f"{objects} written, the file has {size}", start)


def describe_past(environment: Environment) -> str:
    """When the database was brought up to date, and with what."""
    if environment.seen is None:
        return "nothing is known yet"
    seen = f"{environment.seen.astimezone():%Y-%m-%d %H:%M:%S}"
    return f"as of {seen}" + ("" if environment.prefix == sys.prefix else ", of another Python")


def ask(path: str, about: str) -> None:
    """Answer questions by walking from object to object; each is loaded when it is touched."""
    print(f"\n2. Ask it (in process {os.getpid()}, which has only the file)")
    start = time.perf_counter()
    with closing(FileStorage(path, readonly=True)) as storage:
        connection = Connection(storage, root_class=Environment)
        environment = connection.root
        report("open", describe_past(environment), start)

        start = time.perf_counter()
        asked = choose_distribution(environment, about)
        if asked is None:
            report("needed", f"{about or 'nothing'} is not installed", start)
        else:
            dependents = [
                dependent.name if needed is asked else f"{dependent.name}, through {needed.name}"
                for dependent, needed in asked.walk_dependents()
            ]
            by = format_count(len(dependents), "distribution")
            report("needed", f"{asked.name} {asked.version} is needed by {by}", start)
            show_lines("", dependents)

        start = time.perf_counter()
        sizes = [(each.size_bytes, each.name) for each in environment.distributions.values()]
        total = format_size(sum(size for size, _ in sizes))
        report("largest", f"of {format_count(len(sizes), 'distribution')}, {total}", start)
        largest = nlargest(LINES_MAX, sizes)
        show_lines("", [f"{format_size(size):>9}  {name}" for size, name in largest])

        start = time.perf_counter()
        shared = [
            f"{os.path.relpath(file.path, environment.prefix)}: "
            + " and ".join(owner.name for owner in file.owners)
            for file in environment.files.values()
            if len(file.owners) > 1
        ]
        files = format_count(len(environment.files), "file")
        report("shared", f"{len(shared)} of {files} belong to several distributions", start)
        show_lines("", shared)
        report("loaded", format_count(connection.get_load_count(), "object"))


def choose_distribution(environment: Environment, about: str) -> Distribution | None:
    """The distribution of this name; without a name, the one that most others need."""
    if about:
        return environment.distributions.get(normalize_name(about))
    return max(
        environment.distributions.values(),
        key=lambda each: sum(1 for _ in each.walk_dependents()),
        default=None,
    )


def change(path: str, about: str) -> None:
    """Show abort(), and two connections that change the same object at the same time."""
    print("\n3. Change it")
    with closing(FileStorage(path)) as storage:
        ann = Connection(storage, root_class=Environment)
        bob = Connection(storage, root_class=Environment)
        asked = choose_distribution(ann.root, about)
        if asked is None:
            report("change", "there is nothing to change")
            return

        start = time.perf_counter()
        distributions = ann.root.distributions.values()
        for distribution in distributions:
            distribution.version = "0"
        ann.abort()
        versions = format_count(len(distributions), "version")
        report("abort", f"{versions} overwritten; {asked.name} is {asked.version} again", start)

        start = time.perf_counter()
        name = normalize_name(asked.name)
        bob.root.distributions[name].lookups += 1  # seen before Ann's commit
        ann.root.distributions[name].lookups += 1
        ann.commit()
        report("Ann", f"looked {asked.name} up, and committed", start)
        start = time.perf_counter()
        try:
            bob.commit()
        except WriteConflictError as error:
            refused = ", ".join(f"<{obj.class_name}>" for obj in error.conflicts)
            report("Bob", f"did, too, but was refused: {type(error).__name__}, {refused}", start)
            start = time.perf_counter()
            bob.abort()  # now Bob sees what Ann has committed
            bob.root.distributions[name].lookups += 1
            bob.commit()
            report("again", "Bob has started again, and committed", start)
        ann.abort()  # a new transaction, which sees what Bob has committed
        report("in all", f"{asked.name} was looked up {asked.lookups} times")
    print("\nRun it again: it will store what has changed by then, and nothing else.")


def report(what: str, text: str, start: float | None = None) -> None:
    """Print a line of the account, with the time that has passed since `start`."""
    elapsed = "" if start is None else f"{(time.perf_counter() - start) * 1000:8.1f} ms"
    print(f"   {what:<9} {text:<66}{elapsed}".rstrip())


def show_lines(prefix: str, lines: Sequence[str]) -> None:
    """Print the first lines below a line of the account."""
    for line in lines[:LINES_MAX]:
        print(f"{'':13}{prefix}{line}")
    if len(lines) > LINES_MAX:
        print(f"{'':13}... and {len(lines) - LINES_MAX} more")


def format_count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:,.1f} kB"


if __name__ == "__main__":
    sys.exit(main())
