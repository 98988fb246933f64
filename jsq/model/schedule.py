"""A schedule: a job that is submitted regularly, and its times.

Every process computes the same ticks, from the schedule alone. So no process owns a schedule, and a tick that
two workers handle is one tick. Cron expressions follow cronsim, which follows Debian. If hour and minute are
named, a time that a clock change skips fires right after the gap, and a repeated time fires once. With `*` in
either, or with six fields, the elapsed time counts. Intervals are counted from `start`, or else from 1970 in
UTC, so that restarts do not move them.
"""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Literal, Unpack, get_args
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from jsq.errors import BadOption
from jsq.model.durations import Duration, check_moment, check_seconds, seconds
from jsq.model.job import DEFAULT_QUEUE, Job, check_task, check_text
from jsq.model.options import (
    RARE_OPTIONS,
    JobOptions,
    SubmitOptions,
    check_fallback,
    check_headers,
    check_known,
    parse_options,
)

CatchUp = Literal["latest", "all", "none"]
Overlap = Literal["skip", "queue", "cancel"]

MAX_SCHEDULE_NAME_LENGTH = 100
"""Characters of a schedule's name: with the time of a tick behind it, it is the id of a job."""

MAX_CRON_LENGTH = 256
MAX_ZONE_LENGTH = 64
MAX_JITTER_SECONDS = 3600.0
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

MAX_CATCH_UP = 100
"""Missed ticks that are caught up in one go; the rest follow at once."""

TICK_GRACE_SECONDS = 60.0
"""Seconds by which a tick may come late and is not missed: an election, a killed worker and a restart."""

NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


class Recurrence(JobOptions, total=False):
    """The options of a schedule besides its ticks: these, and the `JobOptions` of its jobs.

    `tz`: the IANA time zone of a cron expression [UTC].
    `jitter`: each tick fires late by an amount of its own, up to this many seconds [0].
    `catch_up`: which missed ticks fire: the `latest`, `all` or `none` ["latest"].
    `overlap`: the handling of a tick while the job of the last one has not ended: the job is submitted anyway
    (`queue`), the tick is skipped (`skip`), or the running job is cancelled first (`cancel`) ["queue"].
    `start`, `end`: no tick fires before `start` or after `end`; intervals are counted from `start`.
    `unique`: False for a task that declares it; the jobs of a schedule hold no keys.
    `deadline`, `expires`: seconds from when the job of a tick is submitted; a job that has not started when
    it expires never starts.
    """

    tz: str | None
    jitter: Duration | None
    catch_up: CatchUp | None
    overlap: Overlap | None
    start: datetime | None
    end: datetime | None
    unique: bool | None
    expires: Duration | None


class ScheduleOptions(Recurrence, total=False):
    """The options of a schedule: `cron` or `every`, and those of `Recurrence`.

    `cron`: five fields, six with the seconds first, or a name: `@hourly`, `@daily`.
    `every`: an interval of at least a second.
    """

    cron: str | None
    every: Duration | None


