"""Choosing jobs: by their records, the newest first, and by the arguments in their messages and letters.

The view has one record for each job, in the order in which they changed. It is read from its end, so that the
newest hundred cost the same beside a million as beside a thousand.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

from jsq.broker.jobs.event_log import read_event
from jsq.broker.jobs.store import JobStore
from jsq.broker.operations.cancel import Canceller
from jsq.broker.topology.namespace import Namespace
from jsq.model.event import FINAL_STATES, LoggedEvent
from jsq.model.job_filter import JobCriteria
from jsq.model.key_group import key_token
from jsq.transport.replies import NoResponders, Reply, sequence_of

FIRST_SPAN = 1_000
LARGEST_SPAN = 256_000
"""Sequences of the view that are looked through in one go: more where little stands among them."""

QUERY_PAGE_MESSAGES = 1_000
QUERY_PAGE_BYTES = 8 * 2**20

QUERY_BATCH_JOBS = 100
"""Jobs whose messages or letters one request asks for."""


class JobQuery:
    """Finds the jobs of a choice."""

    def __init__(
        self,
        namespace: Namespace,
        store: JobStore,
        cancels: Canceller,
    ) -> None:
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._event_log = store.event_log
        self._cancels = cancels
        self._expiry = store.expiry

    async def newest(self, choice: JobCriteria, limit: int | None = None) -> list[LoggedEvent]:
        """The jobs that fit, as they read now, the one that changed last at the end: the last `limit`."""
        bucket, queue = self._subjects.streams.bucket("jobs"), choice.queue or "*"
        try:
            if limit is None:
                return await self._fitting(await self._event_log.view.list_last(queue), choice)
            return (await self._last(choice, self._subjects.key("jobs", f"{queue}.*"), limit))[-limit:]
        except NoResponders:
            await self._jetstream.check_absent(bucket)
            return []

    async def count_records(self, queue: str = "*") -> int:
        """How many jobs have a record."""
        bucket = self._subjects.streams.bucket("jobs")
        try:
            return await self._reads.count(bucket, self._subjects.key("jobs", f"{queue}.*"))
        except NoResponders:
            await self._jetstream.check_absent(bucket)
            return 0

    async def open_jobs(self, choice: JobCriteria) -> list[LoggedEvent]:
        """The jobs that fit and have not ended, oldest first, also those that no record tells of (yet)."""
        found = await self._cancels.open_jobs(choice.queue or "*", choice.matches)
        return await self._by_arguments(found, choice)

    # -- inside ------------------------------------------------------------------------------------------

    async def _last(self, choice: JobCriteria, key: str, limit: int) -> list[LoggedEvent]:
        bucket = self._subjects.streams.bucket("jobs")
        newest = await self._reads.last(bucket, key)
        if newest is None:
            return []
        top = sequence_of(newest)
        found: list[LoggedEvent] = []
        async for replies in self._backwards(bucket, key, top + 1):
            found = await self._fitting(self._read(replies), choice) + found
            if len(found) >= limit:
                break
        # What changed while we looked has left the place where we may have missed it.
        changed = self._read(await self._reads.fetch(bucket, key, after=top))
        gone = {(one.queue, one.job) for one in changed}
        found = [one for one in found if (one.queue, one.job) not in gone]
        return found + await self._fitting(changed, choice)

    async def _backwards(self, bucket: str, key: str, end: int) -> AsyncIterator[list[Reply]]:
        """The messages below a sequence, a span of sequences at a time, the last span first."""
        span = FIRST_SPAN
        while end > 1:
            start = max(1, end - span)
            replies = await self._between(bucket, key, start, end)
            yield replies
            span = min(LARGEST_SPAN, span * 4) if len(replies) < span // 4 else span
            end = start

    async def _between(self, bucket: str, key: str, start: int, end: int) -> list[Reply]:
        found: list[Reply] = []
        after, more = start - 1, True
        while more and after < end - 1:
            most = min(QUERY_PAGE_MESSAGES, end - 1 - after)
            page, more = await self._reads.page(
                bucket, key, after=after, limit=most, max_bytes=QUERY_PAGE_BYTES
            )
            more = more and bool(page)
            found += [reply for reply in page if sequence_of(reply) < end]
            after = sequence_of(page[-1]) if page else end
        return found

    def _read(self, replies: Sequence[Reply]) -> list[LoggedEvent]:
        return [event for reply in replies if (event := read_event(reply)) is not None]

    async def _fitting(self, found: Sequence[LoggedEvent], choice: JobCriteria) -> list[LoggedEvent]:
        read = await self._expiry.apply_expiry_to_all(found)
        return await self._by_arguments([one for one in read if choice.matches(one)], choice)

    async def _by_arguments(self, found: list[LoggedEvent], choice: JobCriteria) -> list[LoggedEvent]:
        """Those whose arguments fit too. Of what has ended otherwise than by failing, none are kept."""
        if not choice.args:
            return found
        told = [one for one in found if one.state not in FINAL_STATES or one.state == "failed"]
        fitting: set[tuple[str, str]] = set()
        for start in range(0, len(told), QUERY_BATCH_JOBS):
            fitting |= await self._with_fitting(told[start : start + QUERY_BATCH_JOBS], choice)
        return [one for one in found if (one.queue, one.job) in fitting]

    async def _with_fitting(self, some: Sequence[LoggedEvent], choice: JobCriteria) -> set[tuple[str, str]]:
        names = self._subjects
        asked: dict[tuple[str, str], list[str]] = defaultdict(list)
        homes: dict[tuple[str, str], tuple[str, str]] = {}
        for one in some:
            place = (one.queue if one.state == "failed" else one.current_queue, one.job)
            homes[place] = (one.queue, one.job)
            if one.state == "failed":
                asked[names.streams.dead, ""].append(names.dead(one.queue, "*", one.job))
                continue
            later, ready = names.streams.scheduled(one.current_queue), names.streams.ready(one.current_queue)
            # In the order in which it goes over from one to the other.
            asked[later, "scheduled"].append(names.scheduled(one.current_queue, one.job))
            if one.event.key:
                token, line = key_token(one.event.key), names.streams.groups(one.current_queue)
                asked[later, "group_due"].append(names.groups.due(one.current_queue, token, one.job))
                asked[line, ""].append(names.groups.job(one.current_queue, token, one.job))
            asked[later, "due"].append(names.due(one.current_queue, "*", one.job))
            asked[ready, ""].append(names.ready(one.current_queue, "*", one.job))
        pages = [await self._last_of(stream, subjects) for (stream, _), subjects in asked.items()]
        return {
            homes[place]
            for page in pages
            for reply in page
            if (place := message_key(reply)) in homes and choice.matches_arguments(reply.payload)
        }

    async def _last_of(self, stream: str, subjects: Sequence[str]) -> list[Reply]:
        try:
            return await self._reads.last_per_subject(stream, subjects)
        except NoResponders:
            await self._jetstream.check_absent(stream)
            return []


def message_key(reply: Reply) -> tuple[str, str]:
    """The queue and the id in a message's subject."""
    tokens = reply.headers["Nats-Subject"].split(".")
    return tokens[2], tokens[-1]
