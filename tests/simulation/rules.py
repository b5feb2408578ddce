"""The rules that the log storage keeps, and for each a way to break it, which must be found.

`BROKEN` has them, named after what becomes of the code.  Invariant: production code knows nothing
of it; a rule is broken by replacing functions while `broken` is in force.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from durus import index_checkpoint, log_pack, online_pack, shared_log
from durus.file_storage import FileStorage
from durus.growing_log import GrowingLog
from durus.index_file import Anchor, IndexFile
from durus.interfaces import CommitResult
from durus.log import Log, Tail
from durus.log_batch import Batch
from durus.log_file import LogFile
from durus.log_header import FileHeader
from durus.log_lock import obtain_lock
from durus.log_writer import LogWriter
from durus.shared_log import SharedLog
from tests.simulation.disk import SimulatedDisk, SimulatedSystem
from tests.simulation.explorer import DisasterKind
from tests.simulation.runs import Plan

__all__ = ["BROKEN", "Change", "broken"]

Change = Callable[[pytest.MonkeyPatch], None]


def nothing(*arguments: object, **options: object) -> None:
    """What is done instead of what a rule says."""


@contextlib.contextmanager
def without(owner: Any, name: str, instead: Any = nothing) -> Iterator[None]:
    """Have something else in the place of an attribute meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, instead, raising=False)
        yield


def no_sync_before_the_mark(patch: pytest.MonkeyPatch) -> None:
    append = GrowingLog.append

    def append_batch(log: GrowingLog, *arguments: Any, **options: Any) -> float:
        with without(log.file, "sync"):
            return append(log, *arguments, **options)

    patch.setattr(GrowingLog, "append", append_batch)


def mark_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    append = GrowingLog.append

    def append_batch(log: GrowingLog, *arguments: Any, **options: Any) -> float:
        with without(log.file, "sync"):
            seconds = append(log, *arguments, **options)
        log.file.sync()
        return seconds

    patch.setattr(GrowingLog, "append", append_batch)


def visible_without_a_mark(patch: pytest.MonkeyPatch) -> None:
    catch_up = Log.catch_up

    def catch_up_and_publish(log: Log, size: int | None = None) -> Tail:
        tail = catch_up(log, size)
        if tail.pending:
            log._publish_until(tail.pending[-1].tid, tail.pending)
        return tail

    patch.setattr(Log, "catch_up", catch_up_and_publish)


def no_look_at_the_path_after_locking(patch: pytest.MonkeyPatch) -> None:
    def lock_and_settle(shared: SharedLog, log: GrowingLog) -> bool:
        obtain_lock(log.file, 1e6)
        log.settle_tail()
        shared._sync_directory(log)
        return True

    patch.setattr(SharedLog, "_lock_and_settle", lock_and_settle)


def no_look_at_the_path_at_boundaries(patch: pytest.MonkeyPatch) -> None:
    def look(shared: SharedLog) -> tuple[GrowingLog, Any]:
        log = shared._current()
        return log, log.file.status()

    patch.setattr(SharedLog, "_look", look)


def opening_truncates_the_tail(patch: pytest.MonkeyPatch) -> None:
    opened = SharedLog._open

    def open_and_truncate(shared: SharedLog, *arguments: Any) -> GrowingLog:
        log = opened(shared, *arguments)
        if not shared.readonly and log._tail.size > log.end:
            disk: SimulatedDisk = shared._system.disk  # type: ignore[attr-defined]
            del disk.names[shared.path].content[log.end :]
            log._tail = Tail([], log.end, log.end)
        return log

    patch.setattr(SharedLog, "_open", open_and_truncate)


def no_sync_of_the_directory_before_a_commit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SharedLog, "_sync_directory", nothing)


def a_commit_that_says_no_changes(patch: pytest.MonkeyPatch) -> None:
    commit = FileStorage.commit

    def commit_and_say_nothing(storage: FileStorage, transaction: Any) -> CommitResult:
        return commit(storage, transaction)._replace(changed=frozenset())

    patch.setattr(FileStorage, "commit", commit_and_say_nothing)


def no_conflict_check(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Batch, "_validate", lambda batch, prepared, slots: None)


def no_conflicts_within_a_group(patch: pytest.MonkeyPatch) -> None:
    validate = Batch._validate

    def validate_alone(batch: Batch, prepared: Any, slots: Any) -> Any:
        before, batch._slots = batch._slots, {}
        try:
            return validate(batch, prepared, slots)
        finally:
            batch._slots = before

    patch.setattr(Batch, "_validate", validate_alone)


def whole_transactions_without_a_mark_are_sealed(patch: pytest.MonkeyPatch) -> None:
    def split_tail(log: GrowingLog, tail: Tail) -> tuple[list[Any], int]:
        return [], tail.pending[0].offset if tail.pending else tail.offset

    patch.setattr(GrowingLog, "_split_tail", split_tail)


def torn_transactions_are_marked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GrowingLog, "is_whole", lambda log, transaction: True)