@dataclass(frozen=True, slots=True)
class Schedule:
    """A job that is submitted regularly: at the ticks of `cron` in the zone `tz`, or `every` so many seconds.

    `job` is the pattern of its jobs. Each tick fires up to `jitter` seconds late, by an amount of its own.
    `catch_up` selects the missed ticks that fire: the `latest` one, `all` or `none`. `overlap` is the
    handling of a tick while the job of the last one has not ended: the job is submitted anyway (`queue`), the
    tick is skipped (`skip`), or the running job is cancelled first (`cancel`). There is no tick before
    `start` or after `end`. A job that has not started `expires` seconds after it was submitted never starts
    (0: no limit). `declared` is the name of the App that declares the schedule, empty if it was added at run
    time. Raises `BadName`, `BadOption`.
    """

    name: str
    job: Job
    cron: str = ""
    every: float = 0.0
    tz: str = "UTC"
    jitter: float = 0.0
    catch_up: CatchUp = "latest"
    overlap: Overlap = "queue"
    start: datetime | None = None
    end: datetime | None = None
    expires: float = 0.0
    declared: str = ""

    def __post_init__(self) -> None:
        check_schedule_name(self.name)
        check_moment("start", self.start)
        check_moment("end", self.end)
        if self.start is not None and self.end is not None and self.end < self.start:
            raise BadOption("end", self.end, "must be after the start")
        time_zone(self.tz)
        if bool(self.cron) == bool(self.every):
            raise BadOption("every", self.every or None, "a schedule must have either cron or every")
        if self.cron:
            check_cron(self.cron, self.tz)
        check_seconds("every", self.every or None, least=1.0)
        check_seconds("expires", self.expires or None, least=0.001)
        check_tick_jitter(self.jitter, self.every)
        if self.catch_up not in get_args(CatchUp):
            raise BadOption("catch_up", self.catch_up, f"must be one of {', '.join(get_args(CatchUp))}")
        if self.overlap not in get_args(Overlap):
            raise BadOption("overlap", self.overlap, f"must be one of {', '.join(get_args(Overlap))}")

    @property
    def zone(self) -> tzinfo:
        return time_zone(self.tz)

    @property
    def timing(self) -> tuple[object, ...]:
        """The fields that decide the ticks. If they change, the ticks count from the change."""
        return (self.cron, self.every, self.tz, self.start, self.end, self.jitter)

    def next_tick(self, moment: datetime) -> datetime | None:
        """The first tick after a time, in UTC; None if there is none."""
        if self.start is not None:
            moment = max(moment, self.start - timedelta(microseconds=1))
        tick = self._interval(moment) if self.every else next_cron_tick(self.cron, self.zone, moment)
        return None if tick is None or (self.end is not None and tick > self.end) else tick

    def next_ticks(self, moment: datetime) -> Iterator[datetime]:
        """The ticks after a time, in order."""
        while (tick := self.next_tick(moment)) is not None:
            yield tick
            moment = tick

    def fires_at(self, tick: datetime) -> datetime:
        """When a tick fires: at its time plus its jitter, which is the same in every process."""
        if not self.jitter:
            return tick
        digest = hashlib.sha256(f"{self.name} {tick.timestamp():.3f}".encode()).digest()
        share = int.from_bytes(digest[:8]) / 2**64
        return tick + timedelta(milliseconds=int(share * self.jitter * 1000))

    def latest_due(self, done: datetime, now: datetime) -> datetime | None:
        """The last tick after `done` that has fired by `now`, without iterating over all missed ticks."""
        found: datetime | None = None
        end = now - timedelta(seconds=self.jitter)
        while (following := self.next_tick(found or done)) is not None and following <= end:
            found = following
            middle = found + (end - found) / 2
            jump = self.next_tick(middle)
            if jump is not None and jump <= end:
                found = jump
            else:
                end = middle
        while (following := self.next_tick(found or done)) is not None and self.fires_at(following) <= now:
            found = following
        return found

    def _interval(self, moment: datetime) -> datetime:
        anchor, period = self.start or EPOCH, timedelta(seconds=self.every)
        return (anchor + ((moment - anchor) // period + 1) * period).astimezone(UTC)


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """The progress of a schedule.

    `decided_until` is the last handled tick, or the time from which ticks count. `last` is the job of the
    last tick that fired; `fired` counts those ticks, `skipped` the ones that overlapped.
    """

    decided_until: datetime
    paused: bool = False
    last: str = ""
    fired: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class TickDecision:
    """The decision about due ticks: which of them fire, and the new progress of the schedule."""

    ticks: tuple[datetime, ...]
    state: ScheduleState


@dataclass(frozen=True, slots=True)
class ScheduleRecord:
    """The public record of a schedule. `next` is the next tick (UTC, without jitter), `last` the id of a job.

    `arguments` is JSON. `declared` is the name of the App that declares it. It is an `orphan` if the live
    workers of its queue no longer declare it.
    """

    name: str
    task: str
    queue: str
    cron: str
    every: float
    tz: str
    next: datetime | None
    last: str
    fired: int
    skipped: int
    paused: bool
    orphan: bool
    declared: str
    catch_up: CatchUp
    overlap: Overlap
    jitter: float
    start: datetime | None
    end: datetime | None
    arguments: str


def due_ticks(schedule: Schedule, done: datetime, now: datetime) -> tuple[tuple[datetime, ...], datetime]:
    """The ticks that fire now, by the schedule's `catch_up`; and the last handled tick."""
    if schedule.catch_up == "all":
        due: list[datetime] = []
        for tick in schedule.next_ticks(done):
            if schedule.fires_at(tick) > now or len(due) == MAX_CATCH_UP:
                break
            due.append(tick)
        return tuple(due), due[-1] if due else done
    latest = schedule.latest_due(done, now)
    if latest is None:
        return (), done
    late = now - schedule.fires_at(latest) > timedelta(seconds=TICK_GRACE_SECONDS)
    return () if late and schedule.catch_up == "none" else (latest,), latest


def judge_tick(schedule: Schedule, progress: ScheduleState, now: datetime, *, busy: bool) -> TickDecision:
    """Decide about the due ticks; `busy` is true if the job of the last tick has not ended."""
    due, done = due_ticks(schedule, progress.decided_until, now)
    fires = due
    if schedule.overlap == "skip":
        fires = () if busy else due[:1]
    elif schedule.overlap == "cancel":
        fires = due[-1:]
    return TickDecision(
        fires,
        replace(
            progress,
            decided_until=done,
            last=tick_id(schedule.name, fires[-1]) if fires else progress.last,
            fired=progress.fired + len(fires),
            skipped=progress.skipped + len(due) - len(fires),
        ),
    )


def carry_over(old: Schedule, progress: ScheduleState, new: Schedule, now: datetime) -> ScheduleState:
    """The progress of a schedule that replaces another: if their ticks differ, they count from now."""
    return progress if old.timing == new.timing else replace(progress, decided_until=now)


def schedule_differences(old: Schedule, new: Schedule) -> list[str]:
    """The differences between a schedule and its declaration, one line each."""
    differences = [
        f"{field} is {getattr(old, field) or 'none'}, should be {getattr(new, field) or 'none'}"
        for field in (*_TIMING_OPTIONS, "expires", "declared")
        if getattr(old, field) != getattr(new, field)
    ]
    for field in ("task", "queue"):
        was, is_to_be = getattr(old.job, field), getattr(new.job, field)
        if was != is_to_be:
            differences.append(f"its {field} is {was}, should be {is_to_be}")
    if replace(old.job, task="", queue="") != replace(new.job, task="", queue=""):
        differences.append("its jobs have other arguments or options")
    return differences


def tick_id(name: str, tick: datetime) -> str:
    """The id of the job of a tick: the name of the schedule, and the time in UTC. Each tick has one id."""
    at = tick.astimezone(UTC)
    return f"{name}-{at:%Y%m%dT%H%M%S}{f'{at.microsecond // 1000:03}' if at.microsecond else ''}Z"


def tick_job(schedule: Schedule, tick: datetime) -> Job:
    """The job of a tick. Its headers `schedule` and `tick` identify the tick."""
    tick_headers = {
        "schedule": schedule.name,
        "tick": tick.astimezone(UTC).isoformat().replace("+00:00", "Z"),
    }
    headers = {**schedule.job.headers, **tick_headers}
    return replace(schedule.job, id=tick_id(schedule.name, tick), headers=headers)


# -- as users write it -----------------------------------------------------------------------------------

PER_JOB_OPTIONS = ("queue", "priority", "tags", "headers", "deadline", "expires")
"""Options of a submit that a schedule may have besides those that are sent with a job."""

UNIQUE_OPTIONS = ("unique", "unique_until", "unique_for", "on_duplicate", "debounce", "throttle")
"""Options of a submit that a schedule cannot have."""

SINGLE_SUBMIT_RULE = "must not be set for a schedule, whose jobs start at its ticks"
NOT_UNIQUE_RULE = (
    "must not be set for a schedule; use overlap='skip', and unique=False if the task declares a unique key"
)

TICK_HEADERS = ("schedule", "tick")
"""The headers that identify the tick of a job."""


def read_schedule(
    name: str, task: str, arguments: bytes, declared: str = "", **written: Unpack[ScheduleOptions]
) -> Schedule:
    """Read a schedule of a task by its name, with encoded arguments.

    Raises `BadName`, `BadOption`.
    """
    given: dict[str, Any] = {field: value for field, value in written.items() if value is not None}
    check_known(given, (*SubmitOptions.__annotations__, *_TIMING_OPTIONS))
    own = {field: given.pop(field) for field in _TIMING_OPTIONS if field in given}
    for field in ("deadline", "expires"):
        if isinstance(given.get(field), datetime):
            raise BadOption(field, given[field], "must be seconds, which count for each job of the schedule")
    options = parse_options(**given)
    check_fallback(options.fallback, task)
    accepted = {*PER_JOB_OPTIONS, *RARE_OPTIONS, *options.job_fields}
    for field, value in given.items():
        if field not in accepted and value not in ((), {}, [], False):
            raise BadOption(field, value, NOT_UNIQUE_RULE if field in UNIQUE_OPTIONS else SINGLE_SUBMIT_RULE)
    tick_headers = {"schedule": check_schedule_name(name), "tick": "2026-06-01T12:00:00.500000Z"}
    check_headers({**options.headers, **tick_headers})
    for field in TICK_HEADERS:
        if field in options.headers:
            raise BadOption(
                f"header {field}", options.headers[field], "must not be set: the schedule sets this header"
            )
    if "cron" in own:
        own["cron"] = read_cron(own["cron"])
    if "every" in own:
        own["every"] = read_every(own["every"])
    own["jitter"] = seconds("jitter", own.get("jitter")) or 0.0
    if isinstance(options.expires, float | int):
        own["expires"] = float(options.expires)
    queue, priority = options.queue or DEFAULT_QUEUE, options.priority or "normal"
    terms = {**options.job_fields, "deadline": options.deadline}
    job = Job("", check_task(task), queue, priority, arguments, **terms)
    return Schedule(name, job, declared=declared, **own)


_TIMING_OPTIONS = ("cron", "every", "tz", "jitter", "catch_up", "overlap", "start", "end")


def check_schedule_name(name: str) -> str:
    return check_text("schedule", name, MAX_SCHEDULE_NAME_LENGTH)


def check_tick_jitter(jitter: float, every: float) -> None:
    if (seconds("jitter", jitter) or 0.0) > MAX_JITTER_SECONDS:
        raise BadOption("jitter", jitter, f"must be {MAX_JITTER_SECONDS:g} seconds at most")
    if every and jitter > every:
        raise BadOption("jitter", jitter, f"must not exceed the interval, {every:g} s")


@functools.lru_cache(maxsize=1024)
def check_cron(cron: str, tz: str) -> None:
    """Raises `BadOption` for an invalid cron expression, or one without a date."""
    try:
        first = next_cron_tick(cron, time_zone(tz), datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        why = str(error).replace("Bad", "it has a wrong", 1)
        if "number" in why:
            why = f"it has {len(cron.split())}"
        raise BadOption(
            "cron", cron, f"must have five fields, or six with the seconds first; {why}"
        ) from error
    if first is None:
        raise BadOption("cron", cron, "must match at least one date")


def read_cron(text: object) -> str:
    """A cron expression, or a name like `@daily`. Raises `BadOption`."""
    if not isinstance(text, str) or not text.isascii() or not text.strip():
        raise BadOption("cron", text, "must be text such as */5 * * * * or @daily")
    if len(text) > MAX_CRON_LENGTH:
        raise BadOption("cron", text, f"must have {MAX_CRON_LENGTH} characters at most")
    if text.strip().startswith("@") and text.strip().lower() not in NICKNAMES:
        raise BadOption("cron", text, f"must be one of {', '.join(NICKNAMES)}, or fields")
    return NICKNAMES.get(text.strip().lower(), " ".join(text.split()))


def read_every(value: Duration) -> float:
    """An interval in seconds, to the millisecond. Raises `BadOption`."""
    found = seconds("every", value, least=1.0)
    if found is None:
        raise BadOption("every", value, "must be an interval")
    return round(found, 3)


@functools.lru_cache(maxsize=1024)
def time_zone(name: str) -> tzinfo:
    """A time zone by its name. Raises `BadOption`."""
    if name == "UTC":
        return UTC
    try:
        if isinstance(name, str) and len(name) <= MAX_ZONE_LENGTH and name.isascii():
            return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        pass
    raise BadOption("tz", name, "must be an IANA time zone such as Europe/Berlin")


def next_cron_tick(cron: str, zone: tzinfo, moment: datetime) -> datetime | None:
    """The first tick of a cron expression after a moment, in UTC; None where none comes in 50 years."""
    for tick in CronSim(cron, moment.astimezone(zone)):
        # In a repeated hour, cronsim uses the wall clock, which shows each time twice.
        if (at := tick.astimezone(UTC)) > moment:
            return at
    return None
