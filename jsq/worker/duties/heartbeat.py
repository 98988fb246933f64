"""The heartbeat of a worker: it publishes the worker's description, and applies changes on the server."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from jsq.app import App
from jsq.broker.topology.presence import HEARTBEAT_SECONDS
from jsq.codec.revisions import parse_time
from jsq.errors import BrokerError
from jsq.model.job import PRIORITIES
from jsq.worker.dispatcher import Dispatcher
from jsq.worker.duties.group_wakeups import GroupWakeups
from jsq.worker.duties.queue_sampling import QueueSampling

log = logging.getLogger("jsq.worker")

BUSY_CHECK_SECONDS = 1.0
"""Seconds between two checks whether the worker has become busy or idle."""


class Heartbeat:
    """The beats of one worker.

    `state` returns whether the worker is `running`, `quiet` or `stopping`. `removed` are the queues that were
    removed; `on_removed` is called with each. The worker creates nothing of them until another client has
    created them again.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        queues: list[str],
        wakeups: list[GroupWakeups],
        sampling: QueueSampling,
    ) -> None:
        self._dispatcher = dispatcher
        self._resources = dispatcher.resources
        self._queues = queues
        self._wakeups = wakeups
        self._sampling = sampling
        self.removed: set[str] = set()
        self.on_removed: Callable[[str], None] = lambda queue: None
        self._removed_at: dict[str, datetime] = {}
        self.state: Callable[[], str] = lambda: "running"
        self._about: dict[str, Any] = {}

    def queue_removed(self, queue: str) -> None:
        """Report that a queue was removed, and create nothing of it."""
        self.removed.add(queue)
        self._removed_at[queue] = self._resources.broker.wire.clock.moment()
        self._resources.broker.streams.forget()
        self.on_removed(queue)
        log.warning("queue removed", extra={"worker": self._resources.name, "queue": queue})

    def beat(self) -> None:
        """Publish the description of the worker as it is now."""
        dispatcher = self._dispatcher
        counts = {
            "state": self.state(),
            "running": len(dispatcher.attempts),
            "busy": dispatcher.occupied,
            "done": dispatcher.done,
            "throughput": self._sampling.throughputs(),
        }
        self._resources.broker.presence.beat(self._resources.name, self._about | counts)

    async def run(self) -> None:
        """Beat until cancelled."""
        resources = self._resources
        self._about = {
            "worker": resources.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "queues": self._queues,
            "tasks": sorted(resources.app.tasks),
            "aliases": sorted(resources.app.aliases),
            "functions": [*resources.app.functions.patterns],
            "declared": published_options(resources.app),
            "schedules": sorted(resources.app.schedules),
            "slots": resources.settings.concurrency,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        while True:
            self.beat()
            await self._until_next_beat()
            with contextlib.suppress(BrokerError):
                for queue in self._queues:
                    await self._check_consumer(queue)
                for wakeups in self._wakeups:
                    await wakeups.check(self.removed)

    async def _until_next_beat(self) -> None:
        """Wait for the next regular beat. When the worker becomes busy or idle, it beats within a second."""
        was_busy = self._dispatcher.occupied > 0
        for _ in range(round(HEARTBEAT_SECONDS / BUSY_CHECK_SECONDS)):
            await asyncio.sleep(BUSY_CHECK_SECONDS)
            is_busy = self._dispatcher.occupied > 0
            if is_busy != was_busy:
                self.beat()
            was_busy = is_busy

    async def _check_consumer(self, queue: str) -> None:
        """Follow the lease of a queue, and create its consumers again if they were removed."""
        broker = self._resources.broker
        found = await broker.jetstream.consumer_info(broker.subjects.streams.ready(queue), PRIORITIES[0])
        # The removal is announced before the streams are deleted: until then the old consumer is there.
        if found is not None and queue in self.removed:
            if parse_time(found["created"]) <= self._removed_at[queue]:
                return
            self.removed.discard(queue)
            log.info("queue created again", extra={"worker": self._resources.name, "queue": queue})
        if found is None and queue in self.removed:
            return
        if found is None:
            broker.streams.forget()
            await broker.streams.ensure_queue(queue)
        else:
            self._dispatcher.set_lease(queue, found["config"]["ack_wait"] / 1e9)


def published_options(app: App) -> dict[str, dict[str, Any]]:
    """The options of a submit that the tasks of an App declare, for clients that know only their names."""
    found = ((name, task.declaration.published_options) for name, task in app.tasks.items())
    return {name: options for name, options in found if options}