def the_tail_is_marked_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    settle = GrowingLog.settle_tail

    def settle_tail(log: GrowingLog, size: int | None = None) -> None:
        with without(log.file, "sync"):
            settle(log, size)

    patch.setattr(GrowingLog, "settle_tail", settle_tail)


def readers_adopt_what_is_not_durable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GrowingLog, "_sync_to_read", nothing)


def readers_adopt_while_somebody_commits(patch: pytest.MonkeyPatch) -> None:
    def adopt_without_lock(shared: SharedLog, log: GrowingLog) -> None:
        log.adopt_tail()

    patch.setattr(SharedLog, "_adopt", adopt_without_lock)


def torn_transactions_are_not_sealed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GrowingLog, "_append_void", nothing)


def no_lock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LogFile, "lock", lambda file, shared=False: True)


def the_lock_is_released_before_the_mark(patch: pytest.MonkeyPatch) -> None:
    append = GrowingLog.append

    def append_batch(log: GrowingLog, *arguments: Any, **options: Any) -> float:
        sync = log.file.sync

        def sync_and_unlock() -> None:
            sync()
            log.file.unlock()

        with without(log.file, "sync", sync_and_unlock):
            return append(log, *arguments, **options)

    patch.setattr(GrowingLog, "append", append_batch)


def oids_are_not_reserved_in_the_file(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GrowingLog, "append_reservation", nothing)


def a_pack_forgets_reservations(patch: pytest.MonkeyPatch) -> None:
    def make_header(**fields: Any) -> FileHeader:
        return FileHeader(**{**fields, "next_oid": 0})

    patch.setattr(log_pack, "FileHeader", make_header)
    patch.setattr(LogWriter, "reserve", nothing)


