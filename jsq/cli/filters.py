"""What may be said of jobs on the command line: the same words for every command that looks for some."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, cast

import typer

from jsq.cli.parsing import read_pairs, read_since, read_value
from jsq.cli.session import Session, confirm, each
from jsq.client.client import Client
from jsq.client.handle import JobHandle
from jsq.errors import UsageError, count_noun
from jsq.model.job import JobRecord
from jsq.model.job_filter import ALL_STATES, JobFilter, read_criteria

COLUMNS = ("id", "state", "queue", "task", "at", "error")

Queue = Annotated[str | None, typer.Option(help="of this queue; with ids, their queue")]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="of this task, or one of several")]
States = Annotated[
    list[str] | None,
    typer.Option("--state", help=f"in this state, or one of several: {', '.join(ALL_STATES)}"),
]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="with this tag, and each of several")]
Since = Annotated[
    str | None, typer.Option(metavar="WHEN", help="changed at or after: a moment, or 2h ago as 2h")
]
Until = Annotated[str | None, typer.Option(metavar="WHEN", help="changed before: a moment, or 2h ago as 2h")]
Args = Annotated[
    list[str] | None,
    typer.Option(
        "--arg",
        metavar="PATH=VALUE",
        help="with this argument, as in user.id=5; of what has not ended, or failed",
    ),
]
SomeIds = Annotated[list[str] | None, typer.Argument(metavar="ID", help="the jobs' ids")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only list them")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]

SAY = "say which: --queue, --task, --state, --tag, --since, --until, --arg (with --dry-run to look)"


def said(
    queue: str | None,
    task: list[str] | None,
    state: list[str] | None,
    tag: list[str] | None,
    since: str | None,
    until: str | None,
    arg: list[str] | None,
) -> JobFilter:
    """What the options say of jobs. Raises `UsageError`."""
    now = datetime.now(UTC)
    told: dict[str, Any] = {"queue": queue, "task": task or None, "state": state or None, "tag": tag or None}
    told["since"] = read_since(since, now) if since is not None else None
    told["until"] = read_since(until, now) if until is not None else None
    told["arg"] = {path: read_value(value) for path, value in read_pairs("--arg", arg or ()).items()} or None
    return cast(JobFilter, {name: value for name, value in told.items() if value is not None})


def check_state(state: str | None) -> None:
    if state is not None and state not in ALL_STATES:
        raise UsageError(f"there is no state {state!r}: it is one of {', '.join(ALL_STATES)}")


def narrowed(which: JobFilter, among: tuple[str, ...]) -> JobFilter:
    """What is said of jobs in one of the states `among`. Raises `BadOption` for another."""
    read_criteria(among, named=True, **which)
    return which if "state" in which else JobFilter(**{**which, "state": among})


def bulk(
    word: str,
    told: str,
    done: str,
    *,
    by_id: Callable[[JobHandle[Any]], Awaitable[object]],
    find: Callable[[Client, JobFilter], Awaitable[list[JobRecord]]],
    act: Callable[[Client, JobFilter], Awaitable[Any]],
) -> Callable[..., int]:
    """A command that acts on jobs by their ids, or on all that fit, with their count and a question first."""

    def run(
        session: Session,
        ids: SomeIds = None,
        queue: Queue = None,
        task: Tasks = None,
        state: States = None,
        tag: Tags = None,
        since: Since = None,
        until: Until = None,
        arg: Args = None,
        dry_run: DryRun = False,
        yes: Yes = False,
    ) -> int:
        which = said(queue, task, state, tag, since, until, arg)
        if (ids and (dry_run or which.keys() - {"queue"})) or not (ids or which):
            raise UsageError(f"name the ids, or {SAY}")
        if ids:
            return act_on(session, ids, by_id, queue or "*")
        found = session.run(lambda client: find(client, which))
        if dry_run:
            session.printer.all(found, COLUMNS)
            return 0
        if found:
            confirm(f"{word} {count_noun(len(found), 'job')}", yes=yes)
        became = session.run(lambda client: act(client, which))
        session.printer.one({done: became} if isinstance(became, int) else became, name=done)
        return 0

    run.__name__, run.__doc__ = word, told
    return run


def act_on(
    session: Session,
    ids: Sequence[str],
    call: Callable[[JobHandle[Any]], Awaitable[object]],
    queue: str = "*",
) -> int:
    """Call each job's handle, and print what the jobs have become, or their ids where they are no more."""

    async def one(client: Client, id: str) -> object:
        return await call(client.jobs.handle(id, queue)) or {"id": id}

    found, code = session.run(lambda client: each(ids, lambda id: one(client, id)))
    if found:
        gone = all(isinstance(became, dict) for became in found)
        session.printer.all(found, ("id",) if gone else COLUMNS)
    return code
