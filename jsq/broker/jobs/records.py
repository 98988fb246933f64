"""The records of jobs: one key of the KV bucket `jobs` for each job that a worker or an operator has changed.

The last revision of a key is the state of its job, and the earlier ones are its history. The sequence of a
revision is the fencing token. A write expects the revision that its writer last read. The server refuses a
stale write, and no reader or subscriber ever receives it. A job that only waits has no record: its message
shows its state.

The other values of a job (progress, checkpoints, large results) have keys below that of the record. Their
writes expect the revision of the record, so a worker that lost its lease cannot store any of them.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from pydantic_core import from_json

from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.subjects import PROGRESS, RESULT, read_id, token_of
from jsq.codec import revisions
from jsq.codec.subject_token import ANY
from jsq.errors import BadEnvelope, BrokerFull, NotAllowed
from jsq.model.revision import FINAL_STATES, Revision, StoredRevision
from jsq.settings import WriteGrouping
from jsq.transport.batch_publish import OutgoingMessage, commit
from jsq.transport.group_commit import BUSY, GroupCommit
from jsq.transport.replies import (
    HEADERS_END,
    HEADERS_START,
    NoReply,
    NoResponders,
    Reply,
    WrongSequence,
    header_line,
)
from jsq.transport.retrying import READ_SECONDS, publish_with_retry, with_retry

EXPECTED = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_ON = "Nats-Expected-Last-Subject-Sequence-Subject"
TTL = "Nats-TTL"
DELETED = {"KV-Operation": "DEL"}
"""The header of a revision that deletes its key, as KV clients write it."""

MAX_RECORDS_READ = 500
"""Records that one request reads at most: the server finds so many in about 20 ms."""

RECORD_SECONDS = 7 * 86_400
"""Seconds for which the server keeps the record of a job that ended in its first attempt.

