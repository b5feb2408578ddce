"""`python -m durus.storage_server`, run as an operator or systemd runs it."""

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from durus import server_command
from durus.client_storage import ClientStorage
from durus.connection import Connection
from durus.error import ServerLostError, StorageOpenError
from durus.logger import logger
from durus.storage import MemoryStorage
from durus.storage_server import (
    SocketAddress,
    StorageServer,
    import_class,
    main,
    start_durus,
    stop_durus,
)

WAIT_MAX_S = 60

STORAGE = """
from durus.storage import MemoryStorage

class Storage(MemoryStorage):
    def __init__(self, file, **options):
        super().__init__()
        print("opened", file, options)

    def get_filename(self):
        return "the file"

class NoStorage:
    def __init__(self, file):
        pass
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which there is the module `app_storage`."""
    (tmp_path / "app_storage.py").write_text(STORAGE)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


COMMAND = [sys.executable, "-W", "error", "-u", "-m", "durus.storage_server"]


def run(environment: dict[str, str], *options: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=WAIT_MAX_S,
        check=False,
    )


class Server:
    """A server in a process of its own, which is ready."""

    def __init__(self, process: "subprocess.Popen[str]", *, log: Path | None = None) -> None:
        self.process = process
        self.lines: list[str] = []
        assert process.stderr is not None
        for line in process.stderr:
            self.lines.append(line)
            if match := re.match(r"Ready on (\S+)", line):
                self.address = match[1]
                return
        raise AssertionError("".join(self.lines))

    def connect(self) -> ClientStorage:
        if ":" in self.address:
            host, _, port = self.address.rpartition(":")
            return ClientStorage(host, int(port))
        return ClientStorage(address=self.address)

    def finish(self) -> tuple[int, str]:
        """Wait for its end: the exit status, and all that it said on stderr."""
        _, rest = self.process.communicate(timeout=WAIT_MAX_S)
        return self.process.returncode, "".join(self.lines) + rest


@contextlib.contextmanager
def serving(environment: dict[str, str], *options: str | Path) -> Iterator[Server]:
    command = [*COMMAND, "--storage-class", "app_storage.Storage", *options]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


def test_help_shows_all_options_and_an_example(environment: dict[str, str]) -> None:
    finished = run(environment, "--help")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "Example: python -m durus.storage_server --file app.durus" in finished.stdout
    listed = set(re.findall(r"--[a-z-]+", finished.stdout))
    assert listed >= {
        *("--port", "--file", "--host", "--address", "--owner", "--group", "--umask", "--stop"),
        *("--storage-class", "--gcbytes", "--logginglevel", "--logfile", "--repair", "--readonly"),
        "--max-commit-bytes",
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_runs_until_a_signal(environment: dict[str, str], number: signal.Signals) -> None:
    with serving(environment, "--port", "0") as server:
        with server.connect() as client, Connection(client) as connection:
            connection.root["a"] = 1
            connection.commit()
        server.process.send_signal(number)
        status, said = server.finish()
        assert status == 0
        assert said.startswith("Storage file=the file address=127.0.0.1:")
        assert f"Stopped by {number.name}\n" in said
        assert "Traceback" not in said


def test_a_server_is_stopped_by_its_address(environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "durus.socket"
    with serving(environment, "--address", path, "--umask", "077") as server:
        assert path.stat().st_mode & 0o777 == 0o700
        stop = run(environment, "--stop", "--address", path)
        assert (stop.returncode, stop.stdout, stop.stderr) == (0, "", "")
        assert server.finish()[0] == 0
        assert not path.exists()
    again = run(environment, "--stop", "--address", path)
    assert again.returncode == 2
    assert again.stderr == f"python -m durus.storage_server: {path}: no server is running there\n"


def test_options_may_be_shortened_and_flags_reach_the_storage(environment: dict[str, str]) -> None:
    options = ["--po", "0", "--gc", "5", "--read", "--rep", "--fi", "some.durus"]
    with serving(environment, *options) as server:
        stop_durus(("127.0.0.1", int(server.address.rpartition(":")[2])))
        assert server.process.wait(WAIT_MAX_S) == 0
        assert server.process.stdout is not None
        opened = server.process.stdout.read()
        assert opened == "opened some.durus {'readonly': True, 'repair': True}\n"


def test_without_flags_the_storage_gets_the_file_alone(environment: dict[str, str]) -> None:
    with serving(environment, "--port", "0") as server:
        server.process.terminate()
        server.process.wait(WAIT_MAX_S)
        assert server.process.stdout is not None
        assert server.process.stdout.read() == "opened None {}\n"


@pytest.mark.parametrize(
    ("umask", "mode"), [("022", 0o755), ("18", 0o755), ("0x12", 0o755), ("0b111111111", 0)]
)
def test_numbers_are_read_as_4x_read_them(
    environment: dict[str, str], tmp_path: Path, umask: str, mode: int
) -> None:
    path = tmp_path / "s"
    with serving(environment, "--address", path, f"--umask={umask}"):
        assert path.stat().st_mode & 0o777 == mode


def test_everything_goes_to_the_log_file(environment: dict[str, str], tmp_path: Path) -> None:
    log, path = tmp_path / "log", tmp_path / "s"
    log.write_text("before\n")
    options = ["--address", str(path), "--logfile", str(log), "--logginglevel", "5"]
    command = [*COMMAND, "--storage-class", "app_storage.Storage", *options]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not (path.is_socket() and "Ready" in log.read_text()):
            assert process.poll() is None
        assert stop_durus(str(path))
        _, said = process.communicate(timeout=WAIT_MAX_S)
        assert (process.returncode, said) == (0, "")
    text = log.read_text()
    assert text.startswith("before\nStorage file=the file")
    assert f"Ready on {path} (rwx" in text
    assert text.endswith("Quit\nclient 1: the server stops\n")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits another process")
def test_when_there_are_too_many_clients_the_next_ones_are_refused(
    environment: dict[str, str],
) -> None:
    with serving(environment, "--port", "0") as server:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (40, 40))
        host, _, port = server.address.rpartition(":")
        with contextlib.ExitStack() as stack:
            for _ in range(40):
                stack.enter_context(socket.create_connection((host, int(port))))
            assert server.process.stderr is not None
            assert re.fullmatch(
                r"client \d+ \(127.0.0.1 \d+\) was refused: too many files are open, .*\n",
                server.process.stderr.readline(),
            )
        while True:  # until the server has seen that one of them has gone
            with contextlib.suppress(ServerLostError), server.connect() as client:
                assert client.sync() == []
                break


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits another process")
def test_when_no_file_can_be_opened_the_next_ones_wait(environment: dict[str, str]) -> None:
    with serving(environment, "--port", "0") as server:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (0, 40))
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port))):
            assert server.process.stderr is not None
            line = server.process.stderr.readline()
            assert line == "No connection can be accepted for now: Too many open files\n"
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (40, 40))
        with server.connect() as client:
            assert client.sync() == []


