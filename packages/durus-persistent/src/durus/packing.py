"""Packing a storage, whatever it can do of it."""

from collections.abc import Callable

from durus.error import HistoryUnavailableError, StorageError
from durus.interfaces import PackableHistoryStorage, PackableStorage, Progress, Storage
from durus.times import When

__all__ = ["pack_storage"]


def pack_storage(
    storage: Storage, keep: When | None, progress: Callable[[Progress], None] | None = None
) -> None:
    """Let a storage drop the history before `keep`, and what nothing leads to.

    Raises StorageError if it cannot be packed, and HistoryUnavailableError if it keeps no history
    and some is to be kept.
    """
    if isinstance(storage, PackableHistoryStorage):
        storage.pack(keep=keep, progress=progress)
    elif not isinstance(storage, PackableStorage):
        raise StorageError(f"{storage} cannot be packed")
    elif keep is not None:
        raise HistoryUnavailableError(
            f"{storage} keeps no history, so there is none to keep; pack it without keep="
        )
    else:
        storage.pack()
