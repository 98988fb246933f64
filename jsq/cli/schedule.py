"""`jsq schedule`: list schedules, add one, remove, pause, resume or run it, and tell its next ticks."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from jsq.cli.loading import load_app
from jsq.cli.parsing import (
    Call,
    read_backoff,
    read_call,
    read_duration,
    read_moment,
    read_pairs,
    read_value,
    strict_json,
)
from jsq.cli.printing import Form, document, say
from jsq.cli.session import Session, command, confirm, group
from jsq.errors import UsageError
from jsq.model.schedule import ScheduleRecord

COLUMNS = ("name", "when", "task", "queue", "next", "last", "state")
TICKS = ("local", "utc", "in")

Name = Annotated[str, typer.Argument(metavar="NAME", help="the schedule's name")]
Texts = list[str] | None

schedule = group("List schedules, add or remove one, pause, resume, run it, and tell its next ticks.")


def moment(told: str) -> Any:
    return typer.Option(parser=read_moment, metavar="MOMENT", help=told)


def duration(told: str) -> Any:
    return typer.Option(parser=read_duration, metavar="DURATION", help=told)


@schedule.command()
@command
def ls(session: Session) -> None:
    """List schedules.

    An orphan is declared no more by the workers that are alive: `jsq provision MODULE:APP` removes it.
    """
    found = session.run(lambda client: client.schedules.list())
    if session.printer.shows_tables:
        session.printer.all([row(one) for one in found], COLUMNS, name="name")
    else:
        session.printer.all([known(one) for one in found], COLUMNS, name="name")


@schedule.command()
@command
def add(
    session: Session,
    name: Name,
    task: Annotated[str, typer.Argument(metavar="TASK", help="the task's name")],
    args: Annotated[Texts, typer.Argument(metavar="ARG", help="positional arguments")] = None,
    cron: Annotated[
        str | None, typer.Option(metavar="FIELDS", help="five fields, six with the seconds first, or @daily")
    ] = None,
    every: Annotated[str | None, typer.Option(metavar="DURATION", help="an interval: 30s, 1h30m")] = None,
    tz: Annotated[str | None, typer.Option(metavar="ZONE", help="of --cron, as Europe/Berlin [UTC]")] = None,
    jitter: Annotated[float | None, duration("each tick fires so much later at most")] = None,
    catch_up: Annotated[
        str | None, typer.Option(metavar="WHICH", help="missed ticks that fire: latest, all, none [latest]")
    ] = None,
    overlap: Annotated[
        str | None,
        typer.Option(metavar="HOW", help="while the last job goes on: queue, skip, cancel it [queue]"),
    ] = None,
    start: Annotated[datetime | None, moment("no tick comes before it")] = None,
    end: Annotated[datetime | None, moment("no tick comes after it")] = None,
    arg: Annotated[
        Texts, typer.Option(metavar="NAME=VALUE", help="a named argument; may be repeated")
    ] = None,
    json: Annotated[
        str | None, typer.Option(metavar="JSON", help="all arguments: an object or a list")
    ] = None,
    app: Annotated[
        str, typer.Option(metavar="MODULE:APP", help="what declares the task: check and submit as it says")
    ] = "",
    queue: Annotated[str | None, typer.Option(metavar="QUEUE", help="the queue [default]")] = None,
    priority: Annotated[
        str | None, typer.Option(metavar="WHICH", help="high, normal or low [normal]")
    ] = None,
    deadline: Annotated[float | None, duration("end a job as expired so long after it was submitted")] = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="whose job it is: the keys of a queue take turns")
    ] = None,
    per_key: Annotated[
        int | None, typer.Option(metavar="N", help="jobs of its key that run at once; 1: in their order")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(metavar="N", help="how many of its worker's slots it takes [1]")
    ] = None,
    header: Annotated[Texts, typer.Option(metavar="NAME=VALUE", help="a header; may be repeated")] = None,
    tag: Annotated[Texts, typer.Option(metavar="TAG", help="a tag; may be repeated")] = None,
    retries: Annotated[
        int | None, typer.Option(metavar="N", help="how often a job is tried again [as the task says]")
    ] = None,
    backoff: Annotated[
        str | None, typer.Option(metavar="HOW", help="none, linear, exponential, or waits: 1,5,30")
    ] = None,
    retry_for: Annotated[float | None, duration("no retry so long after its first start")] = None,
    timeout: Annotated[float | None, duration("how long an attempt may take")] = None,
    expires: Annotated[float | None, duration("a job never begins so long after it was submitted")] = None,
    keep_result: Annotated[float | None, duration("how long to keep the result")] = None,
) -> None:
    """Add a schedule, or change the one of that name; print what it is.

    Each ARG and VALUE is read as JSON if it is JSON, else taken as text.

    \b
    jsq schedule add nightly report eu --cron '0 3 * * *' --tz Europe/Berlin
    jsq schedule add pulse poll --every 30s --overlap skip
    """
    if (cron is None) == (every is None):
        raise UsageError("say when: --cron or --every, one of the two")
    loaded = load_app(app) if app else None
    call = read_arguments(args or [], read_pairs("--arg", arg or ()), json)
    if call.args and call.named:
        raise UsageError("the arguments of a schedule are positional or named: use ARG or --arg")
    options: Any = {
        "cron": cron,
        "every": every,
        "tz": tz,
        "jitter": jitter,
        "start": start,
        "end": end,
        "catch_up": catch_up,
        "overlap": overlap,
        "queue": queue,
        "priority": priority,
        "deadline": deadline,
        "key": key,
        "per_key": per_key,
        "slots": slots,
        "headers": read_pairs("--header", header) if header else None,
        "tags": tag,
        "retries": retries,
        "backoff": read_backoff(backoff),
        "retry_for": retry_for,
        "timeout": timeout,
        "expires": expires,
        "keep_result": keep_result,
    }
    target = loaded.find(task) if loaded is not None else task
    arguments = call.named or list(call.args)
    added = session.run(lambda client: client.schedules.add(name, target, arguments, **options), loaded)
    session.printer.one(known(added), name="name")


@schedule.command()
@command
def rm(
    session: Session,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Remove a schedule; the jobs that it submitted stay."""
    confirm(f"remove schedule {name}", yes=yes)
    session.printer.one(known(session.run(lambda client: client.schedules.remove(name))), name="name")


