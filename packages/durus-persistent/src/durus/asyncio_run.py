"""Running a transaction in a thread for asyncio."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import TypeVar

from durus.retrying import Cancellation

__all__ = ["run_in_thread"]

T = TypeVar("T")


async def run_in_thread(run: Callable[[], T], cancellation: Cancellation) -> T:
    """Call `run` in a thread of the event loop's pool, with a copy of the context.

    If this is cancelled, nothing that `run` does is committed any more; a commit that is under way
    is waited for, however often this is cancelled.
    """
    # No task: asyncio.run() cancels all of them at its end, and this one could not be waited for.
    future = asyncio.get_running_loop().run_in_executor(None, copy_context().run, _call, run)
    future.add_done_callback(_fetch_error)
    try:
        await asyncio.wait([future])  # which, unlike `await future`, does not cancel it
    except asyncio.CancelledError:
        if cancellation.cancel():
            while not future.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
        else:
            future.cancel()  # so that `run` is never called, if it still waits for a thread
        raise
    return future.result()


def _call(run: Callable[[], T]) -> T:
    try:
        return run()
    except StopIteration as error:  # which no future takes
        raise RuntimeError("the function raised StopIteration") from error


def _fetch_error(future: "asyncio.Future[T]") -> None:
    """If nobody waits any more nobody is to be told of an error, either."""
    if not future.cancelled():
        future.exception()
