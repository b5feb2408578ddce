"""Pack, for `SqliteStorage`: take away the records that cannot be reached from the root.

Invariant: of the last changes, it stays known which objects each transaction wrote, so that a
transaction which began before the pack is checked as any other.
"""

from itertools import chain
from typing import Final

from durus.interfaces import CHANGES_MAX, ROOT_OID
from durus.record import split_oids
from durus.sqlite_file import SqliteFile, number_of

__all__ = ["pack_file"]

_TRANSACTIONS_KEPT: Final = 1000
"""So many of the last transactions are kept, whether any of their records are or not."""
_BATCH: Final = 100

# What was reached, in the order in which it is followed up: memory does not grow with it.
_REACHABLE: Final = """
CREATE TEMP TABLE reachable (position INTEGER PRIMARY KEY, oid INTEGER NOT NULL UNIQUE)
"""
_REFS: Final = """
SELECT position, (
    SELECT refs FROM revisions WHERE revisions.oid = reachable.oid AND class IS NOT NULL
    ORDER BY tid DESC LIMIT 1
) FROM reachable WHERE position > ? ORDER BY position LIMIT ?
"""

_IS_NEEDED: Final = """(
    oid IN (SELECT oid FROM reachable) AND NOT EXISTS (
        SELECT 1 FROM revisions AS later
        WHERE later.oid = revisions.oid AND later.tid > revisions.tid
    )
)"""


def pack_file(file: SqliteFile) -> None:
    """Do it, in the transaction that has begun.  CorruptionError rather than lose an object."""
    file.check_sound()
    meta = file.read_meta()
    file.run(_REACHABLE)
    file.run("INSERT INTO reachable (oid) VALUES (?)", number_of(ROOT_OID))
    position = 0
    while batch := list(file.rows(_REFS, position, _BATCH)):
        position = batch[-1][0]
        refs = chain.from_iterable(split_oids(packed) for _, packed in batch if packed)
        file.run_many(
            "INSERT OR IGNORE INTO reachable (oid) VALUES (?)", ((number_of(ref),) for ref in refs)
        )
    # The rows of the last changes stay, without the records.
    oldest = file.value("SELECT tid FROM revisions ORDER BY tid DESC LIMIT 1 OFFSET ?", CHANGES_MAX)
    forgotten = max(meta.forgotten, oldest or 0)
    file.run(f"DELETE FROM revisions WHERE tid <= ? AND NOT {_IS_NEEDED}", forgotten)
    file.run(
        "UPDATE revisions SET class = NULL, state = NULL, refs = NULL"
        f" WHERE tid > ? AND class IS NOT NULL AND NOT {_IS_NEEDED}",
        forgotten,
    )
    file.run(
        "DELETE FROM transactions WHERE tid <= ?"
        " AND tid < (SELECT tid FROM transactions ORDER BY tid DESC LIMIT 1 OFFSET ?)"
        " AND NOT EXISTS (SELECT 1 FROM revisions WHERE revisions.tid = transactions.tid)",
        forgotten,
        _TRANSACTIONS_KEPT - 1,
    )
    file.run("UPDATE meta SET horizon = ?, forgotten = ?, packs = packs + 1", meta.tid, forgotten)
    file.run("DROP TABLE reachable")
