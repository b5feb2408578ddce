"""The hub of a server: one storage, what its clients have seen of it, and what they may do.

It answers `durus.server_requests`.  All clients read from one snapshot, the hub's *view* at the
tid H; each has seen the database at a tid T of its own.  Invariants:

    * T <= H, and what was written after T, up to H, is in the client's `invalid`: so whatever else
      is loaded from the view is as it was at T.
    * A transaction is read at the T of its client, and has accessed everything: it is committed
      only if nobody has committed after T.
    * What may make others wait (commits, their locks and syncs, snapshots, long loads) happens in
      threads; all else in the event loop, where nothing comes in between.
    * A request that was begun is finished, whatever becomes of its client or the server.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from logging import DEBUG, ERROR, INFO, WARNING
from typing import Any, Final, TypeVar, cast

from durus.crawl import crawl_snapshot
from durus.error import (
    CommitOutcomeUnknownError,
    ConflictError,
    DanglingReferenceError,
    DurusKeyError,
    ObjectError,
    ReadConflictError,
    StorageError,
    format_oid,
)
from durus.interfaces import (
    CHANGES_MAX,
    NO_TID,
    ROOT_OID,
    Oid,
    PackableStorage,
    Record,
    Snapshot,
    Storage,
    Tid,
)
from durus.logger import log
from durus.server_commit import CREATED_OID_MAX, Stored, store
from durus.server_requests import (
    OIDS_MAX,
    ClientError,
    Commit,
    CommitOutcome,
    Compute,
    Load,
    Loaded,
    LoadFailure,
    NewOids,
    Pack,
    Request,
    Sync,
)

__all__ = ["Hub", "HubClient"]

T = TypeVar("T")

_THREADS_MAX: Final = 32
_LOADED_AT_ONCE_MAX_BYTES: Final = 1 << 20
_CRAWLS_MAX: Final = 10
"""A storage without history lets a walk over everything finish only if nothing changes."""


class HubClient:
    """What the hub knows of one client."""

    def __init__(self, tid: Tid) -> None:
        self.tid = tid
        """What it has seen."""
        self.invalid: set[Oid] | None = set()
        """What was changed since, up to the hub's view; None: too much to list."""
        self.unused_oids: set[Oid] = set()
        """Handed out to it, and not stored yet."""

    def note_changes(self, oids: frozenset[Oid] | None) -> None:
        """These were changed after what it has seen (None: perhaps everything)."""
        if self.invalid is not None:
            if oids is not None and len(self.invalid) + len(oids) <= CHANGES_MAX:
                self.invalid |= oids
            else:
                self.invalid = None


