"""Four times a second a worker measures its event loop and hands back jobs that wait too long."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from jsq.errors import BrokerError, BrokerUnavailable
from jsq.worker.dispatcher import Dispatcher

log = logging.getLogger("jsq.worker")

ROUND_INTERVAL = 0.25
"""Seconds between two rounds."""

LONG_LAG = 1.0
"""Seconds of lag of the event loop that are logged."""


class Housekeeping:
    """The rounds of one worker. `beaten` is the moment (monotonic) of the last one.

    With `burst`, `stop` is called when no job is left that could start soon; with `max_idle`, when the worker
    has had no job for so long.
    """

    def __init__(self, dispatcher: Dispatcher, queues: list[str], stop: Callable[[], None]) -> None:
        self.beaten = time.monotonic()
        self._dispatcher = dispatcher
        self._resources = dispatcher.resources
        self._queues = queues
        self._stop = stop
        self._busy_at = self.beaten
        self._done = 0

    async def run(self) -> None:
        """Make rounds until cancelled. Raises `BrokerUnavailable` when the connection is closed for good."""
        loop, wire = asyncio.get_running_loop(), self._resources.broker.wire
        while True:
            before = loop.time()
            await asyncio.sleep(ROUND_INTERVAL)
            self.measure(loop.time() - before - ROUND_INTERVAL)
            if wire.closed:
                raise BrokerUnavailable(f"the connection to {wire.login.shown} was closed for good")
            self._dispatcher.hand_back_surplus()
            self._dispatcher.fill()
            self._dispatcher.demand()
            if self._is_idle_for_long():
                self._stop()
            with contextlib.suppress(BrokerError):
                if self._resources.settings.burst and await self.nothing_left():
                    self._stop()

    def measure(self, lag: float) -> None:
        """Report how late a round was, and the running jobs."""
        self.beaten = time.monotonic()
        dispatcher, observer = self._dispatcher, self._resources.observer
        observer.lagged(max(0.0, lag))
        observer.busy(dispatcher.occupied, dispatcher.waiting.count, self._resources.settings.concurrency)
        observer.reconnected(self._resources.broker.wire.reconnects)
        if lag > LONG_LAG:
            running = ",".join(sorted({attempt.job.task for attempt in dispatcher.attempts.values()}))
            log.warning("event loop blocked", extra={"seconds": round(lag, 3), "running": running})

    def blocking_task(self, running: object) -> dict[str, object]:
        """The job whose asyncio task is `running`. Called from another thread."""
        for attempt in list(self._dispatcher.attempts.values()):
            execution = attempt.function.execution
            if running is (attempt.runner if execution is None else execution.end):
                return {"job": attempt.job.id, "task": attempt.job.task}
        return {"task": ""}

    def _is_idle_for_long(self) -> bool:
        """Whether the worker has had no job for `max_idle` seconds."""
        dispatcher, longest, now = self._dispatcher, self._resources.settings.max_idle, time.monotonic()
        if longest is None:
            return False
        if dispatcher.attempts or dispatcher.waiting.count or dispatcher.done != self._done:
            self._busy_at, self._done = now, dispatcher.done
        if now - self._busy_at < longest or dispatcher.stopping.is_set():
            return False
        log.info(
            "worker idle", extra={"worker": self._resources.name, "seconds": round(now - self._busy_at, 1)}
        )
        return True

    async def nothing_left(self) -> bool:
        """Whether no job runs here, and no job that is not paused could start soon."""
        dispatcher, limits = self._dispatcher, self._dispatcher.limits
        if dispatcher.attempts or dispatcher.waiting.count or limits.returns_soon():
            return False
        if dispatcher.pullers.holds_surplus():
            return False
        for queue in self._queues:
            if limits.opens_soon(queue) and await self._resources.broker.queues.has_work(queue):
                return False
        return not (dispatcher.attempts or dispatcher.waiting.count)
