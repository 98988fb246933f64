"""The argument of a callback: the failure of a job, with the arguments of that job."""

from typing import Any

from pydantic_core import from_json, to_json

from jsq.model.callback import Failure
from jsq.model.job import Job
from jsq.model.revision import Revision

MAX_CALLBACK_ARGUMENTS = 65_536
"""Bytes of the arguments of a job that a callback receives; of larger ones it receives none."""


def failure_of(job: Job, event: Revision) -> Failure:
    """The argument of a callback that a failure submits."""
    return Failure(
        job.id,
        job.task,
        job.queue,
        event.attempt,
        event.error,
        event.traceback,
        event.reason,
        event.due,
        event.fallback,
        event.tags,
        callback_arguments(job),
    )


def callback_arguments(job: Job) -> Any:
    """The arguments of a job; None if they are large, not JSON, or too deep to be nested in other JSON."""
    if len(job.arguments) > MAX_CALLBACK_ARGUMENTS:
        return None
    try:
        found = from_json(job.arguments)
        from_json(b"[[[" + job.arguments + b"]]]")  # as deep as in a callback's own arguments
    except ValueError:
        return None
    return found


def encode_failure(failure: Failure) -> bytes:
    """Encode a failure as the arguments of a callback."""
    return to_json([[failure], {}], inf_nan_mode="constants")