@schedule.command()
@command
def run(session: Session, name: Name) -> None:
    """Submit a job of a schedule now, and print its id. The next tick comes as it would have."""
    handle = session.run(lambda client: client.schedules.run(name))
    session.printer.next({"id": handle.id, "queue": handle.queue}, handle.id, default=Form.NAME)


@schedule.command()
@command
def pause(session: Session, name: Name) -> None:
    """Have a schedule fire nothing until it is resumed."""
    session.printer.one(known(session.run(lambda client: client.schedules.pause(name))), name="name")


@schedule.command()
@command
def resume(session: Session, name: Name) -> None:
    """Go on with a paused schedule, at its next tick.

    What it missed is not caught up.
    """
    session.printer.one(known(session.run(lambda client: client.schedules.resume(name))), name="name")


@schedule.command("next")
@command
def coming(
    session: Session,
    name: Name,
    number: Annotated[int, typer.Option("-n", metavar="NUMBER", help="how many")] = 10,
) -> None:
    """Tell the next ticks of a schedule, in its time zone and in UTC."""
    found = session.run(lambda client: client.schedules.next(name, number))
    if not found:
        say(f"schedule {name} has no tick ahead")
    session.printer.all([told(tick) for tick in found], TICKS, name="utc")


def read_arguments(args: list[str], named: dict[str, str], json: str | None) -> Call:
    if json is not None:
        if args or named:
            raise UsageError("--json gives all arguments: it goes without ARG and --arg")
        return read_call(json, "--json")
    return Call([read_value(text) for text in args], {name: read_value(text) for name, text in named.items()})


def known(found: ScheduleRecord) -> dict[str, Any]:
    """All that is known of a schedule, with the arguments themselves in place of their text."""
    return {**document(found), "arguments": strict_json(found.arguments)}


def row(found: Any) -> dict[str, Any]:
    """A schedule as a table shows it."""
    states = [word for word in ("paused", "orphan") if getattr(found, word)]
    return {
        "name": found.name,
        "when": f"{found.cron} {found.tz}" if found.cron else f"every {found.every:g}s",
        "task": found.task,
        "queue": found.queue,
        "next": found.next,
        "last": found.last,
        "state": ", ".join(states) or ("over" if found.next is None else ""),
    }


def told(tick: datetime) -> dict[str, str]:
    """A tick as it is told: in the schedule's zone, in UTC, and how far it is."""
    left = tick - datetime.now(UTC)
    return {
        "local": f"{tick:%a %Y-%m-%d %H:%M:%S %Z}",
        "utc": tick.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "in": str(left).partition(".")[0],
    }
