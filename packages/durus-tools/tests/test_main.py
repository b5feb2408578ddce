"""The `durus` command as a whole: help, mistakes, exit statuses, and what programs import of it."""

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from durus import __main__ as durus_main
from durus.connection import Connection
from durus.file_storage import FileStorage

Durus = Callable[..., "subprocess.CompletedProcess[str]"]

COMMANDS = ["serve", "client", "pack", "verify", "stats", "convert"]
READING: dict[str, list[str]] = {
    "client": ["client", "--file"],
    "pack": ["pack"],
    "verify": ["verify"],
    "stats": ["stats"],
    "convert": ["convert"],
}
"""How the commands that read a file are given it."""


def read_file(command: str, path: Path) -> list[str]:
    target = [str(path.parents[2] / "target")] if command == "convert" else []
    return [*READING[command], str(path), *target]


# Help


def test_a_bare_durus_shows_the_help(durus: Durus) -> None:
    finished = durus()
    assert finished.returncode == 0
    assert finished.stdout == durus("--help").stdout == durus("-h").stdout
    for command in COMMANDS:
        assert f"\n  {command} " in finished.stdout


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)])
def test_help_shows_an_example(durus: Durus, command: list[str]) -> None:
    finished = durus(*command, "--help")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert re.search(r"\b[Ee]xamples?:\s+(\w+ )?.*durus", finished.stdout)
    assert durus(*command, "-h").stdout == finished.stdout


@pytest.mark.parametrize(
    ("classic", "command"), [("-s", "serve"), ("-c", "client"), ("-p", "pack")]
)
def test_the_options_of_durus_4_are_commands(durus: Durus, classic: str, command: str) -> None:
    assert durus(classic, "--help").stdout == durus(command, "--help").stdout


def test_what_may_be_left_out_is_shown_as_such(durus: Durus) -> None:
    assert durus("pack", "--help").stdout.startswith("Usage: durus pack [OPTIONS] [FILE]\n")
    assert durus("stats", "--help").stdout.startswith("Usage: durus stats [OPTIONS] FILE\n")


def test_the_version_is_that_of_the_distribution(durus: Durus) -> None:
    assert re.fullmatch(r"durus-tools \d+\.\d+\.\d+\n", durus("--version").stdout)


# Mistakes


@pytest.mark.parametrize(
    "mistake",
    [
        ["frobnicate"],
        ["--frobnicate"],
        ["stats"],
        ["stats", "--frobnicate", "app.durus"],
        ["stats", "one.durus", "two.durus"],
        ["client", "--port", "http"],
        ["client", "--port", "65536"],
        ["client", "--cache-size", "0"],
        ["pack", "one.durus", "--file", "two.durus"],
        ["convert", "one.durus"],
        ["convert", "one.durus", "two.durus", "--to", "papyrus"],
    ],
    ids=" ".join,
)
def test_a_wrong_call_gives_one_line_that_says_where_help_is(
    durus: Durus, mistake: list[str]
) -> None:
    finished = durus(*mistake)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert re.fullmatch(r"durus: .+ \('durus( \w+)? --help' explains\)\n", finished.stderr)


@pytest.fixture
def make_mistake(tmp_path: Path) -> Callable[[str], Path]:
    """make_mistake(kind): a path at which there is no database, longer than any terminal."""
    folder = tmp_path.joinpath("a folder", *["with-a-long-name" * 10] * 2)
    folder.mkdir(parents=True)

    def make(kind: str) -> Path:
        path = folder / kind
        match kind:
            case "missing":
                return path
            case "missing folder":
                return path / "app.durus"
            case "directory":
                path.mkdir()
            case "empty":
                path.touch()
            case "text":
                path.write_text("This is no database.\n" * 100)
            case "text as a folder":
                path.write_text("This is no folder.")
                return path / "app.durus"
            case "fifo":
                os.mkfifo(path)
            case "loop":
                path.symlink_to(path)
            case "cut":
                whole = folder / "whole"
                Connection(whole).close()
                path.write_bytes(whole.read_bytes()[:20])
                whole.unlink()
        return path

    return make


MISTAKES = ["missing", "missing folder", "directory", "empty", "text", "text as a folder"]
MISTAKES += ["fifo", "loop", "cut"]


@pytest.mark.parametrize("command", READING)
@pytest.mark.parametrize("kind", MISTAKES)
def test_what_is_no_database_gives_one_line_that_names_it_and_stays_as_it_is(
    durus: Durus, make_mistake: Callable[[str], Path], command: str, kind: str
) -> None:
    path = make_mistake(kind)
    there_before = sorted(path.parent.glob("*"))
    finished = durus(*read_file(command, path))
    if (command, kind) == ("verify", "cut"):  # that is an answer, not an error
        assert (finished.returncode, finished.stderr) == (1, "")
        return
    assert finished.returncode == (1 if kind == "cut" else 2)
    assert finished.stdout == ""
    assert re.fullmatch(r"durus: .+\n", finished.stderr)
    assert str(path) in finished.stderr
    assert sorted(path.parent.glob("*")) == there_before
    assert not (path.parents[2] / "target").exists()


def _drop_privileges() -> None:
    """Let file modes hold for root as well: called in the child, before it becomes Python."""
    pr_capbset_drop, cap_dac_override, cap_dac_read_search = 24, 1, 2
    for capability in (cap_dac_override, cap_dac_read_search):
        ctypes.CDLL(None).prctl(pr_capbset_drop, capability, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="root is let in elsewhere")
