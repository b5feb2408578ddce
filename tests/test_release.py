"""Releasing one distribution, and testing others against what was released.

In a small repository with the same layout as ours; nothing is fetched from anywhere.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.version import Version

from scripts import oldest_layers
from scripts.distributions import read_distributions
from scripts.release import ReleaseRefusedError, release
from scripts.releases import run_git

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "{version}"
license-files = ["LICENSE"]
requires-python = ">=3.11"
dependencies = {requirements}

[tool.hatch.build.targets.wheel]
packages = ["src/durus"]
"""

CHANGELOG = """\
# Changelog

## [{version}] - {date}

### Added
* What {version} brings.

## [4.9] - 2020-01-01

* Long ago.
"""


@dataclass(frozen=True, slots=True)
class Repository:
    """A git repository with distributions in `packages/`."""

    root: Path

    def write(self, path: str, text: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")

    def commit(self) -> None:
        run_git(self.root, "add", "--all")
        run_git(self.root, "commit", "--quiet", "--message", "Change")

    def prepare(
        self, name: str, version: str, *requirements: str, date: str = "2026-01-02"
    ) -> None:
        """Write the files of a distribution that a release changes."""
        package = f"packages/{name}"
        pyproject = PYPROJECT.format(name=name, version=version, requirements=[*requirements])
        self.write(f"{package}/pyproject.toml", pyproject)
        self.write(f"{package}/CHANGELOG.md", CHANGELOG.format(version=version, date=date))
        self.write(f"{package}/LICENSE", "MIT")
        self.commit()

    def refusal(self, name: str, version: str) -> str:
        """Why the release is refused; it must have changed nothing."""
        with pytest.raises(ReleaseRefusedError) as caught:
            release(self.root, name, version)
        assert not (self.root / "dist").exists()
        return str(caught.value)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """durus-storage above durus-persistent, both ready to be released as 5.0.0."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "A. Developer")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "developer@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "no-such-file"))
    repository = Repository(tmp_path / "repository")
    repository.write(".gitignore", "/dist/\n__pycache__/\n")
    run_git(repository.root, "init", "--quiet", "--initial-branch=main")
    low = "packages/durus-persistent/src/durus"
    repository.write(f"{low}/py.typed", "")
    repository.write(f"{low}/low.py", "ANSWER = 41\n")
    repository.prepare("durus-persistent", "5.0.0")
    high = "packages/durus-storage"
    repository.write(f"{high}/src/durus/high.py", "from durus.low import ANSWER\n")
    repository.write(
        f"{high}/tests/test_high.py",
        "from durus.high import ANSWER\n\ndef test_answer():\n    assert ANSWER == 41\n",
    )
    repository.prepare("durus-storage", "5.0.0", "durus-persistent>=5.0,<6")
    return repository


def test_a_release_is_built_and_tagged_with_its_changes(repository: Repository) -> None:
    built = release(repository.root, "durus-persistent", "5.0.0")
    assert [path.name for path in built] == [
        "durus_persistent-5.0.0.tar.gz",
        "durus_persistent-5.0.0-py3-none-any.whl",
    ]
    assert sorted((repository.root / "dist").iterdir()) == sorted(built)
    tag = run_git(
        repository.root, "for-each-ref", "--format=%(objecttype) %(contents)", "refs/tags"
    )
    assert tag.startswith("tag durus-persistent 5.0.0\n")
    assert "### Added\n* What 5.0.0 brings." in tag
    assert "Long ago" not in tag
    assert run_git(repository.root, "tag").split() == ["durus-persistent-5.0.0"]
    assert run_git(repository.root, "status", "--porcelain") == ""


def test_a_higher_layer_follows_when_what_it_requires_is_released(repository: Repository) -> None:
    refusal = repository.refusal("durus-storage", "5.0.0")
    assert refusal.endswith("release durus-persistent first")
    release(repository.root, "durus-persistent", "5.0.0")
    release(repository.root, "durus-storage", "5.0.0")


def test_layers_are_released_independently(repository: Repository) -> None:
    release(repository.root, "durus-persistent", "5.0.0")
    release(repository.root, "durus-storage", "5.0.0")
    repository.prepare("durus-storage", "5.1.0", "durus-persistent>=5.0,<6")
    release(repository.root, "durus-storage", "5.1.0")
    assert run_git(repository.root, "tag").split() == [
        "durus-persistent-5.0.0",
        "durus-storage-5.0.0",
        "durus-storage-5.1.0",
    ]


@pytest.mark.parametrize(
    ("name", "version", "refusal"),
    [
        ("durus", "5.0.0", "there is no package durus, only durus-persistent, durus-storage"),
        ("durus-persistent", "five", "'five' is no version; write one like 5.1.0"),
        ("durus-persistent", "5.00", "write the version as 5.0, not as 5.00"),
        ("durus-persistent", "5.0.dev1", "5.0.dev1 is a development version, which cannot"),
        (
            "durus-persistent",
            "5.1.0",
            "packages/durus-persistent/pyproject.toml says version 5.0.0",
        ),
    ],
)
def test_a_wrong_name_or_version_is_refused(
    name: str, version: str, refusal: str, repository: Repository
) -> None:
    assert refusal in repository.refusal(name, version)


def test_a_version_that_is_not_larger_than_the_last_is_refused(repository: Repository) -> None:
    repository.prepare("durus-persistent", "5.10.0")
    run_git(repository.root, "tag", "durus-persistent-5.10.0")
    refusal = "durus-persistent 5.10.0 is released already: 5.9.0 must be a larger version"
    assert repository.refusal("durus-persistent", "5.9.0") == refusal


def test_a_changelog_about_another_version_is_refused(repository: Repository) -> None:
    repository.write("packages/durus-persistent/CHANGELOG.md", "## [4.9] - 2020-01-01\n\n* Old.\n")
    repository.commit()
    assert repository.refusal("durus-persistent", "5.0.0") == (
        "the first entry of packages/durus-persistent/CHANGELOG.md must be "
        "'## [5.0.0] - YYYY-MM-DD'"
    )


def test_a_changelog_without_a_date_is_refused(repository: Repository) -> None:
    repository.prepare("durus-persistent", "5.0.0", date="unreleased")
    assert "write the date" in repository.refusal("durus-persistent", "5.0.0")


def test_an_empty_changelog_entry_is_refused(repository: Repository) -> None:
    repository.write("packages/durus-persistent/CHANGELOG.md", "## [5.0.0] - 2026-01-02\n")
    repository.commit()
    assert "is empty" in repository.refusal("durus-persistent", "5.0.0")


def test_what_is_not_committed_is_refused(repository: Repository) -> None:
    repository.write("packages/durus-persistent/src/durus/new.py", "")
    refusal = repository.refusal("durus-persistent", "5.0.0")
    assert refusal.startswith("commit or remove first what is not committed:")
    assert "durus/new.py" in refusal


def test_another_branch_is_refused(repository: Repository) -> None:
    run_git(repository.root, "switch", "--quiet", "--create", "topic")
    refusal = repository.refusal("durus-persistent", "5.0.0")
    assert refusal == "releases are made on the branch main, this is topic"


def test_a_wheel_that_owns_the_namespace_is_refused(repository: Repository) -> None:
    repository.write("packages/durus-persistent/src/durus/__init__.py", "")
    repository.commit()
    assert "durus/__init__.py exists" in repository.refusal("durus-persistent", "5.0.0")
    assert run_git(repository.root, "tag") == ""


def test_without_a_release_there_is_nothing_older_to_test(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    assert oldest_layers.main(repository.root) == 0
    output = capsys.readouterr().out
    assert output == "durus-storage: no layer below it has a tagged release yet\n"


def test_a_layer_is_tested_against_the_oldest_release_that_it_allows(
    repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    release(repository.root, "durus-persistent", "5.0.0")
    repository.write("packages/durus-persistent/src/durus/low.py", "ANSWER = 41\nNEW = 1\n")
    repository.prepare("durus-persistent", "5.1.0")
    release(repository.root, "durus-persistent", "5.1.0")
    assert oldest_layers.main(repository.root) == 0
    output = capsys.readouterr().out
    assert "durus-storage against durus-persistent 5.0.0\n" in output
    assert "1 passed" in output

    repository.write(
        "packages/durus-storage/src/durus/high.py", "from durus.low import ANSWER, NEW\n"
    )
    assert oldest_layers.main(repository.root) == pytest.ExitCode.INTERRUPTED
    assert "cannot import name 'NEW'" in capsys.readouterr().out

    repository.prepare("durus-storage", "5.0.0", "durus-persistent>=5.1,<6")
    assert oldest_layers.main(repository.root) == 0


def test_the_oldest_releases_fit_to_each_other(repository: Repository) -> None:
    for version in ("4.9", "5.0.0", "5.1.0", "5.2.0", "6.0.0"):
        run_git(repository.root, "tag", f"durus-persistent-{version}")
    repository.prepare("durus-storage", "5.0.0", "durus-persistent>=5.1,<6")
    run_git(repository.root, "tag", "durus-storage-5.0.0")
    repository.prepare("durus-tools", "5.0.0", "durus-persistent>=5.0,<6", "durus-storage>=5.0,<6")
    distributions = read_distributions(repository.root)
    chosen = oldest_layers.choose_oldest(
        repository.root, distributions["durus-tools"], distributions
    )
    assert chosen == {"durus-persistent": Version("5.1.0"), "durus-storage": Version("5.0.0")}
