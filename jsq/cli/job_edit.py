"""`jsq job edit` and `jsq job move`: change jobs that have not started."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from jsq.cli.filters import act_on_jobs, without_none
from jsq.cli.job_view import print_job
from jsq.cli.options import JobId, Texts
from jsq.cli.parsing import (
    merge_arguments,
    read_backoff,
    read_deadline,
    read_json_option,
    read_pairs,
)
from jsq.cli.session import Session
from jsq.cli.submit_options import Number, Seconds, Text, duration, option, repeated
from jsq.client.client import Client
from jsq.errors import UsageError
from jsq.model.job import JobRecord
from jsq.model.options import RARE_OPTIONS

EditedIds = Annotated[list[str], typer.Argument(metavar="ID", help="the jobs' ids")]


@dataclass(frozen=True, slots=True)
class EditOptions:
    """The changes of an edit. An option that is left out stays as it is."""

    arg: Annotated[Texts, repeated("NAME=VALUE", "a named argument to change")] = None
    json: Annotated[Text, option("JSON|@FILE", "all arguments, in place of its own")] = None
    priority: Annotated[Text, option("PRIORITY", "high, normal or low; the job goes to its end")] = None
    timeout: Annotated[Seconds, duration("the longest run of an attempt")] = None
    hard_timeout: Annotated[Seconds, duration("after which a child process is killed")] = None
    executor: Annotated[Text, option("WHERE", "async, thread or process")] = None
    on_failure: Annotated[Text, option("TASK", "task to submit after each failed attempt")] = None
    on_dead: Annotated[Text, option("TASK", "task to submit when it has failed for good")] = None
    fallback: Annotated[
        Text, option("TASK", "task to submit with its arguments when it has failed for good")
    ] = None
    retries: Annotated[Number, option("N", "retries after the first attempt")] = None
    backoff: Annotated[Text, option("HOW", "none, linear, exponential, or waits: 1,5,30")] = None
    keep_result: Annotated[Seconds, duration("how long the result is kept")] = None
    slots: Annotated[Number, option("N", "slots of its worker that it takes")] = None
    expires: Annotated[Text, option("WHEN", "do not start it later: 90, 5m or 2030-12-31T18:00Z")] = None
    deadline: Annotated[Text, option("WHEN", "end it as expired then: 90, 5m or 2030-12-31T18:00Z")] = None
    header: Annotated[Texts, repeated("NAME=VALUE", "a header, in place of all its own")] = None
    tag: Annotated[Texts, repeated("TAG", "a tag, in place of all its own")] = None

    def values(self) -> dict[str, Any]:
        """The options that are given, by their names in Python."""
        names = ("priority", "timeout", "retries", "keep_result", "slots")
        return without_none(
            **{name: getattr(self, name) for name in (*names, *RARE_OPTIONS)},
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
        str, typer.Option("--queue", "-q", metavar="QUEUE", show_default=False, help="the job's queue [any]")
    ] = "*",
) -> None:
    """Change the arguments or options of a job that has not started.

    The job keeps its id. If the job starts first, the edit is refused and changes nothing.

    \b
    jsq job edit order-17 --arg to=you@example.com --timeout 5m
    jsq job edit order-17 --priority high
    """
    options = changes.values()
    if changes.arg and changes.json is not None:
        raise UsageError("--json gives all arguments: use it without --arg")
    if not options and not changes.arg and changes.json is None:
        raise UsageError("give an option to change, as --arg to=you@example.com or --timeout 5m")

    async def act(client: Client) -> JobRecord:
        arguments = None
        if changes.json is not None:
            call = read_json_option(changes.json)
            arguments = call.named or call.args
        elif changes.arg:
            held = (await client.jobs.get(id, queue)).arguments
            arguments = merge_arguments(id, held, read_pairs("--arg", changes.arg))
        return await client.jobs.edit(id, arguments, queue, **options)

    print_job(session.printer, session.run(act))


def move_job(
    session: Session,
    ids: EditedIds,
    queue: Annotated[
        str | None, typer.Option("--queue", "-q", metavar="QUEUE", help="the queue to move to")
    ] = None,
    priority: Annotated[
        str | None, typer.Option(metavar="PRIORITY", help="high, normal or low; the job goes to its end")
    ] = None,
) -> int:
    """Move jobs that have not started to another queue or priority.

    A moved job goes to the end of its new priority. --priority high puts it before all others.

    \b
    jsq job move order-17 order-18 --priority high
    jsq job move order-17 --queue slow
    """
    if queue is None and priority is None:
        raise UsageError("give --queue or --priority, or both")
    options = without_none(queue=queue, priority=priority)
    return act_on_jobs(session, ids, lambda handle: handle.move(**options))