@pytest.mark.parametrize("command", READING)
def test_a_file_that_may_not_be_read_is_one_line(database: Path, command: str) -> None:
    database.chmod(0)
    finished = subprocess.run(
        [sys.executable, "-m", "durus", *read_file(command, database)],
        capture_output=True,
        text=True,
        preexec_fn=_drop_privileges,
    )
    assert (finished.returncode, finished.stdout) == (2, "")
    assert re.fullmatch(rf"durus: {re.escape(str(database))}: .*[Pp]ermission.*\n", finished.stderr)


@pytest.mark.parametrize("command", ["verify", "stats", "convert"])
def test_with_json_errors_stay_on_stderr(
    durus: Durus, make_mistake: Callable[[str], Path], command: str
) -> None:
    finished = durus(*read_file(command, make_mistake("text")), "--json")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["client", "pack", "stats", "convert", "verify", "serve"])
def test_the_remedy_for_a_damaged_end_is_named_as_commands_have_it(
    durus: Durus, tmp_path: Path, command: str
) -> None:
    path = tmp_path / "file.shelf"
    with FileStorage(path, format="shelf") as storage, Connection(storage) as connection:
        connection.commit()
    with path.open("ab") as file:
        file.write(bytes(5))
    serve = ["serve", "--port", "0", "--file", str(path)]
    target = [str(tmp_path / "target")] if command == "convert" else []
    arguments = serve if command == "serve" else [*READING[command], str(path), *target]
    finished = durus(*arguments)
    assert finished.returncode == 1
    said = finished.stdout + finished.stderr
    assert "--repair" in said
    assert "=True" not in said


def test_a_relative_path_is_named(durus: Durus) -> None:
    assert "missing.durus" in durus("stats", "missing.durus").stderr


def test_no_name_of_a_file_steers_a_terminal(durus: Durus) -> None:
    finished = durus("stats", "red\x1b[31m\nnew line \udcff")
    assert finished.stderr == r"durus: red\x1b[31m\nnew line \udcff: there is no such file" + "\n"


# Interrupts

INTERRUPTED = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == interrupted:
            os.kill(os.getpid(), signal.SIGINT)

interrupted = sys.argv.pop(1)
sys.meta_path.insert(0, Finder())
runpy.run_module("durus", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "module", ["durus.commands", "click", "durus.error", "durus.commands.group", "durus.convert"]
)
def test_ctrl_c_is_heeded_while_modules_are_imported(module: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, "--version"], capture_output=True, text=True
    )
    assert (finished.returncode, finished.stdout) == (130, "")
    assert finished.stderr == "durus: interrupted\n"


# Where the answer goes


def test_a_reader_that_has_gone_is_no_error(database: Path, environment: dict[str, str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        finished = subprocess.run(
            [sys.executable, "-m", "durus", "stats", database],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    finally:
        os.close(writing)
    assert (finished.returncode, finished.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_answer_that_cannot_be_written_is_one_line(
    database: Path, environment: dict[str, str]
) -> None:
    with open("/dev/full", "w") as full:
        finished = subprocess.run(
            [sys.executable, "-m", "durus", "stats", database],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    assert finished.returncode == 2
    assert finished.stderr == "durus: the output cannot be written: No space left on device\n"


def test_without_any_output_there_is_still_a_status(
    database: Path, environment: dict[str, str]
) -> None:
    command = '"$0" -m durus stats "$1" <&- >&- 2>&-'
    for path, status in ((database, 0), (database.with_name("missing"), 2)):
        assert (
            subprocess.run(["sh", "-c", command, sys.executable, path], env=environment).returncode
            == status
        )


def test_an_encoding_without_the_characters_is_no_error(durus: Durus, database: Path) -> None:
    path = database.rename(database.with_name("żółw.durus"))
    finished = durus("verify", path, env={"PYTHONIOENCODING": "latin-1:strict"})
    assert finished.returncode == 0
    assert "\\u017c" in finished.stdout


# As 4.3 can be started, and what programs import


def test_it_runs_as_a_script_by_its_path(database: Path) -> None:
    script = durus_main.__file__
    assert script is not None
    finished = subprocess.run(
        [sys.executable, script, "-c", f"--file={database}"],
        input="print(sys.path)\nimport connection\n",
        capture_output=True,
        text=True,
    )
    assert os.path.dirname(script) not in finished.stdout
    assert "No module named 'connection'" in finished.stderr  # ours is durus.connection


def test_a_program_opens_a_file_by_its_content_as_in_4_3(tmp_path: Path) -> None:
    path = str(tmp_path / "new.durus")
    storage = durus_main.get_storage(path, repair=None, readonly=None)
    assert type(storage) is durus_main.get_storage_class(path) is FileStorage
    storage.close()
    by_name = durus_main.get_storage(path, storage_class="durus.file_storage.FileStorage")
    assert type(by_name) is FileStorage
    by_name.close()
    (tmp_path / "text").write_text("no database")
    with pytest.raises(ValueError, match="text"):
        durus_main.get_storage_class(str(tmp_path / "text"))


def test_the_mains_of_4_3_take_the_arguments_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for start in (
        durus_main.client_main,
        durus_main.pack_storage_main,
        durus_main.run_durus_main,
    ):
        monkeypatch.setattr(sys, "argv", ["prog", "--help"])
        assert start() == 0
        assert "--address" in capsys.readouterr().out
    durus_main.usage()
    assert "Commands:" in capsys.readouterr().out
