"""The start of a worker: it connects and provisions, and waits for a server that does not answer yet.

A worker that starts before its server waits as it does after a lost connection. If it ended instead, its
restarts would be delayed longer after each failure: by up to five minutes on Kubernetes.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from jsq.errors import BrokerUnavailable
from jsq.transport.waiting import wait_for_server

log = logging.getLogger("jsq.worker")

T = TypeVar("T")

STARTUP_BEAT = 0.25
"""Seconds between two beats of the event loop until the worker is ready."""


class Startup:
    """Prepares one worker, until the preparation succeeds or the worker is stopped.

    `beaten` is the time (monotonic) of the last beat of the event loop.
    """

    def __init__(self, worker: str, stopping: asyncio.Event) -> None:
        self.beaten = time.monotonic()
        self._worker = worker
        self._stopping = stopping

    async def run(self, prepare: Callable[[], Awaitable[T]], *, wait: bool) -> T | None:
        """Returns the result of `prepare`, or None if the worker was stopped before.

        Raises the errors of `prepare`; with `wait`, calls it again while no server answers.
        """
        prepared = asyncio.ensure_future(
            wait_for_server(prepare, self._report, seconds=None if wait else 0.0)
        )
        stopped = asyncio.ensure_future(self._stopping.wait())
        beating = asyncio.ensure_future(self._beat())
        try:
            await asyncio.wait((prepared, stopped), return_when="FIRST_COMPLETED")
            return await prepared if prepared.done() else None
        finally:
            for task in (prepared, stopped, beating):
                task.cancel()
            await asyncio.wait((prepared, stopped, beating))

    async def _beat(self) -> None:
        while True:
            self.beaten = time.monotonic()
            await asyncio.sleep(STARTUP_BEAT)

    def _report(self, error: BrokerUnavailable) -> None:
        log.warning("start delayed", extra={"worker": self._worker, "why": str(error)})
