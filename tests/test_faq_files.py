"""What the FAQ promises about files: a copy is a backup, and a cut end is noticed.

Each file is opened by its path alone, as a program that knows nothing of formats does.
"""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from durus.classic_file import DamagedEndError
from durus.connection import Connection
from durus.error import CorruptionError
from durus.file_format import Finding
from durus.file_storage import FileStorage
from durus.formats import find_format
from durus.persistent import Persistent

COPIES = 25
PAGES = 4
PACK_EVERY = 20

classic = pytest.mark.parametrize("format", ["shelf", "dfs20"])


class Page(Persistent):
    def __init__(self) -> None:
        self.write(0)

    def write(self, number: int) -> None:
        """A text of some size, all of it about one number."""
        self.number = number
        self.text = " ".join(f"{number}" for _ in range(500))
        self.salt = random.randbytes(1000)  # which does not compress

    def read(self) -> int:
        assert self.text == " ".join(f"{self.number}" for _ in range(500))
        return self.number


class Writer:
    """A thread that commits to a file without a pause, each time all pages with the next number."""

    def __init__(self, storage: FileStorage) -> None:
        self.storage = storage
        self.acknowledged = 0
        with Connection(storage) as connection:
            connection.root["pages"] = [Page() for _ in range(PAGES)]
            connection.commit()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        with Connection(self.storage) as connection:
            while not self.stopping.is_set():
                number = self.acknowledged + 1
                for page in connection.root["pages"]:
                    page.write(number)
                connection.root["last"] = Page()  # and each time one that is left behind
                connection.commit()
                self.acknowledged = number
                if number % PACK_EVERY == 0:
                    connection.pack()

    def __enter__(self) -> "Writer":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.thread.join()
        self.storage.close()


def read_number(storage: FileStorage) -> int:
    """The number of the last commit, all of which must be there; closes the storage."""
    with Connection(storage) as connection:
        numbers: set[int] = {page.read() for page in connection.root["pages"]}
    storage.close()
    assert len(numbers) == 1
    return numbers.pop()


def verify(path: Path) -> Iterator[Finding]:
    return find_format(path).verify(str(path))


def copy_in_pieces(source: Path, target: Path, choice: random.Random) -> None:
    """Copy a whole file as cp does, in pieces of any size."""
    with source.open("rb", buffering=0) as reading, target.open("wb") as writing:
        while piece := reading.read(choice.randrange(1, 1 << 16)):
            writing.write(piece)


# How do I back up a database?


@pytest.mark.parametrize("format", ["log", "shelf", "dfs20"])
def test_a_copy_made_while_the_file_is_written_is_a_backup(format: str, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)  # so that a failure can be looked into
    choice = random.Random(seed)
    path = tmp_path / "live.durus"
    bounds: list[tuple[Path, int, int]] = []
    with Writer(FileStorage(path, format=format)) as writer:
        while len(bounds) < COPIES or writer.acknowledged < 2 * PACK_EVERY:
            assert writer.thread.is_alive()
            copy = tmp_path / f"copy{len(bounds)}.durus"
            before = writer.acknowledged
            copy_in_pieces(path, copy, choice)
            bounds.append((copy, before, writer.acknowledged + 1))
    for copy, before, after in bounds:
        assert before <= read_number(FileStorage(copy, repair=True)) <= after
        assert list(verify(copy)) == []
    assert read_number(FileStorage(path)) == writer.acknowledged


# The last transaction has been truncated


@pytest.fixture
def whole(format: str, tmp_path: Path) -> tuple[Path, int]:
    """A file of this format with the commits 1 and 2, and its size after the first."""
    path = tmp_path / "whole.durus"
    sizes = []
    storage = FileStorage(path, format=format)
    with Connection(storage) as connection:
        connection.root["pages"] = [Page() for _ in range(PAGES)]
        for number in (1, 2):
            for page in connection.root["pages"]:
                page.write(number)
            connection.commit()
            sizes.append(path.stat().st_size)
    storage.close()
    return path, sizes[0]


def make_cut_files(whole: tuple[Path, int]) -> Iterator[Path]:
    """Copies that lack more and more, or less and less, of the second commit.

    They end near its beginning and end, where fields are, and here and there in between.
    """
    path, start = whole
    content = path.read_bytes()
    end = len(content)
    near = {*range(start + 1, start + 40), *range(end - 50, end)}
    for size in sorted(near | set(range(start + 1, end, 1 + (end - start) // 40))):
        copy = path.with_name(f"cut{size}.durus")
        copy.write_bytes(content[:size])
        yield copy


def commit_another(storage: FileStorage) -> None:
    with Connection(storage) as connection:
        for page in connection.root["pages"]:
            page.write(3)
        connection.commit()
    storage.close()


@pytest.mark.parametrize("format", ["log"])
def test_a_log_that_was_cut_has_all_transactions_that_are_whole(whole: tuple[Path, int]) -> None:
    found = []
    for path in make_cut_files(whole):
        content = path.read_bytes()
        assert list(verify(path)) == []
        found.append(read_number(FileStorage(path, readonly=True)))
        assert path.read_bytes() == content
        assert read_number(FileStorage(path)) == found[-1]
        assert list(verify(path)) == []
        commit_another(FileStorage(path))
        assert read_number(FileStorage(path)) == 3
        assert list(verify(path)) == []
    assert found == sorted(found)
    assert found[0] == 1
    assert found[-1] == 2  # only the mark after the transaction was cut there


@classic
def test_a_classic_file_that_was_cut_is_refused_and_left_as_it_is(whole: tuple[Path, int]) -> None:
    for path in make_cut_files(whole):
        content = path.read_bytes()
        assert list(verify(path)) != []
        for readonly in (False, True):
            with pytest.raises(DamagedEndError) as caught:
                FileStorage(path, readonly=readonly)
            assert isinstance(caught.value, CorruptionError)
            assert "repair=True" in str(caught.value)
            assert str(path) in str(caught.value)
        assert path.read_bytes() == content


@classic
def test_repair_cuts_off_what_is_left_of_the_transaction(whole: tuple[Path, int]) -> None:
    content = whole[0].read_bytes()[: whole[1]]
    for path in make_cut_files(whole):
        assert read_number(FileStorage(path, repair=True)) == 1
        assert path.read_bytes() == content
        assert list(verify(path)) == []
        commit_another(FileStorage(path))
        assert read_number(FileStorage(path)) == 3


@pytest.mark.parametrize("format", ["log", "shelf", "dfs20"])
def test_repair_changes_nothing_in_a_file_that_is_whole(whole: tuple[Path, int]) -> None:
    content = whole[0].read_bytes()
    assert read_number(FileStorage(whole[0], repair=True)) == 2
    assert whole[0].read_bytes() == content
