"""`jsq job`: list jobs, wait for them, cancel, retry, reschedule and remove them."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, TypeVar

import typer

from jsq.cli.errors import JOB_FAILED
from jsq.cli.filters import JOB_COLUMNS, BulkAction, BulkOptions, JobFilterOptions, act_on_jobs
from jsq.cli.job_edit import edit_job, move_job
from jsq.cli.options import Group, JobId
from jsq.cli.parsing import read_duration, read_moment
from jsq.cli.session import Session, print_traceback
from jsq.client.client import Client
from jsq.client.handle import JobHandle
from jsq.errors import JobFailed, UsageError
from jsq.model.attempts import JobAttempt
from jsq.model.event import FINAL_STATES
from jsq.model.job import JobRecord
from jsq.model.job_filter import DELAYED_STATES, UNFINISHED_STATES

T = TypeVar("T")

QueueOfId = Annotated[
    str,
    typer.Option(
        metavar="QUEUE", show_default=False, help="the job's queue, if you may read only that one [any]"
    ),
]
JobIds = Annotated[list[str], typer.Argument(metavar="ID", help="the jobs' ids")]
SomeIds = Annotated[list[str] | None, typer.Argument(metavar="ID", help="the jobs' ids")]
Timeout = Annotated[
    float | None,
    typer.Option(parser=read_duration, metavar="DURATION", help="the longest wait [no limit]"),
]

CANCEL = BulkAction(
    "cancel",
    "cancelled",
    UNFINISHED_STATES,
    JobHandle.cancel,
    lambda client, which: client.jobs.list_open(**which),
    lambda client, which: client.jobs.cancel_many(**which),
)
RETRY = BulkAction(
    "retry",
    "retried",
    ("failed",),
    JobHandle.retry,
    lambda client, which: client.jobs.list(**which, limit=None),
    lambda client, which: client.jobs.retry_many(**which),
)
RETRY_AGAIN = BulkAction(
    "run again",
    "retried",
    FINAL_STATES,
    lambda handle: handle.retry(again=True),
    lambda client, which: client.jobs.list(**which, limit=None),
    lambda client, which: client.jobs.retry_many(**which, again=True),
)
REMOVE = BulkAction(
    "remove",
    "removed",
    FINAL_STATES,
    JobHandle.remove,
    lambda client, which: client.jobs.list(**which, limit=None),
    lambda client, which: client.jobs.remove_many(**which),
)
PROMOTE = BulkAction(
    "promote",
    "promoted",
    DELAYED_STATES,
    JobHandle.promote,
    lambda client, which: client.jobs.list_open(**which),
    lambda client, which: client.jobs.promote_many(**which),
)

job = Group("List, get and await jobs; cancel, retry, remove them.")


@job.adds("ls")
def ls(
    session: Session,
    *,
    jobs: JobFilterOptions,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="how many of the newest jobs")] = 100,
) -> None:
    """List the newest jobs, the newest last.

    Filters go together. --arg finds jobs whose arguments are known; see `keep_arguments`.

    \b
    jsq job ls --task add --state failed,expired --since 2h
    jsq job ls --tag nightly --arg user.id=5 -o name
    """
    which = jobs.filter()
    session.printer.all(session.run(lambda client: client.jobs.list(**which, limit=limit)), JOB_COLUMNS)


@job.adds("get")
def get(session: Session, id: JobId, queue: QueueOfId = "*") -> None:
    """Show the record of a job, and its attempts.

    \b
    jsq job get order-17
    """
    found, attempts = session.run(on(id, status_and_attempts, queue))
    times = {"ended": found.ended, "waited": found.waited, "ran": found.ran}
    session.printer.one(
        found, more={**times, "attempts": attempts}, rows={"attempts": [*map(attempt_line, attempts)]}
    )


@job.adds("checkpoint")
def checkpoint(session: Session, id: JobId, queue: QueueOfId = "*") -> None:
    """Print the last checkpoint of a job as JSON.

    It is null if the job has none.

    \b
    jsq job checkpoint import-2030
    """
    session.printer.value(session.run(on(id, JobHandle.checkpoint, queue)))


@job.adds("wait")
def wait(session: Session, id: JobId, queue: QueueOfId = "*", timeout: Timeout = None) -> int:
    """Wait for a job to end, and show its record.

    Exits with 3 unless it succeeded.

    \b
    jsq job wait order-17 --timeout 5m
    """
    found = session.run(on(id, lambda handle: handle.wait(timeout), queue))
    session.printer.one(found)
    return 0 if found.state == "succeeded" else JOB_FAILED


@job.adds("result")
def result(session: Session, id: JobId, queue: QueueOfId = "*", timeout: Timeout = None) -> None:
    """Wait for a job to end, and print its result.

    The result is JSON. Exits with 3 if the job failed, expired or was cancelled.

    \b
    jsq job result order-17 --timeout 5m
    """
    print_result(session, lambda: session.run(on(id, lambda handle: handle.result(timeout), queue)))


@job.adds("cancel")
def cancel(session: Session, ids: SomeIds = None, *, jobs: JobFilterOptions, bulk: BulkOptions) -> int:
    """Cancel jobs, running ones too.

    Returns when that is certain.

    \b
    jsq job cancel order-17 order-18
    jsq job cancel --queue mail --tag draft --dry-run
    """
    return CANCEL.run(session, ids, jobs, bulk)


@job.adds("retry")
def retry(
    session: Session,
    ids: SomeIds = None,
    *,
    again: Annotated[
        bool, typer.Option("--again", help="also jobs that succeeded, expired or were cancelled")
    ] = False,
    jobs: JobFilterOptions,
    bulk: BulkOptions,
) -> int:
    """Run failed jobs again, with all their retries.

    With --again, run any job again that has ended, from the arguments in its record.

    \b
    jsq job retry order-17
    jsq job retry --task send --since 1d --yes
    jsq job retry report-2030 --again
    """
    return (RETRY_AGAIN if again else RETRY).run(session, ids, jobs, bulk)


@job.adds("rm")
def rm(session: Session, ids: SomeIds = None, *, jobs: JobFilterOptions, bulk: BulkOptions) -> int:
    """Remove jobs that have ended.

    That removes their records, results, checkpoints and dead letters, and frees their ids.

    \b
    jsq job rm order-17
    jsq job rm --state cancelled,expired --until 7d --dry-run
    """
    return REMOVE.run(session, ids, jobs, bulk)


@job.adds("promote")
def promote(session: Session, ids: SomeIds = None, *, jobs: JobFilterOptions, bulk: BulkOptions) -> int:
    """Run jobs now that are due later.

    These are delayed ones, and those that wait for a retry.

    \b
    jsq job promote order-17
    jsq job promote --queue mail --state retrying
    """
    return PROMOTE.run(session, ids, jobs, bulk)


@job.adds("reschedule")
def reschedule(
    session: Session,
    ids: JobIds,
    delay: Annotated[
        float | None, typer.Option(parser=read_duration, metavar="DURATION", help="start after 90, 5m, 2d")
    ] = None,
    at: Annotated[
        datetime | None, typer.Option(parser=read_moment, metavar="MOMENT", help="start at 2030-12-31T18:00Z")
    ] = None,
    queue: QueueOfId = "*",
) -> int:
    """Start jobs that are due later at another moment.

    \b
    jsq job reschedule order-17 --delay 5m
    """
    if (delay is None) == (at is None):
        raise UsageError("give --delay or --at, one of the two")
    return act_on_jobs(session, ids, lambda handle: handle.reschedule(delay=delay, at=at), queue)


async def status_and_attempts(handle: JobHandle[Any]) -> tuple[JobRecord, list[JobAttempt]]:
    """The record of a job, and its attempts; none for a job that has not begun."""
    found = await handle.status()
    return found, await handle.attempts() if found.attempt or found.started else []


def attempt_line(attempt: JobAttempt) -> str:
    """An attempt for people."""
    words = [str(attempt.number), attempt.state, attempt.worker]
    if attempt.started is not None:
        words.append(f"{attempt.started:%Y-%m-%d %H:%M:%S}Z")
    if attempt.ran is not None:
        words.append(f"{attempt.ran:.3f} s")
    words += [attempt.reason, attempt.error.partition("\n")[0]]
    return "  ".join(word for word in words if word)


job.add("edit", edit_job)
job.add("move", move_job)


def on(
    id: str, call: Callable[[JobHandle[Any]], Awaitable[T]], queue: str = "*"
) -> Callable[[Client], Awaitable[T]]:
    """A call of a job's handle, as work for a client."""

    async def work(client: Client) -> T:
        return await call(client.jobs.handle(id, queue))

    return work


def print_result(session: Session, get: Callable[[], object]) -> None:
    """Print the result of a task; with --verbose, the traceback of one that failed."""
    try:
        session.printer.value(get())
    except JobFailed as failed:
        print_traceback(session, failed)
        raise
