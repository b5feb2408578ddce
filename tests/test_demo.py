"""The demo, run as a user runs it, and what it says compared with importlib.metadata."""

import os
import re
import subprocess
import sys
from contextlib import closing
from importlib import metadata
from pathlib import Path

import durus
from durus.file_storage import FileStorage
from durus.storage import get_census

LIST_NAMES = """
from importlib import metadata
print(*(distribution.metadata["Name"] for distribution in metadata.distributions()))
"""
INSTALLED = Path(__file__).parents[1] / "examples" / "installed.py"


def run_demo(folder: Path, *arguments: str, few: bool = True, status: int = 0) -> str:
    """What the demo prints when it is run in `folder`: on stdout, or on stderr if it fails.

    few: nothing is installed but what lies in folder/more (and Durus can be imported all the
    same); else that comes on top of what is installed here.
    """
    where_durus_is = [str(Path(part).parent) for part in durus.__path__]
    run = subprocess.run(
        [sys.executable, "-W", "error", *(["-S"] if few else []), str(INSTALLED), *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder / "more"), *where_durus_is]),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == status, run.stderr
    assert status or not run.stderr
    return run.stderr if status else run.stdout


def find_line(account: str, what: str) -> str:
    """What the line of the account says that begins with `what`."""
    (line,) = re.findall(rf"^   {what} +(.*?)(?:  +[\d.]+ ms)?$", account, re.MULTILINE)
    return str(line)


def find_list(account: str, what: str) -> list[str]:
    """The lines below the line that begins with `what`."""
    (lines,) = re.findall(rf"^   {what} .*\n((?:    +.*\n)*)", account, re.MULTILINE)
    return [line.strip() for line in lines.splitlines()]


