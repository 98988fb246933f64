"""Pauses: each queue has one record of its pauses, written by compare-and-set.

The record decides. Workers read it when they are notified, and every few seconds. A pause of a whole queue is
set on its consumers too, so that the server itself delivers nothing. A job whose task or key is paused is
requeued until the end of the pause, with the scope of the pause in a header. It is released when the pause
ends earlier.
"""

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

from jsq.broker.jobs.messages import TARGET, schedule_headers
from jsq.broker.jobs.records import EXPECTED, TTL
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.subjects import digest
from jsq.codec.pauses import decode_pauses, encode_pauses
from jsq.codec.subject_token import ANY
from jsq.model.job import PRIORITIES
from jsq.model.pause import WHOLE_QUEUE, Pause, PauseSet, ends_earlier, pauses_ttl
from jsq.transport.replies import NoResponders, Reply, WrongSequence, own_headers, sequence_of
from jsq.transport.retrying import publish_with_retry
from jsq.transport.server_clock import PAST

REPLICA_SECONDS = 1.0
"""How long a read is repeated while the replica does not have the last write yet."""

PAUSED_BY = "Jsq-Paused-By"
"""The header of a message that was requeued for a pause: a digest of the pause's scope."""

RESERVED = "Jsq-Reserved"
"""The header of a message that was requeued for a rate limit: the job has a place in the limiter's order."""

PAUSES_RECORD_SECONDS = 86_400
"""How long a record without an active pause is stored. Without a record, a delayed retry of an earlier write
would be accepted, and pause the queue again.
"""


