"""Hooks: a task with middleware or dependencies runs inside them, and its middleware learns of its outcomes.

The methods of a middleware run after the outcome is recorded, and before the delivery is settled. After a
crash between the two, another worker calls them again, with an error that is rebuilt from the record.
"""

import asyncio
import inspect

from pydantic_core import from_json

from jsq.client.submit_hooks import log_failed
from jsq.declaration import Declaration
from jsq.errors import BadResult, JobExpired, JobFailed
from jsq.middleware import Middleware
from jsq.model.job import Job
from jsq.model.outcome import Expired, Failed, Outcome, Quarantined, Succeeded, TryAgain
from jsq.model.revision import Revision
from jsq.task import AnyTask
from jsq.worker.stages.base import Proceed, Requeue, Stage
from jsq.worker.state import AttemptState

METHOD_SECONDS = 30.0
"""Seconds that one method of a middleware may take after an outcome. The slot is taken meanwhile."""


class HookStage(Stage):
    """Runs the function of a task inside its hooks, and calls the methods of its middleware.

    Between the run of an attempt and its end, `_outcomes` holds the outcome with the result or the exception.
    """

    def __init__(self) -> None:
        self._outcomes: dict[AttemptState, Outcome] = {}

    def applies(self, job: Job, task: AnyTask | None, options: Declaration) -> bool:
        return task is not None and task.hooks_on(job.queue) is not None

    async def perform(self, attempt: AttemptState, proceed: Proceed) -> Outcome:
        if attempt.task is not None:
            attempt.function.hooks = attempt.task.hooks_on(attempt.job.queue)
        outcome = await proceed()
        self._outcomes[attempt] = outcome
        return outcome

    async def finish(self, attempt: AttemptState, event: Revision) -> Requeue | None:
        hooks = attempt.task.hooks_on(attempt.job.queue) if attempt.task is not None else None
        outcome = self._outcomes.get(attempt)
        for one in reversed(hooks.middleware if hooks is not None else ()):
            await report_outcome_to(one, attempt, event, outcome)
        return None

    async def close(self, attempt: AttemptState) -> None:
        self._outcomes.pop(attempt, None)


async def report_outcome_to(
    middleware: Middleware, attempt: AttemptState, event: Revision, outcome: Outcome | None
) -> None:
    """Call the method of a middleware for an outcome, then `settled`."""
    job = attempt.job
    match event.state:
        case "succeeded":
            await call_method(middleware, "succeeded", job, job_result(attempt, outcome))
        case "failed" | "expired":
            await call_method(middleware, "failed", job, error_of(job, event, outcome))
        case "retrying":
            await call_method(middleware, "retrying", job, error_of(job, event, outcome))
        case "cancelled":
            await call_method(middleware, "cancelled", job)
    await call_method(middleware, "settled", job)


async def call_method(middleware: Middleware, method: str, job: Job, *more: object) -> None:
    """Call a method of a middleware. Its error is logged: the outcome is recorded."""
    try:
        async with asyncio.timeout(METHOD_SECONDS):
            found = getattr(middleware, method)(job, *more)
            if inspect.isawaitable(found):
                await found
    except asyncio.CancelledError as error:
        running = asyncio.current_task()
        if running is None or running.cancelling():
            raise  # the worker ends this attempt
        log_failed(middleware, method, job, error)
    except (Exception, SystemExit) as error:  # a user's middleware may raise anything
        log_failed(middleware, method, job, error)


def job_result(attempt: AttemptState, outcome: Outcome | None) -> object:
    """The result of a job, as its submitter gets it; None if the record has none."""
    if attempt.task is None:
        return None
    try:
        if isinstance(outcome, Succeeded):
            return attempt.task.signature.unpack_result(from_json(outcome.result)["result"])
        last = attempt.last
        if last is not None and last.revision.has_result and not last.revision.separate_result:
            return attempt.task.signature.unpack_result(last.revision.result)
    except (BadResult, ValueError):  # it was dropped, or another release of the task returned it
        return None
    return None


def error_of(job: Job, event: Revision, outcome: Outcome | None) -> BaseException:
    """The exception of an attempt: itself if the function ran here, else one rebuilt from the record."""
    match outcome:
        case Failed(fault=fault) | TryAgain(fault=fault) | Expired(cause=fault) | Quarantined(fault=fault):
            raised = fault.exception
        case _:
            raised = None
    if event.state == "expired":
        expired = JobExpired(job.id, event.error)
        expired.__cause__ = raised
        return expired
    if raised is not None:
        return raised
    return JobFailed(job.id, event.reason or "error", event.error, event.traceback)
