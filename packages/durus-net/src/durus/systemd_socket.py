"""The socket that systemd opened for a server: socket activation, as in sd_listen_fds(3).

The environment says which process the sockets are for (LISTEN_PID) and how many there are
(LISTEN_FDS); they are the file descriptors from 3 on.
"""

import os
import socket
from typing import Final

from durus.error import StorageOpenError

__all__ = ["SD_LISTEN_FDS_START", "get_systemd_socket", "sd_listen_fds"]

SD_LISTEN_FDS_START: Final = 3


def sd_listen_fds() -> int:
    """The number of sockets that this process was given; 0 if none.

    They are closed in programs that this one runs.  StorageOpenError (an OSError) if LISTEN_FDS is
    no number.
    """
    if os.environ.get("LISTEN_PID", "") != str(os.getpid()):
        return 0
    text = os.environ.get("LISTEN_FDS", "")
    if not text.isdecimal():
        raise StorageOpenError("LISTEN_FDS", f"LISTEN_PID is set, but {text!r} is no number")
    count = int(text)
    for descriptor in range(SD_LISTEN_FDS_START, SD_LISTEN_FDS_START + count):
        os.set_inheritable(descriptor, False)
    return count


def get_systemd_socket() -> socket.socket | None:
    """The one socket that this process was given, or None.

    StorageOpenError if there are several.
    """
    count = sd_listen_fds()
    if count == 0:
        return None
    if count > 1:
        raise StorageOpenError(
            "LISTEN_FDS", f"systemd passed {count} sockets, but a server listens on one only"
        )
    return socket.socket(fileno=SD_LISTEN_FDS_START)
