"""Durus 5: the distributions of this workspace."""

from bench.peers.durus import DurusPeer

__all__ = ["PEER"]


class _Durus5(DurusPeer):
    distributions = ("durus-persistent", "durus-storage")
    c_module = "durus._cpersistent"


PEER = _Durus5()
