"""`jsq queue`: list queues, count their jobs, empty one, pause it, set it."""

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from jsq.broker.operations.queues import QueueStats
from jsq.cli import pauses
from jsq.cli.session import Session, command, confirm, group
from jsq.client.client import Client
from jsq.errors import NotAllowed, QueueNotFound, count_noun
from jsq.model.pause import WHOLE_QUEUE, Pause

COLUMNS = ("queue", "waiting", "lined", "running", "later", "dead", "bytes", "paused")

queue = group("List queues, count their jobs; empty, pause and set them.")


@queue.command()
@command
def ls(session: Session) -> None:
    """List the queues there are."""
    names, holds = session.run(known)
    rows = [{"queue": name, "paused": paused(holds.get(name, ()))} for name in names]
    session.printer.all(rows, ("queue", "paused"), name="queue")


@queue.command()
@command
def stats(
    session: Session,
    queue: Annotated[str | None, typer.Argument(metavar="QUEUE", help="only this queue")] = None,
) -> None:
    """Count the jobs of queues.

    They are waiting (high/normal/low), lined (in the lines of their keys), running, due later, or dead.
    """
    found = session.run(lambda client: client.queues.stats(queue))
    if queue is not None and not found:
        raise QueueNotFound(queue)
    if session.printer.shows_tables:
        session.printer.all([row(one) for one in found], COLUMNS, name="queue")
    else:
        session.printer.all(found, COLUMNS, name="queue")


@queue.command()
@command
def purge(
    session: Session,
    queue: Annotated[str, typer.Argument(metavar="QUEUE", help="the queue's name")],
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Cancel the jobs of a queue that have not started. Running ones go on."""
    if not session.run(lambda client: client.queues.stats(queue)):
        raise QueueNotFound(queue)
    count = session.run(lambda client: client.queues.count_waiting(queue))
    if count:
        confirm(f"cancel {count_noun(count, 'waiting job')} of queue {queue}", yes=yes)
    gone = session.run(lambda client: client.queues.purge(queue))
    session.printer.one({"queue": queue, "cancelled": gone}, name="queue")


async def known(client: Client) -> tuple[list[str], dict[str, tuple[Pause, ...]]]:
    """The queues there are, and what is held on each; of that nothing for one who may not look."""
    names = await client.queues.list()
    try:
        return names, await client.queues.pauses()
    except NotAllowed:
        return names, {}


queue.command("pause")(pauses.pause)
queue.command("resume")(pauses.resume)
queue.command("set")(pauses.set_)


def paused(holds: Iterable[Pause]) -> str:
    """What is held on a queue, in a cell: `yes`, `until ...`, and the tasks and keys that are."""
    return ", ".join(
        (hold.place if hold.place != WHOLE_QUEUE else "yes")
        + (f" until {hold.until:%Y-%m-%d %H:%M:%SZ}" if hold.until else "")
        for hold in holds
    )


def row(stats: QueueStats) -> dict[str, Any]:
    """A queue's numbers as a table shows them."""
    return {
        "queue": stats.queue,
        "waiting": "/".join(str(number) for number in stats.waiting.values()),
        "lined": stats.lined,
        "running": stats.running,
        "later": stats.later,
        "dead": stats.dead,
        "bytes": stats.bytes,
        "paused": paused(stats.holds),
    }
