"""Conversion: a whole database from any file, or server, to a new file of any format.

`durus convert` calls it, and so may programs.  Invariants: the target appears under its name when
it is complete and durable, or not at all, and never in the place of something else; the source is
only read, as it was at one moment; memory holds some bits for each object, and not the objects.
"""

import contextlib
import dataclasses
import errno
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from durus.appearing import appearing_at, making
from durus.class_pickle import name_in_class_pickle
from durus.convert_source import Source
from durus.error import ObjectError, StorageError, StorageOpenError, format_oid
from durus.file_format import StoredDatabase, StoredTransaction
from durus.file_system import OperatingSystem
from durus.formats import FORMATS
from durus.interfaces import OID_LIMIT, ROOT_OID, Oid, Record, Snapshot
from durus.log_codec import LIBRARY_MISSING, Compression, has_library
from durus.oid_bitmap import OidBitmap, OidRanks, find_reachable
from durus.repickle import is_of_python2, rewrite_record

__all__ = ["Conversion", "Progress", "convert"]

Progress = Callable[[int, int | None], object]
"""Is told now and then how many objects are done, of how many, if that is known; what it raises
ends the conversion."""

T = TypeVar("T")

_PROGRESS_STEP: Final = 100
_WARNINGS_MAX: Final = 1000
_SQLITE_LEAVES: Final = ("-journal", "-wal", "-shm")
"""What SQLite puts beside a file while it writes."""
_NOWHERE: Final = 1 << 63
"""Oids with this bit are never given to an object (`OID_LIMIT`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was done."""

    source_format: str
    """A name in `durus.formats.FORMATS`, or the scheme of a URI."""
    target_format: str
    transactions: int
    """So many were copied; 1 without history, or 0 if there were no objects."""
    objects: int
    history: bool
    """Whether the transactions of the source were kept apart."""
    warnings: tuple[str, ...] = ()
    """What was odd about the source."""


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: str = "log",
    history: bool = True,
    renumber: bool = False,
    python2: bool = False,
    compression: Compression | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Make a new file that holds a database.

    source: the path of a file in any format, or a URI as for `durus.storage.open_storage`.
    target: the path of the new file.
    to: its format: log, shelf, dfs20 or sqlite.
    history: keep all transactions that the source has, if the target can: to log or sqlite, from
      those, and (without times) from shelf and dfs20.  Otherwise the target holds the newest
      revisions of what can be reached from the root, in ascending order of their oids.
    renumber: give the objects the oids 0, 1, 2, ... in the order that they had, without history.
    python2: the source was written by Python 2.  Its strings become texts if they are ASCII;
      those that are not, oids, and what is in a date or time, stay bytes.  If it was and this is
      not said, one of the warnings says so.
    compression: of the records in a log: "zstd", or "none"; None: as in the source, if that is a
      log.
    progress: is told how far things are.

    Raises ValueError for a format that cannot be written, or compressed, StorageOpenError when the
    source cannot be opened or the target cannot be made (with errno EEXIST if something is there),
    CorruptionError when the source is damaged, ObjectError when a record cannot be rewritten, and
    StorageError.  After any error, and after Ctrl-C, there is no target; but when it is at last the
    sync of its directory that fails, it is there, and complete, and the error says so.
    """
    target_format = FORMATS.get(to)
    if target_format is None or target_format.write is None:
        known = ", ".join(name for name, found in FORMATS.items() if found.write is not None)
        raise ValueError(f"no file of the format {to!r} can be made, only {known}")
    if compression not in ("zstd", "none", None):
        raise ValueError(f"compression is 'zstd' or 'none', not {compression!r}")
    if compression == "zstd" and to != "log":
        raise ValueError(f"only a log can be compressed, and not a file of the format {to!r}")
    if compression == "zstd" and not has_library():
        raise StorageError(LIBRARY_MISSING)
    target = os.path.abspath(target)
    _check_target(target)
    opened = Source(source)
    keeps_history = (
        history and not renumber and target_format.keeps_history and opened.has_transactions
    )
    changes = _Changes(python2=python2)
    count = _Count(progress)
    with contextlib.ExitStack() as stack:
        if keeps_history:
            stored = stack.enter_context(opened.read())
        else:
            stored = stack.enter_context(_read_newest(opened, changes, count, renumber=renumber))
        transactions = count.watch(_pass_on(stored.transactions, changes, count))
        dictionary = stored.dictionary
        if compression is not None:
            dictionary = dictionary or b"" if compression == "zstd" else None
        database = dataclasses.replace(stored, transactions=transactions, dictionary=dictionary)
        try:
            _make_target(target, target_format.write, database)
        except Exception as error:
            if count.failure is None or count.failure is error:
                raise
            # The writer has taken it for a failure of its own.
            raise count.failure from count.failure.__cause__
    return Conversion(
        source_format=opened.format_name,
        target_format=to,
        transactions=count.transactions,
        objects=len(count.objects),
        history=keeps_history,
        warnings=changes.warnings,
    )


def _pass_on(
    transactions: Iterable[StoredTransaction], changes: "_Changes", count: "_Count"
) -> Iterator[StoredTransaction]:
    for transaction in transactions:
        count.transactions += 1
        records = itertools.starmap(changes.apply, count.observe(transaction.records))
        yield dataclasses.replace(transaction, records=count.watch(records))
    count.tell()


class _Count:
    """How far things are."""

    def __init__(self, progress: Progress | None) -> None:
        self.transactions = 0
        self.objects = OidBitmap()
        self.total: int | None = None
        self.done = 0
        self.failure: Exception | None = None
        """What went wrong where the source is read, and not where the target is written."""
        self._progress = progress

    def tell(self) -> None:
        if self._progress is not None:
            self._progress(self.done, self.total)

    def step(self) -> None:
        """One more is done."""
        self.done += 1
        if self.done % _PROGRESS_STEP == 0:
            self.tell()

    def observe(self, records: Iterable[tuple[Oid, Record]]) -> Iterator[tuple[Oid, Record]]:
        """Let these records pass."""
        for oid, record in records:
            self.objects.add(oid)
            yield oid, record
            self.step()

    def watch(self, stream: Iterable[T]) -> Iterator[T]:
        """Let this pass, and notice whose failure it is when it ends."""
        try:
            yield from stream
        except Exception as error:
            self.failure = error
            raise


class _Changes:
    """What is done to each record on its way, and what was odd about it."""

    def __init__(self, *, python2: bool) -> None:
        self._python2 = python2
        self._is_of_python2 = python2
        """Whether the source is known to be."""
        self._ranks: OidRanks | None = None
        self._warnings: list[str] = []
        self._more_warnings = 0

    def renumber(self, oids: OidBitmap) -> None:
        """From now on, the oids are changed into their places among these."""
        self._ranks = oids.ranks()

    def warn(self, warning: str) -> None:
        """Keep the warning, if there are no more of them than anybody will read."""
        if len(self._warnings) < _WARNINGS_MAX:
            self._warnings.append(warning)
        else:
            self._more_warnings += 1

    @property
    def warnings(self) -> tuple[str, ...]:
        more = [f"and {self._more_warnings} more like these"] if self._more_warnings else []
        return (*self._warnings, *more)

    def apply(self, oid: Oid, record: Record) -> tuple[Oid, Record]:
        """The new oid and the new record of an object; ObjectError."""
        new_oid = self._map_oid(oid)
        if not self._is_of_python2 and is_of_python2(record.state_pickle):
            self._is_of_python2 = True
            self.warn(
                f"{_describe(oid, record)}, was written by Python 2, as others may be: without "
                "python2=True some of its strings may be wrong, or fail to load"
            )
        if self._ranks is None and not self._python2:
            return new_oid, record

        def decode(content: bytes) -> str | bytes:
            return self._decode(content, oid, record)

        try:
            if self._python2:
                return new_oid, rewrite_record(new_oid, record, self._map_oid, decode)
            return new_oid, rewrite_record(new_oid, record, self._map_oid)
        except ObjectError as error:
            raise type(error)(f"{_describe(oid, record)}: {error}") from error

    def _map_oid(self, oid: Oid) -> Oid:
        if self._ranks is None:
            return oid
        try:
            return Oid(self._ranks[oid].to_bytes(8))
        except KeyError:
            # It does not exist.  Nor shall it ever: no storage gives such an oid to an object.
            return Oid((int.from_bytes(oid) | _NOWHERE).to_bytes(8))

    def _decode(self, content: bytes, oid: Oid, record: Record) -> str | bytes:
        """What `db_to_py3k` of 4.3 makes of a string of Python 2."""
        if len(content) == 8 and content.startswith(bytes(4)):
            return content  # an oid
        try:
            return content.decode("ascii")
        except UnicodeDecodeError:
            shown = f"{content[:40]!r}{'...' if len(content) > 40 else ''}"
            self.warn(f"{_describe(oid, record)}: {shown} is not ASCII, and stays bytes")
            return content


def _describe(oid: Oid, record: Record) -> str:
    try:
        return f"object {format_oid(oid)}, a {'.'.join(name_in_class_pickle(record.class_pickle))}"
    except ObjectError:
        return f"object {format_oid(oid)}"


@contextlib.contextmanager
def _read_newest(
    source: Source, changes: _Changes, count: _Count, *, renumber: bool
) -> Iterator[StoredDatabase]:
    """The newest revisions of what can be reached from the root, as one transaction."""
    settings = source.read_settings()
    with source.snapshot() as snapshot:

        def load_refs(oids: list[Oid]) -> Iterator[tuple[Oid, bytes]]:
            for oid, revision in snapshot.load_many(oids):
                yield oid, revision.record.refs
                count.step()

        reached, missing = find_reachable(load_refs)
        if ROOT_OID in missing:
            changes.warn("there is no root, so no object can be reached")
            yield dataclasses.replace(settings, next_oid=0)
            return
        for oid in missing:
            changes.warn(f"oid {format_oid(oid)} is referred to, but there is no such object")
        if renumber:
            changes.renumber(reached)
            next_oid = len(reached)
        else:
            # Not those that are referred to in vain, either: they shall not become others.
            used = map(int.from_bytes, itertools.chain(reached, missing))
            largest = max((number for number in used if number < OID_LIMIT), default=-1)
            next_oid = max(largest + 1, settings.next_oid)
        count.done, count.total = 0, len(reached)
        records = _load_in_order(snapshot, reached)
        base = StoredTransaction(records=records)
        yield dataclasses.replace(settings, transactions=[base], next_oid=next_oid)


def _load_in_order(snapshot: Snapshot, oids: OidBitmap) -> Iterator[tuple[Oid, Record]]:
    """The records of these oids, ascending, in whatever order the snapshot loads them."""
    loaded = snapshot.load_many(oids)
    early: dict[Oid, Record] = {}
    for oid in oids:
        while oid not in early:
            found, revision = next(loaded, (oid, None))
            if revision is None:
                raise StorageError(
                    f"the object with oid {format_oid(oid)} disappeared while it was read"
                )
            early[found] = revision.record
        yield oid, early.pop(oid)


# Writing


def _check_target(target: str) -> None:
    """Say what is wrong with the target before much work is done in vain."""
    folder = os.path.dirname(target)
    with making(target):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if not os.path.isdir(folder):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _speak_of(target: str, aside: str, error: StorageError) -> StorageError:
    """The error; but if it speaks of the file aside, which nobody knows, one of the target."""
    if aside not in str(error):
        return error
    if isinstance(error, StorageOpenError):
        return StorageOpenError(target, str(error).removeprefix(f"{aside}: "), error.errno)
    return StorageError(str(error).replace(aside, target))


def _make_target(
    target: str, write: Callable[[str, StoredDatabase], None], database: StoredDatabase
) -> None:
    """Write the database aside, and let it appear; StorageError."""
    with making(target), appearing_at(OperatingSystem(), target) as aside:
        try:
            write(aside, database)
        except StorageError as error:
            told = _speak_of(target, aside, error)
            if told is error:
                raise
            raise told from error
        except ValueError as error:
            raise StorageError(f"{target} cannot hold the database: {error}") from error
        finally:
            for suffix in _SQLITE_LEAVES:
                with contextlib.suppress(OSError):
                    os.unlink(aside + suffix)
