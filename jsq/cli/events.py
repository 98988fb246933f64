"""`jsq events`: what happens to jobs, as it happens."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from jsq.cli.filters import check_state
from jsq.cli.parsing import read_since
from jsq.cli.session import Session, command
from jsq.client.client import Client
from jsq.model.job import JobRecord


@command
def events(
    session: Session,
    job: Annotated[str | None, typer.Option(help="only of this job")] = None,
    queue: Annotated[str | None, typer.Option(help="only of this queue")] = None,
    state: Annotated[str | None, typer.Option(help="only changes to this state")] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="first what happened since: 10m, or 2030-12-31T18:00Z"),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="go on, or end when all that happened is told")
    ] = True,
) -> None:
    """Tell what happens to jobs, one line for each event, until Ctrl-C.

    With --no-follow, all that has happened is told. JSON is always one object a line.

    \b
    jsq events --queue mail --state failed
    jsq events --job order-17 --since 1h --no-follow -o jsonl
    """
    check_state(state)
    start = read_since(since, datetime.now(UTC)) if since is not None else None

    async def tell(client: Client) -> None:
        async for event in client.jobs.events(job=job, queue=queue, state=state, since=start, follow=follow):
            session.printer.next(event, line(event))

    session.run(tell)


def line(event: JobRecord) -> str:
    """An event for people."""
    at = f"{event.at:%H:%M:%S.%f}"[:-3] if event.at is not None else ""
    words = [at, f"{event.state:<11}", event.id, event.queue, event.task]
    if event.attempt:
        words.append(f"attempt {event.attempt}")
    if event.due is not None:
        words.append(f"due {event.due:%Y-%m-%d %H:%M:%S}Z")
    if event.progress is not None:
        words.append(f"{event.progress:.0%}")
    words += [event.text, event.worker, event.reason, event.error]
    return "  ".join(word for word in words if word)