MISTAKES: dict[str, tuple[list[str], str]] = {
    "an unknown option": (["--nonsense"], "unrecognized arguments: --nonsense"),
    "no number": (["--port", "many"], "argument --port: 'many' is no number"),
    "an ambiguous option": (["--log", "x"], "ambiguous option: --log"),
    "an unknown owner": (["--address", "{}/s", "--owner", "nobody-x"], "{}/s: there is no user"),
    "an unknown group": (["--address", "{}/s", "--group", "nobody-x"], "{}/s: there is no group"),
    "a folder that is not there": (["--address", "{}/no/s"], "{}/no/s: cannot listen there: No "),
    "a file in the way": (
        ["--address", "{}/app_storage.py"],
        "cannot listen there: a file that is no socket is in the way",
    ),
    "an abstract socket of somebody": (["--address", "@s", "--owner", "x"], "@s is an abstract"),
    "a host that is not": (["--host", "name.invalid"], "name.invalid:2972: cannot listen there"),
    "a log that cannot be": (["--port", "0", "--logfile", "{}/no/log"], "{}/no/log"),
    "no module": (["--storage-class", "nothing.Storage"], "class nothing.Storage is not installed"),
    "no class": (
        ["--storage-class", "app_storage.Nothing"],
        "app_storage.Nothing is not installed",
    ),
    "no dotted name": (["--storage-class", "Storage"], "'Storage' is not of the form"),
    "no storage": (["--storage-class", "app_storage.NoStorage"], "is no storage: expected"),
    "a storage without a file": (
        ["--storage-class", "durus.storage.MemoryStorage"],
        "durus.storage.MemoryStorage cannot serve",
    ),
}