class _View:
    """A snapshot that several tasks use."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.users = 1

    def release(self) -> None:
        """The last one closes it."""
        self.users -= 1
        if not self.users:
            self.snapshot.close()


class Hub:
    """One storage, for any number of clients.

    gc_bytes: pack whenever that much was committed; 0: never.
    """

    def __init__(self, storage: Storage, gc_bytes: float = 0) -> None:
        self._storage = storage
        self._gc_bytes = gc_bytes
        self._bytes_since_pack = 0
        self._view = _View(storage.snapshot())
        self._clients: set[HubClient] = set()
        self._threads = ThreadPoolExecutor(_THREADS_MAX, "durus-server")
        self._locks_held = 0
        """How many threads may hold a lock of the storage, perhaps for as long as a disk takes."""
        self._refreshing = asyncio.Lock()
        self._committing = asyncio.Lock()
        self._listing = asyncio.Lock()
        self._packing: asyncio.Task[None] | None = None
        self._is_closing = False
        root = self._load_one(self._view.snapshot, set(), ROOT_OID)
        self._offers_root = root is LoadFailure.MISSING
        """The first oid that is handed out is the root's: 4.3 insists on it, to make the root."""

    async def close(self) -> None:
        """Close the storage.  What was begun is finished first, except for a pack in steps."""
        self._is_closing = True
        try:
            await self._in_thread(self._storage.close)
            if self._packing is not None:
                await self._packing
        finally:
            self._view.release()
            self._threads.shutdown()

    async def join(self) -> HubClient:
        """A new client, which sees what is newest."""
        await self._refresh()
        client = HubClient(self._view.snapshot.tid)
        self._clients.add(client)
        return client

    def leave(self, client: HubClient) -> None:
        """The client has gone."""
        self._clients.discard(client)
        if ROOT_OID in client.unused_oids:
            self._offers_root = True

    async def answer(self, client: HubClient, request: Request[Any]) -> object:
        """Do what the client asks for.

        What it raises ends the client's connection: ClientError, StorageError, OSError.
        """
        match request:
            case Load(oids):
                return await self._answer_load(client, oids)
            case Sync():
                return await self._sync(client)
            case Commit(writes, size_bytes):
                return await self._commit(client, writes, size_bytes)
            case NewOids(count):
                return await self._hand_out(client, count)
            case Pack():
                return self._start_pack("Pack")
            case Compute(function):
                return await self._in_thread(cast(Callable[[], object], function), may_lock=False)
        raise AssertionError(request)

    async def _in_thread(self, function: Callable[[], T], *, may_lock: bool = True) -> T:
        """Call the function in a thread; it may hold a lock of the storage for long, or may not."""
        self._locks_held += may_lock
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function)
        finally:
            self._locks_held -= may_lock

    # Reading.

    async def _answer_load(self, client: HubClient, oids: Sequence[Oid]) -> list[Loaded]:
        view = self._view
        view.users += 1
        try:
            load = partial(self._load, view.snapshot, client.invalid, oids)
            if len(oids) == 1 and not self._locks_held:
                return load()
            return await self._in_thread(load, may_lock=False)
        finally:
            view.release()

    def _load(
        self, snapshot: Snapshot, invalid: set[Oid] | None, oids: Sequence[Oid]
    ) -> list[Loaded]:
        found: list[Loaded] = []
        size = 0
        for oid in oids:
            loaded = self._load_one(snapshot, invalid, oid)
            found.append(loaded)
            if isinstance(loaded, Record):
                size += len(loaded.state_pickle) + len(loaded.refs)
                if size >= _LOADED_AT_ONCE_MAX_BYTES:
                    break
        return found

    def _load_one(self, snapshot: Snapshot, invalid: set[Oid] | None, oid: Oid) -> Loaded:
        if invalid is None or oid in invalid:
            return LoadFailure.CHANGED
        try:
            return snapshot.load(oid).record
        except DurusKeyError:
            log(DEBUG, "KeyError %s", format_oid(oid))
            return LoadFailure.MISSING
        except ReadConflictError:  # a storage without history has replaced it, after the view
            log(DEBUG, "ReadConflictError %s", format_oid(oid))
            return LoadFailure.CHANGED
        except (StorageError, OSError) as error:
            log(ERROR, "Object %s cannot be read: %s", format_oid(oid), error)
            return LoadFailure.UNREADABLE

    async def _refresh(self, committer: HubClient | None = None, tid: Tid = NO_TID) -> None:
        """Move the view on to what is newest.

        Of what the committer has just committed, as the transaction `tid`, it is not told.
        """
        async with self._refreshing:
            since = self._view.snapshot.tid
            snapshot, changed, later = await self._in_thread(partial(self._look, since, tid))
            self._move(snapshot, changed, committer, tid, later)

    def _move(
        self,
        snapshot: Snapshot,
        changed: frozenset[Oid] | None,
        committer: HubClient | None,
        tid: Tid,
        later: frozenset[Oid] | None,
    ) -> None:
        """The view becomes this snapshot: this has `changed` for all, `later` for the committer."""
        if changed is None or ROOT_OID in changed:  # it is there by now
            self._offers_root = False
            for client in self._clients:
                client.unused_oids.discard(ROOT_OID)
        for client in self._clients:
            if client is not committer:
                client.note_changes(changed)
        if committer is not None:
            # Nobody has committed between what it has seen and its own transaction.
            committer.tid = tid
            committer.invalid = set()
            committer.note_changes(later)
        self._view.release()
        self._view = _View(snapshot)

    def _look(
        self, since: Tid, committed: Tid
    ) -> tuple[Snapshot, frozenset[Oid] | None, frozenset[Oid] | None]:
        """The newest snapshot, and the changes up to there, since two tids."""
        snapshot = self._storage.snapshot()
        try:
            changed, later = (
                self._storage.changes(tid, snapshot.tid) if tid < snapshot.tid else frozenset()
                for tid in (since, committed or snapshot.tid)
            )
        except BaseException:
            snapshot.close()
            raise
        return snapshot, changed, later

    async def _sync(self, client: HubClient) -> bytes:
        await self._refresh()
        if client.invalid is None:
            return await self._list_everything(client)
        log(DEBUG, "Sync %s", len(client.invalid))
        oids, client.invalid = client.invalid, set()
        client.tid = self._view.snapshot.tid
        return b"".join(oids)

    async def _list_everything(self, client: HubClient) -> bytes:
        """The oids of all objects: a client can be told in no other way to forget everything."""
        async with self._listing:
            for _ in range(_CRAWLS_MAX):
                view = self._view
                view.users += 1
                client.invalid = set()  # from this view on
                client.tid = view.snapshot.tid
                try:
                    return await self._in_thread(partial(_list_oids, view.snapshot), may_lock=False)
                except ReadConflictError:
                    await self._refresh()
                finally:
                    view.release()
        raise ClientError(
            "too much has changed since its last transaction, and its objects could not be listed "
            "because others keep committing"
        )

    # Writing.

    async def _commit(
        self, client: HubClient, writes: Mapping[Oid, Record], size_bytes: int
    ) -> CommitOutcome:
        handed_out = writes.keys() & client.unused_oids
        self._refuse_oids_of_others(client, writes.keys() - handed_out - {ROOT_OID})
        async with self._committing:
            try:
                stored = await self._in_thread(
                    partial(store, self._storage, client.tid, handed_out, writes)
                )
            except DanglingReferenceError as error:
                log(WARNING, "Conflict during commit: %s", error)
                return CommitOutcome.CONFLICT
            except ConflictError:
                log(INFO, "Conflict during commit")
                return CommitOutcome.CONFLICT
            except CommitOutcomeUnknownError:
                client.unused_oids -= handed_out  # perhaps they are in use
                raise
            except (StorageError, ObjectError, ValueError) as error:
                log(ERROR, "A transaction was refused: %s", error)
                return CommitOutcome.REFUSED
        now = datetime.now()
        log(INFO, "Committed %3s objects %s bytes at %s", len(writes), size_bytes, now)
        client.unused_oids -= handed_out
        await self._move_past(client, stored, frozenset(writes))
        self._bytes_since_pack += size_bytes + 8
        if 0 < self._gc_bytes <= self._bytes_since_pack and self._packing is None:
            self._start_pack("gc")
        return CommitOutcome.COMMITTED

    async def _move_past(self, client: HubClient, stored: Stored, written: frozenset[Oid]) -> None:
        """Move the view on to where the client's transaction is visible."""
        tid, removed, snapshot = stored
        if snapshot is not None:
            nothing_else = (self._view.snapshot.tid, snapshot.tid) == (client.tid, tid)
            if nothing_else and not removed and not self._refreshing.locked():
                self._move(snapshot, written, client, tid, frozenset())
                return
            snapshot.close()
        client.invalid = None  # until the view has moved past the transaction
        try:
            await self._refresh(client, tid)
            client.note_changes(removed)
        except (StorageError, OSError) as error:
            log(ERROR, "The newest state cannot be read: %s", error)

    async def _hand_out(self, client: HubClient, count: int) -> Sequence[Oid]:
        if self._storage.readonly:
            # It reserves none, and protocol 1 has no way to say so before the commit.
            first = CREATED_OID_MAX // 2
            return [Oid(number.to_bytes(8)) for number in range(first, first + count)]
        if len(client.unused_oids) + count > OIDS_MAX:
            raise ClientError(f"it took more than {OIDS_MAX:,} oids without using them")
        oids: list[Oid] = []
        if self._offers_root:
            self._offers_root = False
            oids.append(ROOT_OID)
        while (missing := count - len(oids)) > 0:
            more = await self._in_thread(partial(self._storage.reserve_oids, missing))
            oids += [oid for oid in more if oid != ROOT_OID]
        client.unused_oids.update(oids)
        return oids

    def _refuse_oids_of_others(self, client: HubClient, oids: Set[Oid]) -> None:
        for other in self._clients:
            if other is not client and (taken := other.unused_oids & oids):
                raise ClientError(
                    f"it stores object {format_oid(min(taken))}, the oid of which was handed out "
                    "to another client"
                )

    def _start_pack(self, what: str) -> bool:
        """Whether the storage is being packed now."""
        if self._packing is not None:
            log(INFO, "Pack already in progress at %s", datetime.now())
            return True
        storage = self._storage
        if storage.readonly or not isinstance(storage, PackableStorage):
            why = "is open read-only" if storage.readonly else "cannot be packed"
            log(ERROR, "%s failed: %s %s", what, storage, why)
            return False
        log(INFO, "%s started at %s", what, datetime.now())
        self._bytes_since_pack = 0
        self._packing = asyncio.create_task(self._pack(storage, what))
        return True

    async def _pack(self, storage: PackableStorage, what: str) -> None:
        try:
            await self._in_thread(storage.pack)
            await self._refresh()
        except Exception as error:
            if self._is_closing:
                log(INFO, "%s was given up, because the server stops", what)
            else:
                log(ERROR, "%s failed: %s", what, error)
        else:
            log(INFO, "%s completed at %s", what, datetime.now())
        finally:
            self._packing = None


def _list_oids(snapshot: Snapshot) -> bytes:
    return b"".join(oid for oid, _ in crawl_snapshot(snapshot))
