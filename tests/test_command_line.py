"""The `durus` command with real servers, real terminals, and Durus 4.3 on the other side."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from textwrap import dedent

import pytest

from durus import __main__ as durus_main
from durus.commands.group import durus
from durus.connection import Connection
from durus.persistent_list import PersistentList
from durus.storage_server import wait_for_server
from scripts.distributions import ROOT, read_distributions
from tests.ports import find_free_port

DURUS = [sys.executable, "-m", "durus"]
TIMEOUT_S = 60
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """A process on a terminal of its own: type into it, and wait for what it shows."""

    def __init__(self, *command: str | Path, folder: Path, env: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env=env,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self._unread = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read_until(self, text: str) -> str:
        """What it shows up to `text`, and `text` itself."""
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self._unread:
            assert time.monotonic() < deadline, f"{text!r} is not in {self._unread!r}"
            shown = self._read()
            assert shown is not None, f"{text!r} is not in {self._unread!r}, which is all"
            self._unread += shown
        end = self._unread.index(text) + len(text)
        shown, self._unread = self._unread[:end], self._unread[end:]
        return shown

    def interrupt(self) -> None:
        """Type Ctrl-C at a prompt, again if need be, until something is shown.

        Python overlooks one that comes after it has shown the prompt and before it waits for keys.
        """
        for _ in range(TIMEOUT_S):
            self.type(CTRL_C)
            if select.select([self._master], [], [], 1)[0]:
                return
        raise AssertionError("Ctrl-C was overlooked again and again")

    def read_all(self) -> str:
        """What it shows until it ends."""
        while (shown := self._read()) is not None:
            self._unread += shown
        return self._unread

    def _read(self) -> str | None:
        if not select.select([self._master], [], [], TIMEOUT_S)[0]:
            raise AssertionError(f"nothing more came after {self._unread!r}")
        try:
            return os.read(self._master, 1 << 16).decode() or None
        except OSError:  # so says Linux that the other side is closed
            return None

    def wait(self) -> int:
        return self.process.wait(TIMEOUT_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def _take_terminal() -> None:
    """Let Ctrl-C typed into the terminal reach the process."""
    os.close(os.open(os.ttyname(0), os.O_RDWR))


class Desk:
    """Several windows, and processes in the background, which end with the test."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self.env = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("DURUS", "NO_COLOR", "PYTHONUNBUFFERED"))
            },
            "HOME": str(folder),
            "TERM": "xterm",
        }

    def run(self, *arguments: str | Path, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*DURUS, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.env,
            timeout=TIMEOUT_S,
        )

    def open_terminal(self, *arguments: str | Path, **env: str) -> Terminal:
        terminal = Terminal(*DURUS, *arguments, folder=self.folder, env={**self.env, **env})
        self._stack.callback(terminal.close)
        return terminal

    def start(self, *command: str | Path) -> "subprocess.Popen[str]":
        process = self._stack.enter_context(
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=self.folder,
                env=self.env,
            )
        )
        self._stack.callback(process.kill)
        return process

    def serve(self, port: int, *arguments: str | Path) -> "subprocess.Popen[str]":
        """A server that answers."""
        server = self.start(*DURUS, "-s", f"--port={port}", *arguments)
        wait_for_port(port)
        return server


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with ExitStack() as stack:
        yield Desk(tmp_path, stack)


@pytest.fixture
def port() -> int:
    return find_free_port()


def wait_for_port(port: int) -> None:
    wait_for_server(port=port, sleeptime=0.05, maxtries=TIMEOUT_S * 20)


def make_database(path: Path, **items: object) -> Path:
    with Connection(path) as connection:
        connection.root.update(items)
        connection.commit()
    return path


# The quick demo of the README of Durus 4.3


def ask(terminal: Terminal, line: str) -> str:
    """Type a line at the prompt; what is shown before the next one."""
    terminal.type(f"{line}\n")
    terminal.read_until("\n")  # the echo of the line
    return terminal.read_until(">>> ").removesuffix(">>> ").strip()


