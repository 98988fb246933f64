"""Immediate mode: a block in which the submits of an App run at once, in this process and without a server.

The code that does it is in `jsq.testing.immediate`, which `App.immediate` imports on first use.
"""

from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, TypedDict

from jsq.client.blocking import BlockingMethod, BlockingWrapper, Portal, check_may_block
from jsq.client.handle import BlockingJobHandle, JobHandle
from jsq.errors import UsageError
from jsq.model.durations import Duration, seconds
from jsq.model.job import JobRecord
from jsq.testing.immediate_clock import VirtualClock
from jsq.testing.submits import Submits

AnyHandle: TypeAlias = JobHandle[Any] | BlockingJobHandle[Any] | str
"""A job: its handle, or its id."""

Records: TypeAlias = list[JobRecord]
Delays: TypeAlias = list[float]


class ImmediateOptions(TypedDict, total=False):
    """The options of immediate mode.

    `raise_errors`: a submit raises the exception of its job, if that has failed for good or has expired [no].
    `hold_retries`: jobs that are retried or snoozed wait until the clock moves, as delayed ones do [no].
    `schedules`: the schedules of the App fire when the clock moves [no].
    `start`: the time at which the clock starts, with a time zone [now].
    `max_depth`: how many jobs may run inside each other, each submitted by the one before [100].
    """

    raise_errors: bool
    hold_retries: bool
    schedules: bool
    start: datetime | None
    max_depth: int


class Engine(Protocol):
    """The part of immediate mode that stores and runs jobs."""

    submits: Submits
    clock: VirtualClock

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def advance(self, seconds: float) -> None: ...
    async def run_due(self) -> None: ...
    async def jobs(self) -> list[JobRecord]: ...
    async def delays(self, id: str, queue: str) -> list[float]: ...


class Immediate:
    """A block of immediate mode: `async with app.immediate() as immediate:`, or `with` in synchronous code.

    In it, no submit of the App reaches a server. A job runs before its submit returns, with its retries and
    snoozes, by the same steps as in a worker. Time is virtual: `clock` moves to the next attempt of such a
    job, so no backoff is waited for. A delayed job waits until `advance` or `run_due` moves the clock.

    `submits` are the submitted jobs, those that a job or a failure has submitted too.
    """

    def __init__(self, engine: Engine, portal: Portal) -> None:
        self.submits = engine.submits
        self.clock = engine.clock
        self._engine = engine
        self._portal = portal

    @property
    def blocking(self) -> "BlockingImmediate":
        """The methods for callers without an event loop."""
        return BlockingImmediate(self, self._portal, "immediate")

    async def advance(self, duration: Duration) -> None:
        """Move the clock, and run what becomes due, each job at its time. Raises `BadOption`.

        With `raise_errors`, raises the first exception of a job that has failed meanwhile.
        """
        await self._engine.advance(seconds("duration", duration) or 0.0)

    async def run_due(self) -> None:
        """Run every job that waits for a time, the earliest first: the clock moves to the time of each.

        Raises as `advance` does, and `ImmediateUnsupported` if that would have no end.
        """
        await self._engine.run_due()

    async def jobs(self) -> Records:
        """The records of all jobs of the block; the job that has changed last is the last one."""
        return await self._engine.jobs()

    async def delays(self, job: AnyHandle) -> Delays:
        """The delays before the later attempts of a job, in seconds: its backoff, and its snoozes."""
        if isinstance(job, str):
            return await self._engine.delays(job, "*")
        return await self._engine.delays(job.id, job.queue)

    async def __aenter__(self) -> Self:
        await self._engine.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._engine.stop()

    def __enter__(self) -> Self:
        try:
            check_may_block("app.immediate")
        except UsageError:
            raise UsageError("an event loop runs in this thread: write async with app.immediate()") from None
        self._portal.run(self._engine.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._portal.run(self._engine.stop())


class BlockingImmediate(BlockingWrapper[Immediate]):
    """The methods of `Immediate`, which block."""

    advance = BlockingMethod(Immediate.advance)
    run_due = BlockingMethod(Immediate.run_due)
    jobs = BlockingMethod(Immediate.jobs)
    delays = BlockingMethod(Immediate.delays)
