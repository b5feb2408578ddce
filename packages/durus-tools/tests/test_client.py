"""`durus client --file FILE`, driven through a pipe; terminals and servers are tested elsewhere."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from durus.connection import Connection
from durus.file_storage import FileStorage

Durus = Callable[..., "subprocess.CompletedProcess[str]"]

NAMES = ["connection", "root", "storage", "get", "sys", "os", "int8_to_str", "str_to_int8", "pp"]


def test_code_comes_from_a_pipe_and_only_its_output_is_on_stdout(
    durus: Durus, database: Path
) -> None:
    finished = durus("-c", "--file", database, stdin="print(sorted(root))\nroot['tree']\n")
    assert finished.returncode == 0
    assert finished.stdout == "['tree']\n<BTree 1>\n"
    assert "\x1b" not in finished.stdout + finished.stderr


def test_the_banner_is_that_of_4_3(durus: Durus, database: Path) -> None:
    assert durus("-c", "--file", database).stderr.rstrip() == (
        f"Durus {database}\n    connection -> the Connection\n    root       -> the root instance"
    )


def test_the_console_has_the_names_of_4_3_and_the_storage(durus: Durus, database: Path) -> None:
    code = f"print([name for name in {NAMES} if name not in globals()])\nprint(__name__)\n"
    code += "print(storage is connection.get_storage(), get(1) is root['tree'])\n"
    assert durus("-c", "--file", database, stdin=code).stdout == "[]\n__console__\nTrue True\n"


def test_a_block_at_the_end_is_run(durus: Durus, database: Path) -> None:
    finished = durus("-c", "--file", database, stdin="for name in root:\n  print(name)")
    assert finished.stdout == "tree\n"


def test_half_a_statement_at_the_end_ends_it(durus: Durus, database: Path) -> None:
    assert durus("-c", "--file", database, stdin="print(\n(").returncode == 0


def test_what_is_committed_stays_and_the_rest_does_not(durus: Durus, database: Path) -> None:
    code = "root['a'] = 1\nconnection.commit() and None\nroot['b'] = 2\n"
    assert durus("-c", "--file", database, stdin=code).returncode == 0
    with Connection(database) as connection:
        assert set(connection.root) == {"a", "tree"}


def test_an_error_is_shown_and_the_console_goes_on(durus: Durus, database: Path) -> None:
    finished = durus("-c", "--file", database, stdin="1 / 0\nprint('on')\n")
    assert (finished.returncode, finished.stdout) == (0, "on\n")
    assert "ZeroDivisionError" in finished.stderr


def test_exit_ends_it_with_its_status(durus: Durus, database: Path) -> None:
    finished = durus("-c", "--file", database, stdin="sys.exit(3)\nprint('not here')\n")
    assert (finished.returncode, finished.stdout) == (3, "")


def test_ctrl_c_ends_it_when_there_is_no_terminal(database: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "durus", "-c", "--file", database],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write("print('ready', flush=True)\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
    assert process.returncode == 130
    assert errors.endswith("durus: interrupted\n")
    assert "Traceback" not in errors


def test_readonly_takes_no_lock_and_refuses_to_commit(durus: Durus, database: Path) -> None:
    before = database.read_bytes(), database.stat().st_mtime_ns
    with FileStorage(database):
        code = "root['a'] = 1\nconnection.commit()\n"
        finished = durus("-c", "--file", database, "--readonly", stdin=code)
    assert "ReadOnlyError" in finished.stderr
    assert (database.read_bytes(), database.stat().st_mtime_ns) == before


def test_a_file_of_4_x_that_is_open_elsewhere_is_one_line(durus: Durus, tmp_path: Path) -> None:
    path = tmp_path / "file.shelf"
    with FileStorage(path, format="shelf"):
        finished = durus("-c", "--file", path)
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"durus: {path}: ")
    assert finished.stderr.count("\n") == 1


def test_the_cache_size_has_both_spellings(durus: Durus, database: Path) -> None:
    for option in ("--cache_size=7", "--cache-size=7"):
        code = "print(connection.get_cache_size())\n"
        assert durus("-c", "--file", database, option, stdin=code).stdout == "7\n"


def test_another_storage_class_can_be_named(durus: Durus, database: Path, tmp_path: Path) -> None:
    (tmp_path / "special.py").write_text(
        dedent("""
            from durus.file_storage import FileStorage
            class SpecialStorage(FileStorage):
                pass
        """)
    )
    call = ["-c", "--file", database, "--storage-class", "special.SpecialStorage"]
    finished = durus(
        *call, stdin="print(type(storage).__name__)\n", env={"PYTHONPATH": str(tmp_path)}
    )
    assert finished.stdout == "SpecialStorage\n"


@pytest.mark.parametrize("name", ["nowhere.Storage", "durus.file_storage.Nothing", "Storage"])
def test_a_storage_class_that_is_not_there_is_one_line(
    durus: Durus, database: Path, name: str
) -> None:
    finished = durus("-c", "--file", database, "--storage-class", name)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith(f"durus: --storage-class {name}: ")
    assert finished.stderr.count("\n") == 1


def test_a_storage_class_makes_no_file_either(durus: Durus, tmp_path: Path) -> None:
    path = tmp_path / "missing.durus"
    finished = durus("-c", "--file", path, "--storage-class", "durus.file_storage.FileStorage")
    assert finished.returncode == 2
    assert finished.stderr == f"durus: {path}: there is no such file\n"
    assert not path.exists()


# What records may use


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """A folder with a module of an application, and a database of its objects."""
    folder = tmp_path / "application"
    folder.mkdir()
    (folder / "shop.py").write_text(
        dedent("""
            from dataclasses import dataclass
            from durus.persistent import Persistent
            from money import Money
            class Shop(Persistent):
                price = None
        """)
    )
    (folder / "money.py").write_text(
        dedent("""
            from dataclasses import dataclass
            @dataclass
            class Money:
                amount: int
        """)
    )
    code = dedent("""
        from durus.connection import Connection
        from shop import Shop, Money
        with Connection("shop.durus", allow=["money"]) as connection:
            connection.root["shop"] = shop = Shop()
            shop.price = Money(5)
            connection.commit()
    """)
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    return folder


def test_persistent_classes_are_imported_and_others_are_allowed(
    durus: Durus, application: Path
) -> None:
    call = ["-c", "--file", application / "shop.durus"]
    code = "print(type(root['shop']).__name__)\nprint(root['shop'].price)\n"
    refused = durus(*call, stdin=code, env={"PYTHONPATH": str(application)})
    assert refused.stdout == "Shop\n"
    assert 'allow=["money.Money"]' in refused.stderr
    allowed = durus(
        *call, "--allow", "app", "--allow=money", stdin=code, env={"PYTHONPATH": str(application)}
    )
    assert allowed.stdout == "Shop\nMoney(amount=5)\n"


def test_what_must_not_be_allowed_is_one_line(durus: Durus, database: Path) -> None:
    finished = durus("-c", "--file", database, "--allow", "os")
    assert finished.returncode == 2
    assert finished.stderr.startswith("durus: --allow os would let records use everything")
    assert finished.stderr.count("\n") == 1


# The startup file


@pytest.mark.parametrize("by_option", [True, False])
def test_the_startup_file_runs_first_in_the_same_namespace(
    durus: Durus, database: Path, tmp_path: Path, by_option: bool
) -> None:
    startup = tmp_path / "startup.py"
    startup.write_text("names = sorted(root)\ndef first():\n    return names[0]\n")
    options = [f"--startup={startup}"] if by_option else []
    env = {} if by_option else {"DURUSSTARTUP": str(startup)}
    finished = durus("-c", "--file", database, *options, stdin="print(first())\n", env=env)
    assert finished.stdout == "tree\n"


def test_an_empty_durusstartup_is_none(durus: Durus, database: Path) -> None:
    assert durus("-c", "--file", database, env={"DURUSSTARTUP": ""}).returncode == 0


@pytest.mark.parametrize(
    ("source", "shown"),
    [("x = 1\nx / 0\n", "line 2, in <module>"), ("def f(:\n", "SyntaxError")],
)
def test_an_error_in_the_startup_file_is_shown_and_the_console_opens(
    durus: Durus, database: Path, tmp_path: Path, source: str, shown: str
) -> None:
    startup = tmp_path / "startup.py"
    startup.write_text(source)
    finished = durus("-c", "--file", database, "--startup", startup, stdin="print('open')\n")
    assert (finished.returncode, finished.stdout) == (0, "open\n")
    assert shown in finished.stderr
    assert str(startup) in finished.stderr
    assert "durus/commands" not in finished.stderr


def test_a_startup_file_that_is_not_there_is_one_line(durus: Durus, database: Path) -> None:
    finished = durus("-c", "--file", database, "--startup", "nowhere.py")
    assert finished.returncode == 2
    assert finished.stderr == "durus: nowhere.py: No such file or directory\n"


def test_no_history_is_kept_without_a_terminal(
    durus: Durus, database: Path, tmp_path: Path
) -> None:
    durus("-c", "--file", database, stdin="root\n")
    assert os.listdir(tmp_path / "home") == []
