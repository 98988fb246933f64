"""`jsq dead`: dead letters, the jobs that will not be tried again by themselves."""

import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from jsq.broker.operations.dead_letters import DeadLetter
from jsq.cli.parsing import read_call, read_pairs, read_since, read_value, strict_json
from jsq.cli.printing import document
from jsq.cli.session import Session, command, confirm, each, group
from jsq.client.client import Client
from jsq.errors import JobNotFound, UsageError, count_noun
from jsq.model.event import REASONS

COLUMNS = ("id", "queue", "task", "reason", "at", "error")

Texts = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="change an argument of one job")]
Json = Annotated[
    str | None, typer.Option(metavar="JSON", help="all arguments of one job, in place of its own")
]
Id = Annotated[str, typer.Argument(metavar="ID", help="the job's id")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="the jobs' ids")]
All = Annotated[bool, typer.Option("--all", help="every dead letter")]
Of = Annotated[str | None, typer.Option(help="only of this queue")]
Task = Annotated[str | None, typer.Option(help="only of this task")]
Reason = Annotated[str | None, typer.Option(help=f"only with this reason: {', '.join(REASONS)}")]
Error = Annotated[str | None, typer.Option(metavar="TYPE", help="only of this exception, as in ValueError")]
Since = Annotated[
    str | None, typer.Option(metavar="WHEN", help="died at or after: a moment, or 2h ago as 2h")
]
Until = Annotated[str | None, typer.Option(metavar="WHEN", help="died before: a moment, or 2h ago as 2h")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]
Free = Annotated[bool, typer.Option("--free-id", help="forget the jobs too: their ids may be submitted anew")]

dead = group("List dead letters, look at one, replay or remove them.")


@dead.command()
@command
def ls(
    session: Session,
    queue: Of = None,
    task: Task = None,
    reason: Reason = None,
    error: Error = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int | None, typer.Option(min=1, help="the oldest so many [all]")] = None,
) -> None:
    """List the dead letters, the oldest first."""
    which = said(queue=queue, task=task, reason=reason, error=error, since=since, until=until)
    found = session.run(lambda client: client.dead_letters.list(**which, limit=limit))
    session.printer.all([known(letter) for letter in found], COLUMNS)


@dead.command()
@command
def show(session: Session, id: Id) -> None:
    """Tell everything about one.

    That is why it died and where, its arguments, headers and options.
    """
    letter = session.run(lambda client: client.dead_letters.get(id))
    told = {"traceback": letter.traceback} if letter.traceback else {}
    session.printer.one(known(letter) | told | order(letter))


@dead.command()
@command
def replay(
    session: Session,
    ids: Ids = None,
    every: All = False,
    queue: Of = None,
    task: Task = None,
    reason: Reason = None,
    error: Error = None,
    since: Since = None,
    until: Until = None,
    arg: Texts = None,
    json: Json = None,
    yes: Yes = False,
) -> int:
    """Run dead jobs again under their ids, with all their retries.

    The arguments of one may be changed: --arg for one of them, --json for all.

    \b
    jsq dead replay --task send --reason timeout --since 1d
    jsq dead replay order-17 --arg to=you@example.com
    """
    which = said(queue=queue, task=task, reason=reason, error=error, since=since, until=until)
    edited = bool(arg) or json is not None
    if edited and (len(ids or ()) != 1 or (arg and json is not None)):
        raise UsageError(
            "--arg and --json change the arguments of one job: name its id, and give one of the two"
        )
    chosen = choose(session, ids, every=every, which=which)
    if edited:
        changed = edit(session, chosen[0], read_pairs("--arg", arg or ()), json)
        return act(session, chosen, lambda client, id: client.dead_letters.retry(id, changed))
    if chosen and not ids:
        confirm(f"run {count_noun(len(chosen), 'dead job')} again", yes=yes)
    return act(session, chosen, lambda client, id: client.dead_letters.retry(id))


@dead.command()
@command
def purge(
    session: Session,
    ids: Ids = None,
    every: All = False,
    queue: Of = None,
    task: Task = None,
    reason: Reason = None,
    error: Error = None,
    since: Since = None,
    until: Until = None,
    free_id: Free = False,
    yes: Yes = False,
) -> int:
    """Remove dead letters for good. The records of their jobs stay, but with --free-id."""
    which = said(queue=queue, task=task, reason=reason, error=error, since=since, until=until)
    chosen = choose(session, ids, every=every, which=which)
    if chosen:
        confirm(f"remove {count_noun(len(chosen), 'dead letter')} for good", yes=yes)
    return act(session, chosen, lambda client, id: remove(client, id, free_id=free_id))


async def remove(client: Client, id: str, *, free_id: bool) -> None:
    if not await client.dead_letters.purge(id=id, free_ids=free_id):
        raise JobNotFound(id)


def said(*, since: str | None, until: str | None, **texts: str | None) -> dict[str, Any]:
    """What the options say of letters."""
    now = datetime.now(UTC)
    moments = {
        name: read_since(text, now) for name, text in (("since", since), ("until", until)) if text is not None
    }
    return {name: text for name, text in texts.items() if text is not None} | moments


def choose(session: Session, ids: list[str] | None, *, every: bool, which: dict[str, Any]) -> list[str]:
    """The ids that were named, or those of the letters that fit."""
    if bool(ids) == (every or bool(which)) or (ids and which):
        raise UsageError(
            "name the ids, or say --all, or which: --queue, --task, --reason, --error, --since, --until"
        )
    if ids:
        return ids
    return [letter.id for letter in session.run(lambda client: client.dead_letters.list(**which))]


def edit(session: Session, id: str, pairs: dict[str, str], json: str | None) -> Any:
    """The arguments of a dead job, changed. Raises `UsageError` where they are no named ones to change."""
    if json is not None:
        call = read_call(json, "--json")
        return call.named or call.args
    held = arguments(session.run(lambda client: client.dead_letters.get(id))).get("arguments")
    if isinstance(held, list) and len(held) == 2 and not held[0]:
        held = held[1]  # as they are packed where the task's code is not known
    if not isinstance(held, dict):
        raise UsageError(f"job {id} has positional arguments: give all of them by --json")
    return held | {name: read_value(value) for name, value in pairs.items()}


def act(session: Session, ids: list[str], call: Callable[[Client, str], Awaitable[None]]) -> int:
    """Act on each letter, and print the ids of those it was done to."""

    async def one(client: Client, id: str) -> dict[str, str]:
        await call(client, id)
        return {"id": id}

    done, code = session.run(lambda client: each(ids, lambda id: one(client, id)))
    if done:
        session.printer.all(done, ("id",))
    return code


def known(letter: DeadLetter) -> dict[str, Any]:
    """What a letter says of the death."""
    names = ("id", "queue", "task", "attempt", "at", "reason", "error", "sequence")
    return {name: getattr(letter, name) for name in names}


def order(letter: DeadLetter) -> dict[str, Any]:
    """What a letter says of the job: its options and arguments, or the raw bytes of what was no job."""
    job = document(letter.job) if letter.job is not None else {}
    options = ("priority", "headers", "tags", "retries", "backoff", "timeout", "keep_result")
    return {name: job[name] for name in options if name in job} | arguments(letter)


def arguments(letter: DeadLetter) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        return {"arguments": strict_json(letter.payload.decode())}
    return {"raw_base64": document(letter.payload)}
