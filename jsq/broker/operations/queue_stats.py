"""What queues hold: how many jobs wait, run, are due later, have died, and since when the oldest waits.

The numbers come from consumers and from the states of streams, which the server keeps. Nothing is walked, and
no subjects are listed.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jsq.broker.flow.pauses import PauseStore
from jsq.broker.operations.dead_letters import DeadLetterStore
from jsq.broker.operations.query import JobQuery
from jsq.broker.topology.configs import count_jobs, settings_of
from jsq.broker.topology.namespace import Namespace
from jsq.codec.events import parse_time
from jsq.errors import NotAllowed
from jsq.model.job import PRIORITIES, Priority
from jsq.model.pause import WHOLE_QUEUE, Pause, PauseSet
from jsq.settings import QueueSettings
from jsq.transport.replies import NoResponders


@dataclass(frozen=True, slots=True)
class QueueStats:
    """A queue's numbers of jobs. `waiting` is by priority; `running` counts what workers hold;
    `waiting_for_key` those which wait for the turn of their key.

    `oldest_job_age` is how many seconds ago the oldest waiting job was stored or due; None if none waits.
    `dead` and `records` are None for a user that may not look at those of all queues.
    """

    queue: str
    settings: QueueSettings
    waiting: dict[str, int]
    running: int
    scheduled: int
    dead: int | None
    bytes: int
    waiting_for_key: int = 0
    pauses: tuple[Pause, ...] = ()
    oldest_job_age: float | None = None
    records: int | None = None

    @property
    def paused(self) -> Pause | None:
        """The pause of the whole queue, if there is one."""
        return next((hold for hold in self.pauses if hold.scope == WHOLE_QUEUE), None)


class QueueStatsReader:
    """Reads the numbers of queues."""

    def __init__(
        self, namespace: Namespace, pauses: PauseStore, dead_letters: DeadLetterStore, query: JobQuery
    ) -> None:
        self._wire = namespace.wire
        self._reads = namespace.reads
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._pauses = pauses
        self._dead_letters = dead_letters
        self._query = query

    async def read(self, queue: str | None = None) -> list[QueueStats]:
        """The numbers of one queue, or of all."""
        if queue is not None:
            one = await self._jetstream.stream_info(self._subjects.streams.ready(queue))
            return [await self._read(queue, one)] if one is not None else []
        found = await self._streams.queues()
        return [await self._read(name, found[name]) for name in sorted(found)]

    async def _read(self, queue: str, stream: dict[str, Any]) -> QueueStats:
        subjects = self._subjects
        levels = await asyncio.gather(
            *(self._jetstream.consumer_info(subjects.streams.ready(queue), level) for level in PRIORITIES)
        )
        consumers = dict(zip(PRIORITIES, levels, strict=True))
        scheduled = await self._jetstream.stream_info(
            subjects.streams.scheduled(queue), subjects.next_tick(queue, "*")
        )
        groups = None
        with contextlib.suppress(NotAllowed):
            groups = await self._jetstream.stream_info(
                subjects.streams.groups(queue), subjects.groups.sentinel(queue)
            )
        pauses = PauseSet()
        with contextlib.suppress(NotAllowed):
            pauses = await self._pauses.active(queue)
        in_groups = count_jobs(groups["state"]) if groups else 0
        return QueueStats(
            queue=queue,
            settings=settings_of(stream["config"]),
            waiting={level: one["num_pending"] if one else 0 for level, one in consumers.items()},
            running=sum(one["num_ack_pending"] for one in levels if one),
            scheduled=count_jobs(scheduled["state"]) if scheduled else 0,
            dead=await unless_forbidden(self._dead_letters.count, queue),
            bytes=stream["state"]["bytes"] + (groups["state"]["bytes"] if groups and in_groups else 0),
            waiting_for_key=in_groups,
            pauses=tuple(pauses.pauses.values()),
            oldest_job_age=await self._oldest_age(queue, consumers, in_groups),
            records=await unless_forbidden(self._query.count_records, queue),
        )

    async def _oldest_age(
        self, queue: str, consumers: Mapping[Priority, dict[str, Any] | None], in_groups: int
    ) -> float | None:
        """Seconds since the oldest waiting job was stored in the queue, or in its key group."""
        subjects = self._subjects
        places = [
            (subjects.streams.ready(queue), subjects.ready(queue, level, "*"), one["delivered"]["stream_seq"])
            for level, one in consumers.items()
            if one and one["num_pending"]
        ]
        if in_groups:
            places.append((subjects.streams.groups(queue), subjects.groups.job(queue, "*", "*"), 0))
        stored = []
        for stream, subject, delivered in places:
            with contextlib.suppress(NoResponders, NotAllowed):
                found = await self._reads.next(stream, subject, after=delivered)
                if found is not None:
                    stored.append(parse_time(found.headers["Nats-Time-Stamp"]).timestamp())
        return max(0.0, self._wire.clock.now() - min(stored)) if stored else None


async def unless_forbidden(count: Callable[[str], Awaitable[int]], queue: str) -> int | None:
    """A count of a queue; None for a user that may not read it."""
    try:
        return await count(queue)
    except NotAllowed:
        return None
