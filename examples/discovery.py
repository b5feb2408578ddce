"""What is installed in the running Python environment, as plain values; no database here.

`importlib.metadata` reads whatever lies on sys.path, and that is not always in order: two
distributions of one name, none of the metadata, no list of files, files that are listed and not
there.  What can be read is read; what cannot is named in `Discovery.problems`.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import NamedTuple, TypeVar

__all__ = [
    "Discovery",
    "FoundDistribution",
    "ParsedRequirement",
    "discover",
    "normalize_name",
    "parse_requirement",
]

T = TypeVar("T")

_REQUIREMENT = re.compile(
    r"""\s* (?P<name> [a-z0-9] (?:[a-z0-9._-]*[a-z0-9])? )
        \s* (?: \[[^]]*] )?  # extras
        \s* (?: @\s*\S+ | [(<>=!~][^;]* )?  # a URL, which may contain semicolons, or versions
        \s* (?: ; \s* (?P<marker>.*?) \s* )?""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


class ParsedRequirement(NamedTuple):
    """What is needed, by its normalized name, and the condition under which it is."""

    name: str
    marker: str


@dataclass(frozen=True, slots=True)
class FoundDistribution:
    """One distribution on sys.path."""

    name: str
    version: str
    sizes: dict[str, int | None]
    """The absolute path of each file, and its size in bytes; None if it is not there."""
    requirements: dict[str, ParsedRequirement]
    """By what was written: 'rich >=13; extra == "color"'."""


class Discovery(NamedTuple):
    """All that is installed."""

    distributions: dict[str, FoundDistribution]
    """By normalized name."""
    problems: list[str]
    """What could not be read, and why: one line each."""


def normalize_name(name: str) -> str:
    """The one spelling under which a name is looked up: Foo.Bar is foo-bar."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_requirement(text: str) -> ParsedRequirement | None:
    """What a requirement says, or None if it is none."""
    match = _REQUIREMENT.fullmatch(text)
    return match and ParsedRequirement(normalize_name(match["name"]), match["marker"] or "")


def discover() -> Discovery:
    """Read the metadata of everything on sys.path.

    Of two distributions with the same name the one that comes first is the one that counts, as
    it is for `importlib.metadata` itself.
    """
    distributions: dict[str, FoundDistribution] = {}
    problems: list[str] = []
    for distribution in metadata.distributions():
        reader = _Reader(distribution, problems)
        name = reader.attempt(reader.read_name, "")
        key = normalize_name(name)
        if key in distributions:
            reader.report(f"another {name} comes before it")
        elif name:
            distributions[key] = FoundDistribution(
                name,
                version=reader.attempt(reader.read_version, "unknown"),
                sizes=reader.attempt(reader.read_sizes, {}),
                requirements=reader.attempt(reader.read_requirements, {}),
            )
    return Discovery(distributions, problems)


class _Reader:
    """Reads one distribution, and says what is wrong with it."""

    def __init__(self, distribution: metadata.Distribution, problems: list[str]) -> None:
        self.distribution = distribution
        self.folder = os.path.abspath(str(distribution.locate_file("")))
        self.title = "a distribution"
        self.problems = problems

    def attempt(self, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except Exception as error:  # a broken file can make importlib.metadata raise anything
            self.report(str(error))
            return otherwise

    def report(self, problem: str) -> None:
        self.problems.append(f"{self.title} in {self.folder}: {problem}")

    def read_name(self) -> str:
        self.title = self.read_field("Name")
        return self.title

    def read_version(self) -> str:
        return self.read_field("Version")

    def read_field(self, name: str) -> str:
        fields = self.distribution.metadata
        if name not in fields:
            raise ValueError(f"its metadata has no {name}")
        return fields[name]

    def read_sizes(self) -> dict[str, int | None]:
        files = self.distribution.files
        if files is None:
            raise ValueError("it has no list of its files")
        # Joining strings is much faster than locate_file(), which makes a Path of each.
        paths = {os.path.normpath(os.path.join(self.folder, file)) for file in files}
        return {path: _measure(path) for path in sorted(paths)}

    def read_requirements(self) -> dict[str, ParsedRequirement]:
        requirements: dict[str, ParsedRequirement] = {}
        for text in self.distribution.requires or ():
            if parsed := parse_requirement(text):
                requirements[text] = parsed
            else:
                self.report(f"{text!r} is no requirement")
        return requirements


def _measure(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return None
