"""Classes whose states change their form: upgrades, and classes that get another name.

A class has the version 1 until upgrades are declared for it; the version stands in each state, as
one more key (`VERSION_KEY`), which Durus 4.3 reads and keeps (but not if all it has is slots).
A state of an older version is upgraded whenever it is loaded, and stored in the new form when the
object is next stored.
Invariant: *what an upgrade changes in other objects is stored together with the object that was
upgraded, or not at all*, so that no upgrade happens twice.
"""

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Final, TypeVar

from durus.connection import Connection
from durus.crawl import crawl_snapshot
from durus.database import Database
from durus.error import DurusError, DurusKeyError, MissingClassError, format_oid
from durus.interfaces import Oid, Record
from durus.missing import MissingObject
from durus.persistent import PersistentBase, PersistentObject
from durus.policy import LoadingPolicy, name_and_packages
from durus.schema_versions import VERSION_KEY, declare, take_version, upgrades_since

__all__ = ["VERSION_KEY", "rename", "upgrade"]

P = TypeVar("P", bound=PersistentObject)

_BATCH_SIZE: Final = 1000


def upgrade(cls: type[P], to: int) -> Callable[[Callable[[P], None]], Callable[[P], None]]:
    """Declare how an object of the version before becomes one of version `to` (2 or more).

        @upgrade(Account, to=2)
        def add_currency(account: Account) -> None:
            account.currency = "EUR"

    The function is called with the object when its state is loaded.  It may change the object
    freely, and other objects too; then all of them are stored with the next commit.  A subclass
    has the upgrades of its base until it declares some of its own, which are then all it has.
    The module that declares upgrades must be imported before objects are loaded: a state of a
    version that is not known raises ObjectError.

    Raises ValueError when `to` was declared already or is less than 2, TypeError when it is no
    number or the class is not persistent; when an object is loaded, ObjectError if a version in
    between was not declared.
    """

    def register(function: Callable[[P], None]) -> Callable[[P], None]:
        declare(cls, to, function)
        return function

    return register


def rename(
    db: Database[Any], names: Mapping[str, str], *, dry_run: bool = False
) -> Mapping[str, int]:
    """Store all that names a class by an old name again, with the new one.

    names: {"old.module.Old": "new.module.New"}, or modules and packages, as `aliases=`.
    dry_run: only count.

    Returns how many objects name each old name: those of the class, and those that refer to one.
    They are stored a thousand at a time, so others can work meanwhile, if they know both names
    (`aliases=`); what is interrupted can be called again.  States of the past stay as they are.
    Raises MissingClassError when a new class cannot be found, and ObjectError when it does not have
    the upgrades of the old one; then nothing has happened.
    """
    aliases = {**(db.aliases or {}), **names}
    is_remote = getattr(getattr(db.storage, "classic", db.storage), "is_remote", False)
    searcher = _NameSearcher(names, allow=db.allow, aliases=aliases, import_classes=not is_remote)
    for old, new in names.items():
        _check_names(old, new)
    counts = dict.fromkeys(names, 0)
    found: list[Oid] = []
    with closing(db.storage.snapshot()) as snapshot:
        for oid, (_, record) in crawl_snapshot(snapshot):
            named = searcher.search(record, oid)
            for name in named:
                counts[name] += 1
            if named:
                found.append(oid)
    if found and not dry_run:
        note = "rename " + ", ".join(f"{old} to {new}" for old, new in names.items())
        with Database(
            db.storage, readonly=db.readonly, allow=db.allow, aliases=aliases
        ) as renaming:
            for start in range(0, len(found), _BATCH_SIZE):
                renaming.run(partial(_touch, found[start : start + _BATCH_SIZE]), note=note)
    return counts


def _check_names(old: str, new: str) -> None:
    if old == new:
        raise ValueError(f"{old} is renamed to itself")
    try:
        pkgutil.resolve_name(new)
    except (ImportError, AttributeError, ValueError) as error:
        raise MissingClassError(f"{old} cannot be renamed to {new}: {error}") from error


def _touch(oids: Sequence[Oid], root: PersistentObject) -> None:
    connection = root._p_connection
    assert isinstance(connection, Connection)
    for oid in oids:
        try:
            connection._view.load(oid)  # get() would also find what is still in the cache
        except DurusKeyError:  # it was removed meanwhile
            continue
        connection.get(oid, PersistentObject)._p_note_change()


class _NameSearcher(LoadingPolicy):
    """Notes which of the old names are met when something is loaded."""

    def __init__(self, names: Mapping[str, str], **options: Any) -> None:
        super().__init__(**options)
        self._names = names
        self._met: set[str] = set()

    def search(self, record: Record, oid: Oid) -> frozenset[str]:
        """The old names that a record has in it."""
        self._met.clear()
        try:
            cls = self.load_class(record.class_pickle, oid)
            state = self.load_state(record.state_pickle, _make_stand_in, oid, cls)
            if self._met:
                upgrades_since(cls, take_version(state))
        except DurusError:
            # What cannot be loaded cannot be stored again either; if it is not concerned, it stays.
            if self._met or any(_may_be_in(record.state_pickle, old) for old in self._names):
                raise
            return frozenset()
        if self._met and issubclass(cls, MissingObject):
            raise MissingClassError(f"object {format_oid(oid)}: {cls._p_remedy()}")
        return frozenset(self._met)

    def _find(self, module: str, name: str, old_names: bool) -> object:
        met = [prefix for prefix in name_and_packages(f"{module}.{name}") if prefix in self._names]
        self._met.update(met[:1])
        found = super()._find(module, name, old_names)
        if met and isinstance(found, type) and issubclass(found, MissingObject):
            raise MissingClassError(f"{module}.{name} cannot be renamed: {found._p_remedy()}")
        return found


def _make_stand_in(pid: Any) -> PersistentObject:
    """An object in the place of the one that a reference is to."""
    _, cls = pid
    stand_in: PersistentObject = PersistentBase.__new__(cls)
    return stand_in


def _may_be_in(pickled: bytes, name: str) -> bool:
    return all(part.encode() in pickled for part in name.split("."))
