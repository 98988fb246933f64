"""Expiries: jobs that nobody began in time, told and recorded by the server's clock.

Nothing on the server removes such a job by itself: a message with a life of its own would be taken from under
a worker that has begun it. Who reads judges; who meets the message, a worker or a sweep, records it.
"""

import contextlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from jsq.broker.jobs.records import RecordStore, record_ttl
from jsq.broker.topology.namespace import Namespace
from jsq.codec.revisions import without_arguments
from jsq.errors import BrokerError
from jsq.model.expiry import apply_expiry, expiry_time, has_expired, has_not_started
from jsq.model.revision import Revision, StoredRevision
from jsq.transport.replies import WrongSequence

CLOCK_SECONDS = 60.0
"""How long the server's clock is taken to go on as it was learned."""

SOON = 0.02
"""Seconds after which one who waits looks again where the moment has come."""


class JobExpiry:
    """Tells which jobs have expired, and records it."""

    def __init__(self, namespace: Namespace, records: RecordStore) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._records = records

    async def moment(self, expires: float | datetime, queue: str) -> datetime:
        """When a job expires that is submitted now, by the server's clock. Raises `BadOption`."""
        return expiry_time(expires, None, await self.now(queue))

    async def now(self, queue: str) -> datetime:
        """A moment that has passed by the server's clock, just now; makes the queue where it is missing.

        One request in a minute; where that is not allowed, our own clock has to do.
        """
        clock = self._wire.clock
        if time.monotonic() - clock.learned > CLOCK_SECONDS:
            with contextlib.suppress(BrokerError):
                if await self._jetstream.stream_info(self._subjects.streams.ready(queue)) is None:
                    await self._streams.ensure_queue(queue)
        return datetime.fromtimestamp(clock.now() - clock.doubt, UTC)

    async def apply_expiry(self, found: StoredRevision) -> StoredRevision:
        """A job's last event as it reads now."""
        return apply_expiry(found, await self.now(found.queue)) if has_not_started(found) else found

    async def apply_expiry_to_all(self, found: Sequence[StoredRevision]) -> Sequence[StoredRevision]:
        """The last events of many jobs as they read now."""
        first = next((one for one in found if has_not_started(one)), None)
        if first is None:
            return found
        now = await self.now(first.queue)
        return [apply_expiry(one, now) for one in found]

    def left(self, found: StoredRevision | None, most: float) -> float:
        """Seconds that one waits for the next event of a job: until it expires, `most` of them."""
        if found is None or found.revision.expires is None or not has_not_started(found):
            return most
        clock = self._wire.clock
        left = found.revision.expires.timestamp() - clock.now() + clock.doubt
        return min(most, max(SOON, left))

    async def record(self, found: StoredRevision) -> bool:
        """Record a job that has expired as such; False if it has not, or its log has moved on."""
        now = await self.now(found.queue)
        last = await self._records.last(found.job, found.queue, consistent=True)
        if not has_expired(last or found, now):
            return False
        event, expect = apply_expiry(last or found, now).revision, last.sequence if last is not None else 0
        event = await self.with_kept_arguments(found.queue, event)
        try:
            ttl = record_ttl(first=not expect)
            await self._records.write(found.queue, found.job, event, expect=expect, ttl=ttl)
        except WrongSequence:
            return False
        return True

    async def with_kept_arguments(self, queue: str, event: Revision) -> Revision:
        """A final event of a job; without arguments if the job's submit or its queue says so."""
        if not event.has_arguments and not event.arguments_size:
            return event
        kept = event.options.get("keep_arguments") is not False
        return (
            event
            if kept and (await self._streams.settings(queue)).keep_arguments
            else without_arguments(event)
        )
