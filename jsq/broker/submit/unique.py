"""Unique jobs: a key is claimed in the bucket of ids, then its job is stored.

A claim is written by compare-and-set and is never given back. Whoever meets one looks at what became of its
job, as the leaders tell it, and takes over what is free. A claim whose job was never stored, because its
submitter died, is filled by the next submit under the id that was claimed: so at most one job comes of it.
"""

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import ceil
from weakref import WeakValueDictionary

from jsq.broker.jobs.backpressure import WaitForRoom
from jsq.broker.jobs.event_log import EXPECTED, TTL, expecting, read_event
from jsq.broker.jobs.messages import (
    TARGET,
    event_from_message,
    own_headers,
    schedule_headers,
    scheduled_time,
    seconds_until,
)
from jsq.broker.jobs.store import JobStore
from jsq.broker.operations.cancel import Canceller
from jsq.broker.topology.configs import ID_SECONDS
from jsq.broker.topology.namespace import Namespace
from jsq.codec import envelope
from jsq.errors import BrokerError, BrokerUnavailable, DuplicateJob
from jsq.model.event import FINAL_STATES, LoggedEvent
from jsq.model.expiry import has_expired
from jsq.model.job import Job
from jsq.model.unique import JobLife, Unique, UniqueAction, UniqueClaim, decide_submit
from jsq.transport.replies import Reply, WrongSequence
from jsq.transport.retrying import DEADLINE_SECONDS, READ_SECONDS, publish_with_retry
from jsq.transport.server_clock import PAST

NEVER = 10**18
"""A sequence that no stream has come to: a write that expects it is refused, and told what stands there."""

PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Seconds given to the submitter of a claimed job that is missing: most likely he is on his way."""

CONCURRENT_UNIQUE_KEYS = 100
"""Keys that are submitted together."""

FAR = timedelta(seconds=ID_SECONDS)
"""When a job that waits for the end of another begins if nobody ever calls it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """How far a job has come; the first event of one that waits, and the sequence of its schedule."""

    life: JobLife
    found: LoggedEvent | None = None
    schedule: int = 0


@dataclass(frozen=True, slots=True)
class Placed:
    """Which job a submit came to, on which queue, and whether it was there before."""

    id: str
    queue: str
    duplicate: bool


@dataclass(frozen=True, slots=True)
class UniqueSubmit:
    """What is to be submitted. `once` if its id is the caller's own."""

    job: Job
    due: datetime | None
    unique: Unique
    patience: WaitForRoom | None
    once: bool = False

    def under(self, id: str, queue: str) -> Job:
        """Our job under the id of another, which is missing."""
        return replace(self.job, id=id, queue=queue)


