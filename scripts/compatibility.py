"""docs/compatibility.md against the names of Durus 4.3, and against our own packages.

`tests/test_compatibility.py` uses this.  The document has a section for each module, headed by its
name, with one table whose rows are

    | names | same, changed or gone | remark |

where the names are those of the module, or of one class of it: `` `Cache`: `get`, `set_size` ``.
"""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points
from typing import Final, NamedTuple

from scripts.public_names import COMMAND_LINE, SCRIPTS, Name, Parameters

__all__ = ["ABSENT", "Entry", "find_ours", "find_problems", "read_document"]

ABSENT: Final = object()
"""What `find_ours` answers for what does not exist."""

_STATUSES: Final = ("same", "changed", "gone")
_QUESTIONS: Final = {"changed": "how", "gone": "why"}
_HEADING: Final = re.compile(r"## (.+)")
_ROW: Final = re.compile(r"\| (imported: )?(`[^|]+`) +\| (\w+) +\| *(.*?) *\|")
_OWNER: Final = re.compile(r"`([^`]+)`: (.+)")
_QUOTED: Final = re.compile(r"`([^`]+)`")


class Entry(NamedTuple):
    """What the document says about one name."""

    module: str
    owner: str
    name: str
    status: str = "same"
    remark: str = ""
    imported: bool = False

    def __str__(self) -> str:
        return ".".join(filter(None, self[:3]))


def read_document(text: str) -> list[Entry]:
    """The entries of all tables in the document."""
    entries: list[Entry] = []
    module = ""
    for line in text.splitlines():
        if heading := _HEADING.fullmatch(line):
            module = heading[1].strip("`")
        elif row := _ROW.fullmatch(line):
            imported, names, status, remark = row.groups()
            owned = _OWNER.fullmatch(names)
            owner, names = (owned[1], owned[2]) if owned else ("", names)
            entries += [
                Entry(module, owner, name, status, remark, bool(imported))
                for name in _QUOTED.findall(names)
            ]
    return entries


def find_problems(
    names: Iterable[Name], entries: Iterable[Entry], find: Callable[[Name], object]
) -> Iterator[str]:
    """One line for each thing that the document does not say, or that is not as it says.

    `find` gives what our packages have under a name, or ABSENT.  Special methods need no entry:
    without one they must be the same.
    """
    expected = {str(name): name for name in names}
    known = list(entries)
    said = {str(entry): entry for entry in known}
    for key, count in Counter(map(str, known)).items():
        if count > 1:
            yield f"{key} is in the document {count} times"
        if key not in expected:
            yield f"{key} is in the document, but 4.3 has no such name"
    for key, name in expected.items():
        entry = said.get(key)
        if entry is not None:
            yield from _find_problems_of(name, entry, find)
        elif name.special:
            cls = said.get(str(replace(name, owner="", name=name.owner)))
            if cls is not None and cls.status == "gone":
                continue
            yield from _find_problems_of(name, Entry(name.module, name.owner, name.name), find)
        else:
            yield f"{key} is not in the document"


def _find_problems_of(name: Name, entry: Entry, find: Callable[[Name], object]) -> Iterator[str]:
    ours = find(name)
    if entry.status not in _STATUSES:
        yield f"{name}: {entry.status!r} is none of {', '.join(_STATUSES)}"
    elif entry.status == "gone":
        if ours is not ABSENT:
            yield f"{name} is said to be gone, but we have it"
    elif ours is ABSENT:
        yield f"{name} is said to be {entry.status}, but we do not have it"
    elif entry.status == "same":
        # Python gives special methods their arguments by position, and as many as they need.
        parameters = None if name.special else name.parameters
        if parameters is not None and (difference := compare(parameters, ours)):
            yield f"{name} is said to be the same, but {difference}"
        home = find(Name(name.home, "", name.name)) if _is_ours(name.home) else ours
        if home is not ours:
            yield f"{name} is said to be the same, but is not that of {name.home}"
    if entry.imported != _is_ours(name.home):
        verb = "imported" if name.home else "defined"
        yield f"{name} was {verb} there, and the document says otherwise"
    if entry.status in _QUESTIONS and not entry.remark:
        yield f"{name} is said to be {entry.status}, but not {_QUESTIONS[entry.status]}"


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "durus"


def compare(theirs: Parameters, ours: object) -> str | None:
    """Why a call that 4.3 takes would not be taken by `ours`, or None.

    Ours may take more: further parameters with defaults, keywords, and defaults where 4.3 has
    none.
    """
    if isinstance(ours, type):
        ours = ours.__init__.__get__(object())  # type: ignore[misc]  # never called
    if not callable(ours):
        return "it cannot be called"
    parameters = list(inspect.signature(ours).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keyword_only = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    kinds = {p.kind for p in parameters}
    for i, name in enumerate(theirs.positional):
        if i >= len(positional):
            return f"it has no parameter {name!r} at position {i + 1}"
        found = positional[i]
        if found.kind is found.POSITIONAL_ONLY:
            return f"its parameter {name!r} cannot be given by keyword"
        if found.name != name:
            return f"its parameter {i + 1} is {found.name!r} and not {name!r}"
        if name in theirs.optional and found.default is found.empty:
            return f"its parameter {name!r} has no default"
    more = positional[len(theirs.positional) :]
    for new in [*more, *keyword_only]:
        if new.default is new.empty:
            return f"it needs a parameter {new.name!r}"
    # What 4.3 passes on to a builtin (*args, **kwargs) may be spelled out.
    if theirs.any_positional and not (more or inspect.Parameter.VAR_POSITIONAL in kinds):
        return "it takes no further arguments"
    by_keyword = [*keyword_only, *(p for p in more if p.kind is not p.POSITIONAL_ONLY)]
    if theirs.any_keyword and not (by_keyword or inspect.Parameter.VAR_KEYWORD in kinds):
        return "it takes no further keywords"
    return None


def find_ours(name: Name) -> object:
    """What our packages have under this name; ABSENT if there is nothing."""
    if name.module == SCRIPTS:
        return next(iter(entry_points(group="console_scripts", name=name.name)), ABSENT)
    if name.module == COMMAND_LINE:
        options = _find_options(*name.owner.split()[1:])
        return name.name if name.name in options else ABSENT
    try:
        found: object = importlib.import_module(name.module)
    except ModuleNotFoundError as error:
        if error.name != name.module:  # it is there, and needs another one that is not
            raise
        return ABSENT
    if not name.owner:
        return getattr(found, name.name, ABSENT)
    owner = getattr(found, name.owner, ABSENT)
    return _find_member(owner, name) if isinstance(owner, type) else ABSENT


def _find_member(cls: type, name: Name) -> object:
    """A method or attribute of a class, or of its instances; methods without `self`."""
    # Python itself makes != of ==; and what every object has is no answer.
    wanted = "__eq__" if name.name == "__ne__" else name.name
    for base in cls.__mro__[:-1]:
        if wanted in vars(base):
            found = getattr(cls, wanted)
            if inspect.isfunction(found) and not isinstance(vars(base)[wanted], staticmethod):
                return found.__get__(object())
            return found
        if wanted in _find_given_attributes(base):
            return None
    return ABSENT


@cache
def _find_given_attributes(cls: type) -> frozenset[str]:
    """The attributes that a class declares, or that its methods give to instances."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):
        return frozenset()
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    return frozenset(names | inspect.get_annotations(cls).keys())


@cache
def _find_options(*command: str) -> frozenset[str]:
    """The options in the help of `durus`, or of `durus -s` and so on."""
    finished = subprocess.run(
        [sys.executable, "-m", "durus", *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    return frozenset(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", finished.stdout))
