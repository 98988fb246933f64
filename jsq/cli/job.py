"""`jsq job`: list jobs, wait for them, cancel, retry, reschedule and remove them."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, TypeVar

import typer

from jsq.cli.errors import JOB_FAILED
from jsq.cli.filters import BulkAction, BulkOptions, JobFilterOptions, act_on_jobs, list_jobs
from jsq.cli.job_edit import edit_job, move_job
from jsq.cli.job_get import job_get
from jsq.cli.job_view import print_job
from jsq.cli.options import Group, JobId, QueueOfId
from jsq.cli.parsing import read_duration, read_moment
from jsq.cli.session import Session, print_traceback
from jsq.cli.waiting import waiting_shown
from jsq.client.client import Client
from jsq.client.handle import JobHandle
from jsq.errors import JobFailed, UsageError
from jsq.model.job import JobRecord
from jsq.model.job_filter import DELAYED_STATES, UNFINISHED_STATES
from jsq.model.revision import FINAL_STATES

T = TypeVar("T")

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

job = Group("List, get and await jobs; cancel, retry or remove them.")


@job.adds("ls")
def ls(
    session: Session,
    *,
    jobs: JobFilterOptions,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, metavar="N", help="how many of the newest jobs")
    ] = 100,
    results: Annotated[
        bool, typer.Option("--results", help="include the results, except in a table")
    ] = False,
) -> None:
    """List the newest jobs, the newest last.

    A job must match all filters. --arg matches only jobs whose records hold their arguments.

    \b
    jsq job ls --task add --state failed,expired --since 2h
    jsq job ls --tag nightly --arg user.id=5 -o name
    jsq job ls --state succeeded --results -o jsonl
    """
    which = jobs.filter()
    found = session.run(lambda client: client.jobs.list(**which, limit=limit))
    list_jobs(session, found, omit="" if results else "result")


job.add_command("get", job_get)


@job.adds("checkpoint")
def checkpoint(session: Session, id: JobId, queue: QueueOfId = "*") -> None:
    """Print the last checkpoint of a job as JSON.

    A job without a checkpoint has null.

    \b
    jsq job checkpoint import-2030
    """
    session.printer.value(session.run(on(id, JobHandle.checkpoint, queue)))


@job.adds("wait")
def wait(session: Session, id: JobId, queue: QueueOfId = "*", timeout: Timeout = None) -> int:
    """Wait for a job to end, and show it. Exits with 3 unless the job succeeded.

    \b
    jsq job wait order-17 --timeout 5m
    """

    async def wait_for_end(client: Client) -> JobRecord:
        async with waiting_shown(client, id, queue):
            return await client.jobs.handle(id, queue).wait(timeout)

    found = session.run(wait_for_end)
    print_job(session.printer, found)
    return 0 if found.state == "succeeded" else JOB_FAILED


@job.adds("result")
def result(session: Session, id: JobId, queue: QueueOfId = "*", timeout: Timeout = None) -> None:
    """Wait for a job to end, and print its result as JSON.

    Exits with 3 if the job failed, expired or was cancelled.

    \b
    jsq job result order-17 --timeout 5m
    """

    async def wait_for_result(client: Client) -> Any:
        async with waiting_shown(client, id, queue):
            return await client.jobs.handle(id, queue).result(timeout)

    print_result(session, lambda: session.run(wait_for_result))


@job.adds("cancel")
def cancel(session: Session, ids: SomeIds = None, *, jobs: JobFilterOptions, bulk: BulkOptions) -> int:
    """Cancel jobs, also running ones.

    Returns when the server has stored the cancellations.

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

    --again also runs jobs that succeeded, expired or were cancelled, with the arguments in their records.

    \b
    jsq job retry order-17
    jsq job retry --task send --since 1d --yes
    jsq job retry report-2030 --again
    """
    return (RETRY_AGAIN if again else RETRY).run(session, ids, jobs, bulk)


@job.adds("rm")
def rm(session: Session, ids: SomeIds = None, *, jobs: JobFilterOptions, bulk: BulkOptions) -> int:
    """Remove jobs that have ended.

    Their records, results, checkpoints and dead letters are deleted. Their ids can be submitted again.

    \b
    jsq job rm order-17
    jsq job rm --state cancelled,expired --until 7d --dry-run
    """
    return REMOVE.run(session, ids, jobs, bulk)


@job.adds("promote")
def promote(session: Session, ids: SomeIds = None, *, jobs: JobFilterOptions, bulk: BulkOptions) -> int:
    """Run jobs now that are due later.

    A job is due later if it was submitted with a delay, or waits for a retry or after a snooze.

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
    """Change when jobs that are due later start.

    \b
    jsq job reschedule order-17 --delay 5m
    """
    if (delay is None) == (at is None):
        raise UsageError("give --delay or --at, one of the two")
    return act_on_jobs(session, ids, lambda handle: handle.reschedule(delay=delay, at=at), queue)


job.add("edit", edit_job)
job.add("move", move_job)


def on(
    id: str, call: Callable[[JobHandle[Any]], Awaitable[T]], queue: str = "*"
) -> Callable[[Client], Awaitable[T]]:
    """The call of a method of a job's handle, as work for a client."""

    async def work(client: Client) -> T:
        return await call(client.jobs.handle(id, queue))

    return work


def print_result(session: Session, get: Callable[[], object]) -> None:
    """Print the result of a task; with --verbose, also the traceback of a failed one."""
    try:
        session.printer.value(get())
    except JobFailed as failed:
        print_traceback(session, failed)
        raise
