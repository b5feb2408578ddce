"""Upgrades at work: a connection has loaded an old state, and makes a new one of it.

What upgrades there are, `durus.schema_versions` knows.  An upgrade may make new objects, and use
and change others, also in the past and in what is read-only: there it is undone when the
transaction ends.  Invariant: *if one has made or changed other objects, the object that was
upgraded counts as changed, too*; so all of that is stored together, or none.
"""

import io
import pickle
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from durus.blob import BlobChunk
from durus.error import ObjectError, ReadOnlyError
from durus.persistent import PersistentBase, PersistentObject, _setattribute
from durus.schema_versions import upgrades_since

if TYPE_CHECKING:
    from durus.connection import Connection

__all__ = ["Upgrades"]


@dataclass(slots=True, eq=False)
class _Upgrade:
    """The upgrade of one object, while it is under way."""

    obj: PersistentObject
    changed: list[PersistentObject] = field(default_factory=list)
    """The other objects that it has changed."""
    uses_changed: bool = False
    """Whether it has used others that were changed before: so it may have changed these, too."""


class Upgrades:
    """Upgrades the objects of one connection."""

    def __init__(self, connection: "Connection[Any]") -> None:
        self._connection = connection
        self._under_way: _Upgrade | None = None
        self._count = 0

    def __bool__(self) -> bool:
        """Whether one is under way."""
        return self._under_way is not None

    def note_access(self, obj: PersistentObject) -> None:
        upgrade, connection = self._under_way, self._connection
        if upgrade is None or obj is upgrade.obj:
            return
        if obj._p_oid in connection.changed or obj._p_oid in connection._view.saved:
            upgrade.uses_changed = True

    def note_change(self, obj: PersistentObject) -> None:
        assert self._under_way is not None
        self._under_way.changed.append(obj)

    def upgrade(self, obj: PersistentObject, version: int) -> list[PersistentObject]:
        """Make the newest version of a state that was loaded; returns what that has changed.

        After an error the object is a ghost again, and so is what the upgrade has changed.
        """
        connection = self._connection
        outer, serial = self._under_way, connection.transaction_serial
        upgrade = _Upgrade(obj)
        try:
            steps = upgrades_since(type(obj), version)
            if not steps:
                return []
            if obj._p_connection is not None:
                assert obj._p_oid is not None
                connection._view.accessed.add(obj._p_oid)  # so that the view stays where it is
            self._under_way = upgrade
            # With a serial of its own, so that every object that it uses comes to note_access.
            self._count += 1
            connection.transaction_serial = -self._count
            try:
                for step in steps:
                    obj._p_set_status_unsaved()  # for this object, the change is not noted
                    step(obj)
                    obj._p_set_status_saved()
                made = _find_new_objects(obj)
                if upgrade.changed or upgrade.uses_changed or made:
                    obj._p_note_change()
            finally:
                self._under_way, connection.transaction_serial = outer, serial
        except BaseException as error:
            self._take_back(upgrade.changed)
            obj._p_set_status_ghost()
            if isinstance(error, ObjectError):
                raise type(error)(f"<{obj._p_identity()}>: {error}") from error
            if isinstance(error, AttributeError):  # which hasattr(obj, name) would take for a no
                raise ObjectError(f"<{obj._p_identity()}> cannot be upgraded: {error}") from error
            raise
        if outer is not None:
            outer.changed += upgrade.changed
        if not connection._may_write:
            # Until the end of the transaction it stays, and a change by the program is refused.
            for changed in upgrade.changed:
                changed._p_set_status_saved()
                _setattribute(changed, "_p_serial", serial)
                if connection._guard is not None:
                    connection._guard.note(changed)
            for new in made if obj._p_connection is not None else ():
                if not isinstance(new, BlobChunk):
                    new._p_set_status_saved()
                    _setattribute(new, "_p_connection", _Refusing())
        return upgrade.changed

    def upgrade_copy(self, copy: PersistentObject, version: int) -> None:
        """Upgrade a copy of an object; what that changes in other objects is taken back."""
        self._take_back(self.upgrade(copy, version))

    def _take_back(self, changed: list[PersistentObject]) -> None:
        for obj in changed:
            assert obj._p_oid is not None
            self._connection.changed.pop(obj._p_oid, None)
            obj._p_set_status_ghost()


class _Refusing:
    """The connection of an object that an upgrade has made where nothing can be stored."""

    transaction_serial = 0  # that of a new object: reading it is no access

    def note_access(self, obj: PersistentObject) -> None:
        raise NotImplementedError

    def load_state(self, obj: PersistentObject) -> None:
        raise NotImplementedError

    def note_change(self, obj: PersistentObject) -> None:
        raise ReadOnlyError(
            f"<{obj._p_identity()}> cannot be changed: an upgrade has made it where nothing can be "
            "stored, and it goes when the transaction or snapshot ends"
        )


class _NewObjectFinder(pickle.Pickler):
    def __init__(self) -> None:
        super().__init__(io.BytesIO(), pickle.HIGHEST_PROTOCOL)
        self.found: list[PersistentObject] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, PersistentBase):
            return None
        is_new = obj._p_connection is None or isinstance(obj._p_connection, _Refusing)
        if is_new and isinstance(obj, PersistentObject):
            self.found.append(obj)
        return 0


def _find_new_objects(obj: PersistentObject) -> list[PersistentObject]:
    """The objects that were never stored and that the state of an object leads to."""
    seen: dict[int, PersistentObject] = {id(obj): obj}
    todo = [obj]
    while todo:
        finder = _NewObjectFinder()
        with suppress(Exception):  # what cannot be pickled cannot be stored, and a commit says so
            finder.dump(todo.pop().__getstate__())
        for new in finder.found:
            if id(new) not in seen:
                seen[id(new)] = new
                todo.append(new)
    return list(seen.values())[1:]
