"""Mends what was left behind. Each mend may be done twice, or break off anywhere, and is then done once.

What puts something in its place expects what was found: a compare-and-set that one of two menders wins. What
removes names a sequence, so it never takes what came later.
"""

import contextlib
from collections.abc import Awaitable, Callable, Mapping

from jsq.broker.delivery.delivery import INSTEAD
from jsq.broker.flow.key_groups import KeyGroups
from jsq.broker.jobs.messages import (
    SCHEDULE,
    TARGET,
    event_from_message,
    message_priority,
)
from jsq.broker.jobs.records import EXPECTED, TTL, expecting
from jsq.broker.jobs.store import JobStore
from jsq.broker.operations.dead_letters import DeadLetterStore
from jsq.broker.operations.reschedule import Rescheduler
from jsq.broker.operations.second_run import SecondRuns
from jsq.broker.submit.unique import UniqueKeys
from jsq.broker.topology.namespace import Namespace
from jsq.errors import JobNotFound, QueueFull, WrongState
from jsq.model.event import FINAL_STATES
from jsq.model.repair import FoundInconsistency, Inconsistency
from jsq.transport.replies import Reply, WrongSequence, own_headers
from jsq.transport.retrying import publish_with_retry

Repair = Callable[[FoundInconsistency], Awaitable[bool]]


class Repairs:
    """Mends flaws; `repair` says whether it was this that did it."""

    def __init__(
        self,
        namespace: Namespace,
        store: JobStore,
        dead: DeadLetterStore,
        lines: KeyGroups,
        uniques: UniqueKeys,
    ) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._records = store.records
        self._job_writer = store.writer
        self._dead = dead
        self._expiry = store.expiry
        self._key_groups = lines
        self._uniques = uniques
        self._moves = Rescheduler(namespace, store)
        self._second_runs = SecondRuns(namespace, store, dead)
        self._ways: Mapping[Inconsistency, Repair] = {
            Inconsistency.NO_CONSUMER: self._make_consumer,
            Inconsistency.UNDELIVERABLE: self._revive,
            Inconsistency.LEFTOVER_MESSAGE: self._remove,
            Inconsistency.UNRECORDED_EXPIRY: self._expire,
            Inconsistency.STALE_SCHEDULE_RECORD: self._date,
            Inconsistency.INCOMPLETE_RETRY: self._replay,
            Inconsistency.STALE_DEAD_LETTER: self._forget_letter,
            Inconsistency.UNUSED_ID: self._free_id,
            Inconsistency.STALLED_KEY_GROUP: self._let_on,
            Inconsistency.LEAKED_SLOT: self._give_up,
            Inconsistency.ORPHANED_SUCCESSOR: self._release_successor,
        }

    async def repair(self, found: FoundInconsistency) -> bool:
        """Mend a flaw. False where it is gone already, or only to be told."""
        way = self._ways.get(found.kind)
        return way is not None and await way(found)

    async def _make_consumer(self, found: FoundInconsistency) -> bool:
        self._streams.forget()
        await self._streams.ensure_queue(found.queue)
        return True

    async def _revive(self, found: FoundInconsistency) -> bool:
        """Put a message that nobody gets on its queue anew, then remove the old one.

        The new one names the old, so that a worker does not take that for one which still waits.
        """
        ghost = await self._reads.get(found.stream, found.sequence, consistent=True)
        if ghost is None:
            return False
        ready = found.stream == self._subjects.streams.ready(found.queue)
        level = message_priority(ghost)
        headers = own_headers(ghost.headers) | ({INSTEAD: str(found.sequence)} if ready else {})
        expect = expecting(found.sequence if ready else 0, self._subjects.ready(found.queue, "*", found.job))
        try:
            subject = self._subjects.ready(found.queue, level, found.job)
            await publish_with_retry(self._wire, subject, ghost.payload, {**headers, **expect})
        except WrongSequence:
            pass  # a newer message of the job stands, or this one was settled meanwhile
        except QueueFull:
            # Its own place becomes free when the old one goes.
            target = self._subjects.due(found.queue, level, found.job)
            await self._job_writer.requeue_message(target, ghost.payload, headers)
        return await self._jetstream.delete_message(found.stream, found.sequence)

    async def _remove(self, found: FoundInconsistency) -> bool:
        """Remove a message of a job that has ended.

        If callbacks are pending, a worker that knows them gets the message instead.
        """
        message = await self._reads.get(found.stream, found.sequence, consistent=True)
        last = await self._records.last(found.job, found.log_queue, consistent=True)
        if message is None or last is None or last.state not in FINAL_STATES:
            return False
        if last.event.callbacks_pending:
            return await self._revive(found)
        if not await self._jetstream.delete_message(found.stream, found.sequence):
            return False
        last = await self._records.last(found.job, found.log_queue, consistent=True)
        if last is not None and last.state not in FINAL_STATES:
            await self._put_back(message)  # it was replayed meanwhile, and may count on this message
        return True

    async def _expire(self, found: FoundInconsistency) -> bool:
        """Record a job as expired that nobody began in time, then remove its message."""
        last = await self._records.last(found.job, found.log_queue, consistent=True)
        message = await self._reads.get(found.stream, found.sequence, consistent=True)
        if last is None and message is not None:
            last = event_from_message(found.queue, found.job, message, "queued")
        if last is not None:
            await self._expiry.record(last)
        return await self._remove(found)

    async def _put_back(self, message: Reply) -> None:
        subject = message.headers["Nats-Subject"]
        kept = {name: value for name, value in message.headers.items() if name in (SCHEDULE, TARGET)}
        with contextlib.suppress(WrongSequence):
            headers = own_headers(message.headers) | kept | {EXPECTED: "0"}
            await publish_with_retry(self._wire, subject, message.payload, headers)

    async def _date(self, found: FoundInconsistency) -> bool:
        """Write to the record of a rescheduled job when it is due."""
        with contextlib.suppress(WrongState):
            return await self._moves.repair_record(found.job, found.log_queue)
        return False

    async def _replay(self, found: FoundInconsistency) -> bool:
        last = await self._records.last(found.job, found.queue, consistent=True)
        if last is not None and await self._second_runs.complete(last):
            return True
        with contextlib.suppress(WrongState, JobNotFound):
            await self._dead.retry(found.job, found.queue)
            return True
        return False

    async def _forget_letter(self, found: FoundInconsistency) -> bool:
        subject = self._subjects.dead(found.queue, "*", found.job)
        return await self._jetstream.purge(found.stream, subject, below=found.sequence + 1) > 0

    async def _let_on(self, found: FoundInconsistency) -> bool:
        await self._key_groups.admit(found.queue, found.key_token)
        return True

    async def _give_up(self, found: FoundInconsistency) -> bool:
        turn, _ = await self._key_groups.state(found.queue, found.key_token)
        holder = turn.slot_of(found.job)
        if holder is None:
            return False
        await self._key_groups.release_slot(
            found.queue, found.key_token, found.job, over=holder.previous_sequence
        )
        return True

    async def _free_id(self, found: FoundInconsistency) -> bool:
        key = self._subjects.own_id(found.job)
        try:
            await publish_with_retry(
                self._wire, key, b"", {"KV-Operation": "DEL", TTL: "1", EXPECTED: str(found.sequence)}
            )
        except WrongSequence:
            return False
        return True

    async def _release_successor(self, found: FoundInconsistency) -> bool:
        """Have the job begin that waits for one which has ended."""
        return await self._uniques.release_orphan(found.queue, found.job, found.sequence)
