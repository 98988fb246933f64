"""`jsq queue`: list queues, count their jobs, purge, pause, update and remove them."""

import asyncio
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from jsq.broker.maintenance.queue_removal import QueueContents
from jsq.broker.operations.queue_stats import QueueStats
from jsq.cli import pauses
from jsq.cli.filters import BulkOptions
from jsq.cli.options import Group
from jsq.cli.pauses import Queue
from jsq.cli.printing import cell, empty, print_message
from jsq.cli.session import Session, confirm
from jsq.client.client import Client
from jsq.errors import QueueNotEmpty, QueueNotFound, UsageError, count_noun
from jsq.model.pause import WHOLE_QUEUE, Pause

WATCH_SECONDS = 2.0
"""Seconds between two prints of `jsq queue stats --watch`."""

SETTINGS = ("queue", "concurrency", "rate", "lease", "replicas", "paused")
COUNTS = (
    *("queue", "waiting", "waiting_for_key", "running", "scheduled", "oldest", "in/s", "out/s"),
    *("dead", "revisions", "bytes", "paused"),
)

QueueArguments = Annotated[list[str] | None, typer.Argument(metavar="QUEUE", help="the queues' names")]

queue = Group("List queues, count their jobs; purge, pause, update or remove them.")


@queue.adds("ls")
def ls(session: Session) -> None:
    """List the queues, with their settings and pauses.

    \b
    jsq queue ls
    """
    found = session.run(lambda client: client.queues.stats())
    rows = [settings_row(one) for one in found]
    session.printer.all(rows, SETTINGS, name="queue")


@queue.adds("get")
def get(session: Session, queue: Queue) -> None:
    """Show the settings, pauses and counts of a queue.

    \b
    jsq queue get mail
    """
    found = session.run(lambda client: client.queues.get(queue))
    session.printer.one(found, name="queue", fields=queue_fields(found))


@queue.adds("stats")
def stats(
    session: Session,
    queue: Annotated[str | None, typer.Argument(metavar="QUEUE", help="only this queue")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="print the counts again and again")] = False,
    records: Annotated[bool, typer.Option("--records", help="count the jobs that have a record")] = False,
) -> None:
    """Count the jobs of queues, and how many arrive and leave.

    Jobs are waiting, waiting for their key group, running, delayed, or dead. Of the waiting ones, those with
    a high or low priority are also counted apart: `12 (2 high)`.
    `oldest` is the age of the oldest waiting job. `in/s` and `out/s` are means of the last minute, which a
    worker measured. --watch prints the counts again every 2 seconds, until Ctrl-C.
    `revisions` are those of the records, two for most jobs. Counting the records takes the server longer.

    \b
    jsq queue stats
    jsq queue stats --watch
    jsq queue stats mail -o json
    """

    async def count(client: Client) -> None:
        while True:
            found = await client.queues.stats(queue, records=records)
            if queue is not None and not found:
                raise QueueNotFound(queue)
            if watch:
                clear_screen()
            columns = (*COUNTS, "records") if records else COUNTS
            session.printer.all(found, columns, name="queue", rows=[counts_row(one) for one in found])
            if not watch:
                return
            await asyncio.sleep(WATCH_SECONDS)

    session.run(count)


@queue.adds("purge")
def purge(session: Session, queues: QueueArguments = None, *, bulk: BulkOptions) -> int:
    """Cancel the jobs of queues that have not started. Running jobs go on.

    \b
    jsq queue purge mail --dry-run
    jsq queue purge mail pdf --yes
    """
    if bool(queues) == bulk.all:
        raise UsageError("give queues, or --all; --dry-run counts the jobs that it would cancel")
    counts = session.run(lambda client: count_waiting(client, queues))
    if bulk.dry_run:
        session.printer.all(
            [{"queue": name, "waiting": count} for name, count in counts.items()],
            ("queue", "waiting"),
            name="queue",
        )
        return 0
    if total := sum(counts.values()):
        confirm(f"cancel {count_noun(total, 'waiting job')} of {named(list(counts))}", yes=bulk.yes)
    rows = session.run(lambda client: cancel_waiting(client, list(counts)))
    if len(rows) == 1:
        session.printer.one(rows[0], name="queue")
    else:
        session.printer.all(rows, ("queue", "cancelled"), name="queue")
    return 0


