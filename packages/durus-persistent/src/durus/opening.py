"""Opening a storage by path or URI: `durus.storage.open_storage`.

Distributions register the schemes of their storages as entry points in the group
`durus.storages`; each is a `durus.interfaces.StorageOpener`.
"""

import os
from importlib.metadata import entry_points
from typing import Final, cast
from urllib.parse import unquote, urlsplit

from durus.error import StorageOpenError
from durus.interfaces import Storage, StorageOpener

__all__ = ["open_storage"]

_DISTRIBUTIONS: Final = {
    "file": "durus-storage",
    "sqlite": "durus-storage",
    "memory": "durus-persistent",
    "durus": "durus-net",
    "durus+tls": "durus-net",
    "durus+unix": "durus-net",
}
"""Where the schemes are that we know of; others register more."""


def open_storage(
    uri: str | os.PathLike[str], *, readonly: bool = False, create: bool = True
) -> Storage:
    """Open the storage that a path or URI names.

    A path, `memory:`, `sqlite:///path`, `durus://host:2972`, `durus+tls://host`,
    `durus+unix:///path`, or what other distributions register in the entry point group
    `durus.storages`.  A path-like object is always a path; a string is one unless it begins with a
    known scheme or contains `://`.

    create: whether a database that is not there is made.
    Raises StorageOpenError, and other errors of its kind, when it cannot be opened.
    """
    openers = {entry.name: entry for entry in entry_points(group="durus.storages")}
    known = {*openers, *_DISTRIBUTIONS}
    name = os.fspath(uri)
    scheme, colon, rest = name.partition(":")
    if isinstance(uri, os.PathLike) or not (colon and (scheme in known or rest[:2] == "//")):
        scheme = "file"
    elif scheme == "file":
        name = unquote(urlsplit(name).path)
    if scheme in openers:
        opener = cast(StorageOpener, openers[scheme].load())
        return opener(name, readonly=readonly, create=create)
    if scheme in _DISTRIBUTIONS:
        distribution = _DISTRIBUTIONS[scheme]
        raise StorageOpenError(
            name,
            f"storages of the kind {scheme!r} are in the distribution {distribution}, which is "
            f"not installed or too old: python -m pip install --upgrade {distribution}",
        )
    raise StorageOpenError(
        name, f"there is no storage for {scheme!r}; those known are {', '.join(sorted(known))}"
    )
