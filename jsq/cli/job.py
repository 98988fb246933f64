"""`jsq job`: look at jobs, wait for them, cancel, retry and move them."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, TypeVar

import typer

from jsq.cli.errors import JOB_FAILED
from jsq.cli.reading import read_duration, read_moment
from jsq.cli.session import Session, command, confirm, each, explain, group
from jsq.cli.writing import counted
from jsq.client import Client
from jsq.errors import JobFailed, UsageError
from jsq.event import ASKED, MOVES, OPEN
from jsq.handle import JobHandle
from jsq.job import JobRecord

T = TypeVar("T")

CANCELLABLE = (*ASKED, *OPEN)
COLUMNS = ("id", "state", "queue", "task", "at", "error")

Id = Annotated[str, typer.Argument(metavar="ID", help="the job's id")]
Of = Annotated[str, typer.Option(metavar="NAME", help="the job's queue, where you may see only that [any]")]
Ids = Annotated[list[str], typer.Argument(metavar="ID", help="the jobs' ids")]
Timeout = Annotated[
    float | None, typer.Option(parser=read_duration, metavar="DURATION", help="how long to wait [for ever]")
]

job = group("List jobs, look at one, wait for it, cancel or retry it.")


@job.command()
@command
def ls(
    session: Session,
    queue: Annotated[str | None, typer.Option(help="only of this queue")] = None,
    state: Annotated[str | None, typer.Option(help=f"only in this state: {', '.join(MOVES)}")] = None,
    task: Annotated[str | None, typer.Option(help="only of this task")] = None,
    tag: Annotated[str | None, typer.Option(help="only with this tag")] = None,
    limit: Annotated[int, typer.Option(min=1, help="the newest so many")] = 100,
) -> None:
    """List the newest jobs, the newest last."""
    check_state(state)
    found = session.run(lambda client: client.jobs(queue=queue, state=state, task=task, tag=tag, limit=limit))
    session.printer.all(found, COLUMNS)


@job.command()
@command
def get(session: Session, id: Id, queue: Of = "*") -> None:
    """Tell what is known of a job."""
    session.printer.one(session.run(on(id, JobHandle.status, queue)))


@job.command()
@command
def checkpoint(session: Session, id: Id, queue: Of = "*") -> None:
    """Print the value that a job has kept last, as JSON; null where there is none."""
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


@job.command()
@command
def cancel(
    session: Session,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="the jobs' ids")] = None,
    queue: Annotated[str | None, typer.Option(help="those of this queue; with ids, their queue")] = None,
    task: Annotated[str | None, typer.Option(help="those of this task")] = None,
    tag: Annotated[str | None, typer.Option(help="those with this tag")] = None,
    state: Annotated[str | None, typer.Option(help=f"those in this state: {', '.join(CANCELLABLE)}")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list them")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> int:
    """Cancel jobs, running ones too; returns when that is certain.

    Name their ids, or say which: --queue, --task, --tag and --state go together.
    """
    if (ids and any((task, tag, state, dry_run))) or not (ids or queue or task or tag or state):
        raise UsageError(
            "name the ids, or say which: --queue, --task, --tag, --state (with --dry-run to look)"
        )
    if ids:
        return act(session, ids, JobHandle.cancel, queue or "*")
    which = {"queue": queue, "task": task, "tag": tag, "state": state}
    found = session.run(lambda client: client.open_jobs(**which))
    if dry_run:
        session.printer.all(found, COLUMNS)
        return 0
    if found:
        confirm(f"cancel {counted(len(found), 'job')}", yes=yes)
    session.printer.one(session.run(lambda client: client.cancel_many(**which)), name="cancelled")
    return 0


@job.command()
@command
def retry(session: Session, ids: Ids) -> int:
    """Run failed jobs again, with all their retries."""
    return act(session, ids, JobHandle.retry)


@job.command()
@command
def promote(session: Session, ids: Ids, queue: Of = "*") -> int:
    """Have jobs that are due later run now."""
    return act(session, ids, JobHandle.promote, queue)


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
    return act(session, ids, lambda handle: handle.move(delay=delay, at=at), queue)


def on(
    id: str, call: Callable[[JobHandle[Any]], Awaitable[T]], queue: str = "*"
) -> Callable[[Client], Awaitable[T]]:
    """A call of a job's handle, as work for a client."""

    async def work(client: Client) -> T:
        return await call(await client.job(id, queue))

    return work


def act(
    session: Session,
    ids: list[str],
    call: Callable[[JobHandle[Any]], Awaitable[JobRecord]],
    queue: str = "*",
) -> int:
    """Call each job's handle, and print what the jobs have become."""
    found, code = session.run(lambda client: each(ids, lambda id: on(id, call, queue)(client)))
    if found:
        session.printer.all(found, COLUMNS)
    return code


def print_result(session: Session, get: Callable[[], object]) -> None:
    """Print what a task returned; with --verbose, where it failed."""
    try:
        session.printer.value(get())
    except JobFailed as failed:
        explain(session, failed)
        raise


def check_state(state: str | None) -> None:
    if state is not None and state not in MOVES:
        raise UsageError(f"there is no state {state!r}: it is one of {', '.join(MOVES)}")
