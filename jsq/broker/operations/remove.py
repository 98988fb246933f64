"""Removals: all that is known of a job that has ended goes, and its id is free for another."""

from jsq.broker.jobs.store import JobStore
from jsq.broker.operations.dead_letters import DeadLetterStore
from jsq.broker.topology.namespace import Namespace
from jsq.errors import JobNotFound, WrongState
from jsq.model.event import FINAL_STATES


class Remover:
    """Removes jobs that have ended."""

    def __init__(self, namespace: Namespace, store: JobStore, dead: DeadLetterStore) -> None:
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._event_log = store.event_log
        self._job_reader = store.reader
        self._job_writer = store.writer
        self._dead = dead

    async def remove(self, id: str, queue: str = "*") -> None:
        """Remove a job's record, what it keeps, its dead letter, and the claim on its id.

        Broken off half way, it may be done again. Raises `JobNotFound`, `WrongState` for one that has not
        ended.
        """
        found = await self._job_reader.find(id, queue)
        if found is None:
            raise JobNotFound(id)
        if found.state not in FINAL_STATES:
            raise WrongState(id, found.state, "removed: only a job that has ended can; cancel it first")
        queue = found.queue
        # First what could run it again, last what keeps the id from another.
        for lane in {queue, found.current_queue}:
            await self._job_writer.remove(lane, id, keyed=found.may_wait_for_key)
        await self._dead.purge(queue, id)
        await self._event_log.delete(queue, id)
        await self._jetstream.purge(
            self._subjects.streams.bucket("ids"), self._subjects.key("ids", f"id.{id}")
        )
