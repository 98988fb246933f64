"""A quiet worker takes no more jobs, and lives on: its running jobs continue, and so do its other duties.

A deployment makes the old workers quiet first, and stops them when their jobs have ended. A quiet worker
closes its subscriptions to the queues, so that the server offers it no job that another worker could run now.
"""

import asyncio
import logging
import os
from collections.abc import Callable

from jsq.worker.dispatcher import Dispatcher

log = logging.getLogger("jsq.worker")


class Quiet:
    """Whether a worker is asked to be quiet. A request may come before the worker is ready."""

    def __init__(self) -> None:
        self.asked = False
        self._changed = asyncio.Event()

    def ask(self, *, quiet: bool) -> None:
        """Ask the worker to be quiet, or to take jobs again."""
        self.asked = quiet
        self._changed.set()

    async def run(self, dispatcher: Dispatcher, changed: Callable[[], None]) -> None:
        """Follow the requests until cancelled. `changed` is called after each change."""
        quiet = False
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self.asked == quiet:
                continue
            quiet = self.asked
            if quiet:
                dispatcher.suspend_starts()
                await dispatcher.pullers.pause()
                dispatcher.hand_back_waiting()
            else:
                await dispatcher.pullers.resume()
                dispatcher.resume_starts()
            changed()
            about = {"worker": dispatcher.resources.name, "running": len(dispatcher.attempts)}
            if quiet:
                log.info("worker quiet", extra={**about, "resume": f"kill -CONT {os.getpid()}"})
            else:
                log.info("worker resumed", extra=about)
