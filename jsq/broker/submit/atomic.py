"""Many jobs, all or none of them: one commit, over whatever may break between here and the server.

Each message expects that none with its id stands, so a commit may be sent again under the same ids. One whose
answer was lost is looked for before that: as all stand or none, the first tells of the rest.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from jsq.broker.jobs.backpressure import WaitForRoom
from jsq.broker.jobs.messages import job_message
from jsq.broker.jobs.store import JobStore
from jsq.broker.topology.namespace import Namespace
from jsq.errors import BadOption, BrokerUnavailable, BulkUnknown, QueueFull, Refused, count_noun
from jsq.model.job import Job
from jsq.transport.batch_publish import MAX_COMMIT_MESSAGES, OutgoingMessage, commit
from jsq.transport.replies import FULL, NoReply, NoResponders, WrongSequence
from jsq.transport.retrying import DEADLINE_SECONDS, with_retry

MAX_ATOMIC_BYTES = 32 * 2**20
"""Bytes of the messages of one such bulk: the server holds them all before it stores the first."""

CONCURRENT_LOOKUPS = 100

MAX_BULK_REBUILDS = 5
"""How often a bulk is made up anew where ids of it stand already."""

_NOT_ENABLED = 10174
_AGAIN = frozenset({10176, 10210})
"""Codes of a commit that may be made again: a message of it was lost on its way (10176), or too many are
under way (10210)."""


class AtomicSubmit:
    """Puts many jobs on a queue, all or none."""

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
        """Store a job for each call, an id and its arguments; the rest is as in `pattern`.

        Returns the places of those which stood before, under ids that were sent before. Raises `BadOption`
        for more than fit a commit, `BadArguments`, and `QueueFull`, `BrokerFull`, `BrokerUnavailable` where
        none was stored; `BulkUnknown` where that cannot be known.
        """
        if not calls:
            return set()
        jobs = [replace(pattern, id=id, arguments=arguments) for id, arguments in calls]
        left = await self._prepared(jobs, due)
        for _ in range(MAX_BULK_REBUILDS):
            commit = Commit(
                self._namespace, self._store, pattern.queue, jobs[min(left)].id, list(left.values())
            )
            try:
                await self._backpressure.wait(pattern.queue, commit.store, room)
                break
            except WrongSequence:
                # Some of the ids were sent before: their jobs stand, or have run.
                left = await self._missing(jobs, left)
                if not left:
                    break
            except NoReply as error:
                if not commit.sent:
                    raise
                raise BulkUnknown([job.id for job in jobs], DEADLINE_SECONDS, str(error)) from error
            except NoResponders as error:
                told = f"queue {pattern.queue} has had no leader for long: {error}"
                raise BrokerUnavailable(told) from error
            except QueueFull as full:
                raise await self._backpressure.with_limit(full) from None
        else:
            raise BrokerUnavailable(f"queue {pattern.queue} does not say which of the ids it holds already")
        return set(range(len(jobs))) - left.keys()

    async def _prepared(self, jobs: Sequence[Job], due: datetime | None) -> dict[int, OutgoingMessage]:
        """The messages of jobs, checked, by their places."""
        for place, job in enumerate(jobs):
            self._job_writer.check_size(job, place)
        messages = [job_message(self._subjects, self._job_writer.dated(job, due), due) for job in jobs]
        check_fits(messages)
        if jobs[0].waits_for_key:
            await self._streams.ensure_groups(jobs[0].queue)
        return dict(enumerate(messages))

    async def _missing(
        self, jobs: Sequence[Job], left: dict[int, OutgoingMessage]
    ) -> dict[int, OutgoingMessage]:
        """Those of which there is neither a message nor a record."""
        missing: dict[int, OutgoingMessage] = {}
        places = iter(left)

        async def look_for_next() -> None:
            for place in places:
                if await self._job_reader.find(jobs[place].id, jobs[place].queue, consistent=True) is None:
                    missing[place] = left[place]

        await asyncio.gather(*(look_for_next() for _ in range(CONCURRENT_LOOKUPS)))
        return dict(sorted(missing.items()))


class Commit:
    """One commit under way; `sent` tells that it may have been stored by a try without an answer."""

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
        """See that the messages stand, trying again over a broken connection, a restart or an election.

        Raises `WrongSequence` where one stood before, and else what `AtomicSubmit.submit` translates.
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
        if self.sent and await self._stands():
            return
        try:
            await commit(self._wire, self._messages)
        except NoReply as error:
            self.sent = self.sent or error.sent
            raise
        except (*FULL, WrongSequence):
            # A try before this one may be what fills the queue, or what stands in the way.
            if not (self.sent and await self._stands()):
                raise
        except Refused as error:
            if error.code in _AGAIN:
                raise NoReply(str(error), sent=False) from error
            if error.code == _NOT_ENABLED:
                told = f"queue {self._queue} takes no commits: `jsq provision` brings it up to date"
                raise Refused(told, error.code) from error
            raise

    async def _stands(self) -> bool:
        return await self._job_reader.find(self._first, self._queue, consistent=True) is not None


def check_fits(messages: Sequence[OutgoingMessage]) -> None:
    """Raises `BadOption` for more than fits one commit."""
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
