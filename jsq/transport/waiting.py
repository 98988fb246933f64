"""A start that waits for its server: an attempt is repeated until a server answers."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from jsq.errors import BrokerUnavailable

T = TypeVar("T")

FIRST_RETRY_DELAY, MAX_RETRY_DELAY = 0.1, 2.0
"""Seconds between two attempts: they double, with full jitter, as for a reconnect."""

WAITING_REPORT_SECONDS = 60.0
"""Seconds between two reports of the wait."""


async def wait_for_server(
    attempt: Callable[[], Awaitable[T]],
    report: Callable[[BrokerUnavailable], object],
    *,
    seconds: float | None = None,
) -> T:
    """Repeat an attempt until a server answers: for `seconds`, or without them until cancelled.

    Each attempt must be safe to repeat. `report` is called with the first error, then once a minute. Raises
    errors at once that a later attempt would raise again: any error other than `BrokerUnavailable`, or one
    that is not `retryable`. Raises the error of the attempt that was running when the time was over.
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
