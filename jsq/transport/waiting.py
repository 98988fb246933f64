"""A start that waits for its server: what could not be done is tried again until a server answers."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from jsq.errors import BrokerUnavailable

T = TypeVar("T")

FIRST_RETRY_DELAY, MAX_RETRY_DELAY = 0.1, 2.0
"""Seconds between two tries: they double, with full jitter, as those of a reconnect."""

WAITING_REPORT_SECONDS = 60.0
"""Seconds between two reports that the server is awaited."""


async def wait_for_server(
    attempt: Callable[[], Awaitable[T]],
    report: Callable[[BrokerUnavailable], object],
    *,
    seconds: float | None = None,
) -> T:
    """Make an attempt until a server answers: for `seconds`, or without them until cancelled.

    Each attempt must be safe to repeat. `report` is called with the first error, then once a minute. Raises
    at once what a later attempt would meet again: any error that is no `BrokerUnavailable`, or not
    `retryable`. Raises the error of the attempt that was under way when the seconds had passed.
    """
    began, reported, delay = time.monotonic(), float("-inf"), FIRST_RETRY_DELAY
    while True:
        try:
            return await attempt()
        except BrokerUnavailable as error:
            now = time.monotonic()
            if not error.retryable or (seconds is not None and now - began >= seconds):
                raise
            if now - reported >= WAITING_REPORT_SECONDS:
                reported = now
                report(error)
        left = float("inf") if seconds is None else began + seconds - time.monotonic()
        await asyncio.sleep(min(random.uniform(0.0, delay), max(0.0, left)))
        delay = min(MAX_RETRY_DELAY, delay * 2)
