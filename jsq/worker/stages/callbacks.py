"""Callbacks: jobs that a failure submits, and the fallback that runs instead of a dead job."""

import logging
from dataclasses import replace
from datetime import datetime

from jsq.codec.callbacks import encode_failure, failure_of
from jsq.declaration import Declaration
from jsq.errors import JsqError
from jsq.model.callback import CallbackKind, callback_id, pending_callbacks, with_pending_callbacks
from jsq.model.job import Job
from jsq.model.revision import Revision
from jsq.worker.stages.base import Requeue, Stage
from jsq.worker.state import AttemptState

log = logging.getLogger("jsq.job")


class CallbackStage(Stage):
    """Submits the callbacks of an event. The event lists the pending ones, so a crash loses none."""

    exceptional = True

    def amend(self, attempt: AttemptState, event: Revision) -> Revision:
        """Record which callbacks are pending. A worker that does not know the task assumes that some are."""
        if attempt.task is None and event.state == "failed" and event.reason != "unknown_task":
            return replace(event, callbacks_pending=True)
        return with_pending_callbacks(event, attempt.job, attempt.options.callbacks)

    async def finish(self, attempt: AttemptState, event: Revision) -> Requeue | None:
        if not event.callbacks_pending:
            return None
        at = attempt.resources.broker.wire.clock.moment() if attempt.last is None else attempt.last.at
        if waits_for_task(attempt, at):
            delay = attempt.resources.timings.newer_release
            return Requeue(delay, "this worker does not know the callbacks of the job")
        await submit_callbacks(attempt, event)
        return None


async def submit_callbacks(attempt: AttemptState, event: Revision) -> None:
    """Submit the callbacks of an event; a second call submits nothing twice.

    Raises errors that may pass (`QueueFull`, no answer of the server), so that the delivery is repeated. A
    final error, such as a queue that this login may not write to, is logged: the job does not depend on it.
    """
    job, resources = attempt.job, attempt.resources
    # The event names no fallback if a worker that does not know the task recorded it.
    event = with_pending_callbacks(event, job, attempt.options.callbacks)
    for kind, name in pending_callbacks(event, job, attempt.options.callbacks):
        about = {"job": job.id, "task": job.task, "callback": name, "kind": kind}
        task = resources.app.known(name)
        if task is None:  # `App.check` rejects such an app
            log.error("callback not submitted", extra={**about, "why": "no task of that name is known here"})
            continue
        callback = callback_job(kind, job, event, task.declaration)
        try:
            await resources.broker.job_writer.enqueue_once(callback, while_=attempt.has_lease)
        except JsqError as error:
            if error.retryable:
                raise
            log.error("callback not submitted", extra={**about, "why": str(error)})
        else:
            log.info("callback submitted", extra={**about, "id": callback.id})


def callback_job(kind: CallbackKind, job: Job, event: Revision, declared: Declaration) -> Job:
    """The job that a failure submits."""
    callback = Job(
        callback_id(job.id, kind, event.token),
        declared.name,
        declared.queue,
        declared.priority,
        headers=job.headers,
        tags=declared.tags,
    )
    if kind == "fallback":
        # The same call, with the same deadline unless its own task declares one.
        deadline = job.deadline if declared.deadline is None else None
        tags = tuple(job.tags) or declared.tags
        return replace(
            callback, arguments=job.arguments, tags=tags, deadline=deadline, callback_of=job.callback_of
        )
    return replace(callback, arguments=encode_failure(failure_of(job, event)), callback_of=job.id)


def waits_for_task(attempt: AttemptState, at: datetime) -> bool:
    """Whether a worker that knows the task must submit the callbacks of an event stored `at` that time."""
    job, resources = attempt.job, attempt.resources
    if attempt.task is not None:
        return False
    waited = (resources.broker.wire.clock.moment() - at).total_seconds()
    if waited >= resources.settings.unknown_task_for:
        log.error("callbacks not submitted", extra={"job": job.id, "task": job.task, "why": "unknown task"})
        return False
    return True