@queue.adds("rm")
def rm(
    session: Session,
    queue: Queue,
    force: Annotated[
        bool, typer.Option("--force", help="first cancel its jobs and remove its schedules")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="count its jobs and schedules, and remove nothing")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask for confirmation")] = False,
) -> None:
    """Remove a queue, with its settings and pauses.

    Without --force, a queue that has jobs or schedules is not removed. Dead letters and records stay.

    \b
    jsq queue rm mail --dry-run
    jsq queue rm mail --force --yes
    """
    held = session.run(lambda client: client.queues.remove(queue, dry_run=True))
    if dry_run:
        session.printer.one(held, name="queue")
        return
    if (held.jobs or held.schedules) and not force:
        raise QueueNotEmpty(queue, held.jobs, held.schedules)
    confirm(f"remove {contents_text(held)}", yes=yes)
    removed = session.run(lambda client: client.queues.remove(queue, force=force))
    print_message(f"removed {contents_text(removed)}")
    session.printer.one(removed, name="queue")


def clear_screen() -> None:
    """Clear a terminal, so that the next table replaces the last one."""
    if sys.stdout.isatty():
        print("\x1b[H\x1b[2J", end="", flush=True)


def contents_text(held: QueueContents) -> str:
    """A queue that is removed, the counts of what is removed with it, and the counts of what stays."""
    gone = [count_noun(held.jobs, "job")] if held.jobs else []
    gone += [count_noun(len(held.schedules), "schedule")] if held.schedules else []
    stay = [
        count_noun(number, noun)
        for number, noun in ((held.dead, "dead letter"), (held.records, "record"))
        if number
    ]
    text = f"queue {held.queue}" + (f" with {' and '.join(gone)}" if gone else "")
    return text + (f"; {' and '.join(stay)} stay" if stay else "")


async def count_waiting(client: Client, queues: list[str] | None) -> dict[str, int]:
    """How many jobs of each queue have not started. Raises `QueueNotFound`."""
    counts = {}
    for queue in queues or await client.queues.list():
        await client.queues.get(queue)
        counts[queue] = await client.queues.count_waiting(queue)
    return counts


async def cancel_waiting(client: Client, queues: list[str]) -> list[dict[str, Any]]:
    return [{"queue": queue, "cancelled": await client.queues.purge(queue)} for queue in queues]


def named(queues: list[str]) -> str:
    return f"queue {queues[0]}" if len(queues) == 1 else count_noun(len(queues), "queue")


queue.add("pause", pauses.pause)
queue.add("resume", pauses.resume)
queue.add("update", pauses.update)


def pause_cell(pauses: Iterable[Pause]) -> str:
    """The pauses of a queue: `yes` for the whole queue, else the paused tasks and keys; each with its end."""
    return ", ".join(
        (pause.scope if pause.scope != WHOLE_QUEUE else "yes")
        + (f" until {pause.until:%Y-%m-%d %H:%M:%SZ}" if pause.until else "")
        for pause in pauses
    )


def settings_row(stats: QueueStats) -> dict[str, Any]:
    """The settings of a queue as a row of a table."""
    settings = stats.settings
    return {
        "queue": stats.queue,
        "concurrency": settings.concurrency,
        "rate": str(settings.rate) if settings.rate is not None else None,
        "lease": f"{settings.lease:g}s",
        "replicas": settings.replicas,
        "paused": pause_cell(stats.pauses),
    }


def queue_fields(stats: QueueStats) -> dict[str, str]:
    """The settings and the counts of a queue, one on each line; settings that are off are left out."""
    settings = {name: value for name, value in stats.settings.as_dict().items() if not empty(value)}
    known = settings | counts_row(stats)
    return {name: cell(known[name], full=True) for name in dict.fromkeys(["queue", *known])}


def rate_cell(per_second: float | None) -> str | None:
    return None if per_second is None else f"{per_second:.1f}"


def waiting_cell(waiting: Mapping[str, int]) -> str:
    """How many jobs wait; those with another priority than normal are also counted apart."""
    others = [f"{number} {level}" for level, number in waiting.items() if number and level != "normal"]
    return str(sum(waiting.values())) + (f" ({', '.join(others)})" if others else "")


def counts_row(stats: QueueStats) -> dict[str, Any]:
    """The counts of a queue as a row of a table."""
    return {
        "queue": stats.queue,
        "waiting": waiting_cell(stats.waiting),
        "waiting_for_key": stats.waiting_for_key,
        "running": stats.running,
        "scheduled": stats.scheduled,
        "oldest": None if stats.oldest_job_age is None else f"{stats.oldest_job_age:.0f}s",
        "in/s": rate_cell(stats.arrivals_per_second),
        "out/s": rate_cell(stats.departures_per_second),
        "dead": stats.dead,
        "revisions": stats.revisions,
        "records": stats.records,
        "bytes": stats.bytes,
        "paused": pause_cell(stats.pauses),
    }
