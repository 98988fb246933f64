"""Finds jobs by criteria, in their records and in the messages of waiting jobs, the newest first.

Records and messages are read from the end of their streams. So the newest hundred jobs of a million cost the
same as those of a thousand. The arguments of a job are in its message, and in its record when it has ended.
"""

import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

from jsq.broker.jobs.messages import id_of, revision_from_message
from jsq.broker.jobs.records import newest_each
from jsq.broker.jobs.store import JobStore
from jsq.broker.operations.cancel import Canceller
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.subjects import read_id
from jsq.codec.subject_token import ANY
from jsq.model.edit import is_edited
from jsq.model.job_filter import JobCriteria
from jsq.model.key_group import key_token
from jsq.model.revision import FINAL_STATES, SUBMITTED_STATES, StoredRevision
from jsq.transport.replies import NoResponders, Reply, sequence_of

FIRST_SPAN = 1_000
LARGEST_SPAN = 256_000
"""Sequences of a stream that are searched at a time: more of them if few messages are found among them."""

QUERY_PAGE_MESSAGES = 1_000
QUERY_PAGE_BYTES = 8 * 2**20

QUERY_BATCH_JOBS = 100
"""Jobs whose messages or dead letters are read by one request."""


class JobQuery:
    """Finds the jobs that match criteria."""

    def __init__(self, namespace: Namespace, store: JobStore, canceller: Canceller) -> None:
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._records = store.records
        self._job_reader = store.reader
        self._canceller = canceller
        self._expiry = store.expiry

    async def newest(self, criteria: JobCriteria, limit: int | None = None) -> list[StoredRevision]:
        """The `limit` matching jobs that changed last, in their present state, oldest change first."""
        waiting = await self._newest_waiting(criteria, limit)
        recorded = await self._newest_recorded(criteria, limit) if may_have_record(criteria) else []
        # A job that started between the two reads is in both.
        known = {(one.queue, one.job) for one in recorded}
        found = recorded + [one for one in waiting if (one.queue, one.job) not in known]
        found.sort(key=lambda one: one.at)
        return found if limit is None else found[-limit:]

    async def count_revisions(self, queue: str = ANY) -> int:
        """How many revisions the records of jobs have: two for most jobs."""
        stream = self._subjects.streams.records
        try:
            return await self._reads.count(stream, self._subjects.record(queue, ANY))
        except NoResponders:
            await self._jetstream.check_absent(stream)
            return 0

    async def count_records(self, queue: str = ANY) -> int:
        """How many jobs have a record.

        A temporary consumer counts the keys. That costs the server 0.06 s of CPU time for each 100,000
        records, six times as much as `count_revisions`.
        """
        stream = self._subjects.streams.records
        return await self._jetstream.count_subjects(stream, self._subjects.record(queue, ANY))

    async def open_jobs(self, criteria: JobCriteria) -> list[StoredRevision]:
        """The matching jobs that have not ended, oldest first."""
        found = await self._canceller.open_jobs(criteria.queue or "*", criteria.matches)
        return await self._by_arguments(found, criteria)

    # -- records -----------------------------------------------------------------------------------------

    async def _newest_recorded(self, criteria: JobCriteria, limit: int | None) -> list[StoredRevision]:
        stream, queue = self._subjects.streams.records, criteria.queue or "*"
        try:
            if limit is None:
                return await self._fitting(await self._records.list_last(queue), criteria)
            return await self._last(criteria, self._subjects.record(queue, ANY), limit)
        except NoResponders:
            await self._jetstream.check_absent(stream)
            return []

    async def _last(self, criteria: JobCriteria, key: str, limit: int) -> list[StoredRevision]:
        stream = self._subjects.streams.records
        newest = await self._reads.last(stream, key)
        if newest is None:
            return []
        top, seen = sequence_of(newest), set[tuple[str, str]]()
        found: list[StoredRevision] = []
        async for replies in self._backwards(stream, key, top + 1):
            # Skip earlier revisions of jobs whose last revision was read already.
            some = [one for one in newest_each(replies) if record_key(one) not in seen]
            seen.update(map(message_key, replies))
            found = await self._fitting(some, criteria) + found
            if len(found) >= limit:
                break
        # A record that changed during the search has a new sequence: the search may have missed it.
        changed = newest_each(await self._reads.fetch(stream, key, after=top))
        replaced = {(one.queue, one.job) for one in changed}
        found = [one for one in found if (one.queue, one.job) not in replaced]
        return found + await self._fitting(changed, criteria)

    # -- messages ----------------------------------------------------------------------------------------

    async def _newest_waiting(self, criteria: JobCriteria, limit: int | None) -> list[StoredRevision]:
        """The newest matching jobs without a record: they wait for their first attempt."""
        if criteria.states and not set(criteria.states) & {*SUBMITTED_STATES, "expired"}:
            return []
        found: list[StoredRevision] = []
        for queue in [criteria.queue] if criteria.queue else await self._streams.queue_names():
            read: dict[str, int] = {}
            for stream, subject, state in await self._job_reader.message_locations(queue):
                with contextlib.suppress(NoResponders):
                    newest = await self._reads.last(stream, subject)
                    if newest is not None:
                        span = read.get(subject, 0), sequence_of(newest)
                        read[subject] = max(span)
                        found += await self._newest_at(queue, (stream, subject, state), span, criteria, limit)
        return [*{(one.queue, one.job): one for one in found}.values()]

    async def _newest_at(
        self,
        queue: str,
        place: tuple[str, str, str],
        span: tuple[int, int],
        criteria: JobCriteria,
        limit: int | None,
    ) -> list[StoredRevision]:
        """The newest matching jobs whose messages are in one place, in a span of sequences."""
        (stream, subject, state), (after, last) = place, span
        found: list[StoredRevision] = []
        async for replies in self._backwards(stream, subject, last + 1, after):
            some = [revision_from_message(queue, id_of(reply), reply, state) for reply in replies]
            some = [one for one in some if one.queue == queue]  # a job in quarantine here has a record
            recorded = await self._records.last_each(queue, [one.job for one in some])
            jobs = [recorded.get(one.job, one) for one in some]
            found += await self._fitting([one for one in jobs if is_waiting(one)], criteria)
            if limit is not None and len(found) >= limit:
                break
        return found

    # -- inside ------------------------------------------------------------------------------------------

    async def _backwards(self, bucket: str, key: str, end: int, after: int = 0) -> AsyncIterator[list[Reply]]:
        """The messages after one sequence and below another, in spans of sequences, the last span first."""
        span = FIRST_SPAN
        while end > after + 1:
            start = max(after + 1, end - span)
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

    async def _fitting(self, found: Sequence[StoredRevision], criteria: JobCriteria) -> list[StoredRevision]:
        read = await self._expiry.apply_expiry_to_all(found)
        return await self._by_arguments([one for one in read if criteria.matches(one)], criteria)

    async def _by_arguments(self, found: list[StoredRevision], criteria: JobCriteria) -> list[StoredRevision]:
        """The jobs whose arguments match too. The arguments of a job that has ended are in its record."""
        if not criteria.args:
            return found
        without = [one for one in found if has_arguments_elsewhere(one)]
        fitting = {
            (one.queue, one.job)
            for one in found
            if one.revision.has_arguments and criteria.matches_values(one.revision.arguments)
        }
        for start in range(0, len(without), QUERY_BATCH_JOBS):
            fitting |= await self._with_fitting(without[start : start + QUERY_BATCH_JOBS], criteria)
        return [one for one in found if (one.queue, one.job) in fitting]

    async def _with_fitting(
        self, some: Sequence[StoredRevision], criteria: JobCriteria
    ) -> set[tuple[str, str]]:
        names = self._subjects
        asked: dict[tuple[str, str], list[str]] = defaultdict(list)
        origins: dict[tuple[str, str], tuple[str, str]] = {}
        for one in some:
            place = (one.queue if one.state == "failed" else one.current_queue, one.job)
            origins[place] = (one.queue, one.job)
            if one.state == "failed":
                asked[names.streams.records, ""].append(names.dead(one.queue, "*", one.job))
                continue
            later, ready = names.streams.scheduled(one.current_queue), names.streams.ready(one.current_queue)
            # The streams are read in the order in which a message passes through them.
            asked[later, "scheduled"].append(names.scheduled(one.current_queue, one.job))
            if one.revision.key:
                token, groups = key_token(one.revision.key), names.streams.groups(one.current_queue)
                asked[later, "group_due"].append(names.groups.due(one.current_queue, token, one.job))
                asked[groups, ""].append(names.groups.job(one.current_queue, token, one.job))
            asked[later, "due"].append(names.due(one.current_queue, "*", one.job))
            asked[ready, ""].append(names.ready(one.current_queue, "*", one.job))
        pages = [await self._last_of(stream, subjects) for (stream, _), subjects in asked.items()]
        return {
            origins[place]
            for page in pages
            for reply in page
            if (place := message_key(reply)) in origins and criteria.matches_arguments(reply.payload)
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
    return tokens[2], read_id(tokens[-1])


def record_key(found: StoredRevision) -> tuple[str, str]:
    """The queue and the id of a job."""
    return found.queue, found.job


def is_waiting(found: StoredRevision) -> bool:
    """Whether a job waits for its first attempt: it has no record, or only the record of an edit."""
    return not found.sequence or is_edited(found)


def may_have_record(criteria: JobCriteria) -> bool:
    """Whether a job with a record can match: it cannot if only waiting jobs are requested."""
    return not criteria.states or not set(criteria.states) <= set(SUBMITTED_STATES)


def has_arguments_elsewhere(found: StoredRevision) -> bool:
    """Whether the arguments of a job are not in its record, but in its message or its dead letter."""
    return not found.revision.has_arguments and (found.state not in FINAL_STATES or found.state == "failed")
