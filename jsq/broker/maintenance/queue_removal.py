"""The removal of a queue. Its streams, settings, pauses and rate are deleted; records and dead letters stay.

A queue is closed before it is deleted: its streams accept no more messages, and their jobs are counted again.
So no job is acknowledged and then deleted unseen. A message to the queue's workers keeps them from creating
the queue again.
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from jsq.broker.operations.cancel import Canceller
from jsq.broker.operations.dead_letters import DeadLetterStore
from jsq.broker.operations.query import JobQuery
from jsq.broker.operations.queue_stats import unless_forbidden
from jsq.broker.schedules import ScheduleStore
from jsq.broker.topology.configs import Config, count_jobs
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.removal import remove_queue_streams
from jsq.broker.topology.subjects import flow_key
from jsq.codec.subject_token import ANY
from jsq.errors import QueueNotEmpty, QueueNotFound
from jsq.model.job import PRIORITIES
from jsq.transport.replies import Reply

SETTLE_WAIT_SECONDS, SETTLE_POLL_SECONDS = 5.0, 0.02
"""How long a removal waits until the workers have settled the cancelled jobs, and how often it checks that.
"""

REMOVED = b"removed"
"""The message that the workers of a queue receive when it is removed."""

MAX_CANCEL_ROUNDS = 5
"""How often the jobs of a queue are cancelled at most: workers may submit others meanwhile."""


@dataclass(frozen=True, slots=True)
class QueueContents:
    """The contents of a queue, now or when it was removed: `jobs` that have not ended, and its `schedules`.

    The dead letters (`dead`) and the `records` outlive the queue. Each is None for a user that may not count
    it.
    """

    queue: str
    jobs: int
    schedules: tuple[str, ...]
    dead: int | None
    records: int | None


class QueueRemover:
    """Removes queues."""

    def __init__(
        self,
        namespace: Namespace,
        cancel: Canceller,
        dead_letters: DeadLetterStore,
        query: JobQuery,
        schedules: ScheduleStore,
    ) -> None:
        self._namespace = namespace
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._cancel = cancel
        self._dead_letters = dead_letters
        self._query = query
        self._schedules = schedules

    async def contents(self, queue: str) -> QueueContents:
        """The contents of a queue. Raises `QueueNotFound`."""
        return QueueContents(
            queue,
            await self._count_jobs(queue),
            tuple(entry.name for entry in await self._schedules.entries(queue)),
            await unless_forbidden(self._dead_letters.count, queue),
            await unless_forbidden(self._query.count_records, queue),
        )

    async def remove(self, queue: str, *, force: bool) -> QueueContents:
        """Remove a queue; returns what it held.

        With `force`, first removes its schedules and cancels its jobs, running ones too. If the removal fails
        half way, call it again. Raises `QueueNotFound`, and without `force` `QueueNotEmpty`.
        """
        held = await self.contents(queue)
        if force:
            for name in held.schedules:
                await self._schedules.remove(name)
            await self._cancel_all(queue)
            await self._wait_until_settled(queue)
        elif held.jobs or held.schedules:
            raise QueueNotEmpty(queue, held.jobs, held.schedules)
        await self._close(queue, force=force)
        self._wire.send(self._subjects.refresh(queue), REMOVED)
        await self._wire.flush()
        await remove_queue_streams(self._namespace, queue)
        limits = self._subjects.streams.bucket("limits")
        for key in (self._subjects.limits.pauses(queue), self._subjects.limits.queue_rate(queue)):
            await self._jetstream.purge(limits, key)
        flows = flow_key(self._subjects, queue, ANY, ">")
        await self._jetstream.purge(self._subjects.streams.bucket("flows"), flows)
        return held

    async def subscribe(self, queue: str, removed: Callable[[str], object]) -> Callable[[], Awaitable[None]]:
        """Call `removed` with the queue when it is removed; returns a function that ends the subscription."""

        def receive(message: Reply) -> None:
            if message.payload == REMOVED:
                removed(queue)

        subscription = await self._wire.subscribe(self._subjects.refresh(queue), receive)
        return functools.partial(self._wire.unsubscribe, subscription)

    # -- inside ------------------------------------------------------------------------------------------

    async def _count_jobs(self, queue: str) -> int:
        """How many jobs the streams of a queue hold. Raises `QueueNotFound` if it has no stream."""
        names, subjects = self._subjects.streams, self._subjects
        places = (
            (names.ready(queue), ""),
            (names.scheduled(queue), subjects.next_tick(queue, ANY)),
            (names.groups(queue), subjects.groups.sentinel(queue)),
        )
        found = [await self._jetstream.stream_info(stream, others) for stream, others in places]
        if not any(found):
            raise QueueNotFound(queue)
        return sum(count_jobs(one["state"]) for one in found if one is not None)

    async def _close(self, queue: str, *, force: bool) -> None:
        """Have the streams of a queue accept no more messages, and check that they hold no job.

        If a job was stored meanwhile, cancels it with `force`. Without `force`, opens the streams again and
        raises `QueueNotEmpty`.
        """
        names = self._subjects.streams
        found = [
            await self._jetstream.stream_info(name)
            for name in (names.scheduled(queue), names.groups(queue), names.ready(queue))
        ]
        configs: list[Config] = [one["config"] for one in found if one is not None]
        for config in configs:
            closed = f"{self._subjects.namespace}.closed.{config['name']}"
            await self._jetstream.update_stream(config | {"subjects": [closed]})
        jobs = await self._count_jobs(queue)
        if jobs and force:
            await self._cancel_all(queue)
        elif jobs:
            for config in configs:
                await self._jetstream.update_stream(config)
            raise QueueNotEmpty(queue, jobs)

    async def _wait_until_settled(self, queue: str) -> None:
        """Wait until the workers have settled their deliveries: a later write would create the queue again.

        The wait has a limit, because a worker may have died.
        """
        stream, end = self._subjects.streams.ready(queue), time.monotonic() + SETTLE_WAIT_SECONDS
        while time.monotonic() < end:
            found = [await self._jetstream.consumer_info(stream, level) for level in PRIORITIES]
            if not any(one and one["num_ack_pending"] for one in found):
                return
            await asyncio.sleep(SETTLE_POLL_SECONDS)

    async def _cancel_all(self, queue: str) -> None:
        for _ in range(MAX_CANCEL_ROUNDS):
            found = await self._cancel.open_jobs(queue, lambda _: True)
            if not found:
                return
            await self._cancel.cancel_many(found, lambda _: True)
