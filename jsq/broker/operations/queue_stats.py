"""The statistics of queues: how many jobs wait, run, are due later or have failed, and the oldest job's age.

The numbers come from consumers and from the states of streams, which the server keeps. No messages are read
to count them, and no subjects are listed.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jsq.broker.flow.pauses import PauseStore
from jsq.broker.operations.dead_letters import DeadLetterStore
from jsq.broker.operations.query import JobQuery
from jsq.broker.topology.configs import count_jobs, settings_of
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.presence import WorkerPresence
from jsq.codec.revisions import parse_time
from jsq.codec.subject_token import ANY
from jsq.errors import NotAllowed
from jsq.model.job import PRIORITIES, Priority
from jsq.model.pause import WHOLE_QUEUE, Pause, PauseSet
from jsq.model.throughput import QueueSample, Throughput
from jsq.settings import QueueSettings
from jsq.transport.replies import NoResponders


@dataclass(frozen=True, slots=True)
class QueueStats:
    """A queue's numbers of jobs.

    `waiting` is by priority. `running` counts the deliveries that workers hold, `waiting_for_key` the jobs
    that wait for a slot of their key group. `scheduled` counts the jobs that are not due yet, and the due
    jobs that no worker has moved to the queue: it has no worker, or no room.

    `oldest_job_age` is how many seconds ago the oldest waiting job was stored or due; None if none waits.
    `arrivals_per_second` and `departures_per_second` are the rates of the last minute, measured by a worker
    of the queue; see `Throughput`. `dead`, `revisions` and `records` are None for a user that may not read
    those of all queues. `revisions` counts the revisions of the records, two for most jobs. `records` counts
    the jobs that have a record, if that was requested.
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
    arrivals_per_second: float | None = None
    departures_per_second: float | None = None
    revisions: int | None = None
    records: int | None = None

    @property
    def paused(self) -> Pause | None:
        """The pause of the whole queue, if there is one."""
        return next((hold for hold in self.pauses if hold.scope == WHOLE_QUEUE), None)


class QueueStatsReader:
    """Reads the statistics of queues."""

    def __init__(
        self,
        namespace: Namespace,
        pauses: PauseStore,
        dead_letters: DeadLetterStore,
        query: JobQuery,
        presence: WorkerPresence,
    ) -> None:
        self._wire = namespace.wire
        self._reads = namespace.reads
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._pauses = pauses
        self._dead_letters = dead_letters
        self._query = query
        self._presence = presence

    async def read(self, queue: str | None = None, *, records: bool = False) -> list[QueueStats]:
        """The statistics of one queue, or of all; with `records`, the number of jobs with a record too."""
        if queue is not None:
            one = await self._jetstream.stream_info(self._subjects.streams.ready(queue))
            found = {queue: one} if one is not None else {}
        else:
            found = await self._streams.queues()
        measured = await self._throughputs() if found else {}
        read = [
            with_throughput(await self._read(name, found[name], count=True), measured.get(name))
            for name in sorted(found)
        ]
        if not records:
            return read
        counts = [await unless_forbidden(self._query.count_records, one.queue) for one in read]
        return [replace(one, records=count) for one, count in zip(read, counts, strict=True)]

    async def measure(self, queue: str, *, count: bool) -> tuple[QueueStats, QueueSample] | None:
        """The statistics of a queue, and a sample; with `count`, the dead letters and the revisions too."""
        found = await self._jetstream.stream_info(self._subjects.streams.ready(queue))
        if found is None:
            return None
        return await self._read(queue, found, count=count), sample_of(found["state"])

    async def sample(self, queue: str) -> QueueSample | None:
        """How many jobs have arrived at a queue and left it; None if the queue does not exist."""
        found = await self._jetstream.stream_info(self._subjects.streams.ready(queue))
        return sample_of(found["state"]) if found is not None else None

    async def _throughputs(self) -> dict[str, Throughput]:
        """The throughput of each queue, from the worker that has measured it for the longest time."""
        found: dict[str, Throughput] = {}
        with contextlib.suppress(NotAllowed):
            for worker in await self._presence.alive():
                for queue, numbers in worker.get("throughput", {}).items():
                    one = Throughput(**numbers)
                    if queue not in found or one.seconds > found[queue].seconds:
                        found[queue] = one
        return found

    async def _read(self, queue: str, stream: dict[str, Any], *, count: bool) -> QueueStats:
        subjects = self._subjects
        levels = await asyncio.gather(
            *(self._jetstream.consumer_info(subjects.streams.ready(queue), level) for level in PRIORITIES)
        )
        consumers = dict(zip(PRIORITIES, levels, strict=True))
        scheduled = await self._jetstream.stream_info(
            subjects.streams.scheduled(queue), subjects.next_tick(queue, ANY)
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
            dead=await unless_forbidden(self._dead_letters.count, queue) if count else None,
            bytes=stream["state"]["bytes"] + (groups["state"]["bytes"] if groups and in_groups else 0),
            waiting_for_key=in_groups,
            pauses=tuple(pauses.pauses.values()),
            oldest_job_age=await self._oldest_age(queue, consumers, in_groups),
            revisions=await unless_forbidden(self._query.count_revisions, queue) if count else None,
        )

    async def _oldest_age(
        self, queue: str, consumers: Mapping[Priority, dict[str, Any] | None], in_groups: int
    ) -> float | None:
        """Seconds since the oldest waiting job was stored in the queue, or in its key group."""
        subjects = self._subjects
        places = [
            (subjects.streams.ready(queue), subjects.ready(queue, level, ANY), one["delivered"]["stream_seq"])
            for level, one in consumers.items()
            if one and one["num_pending"]
        ]
        if in_groups:
            places.append((subjects.streams.groups(queue), subjects.groups.job(queue, "*", ANY), 0))
        stored = []
        for stream, subject, delivered in places:
            with contextlib.suppress(NoResponders, NotAllowed):
                found = await self._reads.next(stream, subject, after=delivered)
                if found is not None:
                    stored.append(parse_time(found.headers["Nats-Time-Stamp"]).timestamp())
        return round(max(0.0, self._wire.clock.now() - min(stored)), 3) if stored else None


def sample_of(state: Mapping[str, Any]) -> QueueSample:
    """How many jobs have arrived and left, by the state of a READY stream."""
    return QueueSample(time.monotonic(), state["last_seq"], state["last_seq"] - state["messages"])


def with_throughput(stats: QueueStats, measured: Throughput | None) -> QueueStats:
    if measured is None:
        return stats
    arrivals, departures = round(measured.arrivals, 3), round(measured.departures, 3)
    return replace(stats, arrivals_per_second=arrivals, departures_per_second=departures)


async def unless_forbidden(count: Callable[[str], Awaitable[int]], queue: str) -> int | None:
    """A count of a queue; None for a user that may not read it."""
    try:
        return await count(queue)
    except NotAllowed:
        return None