def install(
    folder: Path, name: str, version: str, *fields: str, files: tuple[str, ...] = ()
) -> Path:
    """Install a distribution by hand in folder/more; returns its .dist-info folder."""
    dist_info = folder / "more" / f"{name}-{version}.dist-info"
    dist_info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *fields]
    (dist_info / "METADATA").write_text("\n".join(lines) + "\n")
    (dist_info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    for file in files:
        (folder / "more" / file).write_text(f"# {name}")
    return dist_info


def uninstall(dist_info: Path) -> None:
    for file in dist_info.iterdir():
        file.unlink()
    dist_info.rmdir()


def test_what_is_installed_here_is_stored_once_and_not_again(tmp_path: Path) -> None:
    # In a process of its own, as packages that other tests have imported add to sys.path.
    names = subprocess.run(
        [sys.executable, "-c", LIST_NAMES], capture_output=True, text=True, check=True
    ).stdout.split()
    number = len({re.sub(r"[-_.]+", "-", name).lower() for name in names})

    account = run_demo(tmp_path, "--about", "pluggy", few=False)
    assert f"kept in {tmp_path / 'installed.durus'} (a new file)" in account
    assert find_line(account, "read") == f"{number} distributions"
    assert find_line(account, "update") == f"{number} added"
    assert f"of {number} distributions, " in find_line(account, "largest")
    pluggy = f"pluggy {metadata.version('pluggy')} is needed by "
    assert find_line(account, "needed").startswith(pluggy)
    assert "pytest" in find_list(account, "needed")
    assert len(account.splitlines()) < 60
    assert max(len(line) for line in account.splitlines()[3:]) <= 100

    account = run_demo(tmp_path, few=False)
    assert f"kept in {tmp_path / 'installed.durus'} (an existing file)" in account
    assert find_line(account, "read") == f"{number} distributions"
    assert find_line(account, "update") == "nothing changed"
    assert find_line(account, "commit").startswith("1 object written")


def test_requirements_are_followed_back_by_the_second_process(tmp_path: Path) -> None:
    install(tmp_path, "Base.Lib", "1.0")
    install(tmp_path, "middle", "1.0", "Requires-Dist: base_lib (>=1) ; python_version > '3'")
    install(tmp_path, "top", "1.0", "Requires-Dist: MIDDLE[all]>=1")
    install(tmp_path, "unrelated", "1.0", "Requires-Dist: base-lib; extra == 'more'")
    account = run_demo(tmp_path, "--about", "base-lib")
    assert find_line(account, "needed") == "Base.Lib 1.0 is needed by 2 distributions"
    assert find_list(account, "needed") == ["middle", "top, through middle"]


def test_what_comes_changes_and_goes_is_reported(tmp_path: Path) -> None:
    dist_info = install(tmp_path, "guest", "1.0", files=("guest.py",))
    account = run_demo(tmp_path)
    assert find_line(account, "update") == "1 added"
    assert find_list(account, "update") == ["added: guest 1.0"]

    uninstall(dist_info)
    dist_info = install(tmp_path, "guest", "2.0", files=("guest.py", "more.py"))
    host = install(tmp_path, "host", "1.0", "Requires-Dist: guest")
    account = run_demo(tmp_path, "--about", "guest")
    assert find_line(account, "update") == "1 added, 1 changed"
    changes = ["added: host 1.0", "changed: guest 1.0 -> 2.0, files: 1"]
    assert find_list(account, "update") == changes
    assert find_list(account, "needed") == ["host"]

    uninstall(host)
    account = run_demo(tmp_path, "--about", "guest")
    assert find_list(account, "update") == ["removed: host 1.0"]
    assert find_line(account, "needed") == "guest 2.0 is needed by 0 distributions"

    uninstall(dist_info)
    account = run_demo(tmp_path, "--about", "guest")
    assert find_list(account, "update") == ["removed: guest 2.0"]
    assert find_line(account, "needed") == "guest is not installed"
    assert find_line(account, "shared") == "0 of 0 files belong to several distributions"
    assert find_line(run_demo(tmp_path), "update") == "nothing changed"


def test_files_of_two_distributions_are_found(tmp_path: Path) -> None:
    install(tmp_path, "one", "1.0", files=("one.py", "both.py"))
    install(tmp_path, "two", "1.0", files=("both.py",))
    account = run_demo(tmp_path)
    assert find_line(account, "shared") == "1 of 2 files belong to several distributions"
    (line,) = find_list(account, "shared")
    assert line.endswith("both.py: one and two")


def test_what_is_broken_is_named_and_the_rest_is_stored(tmp_path: Path) -> None:
    install(tmp_path, "good", "1.0")
    (tmp_path / "more" / "nameless-1.0.dist-info").mkdir()
    odd = install(tmp_path, "odd", "1.0", "Requires-Dist: ?what?", "Requires-Dist: good")
    (odd / "RECORD").write_text("odd.py,,not a number\n")
    (install(tmp_path, "unlisted", "1.0") / "RECORD").unlink()
    install(tmp_path, "gone", "1.0", files=("gone.py",))
    (tmp_path / "more" / "gone.py").unlink()
    account = run_demo(tmp_path, "--about", "good")
    assert find_line(account, "read") == "4 distributions"
    assert find_list(account, "needed") == ["odd"]
    problems = "\n".join(find_list(account, "read"))
    for problem in ("no Name", "'not a number'", "'?what?' is no requirement", "no list of its"):
        assert problem in problems
    assert find_line(run_demo(tmp_path), "update") == "nothing changed"


def test_of_two_distributions_with_one_name_the_first_counts(tmp_path: Path) -> None:
    install(tmp_path, "twin", "1.0")
    install(tmp_path, "twin", "2.0")
    account = run_demo(tmp_path)
    assert find_line(account, "read") == "1 distribution"
    assert "another twin comes before it" in account


def test_an_aborted_change_is_gone_and_a_refused_one_is_repeated(tmp_path: Path) -> None:
    install(tmp_path, "thing", "1.0")
    account = run_demo(tmp_path)
    assert find_line(account, "abort") == "1 version overwritten; thing is 1.0 again"
    assert "WriteConflictError, <inventory.Distribution>" in find_line(account, "Bob")
    assert find_line(account, "in all") == "thing was looked up 2 times"
    assert find_line(run_demo(tmp_path), "in all") == "thing was looked up 4 times"


def test_the_file_opens_readonly_afterwards(tmp_path: Path) -> None:
    install(tmp_path, "thing", "1.0")
    run_demo(tmp_path, "mine.durus")
    before = (tmp_path / "mine.durus").read_bytes()
    assert find_line(run_demo(tmp_path, "mine.durus", "--ask"), "needed").startswith("thing 1.0")
    with closing(FileStorage(tmp_path / "mine.durus", readonly=True)) as storage:
        assert b"Environment" in get_census(storage)
    assert (tmp_path / "mine.durus").read_bytes() == before


def test_a_file_that_is_no_database_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear Sir or Madam,\n" * 1000)
    message = run_demo(tmp_path, "letter.txt", status=1)
    assert str(path) in message
    assert len(message.splitlines()) == 1
    assert path.read_text().startswith("Dear")


def test_to_ask_a_file_that_is_not_there_is_an_error_in_one_line(tmp_path: Path) -> None:
    message = run_demo(tmp_path, "--ask", status=1)
    assert str(tmp_path / "installed.durus") in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "installed.durus").exists()
