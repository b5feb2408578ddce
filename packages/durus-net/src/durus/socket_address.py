"""Where a server listens and clients connect: TCP, unix sockets, abstract ones, inherited ones.

`SocketAddress.new` makes one of what programs of Durus 4.x pass as an address.  The invariant: a
file that is no socket, or a socket that somebody listens on, is never removed.
"""

import errno
import os
import socket
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from durus.error import StorageError

if os.name != "nt":
    import grp
    import pwd

__all__ = [
    "DEFAULT_HOST",
    "DEFAULT_PORT",
    "HostPortAddress",
    "InheritedSocket",
    "SocketAddress",
    "UnixAbstractAddress",
    "UnixDomainSocketAddress",
]

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 2972

_BACKLOG: Final = 100
_NOBODY_LISTENS: Final = {errno.ECONNREFUSED, errno.ENOENT, errno.ENOTSOCK}


class SocketAddress(ABC):
    """An address, and how to listen on it or connect to it."""

    @staticmethod
    def new(
        address: "SocketAddress | tuple[str, int] | str | os.PathLike[str]",
        owner: str | int | None = None,
        group: str | int | None = None,
        umask: int | None = None,
    ) -> "SocketAddress":
        """An address of what names one: (host, port), '@abstract' or the path of a unix socket.

        owner, group, umask: of the path of a unix socket.  ValueError for an abstract one.
        """
        if isinstance(address, SocketAddress):
            return address
        if isinstance(address, tuple):
            host, port = address
            return HostPortAddress(host, port)
        name = os.fspath(address)
        if not name.startswith("@"):
            return UnixDomainSocketAddress(name, owner, group, umask)
        if (owner, group, umask) != (None, None, None):
            raise ValueError(f"{name} is an abstract socket, which has no owner, group or umask")
        return UnixAbstractAddress(name)

    @abstractmethod
    def get_address_family(self) -> int:
        """`socket.AF_INET` and so on."""

    @abstractmethod
    def bind_socket(self, s: socket.socket) -> None:
        """Bind the socket to this address; OSError."""

    def get_listening_socket(self) -> socket.socket:
        """A socket that is bound to this address and listens; OSError."""
        s = socket.socket(self.get_address_family(), socket.SOCK_STREAM)
        try:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.bind_socket(s)
            s.listen(_BACKLOG)
        except BaseException:
            s.close()
            raise
        return s

    @abstractmethod
    def get_connected_socket(self) -> socket.socket | None:
        """A socket that is connected to this address, or None when nobody listens; OSError."""

    def set_connection_options(self, s: socket.socket) -> None:
        """Prepare a socket that was accepted here.  (The server keeps its time-outs itself.)"""
        if s.family != getattr(socket, "AF_UNIX", None):
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Else a client whose machine lost its power would stay for ever.
            s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def close(self, s: socket.socket) -> None:
        """Close a listening socket, and remove what it left."""
        s.close()


class HostPortAddress(SocketAddress):
    """A TCP address; with ':' in the host it is one of IPv6."""

    def __init__(self, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT) -> None:
        """port: 0 is replaced by a free one when a socket is bound."""
        self.host = host
        self.port = port

    def __str__(self) -> str:
        return _format_host_port(self.host, self.port)

    def get_address_family(self) -> int:
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def bind_socket(self, s: socket.socket) -> None:
        s.bind((self.host, self.port))
        self.port = s.getsockname()[1]

    def get_connected_socket(self) -> socket.socket | None:
        s = _connect(self.get_address_family(), (self.host, self.port), {errno.ECONNREFUSED})
        if s is not None:
            self.set_connection_options(s)
        return s


class UnixAbstractAddress(SocketAddress):
    """A name that Linux keeps apart from the file system: '@name'."""

    def __init__(self, filename: str) -> None:
        self.filename = filename.replace("@", "\0", 1)

    def __str__(self) -> str:
        return self.filename.replace("\0", "@", 1)

    def get_address_family(self) -> int:
        return socket.AF_UNIX

    def bind_socket(self, s: socket.socket) -> None:
        s.bind(self.filename)

    def get_connected_socket(self) -> socket.socket | None:
        return _connect(self.get_address_family(), self.filename, _NOBODY_LISTENS)


