"""Any storage as one of the new interface: itself, or the one adapter of a classic storage."""

import threading
from typing import Final, cast
from weakref import WeakValueDictionary

from durus import interfaces
from durus.classic_adapter import ClassicAdapter
from durus.classic_storage import ClassicCalls, Storage
from durus.fork_locks import renew_lock_in_children

__all__ = ["ClassicAdapter", "as_storage"]


class _Adapters:
    """The one adapter of each classic storage, while it is in use."""

    def __init__(self) -> None:
        self._by_id: WeakValueDictionary[int, ClassicAdapter] = WeakValueDictionary()
        """By id of the storage, which an adapter keeps alive."""
        self._lock = threading.Lock()
        renew_lock_in_children(self)

    def adapter_of(self, storage: Storage) -> ClassicAdapter:
        with self._lock:
            adapter = self._by_id.get(id(storage))
            if adapter is None:
                adapter = self._by_id[id(storage)] = ClassicAdapter(storage)
            return adapter


_adapters = _Adapters()

_CLASSIC_CALLS: Final = ("load", "bulk_load", "begin", "store", "end", "sync", "new_oid")


def _overrides_classic_calls(cls: type) -> bool:
    """Whether a program of 4.x has put calls of its own over those of a storage of ours."""
    return issubclass(cls, ClassicCalls) and any(
        getattr(cls, name) is not getattr(ClassicCalls, name) for name in _CLASSIC_CALLS
    )


def as_storage(storage: object) -> interfaces.Storage:
    """`storage` itself, or the adapter of a classic one: always the same while it is in use.

    One of ours whose classic calls a subclass overrides counts as classic, so that it is called.
    TypeError when it is no storage at all.
    """
    cls = type(storage)
    # A class has all the attributes that its instances have, but is no storage.
    is_one_of_today = isinstance(storage, interfaces.Storage) and not issubclass(cls, type)
    if is_one_of_today and not _overrides_classic_calls(cls):
        return cast(interfaces.Storage, storage)
    if not isinstance(storage, Storage):
        raise TypeError(
            f"{storage!r} is no storage: expected one that implements durus.interfaces.Storage, "
            "or an instance of a subclass of durus.storage.Storage"
        )
    return _adapters.adapter_of(storage)
