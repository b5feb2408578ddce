"""The model of the demo: what is installed in a Python environment, as persistent objects.

    Environment ── distributions ──► Distribution ── files ─────────► File ── owners ──► ...
                └─ files ──────────► File           ├ requirements ─► Requirement
                                                    └ dependents ───► Distribution

It is a module of its own because classes are stored by name: what the program that is run
defines itself is in `__main__`, where no other program would find it.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from discovery import FoundDistribution, ParsedRequirement
from durus.btree import BTree
from durus.persistent import Persistent

__all__ = ["Changes", "Distribution", "Environment", "File", "Requirement"]


@dataclass(eq=False, repr=False)
class File(Persistent):
    """A file on disk.  Usually one distribution owns it."""

    path: str
    size_bytes: int | None = None
    owners: tuple["Distribution", ...] = ()


@dataclass(eq=False, repr=False)
class Requirement(Persistent):
    """What one distribution says that it needs."""

    text: str
    name: str
    """The normalized name of what it needs."""
    marker: str
    """The condition under which it is needed."""
    target: "Distribution | None" = None
    """The distribution that has this name, if it is installed."""

    @property
    def is_optional(self) -> bool:
        """Whether it is needed for an extra only.  Other conditions are not looked at."""
        return re.search(r"\bextra\b", self.marker) is not None


@dataclass(eq=False, repr=False)
class Distribution(Persistent):
    """Something that was installed."""

    name: str
    version: str
    files: BTree[str, File] = field(default_factory=BTree[str, File])
    requirements: BTree[str, Requirement] = field(default_factory=BTree[str, Requirement])
    dependents: "BTree[str, Distribution]" = field(
        default_factory=lambda: BTree[str, Distribution]()
    )
    """Those that need this one: the way back along their requirements."""
    lookups: int = 0
    """How often somebody asked for it."""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes or 0 for file in self.files.values())

    def walk_dependents(self) -> Iterator[tuple["Distribution", "Distribution"]]:
        """All that need this one, the nearest first, each with the one through which it does."""
        seen: set[Distribution] = {self}
        queue: list[Distribution] = [self]
        for needed in queue:
            for dependent in needed.dependents.values():
                if dependent not in seen:
                    seen.add(dependent)
                    queue.append(dependent)
                    yield dependent, needed

    def update_requirements(self, found: Mapping[str, ParsedRequirement]) -> int:
        """Returns how many requirements were different."""
        gone = [text for text in self.requirements if text not in found]
        for text in gone:
            del self.requirements[text]
        new = [text for text in found if text not in self.requirements]
        for text in new:
            self.requirements[text] = Requirement(text, found[text].name, found[text].marker)
        return len(gone) + len(new)


class Changes(NamedTuple):
    """What an update found to be different, as lines to show."""

    added: list[str]
    removed: list[str]
    changed: list[str]


class Environment(Persistent):
    """The root: one Python environment, as it was when it was last looked at."""

    def __init__(self) -> None:
        self.prefix = ""
        self.seen: datetime | None = None
        self.distributions: BTree[str, Distribution] = BTree()
        self.files: BTree[str, File] = BTree()

    def update(self, found: Mapping[str, FoundDistribution]) -> Changes:
        """Make this environment equal to what was found, and say what was different.

        An assignment counts as a change even if the value stays the same.  So each place looks
        before it assigns: then a commit writes only what is different.
        """
        changes = Changes([], [], [])
        for key in [key for key in self.distributions if key not in found]:
            gone = self.distributions.pop(key)
            self._update_files(gone, {})
            changes.removed.append(f"{gone.name} {gone.version}")
        for key, new in sorted(found.items()):
            known = self.distributions.get(key)
            if known is None:
                known = self.distributions[key] = Distribution(new.name, new.version)
                self._update_distribution(known, new)
                changes.added.append(f"{new.name} {new.version}")
            elif differences := self._update_distribution(known, new):
                changes.changed.append(f"{known.name} {', '.join(differences)}")
        self._link()
        return changes

    def _update_distribution(self, known: Distribution, new: FoundDistribution) -> list[str]:
        differences: list[str] = []
        if known.name != new.name:
            differences.append(f"now {new.name}")
            known.name = new.name
        if known.version != new.version:
            differences.append(f"{known.version} -> {new.version}")
            known.version = new.version
        if count := self._update_files(known, new.sizes):
            differences.append(f"files: {count}")
        if count := known.update_requirements(new.requirements):
            differences.append(f"requirements: {count}")
        return differences

    def _update_files(self, owner: Distribution, sizes: Mapping[str, int | None]) -> int:
        """Returns how many files were different."""
        count = 0
        for path in [path for path in owner.files if path not in sizes]:
            lost = owner.files.pop(path)
            lost.owners = tuple(other for other in lost.owners if other is not owner)
            if not lost.owners:
                del self.files[path]
            count += 1
        for path, size_bytes in sizes.items():
            file = self.files.get(path)
            if file is None:
                file = self.files[path] = File(path, size_bytes)
            is_same = owner in file.owners and file.size_bytes == size_bytes
            if owner not in file.owners:
                file.owners = (*file.owners, owner)
                owner.files[path] = file
            if file.size_bytes != size_bytes:
                file.size_bytes = size_bytes
            count += not is_same
        return count

    def _link(self) -> None:
        """Lead each requirement to the distribution that it names, and back."""
        dependents: dict[str, dict[str, Distribution]] = defaultdict(dict)
        for key, distribution in self.distributions.items():
            for requirement in distribution.requirements.values():
                target = self.distributions.get(requirement.name)
                if requirement.target is not target:
                    requirement.target = target
                if target is not None and not requirement.is_optional:
                    dependents[requirement.name][key] = distribution
        for key, distribution in self.distributions.items():
            wanted, actual = dependents[key], distribution.dependents
            for name in [name for name in actual if name not in wanted]:
                del actual[name]
            for name, dependent in wanted.items():
                if actual.get(name) is not dependent:
                    actual[name] = dependent
