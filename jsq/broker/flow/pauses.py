"""Pauses: what is held on a queue stands in one record for each queue, written by compare-and-set.

That record is the truth; workers look at it when they are told to, and every few seconds. A hold on a whole
queue is set on its consumers too: the server itself delivers nothing then. A job whose task or key is held is
put aside until the end of the hold, marked with its place, and brought back when the hold is lifted.
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
"""How long a replica is asked again that does not know yet of a write."""

PAUSED_BY = "Jsq-Held"
"""The header of a message that was put aside for a hold: what stands for the hold's place."""

RESERVED_ORDER = "Jsq-Turn"
"""The header of a message that was put aside until its turn: it has stood in line."""

PAUSES_RECORD_SECONDS = 86_400
"""How long a record stays of which no hold lasts: where there is none again, a try of an earlier write that
was held up on its way would be stored, and hold the queue once more.
"""


class PauseStore:
    """Holds back what workers are not to begin."""

    def __init__(self, namespace: Namespace) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._streams = namespace.streams

    async def pause(self, queue: str, pause: Pause) -> PauseSet:
        """Hold a task, a key or a whole queue; done again, it is as good as once. Returns all that is held.

        Raises `BadOption` for too many.
        """
        now = self._now()
        asked = pause.reason == "paused"
        return await self._change(
            queue, pause.scope, lambda pauses: pauses.with_pause(pause, now), asked=asked
        )

    async def resume(self, queue: str, place: str) -> PauseSet:
        """End a hold, and bring back what was put aside for it. Begun and broken off, it is to be done again:
        it goes on where it stopped.
        """
        now = self._now()
        return await self._change(queue, place, lambda pauses: pauses.without(place, now), lifts=True)

    async def active(self, queue: str, *, least: int = 0) -> PauseSet:
        """What is held on a queue now.

        Where its record is known to have come to a sequence at `least`, the leader is asked, or else replicas
        until one has come to that; for a moment only, for the record may have gone since.
        """
        end = time.monotonic() + REPLICA_SECONDS
        while True:
            pauses, sequence = await self._read(queue, consistent=least > 0)
            asked = self._reads.may_ask_leader(self._subjects.streams.bucket("limits"))
            if sequence >= least or asked or time.monotonic() > end:
                return pauses.active(self._now())
            await asyncio.sleep(REPLICA_SECONDS / 50)

    async def active_by_queue(self) -> dict[str, PauseSet]:
        """What is held, by queue."""
        bucket = self._subjects.streams.bucket("limits")
        try:
            found = await self._reads.fetch(bucket, self._subjects.limits.pauses("*"))
        except NoResponders:
            await self._jetstream.check_absent(bucket)
            return {}
        told = {one.headers["Nats-Subject"].rpartition(".")[2]: decode_pauses(one.payload) for one in found}
        lasting = {queue: pauses.active(self._now()) for queue, pauses in told.items()}
        return {queue: pauses for queue, pauses in lasting.items() if pauses}

    async def subscribe(self, queue: str, look: Callable[[str, int], None]) -> Callable[[], Awaitable[None]]:
        """Have `look` called when there is something new about a queue, with that and the sequence that its
        record has come to, as far as that is told; returns what ends that.
        """

        def heard(message: Reply) -> None:
            told = message.payload
            look(queue, int(told) if told.isdigit() and len(told) < 20 else 0)

        subscription = await self._wire.subscribe(self._subjects.refresh(queue), heard)
        return functools.partial(self._wire.unsubscribe, subscription)

    async def release_if_due(self, queue: str, id: str, task: str, key: str, until: float) -> bool:
        """Bring back a job that was put aside `until` the end of a hold, if that ends earlier by now.

        Returns whether it does.

        Who lifts a hold writes the record, then looks for what was put aside; who puts aside does so, then
        looks at the record. So one of the two sees what the other has done.
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
        """Have the workers of a queue look at it anew: its record has come to a sequence."""
        self._wire.send(self._subjects.refresh(queue), b"" if sequence is None else b"%d" % sequence)

    def marker(self, pause: Pause) -> dict[str, str]:
        """The header of a message that is put aside for a hold."""
        return {PAUSED_BY: digest(pause.scope)}

    # -- inside ------------------------------------------------------------------------------------------

    async def _change(
        self,
        queue: str,
        place: str,
        change: Callable[[PauseSet], PauseSet],
        *,
        asked: bool = True,
        lifts: bool = False,
    ) -> PauseSet:
        while True:
            before, sequence = await self._read(queue, consistent=True)
            after = change(before)
            if place == WHOLE_QUEUE and asked:
                # First, for not everybody who may write the record may do this: then nothing is changed.
                await self._set_consumers(queue, after)
            try:
                sequence = await self._write(queue, after, sequence)
                break
            except WrongSequence:
                continue
        self.notify(queue, sequence)
        if place != WHOLE_QUEUE and (lifts or ends_earlier(before, after, place)):
            await self._release_all(queue, place)
        return after

    async def _set_consumers(self, queue: str, pauses: PauseSet) -> None:
        """Have the server deliver nothing of a paused queue. What is rate limited, its workers see to."""
        pause = pauses.pauses.get(WHOLE_QUEUE)
        until = pause.end if pause is not None and pause.reason == "paused" else None
        for level in PRIORITIES:
            await self._jetstream.pause_consumer(self._subjects.streams.ready(queue), level, until)

    async def _release_all(self, queue: str, place: str) -> None:
        """Have what was put aside for a hold come back now: each by one write, unless it has come already."""
        stream, subject = self._subjects.streams.scheduled(queue), self._subjects.scheduled(queue, ANY)
        mark, after, more = digest(place), 0, True
        try:
            last = await self._reads.last(stream, subject, consistent=True)
            while more:
                page, more = await self._reads.page(stream, subject, after=after, limit=500, max_bytes=2**20)
                more = more and bool(page)
                for message in page:
                    after = await self._release_marked(message, mark)
            # What a replica did not know of yet, the leader does.
            while last is not None and after < sequence_of(last):
                found = await self._reads.next(stream, subject, after=after, consistent=True)
                if found is None:
                    return
                after = await self._release_marked(found, mark)
        except NoResponders:
            return

    async def _release_marked(self, message: Reply, mark: str) -> int:
        """Have what was put aside with a mark come back now; returns the sequence of what was looked at."""
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
