"""Socket activation, with a real child process that inherits a real socket."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from durus.error import StorageOpenError
from durus.systemd_socket import get_systemd_socket, sd_listen_fds

CHILD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
from durus.systemd_socket import get_systemd_socket
s = get_systemd_socket()
print(int(s.family), os.get_inheritable(3), s.getsockname())
connection, _ = s.accept()
connection.sendall(b"served")
"""


def serve(listening: socket.socket) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(listening.fileno())],
        env={**os.environ, "LISTEN_FDS": "1"},
        pass_fds=[listening.fileno()],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_unix_socket_is_inherited(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(path)
        listening.listen()
        child = serve(listening)
        client.connect(path)
        assert client.recv(10) == b"served"
        output, _ = child.communicate()
    assert output == f"{int(socket.AF_UNIX)} False {path}\n"


def test_a_tcp_socket_is_inherited() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        child = serve(listening)
        with socket.create_connection(listening.getsockname()) as client:
            assert client.recv(10) == b"served"
        output, _ = child.communicate()
    assert output.startswith(f"{int(socket.AF_INET)} False ")


def test_without_activation_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_PID", raising=False)
    assert get_systemd_socket() is None


def test_sockets_for_another_process_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert sd_listen_fds() == 0


def test_a_malformed_count_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "many")
    with pytest.raises(StorageOpenError, match="'many'"):
        sd_listen_fds()
