"""`jsq job`: look at jobs, wait for them, cancel, retry and move them."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, TypeVar

import typer

from jsq.cli.errors import JOB_FAILED
from jsq.cli.filters import (
    COLUMNS,
    Args,
    Queue,
    Since,
    States,
    Tags,
    Tasks,
    Until,
    act_on,
    bulk,
    narrowed,
    said,
)
from jsq.cli.parsing import read_duration, read_moment
from jsq.cli.session import Session, command, explain, group
from jsq.client.client import Client
from jsq.client.handle import JobHandle
from jsq.errors import JobFailed, UsageError
from jsq.model.event import FINAL_STATES
from jsq.model.job_filter import DELAYED_STATES

T = TypeVar("T")

Id = Annotated[str, typer.Argument(metavar="ID", help="the job's id")]
Of = Annotated[
    str,
    typer.Option(
        metavar="NAME", show_default=False, help="the job's queue, where you may see only that [any]"
    ),
]
Ids = Annotated[list[str], typer.Argument(metavar="ID", help="the jobs' ids")]
Timeout = Annotated[
    float | None, typer.Option(parser=read_duration, metavar="DURATION", help="how long to wait [for ever]")
]

job = group("List jobs, look at one, wait; cancel, retry, move, remove them.")


@job.command()
@command
def ls(
    session: Session,
    queue: Queue = None,
    task: Tasks = None,
    state: States = None,
    tag: Tags = None,
    since: Since = None,
    until: Until = None,
    arg: Args = None,
    limit: Annotated[int, typer.Option(min=1, help="the newest so many")] = 100,
) -> None:
    """List the newest jobs, the newest last.

    What is said of them goes together: `jsq job ls --task add --state failed --since 2h`. An --arg finds jobs
    that have not ended and failed ones: the arguments of the others are not kept.
    """
    which = said(queue, task, state, tag, since, until, arg)
    session.printer.all(session.run(lambda client: client.jobs.list(**which, limit=limit)), COLUMNS)


@job.command()
@command
def get(session: Session, id: Id, queue: Of = "*") -> None:
    """Tell what is known of a job."""
    session.printer.one(session.run(on(id, JobHandle.status, queue)))


@job.command()
@command
def checkpoint(session: Session, id: Id, queue: Of = "*") -> None:
    """Print the checkpoint that a job has kept last.

    It is a JSON value: null where there is none.
    """
    session.printer.value(session.run(on(id, JobHandle.checkpoint, queue)))


@job.command()
@command
def wait(session: Session, id: Id, queue: Of = "*", timeout: Timeout = None) -> int:
    """Wait for a job to end, and tell what is known of it. Exits with 3 unless it succeeded."""
    found = session.run(on(id, lambda handle: handle.wait(timeout), queue))
    session.printer.one(found)
    return 0 if found.state == "succeeded" else JOB_FAILED


@job.command()
@command
def result(session: Session, id: Id, queue: Of = "*", timeout: Timeout = None) -> None:
    """Wait for a job to end, and print its result as JSON. Exits with 3 if it failed or was cancelled."""
    print_result(session, lambda: session.run(on(id, lambda handle: handle.result(timeout), queue)))


cancel = bulk(
    "cancel",
    """Cancel jobs, running ones too; returns when that is certain.

    Name their ids, or say which: what is said of them goes together.

    \b
    jsq job cancel order-17 order-18
    jsq job cancel --queue mail --tag draft --dry-run
    """,
    "cancelled",
    by_id=JobHandle.cancel,
    find=lambda client, which: client.jobs.list_open(**which),
    act=lambda client, which: client.jobs.cancel_many(**which),
)
retry = bulk(
    "retry",
    """Run failed jobs again, with all their retries.

    Name their ids, or say which: what is said of them goes together.
    """,
    "retried",
    by_id=JobHandle.retry,
    find=lambda client, which: client.jobs.list(**narrowed(which, ("failed",)), limit=None),
    act=lambda client, which: client.jobs.retry_many(**which),
)
rm = bulk(
    "remove",
    """Remove jobs that have ended, with all that is left of them.

    That is their records and results, what they keep, their dead letters, the claim on their ids.

    Name their ids, or say which: what is said of them goes together.
    """,
    "removed",
    by_id=JobHandle.remove,
    find=lambda client, which: client.jobs.list(**narrowed(which, FINAL_STATES), limit=None),
    act=lambda client, which: client.jobs.remove_many(**which),
)
promote = bulk(
    "promote",
    """Have jobs run now that are due later.

    These are delayed ones, and those that wait to be tried again.

    Name their ids, or say which: what is said of them goes together.
    """,
    "promoted",
    by_id=JobHandle.promote,
    find=lambda client, which: client.jobs.list_open(**narrowed(which, DELAYED_STATES)),
    act=lambda client, which: client.jobs.promote_many(**which),
)
for name, act in {"cancel": cancel, "retry": retry, "rm": rm, "promote": promote}.items():
    job.command(name)(command(act))


@job.command()
@command
def move(
    session: Session,
    ids: Ids,
    delay: Annotated[
        float | None, typer.Option(parser=read_duration, metavar="DURATION", help="start after 90, 5m, 2d")
    ] = None,
    at: Annotated[
        datetime | None, typer.Option(parser=read_moment, metavar="MOMENT", help="start at 2030-12-31T18:00Z")
    ] = None,
    queue: Of = "*",
) -> int:
    """Have jobs that are due later start at another moment."""
    if (delay is None) == (at is None):
        raise UsageError("say when: --delay or --at")
    return act_on(session, ids, lambda handle: handle.reschedule(delay=delay, at=at), queue)


def on(
    id: str, call: Callable[[JobHandle[Any]], Awaitable[T]], queue: str = "*"
) -> Callable[[Client], Awaitable[T]]:
    """A call of a job's handle, as work for a client."""

    async def work(client: Client) -> T:
        return await call(client.jobs.handle(id, queue))

    return work


def print_result(session: Session, get: Callable[[], object]) -> None:
    """Print what a task returned; with --verbose, where it failed."""
    try:
        session.printer.value(get())
    except JobFailed as failed:
        explain(session, failed)
        raise
