"""Unknown tasks: another worker that knows the task gets the job.

If no worker knows the task, the job waits for workers of a newer release, and fails if none runs it in time.
"""

from datetime import datetime

from jsq.declaration import Declaration
from jsq.errors import UnknownTask
from jsq.model.job import Job
from jsq.model.outcome import Failed, Outcome, TryAgain, describe_error
from jsq.task import AnyTask
from jsq.worker.stages.base import LEAVE, RUN, Admission, Proceed, Stage
from jsq.worker.state import AttemptState

MIN_AND_MAX_DELAY = (1.0, 30.0)
"""The least and the most seconds before a job of an unknown task is offered again."""


class UnknownTaskStage(Stage):
    """Hands a job whose task this worker does not know to a worker that knows it.

    If there is none, snoozes the job, for up to `unknown_task_for` seconds.
    """

    def applies(self, job: Job, task: AnyTask | None, options: Declaration) -> bool:
        return task is None

    async def admit(self, attempt: AttemptState) -> Admission:
        unknown = attempt.resources.unknown_tasks
        return LEAVE if await unknown.offer(attempt.delivery, attempt.job.task) else RUN

    async def perform(self, attempt: AttemptState, proceed: Proceed) -> Outcome:
        job, broker = attempt.job, attempt.resources.broker
        error = UnknownTask(job.task)
        now = broker.wire.clock.moment()
        last = await broker.records.last_of_state(job.queue, job.id, "snoozed")
        snoozed = (
            last is not None
            and 0 < job.previous_sequence <= last.sequence
            and last.revision.reason == "unknown_task"
        )
        since = datetime.fromisoformat(last.revision.text) if last is not None and snoozed else now
        waited = (now - since).total_seconds()
        left = attempt.resources.settings.unknown_task_for - waited
        if left <= 0:
            return Failed("unknown_task", describe_error(error))
        delay = min(max(MIN_AND_MAX_DELAY[0], waited), MIN_AND_MAX_DELAY[1], left)
        attempt.resources.unknown_tasks.remember(job.queue, job.id, job.task, delay)
        return TryAgain(
            delay,
            describe_error(error),
            counts_as_failure=False,
            reason="unknown_task",
            text=since.isoformat(),
        )
