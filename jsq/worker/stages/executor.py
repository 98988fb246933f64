"""The executor that a submit names. A submit by name cannot know whether the function can run there."""

from jsq.app import check_reach
from jsq.declaration import Declaration
from jsq.errors import BadOption
from jsq.model.job import Job
from jsq.model.outcome import Failed, Outcome, describe_error
from jsq.task import AnyTask
from jsq.worker.stages.base import Proceed, Stage
from jsq.worker.state import AttemptState


class ExecutorStage(Stage):
    """Fails a job whose submit names an executor that cannot run its function."""

    def applies(self, job: Job, task: AnyTask | None, options: Declaration) -> bool:
        return task is not None and isinstance(task_on_executor(task, job), BadOption)

    async def perform(self, attempt: AttemptState, proceed: Proceed) -> Outcome:
        assert attempt.task is not None, "only jobs of known tasks have this stage"
        found = task_on_executor(attempt.task, attempt.job)
        if isinstance(found, BadOption):
            return Failed("bad_arguments", describe_error(found))
        return await proceed()


def task_on_executor(task: AnyTask, job: Job) -> AnyTask | BadOption:
    """The task on the executor that the submit of a job names, or the reason why it cannot run there."""
    executor = job.rare.executor if job.rare is not None else None
    if executor is None:
        return task
    try:
        found = task.on_executor(executor)
        check_reach(found, task)
    except BadOption as error:
        return error
    return found
