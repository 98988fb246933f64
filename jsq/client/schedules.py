"""`client.schedules`: add, list, run, pause and remove schedules, which submit jobs at regular times."""

import contextlib
import itertools
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol, TypeAlias, Unpack

from jsq.broker.schedules import ScheduleEntry
from jsq.client.blocking import BlockingMethod, BlockingWrapper
from jsq.client.bulk import CallArguments
from jsq.client.connection import Connection
from jsq.client.handle import BlockingJobHandle, JobHandle
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

Ticks: TypeAlias = list[datetime]
ScheduleRecords: TypeAlias = list[ScheduleRecord]


class DeclaredOptions(Protocol):
    """The declaration of a task, as far as a schedule needs it."""

    @property
    def submit_options(self) -> dict[str, Any]:
        """The default options of each submit."""
        ...


class SchedulableTask(Protocol):
    """A declared task, as far as a schedule needs it."""

    signature: Signature

    @property
    def name(self) -> str:
        """The name of the task."""
        ...

    @property
    def declaration(self) -> DeclaredOptions:
        """How its jobs are submitted."""
        ...


class SchedulesClient:
    """The schedules of a namespace.

    A schedule needs no process of its own: the server holds its next tick, and the workers of its queue
    submit the job. The methods raise the errors of `jsq.errors`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def add(
        self,
        name: str,
        task: str | SchedulableTask,
        args: CallArguments = (),
        **options: Unpack[ScheduleOptions],
    ) -> ScheduleRecord:
        """Add a schedule, or replace the schedule of that name. If its times differ, its ticks count from
        now.

        `args` is a list of positional arguments or a dictionary of named ones. `ScheduleOptions` lists the
        options. Raises `BadName`, `BadArguments`, and `BadOption`, also for the name of a schedule that an
        App declares.
        """
        queue = self._connection.routes.queue_of(task) if isinstance(task, str) else None
        if queue is not None and options.get("queue") is None:
            options["queue"] = queue
        schedule = scheduled(name, task, args, **options)
        broker = await self._connection.broker()
        with contextlib.suppress(ScheduleNotFound):
            app = (await broker.schedules.find(name)).schedule.declared
            if app:
                rule = f"must not be declared by an App; change it in the App {app}, or remove it first"
                raise BadOption("name", name, rule)
        return schedule_record(await broker.schedules.put(schedule))

    async def list(self) -> ScheduleRecords:
        """All schedules, by name."""
        schedules = (await self._connection.broker()).schedules
        found = await schedules.entries()
        orphans = await schedules.orphans(found)
        return [schedule_record(entry, orphan=entry.name in orphans) for entry in found]

    async def get(self, name: str) -> ScheduleRecord:
        """The record of a schedule. Raises `ScheduleNotFound`."""
        schedules = (await self._connection.broker()).schedules
        entry = await schedules.find(check_schedule_name(name))
        return schedule_record(entry, orphan=name in await schedules.orphans([entry]))

    async def remove(self, name: str) -> ScheduleRecord:
        """Remove a schedule; returns its last record. Its jobs stay. Raises `ScheduleNotFound`.

        The next start of a worker of an App creates a schedule that the App declares again.
        """
        return schedule_record(
            await (await self._connection.broker()).schedules.remove(check_schedule_name(name))
        )

    async def run(self, name: str) -> JobHandle[Any]:
        """Submit a job of a schedule now, under an id of its own, even if the schedule is paused.

        The ticks of the schedule do not change. Raises `ScheduleNotFound`.
        """
        broker = await self._connection.broker()
        job = await broker.schedules.run(check_schedule_name(name))
        return JobHandle(self._connection, job.id, job.queue)

    async def pause(self, name: str) -> ScheduleRecord:
        """Pause a schedule: it submits no jobs until it is resumed. Raises `ScheduleNotFound`."""
        return schedule_record(
            await (await self._connection.broker()).schedules.pause(check_schedule_name(name))
        )

    async def resume(self, name: str) -> ScheduleRecord:
        """Resume a paused schedule at its next tick. Missed ticks are not caught up.

        Raises `ScheduleNotFound`.
        """
        return schedule_record(
            await (await self._connection.broker()).schedules.resume(check_schedule_name(name))
        )

    async def next(self, name: str, n: int = 10) -> Ticks:
        """The next `n` ticks of a schedule, in its time zone, without jitter; fewer if the schedule ends.

        Raises `ScheduleNotFound`.
        """
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 1000:
            raise BadOption("n", n, "must be a number from 1 to 1000")
        schedules = (await self._connection.broker()).schedules
        entry = await schedules.find(check_schedule_name(name))
        coming = entry.schedule.next_ticks(max(schedules.now(), entry.state.decided_until))
        return [tick.astimezone(entry.schedule.zone) for tick in itertools.islice(coming, n)]


class BlockingSchedules(BlockingWrapper[SchedulesClient]):
    """`client.blocking.schedules`: the methods of `client.schedules`, which block."""

    add = BlockingMethod(SchedulesClient.add)
    list = BlockingMethod(SchedulesClient.list)
    get = BlockingMethod(SchedulesClient.get)
    remove = BlockingMethod(SchedulesClient.remove)
    pause = BlockingMethod(SchedulesClient.pause)
    resume = BlockingMethod(SchedulesClient.resume)
    next = BlockingMethod(SchedulesClient.next)

    def run(self, name: str) -> BlockingJobHandle[Any]:
        """As `SchedulesClient.run`."""
        return self._call(self._wrapped.run(name), "run").blocking


def scheduled(
    name: str,
    task: str | SchedulableTask,
    args: CallArguments = (),
    declared: str = "",
    **options: Unpack[ScheduleOptions],
) -> Schedule:
    """A schedule, checked. The declaration of the task gives the job options that are left out.

    Raises `BadName`, `BadOption`, `BadArguments`.
    """
    if not isinstance(args, (list, tuple, Mapping)):
        raise BadArguments(
            f"schedule {name}: args must be a list of arguments, or a dictionary of named ones"
        )
    positional, named = ((), args) if isinstance(args, Mapping) else (args, {})
    if isinstance(task, str):
        return read_schedule(name, task, pack_call(positional, named), declared, **options)
    given: Any = {field: value for field, value in options.items() if value is not None}
    packed = task.signature.pack(positional, named)
    asked: Any = dict(task.declaration.submit_options)
    if given.get("unique") is False:
        asked = {field: value for field, value in asked.items() if field not in UNIQUE_OPTIONS}
    return read_schedule(name, task.name, packed, declared, **asked | given)


def schedule_record(entry: ScheduleEntry, *, orphan: bool = False) -> ScheduleRecord:
    """The public record of a schedule, from its stored entry."""
    schedule, progress = entry.schedule, entry.state
    return ScheduleRecord(
        name=schedule.name,
        task=schedule.job.task,
        queue=schedule.job.queue,
        cron=schedule.cron,
        every=schedule.every,
        tz=schedule.tz,
        next=None if progress.paused else schedule.next_tick(progress.decided_until),
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
