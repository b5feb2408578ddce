"""One worker: a process that runs one workload of one peer, a round whenever it is asked to.

`bench.runner` starts it, in the environment of the peer, as

    python -m bench.worker PEER WORKLOAD SETTINGS

with the settings in JSON.  It answers with a line of JSON when it is prepared, and with another
one for each line that it is sent: a dictionary of figures, or {"not_measured": why}.  It ends when
its input does.
"""

import gc
import importlib
import json
import sys
from importlib.metadata import version
from importlib.util import find_spec

from bench.peer import NotMeasuredError, Peer, Rounds, Settings

__all__ = ["main"]


def _load_peer(name: str) -> Peer:
    peer: Peer = importlib.import_module(f"bench.peers.{name}").PEER
    return peer


def _start(peer_name: str, workload: str, settings: Settings) -> Rounds:
    if peer_name == "floor":
        floors = importlib.import_module("bench.floors")
        rounds: Rounds = getattr(floors, workload)(settings)
    elif workload == "budget":
        rounds = importlib.import_module("bench.budget").budget(settings)
    else:
        peer = _load_peer(peer_name)
        if workload in peer.lacks:
            raise NotMeasuredError(peer.lacks[workload])
        rounds = getattr(importlib.import_module("bench.workloads"), workload)(peer, settings)
    return rounds


def _answer(answer: object) -> None:
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


def _run(rounds: Rounds) -> None:
    _answer(next(rounds))
    for _ in sys.stdin:
        _answer(next(rounds))
        gc.collect()  # the next round does not pay for what this one left


def _describe(peer: Peer) -> dict[str, str]:
    """The versions of what is installed for a peer."""
    versions = {name: version(name) for name in peer.distributions}
    try:
        has_c_part = find_spec(peer.c_module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        has_c_part = False
    return {**versions, "C part": "yes" if has_c_part else "no"}


def main(arguments: list[str]) -> int:
    """The exit status: always 0; what goes wrong is a traceback."""
    peer_name, workload, settings = arguments
    if workload == "describe":
        _answer(_describe(_load_peer(peer_name)))
        return 0
    try:
        rounds = _start(peer_name, workload, Settings(**json.loads(settings)))
        _run(rounds)
    except NotMeasuredError as error:
        _answer({"not_measured": str(error)})
        return 0
    rounds.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
