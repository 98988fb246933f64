"""Waiting for a condition."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

Until = Callable[..., Awaitable[None]]
"""The type of the fixture `until`."""


async def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait until a function, or the coroutine that it returns, returns a true value."""
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.01)
