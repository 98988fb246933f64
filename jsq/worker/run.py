"""The run of one attempt's function: it is started, watched, interrupted if necessary, and judged.

A function that must stop is interrupted first, and gets time to clean up. Then a child process is killed. A
function in the worker itself is abandoned, and its slot is freed after its grace.
"""

import asyncio
import functools
import random
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from jsq.context import Context, ContextLink
from jsq.declaration import Declaration, FunctionLocation
from jsq.errors import BadResult, LeaseLost
from jsq.executors import Execution, HookedExecution, Judged, Raised, Returned, ThreadCall
from jsq.executors.awaitables import call_with_loop, end_without_result
from jsq.executors.base import FunctionEnd
from jsq.executors.child import CallRequest
from jsq.executors.labels import job_labels, start_labelled
from jsq.executors.process import ChildCallbacks, ReportProgress
from jsq.hooks import HookedCall, TaskHooks
from jsq.model.job import Job
from jsq.model.outcome import (
    ChildDied,
    Expired,
    Fault,
    Interrupted,
    Outcome,
    Succeeded,
    TaskTimeout,
    drop_caller_frames,
    judge_outcome,
)
from jsq.task import AnyTask
from jsq.worker.resources import Resources

MIN_UNWIND = 0.05
"""Seconds to clean up at the hard timeout: a coroutine needs a turn of the event loop to end."""

CHILD_START_SECONDS = 60.0
"""Seconds that a child process may take to start and to import the module of the function."""

EVENT_OVERHEAD = 16_384
"""Bytes of an event that are reserved for everything except the result."""


class TooLate(Exception):
    """The function was not called, because its reserved start time had passed."""


class AttemptMemory(Protocol):
    """The checkpoints of one attempt, as its function uses them."""

    @property
    def checkpoint(self) -> bytes: ...

    def ask(self, what: str, place: str, body: bytes) -> Future[bytes]: ...

    async def act(self, what: str, place: str, body: bytes) -> bytes: ...


class FunctionRun(Protocol):
    """The function of one attempt. The stages of the attempt set `may_start`, `progress`, `memory`, `hooks`
    and `waited`.

    `has_slot` is false if another run has the slot. A function that continues after its attempt has ended
    keeps its slot for `grace` seconds.
    """

    has_slot: bool
    stopping: Outcome | LeaseLost | None
    may_start: Callable[[], bool] | None
    progress: ReportProgress | None
    memory: AttemptMemory | None
    hooks: TaskHooks | None
    waited: float

    @property
    def execution(self) -> Execution | None: ...

    async def perform(
        self, resources: Resources, task: AnyTask, job: Job, options: Declaration, token: int
    ) -> Outcome: ...

    def stop(self, why: Outcome | LeaseLost) -> None: ...

    def extend_timeout(self, seconds: float) -> None: ...

    def grace(self) -> float: ...

    def release(self) -> None: ...


@dataclass(slots=True)
class ChildClock:
    """The time of a function in a child process: `limit` seconds from its call, at most until `deadline`.

    `deadline` and `began`, the time of the call, are monotonic.
    """

    limit: float | None
    deadline: float | None
    began: float | None = None

    @property
    def by_deadline(self) -> bool:
        """Whether the deadline comes before the limit."""
        if self.deadline is None or self.limit is None or self.began is None:
            return self.deadline is not None
        return self.deadline < self.began + self.limit

    def begin(self) -> float | None:
        """Count from now; returns the seconds until the function is interrupted."""
        self.began = time.monotonic()
        return self.limit if not self.by_deadline or self.deadline is None else self.deadline - self.began


@dataclass(frozen=True, slots=True)
class Extension:
    """The longer timeout that a task has asked for, in seconds from its start, and what bounds it."""

    seconds: float
    by_hard_timeout: bool
    by_deadline: bool


