"""The middleware around a submit: it prepares jobs before they are stored, and gets reports afterwards.

A process that submits nothing, such as a query of the command line, imports this module and not
`jsq.middleware`, which needs the classes of a worker.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from jsq.errors import BadOption
from jsq.model.job import Job
from jsq.model.options import check_headers
from jsq.model.outcome import drop_caller_frames

log = logging.getLogger("jsq.job")

T = TypeVar("T")


class SubmitMiddleware(Protocol):
    """The methods of a `jsq.Middleware` that run where a job is submitted."""

    def submitting(self, job: Job) -> Job: ...

    def submitting_many(self, jobs: Sequence[Job]) -> Sequence[Job]: ...

    def submitted(self, job: Job) -> None: ...

    def submit_ended(self, jobs: Sequence[Job], error: BaseException | None) -> None: ...


class MiddlewareOfQueues(Protocol):
    """The middleware of an App and of its queues."""

    def find(self, queue: str) -> tuple[SubmitMiddleware, ...]: ...


class SubmittingApp(Protocol):
    """The part of an App that a submit uses."""

    @property
    def middleware(self) -> MiddlewareOfQueues: ...


async def submit_inside(
    middleware: tuple[SubmitMiddleware, ...],
    jobs: Sequence[Job],
    store: Callable[[Sequence[Job]], Awaitable[T]],
) -> T:
    """Store jobs as their middleware returns them, the outermost first. Returns what `store` returns.

    Raises the errors of `store` and of the methods, and `BadOption` for a job that they may not make.
    """
    error: BaseException | None = None
    prepared = jobs
    try:
        for one in middleware:
            prepared = changed_jobs(one, prepared)
        return await store(prepared)
    except BaseException as raised:
        error = raised
        raise
    finally:
        report_ended(middleware, prepared, error)


def changed_jobs(middleware: SubmitMiddleware, jobs: Sequence[Job]) -> Sequence[Job]:
    """The jobs as one middleware returns them. Raises its errors, and `BadOption` for other jobs."""
    changed = [middleware.submitting(jobs[0])] if len(jobs) == 1 else middleware.submitting_many(jobs)
    if not isinstance(changed, Sequence) or len(changed) != len(jobs):
        rule = "must return a list of as many jobs as it is given"
        raise BadOption(f"submitting_many of {type(middleware).__name__}", changed, rule)
    for job, new in zip(jobs, changed, strict=True):
        same = isinstance(new, Job) and (new.id, new.task, new.queue) == (job.id, job.task, job.queue)
        if not same:
            rule = "must return the job with the same id, task and queue"
            raise BadOption(f"submitting of {type(middleware).__name__}", new, rule)
        if new.headers is not job.headers:
            check_headers(new.headers)
    return changed


def report_submitted(middleware: tuple[SubmitMiddleware, ...], jobs: Iterable[Job]) -> None:
    """Call `submitted` for stored jobs. An error is logged: the jobs are stored."""
    for job in jobs:
        for one in middleware:
            try:
                one.submitted(job)
            except Exception as error:  # a user's middleware may raise anything
                log_failed(one, "submitted", job, error)


def report_ended(
    middleware: tuple[SubmitMiddleware, ...], jobs: Sequence[Job], error: BaseException | None
) -> None:
    """Call `submit_ended`, of the innermost first. Its errors are logged."""
    for one in reversed(middleware if jobs else ()):
        try:
            one.submit_ended(jobs, error)
        except Exception as failure:  # a user's middleware may raise anything
            log_failed(one, "submit_ended", jobs[0], failure)


def log_failed(middleware: SubmitMiddleware, method: str, job: Job, error: BaseException) -> None:
    """Log the exception of a middleware that changes nothing."""
    about: Mapping[str, object] = {
        "job": job.id,
        "task": job.task,
        "middleware": type(middleware).__name__,
        "method": method,
    }
    drop_caller_frames(error)
    log.error("middleware failed", exc_info=error, extra=about)
