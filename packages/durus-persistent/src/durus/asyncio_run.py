"""Running a transaction in a thread for asyncio."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from durus.retrying import Cancellation

__all__ = ["run_in_thread"]

T = TypeVar("T")


async def run_in_thread(run: Callable[[], T], cancellation: Cancellation) -> T:
    """Call `run` in a thread of the event loop's pool.

    If this is cancelled, nothing that `run` does is committed any more; a commit that is under way
    is waited for.
    """
    task = asyncio.ensure_future(asyncio.to_thread(run))
    task.add_done_callback(_fetch_error)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if cancellation.cancel():
            await asyncio.wait([task])
        raise


def _fetch_error(task: "asyncio.Task[T]") -> None:
    """If nobody waits any more nobody is to be told of an error, either."""
    if not task.cancelled():
        task.exception()
