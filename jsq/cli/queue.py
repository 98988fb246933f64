"""`jsq queue`: list queues, count their jobs, empty one."""

from typing import Annotated, Any

import typer

from jsq.broker.queues import QueueStats
from jsq.cli.errors import QueueNotFound
from jsq.cli.session import Session, command, confirm, group
from jsq.cli.writing import counted

COLUMNS = ("queue", "waiting", "lined", "running", "later", "dead", "bytes")

queue = group("List queues, count their jobs, empty one.")


@queue.command()
@command
def ls(session: Session) -> None:
    """List the queues there are."""
    names = session.run(lambda client: client.queues())
    session.printer.all([{"queue": name} for name in names], ("queue",), name="queue")


@queue.command()
@command
def stats(
    session: Session,
    queue: Annotated[str | None, typer.Argument(metavar="QUEUE", help="only this queue")] = None,
) -> None:
    """Count the jobs of queues: waiting (high/normal/low), in the lines of keys, running, due later, dead."""
    found = session.run(lambda client: client.queue_stats(queue))
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
    queue: Annotated[str, typer.Argument(metavar="QUEUE")],
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Cancel the jobs of a queue that have not started. Running ones go on."""
    if not session.run(lambda client: client.queue_stats(queue)):
        raise QueueNotFound(queue)
    count = session.run(lambda client: client.count_waiting(queue))
    if count:
        confirm(f"cancel {counted(count, 'waiting job')} of queue {queue}", yes=yes)
    gone = session.run(lambda client: client.purge(queue))
    session.printer.one({"queue": queue, "cancelled": gone}, name="queue")


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
    }
