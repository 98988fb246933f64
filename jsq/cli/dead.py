"""`jsq dead`: list, retry and purge dead letters: jobs that failed and are not retried any more."""

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, cast

import typer

from jsq.broker.operations.dead_letters import DeadLetter
from jsq.cli.escaping import safe
from jsq.cli.filters import FROM, BulkOptions, moments, without_none
from jsq.cli.job_view import call_text
from jsq.cli.options import Group, JobId, Texts
from jsq.cli.parsing import merge_arguments, read_json_option, read_pairs, strict_json
from jsq.cli.printing import cell, document
from jsq.cli.session import Session, collect, confirm
from jsq.client.client import Client
from jsq.client.dead_letters import DeadLetterFilter
from jsq.errors import JobNotFound, UsageError, count_noun
from jsq.model.revision import REASONS

DEAD_LETTER_COLUMNS = ("id", "queue", "task", "reason", "at", "error")
DEAD_LETTER_FILTERS = "--queue, --task, --reason, --error, --tag, --since, --until"

OptionalJobIds = Annotated[Texts, typer.Argument(metavar="ID", help="the jobs' ids")]


@dataclass(frozen=True, slots=True)
class DeadLetterOptions:
    """Which dead letters: those that match all of the given options."""

    queue: Annotated[
        str | None, typer.Option("--queue", "-q", metavar="QUEUE", help="only of this queue")
    ] = None
    task: Annotated[str | None, typer.Option(metavar="TASK", help="only of this task")] = None
    reason: Annotated[
        str | None, typer.Option(metavar="REASON", help=f"only with this reason: {', '.join(REASONS)}")
    ] = None
    error: Annotated[
        str | None, typer.Option(metavar="TYPE", help="only with this exception, as ValueError")
    ] = None
    tag: Annotated[
        Texts,
        typer.Option(metavar="TAG", help="only with this tag; may be repeated: jobs that have all of them"),
    ] = None
    since: Annotated[str | None, typer.Option(metavar="WHEN", help=f"died at or after: {FROM}")] = None
    until: Annotated[str | None, typer.Option(metavar="WHEN", help=f"died before: {FROM}")] = None

    def filter(self) -> DeadLetterFilter:
        """The filter that the options describe. Raises `UsageError`."""
        texts = without_none(
            queue=self.queue, task=self.task, reason=self.reason, error=self.error, tag=self.tag or None
        )
        return cast(DeadLetterFilter, texts | moments(self.since, self.until))


@dataclass(frozen=True, slots=True)
class NewArguments:
    """New arguments for one job."""

    arg: Annotated[Texts, typer.Option(metavar="NAME=VALUE", help="change an argument of one job")] = None
    json: Annotated[
        str | None, typer.Option(metavar="JSON|@FILE", help="all arguments of one job, in place of its own")
    ] = None

    def given(self, ids: Texts) -> bool:
        """Whether arguments are given. Raises `UsageError` unless they are for one job."""
        given = bool(self.arg) or self.json is not None
        if given and (len(ids or ()) != 1 or (self.arg and self.json is not None)):
            raise UsageError(
                "--arg and --json change the arguments of one job: give its id, and one of the two"
            )
        return given


dead = Group("List dead letters, show one; retry or purge them.")


@dead.adds("ls")
def ls(
    session: Session,
    *,
    letters: DeadLetterOptions,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, metavar="N", help="how many of the oldest [all]")
    ] = None,
) -> None:
    """List the dead letters, the oldest first.

    \b
    jsq dead ls --task send --reason timeout --since 1d
    """
    which = letters.filter()
    found = session.run(lambda client: client.dead_letters.list(**which, limit=limit))
    session.printer.all([summary(dead_letter) for dead_letter in found], DEAD_LETTER_COLUMNS)


@dead.adds("get")
def get(session: Session, id: JobId) -> None:
    """Show a dead letter.

    It has the reason and the place of the failure, and the arguments, headers and options of the job.

    \b
    jsq dead get order-17
    """
    dead_letter = session.run(lambda client: client.dead_letters.get(id))
    traceback = {"traceback": dead_letter.traceback} if dead_letter.traceback else {}
    known = summary(dead_letter) | traceback | job_fields_of(dead_letter)
    shown = {name: cell(value, full=True) for name, value in known.items() if name != "sequence"}
    if "arguments" in known:
        shown["arguments"] = safe(call_text(known["arguments"]))
    session.printer.one(known, fields=shown)


