"""Atomic submit: the server stores all jobs of a call or none of them, in one commit.

Each message expects that no message with its id exists, so a client may send a commit again with the same
ids. If the answer to a commit was lost, the client first checks whether it was stored. For that it reads the
first job only, because all jobs are stored or none.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from jsq.broker.jobs.backpressure import WaitForRoom
from jsq.broker.jobs.messages import job_message
from jsq.broker.jobs.store import JobStore
from jsq.broker.jobs.writer import no_leader_error
from jsq.broker.topology.namespace import Namespace
from jsq.errors import BadOption, BrokerUnavailable, BulkUnknown, QueueFull, Refused, count_noun
from jsq.model.job import Job
from jsq.transport.batch_publish import MAX_COMMIT_MESSAGES, OutgoingMessage, commit
from jsq.transport.replies import FULL, NoReply, NoResponders, WrongSequence
from jsq.transport.retrying import DEADLINE_SECONDS, with_retry

MAX_ATOMIC_BYTES = 32 * 2**20
"""Bytes of all messages of one commit: the server holds them in memory before it stores the first."""

CONCURRENT_LOOKUPS = 100

MAX_BULK_REBUILDS = 5
"""Tries of a bulk. After each try that an existing id refused, the client leaves out the existing jobs."""

_ATOMIC_DISABLED = 10174
_RETRY_CODES = frozenset({10176, 10210})
"""Error codes after which a client may send a commit again.

A message of the commit was lost on its way (10176), or too many commits are in progress (10210).
"""


class AtomicSubmit:
    """Stores all of many jobs on a queue, or none of them."""

    def __init__(self, namespace: Namespace, store: JobStore) -> None:
        self._namespace = namespace
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._store = store
        self._job_reader = store.reader
        self._job_writer = store.writer
        self._backpressure = store.backpressure

    async def submit(
        self,
        pattern: Job,
        calls: Sequence[tuple[str, bytes]],
        due: datetime | None = None,
        room: WaitForRoom | None = None,
    ) -> set[int]:
        """Store a job for each call, which is an id and arguments; everything else is as in `pattern`.

        Returns the positions of the jobs that existed before, because their ids were submitted earlier.
        Raises `BadOption` if the calls do not fit into one commit, and `BadArguments`. Raises `QueueFull`,
        `BrokerFull` or `BrokerUnavailable` if no job was stored, and `BulkUnknown` if that is not known.
        """
        if not calls:
            return set()
        jobs = [replace(pattern, id=id, arguments=arguments) for id, arguments in calls]
        unstored = await self._prepared(jobs, due)
        for _ in range(MAX_BULK_REBUILDS):
            first = jobs[min(unstored)].id
            commit = Commit(self._namespace, self._store, pattern.queue, first, list(unstored.values()))
            try:
                await self._backpressure.wait(pattern.queue, commit.store, room)
                break
            except WrongSequence:
                # Some of the ids were submitted earlier: their jobs are stored, or have run.
                unstored = await self._missing(jobs, unstored)
                if not unstored:
                    break
            except NoReply as error:
                if not commit.sent:
                    raise
                raise BulkUnknown([job.id for job in jobs], DEADLINE_SECONDS, str(error)) from error
            except NoResponders as error:
                raise no_leader_error(pattern.queue, error) from error
            except QueueFull as full:
                raise await self._backpressure.with_limit(full) from None
        else:
            raise BrokerUnavailable(
                f"queue {pattern.queue} refused the bulk {MAX_BULK_REBUILDS} times because of existing ids; "
                "no job was stored, try again"
            )
        return set(range(len(jobs))) - unstored.keys()

    async def _prepared(self, jobs: Sequence[Job], due: datetime | None) -> dict[int, OutgoingMessage]:
        """The checked messages of jobs, by position. Creates the streams of the key groups if needed."""
        for index, job in enumerate(jobs):
            self._job_writer.check_size(job, index)
        messages = [job_message(self._subjects, self._job_writer.dated(job, due), due) for job in jobs]
        check_fits(messages)
        if jobs[0].waits_for_key:
            await self._streams.ensure_groups(jobs[0].queue)
        return dict(enumerate(messages))

    async def _missing(
        self, jobs: Sequence[Job], unstored: dict[int, OutgoingMessage]
    ) -> dict[int, OutgoingMessage]:
        """The messages of the jobs that have neither a message nor a record on the server."""
        missing: dict[int, OutgoingMessage] = {}
        indexes = iter(unstored)

        async def find_next() -> None:
            for index in indexes:
                if await self._job_reader.find(jobs[index].id, jobs[index].queue, consistent=True) is None:
                    missing[index] = unstored[index]

        await asyncio.gather(*(find_next() for _ in range(CONCURRENT_LOOKUPS)))
        return dict(sorted(missing.items()))


class Commit:
    """One commit in progress. `sent` is True if a try without an answer may have stored it."""

    def __init__(
        self,
        namespace: Namespace,
        store: JobStore,
        queue: str,
        first: str,
        messages: Sequence[OutgoingMessage],
    ) -> None:
        self.sent = False
        self._wire = namespace.wire
        self._streams = namespace.streams
        self._job_reader = store.reader
        self._queue = queue
        self._first = first
        self._messages = messages

    async def store(self) -> None:
        """Store the messages; retry after a broken connection, a restart or an election.

        Raises `WrongSequence` if one of the messages existed before, and otherwise the errors that
        `AtomicSubmit.submit` translates.
        """
        try:
            await self._once()
            return
        except NoResponders as error:
            failed: NoReply | NoResponders = error
            await self._streams.recreate(self._queue)
        except NoReply as error:
            failed = error
        await with_retry(self._wire, self._once, failed=failed)

    async def _once(self) -> None:
        if self.sent and await self._is_stored():
            return
        try:
            await commit(self._wire, self._messages)
        except NoReply as error:
            self.sent = self.sent or error.sent
            raise
        except (*FULL, WrongSequence):
            # An earlier try may have stored the messages: then they fill the queue, or have the ids.
            if not (self.sent and await self._is_stored()):
                raise
        except Refused as error:
            if error.code in _RETRY_CODES:
                raise NoReply(str(error), sent=False) from error
            if error.code == _ATOMIC_DISABLED:
                text = f"queue {self._queue} accepts no atomic batches; run `jsq provision` to update it"
                raise Refused(text, error.code) from error
            raise

    async def _is_stored(self) -> bool:
        return await self._job_reader.find(self._first, self._queue, consistent=True) is not None


def check_fits(messages: Sequence[OutgoingMessage]) -> None:
    """Raise `BadOption` if the messages do not fit into one commit."""
    if len(messages) > MAX_COMMIT_MESSAGES:
        raise BadOption(
            "all_or_nothing",
            count_noun(len(messages), "job"),
            f"must be {MAX_COMMIT_MESSAGES:,} jobs at most; submit parts, or submit without all_or_nothing",
        )
    size = sum(message.size for message in messages)
    if size > MAX_ATOMIC_BYTES:
        raise BadOption(
            "all_or_nothing",
            f"{size:,} bytes",
            f"must be {MAX_ATOMIC_BYTES:,} bytes at most; submit parts, or submit without all_or_nothing",
        )
