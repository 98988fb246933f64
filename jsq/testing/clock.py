"""Moves time forward for the jobs and schedules of one test.

The server's clock cannot be set. So a clock of a test lets each delayed job start early, as `jsq job promote`
does, and has the ticks of schedules submit their jobs early. It goes from one due time to the next, in their
order. Jobs that are due after the end come nearer by the time that has passed.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from jsq.app import App
from jsq.broker import Broker
from jsq.broker.jobs.messages import TARGET
from jsq.broker.schedules import ScheduleEntry
from jsq.client.blocking import BlockingMethod, BlockingWrapper
from jsq.codec.subject_token import ANY, Token
from jsq.errors import JobNotFound, ScheduleNotFound, UsageError, WrongState
from jsq.model.durations import Duration, seconds
from jsq.model.job_filter import DELAYED_STATES, read_criteria
from jsq.testing.worker import DRAIN_POLL_SECONDS, JsqWorker, holds_due
from jsq.transport.replies import own_headers, sequence_of
from jsq.transport.retrying import publish_with_retry

MOVE_SECONDS = 5.0
"""Seconds within which the server publishes a job that is due; usually a fraction of a second."""


@dataclass(frozen=True, slots=True)
class DelayedJob:
    """A job that is due later. `attempt` distinguishes its retries."""

    id: str
    queue: str
    attempt: int
    due: datetime


class JsqClock:
    """A clock that a test can advance.

    It moves delays, retries, snoozes and debounced jobs, and the ticks of schedules. It does not move leases,
    timeouts, deadlines, expiry, rate limits, pauses with an end, or the times for which the server keeps
    results, records, ids and unique keys. One call may reach `max_due_times`, so that a schedule of each
    second does not submit its 86,400 jobs of a day.
    """

    max_due_times = 1_000

    def __init__(self, app: App, running: Callable[[], JsqWorker | None] = lambda: None) -> None:
        self._app = app
        self._running = running
        self._ahead: dict[
            tuple[str, str], float
        ] = {}  # seconds that each schedule was moved, by queue and name

    @property
    def blocking(self) -> "BlockingJsqClock":
        """This clock for tests without an event loop: its methods block."""
        return BlockingJsqClock(self, self._app.client.connection.portal, "jsq_clock")

    async def advance(self, duration: Duration) -> None:
        """Let `duration` pass: what becomes due meanwhile starts, in the order of its due times.

        While the worker of the fixture `jsq_worker` runs, it runs the jobs of each due time before the next
        one comes, so a failing job reaches its second and third retry too. Without it, the due jobs wait on
        their queues. Raises `BadOption`, and `UsageError` if too many due times would pass.
        """
        length = seconds("duration", duration) or 0.0
        broker = await self._app.client.broker()
        await self._declare_schedules(broker)
        if not await broker.queues.names():
            return  # there is nothing to move
        passage = Passage(broker, length, self._ahead)
        await self._settle(broker)
        for _ in range(self.max_due_times):
            if not await passage.reach_next():
                break
            await self._settle(broker)
        else:
            raise UsageError(
                f"more than {self.max_due_times:,} due times would pass: advance the clock by less, or set "
                "its max_due_times"
            )
        await passage.end()

    async def _declare_schedules(self, broker: Broker) -> None:
        """Store the schedules of the App, as a worker does when it starts."""
        for schedule in self._app.schedules.values():
            await broker.schedules.put(schedule)

    async def _settle(self, broker: Broker) -> None:
        """With a worker, wait until it has run the due jobs. Without one, wait until they are due."""
        worker = self._running()
        if worker is not None and worker.is_running:
            await worker.wait_idle()
        async with asyncio.timeout(MOVE_SECONDS):
            for queue in await broker.queues.names():
                scheduled = broker.subjects.scheduled(queue, ANY)
                while await holds_due(broker, queue, scheduled):  # noqa: ASYNC110 -- the server publishes them
                    await asyncio.sleep(DRAIN_POLL_SECONDS)


async def move_due(broker: Broker, id: str, queue: str) -> None:
    """Move a due job to its queue, or to its key group: the server takes up to a second to publish it."""
    subjects = broker.subjects
    stream, subject = subjects.streams.scheduled(queue), subjects.scheduled(queue, id)
    message = await broker.reads.last(stream, subject, consistent=True)
    if message is None or not await broker.jetstream.delete_message(stream, sequence_of(message)):
        return  # the server has published it
    _, kind, _, group, token = message.headers[TARGET].split(".")
    place = subjects.ready if kind == "due" else subjects.groups.job
    headers = own_headers(message.headers)
    await publish_with_retry(broker.wire, place(queue, group, Token(token)), message.payload, headers)


class BlockingJsqClock(BlockingWrapper[JsqClock]):
    """A `JsqClock` for tests without an event loop: its methods block."""

    advance = BlockingMethod(JsqClock.advance)


class Passage:
    """The time that passes in one call of `advance`: `length` seconds, of which `elapsed` have passed.

    `ahead` holds the seconds by which each schedule was moved in earlier calls.
    """

    def __init__(self, broker: Broker, length: float, ahead: dict[tuple[str, str], float]) -> None:
        self._broker = broker
        self._length = length
        self._ahead = ahead
        self._elapsed = 0.0
        self._delayed: dict[DelayedJob, float] = {}
        self._schedules: set[tuple[str, str]] | None = None

    async def reach_next(self) -> bool:
        """Go to the next due time, and start what is due then. False if there is none before the end."""
        await self._note_delayed()
        job = min(self._delayed, key=lambda one: self._delayed[one], default=None)
        job_at = self._delayed[job] if job is not None else self._length + 1.0
        entry, entry_at = await self._next_tick()
        if min(job_at, entry_at) > self._length:
            return False
        self._elapsed = max(self._elapsed, min(job_at, entry_at))
        if job is not None and job_at <= entry_at:
            del self._delayed[job]
            with contextlib.suppress(JobNotFound, WrongState):  # it was cancelled, or has started
                found = await self._broker.reschedule.reschedule(job.id, job.queue, asked="promoted")
                await move_due(self._broker, job.id, found.current_queue)
        elif entry is not None:
            await self._tick(entry)
        return True

    async def end(self) -> None:
        """Bring what is due after the end nearer."""
        for job, at in self._delayed.items():
            due = self._now() + timedelta(seconds=at - self._length)
            with contextlib.suppress(JobNotFound, WrongState):
                await self._broker.reschedule.reschedule(job.id, job.queue, due=due)
        for key in self._schedules or ():
            self._ahead[key] = self._ahead.get(key, 0.0) + self._length

    # -- inside ------------------------------------------------------------------------------------------

    def _now(self) -> datetime:
        return self._broker.wire.clock.moment()

    async def _note_delayed(self) -> None:
        """Note the jobs that are due later, and when that is in the time of this passage."""
        criteria, now = read_criteria(DELAYED_STATES), self._now()
        found: dict[DelayedJob, float] = {}
        for one in await self._broker.query.open_jobs(criteria):
            due = one.revision.due
            if due is None or due <= now:
                continue  # it is on its way
            job = DelayedJob(one.job, one.queue, one.revision.attempt, due)
            found[job] = self._delayed.get(job, self._elapsed + (due - now).total_seconds())
        self._delayed = found

    async def _next_tick(self) -> tuple[ScheduleEntry | None, float]:
        """The schedule with the next tick, and when that fires in the time of this passage."""
        now = self._now()
        entries = {(one.queue, one.name): one for one in await self._broker.schedules.entries()}
        if self._schedules is None:
            self._schedules = set(entries)
        found: ScheduleEntry | None = None
        first = self._length + 1.0
        for key in self._schedules & entries.keys():
            fires_at = entries[key].wakes_at
            if fires_at is None:
                continue
            at = (fires_at - now).total_seconds() - self._ahead.get(key, 0.0)
            if at < first:
                found, first = entries[key], at
        return found, first

    async def _tick(self, entry: ScheduleEntry) -> None:
        """Submit the job of the next tick of a schedule."""
        fires_at = entry.wakes_at
        if fires_at is not None:
            with contextlib.suppress(ScheduleNotFound):
                await self._broker.ticks.run(entry.queue, entry.name, fires_at.timestamp(), lambda: True)
