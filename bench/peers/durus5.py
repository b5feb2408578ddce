"""Durus 5: the distributions of this workspace."""

from pathlib import Path

from bench.peers.durus import DurusPeer
from durus.backup import backup

__all__ = ["PEER"]


class _Durus5(DurusPeer):
    distributions = ("durus-persistent", "durus-storage")
    c_module = "durus._cpersistent"

    def back_up(self, path: Path, folder: Path) -> object:
        return backup(path, folder)


PEER = _Durus5()