def test_the_quick_demo(desk: Desk, port: int) -> None:
    server = desk.serve(port)
    first = desk.open_terminal("-c", f"--port={port}", TERM="dumb")
    banner = first.read_until(">>> ")
    assert f"Durus 127.0.0.1:{port}\r\n    connection -> the Connection\r\n" in banner
    ask(first, "root['color'] = 'red'")
    ask(first, "connection.commit() and None")
    second = desk.open_terminal("-c", f"--port={port}", TERM="dumb")
    second.read_until(">>> ")
    assert ask(second, "root['color']") == "'red'"

    ask(first, "root['color'] = 'blue'")
    ask(first, "connection.abort()")
    assert ask(first, "root['color']") == "'red'"
    ask(first, "root['color'] = 'green'")
    ask(first, "connection.commit() and None")
    assert ask(second, "root['color']") == "'red'"
    ask(second, "connection.abort()")
    assert ask(second, "root['color']") == "'green'"

    for terminal in (first, second):
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
    assert desk.run("-s", f"--port={port}", "--stop").returncode == 0
    assert server.wait(TIMEOUT_S) == 0


def test_the_quick_demo_with_a_file(desk: Desk, port: int) -> None:
    options = (f"--port={port}", "--file", "test.durus")
    server = desk.serve(port, "--file", "test.durus")
    code = "root['a'] = 1\nconnection.commit() and None\n"
    assert desk.run("-c", f"--port={port}", stdin=code).returncode == 0
    desk.run("-s", f"--port={port}", "--stop")
    server.wait(TIMEOUT_S)

    server = desk.serve(port, "--file", "test.durus")
    assert desk.run("-c", f"--port={port}", stdin="root['a']\n").stdout == "1\n"
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=TIMEOUT_S)

    code = "root['a'] += 1\nconnection.commit() and None\nroot['a']\n"
    assert desk.run("-c", *options[1:], stdin=code).stdout == "2\n"


def test_ctrl_c_stops_a_server_without_a_traceback(desk: Desk, port: int) -> None:
    server = desk.open_terminal("serve", f"--port={port}", "--file", "app.durus")
    server.read_until(f"Ready on 127.0.0.1:{port}")
    server.type(CTRL_C)
    assert server.wait() == 0  # that is the way to stop it
    assert "Traceback" not in server.read_all()


def test_a_unix_domain_socket_serves_too(desk: Desk) -> None:
    make_database(desk.folder / "app.durus", a=1)
    server = desk.start(*DURUS, "-s", "--file", "app.durus", "--address", "here.sock")
    answer = desk.run("-c", "--address", "here.sock", stdin="root['a']\n")
    assert answer.stdout == "1\n"
    assert answer.stderr.splitlines()[-4].startswith("Durus here.sock")
    assert desk.run("-p", "--address", "here.sock").returncode == 0
    assert desk.run("-s", "--address", "here.sock", "--stop").returncode == 0
    server.communicate(timeout=TIMEOUT_S)


# Waiting for a server


def test_a_client_says_that_it_waits_and_goes_on(desk: Desk, port: int) -> None:
    client = desk.open_terminal("-c", f"--port={port}", TERM="dumb")
    assert f"waiting for the server at 127.0.0.1:{port}" in client.read_until("\n")
    desk.serve(port)
    client.read_until(">>> ")


@pytest.mark.parametrize("command", ["-c", "-p"])
def test_ctrl_c_ends_the_waiting(desk: Desk, port: int, command: str) -> None:
    client = desk.open_terminal(command, f"--port={port}")
    client.read_until("waiting")
    client.type(CTRL_C)
    assert client.wait() == 130
    shown = client.read_all()
    assert "durus: interrupted" in shown
    assert "Traceback" not in shown


def test_a_host_that_does_not_exist_is_one_line(desk: Desk) -> None:
    finished = desk.run("-c", "--host", "no-such-host.invalid")
    assert finished.returncode == 2
    assert re.fullmatch(r"durus: .*no-such-host\.invalid.*\n", finished.stderr)


# What a server's records may import


def test_only_a_server_on_this_machine_has_modules_imported(desk: Desk, port: int) -> None:
    (desk.folder / "shop.py").write_text(
        dedent("""
            from durus.persistent import Persistent
            class Shop(Persistent):
                pass
        """)
    )
    desk.serve(port, "--file", "app.durus")
    code = "import shop\nroot['shop'] = shop.Shop()\nconnection.commit() and None\n"
    assert desk.run("-c", f"--port={port}", stdin=code).returncode == 0
    code = "root['shop']\nprint('shop' in sys.modules)\n"
    here = desk.run("-c", f"--port={port}", stdin=code)
    assert here.stdout == "<Shop 1>\nTrue\n"
    elsewhere = desk.run("-c", f"--port={port}", "--host=0.0.0.0", stdin=code)
    assert elsewhere.returncode == 2
    assert re.fullmatch(rf"durus: 0\.0\.0\.0:{port}: .*--allow shop\.Shop;.*\n", elsewhere.stderr)
    allowed = desk.run("-c", f"--port={port}", "--host=0.0.0.0", "--allow=shop", stdin=code)
    assert allowed.stdout == "<Shop 1>\nTrue\n"


