"""Repairs of inconsistencies. A repair that is made twice, or is stopped anywhere, is completed exactly once.

A repair that stores a message expects the state that the scan found: a compare-and-set, which only one of two
sweepers wins. A repair that deletes names a sequence, so it never deletes a later message.
"""

import contextlib
from collections.abc import Awaitable, Callable, Mapping

from jsq.broker.delivery.delivery import REPLACES
from jsq.broker.flow.key_groups import KeyGroups
from jsq.broker.jobs.messages import (
    SCHEDULE,
    TARGET,
    message_priority,
    revision_from_message,
)
from jsq.broker.jobs.records import EXPECTED, TTL, expectation_headers
from jsq.broker.jobs.store import JobStore
from jsq.broker.operations.dead_letters import DeadLetterStore
from jsq.broker.operations.reschedule import Rescheduler
from jsq.broker.operations.second_run import SecondRuns
from jsq.broker.submit.unique import UniqueKeys
from jsq.broker.topology.namespace import Namespace
from jsq.errors import JobNotFound, QueueFull, WrongState
from jsq.model.repair import FoundInconsistency, Inconsistency
from jsq.model.revision import FINAL_STATES
from jsq.transport.replies import Reply, WrongSequence, own_headers
from jsq.transport.retrying import publish_with_retry

Repair = Callable[[FoundInconsistency], Awaitable[bool]]


