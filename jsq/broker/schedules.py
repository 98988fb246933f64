"""Schedules on the server: no process owns them, and there is no leader among the workers.

A key in a bucket holds a schedule and its state, up to which tick it is decided (`ScheduleState`). The key is
the truth, and each change of it expects the revision that was read. In the SCHEDULED stream of the schedule's
queue, the server also holds one message, the wake-up, which is due at the next tick. The worker that receives
it

    1. reads the key, and decides by the server's clock which ticks are due,
    2. stores a job for each, with an id made of the schedule's name and the time of the tick,
    3. writes the new state, expecting the revision of 1,
    4. stores the wake-up of the next tick, unless it is stored already,
    5. acknowledges.

No tick is lost. If a worker dies before 5, its wake-up is delivered to another worker after `TICK_LEASE`
seconds, and the ticks that 3 has not recorded are still due. If the wake-up itself is missing, because a
writer died before 4 or a queue in memory lost its server, `TickRunner.repair_wakeups` stores it again.

No tick is doubled. A worker that repeats 2 finds the message of the job, or its record, which is kept for at
least ten leases. A worker whose lease has lapsed sends nothing. If two workers do 2 at the same time, they
store the same jobs; the server then refuses one of them at 3, and that worker reads the key again.

No wake-up is later than its tick: each change of the key stores the wake-up again. That write expects the
stored wake-up, so the server refuses it if another writer was faster, and the writer reads the key again. A
wake-up that is too early does no harm.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from jsq.broker.jobs.messages import SCHEDULE, TARGET, id_of, scheduled_time
from jsq.broker.jobs.records import EXPECTED, TTL
from jsq.broker.jobs.store import JobStore
from jsq.broker.operations.cancel import Canceller
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.presence import WorkerPresence
from jsq.broker.topology.provision import Change
from jsq.broker.topology.subjects import read_id
from jsq.codec import revisions, schedules
from jsq.codec.envelope import new_id
from jsq.codec.subject_token import ANY
from jsq.errors import BadEnvelope, JobNotFound, NewerEnvelope, NotAllowed, ScheduleNotFound, WrongState
from jsq.model.expiry import expiry_time
from jsq.model.job import Job
from jsq.model.revision import FINAL_STATES
from jsq.model.schedule import (
    Schedule,
    ScheduleState,
    TickDecision,
    carry_over,
    judge_tick,
    schedule_differences,
    tick_job,
)
from jsq.transport.replies import NoResponders, Reply, WrongSequence
from jsq.transport.retrying import While, publish_with_retry, with_retry

log = logging.getLogger("jsq.schedule")

CANCEL_SECONDS = 3.0
"""How long to wait for the worker of an overlapping job to cancel it: much less than the lease of a tick."""


@dataclass(frozen=True, slots=True)
class ScheduleEntry:
    """A schedule and its state as the key holds them, and the revision of the key."""

    schedule: Schedule
    state: ScheduleState
    revision: int

    @property
    def name(self) -> str:
        return self.schedule.name

    @property
    def queue(self) -> str:
        return self.schedule.job.queue

    @property
    def wakes_at(self) -> datetime | None:
        """When a worker must check the schedule again; None for a schedule that is paused or over."""
        tick = None if self.state.paused else self.schedule.next_tick(self.state.decided_until)
        return None if tick is None else self.schedule.fires_at(tick)


class ScheduleStore:
    """Reads and changes schedules."""

    def __init__(self, namespace: Namespace, store: JobStore, workers: WorkerPresence) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._job_writer = store.writer
        self._workers = workers
        self._bucket = namespace.subjects.streams.bucket("schedules")

    def now(self) -> datetime:
        """The server's time."""
        return self._wire.clock.moment()

    # -- read --------------------------------------------------------------------------------------------

    async def find(self, name: str, queue: str = "*") -> ScheduleEntry:
        """A schedule by its name. Raises `ScheduleNotFound`."""
        found = await self.read(name, queue)
        if isinstance(found, int):
            raise ScheduleNotFound(name)
        return found

    async def entries(self, queue: str = "*") -> list[ScheduleEntry]:
        """The schedules of a queue, or of all queues, by name; skips those that only a later release can
        read.
        """
        try:
            found = await self._reads.fetch(self._bucket, self._subjects.schedule(queue, ANY))
        except NoResponders:
            await self._jetstream.check_absent(self._bucket)
            return []
        entries = [entry for reply in found if (entry := self._decode(reply)) is not None]
        return sorted(entries, key=lambda entry: entry.name)

    async def orphans(self, entries: Iterable[ScheduleEntry]) -> set[str]:
        """The names of the schedules that an App declared, but that no live worker of their queue declares.

        A schedule is no orphan if its queue has no live worker: it cannot be known.
        """
        alive = await self._workers.alive()
        served = {queue for one in alive for queue in one.get("queues", ())}
        declared = {name for one in alive for name in one.get("schedules", ())}
        return {
            entry.name
            for entry in entries
            if entry.schedule.declared and entry.queue in served and entry.name not in declared
        }

    # -- change ------------------------------------------------------------------------------------------

    async def put(self, schedule: Schedule) -> ScheduleEntry:
        """Create a schedule, or change it. If it is on another queue, removes it from there first.

        If its ticks change, they count from now. A schedule that is put unchanged keeps its state. Raises
        `BadArguments` if its jobs are too large, and what the creation of a queue raises.
        """
        name, queue = schedule.name, schedule.job.queue
        self._job_writer.check_size(replace(schedule.job, id=f"{name}-{new_id()}"))
        await self._streams.ensure_queue(queue)
        while True:
            with contextlib.suppress(WrongSequence):
                old = await self._read_any_queue(name, queue)
                if isinstance(old, ScheduleEntry) and old.queue != queue:
                    await self._delete(old)
                here = (
                    old
                    if isinstance(old, ScheduleEntry) and old.queue == queue
                    else await self.read(name, queue)
                )
                if isinstance(here, ScheduleEntry) and same_schedule(here.schedule, schedule):
                    return await self.store_wakeup(here)
                expect = here.revision if isinstance(here, ScheduleEntry) else here
                progress = ScheduleState(self.now())
                if isinstance(old, ScheduleEntry):
                    progress = carry_over(old.schedule, old.state, schedule, progress.decided_until)
                return await self.store_wakeup(await self.write(schedule, progress, expect))

    async def pause(self, name: str) -> ScheduleEntry:
        """Pause a schedule: it submits no jobs. Raises `ScheduleNotFound`."""
        return await self._change(name, lambda found: replace(found, paused=True))

    async def resume(self, name: str) -> ScheduleEntry:
        """Resume a paused schedule, without the ticks that it missed. Raises `ScheduleNotFound`."""
        return await self._change(
            name,
            lambda found: replace(found, paused=False, decided_until=self.now()) if found.paused else found,
        )

    async def remove(self, name: str) -> ScheduleEntry:
        """Remove a schedule; the jobs that it submitted stay. Raises `ScheduleNotFound`."""
        while True:
            found = await self.find(name)
            with contextlib.suppress(WrongSequence):
                await self._delete(found)
                return found

    async def run(self, name: str) -> Job:
        """Submit a job of a schedule now, under a new id. The ticks of the schedule do not change.

        Raises `ScheduleNotFound`, and what `JobWriter.submit` raises.
        """
        schedule = (await self.find(name)).schedule
        headers = {**schedule.job.headers, "schedule": name}
        job = replace(schedule.job, id=f"{name}-{new_id()}", headers=headers)
        await self._job_writer.submit(with_schedule_expiry(job, schedule, self.now()))
        return job

    async def reconcile(
        self, declared: Iterable[Schedule], by: str, *, write: bool = True, prune: bool = False
    ) -> list[Change]:
        """Bring the schedules to the declarations of the App named `by`; returns the changes.

        With `write=False`, changes nothing. With `prune`, removes the schedules that the App declared before
        but does not declare now. It keeps those that a live worker declares: that worker may run an older
        release, or another App of the same name.
        """
        wanted = {schedule.name: schedule for schedule in declared}
        found = {entry.name: entry for entry in await self.entries()} if wanted or prune else {}
        changes: list[Change] = []
        for name, schedule in wanted.items():
            old = found.get(name)
            differences = ["missing"] if old is None else schedule_differences(old.schedule, schedule)
            changes += [Change(f"schedule {name}", one) for one in differences]
            if write:
                await self.put(schedule)
        gone = [entry for entry in found.values() if entry.schedule.declared == by] if prune else []
        for entry in gone:
            if entry.name not in wanted:
                changes.append(await self._prune(entry, write=write))
        return changes

    # -- inside ------------------------------------------------------------------------------------------

    async def store_wakeup(
        self, entry: ScheduleEntry, while_: While | None = None, *, expect: int = 0
    ) -> ScheduleEntry:
        """Have the server wake a worker at the next tick, unless it will do so already; returns the entry."""
        while (at := entry.wakes_at) is not None:
            subject = self._subjects.next_tick(entry.queue, entry.name)
            headers = {
                SCHEDULE: f"@at {revisions.format_time(at)}",
                TARGET: self._subjects.due_tick(entry.queue, entry.schedule.job.priority, entry.name),
                EXPECTED: str(expect),
            }
            try:
                await publish_with_retry(self._wire, subject, b"", headers, while_=while_)
                break
            except WrongSequence as refused:
                expect = refused.last
            stored = await self._reads.last(
                self._subjects.streams.scheduled(entry.queue), subject, consistent=True
            )
            found = await self.read(entry.name, entry.queue, least=entry.revision)
            if isinstance(found, int):
                break
            entry = found
            wake_time = f"@at {format_wake_time(entry.wakes_at)}"
            if stored is not None and stored.headers.get(SCHEDULE) == wake_time:
                break
        return entry

    async def _change(self, name: str, make: Callable[[ScheduleState], ScheduleState]) -> ScheduleEntry:
        while True:
            found = await self.find(name)
            progress = make(found.state)
            if progress == found.state:
                return found
            with contextlib.suppress(WrongSequence):
                return await self.store_wakeup(await self.write(found.schedule, progress, found.revision))

    async def _delete(self, entry: ScheduleEntry) -> None:
        """Remove a schedule and its wake-up. A worker that receives the wake-up nevertheless does nothing."""
        key = self._subjects.schedule(entry.queue, entry.name)
        headers = {"KV-Operation": "DEL", TTL: "1", EXPECTED: str(entry.revision)}
        await publish_with_retry(self._wire, key, b"", headers)
        await self._jetstream.purge(
            self._subjects.streams.scheduled(entry.queue), self._subjects.next_tick(entry.queue, entry.name)
        )

    async def _prune(self, entry: ScheduleEntry, *, write: bool) -> Change:
        what = f"schedule {entry.name}"
        holders = [
            str(one.get("worker"))
            for one in await self._workers.alive()
            if entry.name in one.get("schedules", ())
        ]
        if holders:
            return Change(what, f"not declared any more; kept, because worker {holders[0]} declares it")
        if write:
            with contextlib.suppress(WrongSequence):
                await self._delete(entry)
        return Change(what, "not declared any more: an orphan")

    async def write(
        self, schedule: Schedule, progress: ScheduleState, expect: int, while_: While | None = None
    ) -> ScheduleEntry:
        key = self._subjects.schedule(schedule.job.queue, schedule.name)
        body = schedules.encode(schedule, progress)
        revision = await publish_with_retry(self._wire, key, body, {EXPECTED: str(expect)}, while_=while_)
        return ScheduleEntry(schedule, progress, revision)

    async def _read_any_queue(self, name: str, queue: str) -> ScheduleEntry | int:
        """A schedule on any queue, or on this one if the login may not read the others."""
        try:
            return await self.read(name)
        except NotAllowed:
            return await self.read(name, queue)

    async def read(self, name: str, queue: str = "*", *, least: int = 0) -> ScheduleEntry | int:
        """A schedule; if there is none, the revision that a write of it must expect.

        The bucket's leader is read if the login may read it. A replica may be behind: if its revision is
        lower than `least`, the read is repeated.
        """
        key = self._subjects.schedule(queue, name)

        async def once() -> Reply | None:
            found = await self._reads.last(self._bucket, key, consistent=True)
            if found is not None and int(found.headers["Nats-Sequence"]) < least:
                raise NoResponders(f"a replica of {self._bucket} is behind")
            return found

        try:
            reply = await with_retry(self._wire, once, seconds=5.0, absent=5.0)
        except NoResponders:
            await self._jetstream.check_absent(self._bucket)
            return 0
        if reply is None:
            return 0
        return self._decode(reply, strict=True) or int(reply.headers["Nats-Sequence"])

    def _decode(self, reply: Reply, *, strict: bool = False) -> ScheduleEntry | None:
        """The schedule in a key's value, or None if it was removed.

        A value that this release cannot read is logged and gives None too; with `strict`, it raises.
        """
        *_, queue, token = reply.headers["Nats-Subject"].split(".")
        name = read_id(token)
        if not reply.payload:
            return None
        try:
            schedule, progress = schedules.decode(reply.payload, name=name, queue=queue)
        except (BadEnvelope, NewerEnvelope) as error:
            if strict:
                raise
            log.warning("schedule skipped", extra={"schedule": name, "queue": queue, "why": str(error)})
            return None
        return ScheduleEntry(schedule, progress, int(reply.headers["Nats-Sequence"]))


