"""Transactions that are tried again after a conflict."""

import inspect
import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from durus.error import ConflictError
from durus.persistent import PersistentObject

if TYPE_CHECKING:
    from durus.connection import R
    from durus.session import Transaction

__all__ = ["Cancellation", "CancelledRunError", "run_with_retries"]

T = TypeVar("T")

_PAUSE_MIN_S: Final = 0.001
_PAUSE_MAX_S: Final = 0.25


class CancelledRunError(Exception):
    """Nobody waits for the transaction any more, so it was given up."""


class Cancellation:
    """Whether a run shall end without a commit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._is_committing = False

    def begin_commit(self) -> None:
        """CancelledRunError if it was cancelled."""
        with self._lock:
            self._check()
            self._is_committing = True

    def go_on(self) -> None:
        """The commit was refused.  CancelledRunError if it was cancelled meanwhile."""
        with self._lock:
            self._is_committing = False
            self._check()

    def _check(self) -> None:
        if self._is_cancelled:
            raise CancelledRunError

    def cancel(self) -> bool:
        """Let nothing be committed any more; True if a commit is under way, or over."""
        with self._lock:
            self._is_cancelled = True
            return self._is_committing


def run_with_retries(
    begin: "Callable[[], Transaction[R]]",
    fn: "Callable[[R], T]",
    timeout_s: float,
    attempts: int | None,
    cancellation: Cancellation,
) -> T:
    """What `Database.run` does."""
    if attempts is not None and attempts < 1:
        raise ValueError(f"attempts must be 1 or more, or None, and not {attempts}")
    end = time.monotonic() + timeout_s
    count = 0
    while True:
        count += 1
        transaction = begin()
        try:
            result = fn(transaction.__enter__())
            _check_result(result)
            cancellation.begin_commit()
            transaction._commit()
        except ConflictError as error:
            transaction._abort_after(error)
            pause_s = random.uniform(0, min(_PAUSE_MAX_S, _PAUSE_MIN_S * 2 ** min(count, 20)))
            if count == attempts or time.monotonic() + pause_s >= end:
                error.attempts = count
                raise
        except BaseException:
            transaction.abort()
            raise
        else:
            transaction._call_all()
            return result
        cancellation.go_on()
        time.sleep(pause_s)


def _check_result(result: Any) -> None:
    """TypeError for what cannot be used after the transaction, also inside plain containers."""
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError("the function is async, and a transaction awaits nothing: use a plain one")
    seen: set[int] = set()
    found = [result]
    while found:
        value = found.pop()
        if isinstance(value, PersistentObject):
            raise TypeError(
                f"the function has returned <{value._p_identity()}>, which cannot be used after "
                "the end of the transaction: return its value or its oid.  Nothing was stored"
            )
        if inspect.isgenerator(value):
            raise TypeError(
                f"the function has returned {value!r}, which would go on after the end of the "
                "transaction: return a list of what it yields.  Nothing was stored"
            )
        if isinstance(value, dict | list | tuple | set | frozenset) and id(value) not in seen:
            seen.add(id(value))
            found.extend(value)
            if isinstance(value, dict):
                found.extend(value.values())