class Repairs:
    """Repairs inconsistencies."""

    def __init__(
        self,
        namespace: Namespace,
        store: JobStore,
        dead_letters: DeadLetterStore,
        key_groups: KeyGroups,
        unique_keys: UniqueKeys,
    ) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._records = store.records
        self._job_writer = store.writer
        self._dead_letters = dead_letters
        self._expiry = store.expiry
        self._key_groups = key_groups
        self._unique_keys = unique_keys
        self._rescheduler = Rescheduler(namespace, store)
        self._second_runs = SecondRuns(namespace, store, dead_letters)
        self._repairs: Mapping[Inconsistency, Repair] = {
            Inconsistency.NO_CONSUMER: self._create_consumer,
            Inconsistency.UNDELIVERABLE: self._store_again,
            Inconsistency.LEFTOVER_MESSAGE: self._delete_message,
            Inconsistency.UNRECORDED_EXPIRY: self._record_expiry,
            Inconsistency.STALE_SCHEDULE_RECORD: self._update_due_time,
            Inconsistency.INCOMPLETE_RETRY: self._complete_retry,
            Inconsistency.STALE_DEAD_LETTER: self._delete_dead_letter,
            Inconsistency.UNUSED_ID: self._release_id,
            Inconsistency.STALLED_KEY_GROUP: self._admit,
            Inconsistency.LEAKED_SLOT: self._release_slot,
            Inconsistency.ORPHANED_SUCCESSOR: self._release_successor,
        }

    async def repair(self, found: FoundInconsistency) -> bool:
        """Repair an inconsistency. Returns False if it is gone already, or is of a kind without a repair."""
        make = self._repairs.get(found.kind)
        return make is not None and await make(found)

    async def _create_consumer(self, found: FoundInconsistency) -> bool:
        self._streams.forget()
        await self._streams.ensure_queue(found.queue)
        return True

    async def _store_again(self, found: FoundInconsistency) -> bool:
        """Store an undeliverable message on its queue again, then delete the old one.

        A header of the new message has the sequence of the old one. So the worker that receives the new
        message does not take the old one for a second message of the job that still waits.
        """
        message = await self._reads.get(found.stream, found.sequence, consistent=True)
        if message is None:
            return False
        ready = found.stream == self._subjects.streams.ready(found.queue)
        level = message_priority(message)
        headers = own_headers(message.headers) | ({REPLACES: str(found.sequence)} if ready else {})
        expect = expectation_headers(
            found.sequence if ready else 0, self._subjects.ready(found.queue, "*", found.job)
        )
        try:
            subject = self._subjects.ready(found.queue, level, found.job)
            await publish_with_retry(self._wire, subject, message.payload, {**headers, **expect})
        except WrongSequence:
            pass  # the job has a newer message, or this one was settled meanwhile
        except QueueFull:
            # The new message waits as a due one, until the deletion of the old one makes room for it.
            target = self._subjects.due(found.queue, level, found.job)
            await self._job_writer.requeue_message(target, message.payload, headers)
        return await self._jetstream.delete_message(found.stream, found.sequence)

    async def _delete_message(self, found: FoundInconsistency) -> bool:
        """Delete a message of a job that has ended.

        If callbacks of the job are pending, stores the message again instead: a worker submits them.
        """
        message = await self._reads.get(found.stream, found.sequence, consistent=True)
        last = await self._records.last(found.job, found.log_queue, consistent=True)
        if message is None or last is None or last.state not in FINAL_STATES:
            return False
        if last.revision.callbacks_pending:
            return await self._store_again(found)
        if not await self._jetstream.delete_message(found.stream, found.sequence):
            return False
        last = await self._records.last(found.job, found.log_queue, consistent=True)
        if last is not None and last.state not in FINAL_STATES:
            await self._restore(message)  # the job was retried meanwhile, and may need this message
        return True

    async def _record_expiry(self, found: FoundInconsistency) -> bool:
        """Record a job that has not started in time as expired, then delete its message."""
        last = await self._records.last(found.job, found.log_queue, consistent=True)
        message = await self._reads.get(found.stream, found.sequence, consistent=True)
        if last is None and message is not None:
            last = revision_from_message(found.queue, found.job, message, "queued")
        if last is not None:
            await self._expiry.record(last)
        return await self._delete_message(found)

    async def _restore(self, message: Reply) -> None:
        subject = message.headers["Nats-Subject"]
        schedule = {name: value for name, value in message.headers.items() if name in (SCHEDULE, TARGET)}
        with contextlib.suppress(WrongSequence):
            headers = own_headers(message.headers) | schedule | {EXPECTED: "0"}
            await publish_with_retry(self._wire, subject, message.payload, headers)

    async def _update_due_time(self, found: FoundInconsistency) -> bool:
        """Write the due time of a rescheduled job to its record."""
        with contextlib.suppress(WrongState):
            return await self._rescheduler.repair_record(found.job, found.log_queue)
        return False

    async def _complete_retry(self, found: FoundInconsistency) -> bool:
        last = await self._records.last(found.job, found.queue, consistent=True)
        if last is not None and await self._second_runs.complete(last):
            return True
        with contextlib.suppress(WrongState, JobNotFound):
            await self._dead_letters.retry(found.job, found.queue)
            return True
        return False

    async def _delete_dead_letter(self, found: FoundInconsistency) -> bool:
        subject = self._subjects.dead(found.queue, "*", found.job)
        return await self._jetstream.purge(found.stream, subject, below=found.sequence + 1) > 0

    async def _admit(self, found: FoundInconsistency) -> bool:
        await self._key_groups.admit(found.queue, found.key_token)
        return True

    async def _release_slot(self, found: FoundInconsistency) -> bool:
        state, _ = await self._key_groups.state(found.queue, found.key_token)
        slot = state.slot_of(found.job)
        if slot is None:
            return False
        await self._key_groups.release_slot(
            found.queue, found.key_token, found.job, up_to=slot.previous_sequence
        )
        return True

    async def _release_id(self, found: FoundInconsistency) -> bool:
        key = self._subjects.own_id(found.job)
        try:
            await publish_with_retry(
                self._wire, key, b"", {"KV-Operation": "DEL", TTL: "1", EXPECTED: str(found.sequence)}
            )
        except WrongSequence:
            return False
        return True

    async def _release_successor(self, found: FoundInconsistency) -> bool:
        """Submit the unique job that waits for one which has ended."""
        return await self._unique_keys.release_orphan(found.queue, found.job, found.sequence)
