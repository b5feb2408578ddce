"""Objects that several transactions may change at the same time, without a conflict.

A method with `@blind` says nothing of what the object is, and so reads nothing of it: such a change
makes no transaction depend on the object.  If somebody else commits another one meanwhile, the
two are merged (`durus.merging`).  Invariant: *an object that the transaction has read, or changed
in any other way, is never merged*; it conflicts as all others do.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, Protocol, TypeVar, cast

from durus.persistent import ObjectConnection, PersistentObject

__all__ = ["Mergeable", "blind"]

M = TypeVar("M", bound="Mergeable")
P = ParamSpec("P")


class _MergingConnection(ObjectConnection, Protocol):
    """What a connection of mergeable objects can do besides."""

    def changing_blindly(self, obj: PersistentObject) -> AbstractContextManager[None]: ...


class Mergeable(PersistentObject):
    """The base of classes with blind operations.

    A subclass decorates these with `@blind`, and says in `_p_resolve_conflict` what comes out when
    two transactions have done some.
    """

    __slots__ = ()

    _p_blind: ClassVar[frozenset[str]] = frozenset()
    """The names of the blind methods."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # The default is for __abstractmethods__, which dir() names and not every class has.
        names = {n for n in dir(cls) if hasattr(getattr(cls, n, None), "_durus_is_blind")}
        cls._p_blind = frozenset(names)

    if not TYPE_CHECKING:  # with it, every misspelt attribute is accepted

        def __getattribute__(self, name):
            if name in type(self)._p_blind:  # to find the method is no access
                return object.__getattribute__(self, name)
            return super().__getattribute__(name)

    def _p_resolve_conflict(self, old: Any, committed: Any, mine: Any) -> Any:
        """The state to store; called when both have changed the object since `old`.

        old: the state (what `__getstate__` returns) on which this transaction began.
        committed: the newest one, by others; mine: that of this transaction.

        It looks at the states alone: references in them stand for objects that are not to be used.
        NotImplementedError leaves it a conflict, and so do states of different schema versions.
        """
        raise NotImplementedError

    def _p_note_change(self) -> None:
        connection = self._p_connection
        if connection is not None and self._p_serial != connection.transaction_serial:
            connection.note_access(self)  # whatever is not blind depends on what is there
        super()._p_note_change()


def blind(
    method: Callable[Concatenate[M, P], None],
) -> Callable[Concatenate[M, P], None]:
    """A method of a mergeable class that changes the object, and depends on nothing of it.

    It may use the attributes, but must neither return anything nor decide by them what it does.
    When it raises, what it has changed until then stays, as with any method.
    """

    @wraps(method)
    def call(self: M, /, *args: P.args, **kwargs: P.kwargs) -> None:
        connection = self._p_connection
        if connection is None or self._p_serial == connection.transaction_serial:
            method(self, *args, **kwargs)  # it is new, or was read: a change like any other
            return
        with cast(_MergingConnection, connection).changing_blindly(self):
            method(self, *args, **kwargs)

    call._durus_is_blind = True  # type: ignore[attr-defined]  # functions may have attributes
    return call
