"""Removes all that is known of a job that has ended, so that its id is free for another."""

from jsq.broker.jobs.store import JobStore
from jsq.broker.operations.dead_letters import DeadLetterStore
from jsq.errors import JobNotFound, WrongState
from jsq.model.revision import FINAL_STATES


class Remover:
    """Removes jobs that have ended."""

    def __init__(self, store: JobStore, dead: DeadLetterStore) -> None:
        self._job_reader = store.reader
        self._job_writer = store.writer
        self._dead = dead

    async def remove(self, id: str, queue: str = "*") -> None:
        """Remove a job's record, what it keeps, its dead letter, and the claim on its id.

        Broken off half way, it may be done again. Raises `JobNotFound`, `WrongState` for one that has not
        ended.
        """
        found = await self._job_reader.find(id, queue, consistent=True)
        if found is None:
            if await self._dead.finish_removal(id, queue):
                return
            raise JobNotFound(id)
        if found.state not in FINAL_STATES:
            raise WrongState(id, found.state, "removed: only a job that has ended can; cancel it first")
        queue = found.queue
        if found.revision.callbacks_pending:
            await self._dead.settled(queue, id)
        # First what could run it again, last what keeps the id from another.
        for lane in {queue, found.current_queue}:
            await self._job_writer.remove(lane, id, keyed=found.may_wait_for_key)
        letter = await self._dead.find(id, queue, closed=True)
        await self._dead.delete_record(found, letter)
        await self._dead.finish_removal(id, queue)
