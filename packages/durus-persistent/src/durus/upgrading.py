"""Upgrades at work: a connection has loaded an old state, and makes a new one of it.

What upgrades there are, `durus.schema_versions` knows.  An upgrade may use and change other
objects, also in the past and in what is read-only: there it is undone when the transaction ends.
Invariant: *if one has changed other objects, the object that was upgraded counts as changed, too*;
so all of that is stored together, or none.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from durus.error import ObjectError
from durus.persistent import PersistentObject, _setattribute
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
        upgrade = self._under_way
        if upgrade is not None and obj._p_is_unsaved() and obj is not upgrade.obj:
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
                if upgrade.changed or upgrade.uses_changed:
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
        if not connection._may_change(obj):
            for changed in upgrade.changed:
                # Until the end of the transaction it stays, and a change by the program is refused.
                changed._p_set_status_saved()
                _setattribute(changed, "_p_serial", serial)
        return upgrade.changed

    def upgrade_copy(self, copy: PersistentObject, version: int) -> None:
        """Upgrade a copy of an object; what that changes in other objects is taken back."""
        self._take_back(self.upgrade(copy, version))

    def _take_back(self, changed: list[PersistentObject]) -> None:
        for obj in changed:
            assert obj._p_oid is not None
            self._connection.changed.pop(obj._p_oid, None)
            obj._p_set_status_ghost()
