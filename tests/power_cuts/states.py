"""What the disk may hold when the power is cut, at any point of a `Recording`.

`Disk` is told of the operations up to the cut.  Then it holds, as SQLite assumes it, too,

* of each file what was synced, and of what was written since any sectors (of 512 bytes), in any
  order.  The file may have grown without its new bytes: these are then zeros, or anything;
* the names as they were when their directory was synced, and the first of the changes since;
* after a failed sync: perhaps nothing of what was written before it, whatever is synced later.

One sector is written whole or not at all, and what was synced in it stays; except in an index,
which must stand everything.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, NamedTuple

from tests.power_cuts.recording import (
    DiskOperation,
    FailedSync,
    Renamed,
    Sync,
    SyncDirectory,
    Write,
)
from tests.simulation.disk import Inode, SimulatedDisk, overwrite, sectors

__all__ = ["Disk", "State"]


_FLIPPED_BITS_MAX: Final = 3


class State(NamedTuple):
    """What there is on the disk after a power cut."""

    names: dict[str, int]
    contents: dict[int, bytes]

    def digest(self) -> bytes:
        found = hashlib.blake2b(digest_size=16)
        for path, file in sorted(self.names.items()):
            content = self.contents[file]
            found.update(f"{path} {file} {len(content)}\n".encode())
            found.update(content)
        return found.digest()

    def mount(self) -> SimulatedDisk:
        """A disk that holds this, when the power is back."""
        disk = SimulatedDisk()
        inodes = {}
        for file, content in self.contents.items():
            disk.inodes = max(disk.inodes, file)
            inodes[file] = Inode(file, bytearray(content), bytearray(content))
        disk.names = {path: inodes[file] for path, file in self.names.items()}
        disk.sync_names()
        return disk


Part = tuple[int, bytes]
Filler = Callable[[int], bytes]


@dataclass(slots=True)
class _File:
    """One file: what will survive, and what may."""

    is_appended: bool = True
    """Whether nothing in it was ever written over."""
    synced: bytearray = field(default_factory=bytearray)
    writes: list[Write] = field(default_factory=list)
    """Those since the last sync."""
    doubtful: list[Write] = field(default_factory=list)
    """Those before a failed sync."""
    size: int = 0

    def write(self, write: Write) -> None:
        self.is_appended = self.is_appended and write.offset == self.size
        self.size = max(self.size, write.offset + len(write.content))
        self.writes.append(write)

    def sync(self) -> None:
        self.synced += bytes(self.size - len(self.synced))
        for write in self.writes:
            overwrite(self.synced, write.offset, write.content)
        self.writes.clear()

    def fail_to_sync(self) -> None:
        self.doubtful += self.writes
        self.writes.clear()

    @property
    def uncertain(self) -> list[Write]:
        return self.doubtful + self.writes

    def content(self, arrived: Sequence[Part], size: int = 0, fill: Filler = bytes) -> bytes:
        """With these parts written; it has `size` bytes at least, and `fill` where none arrived."""
        reach = max([size, *(offset + len(part) for offset, part in arrived)])
        found = bytearray(self.synced)
        if reach > len(found):
            found += fill(reach - len(found))
        for offset, part in arrived:
            overwrite(found, offset, part)
        return bytes(found)


class Disk:
    """What was done to the disk up to now."""

    def __init__(self) -> None:
        self._files: dict[int, _File] = {}
        self._names: dict[str, int] = {}
        self._changes: list[Renamed] = []
        """Those since their directory was synced."""

    def do(self, operation: DiskOperation) -> None:
        match operation:
            case Write():
                self._file(operation.file).write(operation)
            case Sync():
                self._file(operation.file).sync()
            case FailedSync():
                self._file(operation.file).fail_to_sync()
            case Renamed():
                self._changes.append(operation)
            case SyncDirectory(path):
                changes, self._changes = self._changes, []
                for change in changes:
                    if any(os.path.dirname(name) == path for name in change.names):
                        apply(change, self._names)
                    else:
                        self._changes.append(change)

    def _file(self, number: int) -> _File:
        return self._files.setdefault(number, _File())

    def _named(self, count: int) -> dict[str, int]:
        """The names, with so many of the changes since their directory was synced."""
        names = dict(self._names)
        for change in self._changes[:count]:
            apply(change, names)
        return names

    def _state(self, named: int, content: Callable[[_File], bytes]) -> State:
        names = self._named(named)
        numbers = sorted({*names.values()})
        return State(names, {number: content(self._file(number)) for number in numbers})

    # What may be left

    def extremes(self) -> Iterator[State]:
        """Everything has arrived, or nothing that was not synced, with all and with no names."""
        for named in {0, len(self._changes)}:
            yield self._state(named, lambda file: file.content(parts(file.uncertain)))
            yield self._state(named, lambda file: file.content([]))

    def reordered(self, random: Random) -> State:
        """Some of the writes have arrived, whole, and perhaps not those before them."""
        uncertain = [write for file in self._files.values() for write in file.uncertain]
        arrived = {id(write) for write in uncertain if random.random() < 0.5}

        def content(file: _File) -> bytes:
            return file.content(parts([w for w in file.uncertain if id(w) in arrived]))

        return self._state(random.randint(0, len(self._changes)), content)

    def torn(self, random: Random) -> State:
        """Some sectors have arrived."""
        chance = random.choice((0.1, 0.5, 0.9))
        has_grown = random.random() < 0.5
        in_order = random.random() < 0.3
        fill = random.choice((bytes, bytes, random.randbytes, self._stale(random)))

        def content(file: _File) -> bytes:
            pieces = [part for w in file.uncertain for part in sectors(w.offset, w.content)]
            if in_order:  # as many programs hope
                arrived = pieces[: random.randint(0, len(pieces))]
            else:
                arrived = [piece for piece in pieces if random.random() < chance]
            if not file.is_appended and fill is not bytes and arrived:
                # The power was cut while this sector was being written.
                offset, piece = random.choice(arrived)
                arrived.append((offset, random.randbytes(len(piece))))
            found = bytearray(file.content(arrived, file.size if has_grown else 0, fill))
            for offset, piece in pieces:
                end = offset + len(piece)
                if offset >= len(file.synced) and is_nearly(found[offset:end], piece):
                    found[offset:end] = bytes(len(piece))
            return bytes(found)

        return self._state(random.randint(0, len(self._changes)), content)

    def _stale(self, random: Random) -> Filler:
        """What stood on the disk before: pieces of these files, from anywhere."""
        contents = [bytes(file.synced) for file in self._files.values() if file.synced]

        def fill(size: int) -> bytes:
            found = b""
            while contents and len(found) < size:
                content = random.choice(contents)
                start = random.randrange(len(content))
                found += content[start : start + random.randint(1, 1024)]
            return found[:size].ljust(size, b"\0")

        return fill


def apply(change: Renamed, names: dict[str, int]) -> None:
    for path, file in change.names.items():
        if file is None:
            names.pop(path, None)
        else:
            names[path] = file


def is_nearly(found: bytearray, piece: bytes) -> bool:
    """Whether garbage happens to be what was written, but for a few bits.

    Nobody can tell that from what was there whole, and then had bits flipped; a log says so.
    """
    difference = int.from_bytes(found) ^ int.from_bytes(piece)
    return len(found) == len(piece) and 0 < difference.bit_count() <= _FLIPPED_BITS_MAX


def parts(writes: Sequence[Write]) -> list[Part]:
    return [(write.offset, write.content) for write in writes]