All revisions of such a job have this TTL. The last one is the youngest, so no earlier one outlives it. The
record of a job with further attempts stays for the `max_age` of the bucket.
"""

MAX_RECORD_RESULT = 64 * 1024
"""Bytes of a result that a record holds at most. A larger result has a key of its own."""

PROGRESS_SECONDS = 86_400
"""Seconds for which the server keeps reported progress."""


class RecordStore:
    """Writes and reads the records of jobs."""

    def __init__(self, namespace: Namespace) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._stream, self._prefix = self._subjects.streams.records, self._subjects.record_prefix
        self._commits = GroupCommit(namespace.wire)

    def group_writes(self, way: WriteGrouping) -> None:
        """Choose whether concurrent writes are grouped: always, never, or when that is faster."""
        self._commits = GroupCommit(self._wire, way)

    @property
    def direct(self) -> bool:
        """Whether a caller may publish a write itself, without `put`: no write is grouped or measured now."""
        return self._commits.pace.direct

    # -- write -------------------------------------------------------------------------------------------

    async def write(
        self,
        queue: str,
        id: str,
        revision: Revision,
        *,
        expect: int,
        ttl: float | None = None,
        while_: Callable[[], bool] | None = None,
    ) -> int:
        """Write a revision after the revision `expect`, 0 for the first; returns its sequence.

        The server keeps it for `ttl` seconds, or for the `max_age` of the bucket if that is None. Raises
        `WrongSequence` if the last revision is not `expect`, and the errors of `publish_with_retry` once
        `while_` has returned False.
        """
        return await self.put(queue, id, revisions.encode(revision), expect=expect, ttl=ttl, while_=while_)

    async def put(
        self,
        queue: str,
        id: str,
        body: bytes,
        *,
        expect: int,
        ttl: float | None = None,
        while_: Callable[[], bool] | None = None,
    ) -> int:
        """Write an encoded revision; see `write`."""
        commits = self._commits
        token = id if id.isalnum() and id.isascii() else token_of(id)  # saves a call for most ids
        subject, lines = f"{self._prefix}{queue}.{token}", own_expectation_lines(expect, ttl)
        headers = b"".join((HEADERS_START, lines, HEADERS_END))
        try:
            if commits.under_way >= BUSY or not commits.pace.quiet:
                return await commits.store(OutgoingMessage(subject, body, lines))
            commits.under_way += 1
            try:
                return await self._wire.publish(subject, body, headers)
            finally:
                commits.under_way -= 1
        except (NoReply, NoResponders, BrokerFull) as failed:
            if while_ is None and isinstance(failed, BrokerFull):
                raise
            return await publish_with_retry(self._wire, subject, body, headers, while_=while_, failed=failed)

    async def put_with(
        self,
        queue: str,
        id: str,
        body: bytes,
        others: Iterable[OutgoingMessage],
        *,
        expect: int,
        ttl: float | None = None,
        while_: Callable[[], bool] | None = None,
    ) -> int:
        """Write a revision and other messages of the bucket in one atomic batch; see `write`.

        The server stores all of them or none. Only the record has an expected revision: the other messages
        must not have one.
        """
        record = OutgoingMessage(self._subjects.record(queue, id), body, own_expectation_lines(expect, ttl))
        messages = (*others, record)
        once = functools.partial(commit, self._wire, messages)
        try:
            return await once()
        except (NoReply, NoResponders, BrokerFull) as failed:
            if while_ is None and isinstance(failed, BrokerFull):
                raise
            return await with_retry(self._wire, once, while_=while_, failed=failed)

    def write_progress(self, queue: str, id: str, revision: Revision, *, token: int) -> None:
        """Publish the progress of a running attempt.

        The server refuses it if the attempt's token is stale.
        """
        record = self._subjects.record(queue, id)
        headers = expectation_headers(token, record) | {TTL: str(PROGRESS_SECONDS)}
        self._wire.send(f"{record}.{PROGRESS}", revisions.encode(revision), headers)

    async def delete(
        self, queue: str, id: str, found: StoredRevision, dead_letter: OutgoingMessage | None
    ) -> None:
        """Delete a record, and the dead letter that `dead_letter` overwrites, in one atomic batch.

        The history stays until a caller purges it; `deleted` finds it. Raises `WrongSequence` if `found` is
        not the last revision.
        """
        record = self._subjects.record(queue, id)
        others = (dead_letter,) if dead_letter is not None else ()
        # Without a TTL: if the purge fails, no earlier revision may become the last one again.
        lines = own_expectation_lines(found.sequence, None) + header_line("KV-Operation", "DEL")
        messages = (*others, OutgoingMessage(record, b"", lines))
        try:
            await with_retry(self._wire, functools.partial(commit, self._wire, messages))
        except WrongSequence:  # perhaps because of an earlier try whose answer was lost
            if await self.last(id, queue, consistent=True) is not None:
                raise

    async def deleted(self, id: str, queue: str = "*") -> tuple[str, int] | None:
        """The queue of a job whose record is deleted but not purged yet, and the sequence of the deletion."""
        reply = await self._reads.last(self._stream, self._subjects.record(queue, id), consistent=True)
        if reply is None or reply.headers.get("KV-Operation") != DELETED["KV-Operation"]:
            return None
        return reply.headers["Nats-Subject"].split(".")[2], int(reply.headers["Nats-Sequence"])

    # -- read --------------------------------------------------------------------------------------------

    async def last(self, id: str, queue: str = "*", *, consistent: bool = False) -> StoredRevision | None:
        """The last revision of a job's record; None if the job has no record.

        A replica may not have it yet. With `consistent`, reads from the leader.
        """
        reply = await self._reads.last(self._stream, self._subjects.record(queue, id), consistent=consistent)
        return read_revision(reply) if reply is not None else None

    async def last_at_least(self, queue: str, id: str, least: int) -> StoredRevision | None:
        """The last revision of a record whose sequence is known to be at least `least`.

        The replica that answers may be behind; if so, reads again. Raises `NoReply` if no replica has reached
        `least` within `READ_SECONDS`.
        """
        subject, end = self._subjects.record(queue, id), time.monotonic() + READ_SECONDS
        while True:
            for consistent in (False, True) if least else (False,):
                reply = await self._reads.last(self._stream, subject, consistent=consistent)
                if (int(reply.headers["Nats-Sequence"]) if reply is not None else 0) >= least:
                    return read_revision(reply) if reply is not None else None
            if time.monotonic() > end:
                raise NoReply(f"no replica has reached revision {least} of job {id} in {READ_SECONDS:g} s")
            await asyncio.sleep(0.1)

    async def last_of_state(self, queue: str, id: str, state: str) -> StoredRevision | None:
        """The last revision with this state, among those that the history holds."""
        found = await self.history(id, queue)
        return next((one for one in reversed(found) if one.state == state), None)

    async def last_each(self, queue: str, ids: Sequence[str]) -> dict[str, StoredRevision]:
        """The last revisions of some jobs of a queue, by their ids; without the jobs that have no record."""
        found: list[Reply] = []
        for start in range(0, len(ids), MAX_RECORDS_READ):
            keys = [self._subjects.record(queue, id) for id in ids[start : start + MAX_RECORDS_READ]]
            try:
                found += await self._reads.last_per_subject(self._stream, keys)
            except NoResponders:
                await self._jetstream.check_absent(self._stream)
                return {}  # no job was submitted yet
            except NotAllowed:  # a user of one queue may only read one key per request
                reads = (self._reads.last(self._stream, key) for key in keys)
                found += [reply for reply in await asyncio.gather(*reads) if reply is not None]
        return {stored.job: stored for reply in found if (stored := read_revision(reply)) is not None}

    async def list_last(self, queue: str = "*") -> list[StoredRevision]:
        """The last revision of each record, in the order of the changes."""
        replies = await self._reads.fetch(self._stream, self._subjects.record(queue, ANY))
        return newest_each(replies)

    async def progress(self, found: StoredRevision) -> StoredRevision:
        """A running job, with the last progress that its attempt reported, if any."""
        if found.state != "running" or found.revision.delivery == 0:
            return found
        key = f"{self._subjects.record(found.queue, found.job)}.{PROGRESS}"
        with contextlib.suppress(NotAllowed):
            reply = await self._reads.last(self._stream, key)
            reported = read_revision(reply) if reply is not None else None
            if reported is not None and reported.revision.token in (found.sequence, found.revision.token):
                revision = replace(
                    found.revision, progress=reported.revision.progress, text=reported.revision.text
                )
                return replace(found, revision=revision)
        return found

    async def with_result(self, found: StoredRevision) -> StoredRevision:
        """A job, with its result if that has a key of its own; without the result if it has expired."""
        if not found.revision.separate_result:
            return found
        key = f"{self._subjects.record(found.queue, found.job)}.{RESULT}"
        reply = await self._reads.last(self._stream, key)
        if reply is None and self._reads.may_ask_leader(self._stream):
            reply = await self._reads.last(self._stream, key, consistent=True)
        result = from_json(reply.payload)["result"] if reply is not None else None
        return replace(found, revision=replace(found.revision, has_result=reply is not None, result=result))

    async def history(
        self, id: str = ANY, queue: str = "*", *, after: int = 0, since: datetime | None = None
    ) -> list[StoredRevision]:
        """The revisions of a job's record (or of all records), and the reported progress, in order.

        The server keeps the last 64 revisions of a record.
        """
        start = revisions.format_time(since) if since is not None else ""
        record = self._subjects.record(queue, id)
        found = await self._reads.fetch(self._stream, record, after=after, since=start)
        found += await self._reads.fetch(self._stream, f"{record}.{PROGRESS}", after=after, since=start)
        read = [stored for reply in found if (stored := read_revision(reply)) is not None]
        return sorted(read, key=lambda one: one.sequence)

    # -- wait --------------------------------------------------------------------------------------------

    async def check_subscription(self, id: str, queue: str) -> None:
        """Raise `NotAllowed` if the user may not subscribe to the subject of `subscribe`."""
        await self._wire.flush()
        self._wire.refusals.check_subscription(self._subjects.stored_record(queue, id))

    @contextlib.asynccontextmanager
    async def subscribe(
        self, id: str, queue: str, arrived: asyncio.Queue[StoredRevision], *, final_only: bool = False
    ) -> AsyncIterator[str]:
        """Put the revisions of a job into `arrived` as the server stores them.

        Includes reported progress. With `final_only`, puts only the final revision there. Yields the subject
        of the subscription.
        """
        subject = self._subjects.stored_record(queue, id)

        def receive(message: Reply) -> None:
            if final_only and not is_final(message.payload):
                return
            stored = read_revision(message)
            if stored is not None:
                arrived.put_nowait(stored)

        wire = self._wire
        # Progress first: otherwise an attempt that starts between the two could report progress unseen.
        subjects = (subject,) if final_only else (f"{subject}.{PROGRESS}", subject)
        subscriptions = [await wire.subscribe(one, receive) for one in subjects]
        try:
            yield subject
            if wire.refusals.subscriptions:
                wire.refusals.check_subscription(subject)
        finally:
            for subscription in subscriptions:
                await wire.unsubscribe(subscription)


_FINAL_STARTS = tuple(f'{{"state":"{state}"'.encode() for state in FINAL_STATES)


def is_final(body: bytes) -> bool:
    """Whether an encoded revision is final. A revision begins with its state."""
    return body.startswith(_FINAL_STARTS)


def result_message(record: str, result: bytes, keep: float) -> OutgoingMessage:
    """The message of a result with a key of its own, which the server keeps for `keep` seconds."""
    return OutgoingMessage(f"{record}.{RESULT}", result, _ttl_line(keep))


def record_ttl(*, first: bool) -> float | None:
    """The TTL of a revision; `first` if it belongs to the first attempt of its job, or replaces that."""
    return RECORD_SECONDS if first else None


@functools.lru_cache(maxsize=64)
def _ttl_line(seconds: float) -> bytes:
    return header_line(TTL, str(max(1, round(seconds))))


def own_expectation_lines(sequence: int, ttl: float | None) -> bytes:
    """The header lines of a write that expects this sequence as the last one of its own key."""
    line = b"Nats-Expected-Last-Subject-Sequence: %d\r\n" % sequence
    return line if ttl is None else line + _ttl_line(ttl)


def expectation_headers(sequence: int, subject: str) -> dict[str, str]:
    """The headers of a write that expects this sequence as the last one of another subject."""
    return {EXPECTED: str(sequence), EXPECTED_ON: subject}


def expectation_lines(sequence: int, subject: str) -> bytes:
    """The headers of `expectation_headers`, as header lines."""
    return f"{EXPECTED}: {sequence}\r\n{EXPECTED_ON}: {subject}\r\n".encode()


def newest_each(replies: Sequence[Reply]) -> list[StoredRevision]:
    """The last revision of each record among some revisions, in the order of their sequences."""
    newest: dict[str, Reply] = {}
    for reply in replies:
        subject = reply.headers["Nats-Subject"]
        newest.pop(subject, None)  # so that the order is that of the last revisions
        newest[subject] = reply
    return [stored for reply in newest.values() if (stored := read_revision(reply)) is not None]


def read_revision(reply: Reply) -> StoredRevision | None:
    """A revision of a record; None if the record is deleted, or if jsq did not write it."""
    headers = reply.headers
    tokens = headers.get("Nats-Subject", "").split(".")
    try:
        queue, id = tokens[2], tokens[3]
        if not (id.isalnum() and id.isascii()):  # other ids are their own tokens
            id = read_id(id)
        sequence, at = int(headers["Nats-Sequence"]), revisions.parse_time(headers["Nats-Time-Stamp"])
        return StoredRevision(queue, id, sequence, at, revisions.decode(reply.payload))
    except (BadEnvelope, IndexError, KeyError, ValueError):
        return None