class TaskRun:
    """The function of one attempt. A cancelled function gets `unwind` seconds to clean up."""

    has_slot = True
    stopping: Outcome | LeaseLost | None = None
    execution: Execution | None = None
    may_start: Callable[[], bool] | None = None
    progress: ReportProgress | None = None
    memory: AttemptMemory | None = None
    hooks: TaskHooks | None = None
    waited: float = 0.0
    _timer: asyncio.TimerHandle | None = None
    _child_clock: ChildClock | None = None
    _wakeup: asyncio.Future[None] | None = None
    _started_at = 0.0
    _hard_timeout: float | None = None
    _was_interrupted = False
    _deadline: float | None = None
    _ends_at = 0.0
    _extension: Extension | None = None

    def __init__(self, unwind: float) -> None:
        self._unwind = unwind

    async def perform(
        self, resources: Resources, task: AnyTask, job: Job, options: Declaration, token: int
    ) -> Outcome:
        """Run the function until it ends, its time is up, or it is stopped. Returns the outcome.

        `may_start` is called just before the function, if it runs in this process. Raises `BadArguments`,
        `TooLate`, and `LeaseLost` if the run was stopped for that.
        """
        if self.stopping is not None:
            return stopped_with(self.stopping)
        limit = limit_of(options)
        left = seconds_left(resources, job)
        self._deadline = None if left is None else time.monotonic() + left
        if task.location is not None:
            self._child_clock = ChildClock(limit, self._deadline)
            limit = CHILD_START_SECONDS
        last = left is not None and (limit is None or left < limit)
        context = build_context(self, resources, job, token) if task.location is None else None
        start = functools.partial(self._start, resources, task, job, options, token, context)
        end = await self.watch(start, left if last else limit, options.hard_timeout, context)
        if end is None:
            clock = self._child_clock
            last = clock.by_deadline if clock is not None and clock.began is not None else last
            last = last if self._extension is None else self._extension.by_deadline
            return self.cut_short_outcome(job, options, last=last)
        return outcome_of(end, resources, task, job, options)

    async def watch(
        self,
        start: Callable[[], Execution],
        limit: float | None,
        hard: float | None,
        context: Context | None = None,
    ) -> FunctionEnd | None:
        """Start a function, and wait until it ends, its time is up, or the run is stopped.

        None if it was cut short: `cut_short_outcome` returns the outcome then.
        """
        self._started_at, self._hard_timeout = time.monotonic(), hard
        self._wakeup = asyncio.get_running_loop().create_future()
        self.execution = execution = start()
        await self._wait(self._wakeup, limit)
        if not execution.end.done():
            if context is not None:
                context.cancelled = True
            await self.interrupt(execution)
            if not (isinstance(self.stopping, Interrupted) and ended_well(execution)):
                return None
        return execution.end.result()

    def cut_short_outcome(self, job: Job, options: Declaration, *, last: bool = False) -> Outcome:
        """The outcome of a function that was cut short; with `last`, by the deadline of its job."""
        if self.stopping is not None:
            return stopped_with(self.stopping)
        if last:
            return Expired(Fault("its deadline passed while it ran"))
        error: Exception = TaskTimeout(f"it ran longer than its {describe_limit(options, self._extension)}")
        if self._child_clock is not None and self._child_clock.began is None:
            error = ChildDied(f"the child process did not call it within {CHILD_START_SECONDS:g} s")
        elif self.execution is not None and self.execution.end.done():
            end = self.execution.end.result()
            if isinstance(end, Raised):  # its traceback shows where the function was interrupted
                drop_caller_frames(end.error)
                error.__cause__ = end.error
        return judge_outcome(
            error, failures=job.failures, policy=options.retry, pick=random.uniform, attempt=job.attempt
        )

    def stop(self, why: Outcome | LeaseLost) -> None:
        """End early, with this outcome."""
        if self.stopping is None:
            self.stopping = why
            self.wake()

    def extend_timeout(self, seconds: float) -> None:
        """Let the function run for some seconds from now, at most until its hard timeout and its deadline.

        May be called from any thread while the function runs.
        """
        if self._wakeup is not None:
            self._wakeup.get_loop().call_soon_threadsafe(self._extend, seconds)

    def _extend(self, seconds: float) -> None:
        timer, wakeup, now = self._timer, self._wakeup, time.monotonic()
        if timer is None or wakeup is None or wakeup.done():
            return
        limit = None if self._hard_timeout is None else self._started_at + self._hard_timeout
        end = min(one for one in (now + seconds, limit, self._deadline) if one is not None)
        if end <= self._ends_at:
            return
        timer.cancel()
        self._timer, self._ends_at = asyncio.get_running_loop().call_later(end - now, self.wake), end
        self._extension = Extension(end - self._started_at, end == limit, end == self._deadline)

    def wake(self) -> None:
        """Wake the waiting run: the function has ended, its time is up, or the run is stopped."""
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    @property
    def abandoned(self) -> Execution | None:
        """The function, if it continues after its attempt has ended."""
        return None if self.execution is None or self.execution.end.done() else self.execution

    def grace(self) -> float:
        """Seconds for which an abandoned function keeps its slot; 0 if the run has waited for its end."""
        return 0.0 if self._was_interrupted else self.unwind_seconds()

    def release(self) -> None:
        """Forget a function that has ended: its exception refers to its frames. Call it after the attempt."""
        if self.execution is not None and self.execution.end.done():
            self.execution = None

    def unwind_seconds(self) -> float:
        """Seconds from now in which an interrupted function may clean up."""
        if self._hard_timeout is None:
            return self._unwind
        left = max(MIN_UNWIND, self._started_at + self._hard_timeout - time.monotonic())
        return left if self.stopping is None else min(left, self._unwind)

    def _start(
        self,
        resources: Resources,
        task: AnyTask,
        job: Job,
        options: Declaration,
        token: int,
        context: Context | None,
    ) -> Execution:
        if task.location is not None:
            return self._start_child(resources, task.location, job, options, token)
        args, named = task.signature.unpack(job.arguments)
        if context is not None:
            if task.takes_context:
                args.insert(0, context)
            if self.hooks is not None:
                run = HookedRun(resources, task, self.hooks, context, self.may_start)
                start = functools.partial(run.start, (args, named), self.wake)
                return start_labelled(start, job_labels(job))
        executor = resources.loop if task.is_async else resources.threads
        call: Callable[[], Any] = functools.partial(task.function, *args, **named)
        if task.hides_coroutine:
            call = functools.partial(call_with_loop, call)
        if self.may_start is not None:
            call = gated_call(call, self.may_start, is_async=task.is_async)
        return start_labelled(functools.partial(executor.start, call, self.wake), job_labels(job))

    def _start_child(
        self, resources: Resources, location: FunctionLocation, job: Job, options: Declaration, token: int
    ) -> Execution:
        memory = self.memory
        checkpoint = memory.checkpoint if memory is not None else b""
        retry, uses_predicate = replace(options.retry, retry_if=None), options.retry.retry_if is not None
        given = uses_predicate, checkpoint, self.waited
        request = CallRequest(location, job, token, resources.name, retry, *given)
        progress = self.progress or ignore_progress
        keep = memory.act if memory is not None else None
        extend = self.extend_timeout
        callbacks = ChildCallbacks(progress, extend, self._function_began, self.wake, keep)
        return resources.processes.start(request, callbacks)

    def _function_began(self) -> None:
        """Note that the child calls the function: its timeout counts from now, not from the child's start."""
        clock, timer, wakeup = self._child_clock, self._timer, self._wakeup
        if clock is None or timer is None or wakeup is None or wakeup.done():
            return
        timer.cancel()
        left, self._started_at = clock.begin(), time.monotonic()
        if left is None:
            self._timer = None
        else:
            self._ends_at = self._started_at + left
            self._timer = asyncio.get_running_loop().call_later(left, self.wake)

    async def _wait(self, wakeup: asyncio.Future[None], limit: float | None) -> None:
        """Wait until the function has ended, its time is up, or the run is stopped."""
        if limit is None:
            await wakeup
            return
        self._timer = asyncio.get_running_loop().call_later(limit, self.wake)
        self._ends_at = self._started_at + limit
        try:
            await wakeup
        finally:
            if self._timer is not None:
                self._timer.cancel()

    async def interrupt(self, execution: Execution) -> None:
        """Interrupt the function, then kill it if that is possible."""
        self._was_interrupted = execution.interrupt()
        if self._was_interrupted:
            await asyncio.wait((execution.end,), timeout=self.unwind_seconds())
        if not execution.end.done() and execution.kill():
            await asyncio.wait((execution.end,), timeout=self._unwind)


