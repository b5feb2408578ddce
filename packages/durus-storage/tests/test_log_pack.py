"""The copy that a pack makes: what it takes over as it is, what it keeps, what it takes to make."""

import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from durus import log_pack
from durus.error import HistoryUnavailableError
from durus.file_storage import FileStorage
from durus.file_system import OperatingSystem
from durus.interfaces import NO_TID, ROOT_OID, Progress, Tid
from durus.log_file import LogFile
from durus.log_format import FLAGS_READ_ONLY, FLAGS_REFUSE
from durus.log_header import FileHeader
from durus.log_pack import LogPack
from durus.log_record import encode_record
from durus.log_verify import verify_file
from durus.log_writer import LogWriter
from durus.testing.storage_contract import commit, create, make_record, value, value_of


def write_log(
    path: Path,
    tids: list[int],
    horizon: int = NO_TID,
    value_at: Callable[[int], object] = int,
    **fields: Any,
) -> None:
    """Make a log in which every transaction writes the root."""
    system = OperatingSystem()
    file = LogFile(system, str(path), system.create(str(path)))
    header = FileHeader(
        database_id=bytes(16), file_id=bytes(range(16)), created_ns=1, horizon=Tid(horizon)
    )
    writer = LogWriter(file, header)
    for tid in tids:
        records = [(ROOT_OID, encode_record(ROOT_OID, make_record(value_at(tid))))]
        writer.append(records, tid=Tid(tid), time_ns=tid, id=tid, next_oid=1, **fields)
    writer.finish()


@pytest.mark.parametrize("keep", [None, NO_TID])
def test_what_this_release_does_not_know_stays(path: Path, keep: Tid | None) -> None:
    flags = 1 << 31
    assert not flags & (FLAGS_REFUSE | FLAGS_READ_ONLY)
    extension = b"odds" + (3).to_bytes(4) + b"end"
    write_log(path, [1, 2], flags=flags, extension=extension, user="ann", note="why")
    with closing(FileStorage(path)) as storage:
        commit(storage, {ROOT_OID: make_record(3)})
        before = list(storage._shared.current().walk(NO_TID, Tid(storage.tid + 1)))
        storage.pack(keep=keep)
        after = list(storage._shared.current().walk(NO_TID, Tid(storage.tid + 1)))
        found = [(t.tid, t.head.flags, t.extension, t.user, t.note) for t in after]
        assert found == [(t.tid, t.head.flags, t.extension, t.user, t.note) for t in before]
        assert found[0][1:] == (flags, extension, "ann", "why")
    assert list(verify_file(str(path))) == []


def test_the_horizon_never_goes_back(path: Path) -> None:
    write_log(path, [12, 13], horizon=10)
    with closing(FileStorage(path)) as storage:
        storage.pack(keep=NO_TID)
        with pytest.raises(HistoryUnavailableError):
            storage.snapshot(Tid(5))
        assert [value_of(r.record) for r in storage.revisions(ROOT_OID)] == [13, 12]


def test_what_an_object_was_that_is_changed_although_nothing_leads_to_it_stays(
    path: Path,
) -> None:
    with closing(FileStorage(path)) as storage, closing(FileStorage(path)) as other:
        a, b = create(storage, 2)
        horizon = commit(storage, {ROOT_OID: make_record(0, [a])}).tid
        changes = [make_record("somebody still has it")]

        def change_it(progress: Progress) -> None:
            if changes:
                commit(other, {b: changes.pop()})

        storage.pack(keep=horizon, progress=change_it)
        assert value(storage, b) == "somebody still has it"
        with closing(storage.snapshot(horizon)) as snapshot:
            assert value_of(snapshot.load(b).record) == 0
    assert list(verify_file(str(path))) == []


def test_nobody_is_told_of_progress_while_others_wait(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_pack, "_REPORT_SIZE", 0)
    told: list[str] = []
    with closing(FileStorage(path)) as storage, closing(FileStorage(path)) as other:
        a, _ = create(storage, 2)
        hush = LogPack.hush

        def commit_and_hush(pack: LogPack) -> None:
            commit(other, {a: make_record("just before the lock")})
            hush(pack)

        def report(progress: Progress) -> None:
            assert not storage._shared._appending.locked()
            told.append(progress.what)

        monkeypatch.setattr(LogPack, "hush", commit_and_hush)
        storage.pack(progress=report)
        assert "copying" in told
        assert value(storage, a) == "just before the lock"


def test_memory_does_not_grow_with_the_number_of_transactions(path: Path) -> None:
    write_log(path, list(range(1, 10_001)), value_at=lambda tid: 0)
    taken: list[int] = []

    def measure(progress: Progress) -> None:
        if progress.what == "copying" and not taken:
            found = tracemalloc.take_snapshot()
            files = [f"*/{name}.py" for name in ("log", "log_pack", "log_waypoints")]
            of_ours = found.filter_traces([tracemalloc.Filter(True, name) for name in files])
            taken.append(sum(trace.size for trace in of_ours.traces))

    with closing(FileStorage(path)) as storage:
        commit(storage, {ROOT_OID: make_record("x" * (1 << 20))})
        tracemalloc.start()
        try:
            storage.pack(progress=measure)
        finally:
            tracemalloc.stop()
    assert taken[0] < 50_000