class UnixDomainSocketAddress(UnixAbstractAddress):
    """The path of a unix socket, and whose its file shall be when a server makes it."""

    def __init__(
        self,
        filename: str,
        owner: str | int | None = None,
        group: str | int | None = None,
        umask: int | None = None,
    ) -> None:
        """owner, group: a name or number; None: the process's.  umask: None: the process's."""
        self.filename = filename
        self.owner = owner
        self.group = group
        self.umask = umask
        self._bound: tuple[int, int] | None = None
        """Device and inode of the file that `bind_socket` has made."""

    def __str__(self) -> str:
        try:
            status = os.stat(self.filename)
        except OSError:
            return self.filename
        owner, group = _name_of_user(status.st_uid), _name_of_group(status.st_gid)
        return f"{self.filename} ({stat.filemode(status.st_mode)[1:]} {owner} {group})"

    def bind_socket(self, s: socket.socket) -> None:
        """Bind the socket; a file that a dead server left is replaced.

        StorageError when there is no such owner or group.
        """
        uid = self._find_number("user", self.owner)
        gid = self._find_number("group", self.group)
        with _umask(self.umask):
            try:
                s.bind(self.filename)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not self._is_stale():
                    raise
                os.unlink(self.filename)
                s.bind(self.filename)
        status = os.stat(self.filename)
        self._bound = status.st_dev, status.st_ino
        if (uid, gid) != (-1, -1):
            try:
                os.chown(self.filename, uid, gid)
            except OSError:
                self._remove()
                raise

    def close(self, s: socket.socket) -> None:
        """Close a listening socket, and remove its file."""
        s.close()
        self._remove()

    def _is_stale(self) -> bool:
        if not stat.S_ISSOCK(os.lstat(self.filename).st_mode):
            reason = "a file that is no socket is in the way"
            raise OSError(errno.EADDRINUSE, reason, self.filename)
        connected = self.get_connected_socket()
        if connected is not None:
            connected.close()
        return connected is None

    def _remove(self) -> None:
        try:
            status = os.lstat(self.filename)
            if (status.st_dev, status.st_ino) == self._bound:  # and not that of another server
                os.unlink(self.filename)
        except FileNotFoundError:
            pass
        self._bound = None

    def _find_number(self, kind: str, name: str | int | None) -> int:
        if name is None:
            return -1  # as it is
        if isinstance(name, int) or name.isdecimal():
            return int(name)
        try:
            return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
        except KeyError as error:
            raise StorageError(f"{self.filename}: there is no {kind} {name!r}") from error


class InheritedSocket(SocketAddress):
    """The address of a listening socket that another process has opened."""

    def __init__(self, sock: socket.socket) -> None:
        self.name = sock.getsockname()
        self._family = sock.family

    def __str__(self) -> str:
        if self.get_address_family() in (socket.AF_INET, socket.AF_INET6):
            return _format_host_port(*self.name[:2])
        return os.fsdecode(self.name).replace("\0", "@", 1)

    def get_address_family(self) -> int:
        return self._family

    def bind_socket(self, s: socket.socket) -> None:
        raise ValueError(f"{self} is bound already")

    def get_connected_socket(self) -> socket.socket | None:
        return _connect(self._family, self.name, _NOBODY_LISTENS)


def _format_host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _connect(family: int, address: Any, nobody_listens: set[int]) -> socket.socket | None:
    s = socket.socket(family, socket.SOCK_STREAM)
    try:
        s.connect(address)
    except OSError as error:
        s.close()
        if error.errno in nobody_listens:
            return None
        raise
    except BaseException:
        s.close()
        raise
    return s


@contextmanager
def _umask(umask: int | None) -> Iterator[None]:
    """The umask belongs to the whole process, so it is changed for as short as can be."""
    if umask is None:
        yield
        return
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


def _name_of_user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _name_of_group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