def build_context(
    run: FunctionRun, resources: Resources, job: Job, token: int, batch: tuple[Job, ...] = ()
) -> Context | None:
    """The `Context` of a task that takes one, or has hooks; a child process makes its own."""
    if run.progress is None or run.memory is None:
        return None
    given = run.memory.checkpoint, resources.state, run.waited, batch
    link = ContextLink(run.progress, run.memory.ask, *given, extend=run.extend_timeout)
    return Context(job, token=token, worker=resources.name, link=link)


@dataclass(frozen=True, slots=True)
class HookedRun:
    """A function of this process that runs inside its middleware, with its dependencies."""

    resources: Resources
    task: AnyTask
    hooks: TaskHooks
    context: Context
    may_start: Callable[[], bool] | None = None

    def start(
        self, arguments: tuple[list[Any], dict[str, Any]], ended: Callable[[], None]
    ) -> HookedExecution:
        """Start the function. `may_start` is called before everything that runs around it."""
        threads, hides = self.resources.threads, self.task.hides_coroutine
        in_thread = None if self.task.is_async else ThreadCall(threads, hides_coroutine=hides)
        hooked = HookedCall(self.hooks, self.task.function, arguments, in_thread)
        call: Callable[[], Any] = functools.partial(hooked.run, self.context)
        if self.may_start is not None:
            call = gated_call(call, self.may_start, is_async=True)
        return HookedExecution(call, in_thread, ended)