# Packing through a server


def test_a_server_packs_when_it_is_asked_to(desk: Desk, port: int) -> None:
    path = make_database(desk.folder / "app.durus", text="x" * 10_000)
    with Connection(path) as connection:
        connection.root["text"] = ""
        connection.commit()
    server = desk.serve(port, "--file", path)
    finished = desk.run("-p", f"--port={port}")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith(f"127.0.0.1:{port}: the server has begun to pack")
    desk.run("-s", f"--port={port}", "--stop")
    server.communicate(timeout=TIMEOUT_S)
    assert path.stat().st_size < 10_000


def test_a_server_that_cannot_pack_is_said_to(desk: Desk, port: int) -> None:
    path = make_database(desk.folder / "app.durus", a=1)
    desk.serve(port, "--readonly", "--file", path)
    finished = desk.run("pack", f"--port={port}")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == (
        f"durus: 127.0.0.1:{port}: the server cannot pack; its log says why\n"
    )


# Every format


@pytest.fixture(params=["log", "shelf", "dfs20", "sqlite"])
def file_of_each_format(request: pytest.FixtureRequest, desk: Desk) -> tuple[str, Path]:
    source = make_database(desk.folder / "source.durus", a=1, b=[2])
    target = desk.folder / "in" / "app.durus"
    target.parent.mkdir()
    assert desk.run("convert", source, target, "--to", request.param).returncode == 0
    return request.param, target


def test_every_format_is_read_and_left_as_it_is(
    desk: Desk, file_of_each_format: tuple[str, Path]
) -> None:
    name, path = file_of_each_format
    before = path.read_bytes(), path.stat().st_mtime_ns
    verified = json.loads(desk.run("verify", path, "--json").stdout)
    assert verified == {"path": str(path), "format": name, "sound": True, "findings": []}
    counted = json.loads(desk.run("stats", path, "--json").stdout)
    assert (counted["format"], counted["objects"]) == (name, 1)
    assert (counted["tid"] is None) == (name in ("shelf", "dfs20"))
    assert desk.run("-c", "--file", path, "--readonly", stdin="root['b']\n").stdout == "[2]\n"
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert [found.name for found in path.parent.iterdir()] == ["app.durus"]


def test_every_format_is_written_and_packed(
    desk: Desk, file_of_each_format: tuple[str, Path]
) -> None:
    _, path = file_of_each_format
    code = "root['b'] = 'x' * 10_000\nconnection.commit() and None\n"
    code += "root['b'] = 3\nconnection.commit() and None\n"
    written = desk.run("-c", "--file", path, stdin=code)
    assert "Error" not in written.stderr
    assert desk.run("pack", path).returncode == 0
    assert desk.run("-c", "--file", path, "--readonly", stdin="root['b']\n").stdout == "3\n"
    assert desk.run("verify", path).returncode == 0


# Terminals


def without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_the_console_completes_names_and_keeps_a_history(desk: Desk) -> None:
    make_database(desk.folder / "app.durus")
    console = desk.open_terminal("-c", "--file", "app.durus", TERM="dumb")
    console.read_until(">>> ")
    console.type("print('typed', connec\t.get_cache_size())\n")
    assert "typed 10000" in console.read_until("10000\r\n")
    console.read_until(">>> ")  # before that, Python notices Ctrl-C at the next key only
    console.interrupt()
    console.read_until("KeyboardInterrupt")  # and the console goes on
    console.read_until(">>> ")
    console.type(CTRL_D)
    assert console.wait() == 0
    assert "typed" in (desk.folder / ".durushistory").read_text()

    again = desk.open_terminal("-c", "--file", "app.durus", TERM="dumb")
    again.read_until(">>> ")
    again.type("\x1b[A\n")  # cursor up
    again.read_until("typed 10000")


def test_a_terminal_gets_a_table_and_a_pipe_does_not(desk: Desk) -> None:
    make_database(desk.folder / "app.durus")
    shown = desk.open_terminal("stats", "app.durus").read_all()
    assert "\x1b[" in shown
    assert "durus.persistent_dict.PersistentDict" in without_escapes(shown)
    assert "\x1b" not in desk.run("stats", "app.durus").stdout


