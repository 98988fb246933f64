"""Unique jobs: a submit claims a key in the bucket of ids, then stores its job.

A client writes a claim by compare-and-set and never deletes it. A submit that finds a claim reads the
position of the claimed job from the leaders, and takes over a claim that is free. If the job of a claim was
never stored, because its submitter died, the next submit stores its own job with the claimed id. So a claim
never leads to two jobs.

A claim whose TTL has passed long ago is free too. A server that was killed may restore such a claim without
its TTL, and would then store it for good.
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
from jsq.broker.jobs.messages import (
    TARGET,
    schedule_headers,
    scheduled_time,
    seconds_until,
)
from jsq.broker.jobs.records import EXPECTED, TTL
from jsq.broker.jobs.store import JobStore
from jsq.broker.operations.cancel import Canceller
from jsq.broker.operations.schedule_replacement import ScheduleReplacement
from jsq.broker.submit.job_position import JobPosition, JobPositions, sequence_or_zero
from jsq.broker.topology.configs import ID_SECONDS
from jsq.broker.topology.namespace import Namespace
from jsq.codec import envelope
from jsq.errors import BrokerError, BrokerUnavailable, DuplicateJob
from jsq.model.job import Job
from jsq.model.unique import JobLife, Unique, UniqueAction, UniqueClaim, decide_submit
from jsq.transport.replies import Reply, WrongSequence, own_headers
from jsq.transport.retrying import DEADLINE_SECONDS, publish_with_retry
from jsq.transport.server_clock import PAST, has_outlived_ttl

CONCURRENT_UNIQUE_KEYS = 100
"""Keys whose jobs `submit_each` submits at the same time."""

UNRELEASED_DELAY = timedelta(seconds=ID_SECONDS)
"""The delay after which the server makes a successor due that no client has released."""


@dataclass(frozen=True, slots=True)
class SubmitResult:
    """The job of a submit, its queue, and whether the job was stored by an earlier submit."""

    id: str
    queue: str
    duplicate: bool


@dataclass(frozen=True, slots=True)
class UniqueSubmit:
    """A unique job to submit, and when it is due. `once` is true if the caller chose the id."""

    job: Job
    due: datetime | None
    unique: Unique
    room: WaitForRoom | None
    once: bool = False

    def under(self, id: str, queue: str) -> Job:
        """The job of this submit, with the id and the queue of a claimed job that is missing."""
        return replace(self.job, id=id, queue=queue)


class UniqueKeys:
    """Submits unique jobs, and releases their successors."""

    def __init__(
        self,
        namespace: Namespace,
        store: JobStore,
        cancels: Canceller,
    ) -> None:
        self._wire = namespace.wire
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._job_writer = store.writer
        self._cancels = cancels
        self.positions = JobPositions(namespace, store)
        self._replacement = ScheduleReplacement(namespace, store)
        self._backpressure = store.backpressure
        # Submits that replace the holder of a key take turns within one connection. If they ran at the same
        # time, the server would refuse all but one of them.
        self._key_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def submit(self, order: UniqueSubmit) -> SubmitResult:
        """Store a job unless another job holds its key; if one does, `on_duplicate` decides what to do.

        Raises `DuplicateJob`, `BrokerUnavailable` if other submits keep claiming the key, and the errors of
        `JobWriter.submit`.
        """
        self._job_writer.check_size(order.job)
        if order.unique.on_duplicate in ("return", "raise"):
            return await self._submit(order)
        async with self._key_locks.setdefault(order.unique.key, asyncio.Lock()):
            return await self._submit(order)

    async def submit_each(
        self, orders: Sequence[UniqueSubmit]
    ) -> tuple[dict[int, SubmitResult], dict[int, BrokerError | DuplicateJob]]:
        """Submit each job by itself, and the jobs of one key in their order.

        Returns the results and the errors, by the indexes of the jobs. Raises `BadArguments` before the
        first submit.
        """
        by_key: dict[str, list[int]] = {}
        for index, order in enumerate(orders):
            self._job_writer.check_size(order.job, index)
            by_key.setdefault(order.unique.key, []).append(index)
        remaining = iter(list(by_key.values()))
        results: dict[int, SubmitResult] = {}
        refused: dict[int, BrokerError | DuplicateJob] = {}

        async def submit_next() -> None:
            for index in (index for indexes in remaining for index in indexes):
                try:
                    results[index] = await self.submit(orders[index])
                except (BrokerError, DuplicateJob) as error:
                    refused[index] = error

        await asyncio.gather(*(submit_next() for _ in range(CONCURRENT_UNIQUE_KEYS)))
        return results, refused

    async def claim(self, key: str) -> UniqueClaim | None:
        """The claim of a key, read from the leader."""
        subject = self._subject(key)
        found = await self.positions.last_message(self._subjects.streams.bucket("ids"), subject, subject)
        if found is None:
            return None
        return replace(read_claim(found), expired=has_outlived_ttl(found, self._wire.clock))

    async def release_successor(self, key: str, id: str) -> None:
        """Release the successor of the job `id`, if any. Call it after the end of the job was recorded."""
        claim = await self.claim(key)
        if claim is not None and claim.job == id and claim.successor:
            await self._release(claim)

    async def is_orphaned(self, claim: UniqueClaim) -> bool:
        """Whether the successor of a claim still waits although its job has ended."""
        if not claim.successor or not await self._waiting_successor(claim):
            return False
        return (await self.positions.find(claim.queue, claim.job)).life is JobLife.ENDED

    async def release_orphan(self, queue: str, successor: str, revision: int) -> bool:
        """Release the orphaned successor of a claim; returns False if the claim has changed."""
        found = await self._reads.get(self._subjects.streams.bucket("ids"), revision, consistent=True)
        claim = read_claim(found) if found is not None else None
        if claim is None or (claim.queue, claim.successor) != (queue, successor):
            return False
        return await self.is_orphaned(claim) and await self._release(claim)

    # -- one round ---------------------------------------------------------------------------------------

    async def _submit(self, order: UniqueSubmit) -> SubmitResult:
        placed = await self._claim_free_key(order)
        if placed is not None:
            return placed
        end = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < end:
            claim = await self.claim(order.unique.key)
            placed = await (
                self._resolve_claim(order, claim) if claim is not None else self._claim_free_key(order)
            )
            if placed is not None:
                return placed
        raise BrokerUnavailable(
            f"{order.job.task}: other submits kept claiming its unique key for {DEADLINE_SECONDS:g} s; "
            "try again"
        )

    async def _claim_free_key(self, order: UniqueSubmit) -> SubmitResult | None:
        """Claim a key that has no claim. Returns None if another submit was faster."""
        job, unique = order.job, order.unique
        return await self._claim_and_store(
            order, UniqueClaim(job.id, job.queue, unique.held_until, unique.window)
        )

    async def _resolve_claim(self, order: UniqueSubmit, claim: UniqueClaim) -> SubmitResult | None:
        """Act on an existing claim. Returns None if the claim changed meanwhile, and must be read again."""
        if claim.expired:
            return await self._take_over(order, claim)
        held, seen = claim, await self.positions.find_after_wait(claim.queue, claim.job)
        if seen.life is JobLife.ENDED and claim.successor:
            held = claim.passed_to_successor()
            seen = await self.positions.find_after_wait(held.queue, held.job)
        match decide_submit(order.unique, held, seen.life, id=order.job.id):
            case UniqueAction.CLAIM:
                return await self._take_over(order, claim)
            case UniqueAction.STORE if held.job == order.job.id:
                return await self._store_own(order)
            case UniqueAction.STORE:
                return await self._store_under(order, held, order.due)
            case UniqueAction.RAISE:
                raise DuplicateJob(order.job.task, held.job)
            case UniqueAction.REPLACE if seen.found is not None:
                cancelled = await self._cancels.cancel_waiting(seen.found)
                return await self._take_over(order, claim) if cancelled else None
            case UniqueAction.RESCHEDULE:
                return await self._replace_delayed(order, held, seen, order.due)
            case UniqueAction.QUEUE_SUCCESSOR:
                return await self._queue_successor(order, held)
        return SubmitResult(held.job, held.queue, duplicate=True)

    async def _take_over(self, order: UniqueSubmit, claim: UniqueClaim) -> SubmitResult | None:
        job, unique = order.job, order.unique
        ours = UniqueClaim(job.id, job.queue, unique.held_until, unique.window, revision=claim.revision)
        return await self._claim_and_store(order, ours)

    async def _claim_and_store(self, order: UniqueSubmit, ours: UniqueClaim) -> SubmitResult | None:
        began = time.monotonic()
        revision = await self._write(order, ours)
        if not revision:
            return None
        placed = await self._store_own(order)
        if ours.window is not None and order.unique.on_duplicate in ("return", "raise"):
            # `return` and `raise` only read a claim: no other write expects its revision.
            body = encode_claim(replace(ours, stored=True))
            ttl = str(max(1, ceil(ours.window - (time.monotonic() - began))))
            self._wire.send(self._subject(order.unique.key), body, {EXPECTED: str(revision), TTL: ttl})
        return placed

    async def _store_own(self, order: UniqueSubmit) -> SubmitResult:
        """Store the job whose id is in the claim."""
        job = order.job
        if order.once:
            queue, duplicate = await self._job_writer.submit_once(job, order.due, order.room)
            return SubmitResult(job.id, queue, duplicate)
        await self._job_writer.submit(job, order.due, order.room)
        return SubmitResult(job.id, job.queue, duplicate=False)

    async def _store_under(
        self, order: UniqueSubmit, held: UniqueClaim, due: datetime | None
    ) -> SubmitResult | None:
        """Store the job with the id of a claimed job that is missing. Returns None if that job arrived."""
        job = order.under(held.job, held.queue)
        if await self._job_writer.submit_if_absent(job, due, order.room):
            return SubmitResult(job.id, job.queue, duplicate=False)
        return None

    async def _replace_delayed(
        self, order: UniqueSubmit, held: UniqueClaim, seen: JobPosition, due: datetime | None
    ) -> SubmitResult | None:
        """Store the job in place of a delayed one, with the id of that one.

        Returns None if the delayed job has changed, or if the server has published it nevertheless.
        """
        job, due = order.under(held.job, held.queue), due or self._wire.clock.moment()
        if not await self._job_writer.submit_if_absent(job, due, order.room, expect=seen.schedule):
            return None
        found = seen.found
        if found is not None and await self._replacement.is_too_late(found, seen.due, due):
            return None
        last = await self.positions.find_started(job.queue, job.id)
        if last is not None and last.life is JobLife.ENDED:
            return None  # the delayed job was cancelled meanwhile: the new job with its id will not run
        return SubmitResult(job.id, job.queue, duplicate=True)

    # -- successors ---------------------------------------------------------------------------------------

    async def _queue_successor(self, order: UniqueSubmit, claim: UniqueClaim) -> SubmitResult | None:
        """Store the job as the successor of the running one, in place of an earlier successor.

        The running job may have ended before its successor was stored, so its state is read once more.
        """
        placed = await self._store_successor(order, claim)
        if placed is not None:
            last = await self.positions.find_started(claim.queue, claim.job)
            if last is not None and last.life is JobLife.ENDED:
                await self._release(replace(claim, successor=placed.id))
        return placed

    async def _store_successor(self, order: UniqueSubmit, claim: UniqueClaim) -> SubmitResult | None:
        due = self._wire.clock.moment() + UNRELEASED_DELAY
        if claim.successor:
            seen = await self.positions.find_after_wait(claim.queue, claim.successor)
            following = claim.passed_to_successor()
            match seen.life:
                case JobLife.DELAYED:
                    return await self._replace_delayed(order, following, seen, due)
                case JobLife.MISSING:
                    return await self._store_under(order, following, due)
                case JobLife.WAITING | JobLife.STARTED:
                    # The successor became due by itself, and holds the key.
                    await self._write(order, following)
                    return None
        if not await self._write(order, replace(claim, successor=order.job.id)):
            return None
        return await self._store_under(order, replace(claim, job=order.job.id), due)

    async def _release(self, claim: UniqueClaim) -> bool:
        """Make the successor of an ended job due now, unless it has started. Safe to call twice.

        A submit that replaces the successor meanwhile releases its own job.
        """
        subject = self._subjects.scheduled(claim.queue, claim.successor)
        while True:
            found = await self._waiting_successor(claim)
            if found is None:
                return False
            headers = own_headers(found.headers) | schedule_headers(PAST, found.headers[TARGET])
            headers[EXPECTED] = found.headers["Nats-Sequence"]
            with contextlib.suppress(WrongSequence):
                await publish_with_retry(self._wire, subject, found.payload, headers)
                return True

    async def _waiting_successor(self, claim: UniqueClaim) -> Reply | None:
        """The schedule of a successor, unless it was released or has started."""
        subject = self._subjects.scheduled(claim.queue, claim.successor)
        found = await self.positions.last_message(
            self._subjects.streams.scheduled(claim.queue), subject, subject
        )
        return None if found is None or envelope.ATTEMPTS in found.headers or self._is_due(found) else found

    def _is_due(self, found: Reply) -> bool:
        """Whether a schedule is due within a second."""
        return (scheduled_time(found.headers) - self._wire.clock.moment()).total_seconds() < 1.0

    # -- inside ------------------------------------------------------------------------------------------

    async def _write(self, order: UniqueSubmit, claim: UniqueClaim) -> int:
        """Write a claim over the revision that was read; returns the new revision, 0 if it has changed."""
        ttl = (
            claim.window
            if claim.window is not None
            else ID_SECONDS + seconds_until(order.due, self._wire.clock.moment())
        )
        headers = {EXPECTED: str(claim.revision), TTL: str(ceil(ttl))}
        subject, value = self._subject(order.unique.key), encode_claim(claim)
        try:
            put = functools.partial(self._job_writer.publish_shared, subject, value, headers)
            return await self._backpressure.wait(order.job.queue, put, order.room)
        except WrongSequence:
            return 0

    def _subject(self, key: str) -> str:
        return self._subjects.unique_key(key)


def encode_claim(claim: UniqueClaim) -> bytes:
    """The stored form of a claim."""
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