def ignore_progress(fraction: float, text: str) -> None:
    """The progress callback of a task that reports no progress."""


def seconds_left(resources: Resources, job: Job) -> float | None:
    """Seconds until the deadline of a job, by the server's clock; None without a deadline."""
    deadline = job.deadline
    if not isinstance(deadline, datetime):
        return None
    return deadline.timestamp() - resources.broker.wire.clock.now()


def limit_of(options: Declaration) -> float | None:
    """Seconds after which a function is asked to end."""
    if options.timeout is None or options.hard_timeout is None:
        return options.timeout if options.timeout is not None else options.hard_timeout
    return min(options.timeout, options.hard_timeout)


def describe_limit(options: Declaration, extension: Extension | None = None) -> str:
    hard = options.hard_timeout
    if hard is not None and (hard == limit_of(options) if extension is None else extension.by_hard_timeout):
        return f"hard timeout of {hard:g} s"
    extended = "" if extension is None else f", extended to {extension.seconds:.1f} s"
    return f"timeout of {options.timeout:g} s{extended}"


def stopped_with(why: Outcome | LeaseLost) -> Outcome:
    """The outcome of a run that was stopped. Raises the reason if that is `LeaseLost`."""
    if isinstance(why, LeaseLost):
        raise why
    return why


def gated_call(
    call: Callable[[], Any], may_start: Callable[[], bool], *, is_async: bool
) -> Callable[[], Any]:
    """A call that raises `TooLate` if the function may not start any more when the call is made."""

    def check() -> None:
        if not may_start():
            raise TooLate

    async def begin() -> Any:
        check()
        return await call()

    def call_here() -> Any:
        check()
        return call()

    return begin if is_async else call_here


def outcome_of(
    end: FunctionEnd, resources: Resources, task: AnyTask, job: Job, options: Declaration
) -> Outcome:
    """The outcome of a function that has ended, whatever it raised."""
    match end:
        case Raised(error=TooLate() as error):
            raise error
        case Raised(error=error):
            return judge_outcome(
                error, failures=job.failures, policy=options.retry, pick=random.uniform, attempt=job.attempt
            )
        case Judged(outcome=Succeeded(result=result, dropped="")):
            return checked_result(result, resources, task)
        case Judged(outcome=outcome):
            return outcome
        case Returned(value=value):
            try:
                return checked_result(task.signature.pack_result(value), resources, task)
            except BadResult as error:
                return end_without_result(task.signature.name, value, error)


def checked_result(result: bytes, resources: Resources, task: AnyTask) -> Outcome:
    """The success with a result; without it, if the result is too large for a message."""
    most = resources.broker.wire.max_payload - EVENT_OVERHEAD
    if len(result) > most:
        rule = f"the result of {task.name} must be {most:,} bytes at most, got {len(result):,}; "
        return Succeeded(b"", rule + "store it elsewhere and return its address")
    return Succeeded(result)


def ended_well(execution: Execution) -> bool:
    """Whether an interrupted function had returned a value by itself."""
    end = execution.end.result() if execution.end.done() else None
    return isinstance(end, Returned) or (isinstance(end, Judged) and isinstance(end.outcome, Succeeded))
