"""The schedules of a client: what submits jobs again and again, and goes on whoever dies."""

import contextlib
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, Unpack

from jsq.broker import Broker
from jsq.broker.schedules import ScheduleEntry
from jsq.client.handle import JobHandle
from jsq.codec.signature import Signature, pack_call
from jsq.errors import BadArguments, BadOption, ScheduleNotFound
from jsq.model.schedule import (
    UNIQUE_OPTIONS,
    Schedule,
    ScheduleOptions,
    ScheduleRecord,
    check_schedule_name,
    read_schedule,
)

Arguments = Sequence[object] | Mapping[str, object]
"""Arguments of a task: a list of positional ones, or named ones as a dictionary."""


class Terms(Protocol):
    """What a declared task says of each submit."""

    @property
    def asked(self) -> dict[str, Any]:
        """The options of each submit, where that says nothing else."""
        ...


class Submittable(Protocol):
    """A declared task, as far as a schedule needs it."""

    signature: Signature

    @property
    def name(self) -> str:
        """The name of the task."""
        ...

    @property
    def declaration(self) -> Terms:
        """How its jobs are submitted."""
        ...


class Schedules:
    """The schedules of a namespace: `client.schedules`.

    A schedule needs no process of its own: the server holds its next tick, and the workers of its queue
    submit the job. Methods raise what `jsq.errors` lists.
    """

    def __init__(self, broker: Callable[[], Awaitable[Broker]]) -> None:
        self._broker = broker

    async def add(
        self,
        name: str,
        task: str | Submittable,
        args: Arguments = (),
        **options: Unpack[ScheduleOptions],
    ) -> ScheduleRecord:
        """Add a schedule, or change the one of that name; where its times differ, its ticks count from now.

        `args` are a list of positional arguments or a dictionary of named ones; what may be said of the
        schedule, `ScheduleOptions` tells. Raises `BadName`, `BadOption`, `BadArguments`; `BadOption` too for
        the name of one that an App declares.
        """
        schedule = scheduled(name, task, args, **options)
        broker = await self._broker()
        with contextlib.suppress(ScheduleNotFound):
            app = (await broker.schedules.find(name)).schedule.declared
            if app:
                rule = f"the App {app} declares it: change it there, or remove it first"
                raise BadOption("name", name, rule)
        return record(await broker.schedules.put(schedule))

    async def ls(self) -> list[ScheduleRecord]:
        """All schedules, by name."""
        schedules = (await self._broker()).schedules
        found = await schedules.every()
        orphans = await schedules.orphans(found)
        return [record(entry, orphan=entry.name in orphans) for entry in found]

    async def rm(self, name: str) -> ScheduleRecord:
        """Remove a schedule; returns what it was. Its jobs stay. Raises `ScheduleNotFound`.

        One that an App declares comes again with the next worker that starts with that App.
        """
        return record(await (await self._broker()).schedules.remove(check_schedule_name(name)))

    async def run(self, name: str) -> JobHandle[Any]:
        """Submit a job of a schedule now, under an id of its own. Its ticks come as they would have, also
        where it is paused. Raises `ScheduleNotFound`.
        """
        broker = await self._broker()
        job = await broker.schedules.run(check_schedule_name(name))
        return JobHandle(broker, job.id, job.queue)

    async def pause(self, name: str) -> ScheduleRecord:
        """Have a schedule fire nothing until it is resumed. Raises `ScheduleNotFound`."""
        return record(await (await self._broker()).schedules.pause(check_schedule_name(name)))

    async def resume(self, name: str) -> ScheduleRecord:
        """Go on with a paused schedule, at its next tick: those it missed are not caught up.

        Raises `ScheduleNotFound`.
        """
        return record(await (await self._broker()).schedules.resume(check_schedule_name(name)))

    async def next(self, name: str, n: int = 10) -> list[datetime]:
        """The next `n` ticks of a schedule, in its time zone, without their jitter; fewer where it ends.

        Raises `ScheduleNotFound`.
        """
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 1000:
            raise BadOption("n", n, "it takes a number from 1 to 1000")
        schedules = (await self._broker()).schedules
        entry = await schedules.find(check_schedule_name(name))
        coming = entry.schedule.upcoming(max(schedules.now(), entry.progress.done))
        return [tick.astimezone(entry.schedule.zone) for tick in itertools.islice(coming, n)]


def scheduled(
    name: str,
    task: str | Submittable,
    args: Arguments = (),
    declared: str = "",
    **options: Unpack[ScheduleOptions],
) -> Schedule:
    """A schedule as a user wrote it; what it leaves open of its jobs, the task's declaration says.

    Raises `BadName`, `BadOption`, `BadArguments`.
    """
    if not isinstance(args, (list, tuple, Mapping)):
        raise BadArguments(f"schedule {name}: it takes a list of arguments, or a dictionary of named ones")
    positional, named = ((), args) if isinstance(args, Mapping) else (args, {})
    if isinstance(task, str):
        return read_schedule(name, task, pack_call(positional, named), declared, **options)
    given: Any = {field: value for field, value in options.items() if value is not None}
    packed = task.signature.pack(positional, named)
    asked: Any = dict(task.declaration.asked)
    if given.get("unique") is False:
        asked = {field: value for field, value in asked.items() if field not in UNIQUE_OPTIONS}
    return read_schedule(name, task.name, packed, declared, **asked | given)


def record(entry: ScheduleEntry, *, orphan: bool = False) -> ScheduleRecord:
    """What is known of a schedule, from its key."""
    schedule, progress = entry.schedule, entry.progress
    return ScheduleRecord(
        name=schedule.name,
        task=schedule.job.task,
        queue=schedule.job.queue,
        cron=schedule.cron,
        every=schedule.every,
        tz=schedule.tz,
        next=None if progress.paused else schedule.after(progress.done),
        last=progress.last,
        fired=progress.fired,
        skipped=progress.skipped,
        paused=progress.paused,
        orphan=orphan,
        declared=schedule.declared,
        catch_up=schedule.catch_up,
        overlap=schedule.overlap,
        jitter=schedule.jitter,
        start=schedule.start,
        end=schedule.end,
        arguments=schedule.job.arguments.decode(),
    )
