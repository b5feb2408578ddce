"""Durus 4.3 as it is: its FileStorage writes a transaction, and does not sync it.

So what it commits survives the end of the process, and not a power cut: `durus43_synced` is the
one to compare durable commits with.
"""

from bench.peers.durus import DurusPeer

__all__ = ["PEER", "Durus43"]

_ONE_PROCESS = "Durus 4.3 locks the file for one process; more need its server"
_ONE_THREAD = "a storage of Durus 4.3 serves one thread"


class Durus43(DurusPeer):
    """Durus 4.3."""

    lacks = {"processes": _ONE_PROCESS, "threads": _ONE_THREAD}
    distributions = ("durus",)
    c_module = "durus._persistent"


PEER = Durus43()
