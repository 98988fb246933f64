"""Runs a job that has ended again, from the arguments and options in its record.

The record decides, as for every change of a job: a `retrying` revision expects the final one, so only one of
two calls writes it. The revision holds the arguments. So the next call, or a sweep, completes a call that
stopped before it stored the message.
"""

from dataclasses import replace
from typing import NoReturn

from jsq.broker.jobs.store import JobStore
from jsq.broker.operations.dead_letters import DeadLetterStore
from jsq.broker.operations.replay import is_replayed, replayed_event, write_replay
from jsq.broker.topology.namespace import Namespace
from jsq.codec import envelope
from jsq.errors import ArgumentsNotKept, BadOption, JobNotFound, WrongState
from jsq.model.edit import is_edited
from jsq.model.revision import FINAL_STATES, MAX_RECORD_ARGUMENTS, StoredRevision


class SecondRuns:
    """Runs jobs that have ended again, under their ids."""

    def __init__(self, namespace: Namespace, store: JobStore, dead_letters: DeadLetterStore) -> None:
        self._wire = namespace.wire
        self._job_reader = store.reader
        self._job_writer = store.writer
        self._records = store.records
        self._dead_letters = dead_letters

    async def run_again(self, id: str, queue: str = "*") -> None:
        """Run a job that has ended again, with all its retries; a failed job from its dead letter.

        Its deadline, its expiry and its unique key are removed. Raises `JobNotFound`; `WrongState` if the job
        has not ended; `ArgumentsNotKept` if its record does not hold its arguments.
        """
        found = await self._job_reader.find(id, queue, consistent=True)
        if found is None:
            raise JobNotFound(id)
        if found.state == "failed":
            await self._dead_letters.retry(id, found.queue)
            return
        if not await self.complete(found):
            await self._run(found)

    async def complete(self, found: StoredRevision) -> bool:
        """Store the message of a second run or of an edit that stopped after it wrote the record.

        Returns False if the record belongs to neither.
        """
        event = found.revision
        if is_edited(found) and event.has_arguments:
            await self._job_writer.ensure_scheduled(envelope.edited_order(found), event.due)
            return True
        if not is_replayed(found) or not event.has_arguments:
            return False
        await self._job_writer.ensure_scheduled(envelope.recorded_job(found), None)
        return True

    # -- inside ------------------------------------------------------------------------------------------

    async def _run(self, found: StoredRevision) -> None:
        if found.state not in FINAL_STATES:
            raise WrongState(found.job, found.state, "run again: only a job that has ended can")
        if not found.revision.has_arguments:
            refuse_without_arguments(found)
        try:
            job = envelope.recorded_job(found)
        except (ValueError, TypeError, BadOption) as error:
            raise WrongState(found.job, found.state, f"run again: {error}") from error
        event = replace(
            replayed_event(job, self._wire.clock.moment(), found.sequence),
            options=found.revision.options,
            has_arguments=True,
            arguments=found.revision.arguments,
        )
        sequence = await write_replay(self._records, job, event, asked="run again")
        # The job goes through SCHEDULED: the message of its first run may be on the queue, not settled yet.
        await self._job_writer.ensure_scheduled(replace(job, previous_sequence=sequence), None)


def refuse_without_arguments(found: StoredRevision) -> NoReturn:
    """Raise `ArgumentsNotKept` with the reason why the record does not hold the arguments."""
    size = found.revision.arguments_size
    why = (
        f"they take {size:,} bytes, and a record holds {MAX_RECORD_ARGUMENTS:,}" if size else "keep_arguments"
    )
    raise ArgumentsNotKept(found.job, found.state, why)
