"""Removes all data of a job that has ended, so that another job can have its id."""

from jsq.broker.jobs.store import JobStore
from jsq.broker.operations.dead_letters import DeadLetterStore
from jsq.errors import JobNotFound, WrongState
from jsq.model.revision import FINAL_STATES


class Remover:
    """Removes jobs that have ended."""

    def __init__(self, store: JobStore, dead_letters: DeadLetterStore) -> None:
        self._job_reader = store.reader
        self._job_writer = store.writer
        self._dead_letters = dead_letters

    async def remove(self, id: str, queue: str = "*") -> None:
        """Remove a job's record, its checkpoints, its dead letter, and the claim on its id.

        If the removal stops half way, call it again. Raises `JobNotFound`, and `WrongState` if the job has
        not ended.
        """
        found = await self._job_reader.find(id, queue, consistent=True)
        if found is None:
            if await self._dead_letters.finish_removal(id, queue):
                return
            raise JobNotFound(id)
        if found.state not in FINAL_STATES:
            raise WrongState(id, found.state, "removed: only a job that has ended can; cancel it first")
        queue = found.queue
        if found.revision.callbacks_pending:
            await self._dead_letters.settled(queue, id)
        # The messages are deleted first, because they could run the job again; the claim on the id is last.
        for name in {queue, found.current_queue}:
            await self._job_writer.remove(name, id, keyed=found.may_wait_for_key)
        dead_letter = await self._dead_letters.find(id, queue, closed=True)
        await self._dead_letters.delete_record(found, dead_letter)
        await self._dead_letters.finish_removal(id, queue)
