"""Expiry: decides by the server's clock which jobs did not start in time, and records it.

The server does not delete such a job by itself: it would delete a message with a TTL also while a worker runs
the job. So each reader decides whether a job has expired. A worker or a sweep records the expiry when it
finds the message.
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
"""Seconds for which the last measured offset of the server's clock is used."""

MIN_WAIT_SECONDS = 0.02
"""Seconds to wait at least for the next revision of a job whose expiry time has come."""


class JobExpiry:
    """Decides which jobs have expired, and records it."""

    def __init__(self, namespace: Namespace, records: RecordStore) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._records = records

    async def moment(self, expires: float | datetime, queue: str) -> datetime:
        """The expiry time, by the server's clock, of a job that is submitted now. Raises `BadOption`."""
        return expiry_time(expires, None, await self.now(queue))

    async def now(self, queue: str) -> datetime:
        """The time by the server's clock, minus the uncertainty; creates the queue if it is missing.

        Sends at most one request a minute. If the user may not send it, the local clock is used.
        """
        clock = self._wire.clock
        if time.monotonic() - clock.learned > CLOCK_SECONDS:
            with contextlib.suppress(BrokerError):
                if await self._jetstream.stream_info(self._subjects.streams.ready(queue)) is None:
                    await self._streams.ensure_queue(queue)
        return datetime.fromtimestamp(clock.now() - clock.uncertainty, UTC)

    async def apply_expiry(self, found: StoredRevision) -> StoredRevision:
        """The last revision of a job, or its expiry if the job has expired by now."""
        return apply_expiry(found, await self.now(found.queue)) if has_not_started(found) else found

    async def apply_expiry_to_all(self, found: Sequence[StoredRevision]) -> Sequence[StoredRevision]:
        """The last revisions of many jobs, with their expiries applied; see `apply_expiry`."""
        first = next((one for one in found if has_not_started(one)), None)
        if first is None:
            return found
        now = await self.now(first.queue)
        return [apply_expiry(one, now) for one in found]

    def seconds_to_wait(self, found: StoredRevision | None, limit: float) -> float:
        """The seconds to wait for the next revision of a job: until it expires, but at most `limit`."""
        if found is None or found.revision.expires is None or not has_not_started(found):
            return limit
        clock = self._wire.clock
        until_expiry = found.revision.expires.timestamp() - clock.now() + clock.uncertainty
        return min(limit, max(MIN_WAIT_SECONDS, until_expiry))

    async def record(self, found: StoredRevision) -> bool:
        """Record that a job has expired. Returns False if it has not, or if its record has changed."""
        now = await self.now(found.queue)
        last = await self._records.last(found.job, found.queue, consistent=True)
        if not has_expired(last or found, now):
            return False
        revision, expect = apply_expiry(last or found, now).revision, last.sequence if last is not None else 0
        revision = await self.with_kept_arguments(found.queue, revision)
        try:
            ttl = record_ttl(first=not expect)
            await self._records.write(found.queue, found.job, revision, expect=expect, ttl=ttl)
        except WrongSequence:
            return False
        return True

    async def with_kept_arguments(self, queue: str, revision: Revision) -> Revision:
        """A final revision of a job, without its arguments if the job's options or its queue drop them."""
        if not revision.has_arguments and not revision.arguments_size:
            return revision
        kept = revision.options.get("keep_arguments") is not False
        return (
            revision
            if kept and (await self._streams.settings(queue)).keep_arguments
            else without_arguments(revision)
        )