def a_pack_without_the_lock(patch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def unlocked(shared: SharedLog, failure: str) -> Iterator[GrowingLog]:
        yield shared.catch_up()

    run = online_pack._Attempt.run

    def run_unlocked(attempt: online_pack._Attempt, *arguments: Any, **options: Any) -> None:
        with without(SharedLog, "locked", unlocked):
            run(attempt, *arguments, **options)

    patch.setattr(online_pack._Attempt, "run", run_unlocked)
    # A process that is in there when a violation is found will not put it back.
    patch.setattr(SharedLog, "locked", SharedLog.locked)


def no_sync_of_a_packed_file(patch: pytest.MonkeyPatch) -> None:
    finish = LogWriter.finish

    def finish_unsynced(writer: LogWriter) -> None:
        with without(writer._file, "sync"):
            finish(writer)

    patch.setattr(LogWriter, "finish", finish_unsynced)


def a_pack_leaves_out_what_came_last(patch: pytest.MonkeyPatch) -> None:
    copy_most = online_pack._Attempt._copy_most

    def copy_most_and_no_more(attempt: online_pack._Attempt, writer: LogWriter) -> None:
        copy_most(attempt, writer)
        patch.setattr(attempt._pack, "write_later", lambda: 0)

    patch.setattr(online_pack._Attempt, "_copy_most", copy_most_and_no_more)


def a_pack_does_not_look_for_what_came_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(log_pack.LogPack, "_check_refs", nothing)


def two_pack_at_once(patch: pytest.MonkeyPatch) -> None:
    def create(system: SimulatedSystem, path: str, create: Callable[[], LogFile]) -> LogFile:
        with contextlib.suppress(FileNotFoundError):
            system.unlink(path)
        return create()

    patch.setattr(online_pack, "create_alone", create)


def no_sync_of_the_directory_in_a_pack(patch: pytest.MonkeyPatch) -> None:
    replace = SharedLog.replace

    def replace_unsynced(shared: SharedLog, packed: GrowingLog) -> None:
        shared._directory_synced = packed
        replace(shared, packed)

    patch.setattr(SharedLog, "replace", replace_unsynced)


def an_index_is_not_synced_before_its_header(patch: pytest.MonkeyPatch) -> None:
    update = IndexFile.update

    def update_unsynced(index: IndexFile, *arguments: Any, **options: Any) -> None:
        with without(index, "sync"):
            update(index, *arguments, **options)

    patch.setattr(IndexFile, "update", update_unsynced)


def an_index_says_first_what_it_covers(patch: pytest.MonkeyPatch) -> None:
    update = IndexFile.update

    def update_covered(index: IndexFile, entries: Any, covers: Anchor, **options: Any) -> None:
        index._write_header(index.header._replace(covers=covers), sync=True)
        update(index, entries, covers, **options)

    patch.setattr(IndexFile, "update", update_covered)


def an_index_of_a_newer_log_is_accepted(patch: pytest.MonkeyPatch) -> None:
    def accepts(log: Log, index: IndexFile) -> bool:
        header = index.header
        return header.file_id == log.header.file_id and log._find_anchor(header.covers) != 0

    patch.setattr(Log, "accepts", accepts)


def an_index_of_any_log_is_accepted(patch: pytest.MonkeyPatch) -> None:
    def accepts(log: Log, index: IndexFile) -> bool:
        return log._find_anchor(index.header.covers) != 0 or log.tid == 0

    patch.setattr(Log, "accepts", accepts)
    patch.setattr(Log, "_find_anchor", lambda log, anchor: log.header.size)


def an_index_of_what_is_not_there(patch: pytest.MonkeyPatch) -> None:
    write = index_checkpoint.write_checkpoint

    def write_checkpoint(log: GrowingLog) -> None:
        with without(log.file, "sync"):
            write(log)

    patch.setattr(shared_log, "write_checkpoint", write_checkpoint)


def an_index_is_updated_by_two_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(IndexFile, "lock", lambda index, shared=False: True)


def an_index_is_updated_with_less_than_it_lacks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(index_checkpoint, "_all_entries", lambda log, state: iter(state.entries))


def a_failed_sync_is_tried_again(patch: pytest.MonkeyPatch) -> None:
    def withdraw(log: GrowingLog, end: int, *, is_whole: bool) -> bool:
        return True

    patch.setattr(GrowingLog, "_withdraw", withdraw)


@contextlib.contextmanager
def broken(change: Change) -> Iterator[None]:
    """Have one rule broken meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        change(patch)
        yield


WRITING = ("writer", "writer", "reader", "leader")
PACKING = ("writer", "packer")
A_KILL: list[list[DisasterKind]] = [["kill"]]
A_FAILING_COMMIT: list[list[DisasterKind]] = [["failing commit"]]
NOTHING: list[list[DisasterKind]] = [[]]

AFTER_A_KILL = Plan(
    ("writer", "creator", "reader"),
    disasters=A_KILL,
    power_cuts=0.9,
    calls=("sync", "append"),
    soon=0.9,
    without_durability=0,
    checkpoints=[4096],
)
AFTER_A_POWER_CUT = replace(AFTER_A_KILL, roles=WRITING, disasters=NOTHING)
TORN = replace(AFTER_A_POWER_CUT, roles=["writer"], power_cuts=1, calls=["sync"])
INDEXING = Plan(("writer", "creator"), disasters=NOTHING, power_cuts=0, checkpoints=[2])
RESTORING = replace(
    INDEXING, disasters=[["kill", "kill", "kill"]], calls=["write"], soon=0.2, restores=0.5
)

BROKEN: dict[Change, Plan] = {
    no_sync_before_the_mark: AFTER_A_POWER_CUT,
    mark_before_the_sync: AFTER_A_POWER_CUT,
    visible_without_a_mark: AFTER_A_POWER_CUT,
    no_look_at_the_path_after_locking: Plan(PACKING),
    no_look_at_the_path_at_boundaries: Plan(PACKING),
    opening_truncates_the_tail: Plan(),
    no_sync_of_the_directory_before_a_commit: Plan(PACKING, power_cuts=1),
    a_commit_that_says_no_changes: Plan(
        ["writer"], disasters=NOTHING, power_cuts=0, processes=(4, 6)
    ),
    no_conflict_check: Plan(),
    no_conflicts_within_a_group: Plan(["leader"]),
    whole_transactions_without_a_mark_are_sealed: AFTER_A_POWER_CUT,
    torn_transactions_are_marked: TORN,
    the_tail_is_marked_before_it_is_durable: AFTER_A_KILL,
    readers_adopt_what_is_not_durable: AFTER_A_KILL,
    readers_adopt_while_somebody_commits: Plan(
        WRITING, disasters=A_FAILING_COMMIT, without_durability=0
    ),
    torn_transactions_are_not_sealed: Plan(),
    no_lock: Plan(),
    the_lock_is_released_before_the_mark: Plan(WRITING),
    a_failed_sync_is_tried_again: Plan(WRITING, disasters=A_FAILING_COMMIT, without_durability=0),
    oids_are_not_reserved_in_the_file: Plan(["creator"]),
    a_pack_forgets_reservations: Plan(("creator", "packer")),
    a_pack_without_the_lock: Plan(PACKING),
    no_sync_of_a_packed_file: Plan(PACKING, power_cuts=1),
    a_pack_leaves_out_what_came_last: Plan(PACKING),
    a_pack_does_not_look_for_what_came_back: Plan(
        ("reviver", "reviver", "packer"), disasters=NOTHING, power_cuts=0
    ),
    two_pack_at_once: Plan(("writer", "packer", "packer")),
    no_sync_of_the_directory_in_a_pack: Plan(["packer"], power_cuts=1),
    an_index_is_not_synced_before_its_header: replace(
        INDEXING, power_cuts=1, calls=("write", "unlock")
    ),
    an_index_says_first_what_it_covers: INDEXING,
    an_index_of_a_newer_log_is_accepted: RESTORING,
    an_index_of_any_log_is_accepted: Plan(("packer", "creator"), checkpoints=[2]),
    an_index_of_what_is_not_there: replace(INDEXING, power_cuts=1, without_durability=1),
    an_index_is_updated_by_two_at_once: replace(INDEXING, processes=(4, 6)),
    an_index_is_updated_with_less_than_it_lacks: INDEXING,
}
"""How each rule is broken, and what seeds choose from to find that."""
