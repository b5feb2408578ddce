"""A port for a server that must be told one."""

import random
import socket

__all__ = ["find_free_port"]

FIRST, LAST = 20_000, 32_000
"""Below those that a system hands out: else one that is free could be somebody's a moment later."""


def find_free_port() -> int:
    while True:
        port = random.randrange(FIRST, LAST)
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
