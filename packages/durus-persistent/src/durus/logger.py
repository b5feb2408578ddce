"""The logger 'durus'.  Importing adds a NullHandler and nothing else."""

import logging
import sys
from typing import TextIO

from durus import _guard as _guard

__all__ = ["direct_output", "is_logging", "log", "logger"]

logger = logging.getLogger("durus")
logger.addHandler(logging.NullHandler())
log = logger.log


def direct_output(file: TextIO) -> None:
    """Send the log to `file`, and stdout and stderr with it, as a classic server does."""
    logger.handlers[:] = []
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    if file is sys.__stderr__:
        return
    if sys.stdout is sys.__stdout__:
        sys.stdout = file
    else:
        log(100, "sys.stdout already customized.")
    if sys.stderr is sys.__stderr__:
        sys.stderr = file
    else:
        log(100, "sys.stderr already customized.")


def is_logging(level: int) -> bool:
    """Whether messages of this level go anywhere."""
    return logger.getEffectiveLevel() <= level
