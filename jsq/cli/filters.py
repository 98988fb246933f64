"""The options that choose jobs, the same in every command, and the commands that act on many jobs."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, cast

import typer

from jsq.cli.options import Texts
from jsq.cli.parsing import read_pairs, read_since, read_value
from jsq.cli.session import Session, collect, confirm
from jsq.client.client import Client
from jsq.client.handle import JobHandle
from jsq.errors import UsageError, count_noun
from jsq.model.job import JobRecord
from jsq.model.job_filter import ALL_STATES, JobFilter, read_criteria

JOB_COLUMNS = ("id", "state", "queue", "task", "at", "error")

FROM = "2h for 2 hours ago, or 2030-12-31T18:00Z"
JOB_FILTERS = "--queue, --task, --state, --tag, --since, --until, --arg"


@dataclass(frozen=True, slots=True)
class JobFilterOptions:
    """Which jobs: those that match all of the given options."""

    queue: Annotated[
        str | None,
        typer.Option("--queue", "-q", metavar="QUEUE", help="only of this queue; with ids, their queue"),
    ] = None
    task: Annotated[Texts, typer.Option(metavar="TASK", help="only of this task; may be repeated")] = None
    state: Annotated[
        Texts, typer.Option(metavar="STATE,...", help=f"only in these states: {', '.join(ALL_STATES)}")
    ] = None
    tag: Annotated[
        Texts,
        typer.Option(metavar="TAG", help="only with this tag; may be repeated: jobs that have all of them"),
    ] = None
    since: Annotated[str | None, typer.Option(metavar="WHEN", help=f"changed at or after: {FROM}")] = None
    until: Annotated[str | None, typer.Option(metavar="WHEN", help=f"changed before: {FROM}")] = None
    arg: Annotated[
        Texts,
        typer.Option(
            metavar="PATH=VALUE",
            help="only with this argument, as user.id=5; the first positional one is 0=5",
        ),
    ] = None

    def filter(self) -> JobFilter:
        """The filter that the options describe. Raises `UsageError`."""
        arguments = {path: read_value(value) for path, value in read_pairs("--arg", self.arg or ()).items()}
        return cast(
            JobFilter,
            without_none(
                queue=self.queue,
                task=self.task or None,
                state=read_states(self.state) or None,
                tag=self.tag or None,
                **moments(self.since, self.until),
                arg=arguments or None,
            ),
        )


@dataclass(frozen=True, slots=True)
class BulkOptions:
    """How a command acts on many jobs."""

    all: Annotated[bool, typer.Option("--all", help="act on all of them")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list them and change nothing")] = False
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask for confirmation")] = False

    def check(self, ids: Texts, filtered: bool, which: str) -> None:
        """Raises `UsageError` unless exactly one of ids, a filter, and --all is given."""
        if bool(ids) + filtered + self.all != 1 or (ids and self.dry_run):
            raise UsageError(
                f"give ids, or a filter ({which}), or --all; --dry-run lists what it would act on"
            )


def without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def moments(since: str | None, until: str | None) -> dict[str, datetime]:
    """The bounds in time that are given. Raises `UsageError`."""
    now = datetime.now(UTC)
    given = without_none(since=since, until=until)
    return {name: read_since(text, now) for name, text in given.items()}


def read_states(texts: Sequence[str] | None) -> list[str]:
    """The states in texts of one or several states joined by commas. Raises `UsageError`."""
    states = [part.strip() for text in texts or () for part in text.split(",")]
    for state in states:
        if state not in ALL_STATES:
            raise UsageError(f"state must be one of {', '.join(ALL_STATES)}, got {state!r}")
    return states


def narrowed(which: JobFilter, among: tuple[str, ...]) -> JobFilter:
    """The filter, limited to jobs in one of the states `among`. Raises `BadOption` for another state."""
    if which:
        read_criteria(among, named=True, **which)
    return which if "state" in which else JobFilter(**{**which, "state": among})


@dataclass(frozen=True, slots=True)
class BulkAction:
    """An action of a command: on one job by its handle, on all jobs of a filter by a method of the client."""

    verb: str
    done: str
    states: tuple[str, ...]
    act: Callable[[JobHandle[Any]], Awaitable[object]]
    find: Callable[[Client, JobFilter], Awaitable[list[JobRecord]]]
    act_on_many: Callable[[Client, JobFilter], Awaitable[Any]]

    def run(self, session: Session, ids: Texts, jobs: JobFilterOptions, bulk: BulkOptions) -> int:
        which = jobs.filter()
        if ids and jobs.arg:
            raise UsageError(
                "--arg chooses jobs by an argument: give ids or --arg, not both; it changes an argument in "
                "`jsq dead retry ID --arg` (of a failed job) and `jsq job edit ID --arg` (before the start)"
            )
        bulk.check(ids, bool(which.keys() - ({"queue"} if ids else set())), JOB_FILTERS)
        if ids:
            return act_on_jobs(session, ids, self.act, jobs.queue or "*")
        which = narrowed(which, self.states)
        found = session.run(lambda client: self.find(client, which))
        if bulk.dry_run:
            list_jobs(session, found)
            return 0
        if found:
            confirm(f"{self.verb} {count_noun(len(found), 'job')}", yes=bulk.yes)
        acted = session.run(lambda client: self.act_on_many(client, which))
        session.printer.one({self.done: acted} if isinstance(acted, int) else acted, name=self.done)
        return 0


def act_on_jobs(
    session: Session,
    ids: Sequence[str],
    call: Callable[[JobHandle[Any]], Awaitable[object]],
    queue: str = "*",
) -> int:
    """Call each job's handle. Prints the records of the jobs afterwards, or the ids of removed jobs."""

    async def act(client: Client, id: str) -> object:
        return await call(client.jobs.handle(id, queue)) or {"id": id}

    found, code = session.run(lambda client: collect(ids, lambda id: act(client, id)))
    removed = [one for one in found if isinstance(one, dict)]
    if removed:
        session.printer.all(removed, ("id",))
    elif found:
        list_jobs(session, [one for one in found if isinstance(one, JobRecord)])
    return code


def list_jobs(session: Session, jobs: Sequence[JobRecord], *, omit: str = "result") -> None:
    """Print a list of jobs; a table has a column for the progress of jobs that report it."""
    reporting = any(job.progress is not None for job in jobs)
    columns = (*JOB_COLUMNS[:-1], "progress", JOB_COLUMNS[-1]) if reporting else JOB_COLUMNS
    session.printer.all(jobs, columns, rows=[job_row(job) for job in jobs], omit=omit)


def job_row(job: JobRecord) -> dict[str, object]:
    """A job as a row of a table."""
    progress = "" if job.progress is None else f"{job.progress:.0%}"
    return {**{name: getattr(job, name) for name in JOB_COLUMNS}, "progress": progress}
