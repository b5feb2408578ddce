"""Addresses: what a server makes of them, and what it leaves alone."""

import errno
import grp
import os
import pwd
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from durus.error import StorageError
from durus.socket_address import (
    HostPortAddress,
    InheritedSocket,
    SocketAddress,
    UnixAbstractAddress,
    UnixDomainSocketAddress,
)

USER = pwd.getpwuid(os.getuid()).pw_name
GROUP = grp.getgrgid(os.getgid()).gr_name

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")


@contextmanager
def listening(address: SocketAddress) -> Iterator[socket.socket]:
    s = address.get_listening_socket()
    try:
        yield s
    finally:
        address.close(s)


def assert_connects(address: SocketAddress) -> None:
    connected = address.get_connected_socket()
    assert connected is not None
    connected.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def stale(path: Path) -> Path:
    """The path of a socket that a server left when it was killed."""
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))
    return path


def test_what_names_an_address_makes_one(path: Path) -> None:
    tcp = SocketAddress.new(("127.0.0.1", 5))
    assert isinstance(tcp, HostPortAddress)
    assert SocketAddress.new(tcp) is tcp
    assert type(SocketAddress.new("@name")) is UnixAbstractAddress
    unix = SocketAddress.new("some/path", owner="me", group=5, umask=0o77)
    assert type(unix) is UnixDomainSocketAddress
    assert (unix.filename, unix.owner, unix.group, unix.umask) == ("some/path", "me", 5, 0o77)
    from_path = SocketAddress.new(path)
    assert type(from_path) is UnixDomainSocketAddress
    assert from_path.filename == str(path)


def test_an_abstract_address_has_no_owner() -> None:
    assert SocketAddress.new("@name", owner=None, group=None, umask=None)
    with pytest.raises(ValueError, match="@name is an abstract socket"):
        SocketAddress.new("@name", owner="me")


def test_addresses_are_shown_as_users_write_them(path: Path) -> None:
    assert str(HostPortAddress()) == "127.0.0.1:2972"
    assert str(HostPortAddress("::1", 5)) == "[::1]:5"
    assert str(UnixAbstractAddress("@name")) == "@name"
    assert UnixAbstractAddress("@me@here").filename == "\0me@here"
    unix = UnixDomainSocketAddress(str(path), umask=0o77)
    assert str(unix) == str(path)
    with listening(unix):
        assert str(unix) == f"{path} (rwx------ {USER} {GROUP})"


def test_a_free_port_is_found() -> None:
    address = HostPortAddress(port=0)
    with listening(address):
        assert address.port != 0
        assert_connects(address)
    assert address.get_connected_socket() is None


def test_ipv6_is_spoken() -> None:
    address = HostPortAddress("::1", 0)
    try:
        with listening(address) as s:
            assert s.family == socket.AF_INET6
            assert_connects(address)
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
        pytest.skip("this machine has no IPv6")


def test_a_port_that_is_in_use_is_an_error() -> None:
    address = HostPortAddress(port=0)
    with listening(address):
        with pytest.raises(OSError, match="in use"):
            HostPortAddress(port=address.port).get_listening_socket()
        assert_connects(address)


@needs_linux
def test_an_abstract_socket_has_no_file() -> None:
    address = UnixAbstractAddress(f"@durus-test-{os.getpid()}")
    with listening(address) as s:
        assert s.getsockname() == f"\0durus-test-{os.getpid()}".encode()
        assert_connects(address)
        assert str(InheritedSocket(s)) == str(address)
    assert address.get_connected_socket() is None


def test_nobody_listens_on_a_file_that_is_missing_or_no_socket(path: Path) -> None:
    address = UnixDomainSocketAddress(str(path))
    assert address.get_connected_socket() is None
    path.write_text("text")
    assert address.get_connected_socket() is None
    assert path.read_text() == "text"


def test_the_file_of_a_socket_is_removed_in_the_end(path: Path) -> None:
    with listening(UnixDomainSocketAddress(str(path))):
        assert path.is_socket()
    assert not path.exists()