class UniqueKeys:
    """Submits unique jobs, and calls those that wait for the end of another."""

    def __init__(
        self,
        namespace: Namespace,
        store: JobStore,
        cancels: Canceller,
    ) -> None:
        self._wire = namespace.wire
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._event_log = store.event_log
        self._job_reader = store.reader
        self._job_writer = store.writer
        self._cancels = cancels
        self._expiry = store.expiry
        self._backpressure = store.backpressure
        # Through one connection those who write over the holder of a key do so in turn: at once they would
        # only be refused.
        self._key_groups: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def submit(self, order: UniqueSubmit) -> Placed:
        """Store a job unless its key is held; then do what was asked for.

        Raises `DuplicateJob`, `BrokerUnavailable` where others keep taking the key, and what `Jobs.submit`
        raises.
        """
        self._job_writer.check_size(order.job)
        if order.unique.on_duplicate in ("return", "raise"):
            return await self._submit(order)
        async with self._key_groups.setdefault(order.unique.key, asyncio.Lock()):
            return await self._submit(order)

    async def submit_each(
        self, orders: Sequence[UniqueSubmit]
    ) -> tuple[dict[int, Placed], dict[int, BrokerError | DuplicateJob]]:
        """Submit each by itself, those of one key in their order.

        Returns by their places what came of them, and what went wrong. Raises `BadArguments` before any.
        """
        lines: dict[str, list[int]] = {}
        for place, order in enumerate(orders):
            self._job_writer.check_size(order.job, place)
            lines.setdefault(order.unique.key, []).append(place)
        left = iter(list(lines.values()))
        placed: dict[int, Placed] = {}
        refused: dict[int, BrokerError | DuplicateJob] = {}

        async def submit_next() -> None:
            for place in (place for line in left for place in line):
                try:
                    placed[place] = await self.submit(orders[place])
                except (BrokerError, DuplicateJob) as error:
                    refused[place] = error

        await asyncio.gather(*(submit_next() for _ in range(CONCURRENT_UNIQUE_KEYS)))
        return placed, refused

    async def claim(self, key: str) -> UniqueClaim | None:
        """Who holds a key, as the leader knows."""
        subject = self._subject(key)
        found = await self._surely(self._subjects.bucket("ids"), subject, subject)
        return read_claim(found) if found is not None else None

    async def call_follower(self, key: str, id: str) -> None:
        """After the end of the job `id` was recorded: have the one begin that waits for it, if any."""
        claim = await self.claim(key)
        if claim is not None and claim.job == id and claim.successor:
            await self._call(claim)

    async def is_uncalled(self, claim: UniqueClaim) -> bool:
        """Whether the follower of a claim waits for a job that has ended."""
        if not claim.successor or not await self._far(claim):
            return False
        return (await self.look(claim.queue, claim.job)).life is JobLife.ENDED

    async def call_late(self, queue: str, follower: str, revision: int) -> bool:
        """Call the follower of a claim as it was found; False where the claim has changed."""
        found = await self._reads.get(self._subjects.bucket("ids"), revision, consistent=True)
        claim = read_claim(found) if found is not None else None
        if claim is None or (claim.queue, claim.successor) != (queue, follower):
            return False
        return await self.is_uncalled(claim) and await self._call(claim)

    async def look(self, queue: str, id: str) -> Seen:
        """How far a job has come, as the leaders know. Its last event may tell its end where no run does."""
        seen = await self._begun(queue, id) or await self._waiting(queue, id)
        if seen is not None and seen.found is not None and await self._has_expired(seen.found):
            # One that began in time had begun before we found that its time is over.
            return await self._begun(queue, id) or Seen(JobLife.ENDED)
        if seen is not None:
            return seen
        last = await self._job_reader.find(id, queue, consistent=True)
        return Seen(JobLife.ENDED if last is not None and last.state in FINAL_STATES else JobLife.MISSING)

    # -- one round ---------------------------------------------------------------------------------------

    async def _submit(self, order: UniqueSubmit) -> Placed:
        placed = await self._begin(order)
        if placed is not None:
            return placed
        end = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < end:
            claim = await self.claim(order.unique.key)
            placed = await (self._meet(order, claim) if claim is not None else self._begin(order))
            if placed is not None:
                return placed
        raise BrokerUnavailable(f"{order.job.task}: others keep taking its unique key: try again")

    async def _begin(self, order: UniqueSubmit) -> Placed | None:
        """Claim a key that nobody holds. None where another was faster."""
        job, unique = order.job, order.unique
        return await self._claim_and_store(
            order, UniqueClaim(job.id, job.queue, unique.held_until, unique.window)
        )

    async def _meet(self, order: UniqueSubmit, claim: UniqueClaim) -> Placed | None:
        """Do about a claim what is to be done. None where it changed meanwhile: look again."""
        held, seen = claim, await self._settled(claim.queue, claim.job)
        if seen.life is JobLife.ENDED and claim.successor:
            held = claim.passed_to_successor()
            seen = await self._settled(held.queue, held.job)
        match decide_submit(order.unique, held, seen.life, id=order.job.id):
            case UniqueAction.CLAIM:
                return await self._take(order, claim)
            case UniqueAction.STORE if held.job == order.job.id:
                return await self._store_own(order)
            case UniqueAction.STORE:
                return await self._store_under(order, held, order.due)
            case UniqueAction.RAISE:
                raise DuplicateJob(order.job.task, held.job)
            case UniqueAction.REPLACE if seen.found is not None:
                cancelled = await self._cancels.cancel_waiting(seen.found)
                return await self._take(order, claim) if cancelled else None
            case UniqueAction.RESCHEDULE:
                return await self._move(order, held, seen, order.due)
            case UniqueAction.QUEUE_SUCCESSOR:
                return await self._follow(order, held)
        return Placed(held.job, held.queue, duplicate=True)

    async def _take(self, order: UniqueSubmit, claim: UniqueClaim) -> Placed | None:
        job, unique = order.job, order.unique
        ours = UniqueClaim(job.id, job.queue, unique.held_until, unique.window, revision=claim.revision)
        return await self._claim_and_store(order, ours)

    async def _claim_and_store(self, order: UniqueSubmit, ours: UniqueClaim) -> Placed | None:
        began = time.monotonic()
        revision = await self._write(order, ours)
        if not revision:
            return None
        placed = await self._store_own(order)
        if ours.window is not None and order.unique.on_duplicate in ("return", "raise"):
            # Those only look: nobody is under way who expects the claim as it was.
            told = written(replace(ours, stored=True))
            left = str(max(1, ceil(ours.window - (time.monotonic() - began))))
            self._wire.send(self._subject(order.unique.key), told, {EXPECTED: str(revision), TTL: left})
        return placed

    async def _store_own(self, order: UniqueSubmit) -> Placed:
        """Store our job, whose id stands in the claim."""
        job = order.job
        if order.once:
            queue, duplicate = await self._job_writer.submit_once(job, order.due, order.patience)
            return Placed(job.id, queue, duplicate)
        await self._job_writer.submit(job, order.due, order.patience)
        return Placed(job.id, job.queue, duplicate=False)

    async def _store_under(
        self, order: UniqueSubmit, held: UniqueClaim, due: datetime | None
    ) -> Placed | None:
        """Store our job under the id of one that was claimed and is missing. None where it came meanwhile."""
        job = order.under(held.job, held.queue)
        if await self._job_writer.submit_if_absent(job, due, order.patience):
            return Placed(job.id, job.queue, duplicate=False)
        return None

    async def _move(
        self, order: UniqueSubmit, held: UniqueClaim, seen: Seen, due: datetime | None
    ) -> Placed | None:
        """Put our job in the place of one that is due later, under its id. None where that changed."""
        job = order.under(held.job, held.queue)
        if not await self._job_writer.submit_if_absent(
            job, due or self._wire.clock.moment(), order.patience, expect=seen.schedule
        ):
            return None
        last = await self._begun(job.queue, job.id)
        if last is not None and last.life is JobLife.ENDED:
            return None  # it was cancelled meanwhile: what we put there will not run
        return Placed(job.id, job.queue, duplicate=True)

    # -- one that waits for the end of another -----------------------------------------------------------

    async def _follow(self, order: UniqueSubmit, claim: UniqueClaim) -> Placed | None:
        """Have our job wait for the end of the one that runs, in the place of any other that does.

        What runs may have ended before our job was there to be called: so we look once more.
        """
        placed = await self._wait_behind(order, claim)
        if placed is not None:
            last = await self._begun(claim.queue, claim.job)
            if last is not None and last.life is JobLife.ENDED:
                await self._call(replace(claim, successor=placed.id))
        return placed

    async def _wait_behind(self, order: UniqueSubmit, claim: UniqueClaim) -> Placed | None:
        due = self._wire.clock.moment() + FAR
        if claim.successor:
            seen = await self._settled(claim.queue, claim.successor)
            behind = claim.passed_to_successor()
            match seen.life:
                case JobLife.DELAYED:
                    return await self._move(order, behind, seen, due)
                case JobLife.MISSING:
                    return await self._store_under(order, behind, due)
                case (
                    JobLife.WAITING | JobLife.STARTED
                ):  # it was called by its own date: it is the one that runs
                    await self._write(order, behind)
                    return None
        if not await self._write(order, replace(claim, successor=order.job.id)):
            return None
        return await self._store_under(order, replace(claim, job=order.job.id), due)

    async def _call(self, claim: UniqueClaim) -> bool:
        """Make the follower of a job that has ended due now. One that has begun is let be.

        Done twice it does no harm; whoever puts another in its place meanwhile looks after that himself.
        """
        subject = self._subjects.scheduled(claim.queue, claim.successor)
        while True:
            found = await self._far(claim)
            if found is None:
                return False
            headers = own_headers(found.headers) | schedule_headers(PAST, found.headers[TARGET])
            headers[EXPECTED] = found.headers["Nats-Sequence"]
            with contextlib.suppress(WrongSequence):
                await publish_with_retry(self._wire, subject, found.payload, headers)
                return True

    async def _far(self, claim: UniqueClaim) -> Reply | None:
        """The schedule of a follower that has not been called, nor begun."""
        subject = self._subjects.scheduled(claim.queue, claim.successor)
        found = await self._surely(self._subjects.scheduled_stream(claim.queue), subject, subject)
        return None if found is None or envelope.ATTEMPTS in found.headers or self._is_due(found) else found

    def _is_due(self, found: Reply) -> bool:
        """Whether a schedule fires about now."""
        return (scheduled_time(found.headers) - self._wire.clock.moment()).total_seconds() < 1.0

    # -- how far a job has come --------------------------------------------------------------------------

    async def _settled(self, queue: str, id: str) -> Seen:
        """How far a job has come; a moment later, where it is not there yet."""
        for pause in PAUSES:
            seen = await self.look(queue, id)
            if seen.life is not JobLife.MISSING:
                return seen
            await asyncio.sleep(pause)
        return await self.look(queue, id)

    async def _begun(self, queue: str, id: str) -> Seen | None:
        """Whether a job has begun, or has ended; None if it has not begun."""
        last = await self._last_run(queue, id)
        if last is not None and await self._has_expired(last):
            again = await self._last_run(queue, id)  # it may have begun just before that
            if again is None or again.sequence == last.sequence:
                return Seen(JobLife.ENDED)
            last = again
        if last is None:
            return None
        over = await self._event_log.is_over(last)
        return Seen(JobLife.ENDED if over else JobLife.STARTED)

    async def _last_run(self, queue: str, id: str) -> LoggedEvent | None:
        names = self._subjects
        pattern = names.event(queue, id, "run.*")
        found = await self._surely(names.events_stream, pattern, names.event(queue, id, "queued"))
        return read_event(found) if found is not None else None

    async def _has_expired(self, found: LoggedEvent) -> bool:
        return found.event.expires is not None and has_expired(found, await self._expiry.now(found.queue))

    async def _waiting(self, queue: str, id: str) -> Seen | None:
        """Where a job's message stands: it goes from one place to the next, and is looked for in that order.

        It may have begun before we came to the last of them.
        """
        names = self._subjects
        ready, later = names.ready_stream(queue), names.scheduled_stream(queue)
        waits, literal = names.ready(queue, "*", id), names.ready(queue, "normal", id)
        found = await self._job_reader.find_in_group(queue, id) or await self._surely(ready, waits, literal)
        if found is None:
            subject = names.scheduled(queue, id)
            found = await self._surely(later, subject, subject)
            if found is not None:
                schedule = int(found.headers["Nats-Sequence"])
                return await self._begun(queue, id) or Seen(
                    JobLife.DELAYED, event_from_message(queue, id, found, "scheduled"), schedule
                )
            found = await self._reads.last(later, names.due(queue, "*", id), consistent=True)
            found = found or await self._job_reader.find_in_group(queue, id)
            found = found or await self._surely(ready, waits, literal)
        if found is not None:
            return Seen(JobLife.WAITING, event_from_message(queue, id, found, "queued"))
        return await self._begun(queue, id)

    # -- inside ------------------------------------------------------------------------------------------

    async def _write(self, order: UniqueSubmit, claim: UniqueClaim) -> int:
        """Write a claim on top of what was read of it; returns its revision, 0 where that changed."""
        lasts = claim.window if claim.window is not None else ID_SECONDS + seconds_until(order.due)
        headers = {EXPECTED: str(claim.revision), TTL: str(ceil(lasts))}
        subject, value = self._subject(order.unique.key), written(claim)
        try:
            put = functools.partial(self._job_writer.publish_shared, subject, value, headers)
            return await self._backpressure.wait(order.job.queue, put, order.patience)
        except WrongSequence:
            return 0

    async def _surely(self, stream: str, pattern: str, probe: str) -> Reply | None:
        """The last message on a subject as the leader of its stream knows it.

        Who may not ask the leader has it refuse a write to `probe`, which tells the last sequence, and asks
        replicas until one has come to that.
        """
        found = await self._reads.last(stream, pattern, consistent=True)
        if self._reads.may_ask_leader(stream):
            return found
        least, end = await self._last_sequence(pattern, probe), time.monotonic() + READ_SECONDS
        while least and sequence_or_zero(found) < least:
            if time.monotonic() > end:
                raise BrokerUnavailable(f"no replica that was asked has come to {least} of {stream}")
            await asyncio.sleep(0.02)
            found = await self._reads.last(stream, pattern)
        return found if least else None

    async def _last_sequence(self, pattern: str, probe: str) -> int:
        try:
            await publish_with_retry(self._wire, probe, b"", expecting(NEVER, pattern))
        except WrongSequence as refused:
            return refused.last
        raise BrokerUnavailable(f"a write to {probe} was stored that expected {NEVER}")

    def _subject(self, key: str) -> str:
        return self._subjects.key("ids", f"u.{key}")


def written(claim: UniqueClaim) -> bytes:
    """A claim as it is stored."""
    value = {"job": claim.job, "queue": claim.queue, "until": claim.held_until}
    more = {"window": claim.window, "successor": claim.successor, "stored": claim.stored}
    return json.dumps(value | {name: one for name, one in more.items() if one}).encode()


def read_claim(found: Reply) -> UniqueClaim:
    value = json.loads(found.payload)
    return UniqueClaim(
        value["job"],
        value["queue"],
        value["until"],
        value.get("window"),
        value.get("successor", ""),
        sequence_or_zero(found),
        value.get("stored", False),
    )


def sequence_or_zero(found: Reply | None) -> int:
    return int(found.headers["Nats-Sequence"]) if found is not None else 0
