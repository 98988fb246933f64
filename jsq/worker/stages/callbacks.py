"""Submits what is owed after a failure: callbacks, and the fallback in a dead job's place."""

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from jsq.errors import JsqError
from jsq.model.callback import CallbackKind, callback_id, encode_failure, failure_of, pending_callbacks
from jsq.model.event import Event
from jsq.model.job import Job
from jsq.task import Declaration
from jsq.worker.resources import Resources

log = logging.getLogger("jsq.job")


async def submit_owed(
    tools: Resources, job: Job, event: Event, terms: Declaration, *, holds: Callable[[], bool]
) -> None:
    """Submit what an event owes; done again, nothing is doubled.

    What can succeed later is raised, so that the delivery comes back: `QueueFull`, and what the server does
    not answer. What never can, as a queue that this login may not write to, is told and passed over: the job
    itself is not to hang on it.
    """
    for kind, name in pending_callbacks(event, job, terms.callbacks):
        about = {"job": job.id, "task": job.task, "callback": name, "kind": kind}
        task = tools.app.known(name)
        if task is None:  # `App.check` would have told of it
            log.error("callback not submitted", extra={**about, "why": "no task of that name is known here"})
            continue
        order = ordered(kind, job, event, task.declaration)
        try:
            await tools.broker.jobs.put_once(order, until=holds)
        except JsqError as error:
            if error.retryable:
                raise
            log.error("callback not submitted", extra={**about, "why": str(error)})
        else:
            log.info("callback submitted", extra={**about, "id": order.id})


def ordered(kind: CallbackKind, job: Job, event: Event, declared: Declaration) -> Job:
    """The job that is submitted for another's failure."""
    order = Job(
        callback_id(job.id, kind, event.token),
        declared.name,
        declared.queue,
        declared.priority,
        headers=job.headers,
        tags=declared.tags,
    )
    if kind == "fallback":
        # It is the same call, which is to end by the same moment, unless its own task says otherwise.
        deadline = job.deadline if declared.deadline is None else None
        tags = tuple(job.tags) or declared.tags
        return replace(
            order, arguments=job.arguments, tags=tags, deadline=deadline, callback_of=job.callback_of
        )
    return replace(order, arguments=encode_failure(failure_of(job, event)), callback_of=job.id)


def still_waits(tools: Resources, job: Job, event: Event, at: datetime) -> bool:
    """Whether what an event of that moment owes is left to a worker that knows the job's task."""
    if not event.callbacks_pending or tools.app.known(job.task) is not None:
        return False
    waited = (tools.broker.wire.clock.moment() - at).total_seconds()
    if waited >= tools.settings.unknown_task_for:
        log.error("callbacks not submitted", extra={"job": job.id, "task": job.task, "why": "unknown task"})
        return False
    return True
