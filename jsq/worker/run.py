"""The run of one attempt's function: begun, watched, cut short, and judged.

Who is to stop is asked first and gets time to clean up; then a process is killed, and what cannot be killed
is given up: `left` says so, and whoever holds the slot sees to the rest.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from jsq.context import Context
from jsq.errors import BadResult, LeaseLost
from jsq.executors import Execution, Judged, Raised, Returned
from jsq.executors.base import End
from jsq.executors.child import CallRequest
from jsq.model.job import Job
from jsq.model.outcome import (
    Expired,
    Failed,
    Fault,
    Interrupted,
    Outcome,
    Succeeded,
    TaskTimeout,
    describe_error,
    judge_outcome,
)
from jsq.task import AnyTask, Declaration
from jsq.worker.progress import ProgressReporter
from jsq.worker.resources import Resources
from jsq.worker.stages.checkpoints import Checkpoints

UNWIND = 5.0
"""Seconds a cancelled task gets to clean up; then it is killed, or left to itself."""

SHORTEST_UNWIND = 0.05
"""Seconds it gets at its hard timeout: an obedient coroutine needs a turn of the loop to end."""

ROOM_IN_RESULT = 16_384
"""Bytes of an event left for all but the result."""

Note = Callable[[float, str], None]


class TooLate(Exception):
    """It was too late to begin by the time that the function was called: it was not."""


class TaskRun:
    """The function of one attempt."""

    has_slot = True

    def __init__(self) -> None:
        self.execution: Execution | None = None
        self.stopping: Outcome | LeaseLost | None = None
        self._turn: asyncio.Future[None] | None = None
        self._began = 0.0
        self._hard: float | None = None
        self._asked = False

    async def perform(
        self,
        tools: Resources,
        task: AnyTask,
        job: Job,
        terms: Declaration,
        *,
        token: int,
        note: Note,
        steps: Checkpoints | None,
        left: float | None = None,
        may_begin: Callable[[], bool] | None = None,
    ) -> Outcome:
        """Run the function until it ends, its time is up, or we are told to stop. The outcome says how.

        `left` is how many seconds the job may take yet; `may_begin` is asked just before the function is
        called, where that is in this process. Raises `BadArguments`, `TooLate`, and `LeaseLost` if we were
        stopped for that.
        """
        if self.stopping is not None:
            return told_to(self.stopping)
        limit = limit_of(terms)
        last = left is not None and (limit is None or left < limit)
        with told_of(task, job, token, tools.name, note, steps) as (context, progress):
            start = functools.partial(
                self._start, tools, task, job, terms, token, context, progress, steps, may_begin
            )
            end = await self.watch(start, left if last else limit, terms.hard_timeout, context)
        return self.cut(job, terms, last=last) if end is None else judged(end, tools, task, job, terms)

    async def watch(
        self,
        start: Callable[[], Execution],
        limit: float | None,
        hard: float | None,
        context: Context | None = None,
    ) -> End | None:
        """Start a function and wait until it ends, its time is up, or we are told to stop.

        None if it was cut short; what that comes to, `cut` says.
        """
        self._began, self._hard = time.monotonic(), hard
        self._turn = asyncio.get_running_loop().create_future()
        self.execution = execution = start()
        await self._wait(self._turn, limit)
        if not execution.end.done():
            if context is not None:
                context.cancelled = True
            await self._cut_short(execution)
            if not (isinstance(self.stopping, Interrupted) and ended_well(execution)):
                return None
        return execution.end.result()

    def cut(self, job: Job, terms: Declaration, *, last: bool = False) -> Outcome:
        """What a function came to that was not let run to its end; the `last` that its job could run."""
        if self.stopping is not None:
            return told_to(self.stopping)
        if last:
            return Expired(Fault("its deadline came while it ran"))
        error = TaskTimeout(f"it ran longer than its {told_limit(terms)}")
        return judge_outcome(error, failures=job.failures, policy=terms.retry, attempt=job.attempt)

    def stop(self, why: Outcome | LeaseLost) -> None:
        """End early, with this outcome."""
        if self.stopping is None:
            self.stopping = why
            self.wake()

    def wake(self) -> None:
        """See to the function: it has ended, its time is up, or we are to stop."""
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    @property
    def left(self) -> Execution | None:
        """The function, if it goes on though its attempt has ended."""
        return None if self.execution is None or self.execution.end.done() else self.execution

    def leave(self) -> None:
        """The attempt is over: nobody waits for it."""

    def grace(self) -> float:
        """Seconds from now that a function which goes on may keep its slot: none, if it was waited for."""
        return 0.0 if self._asked else self.patience()

    def patience(self) -> float:
        """Seconds from now that a function which was asked to end may take."""
        if self._hard is None:
            return UNWIND
        left = max(SHORTEST_UNWIND, self._began + self._hard - time.monotonic())
        return left if self.stopping is None else min(left, UNWIND)

    def _start(
        self,
        tools: Resources,
        task: AnyTask,
        job: Job,
        terms: Declaration,
        token: int,
        context: Context | None,
        progress: Note,
        steps: Checkpoints | None,
        may_begin: Callable[[], bool] | None,
    ) -> Execution:
        if task.place is not None:
            checkpoint = steps.checkpoint if steps is not None else b""
            retry, asks = replace(terms.retry, when=None), terms.retry.when is not None
            order = CallRequest(task.place, job, token, tools.name, retry, asks, checkpoint)
            keep = steps.act if steps is not None else None
            return tools.processes.start(order, progress, self.wake, keep=keep)
        args, named = task.signature.unpack(job.arguments)
        if context is not None:
            args.insert(0, context)
        executor = tools.loop if task.is_async else tools.threads
        call = functools.partial(task.function, *args, **named)
        return executor.start(call if may_begin is None else gated(call, may_begin, task), self.wake)

    async def _wait(self, turn: asyncio.Future[None], limit: float | None) -> None:
        """Wait until the function has ended, its time is up, or we are told to stop."""
        if limit is None:
            await turn
            return
        late = asyncio.get_running_loop().call_later(limit, self.wake)
        try:
            await turn
        finally:
            late.cancel()

    async def _cut_short(self, execution: Execution) -> None:
        """Have the function end: ask it, then kill it where that can be done."""
        self._asked = execution.interrupt()
        if self._asked:
            await asyncio.wait((execution.end,), timeout=self.patience())
        if not execution.end.done() and execution.kill():
            await asyncio.wait((execution.end,), timeout=UNWIND)


@contextlib.contextmanager
def telling(
    task: AnyTask, job: Job, token: int, worker: str, note: Note, steps: Checkpoints
) -> Iterator[tuple[Any, Note]]:
    """What the task may know and say, in a process of its own only what it says."""
    progress = ProgressReporter(note)
    context = Context(
        job,
        token=token,
        worker=worker,
        progress=progress.tell,
        keeping=steps.ask,
        checkpoint=steps.checkpoint,
    )
    try:
        yield (context if task.place is None else None), progress.tell
    finally:
        progress.close()


def told_of(
    task: AnyTask, job: Job, token: int, worker: str, note: Note, steps: Checkpoints | None
) -> contextlib.AbstractContextManager[tuple[Context | None, Note]]:
    """What the task may know and say, if it asks for it."""
    return telling(task, job, token, worker, note, steps) if steps is not None else _untold


_untold: contextlib.nullcontext[tuple[None, Note]] = contextlib.nullcontext((None, lambda *_: None))


def limit_of(terms: Declaration) -> float | None:
    """Seconds after which a function is asked to end."""
    if terms.timeout is None or terms.hard_timeout is None:
        return terms.timeout if terms.timeout is not None else terms.hard_timeout
    return min(terms.timeout, terms.hard_timeout)


def told_limit(terms: Declaration) -> str:
    hard = terms.hard_timeout
    if hard is not None and hard == limit_of(terms):
        return f"hard timeout of {hard:g} s"
    return f"timeout of {terms.timeout:g} s"


def told_to(why: Outcome | LeaseLost) -> Outcome:
    """The outcome we were told to come to."""
    if isinstance(why, LeaseLost):
        raise why
    return why


def gated(call: Callable[[], Any], may_begin: Callable[[], bool], task: AnyTask) -> Callable[[], Any]:
    """A call that raises `TooLate` instead, if it may not begin any more when its turn has come."""

    def check() -> None:
        if not may_begin():
            raise TooLate

    async def begin() -> Any:
        check()
        return await call()

    def begin_here() -> Any:
        check()
        return call()

    return begin if task.is_async else begin_here


def judged(end: End, tools: Resources, task: AnyTask, job: Job, terms: Declaration) -> Outcome:
    """What a function that has ended came to, whatever it raised."""
    match end:
        case Raised(error=TooLate() as error):
            raise error
        case Raised(error=error):
            return judge_outcome(error, failures=job.failures, policy=terms.retry, attempt=job.attempt)
        case Judged(outcome=Succeeded(result=result)):
            return kept(result, tools, task)
        case Judged(outcome=outcome):
            return outcome
        case Returned(value=value):
            try:
                return kept(task.signature.pack_result(value), tools, task)
            except BadResult as error:
                return Failed("bad_result", describe_error(error))


def kept(result: bytes, tools: Resources, task: AnyTask) -> Outcome:
    """The success with a result, unless that is too large."""
    most = tools.broker.wire.max_payload - ROOM_IN_RESULT
    if len(result) > most:
        told = f"{task.name} returned {len(result):,} bytes, and {most:,} can be kept: "
        return Failed("bad_result", Fault(told + "store it elsewhere and return its address"))
    return Succeeded(result)


def ended_well(execution: Execution) -> bool:
    """Whether a function that was asked to end had ended by itself, with a value."""
    end = execution.end.result() if execution.end.done() else None
    return isinstance(end, Returned) or (isinstance(end, Judged) and isinstance(end.outcome, Succeeded))
