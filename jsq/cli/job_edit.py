"""`jsq job edit` and `jsq job move`: change jobs that have not begun."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from jsq.cli.filters import act_on_jobs, without_none
from jsq.cli.options import JobId, Texts
from jsq.cli.parsing import (
    merge_arguments,
    read_backoff,
    read_call,
    read_deadline,
    read_pairs,
)
from jsq.cli.session import Session
from jsq.cli.submit_options import Number, Seconds, Text, duration, option, repeated
from jsq.client.client import Client
from jsq.errors import UsageError
from jsq.model.job import JobRecord

EditedIds = Annotated[list[str], typer.Argument(metavar="ID", help="the jobs' ids")]


@dataclass(frozen=True, slots=True)
class EditOptions:
    """What an edit changes. What is left out stays as it is."""

    arg: Annotated[Texts, repeated("NAME=VALUE", "change a named argument")] = None
    json: Annotated[Text, option("JSON", "all arguments, in place of its own")] = None
    priority: Annotated[Text, option("PRIORITY", "high, normal or low: to the end of that")] = None
    timeout: Annotated[Seconds, duration("the longest run of an attempt")] = None
    retries: Annotated[Number, option("N", "how often it is tried again")] = None
    backoff: Annotated[Text, option("HOW", "none, linear, exponential, or waits: 1,5,30")] = None
    keep_result: Annotated[Seconds, duration("how long the result is kept")] = None
    slots: Annotated[Number, option("N", "how many of its worker's slots it takes")] = None
    expires: Annotated[Text, option("WHEN", "never start it later: 90, 5m or 2030-12-31T18:00Z")] = None
    deadline: Annotated[Text, option("WHEN", "end it as expired then: 90, 5m or 2030-12-31T18:00Z")] = None
    header: Annotated[Texts, repeated("NAME=VALUE", "a header, in place of all its own")] = None
    tag: Annotated[Texts, repeated("TAG", "a tag, in place of all its own")] = None

    def values(self) -> dict[str, Any]:
        """The options that are given, by their names in Python."""
        names = ("priority", "timeout", "retries", "keep_result", "slots")
        return without_none(
            **{name: getattr(self, name) for name in names},
            backoff=read_backoff(self.backoff) if self.backoff is not None else None,
            expires=read_deadline(self.expires),
            deadline=read_deadline(self.deadline),
            headers=read_pairs("--header", self.header) if self.header else None,
            tags=self.tag or None,
        )


def edit_job(
    session: Session,
    id: JobId,
    *,
    changes: EditOptions,
    queue: Annotated[
        str, typer.Option(metavar="QUEUE", show_default=False, help="the job's queue [any]")
    ] = "*",
) -> None:
    """Change the arguments or options of a job that has not begun.

    It keeps its id. Of an edit and the start of the job, one happens.

    \b
    jsq job edit order-17 --arg to=you@example.com --timeout 5m
    jsq job edit order-17 --priority high
    """
    options = changes.values()
    if changes.arg and changes.json is not None:
        raise UsageError("--json gives all arguments: it goes without --arg")
    if not options and not changes.arg and changes.json is None:
        raise UsageError("say what is to change, as --arg to=you@example.com or --timeout 5m")

    async def act(client: Client) -> JobRecord:
        arguments = None
        if changes.json is not None:
            call = read_call(changes.json, "--json")
            arguments = call.named or call.args
        elif changes.arg:
            held = (await client.jobs.get(id, queue)).arguments
            arguments = merge_arguments(id, held, read_pairs("--arg", changes.arg))
        return await client.jobs.edit(id, arguments, queue, **options)

    session.printer.one(session.run(act))


def move_job(
    session: Session,
    ids: EditedIds,
    queue: Annotated[str | None, typer.Option(metavar="QUEUE", help="to this queue")] = None,
    priority: Annotated[
        str | None, typer.Option(metavar="PRIORITY", help="high, normal or low: to the end of that")
    ] = None,
) -> int:
    """Move jobs that have not begun to another queue or priority.

    --priority high is the front of a queue: a priority is served in its order.

    \b
    jsq job move order-17 order-18 --priority high
    jsq job move order-17 --queue slow
    """
    if queue is None and priority is None:
        raise UsageError("give --queue or --priority, or both")
    options = without_none(queue=queue, priority=priority)
    return act_on_jobs(session, ids, lambda handle: handle.move(**options))