@pytest.mark.parametrize(("options", "reason"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gives_one_line_that_says_what_it_is(
    environment: dict[str, str], tmp_path: Path, options: list[str], reason: str
) -> None:
    options = [option.format(tmp_path) for option in options]
    if "--storage-class" not in options:
        options += ["--storage-class", "app_storage.Storage"]
    finished = run(environment, *options)
    assert finished.returncode in (1, 2)
    assert reason.format(tmp_path) in finished.stderr
    assert finished.stderr.startswith("python -m durus.storage_server: ")
    assert finished.stderr.count("\n") == 1


def test_a_port_that_is_in_use_is_named(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ["--storage-class", "app_storage.Storage", "--port", str(port)]
        finished = run(environment, *options)
    assert finished.returncode == 2
    assert f"127.0.0.1:{port}: cannot listen there: Address already in use\n" in finished.stderr


def test_without_durus_storage_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['durus.file_storage'] = None\n"
        "from durus.server_command import main\n"
        "sys.exit(main([], prog='durus serve'))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2
    assert finished.stderr == (
        "durus serve: the storage class durus.file_storage.FileStorage is not installed: "
        "python -m pip install durus-storage\n"
    )


ACTIVATED = """
import os, runpy, sys
os.dup2(int(sys.argv.pop(1)), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
sys.argv[0] = "durus"
runpy.run_module("durus.storage_server", run_name="__main__")
"""


def test_the_socket_of_systemd_is_served(environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "activated"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        # A client that comes before the server is there waits for it.
        with ThreadedClient(str(path)) as client:
            descriptor = listening.fileno()
            with subprocess.Popen(
                [
                    *(sys.executable, "-c", ACTIVATED, str(descriptor)),
                    *("--storage-class", "app_storage.Storage", "--port", "1"),
                ],
                env={**environment, "LISTEN_FDS": "1"},
                pass_fds=[descriptor],
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                server = Server(process)
                assert server.address == str(path)
                assert client.result() == {}
                process.terminate()
                status, said = server.finish()
        assert status == 0, said
        assert path.is_socket()  # it is systemd's


class ThreadedClient:
    """Asks for the root of a server, in a thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.root: dict[str, object] | None = None
        self.thread = threading.Thread(target=self.work)

    def work(self) -> None:
        with ClientStorage(address=self.path) as client, Connection(client) as connection:
            self.root = dict(connection.root)

    def result(self) -> dict[str, object] | None:
        self.thread.join(WAIT_MAX_S)
        return self.root

    def __enter__(self) -> "ThreadedClient":
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.thread.join(WAIT_MAX_S)


# The functions that programs call.


def test_a_program_starts_and_stops_a_server(tmp_path: Path) -> None:
    path, log = str(tmp_path / "s"), tmp_path / "log"
    before = (logger.handlers[:], logger.level, logger.propagate, sys.stdout, sys.stderr)
    address = SocketAddress.new(path)
    storage = MemoryStorage()
    thread = threading.Thread(target=start_durus, args=[str(log), 20, address, storage, 0])
    thread.start()
    while not stop_durus(path):
        assert thread.is_alive()
    thread.join(WAIT_MAX_S)
    assert (logger.handlers[:], logger.level, logger.propagate, sys.stdout, sys.stderr) == before
    lines = log.read_text().splitlines()
    assert lines[-1] == "Quit"
    assert any(line.startswith(f"Ready on {path} (rwx") for line in lines)


def test_a_program_is_told_when_it_cannot_listen(tmp_path: Path) -> None:
    with (
        StorageServer(MemoryStorage(), port=0).running() as address,
        pytest.raises(StorageOpenError, match="cannot listen there"),
    ):
        start_durus(None, 20, address, MemoryStorage(), 0)


@contextlib.contextmanager
def foreign_server() -> Iterator[SocketAddress]:
    """Something that is not Durus listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield SocketAddress.new(listening.getsockname())


@contextlib.contextmanager
def busy_server() -> Iterator[SocketAddress]:
    """Something that takes longer than anybody waits comes before the end."""
    storage, waited = MemoryStorage(), threading.Event()
    close = storage.close

    def close_slowly() -> None:
        assert waited.wait(WAIT_MAX_S)
        close()

    storage.close = close_slowly  # type: ignore[method-assign]  # one storage only
    with StorageServer(storage, port=0).running() as address:
        try:
            yield address
        finally:
            waited.set()


@pytest.mark.parametrize("start", [foreign_server, busy_server])
def test_who_still_answers_was_not_stopped(
    start: Callable[[], contextlib.AbstractContextManager[SocketAddress]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(server_command, "_STOP_WAIT_MAX_S", 0.2)
    with start() as address:
        assert main(["--stop", "--port", str(address).rpartition(":")[2]], prog="durus serve") == 2
        said = capsys.readouterr().err
        assert said.startswith(f"durus serve: {address}: somebody still answers there, 0.2 s after")
        assert said.count("\n") == 1


def test_there_is_nothing_to_stop(tmp_path: Path) -> None:
    assert not stop_durus(str(tmp_path / "missing"))


def test_classes_are_found_by_their_names() -> None:
    assert import_class("durus.storage.MemoryStorage") is MemoryStorage
    with pytest.raises(ImportError):
        import_class("MemoryStorage")


def test_the_name_of_the_program_is_the_callers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"], prog="durus serve")
    assert end.value.code == 0
    assert "usage: durus serve" in capsys.readouterr().out
    assert main(["--stop", "--address", "/missing"], prog="durus serve") == 2
    assert capsys.readouterr().err == "durus serve: /missing: no server is running there\n"
