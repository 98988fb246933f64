"""`jsq schedule`: list, add and remove schedules; pause, resume and run one, and list its next ticks."""

import contextlib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from jsq.cli.loading import load_app
from jsq.cli.options import Group, Texts
from jsq.cli.parsing import strict_json
from jsq.cli.printing import Form, document, print_message
from jsq.cli.session import Session, confirm
from jsq.cli.submit_options import (
    AppPath,
    ArgumentOptions,
    JobSettings,
    Seconds,
    TaskName,
    Text,
    duration,
    moment,
    option,
)
from jsq.client.client import Client
from jsq.errors import ScheduleNotFound, UsageError
from jsq.model.schedule import ScheduleRecord

SCHEDULE_COLUMNS = ("name", "when", "task", "queue", "next", "last", "state")
TICK_COLUMNS = ("local", "utc", "in")

Name = Annotated[str, typer.Argument(metavar="NAME", help="the schedule's name")]

schedule = Group("List, add, remove, pause and run schedules; list their next ticks.")


@schedule.adds("ls")
def ls(session: Session) -> None:
    """List schedules.

    No live worker declares an orphan any more; `jsq provision MODULE:APP` removes it.

    \b
    jsq schedule ls
    """
    found = session.run(lambda client: client.schedules.list())
    rows = [row(one) for one in found]
    session.printer.all([known(one) for one in found], SCHEDULE_COLUMNS, name="name", rows=rows)


@dataclass(frozen=True, slots=True)
class RecurrenceOptions:
    """When a schedule submits jobs."""

    cron: Annotated[Text, option("FIELDS", "five fields, six with the seconds first, or @daily")] = None
    every: Annotated[Text, option("DURATION", "an interval: 30s, 1h30m")] = None
    tz: Annotated[Text, option("ZONE", "the time zone of --cron, as Europe/Berlin [UTC]")] = None
    jitter: Annotated[Seconds, duration("random delay of each tick, up to this long")] = None
    catch_up: Annotated[
        Text, option("WHICH", "missed ticks that submit a job: latest, all or none [latest]")
    ] = None
    overlap: Annotated[
        Text, option("ACTION", "if the last job is unfinished: queue, skip or cancel [queue]")
    ] = None
    start: Annotated[datetime | None, moment("the schedule has no tick before it")] = None
    end: Annotated[datetime | None, moment("the schedule has no tick after it")] = None


@dataclass(frozen=True, slots=True)
class LifetimeOptions:
    """How long each job of a schedule may take, from its submit."""

    deadline: Annotated[Seconds, duration("end a job as expired this long after it was submitted")] = None
    expires: Annotated[Seconds, duration("do not start a job later than this after it was submitted")] = None
    retry_for: Annotated[Seconds, duration("no retry later than this after its first start")] = None


@schedule.adds("add")
def add(
    session: Session,
    name: Name,
    task: TaskName,
    args: Annotated[Texts, typer.Argument(metavar="ARG", help="positional arguments")] = None,
    *,
    recurrence: RecurrenceOptions,
    arguments: ArgumentOptions,
    app: AppPath = "",
    settings: JobSettings,
    lifetime: LifetimeOptions,
) -> None:
    """Add a schedule, and show it. A schedule of that name is replaced, and reported on stderr.

    Each ARG and VALUE is read as JSON if it is JSON, else taken as text.

    \b
    jsq schedule add nightly report eu --cron '0 3 * * *' --tz Europe/Berlin
    jsq schedule add pulse poll --every 30s --overlap skip
    """
    if (recurrence.cron is None) == (recurrence.every is None):
        raise UsageError("give --cron or --every, one of the two")
    loaded = load_app(app) if app else None
    call = arguments.call(args or ())
    if call.args and call.named:
        raise UsageError("a schedule takes positional or named arguments, not both: use ARG or --arg")
    options: Any = settings.values() | asdict(recurrence) | asdict(lifetime)
    options["headers"], options["tags"] = options["headers"] or None, options["tags"] or None
    target = loaded.find(task) if loaded is not None else task
    given = call.named or list(call.args)

    async def work(client: Client) -> ScheduleRecord:
        with contextlib.suppress(ScheduleNotFound):
            old = row(await client.schedules.get(name))
            print_message(f"replaced: schedule {name} submitted {old['task']}, {old['when']}")
        return await client.schedules.add(name, target, given, **options)

    session.printer.one(known(session.run(work, loaded)), name="name")


@schedule.adds("get")
def get(session: Session, name: Name) -> None:
    """Show a schedule.

    \b
    jsq schedule get nightly
    """
    session.printer.one(known(session.run(lambda client: client.schedules.get(name))), name="name")


@schedule.adds("rm")
def rm(
    session: Session,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask for confirmation")] = False,
) -> None:
    """Remove a schedule; the jobs that it submitted stay.

    \b
    jsq schedule rm nightly --yes
    """
    confirm(f"remove schedule {name}", yes=yes)
    session.printer.one(known(session.run(lambda client: client.schedules.remove(name))), name="name")


@schedule.adds("run")
def run(session: Session, name: Name) -> None:
    """Submit a job of a schedule now, and print its id. The next tick does not change.

    \b
    jsq schedule run nightly
    """
    handle = session.run(lambda client: client.schedules.run(name))
    session.printer.next({"id": handle.id, "queue": handle.queue}, handle.id, default=Form.NAME)


@schedule.adds("pause")
def pause(session: Session, name: Name) -> None:
    """Pause a schedule. It submits no jobs until it is resumed.

    \b
    jsq schedule pause nightly
    """
    session.printer.one(known(session.run(lambda client: client.schedules.pause(name))), name="name")


@schedule.adds("resume")
def resume(session: Session, name: Name) -> None:
    """Resume a paused schedule from its next tick. The ticks of the pause submit no jobs.

    \b
    jsq schedule resume nightly
    """
    session.printer.one(known(session.run(lambda client: client.schedules.resume(name))), name="name")


@schedule.adds("next")
def next_ticks(
    session: Session,
    name: Name,
    number: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="how many ticks")] = 10,
) -> None:
    """List the next ticks of a schedule, in its time zone and in UTC.

    \b
    jsq schedule next nightly -n 3
    """
    found = session.run(lambda client: client.schedules.next(name, number))
    if not found:
        print_message(f"schedule {name} has no next tick")
    session.printer.all([tick_row(tick) for tick in found], TICK_COLUMNS, name="utc")


def known(found: ScheduleRecord) -> dict[str, Any]:
    """The fields of a schedule, with the arguments as values in place of their JSON text."""
    return {**document(found), "arguments": strict_json(found.arguments)}


def row(found: Any) -> dict[str, Any]:
    """A schedule as a row of a table."""
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


def tick_row(tick: datetime) -> dict[str, str]:
    """A tick as a row of a table: in the time zone of the schedule, in UTC, and how long until then."""
    left = tick - datetime.now(UTC)
    return {
        "local": f"{tick:%a %Y-%m-%d %H:%M:%S %Z}",
        "utc": tick.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "in": str(left).partition(".")[0],
    }
