"""Stand-ins for classes that cannot be found, so that the rest of a database stays usable.

`LoadingPolicy` makes a placeholder class for each such name; the writer and the connection know
its objects by `MissingObject`.  Invariant: an object of a missing class is never loaded, so never
changed, and what is stored of it stays as it was.
"""

from typing import ClassVar

from durus.error import MissingClassError, format_oid
from durus.persistent import PersistentObject

__all__ = ["MissingObject", "make_placeholder"]


class MissingObject(PersistentObject):
    """An object whose class cannot be found: a ghost for ever, which says so when accessed.

    There is a subclass for every such class; it has the module and the qualified name of the
    original.  References to the object are stored again as they were.
    """

    __slots__ = ()

    missing_module: ClassVar[str] = "durus.missing"
    missing_qualname: ClassVar[str] = "MissingObject"

    def __new__(cls, *args: object, **kwargs: object) -> "MissingObject":
        # Called for values inside a state; ghosts are made by PersistentBase.__new__(cls).
        raise MissingClassError(cls._p_remedy())

    @classmethod
    def _p_remedy(cls) -> str:
        name = f"{cls.missing_module}.{cls.missing_qualname}"
        return (
            f"class {name} cannot be found.  Put its module on the import path, or say what it "
            f'is called now: aliases={{"{name}": "new.module.NewName"}}'
        )

    def _p_identity(self) -> str:
        cls = type(self)  # asking the object itself would load it
        oid = format_oid(self._p_oid)
        return f"MissingClass {cls.missing_module}.{cls.missing_qualname} {oid}"

    def _p_load_state(self) -> None:
        raise MissingClassError(f"object {format_oid(self._p_oid)}: {self._p_remedy()}")


def make_placeholder(module: str, qualname: str) -> type[MissingObject]:
    """The class that stands for the missing one of this name."""
    namespace = {
        "__slots__": (),
        "__module__": module,
        "__qualname__": qualname,
        "missing_module": module,
        "missing_qualname": qualname,
    }
    return type(qualname.rpartition(".")[2], (MissingObject,), namespace)
