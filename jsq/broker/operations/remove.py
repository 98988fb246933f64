"""Removals: all that is known of a job that has ended goes, and its id is free for another."""

from jsq.broker.jobs.event_log import EventLog
from jsq.broker.jobs.writer import Jobs
from jsq.broker.operations.dead_letters import DeadLetterStore
from jsq.broker.topology.namespace import Namespace
from jsq.errors import JobNotFound, WrongState
from jsq.model.event import FINAL_STATES


class Remover:
    """Removes jobs that have ended."""

    def __init__(self, namespace: Namespace, log: EventLog, jobs: Jobs, dead: DeadLetterStore) -> None:
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._event_log = log
        self._jobs = jobs
        self._dead = dead

    async def remove(self, id: str, queue: str = "*") -> None:
        """Remove a job's record, what it keeps, its dead letter, and the claim on its id.

        Broken off half way, it may be done again. Raises `JobNotFound`, `WrongState` for one that has not
        ended.
        """
        found = await self._jobs.find(id, queue)
        if found is None:
            raise JobNotFound(id)
        if found.state not in FINAL_STATES:
            raise WrongState(id, found.state, "removed: only a job that has ended can; cancel it first")
        queue = found.queue
        # First what could run it again, last what keeps the id from another.
        for lane in {queue, found.current_queue}:
            await self._jobs.remove(lane, id, keyed=found.may_wait_for_key)
        await self._dead.purge(queue, id)
        await self._event_log.forget(queue, id)
        await self._streams.purge(self._subjects.bucket("ids"), self._subjects.key("ids", f"id.{id}"))
