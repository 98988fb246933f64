"""`jsq dead`: dead letters, the jobs that will not be tried again by themselves."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer

from jsq.broker.dead import DeadLetter
from jsq.cli.printing import document
from jsq.cli.reading import strict_json
from jsq.cli.session import Session, command, confirm, each, group
from jsq.cli.writing import counted
from jsq.client import Client
from jsq.errors import JobNotFound, UsageError

COLUMNS = ("id", "queue", "task", "reason", "at", "error")

Id = Annotated[str, typer.Argument(metavar="ID", help="the job's id")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="the jobs' ids")]
All = Annotated[bool, typer.Option("--all", help="every dead letter")]
Of = Annotated[str | None, typer.Option(help="only of this queue")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]

dead = group("List dead letters, look at one, replay or remove them.")


@dead.command()
@command
def ls(
    session: Session,
    queue: Of = None,
    limit: Annotated[int | None, typer.Option(min=1, help="the oldest so many [all]")] = None,
) -> None:
    """List the dead letters, the oldest first."""
    found = session.run(lambda client: client.dead_letters(queue=queue, limit=limit))
    session.printer.all([known(letter) for letter in found], COLUMNS)


@dead.command()
@command
def show(session: Session, id: Id) -> None:
    """Tell everything about one: why it died, its arguments, headers and options."""
    letter = session.run(lambda client: client.dead_letter(id))
    session.printer.one(known(letter) | order(letter))


@dead.command()
@command
def replay(session: Session, ids: Ids = None, every: All = False, queue: Of = None, yes: Yes = False) -> int:
    """Run dead jobs again, with all their retries."""
    chosen = choose(session, ids, every=every, queue=queue)
    if every and chosen:
        confirm(f"run {counted(len(chosen), 'dead job')} again", yes=yes)
    return act(session, chosen, lambda client, id: client.replay(id))


@dead.command()
@command
def purge(session: Session, ids: Ids = None, every: All = False, queue: Of = None, yes: Yes = False) -> int:
    """Remove dead letters for good. The records of their jobs stay."""
    chosen = choose(session, ids, every=every, queue=queue)
    if chosen:
        confirm(f"remove {counted(len(chosen), 'dead letter')} for good", yes=yes)
    return act(session, chosen, remove)


async def remove(client: Client, id: str) -> None:
    if not await client.purge_dead(id=id):
        raise JobNotFound(id)


def choose(session: Session, ids: list[str] | None, *, every: bool, queue: str | None) -> list[str]:
    """The ids that were named, or with --all those of every dead letter (of a queue)."""
    if bool(ids) == every or (ids and queue):
        raise UsageError("name the ids, or say --all (with --queue for one queue only)")
    if ids:
        return ids
    return [letter.id for letter in session.run(lambda client: client.dead_letters(queue=queue))]


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
