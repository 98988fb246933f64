"""Unique keys: a job may wait for the end of another one with the same key."""

from jsq.declaration import Declaration
from jsq.model.job import Job
from jsq.model.revision import FINAL_STATES, Revision
from jsq.task import AnyTask
from jsq.worker.stages.base import Requeue, Stage
from jsq.worker.state import AttemptState


class UniqueStage(Stage):
    """Submits the pending job when the one that holds the key has ended."""

    def applies(self, job: Job, task: AnyTask | None, options: Declaration) -> bool:
        return bool(job.unique)

    async def finish(self, attempt: AttemptState, event: Revision) -> Requeue | None:
        if event.state in FINAL_STATES:
            await attempt.resources.broker.unique.release_successor(attempt.job.unique, attempt.job.id)
        return None
