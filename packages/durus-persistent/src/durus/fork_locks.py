"""Locks after a fork: nobody gives back, in the child, one that another thread held."""

import os
import threading
from typing import Protocol
from weakref import WeakSet

from durus import _guard as _guard

__all__ = ["renew_lock_in_children"]


class _Owner(Protocol):
    _lock: threading.Lock

    def __hash__(self) -> int: ...


_owners: WeakSet[_Owner] = WeakSet()


def renew_lock_in_children(owner: _Owner) -> None:
    """Give `owner` a new `_lock` in each process that is forked."""
    _owners.add(owner)


def _begin_in_child() -> None:
    for owner in _owners:
        owner._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
