"""Functions about limits and places, which child processes find by their names."""

import asyncio
import os
import threading
import time

from jsq import Context


def where() -> tuple[int, bool]:
    """The process that runs this, and whether it runs in its main thread."""
    return os.getpid(), threading.current_thread() is threading.main_thread()


def extend(ctx: Context, seconds: float, takes: float) -> float:
    ctx.extend_timeout(seconds)
    time.sleep(takes)
    return takes


async def extend_on_loop(ctx: Context, seconds: float, takes: float) -> float:
    ctx.extend_timeout(seconds)
    await asyncio.sleep(takes)
    return takes
