"""Fixtures for tests of servers: waiting for what the log says."""

import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from durus.logger import logger

WAIT_MAX_S = 30


class _Waiter(logging.Handler):
    """Keeps the lines of the log, and lets a test wait for one."""

    def __init__(self) -> None:
        super().__init__(level=1)
        self.lines: list[str] = []
        self.arrival = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self.arrival:
            self.lines.append(f"{record.levelno} {self.format(record)}")
            self.arrival.notify_all()

    def wait_for(self, text: str, count: int = 1) -> list[str]:
        """The lines that contain the text, as soon as there are `count` of them."""

        def found() -> list[str]:
            return [line for line in self.lines if text in line]

        with self.arrival:
            assert self.arrival.wait_for(lambda: len(found()) >= count, WAIT_MAX_S), self.lines
            return found()


@pytest.fixture
def log_lines() -> Iterator[Callable[..., list[str]]]:
    """log_lines(text, count=1): wait for lines of the log of Durus that contain the text.

    Each begins with its level, a number.
    """
    waiter = _Waiter()
    level = logger.level
    logger.addHandler(waiter)
    logger.setLevel(1)
    yield waiter.wait_for
    logger.setLevel(level)
    logger.removeHandler(waiter)