@dead.adds("retry")
def retry(
    session: Session,
    ids: OptionalJobIds = None,
    *,
    letters: DeadLetterOptions,
    new: NewArguments,
    bulk: BulkOptions,
) -> int:
    """Run dead jobs again under their ids, with all their retries.

    --arg and --json change the arguments of one job.

    \b
    jsq dead retry --task send --reason timeout --since 1d
    jsq dead retry order-17 --arg to=you@example.com
    """
    changed = new.given(ids)
    chosen = choose(session, ids, letters, bulk)
    if bulk.dry_run:
        return 0
    if changed:
        arguments = edit(session, chosen[0], read_pairs("--arg", new.arg or ()), new.json)
        return act_on_dead_letters(
            session, chosen, lambda client, id: client.dead_letters.retry(id, arguments)
        )
    if chosen and not ids:
        confirm(f"run {count_noun(len(chosen), 'dead job')} again", yes=bulk.yes)
    return act_on_dead_letters(session, chosen, lambda client, id: client.dead_letters.retry(id))


@dead.adds("purge")
def purge(
    session: Session,
    ids: OptionalJobIds = None,
    *,
    letters: DeadLetterOptions,
    free_id: Annotated[
        bool, typer.Option("--free-id", help="remove the jobs too: their ids can be submitted again")
    ] = False,
    bulk: BulkOptions,
) -> int:
    """Remove dead letters for good. Without --free-id, the records of their jobs stay.

    \b
    jsq dead purge order-17 --free-id
    jsq dead purge --until 30d --dry-run
    """
    chosen = choose(session, ids, letters, bulk)
    if bulk.dry_run:
        return 0
    if chosen:
        confirm(f"remove {count_noun(len(chosen), 'dead letter')} for good", yes=bulk.yes)
    return act_on_dead_letters(session, chosen, lambda client, id: remove(client, id, free_id=free_id))


async def remove(client: Client, id: str, *, free_id: bool) -> None:
    if not await client.dead_letters.purge(id=id, free_ids=free_id):
        await client.dead_letters.get(id)  # raises the reason
        raise JobNotFound(id)


def choose(session: Session, ids: Texts, letters: DeadLetterOptions, bulk: BulkOptions) -> list[str]:
    """The given ids, or those of the matching dead letters; a dry run lists the dead letters."""
    which = letters.filter()
    bulk.check(ids, bool(which), DEAD_LETTER_FILTERS)
    if ids:
        return ids
    found = session.run(lambda client: client.dead_letters.list(**which))
    if bulk.dry_run:
        session.printer.all([summary(dead_letter) for dead_letter in found], DEAD_LETTER_COLUMNS)
    return [dead_letter.id for dead_letter in found]


def edit(session: Session, id: str, pairs: dict[str, str], json: str | None) -> Any:
    """The changed arguments of a dead job. Raises `UsageError` if `pairs` change positional ones."""
    if json is not None:
        call = read_json_option(json)
        return call.named or call.args
    held = arguments(session.run(lambda client: client.dead_letters.get(id))).get("arguments")
    return merge_arguments(id, held, pairs)


def act_on_dead_letters(
    session: Session, ids: list[str], call: Callable[[Client, str], Awaitable[None]]
) -> int:
    """Act on each dead letter, and print the ids of those for which that succeeded."""

    async def act(client: Client, id: str) -> dict[str, str]:
        await call(client, id)
        return {"id": id}

    done, code = session.run(lambda client: collect(ids, lambda id: act(client, id)))
    if done:
        session.printer.all(done, ("id",))
    return code


def summary(dead_letter: DeadLetter) -> dict[str, Any]:
    """The fields of a dead letter about the failure."""
    names = ("id", "queue", "task", "attempt", "at", "reason", "error", "sequence")
    return {name: getattr(dead_letter, name) for name in names}


def job_fields_of(dead_letter: DeadLetter) -> dict[str, Any]:
    """The fields of a dead letter about the job: its options and arguments, or the bytes of a bad message."""
    job = document(dead_letter.job) if dead_letter.job is not None else {}
    options = (
        "priority",
        "headers",
        "tags",
        "retries",
        "backoff",
        "timeout",
        "keep_result",
        "keep_arguments",
    )
    return {name: job[name] for name in options if name in job} | arguments(dead_letter)


def arguments(dead_letter: DeadLetter) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        return {"arguments": strict_json(dead_letter.payload.decode())}
    return {"raw_base64": document(dead_letter.payload)}
