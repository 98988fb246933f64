"""`jsq events`: print the events of jobs as they happen."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from jsq.cli.filters import read_states
from jsq.cli.job_view import progress_text
from jsq.cli.options import command
from jsq.cli.parsing import read_since
from jsq.cli.session import Session
from jsq.client.client import Client
from jsq.model.job import JobRecord
from jsq.model.job_filter import ALL_STATES


@command
def events(
    session: Session,
    job: Annotated[str | None, typer.Option(metavar="ID", help="only of this job")] = None,
    queue: Annotated[
        str | None, typer.Option("--queue", "-q", metavar="QUEUE", help="only of this queue")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help="only of this task; may be repeated")
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(metavar="STATE,...", help=f"only changes to these states: {', '.join(ALL_STATES)}"),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="begin with the events since 10m ago, or 2030-12-31T18:00Z"),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="wait for new events, or end after the past ones")
    ] = True,
) -> None:
    """Print the events of jobs, one line for each, until Ctrl-C.

    --no-follow prints all past events and ends. The forms json and jsonl print one object a line, with all
    fields.

    \b
    jsq events --queue mail --state failed,retrying
    jsq events --job order-17 --since 1h --no-follow -o jsonl
    """
    states = read_states(state)
    start = read_since(since, datetime.now(UTC)) if since is not None else None

    async def follow_events(client: Client) -> None:
        async for event in client.jobs.events(
            job=job, queue=queue, task=task or None, state=states or None, since=start, follow=follow
        ):
            session.printer.next(event, event_line(event), word=event.state)

    session.run(follow_events)


def event_line(event: JobRecord) -> str:
    """An event in one line: its time, the state, and the job; the reason and the error at the end."""
    at = f"{event.at:%H:%M:%S.%f}"[:-3] if event.at is not None else ""
    words = [at, f"{event.state:<11}", event.id, event.queue, event.task]
    if event.attempt:
        words.append(f"attempt {event.attempt}")
    if event.due is not None:
        words.append(f"due {event.due:%Y-%m-%d %H:%M:%S}Z")
    words += [progress_text(event), event.reason, event.error.partition("\n")[0]]
    return "  ".join(word for word in words if word)