class TickRunner:
    """Submits the jobs of schedules when they are due."""

    def __init__(
        self, namespace: Namespace, store: JobStore, cancels: Canceller, schedules: ScheduleStore
    ) -> None:
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._job_reader = store.reader
        self._job_writer = store.writer
        self._cancels = cancels
        self._schedules = schedules

    async def run(self, queue: str, name: str, fired: float, while_: While) -> TickDecision | None:
        """Submit the jobs that are due for a schedule whose tick was delivered.

        `fired` is when the server published the tick, in seconds since the epoch. `while_` returns False when
        the lease of the tick has lapsed. Returns the decision, or None if nothing was due. Raises
        `QueueFull`, and what `publish_with_retry` raises after `while_` has returned False.
        """
        least = 0
        while True:
            found = await self._schedules.read(name, queue, least=least)
            if isinstance(found, int):
                return None
            # The estimate of the server's clock may be some milliseconds behind the tick.
            now = max(self._schedules.now(), datetime.fromtimestamp(fired, UTC))
            decision = await self._judge(found, now, while_)
            if decision.state == found.state:
                await self._schedules.store_wakeup(found, while_)
                return None
            for tick in decision.ticks:
                await self._submit(
                    with_schedule_expiry(tick_job(found.schedule, tick), found.schedule, now), while_
                )
            try:
                entry = await self._schedules.write(found.schedule, decision.state, found.revision, while_)
            except WrongSequence as refused:
                least = refused.last
            else:
                await self._schedules.store_wakeup(entry, while_)
                return decision

    async def repair_wakeups(self, queue: str, known: Iterable[str]) -> list[str]:
        """Store the missing wake-ups of a queue's schedules; returns the names of these schedules.

        A user that may not list the schedules checks those that are `known` to it.
        """
        stream = self._subjects.streams.scheduled(queue)
        try:
            wakeups = await self._reads.fetch(stream, self._subjects.next_tick(queue, ANY))
            entries = await self._schedules.entries(queue)
        except NotAllowed:
            replies = [
                await self._reads.last(stream, self._subjects.next_tick(queue, name)) for name in known
            ]
            wakeups = [reply for reply in replies if reply is not None]
            read = [await self._schedules.read(name, queue) for name in known]
            entries = [one for one in read if not isinstance(one, int)]
        stored = {id_of(reply): reply.headers for reply in wakeups}
        repaired = []
        for entry in entries:
            at, headers = entry.wakes_at, stored.get(entry.name)
            if at is None or (headers is not None and scheduled_time(headers) <= at):
                continue  # an early wake-up does no harm, and is usual for a schedule with short intervals
            await self._schedules.store_wakeup(
                entry, expect=int(headers["Nats-Sequence"]) if headers is not None else 0
            )
            repaired.append(entry.name)
        return repaired

    async def _judge(self, found: ScheduleEntry, now: datetime, while_: While) -> TickDecision:
        """Decide which ticks fire; reads the last job if the schedule's `overlap` depends on it."""
        schedule, progress = found.schedule, found.state
        if progress.paused:
            return TickDecision((), progress)
        decision = judge_tick(schedule, progress, now, busy=False)
        if schedule.overlap == "queue" or not decision.ticks or not await self._is_running(found):
            return decision
        if schedule.overlap == "cancel":
            await self._cancel_last(found)
        return judge_tick(schedule, progress, now, busy=True)

    async def _is_running(self, found: ScheduleEntry) -> bool:
        """Whether the job of the last tick has not ended."""
        last = await self._job_reader.find(found.state.last, found.queue) if found.state.last else None
        return last is not None and last.state not in FINAL_STATES

    async def _cancel_last(self, found: ScheduleEntry) -> None:
        with contextlib.suppress(JobNotFound, WrongState):  # the job ended meanwhile
            await self._cancels.cancel(found.state.last, found.queue, seconds=CANCEL_SECONDS)

    async def _submit(self, job: Job, while_: While) -> None:
        await self._job_writer.enqueue(job, while_=while_)


def with_schedule_expiry(job: Job, schedule: Schedule, now: datetime) -> Job:
    """The job of a schedule, with the time at which it expires if it is submitted now."""
    return replace(job, expires=expiry_time(schedule.expires, None, now)) if schedule.expires else job


def same_schedule(one: Schedule, other: Schedule) -> bool:
    """Whether two schedules are stored as the same bytes."""
    nothing = ScheduleState(datetime.fromtimestamp(0, UTC))
    return schedules.encode(one, nothing) == schedules.encode(other, nothing)


def format_wake_time(at: datetime | None) -> str:
    return "" if at is None else revisions.format_time(at)
