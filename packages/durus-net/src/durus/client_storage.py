"""`ClientStorage`: the storage of a server, for one caller, by protocol 1.

A `Connection` takes it as it takes any other storage, through the adapter of `durus.classic`,
which lets threads share it.  The invariant: *after anything has come in the way of an exchange
with the server, the stream is not used any more*, since nobody knows at which byte it is; nor is
that of another process.  `reconnect()` makes a new one, and the adapter calls it.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import ClassVar, Final, NoReturn, TypeVar
from urllib.parse import unquote, urlsplit

from durus import interfaces, protocol1
from durus.classic import as_storage
from durus.classic_storage import Storage
from durus.error import (
    CommitOutcomeUnknownError,
    ConflictError,
    DurusKeyError,
    ReadConflictError,
    ReadOnlyError,
    ServerLostError,
    StorageClosedError,
    StorageError,
    StorageOpenError,
    WriteConflictError,
    format_oid,
)
from durus.interfaces import Oid
from durus.server_requests import CommitOutcome, LoadFailure
from durus.socket_address import DEFAULT_HOST, DEFAULT_PORT, SocketAddress
from durus.utils import ShortRead, write
from durus.wire import Exchange, Socket, run_blocking

__all__ = ["ClientStorage", "open_tcp", "open_unix"]

T = TypeVar("T")

_OIDS_AT_ONCE_MAX: Final = 255
"""They are counted in one byte."""
_LOADED_AT_ONCE_MAX: Final = 1_000
_REMEDY: Final = "when it is back, abort() or the next transaction connects again"


class ClientStorage(Storage):
    """What a server serves, of Durus 4.x or 5."""

    is_remote: ClassVar[bool] = True

    def __init__(
        self,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_PORT,
        address: SocketAddress | tuple[str, int] | str | None = None,
        *,
        readonly: bool = False,
    ) -> None:
        """Connect to the server at host and port, or at an address (see `SocketAddress.new`).

        readonly: refuse to commit; the server knows nothing of it.
        ServerLostError (a ConnectionError) when there is no server, ProtocolError when it is of
        another kind.
        """
        self.address = SocketAddress.new(address or (host, port))
        self.readonly = readonly
        self.oid_pool: list[Oid] = []
        """Handed out by the server, and not used yet; the next one is the last."""
        self.oid_pool_size = 32
        self._unreported: list[Oid] = []
        """What the server said has changed, and nobody has heard."""
        self._is_closed = False
        self._connect()

    def _connect(self) -> None:
        try:
            connected = self.address.get_connected_socket()
        except OSError as error:
            reason = f"cannot connect: {error.strerror or error}"
            raise ServerLostError(f"{self.address}: {reason}") from error
        if connected is None:
            raise ServerLostError(f"{self.address}: cannot connect: no server is running there")
        self._socket = connected
        self.s: Socket = connected
        self._pid = os.getpid()
        self._lost_because = ""
        self._in_commit = False
        self.oid_pool.clear()
        self._unreported.clear()
        self.begin()
        self._exchange(protocol1.greet())

    @property
    def is_cut_off(self) -> bool:
        """Whether nothing works before `reconnect()`: the server is lost, or this is a child."""
        return bool(self._lost_because) or os.getpid() != self._pid

    def reconnect(self) -> None:
        """Connect to the server again, when it was lost, or in a child that was forked.

        What was loaded before may have changed, and `sync()` will not say so.  ServerLostError.
        """
        if self._is_closed:
            raise StorageClosedError(f"{self} is closed")
        self._socket.close()  # in a child, the parent goes on with it
        self._connect()

    def __str__(self) -> str:
        return f"ClientStorage({self.address})"

    # Exchanges with the server.

    def _exchange(self, exchange: Exchange[T], *, in_commit: bool = False) -> T:
        """Have one exchange; whatever comes in its way makes the stream unusable."""
        self._check_usable(in_commit=in_commit)
        try:
            return run_blocking(exchange, self.s)
        except ShortRead as error:
            self._lose("the server has closed the connection")
            self._raise_lost(error)
        except OSError as error:
            self._lose(f"the connection to the server was lost: {error.strerror or error}")
            self._raise_lost(error)
        except BaseException as error:
            self._lose(f"an exchange with the server was interrupted by {type(error).__name__}")
            raise

    def _check_usable(self, *, in_commit: bool = False) -> None:
        if self._is_closed:
            raise StorageClosedError(f"{self} is closed")
        if os.getpid() != self._pid:
            raise StorageError(
                f"{self} was opened by process {self._pid} before it forked this one, where "
                "reconnect() must come first; transactions of the child connect anew by themselves"
            )
        if self._lost_because:
            self._raise_lost()
        if self._in_commit != in_commit:
            raise StorageError(f"{self} is in the middle of a commit, and takes no other call")

    def _lose(self, reason: str) -> None:
        self._lost_because = self._lost_because or reason
        self._socket.close()

    def _raise_lost(self, error: Exception | None = None) -> NoReturn:
        raise ServerLostError(f"{self.address}: {self._lost_because}; {_REMEDY}") from error

    def _check_writable(self) -> None:
        if self.readonly:
            raise ReadOnlyError(f"{self} is open read-only")

    def close(self) -> None:
        """Close the connection to the server; twice is no error."""
        if self._is_closed:
            return
        self._is_closed = True
        if not self.is_cut_off:
            with suppress(OSError):
                write(self.s, protocol1.BYE)
        self._socket.close()

    # Reading.

    def load(self, oid: bytes) -> bytes:
        """The record of this oid.

        DurusKeyError when there is none; ReadConflictError when somebody else changed it and
        `sync()` has not said so yet; StorageError when the server cannot read it.
        """
        if len(oid) != 8:
            raise DurusKeyError(oid)
        (answer,) = self._exchange(protocol1.load_many((oid,)))
        return self._check(oid, answer)

    def bulk_load(self, oids: Iterable[bytes]) -> Iterator[bytes]:
        """The records of several oids, in their order; raises as `load` does."""
        wanted = list(oids)
        for oid in wanted:
            if len(oid) != 8:
                raise DurusKeyError(oid)
        for start in range(0, len(wanted), _LOADED_AT_ONCE_MAX):
            batch = wanted[start : start + _LOADED_AT_ONCE_MAX]
            answers = self._exchange(protocol1.load_many(batch))
            # All of the answers have been received; only now may one of them be an exception.
            yield from [
                self._check(oid, answer) for oid, answer in zip(batch, answers, strict=True)
            ]

    def _check(self, oid: bytes, answer: bytes | LoadFailure) -> bytes:
        if answer is LoadFailure.MISSING:
            raise DurusKeyError(oid)
        if answer is LoadFailure.CHANGED:
            raise ReadConflictError([oid])
        if answer is LoadFailure.UNREADABLE:
            raise StorageError(
                f"{self.address}: the server cannot read object {format_oid(oid)}; its log says why"
            )
        return answer

    def sync(self) -> list[Oid]:
        """The oids that others changed since the last call."""
        changed = self._exchange(protocol1.sync())
        if self._unreported:
            changed = sorted({*self._unreported, *changed})
            self._unreported.clear()
        return changed

    # Writing.

    def new_oid(self) -> Oid:
        """An oid that is in no use, and was handed out to nobody else."""
        self._check_writable()
        self._check_usable()
        if not self.oid_pool:
            count = max(1, min(self.oid_pool_size, _OIDS_AT_ONCE_MAX))
            self.oid_pool = self._exchange(protocol1.new_oids(count))[::-1]
        oid = self.oid_pool.pop()
        self.transaction_new_oids.append(oid)
        return oid

    def begin(self) -> None:
        """Begin a commit; what was stored for one that did not end is forgotten."""
        self.records: dict[bytes, bytes] = {}
        """What `end()` sends."""
        self.transaction_new_oids: list[Oid] = []
        """Taken since; a conflict that `handle_invalidations` finds puts them back."""

    def store(self, oid: bytes, record: bytes) -> None:
        """Add a record to the commit; ValueError when it is not one of this oid, or another."""
        if len(oid) != 8 or record[:8] != oid:
            raise ValueError(f"the record for oid {oid!r} says that its oid is {record[:8]!r}")
        if oid in self.records:
            raise ValueError(f"object {format_oid(oid)} is stored twice in one transaction")
        self.records[oid] = record

    def end(self, handle_invalidations: Callable[[Sequence[bytes]], object] | None = None) -> None:
        """Conclude the commit; see `Storage.end`.

        Raises WriteConflictError when anybody has committed meanwhile, StorageError when the
        server cannot store it, ServerLostError when it is lost before it has the transaction:
        with all of these nothing happened.  CommitOutcomeUnknownError when it is lost after that.
        """
        if self.records:
            self._check_writable()
        has_records = bool(self.records)
        message = protocol1.encode_transaction(self.records)
        self._check_usable()
        self._in_commit = True
        try:
            changed = self._exchange(protocol1.begin_commit(), in_commit=True)
            try:
                if changed:
                    (handle_invalidations or self._unreported.extend)(changed)
            except BaseException as error:
                self._give_up(error, changed)
                raise
            self.records.clear()
            self._exchange(protocol1.send_transaction(message), in_commit=True)
            outcome = self._receive_outcome() if has_records else CommitOutcome.COMMITTED
            self._in_commit = False
        except BaseException as error:
            if self._in_commit:  # the stream is somewhere inside of it
                self._lose(f"a commit was interrupted by {type(error).__name__}")
            raise
        if outcome is CommitOutcome.CONFLICT:
            raise WriteConflictError()
        if outcome is CommitOutcome.REFUSED:
            raise StorageError(
                f"{self.address}: the server did not commit the transaction, of "
                f"{len(message) - 4:,} bytes, and nothing has changed; its log says why"
            )

    def _receive_outcome(self) -> CommitOutcome:
        try:
            return self._exchange(protocol1.receive_commit_status(), in_commit=True)
        except ServerLostError as error:
            raise CommitOutcomeUnknownError(None, str(error)) from error

    def _give_up(self, error: BaseException, changed: list[Oid]) -> None:
        if not isinstance(error, ConflictError):
            self._unreported.extend(changed)  # it may not have come so far as to note them
        self.oid_pool.extend(reversed(self.transaction_new_oids))
        self.begin()
        with suppress(ServerLostError):
            self._exchange(protocol1.give_up_commit(), in_commit=True)
        self._in_commit = False

    def pack(self) -> None:
        """Have the server begin to pack; it serves its clients meanwhile.

        StorageError if its storage cannot be packed.
        """
        self._check_writable()
        if not self._exchange(protocol1.pack()):
            raise StorageError(f"{self.address}: the server cannot pack; its log says why")


def open_tcp(uri: str, *, readonly: bool, create: bool) -> interfaces.Storage:
    """Connect to the server at durus://host:port, both of which may be left out.

    What there is to create, its server has created.
    """
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname or DEFAULT_HOST, parts.port or DEFAULT_PORT
    except ValueError as error:
        raise StorageOpenError(
            uri, f"this is not of the form durus://host:port: {error}"
        ) from error
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise StorageOpenError(uri, "this is not of the form durus://host:port")
    return as_storage(ClientStorage(host, port, readonly=readonly))


def open_unix(uri: str, *, readonly: bool, create: bool) -> interfaces.Storage:
    """Connect to the server at durus+unix:///path."""
    parts = urlsplit(uri)
    if parts.netloc or not parts.path or parts.query or parts.fragment:
        raise StorageOpenError(uri, "this is not of the form durus+unix:///path")
    return as_storage(ClientStorage(address=unquote(parts.path), readonly=readonly))