class PauseStore:
    """Pauses and resumes queues, tasks and keys."""

    def __init__(self, namespace: Namespace) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._streams = namespace.streams

    async def pause(self, queue: str, pause: Pause) -> PauseSet:
        """Pause a task, a key or a whole queue; returns all pauses of the queue. A second call has no effect.

        Raises `BadOption` if there are too many pauses.
        """
        now = self._now()
        by_user = pause.reason == "paused"
        return await self._change(
            queue, pause.scope, lambda pauses: pauses.with_pause(pause, now), by_user=by_user
        )

    async def resume(self, queue: str, scope: str) -> PauseSet:
        """End a pause, and release the jobs that were requeued for it; returns the other pauses of the queue.

        If it fails half way, call it again: it continues where it stopped.
        """
        now = self._now()
        return await self._change(queue, scope, lambda pauses: pauses.without(scope, now), resumes=True)

    async def active(self, queue: str, *, least: int = 0) -> PauseSet:
        """The active pauses of a queue.

        `least` is a sequence that the record is known to have reached. Then reads the leader, or replicas
        until one has reached it. That wait is short, because the record may have expired since.
        """
        end = time.monotonic() + REPLICA_SECONDS
        while True:
            pauses, sequence = await self._read(queue, consistent=least > 0)
            from_leader = self._reads.may_ask_leader(self._subjects.streams.bucket("limits"))
            if sequence >= least or from_leader or time.monotonic() > end:
                return pauses.active(self._now())
            await asyncio.sleep(REPLICA_SECONDS / 50)

    async def active_by_queue(self) -> dict[str, PauseSet]:
        """The active pauses of all queues, by queue."""
        bucket = self._subjects.streams.bucket("limits")
        try:
            found = await self._reads.fetch(bucket, self._subjects.limits.pauses("*"))
        except NoResponders:
            await self._jetstream.check_absent(bucket)
            return {}
        read = {one.headers["Nats-Subject"].rpartition(".")[2]: decode_pauses(one.payload) for one in found}
        active = {queue: pauses.active(self._now()) for queue, pauses in read.items()}
        return {queue: pauses for queue, pauses in active.items() if pauses}

    async def subscribe(
        self, queue: str, refresh: Callable[[str, int], None]
    ) -> Callable[[], Awaitable[None]]:
        """Call `refresh` with the queue and a sequence when the pauses or settings of the queue have changed.

        The sequence is the one that the record of the pauses has reached; 0 if it is not known. Returns a
        function that ends the subscription.
        """

        def receive(message: Reply) -> None:
            text = message.payload
            refresh(queue, int(text) if text.isdigit() and len(text) < 20 else 0)

        subscription = await self._wire.subscribe(self._subjects.refresh(queue), receive)
        return functools.partial(self._wire.unsubscribe, subscription)

    async def release_if_due(self, queue: str, id: str, task: str, key: str, until: float) -> bool:
        """Release a job that was requeued `until` the end of a pause, if the pause now ends earlier.

        Returns whether it does. The client that ends a pause writes the record, then searches for requeued
        jobs. The worker requeues a job, then reads the record. So at least one of them finds what the other
        has written.
        """
        pause = (await self._read(queue, consistent=True))[0].of_job(task, key, self._now())
        if pause is not None and pause.end.timestamp() >= until:
            return False
        subjects = self._subjects
        found = await self._reads.last(
            subjects.streams.scheduled(queue), subjects.scheduled(queue, id), consistent=True
        )
        if found is not None and PAUSED_BY in found.headers:
            await self._release(found)
        return True

    def notify(self, queue: str, sequence: int | None = None) -> None:
        """Have the workers of a queue read its settings and its record, which has reached a sequence."""
        self._wire.send(self._subjects.refresh(queue), b"" if sequence is None else b"%d" % sequence)

    def marker(self, pause: Pause) -> dict[str, str]:
        """The header of a message that is requeued for a pause."""
        return {PAUSED_BY: digest(pause.scope)}

    # -- inside ------------------------------------------------------------------------------------------

    async def _change(
        self,
        queue: str,
        scope: str,
        change: Callable[[PauseSet], PauseSet],
        *,
        by_user: bool = True,
        resumes: bool = False,
    ) -> PauseSet:
        while True:
            before, sequence = await self._read(queue, consistent=True)
            after = change(before)
            if scope == WHOLE_QUEUE and by_user:
                # First: a login that may write the record, but not pause consumers, must change nothing.
                await self._set_consumers(queue, after)
            try:
                sequence = await self._write(queue, after, sequence)
                break
            except WrongSequence:
                continue
        self.notify(queue, sequence)
        if scope != WHOLE_QUEUE and (resumes or ends_earlier(before, after, scope)):
            await self._release_all(queue, scope)
        return after

    async def _set_consumers(self, queue: str, pauses: PauseSet) -> None:
        """Have the server deliver nothing of a paused queue. A rate limited queue is left to its workers."""
        pause = pauses.pauses.get(WHOLE_QUEUE)
        until = pause.end if pause is not None and pause.reason == "paused" else None
        for level in PRIORITIES:
            await self._jetstream.pause_consumer(self._subjects.streams.ready(queue), level, until)

    async def _release_all(self, queue: str, scope: str) -> None:
        """Release the jobs that were requeued for a pause, each by one write that expects its message."""
        stream, subject = self._subjects.streams.scheduled(queue), self._subjects.scheduled(queue, ANY)
        mark, after, more = digest(scope), 0, True
        try:
            last = await self._reads.last(stream, subject, consistent=True)
            while more:
                page, more = await self._reads.page(stream, subject, after=after, limit=500, max_bytes=2**20)
                more = more and bool(page)
                for message in page:
                    after = await self._release_marked(message, mark)
            # The leader has the messages that the replica did not have yet.
            while last is not None and after < sequence_of(last):
                found = await self._reads.next(stream, subject, after=after, consistent=True)
                if found is None:
                    return
                after = await self._release_marked(found, mark)
        except NoResponders:
            return

    async def _release_marked(self, message: Reply, mark: str) -> int:
        """Release a message if it has this mark; returns its sequence."""
        if message.headers.get(PAUSED_BY) == mark:
            await self._release(message)
        return sequence_of(message)

    async def _release(self, message: Reply) -> None:
        headers = message.headers
        kept = own_headers(headers)
        kept.pop(PAUSED_BY, None)
        due = schedule_headers(PAST, headers[TARGET])
        with contextlib.suppress(WrongSequence):
            await publish_with_retry(
                self._wire,
                headers["Nats-Subject"],
                message.payload,
                {**kept, **due, EXPECTED: headers["Nats-Sequence"]},
            )

    async def _read(self, queue: str, *, consistent: bool = False) -> tuple[PauseSet, int]:
        try:
            found = await self._reads.last(
                self._subjects.streams.bucket("limits"),
                self._subjects.limits.pauses(queue),
                consistent=consistent,
            )
        except NoResponders:
            if not consistent:
                return PauseSet(), 0
            await self._streams.recreate()
            found = None
        if found is None:
            return PauseSet(), 0
        return decode_pauses(found.payload), int(found.headers["Nats-Sequence"])

    async def _write(self, queue: str, pauses: PauseSet, sequence: int) -> int:
        left = pauses_ttl(pauses, self._now())
        ttl = {TTL: str(math.ceil(left) + PAUSES_RECORD_SECONDS)} if left is not None else {}
        headers = {EXPECTED: str(sequence)} | ttl
        return await publish_with_retry(
            self._wire, self._subjects.limits.pauses(queue), encode_pauses(pauses), headers
        )

    def _now(self) -> datetime:
        return self._wire.clock.moment()