def test_a_file_that_a_dead_server_left_is_replaced(stale: Path) -> None:
    address = UnixDomainSocketAddress(str(stale))
    assert address.get_connected_socket() is None
    with listening(address):
        assert_connects(address)


def test_the_socket_of_a_living_server_is_left_alone(path: Path) -> None:
    address = UnixDomainSocketAddress(str(path))
    with listening(address):
        with pytest.raises(OSError, match="in use"):
            UnixDomainSocketAddress(str(path)).get_listening_socket()
        assert_connects(address)


@pytest.mark.parametrize("content", ["text", ""])
def test_a_file_that_is_no_socket_is_left_alone(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(OSError, match="no socket is in the way"):
        UnixDomainSocketAddress(str(path)).get_listening_socket()
    assert path.read_text() == content


def test_a_link_to_a_socket_is_left_alone(stale: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(stale)
    with pytest.raises(OSError, match="no socket is in the way"):
        UnixDomainSocketAddress(str(link)).get_listening_socket()
    assert link.is_symlink()


def test_the_socket_of_a_successor_is_not_removed(path: Path) -> None:
    with listening(UnixDomainSocketAddress(str(path))):
        path.unlink()
        successor = UnixDomainSocketAddress(str(path))
        s = successor.get_listening_socket()
    assert path.is_socket()
    successor.close(s)
    assert not path.exists()


def test_the_umask_is_for_the_socket_alone(path: Path, stale: Path) -> None:
    before = os.umask(0o22)
    try:
        with listening(UnixDomainSocketAddress(str(path), umask=0o117)):
            assert path.stat().st_mode & 0o777 == 0o660
        assert os.umask(0o22) == 0o22
        path.write_text("")
        with pytest.raises(OSError, match="no socket is in the way"):
            UnixDomainSocketAddress(str(path), umask=0o117).get_listening_socket()
        assert os.umask(0o22) == 0o22
    finally:
        os.umask(before)


def test_owner_and_group_are_names_or_numbers(path: Path) -> None:
    for owner, group in ((USER, GROUP), (os.getuid(), os.getgid()), (str(os.getuid()), None)):
        with listening(UnixDomainSocketAddress(str(path), owner, group)):
            assert (path.stat().st_uid, path.stat().st_gid) == (os.getuid(), os.getgid())


@needs_root
def test_the_socket_is_given_away(path: Path) -> None:
    with listening(UnixDomainSocketAddress(str(path), 12345)):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, os.getgid())
    with listening(UnixDomainSocketAddress(str(path), None, 54321)):
        assert (path.stat().st_uid, path.stat().st_gid) == (os.getuid(), 54321)


def test_an_unknown_owner_or_group_is_named_before_anything_is_made(path: Path) -> None:
    nobody = "nobody-has-this-name"
    for address, kind in (
        (UnixDomainSocketAddress(str(path), owner=nobody), "user"),
        (UnixDomainSocketAddress(str(path), group=nobody), "group"),
    ):
        with pytest.raises(StorageError, match=f"{path}: there is no {kind} '{nobody}'"):
            address.get_listening_socket()
        assert not path.exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may give files away")
def test_a_socket_that_cannot_be_given_away_leaves_no_file(path: Path) -> None:
    with pytest.raises(PermissionError):
        UnixDomainSocketAddress(str(path), 0).get_listening_socket()
    assert not path.exists()


def test_an_inherited_socket_has_the_address_that_it_is_bound_to(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as s:
        address = InheritedSocket(s)
        assert str(address) == f"127.0.0.1:{s.getsockname()[1]}"
        assert_connects(address)
        with pytest.raises(ValueError, match="is bound already"):
            address.get_listening_socket()
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))
        s.listen()
        address = InheritedSocket(s)
        assert str(address) == str(path)
        assert_connects(address)
        address.close(s)
    assert path.is_socket()  # it is whose it was