def test_no_color_is_honoured(desk: Desk) -> None:
    make_database(desk.folder / "app.durus")
    shown = desk.open_terminal("stats", "app.durus", NO_COLOR="1").read_all()
    assert re.search(r"\x1b\[[0-9;]*(3|4|9)[0-7][;m]", shown) is None


def test_progress_stays_out_of_the_answer(desk: Desk) -> None:
    make_database(desk.folder / "app.durus")
    script = '"$0" -m durus stats app.durus --json > answer'
    env = desk.env
    terminal = Terminal("sh", "-c", script, sys.executable, folder=desk.folder, env=env)
    try:
        assert "Reading app.durus" in without_escapes(terminal.read_all())
        assert terminal.wait() == 0
    finally:
        terminal.close()
    assert json.loads((desk.folder / "answer").read_text())["objects"] == 1


def test_ctrl_c_in_a_conversion_leaves_nothing(desk: Desk) -> None:
    many = [PersistentList([number]) for number in range(20_000)]  # takes longer than a key stroke
    make_database(desk.folder / "app.durus", many=many)
    terminal = desk.open_terminal("convert", "app.durus", "target.durus", "--to", "shelf")
    shown = terminal.read_until("Converting")
    terminal.type(CTRL_C)
    shown += terminal.read_all()
    assert terminal.wait() == 130
    assert without_escapes(shown).endswith("durus: interrupted\r\n")
    assert "Traceback" not in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is there again
    names = sorted(found.name for found in desk.folder.iterdir())
    assert names == ["app.durus", "app.durus.index"]


# Durus 4.3 on the other side

READ_AND_WRITE = """
from durus.client_storage import ClientStorage
from durus.connection import Connection
connection = Connection(ClientStorage(port={port}))
root = connection.get_root()
root["theirs"] = root["ours"] + 1
connection.commit()
"""


def test_a_client_of_durus_4_3_works_on_our_server(
    desk: Desk, port: int, durus43_python: Path
) -> None:
    make_database(desk.folder / "app.durus", ours=1)
    desk.serve(port, "--file", "app.durus")
    subprocess.run([durus43_python, "-c", READ_AND_WRITE.format(port=port)], check=True)
    assert desk.run("-c", f"--port={port}", stdin="root['theirs']\n").stdout == "2\n"
    packed = subprocess.run([durus43_python, "-m", "durus", "-p", f"--port={port}"])
    assert packed.returncode == 0


def test_our_client_works_on_a_server_of_durus_4_3(
    desk: Desk, port: int, durus43_python: Path
) -> None:
    desk.start(durus43_python, "-m", "durus", "-s", f"--port={port}", "--file", "app.durus")
    wait_for_port(port)
    code = "root['ours'] = 1\nconnection.commit() and None\n"
    assert desk.run("-c", f"--port={port}", stdin=code).returncode == 0
    subprocess.run([durus43_python, "-c", READ_AND_WRITE.format(port=port)], check=True)
    assert desk.run("-c", f"--port={port}", stdin="root['theirs']\n").stdout == "2\n"
    assert desk.run("-p", f"--port={port}").returncode == 0
    assert desk.run("-s", f"--port={port}", "--stop").returncode == 0
    assert desk.run("verify", "app.durus").returncode == 0


def test_the_server_starts_as_the_tests_of_durus_4_3_start_it(desk: Desk, port: int) -> None:
    script = durus_main.__file__
    assert script is not None
    options = ("-s", "--file=app.durus", f"--port={port}", "--logginglevel=1")
    server = desk.start(sys.executable, script, *options)
    wait_for_port(port)
    assert durus_main.stop_durus(("localhost", port))
    server.communicate(timeout=TIMEOUT_S)
    assert not durus_main.stop_durus(("localhost", port))


# The manual, and names


def test_the_manual_names_every_command_and_option() -> None:
    manual = (ROOT / "docs" / "command-line.md").read_text()
    for name, command in durus.commands.items():
        assert f"`durus {name}" in manual
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("-"):
                    assert option in manual, f"durus {name} {option}"


def test_no_module_has_the_name_of_one_of_python() -> None:
    """The folder of our modules is on the import path when one of them is run as a script."""
    names = {
        module.removeprefix("durus.").partition(".")[0]
        for distribution in read_distributions().values()
        for module, _ in distribution.module_paths()
    }
    assert names & sys.stdlib_module_names == set()
