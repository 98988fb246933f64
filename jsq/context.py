"""The context of a running task: its job, and the ways to report progress and to keep checkpoints."""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, MutableMapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, TypeVarTuple, cast, overload

from pydantic_core import from_json

from jsq.codec import checkpoints as steps
from jsq.codec.signature import pack_value
from jsq.errors import BadOption, BadResult, JsqError, StepUnknown, UsageError
from jsq.model.checkpoint import CHECKPOINT, MAX_VALUE_BYTES, OnUnknownStep, check_on_unknown
from jsq.model.durations import Duration, seconds
from jsq.model.job import Job, is_utf8
from jsq.model.options import check_headers
from jsq.model.outcome import describe_error
from jsq.model.peer_terms import CONTEXT_TERMS, explain_missing

LONGEST_TEXT = 500

Progress = Callable[[float, str], None]

StoreRequest = Callable[[str, str, bytes], "Future[bytes]"]
"""Requests that a value of the job is stored: the operation, the step's key, and the JSON.

Returns at once, from any thread. The result of the future is the value that is stored there already, if the
operation does not replace it.
"""

Ask = Callable[[str, str, bytes], Awaitable[bytes]]
"""An awaitable `StoreRequest`."""

Ts = TypeVarTuple("Ts")
R = TypeVar("R")

StepErrors = type[Exception] | tuple[type[Exception], ...]


class JobLog(logging.LoggerAdapter[logging.Logger]):
    """A logger whose lines carry the job's id, task and attempt."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, {**kwargs, "extra": {**(self.extra or {}), **kwargs.get("extra", {})}}


@dataclass(frozen=True, slots=True)
class ContextLink:
    """The connection of a `Context` to its worker, the last checkpoint of its job, and the App's state."""

    progress: Progress
    store: StoreRequest
    checkpoint: bytes = b""
    state: Mapping[str, Any] = field(default_factory=dict)
    waited: float = 0.0
    batch: tuple[Job, ...] = ()
    extend: Callable[[float], object] = lambda seconds: None


class Context:
    """The job that a task runs for. A task receives it if its first parameter has this type.

    `attempt` counts from 1. `token` rises with each attempt of the job. Pass it to a store that refuses
    writes with a lower token: then a worker that lost its lease cannot overwrite the work of its successor.
    `cancelled` becomes true when the attempt must end. A task in a thread cannot be interrupted and should
    check it. `state` is what the `lifespan` of the App has opened in this process; empty without one. `batch`
    are the jobs of a batch task, for its middleware, and `job` is the first of them; else it is empty.

    Methods that wait for the server are awaited, `await ctx.checkpoint(...)`. A task that is not a coroutine
    function calls their blocking forms, `ctx.blocking.checkpoint(...)`.
    """

    __slots__ = (
        "_checkpoint",
        "_extend",
        "_progress",
        "_running_steps",
        "_store",
        "_waited",
        "batch",
        "blocking",
        "cancelled",
        "job",
        "log",
        "state",
        "token",
        "worker",
    )

    def __init__(
        self,
        job: Job,
        *,
        token: int,
        worker: str,
        link: ContextLink,
    ) -> None:
        self.job = job
        self.token = token
        self.worker = worker
        self.cancelled = False
        self.state = link.state
        self.blocking = BlockingContext(self)
        self._progress = link.progress
        self._store = link.store
        self._checkpoint = link.checkpoint
        self._waited = link.waited
        self.batch = link.batch
        self._extend = link.extend
        self._running_steps: set[str] = set()
        extra = {"job": job.id, "task": job.task, "attempt": job.attempt}
        self.log = JobLog(logging.getLogger("jsq.task"), extra)

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def task(self) -> str:
        """The name of the task."""
        return self.job.task

    @property
    def queue(self) -> str:
        """The queue of the job. A job in quarantine keeps its own queue here."""
        return self.job.queue

    @property
    def attempt(self) -> int:
        return self.job.attempt

    @property
    def headers(self) -> Mapping[str, str]:
        return self.job.headers

    def progress(self, fraction: float, text: str = "") -> None:
        """Report the progress of the job, a `fraction` from 0 to 1. Returns at once.

        The worker stores two reports a second at most. May be called from any thread. Raises `BadOption`.
        """
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
            raise BadOption("progress", fraction, "must be a number from 0 to 1")
        if not isinstance(text, str) or len(text) > LONGEST_TEXT or not is_utf8(text):
            raise BadOption("progress text", text, f"must be text of {LONGEST_TEXT} characters at most")
        self._progress(float(fraction), text)

    def extend_timeout(self, duration: Duration) -> None:
        """Let this attempt run for a duration from now, if its `timeout` would end it before.

        The attempt still ends at its `hard_timeout` and at the deadline of its job. Without a timeout this
        does nothing. Returns at once. May be called from any thread. Raises `BadOption`.
        """
        self._extend(seconds("timeout", duration, least=0.001) or 0.0)

    @property
    def waited(self) -> float:
        """Seconds that the message of this attempt waited on its queue, by the server's clock."""
        return self._waited

    async def add_header(self, name: str, value: str) -> None:
        """Add a header to the job, or replace one.

        The next attempt of the job has it, and so have the methods of a middleware that run after this one.
        It is lost if the worker crashes or stops during the attempt. Raises `BadOption`, `BadName`.
        """
        await self._add_header(self._request, name, value)

    @property
    def checkpointed(self) -> Any:
        """The value of the job's last checkpoint, of this or an earlier attempt; None if there is none."""
        return from_json(self._checkpoint) if self._checkpoint else None

    async def checkpoint(self, value: object) -> None:
        """Store a value from which a later attempt of the job can continue. It replaces the previous value.

        Returns once the server has stored the value. It survives crashes, retries, snoozes, interruptions and
        replays, is kept for 30 days, and is deleted when the job succeeds or is cancelled. It can be any JSON
        value of 64 KiB at most; a tuple is returned as a list. Raises `BadOption` for other values. Raises
        `LeaseLost` if the job was given to another worker: nothing is stored, and the attempt ends.
        """
        await self._keep_checkpoint(self._request, value)

    @overload
    async def once(
        self,
        name: str,
        function: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        unknown: Literal["raise", "run"] = "raise",
        undone: StepErrors = (),
    ) -> R: ...
    @overload
    async def once(
        self,
        name: str,
        function: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        unknown: OnUnknownStep,
        undone: StepErrors = (),
    ) -> R | None: ...

    async def once(
        self,
        name: str,
        function: Callable[[*Ts], Awaitable[Any]],
        /,
        *args: *Ts,
        unknown: OnUnknownStep = "raise",
        undone: StepErrors = (),
    ) -> Any:
        """Call a function at most once for this job, over all its attempts, under the step's `name`.

        The result of the function is stored, as JSON of 64 KiB at most. Later calls under this name, also
        those of later attempts, return it and do not call the function. The step is claimed before the call.
        If no end of the step was stored (after a crash, a lost lease, or an exception), its effect may or may
        not have happened, and the next call raises `StepUnknown`. With `unknown="run"` that call runs the
        function again; with `unknown="skip"` it marks the step as done and returns None. `undone` names
        exceptions of the function which mean for certain that nothing has happened: after these the function
        may be called again.

        Raises the exceptions of the function, and `StepUnknown`. Raises `BadResult` for a result that cannot
        be stored; its effect has happened. Raises `LeaseLost` as `checkpoint` does, before or after the call.
        Raises `BadName`, `BadOption` for more than 256 steps of a job, and `UsageError` for a step that is
        already running.
        """

        async def call() -> Any:
            found = function(*args)
            return await found if inspect.isawaitable(found) else found

        return await self._once(self._request, call, name, unknown, undone)

    # -- inside ------------------------------------------------------------------------------------------

    async def _request(self, what: str, place: str, body: bytes) -> bytes:
        return await asyncio.wrap_future(self._store(what, place, body))

    async def _add_header(self, request: Ask, name: str, value: str) -> None:
        headers = {**self.job.headers, name: value}
        check_headers(headers)
        await request("header", name, value.encode())
        self.job = replace(self.job, headers=headers)

    async def _keep_checkpoint(self, request: Ask, value: object) -> None:
        packed = pack_value("checkpoint", value, MAX_VALUE_BYTES)
        await request("keep", CHECKPOINT, packed)
        self._checkpoint = packed

    async def _once(
        self,
        request: Ask,
        call: Callable[[], Awaitable[Any]],
        name: str,
        unknown: OnUnknownStep,
        undone: StepErrors,
    ) -> Any:
        place = steps.step_key(name)
        check_on_unknown(unknown)
        with self._exclusive(name):
            claim = steps.encode(self.attempt)
            if found := await request("claim", place, claim):
                step = steps.decode(found)
                if step.done:
                    return step.value
                if unknown == "raise":
                    raise StepUnknown(self.id, name, step.attempt, step.error)
                if unknown == "skip":
                    await request("keep", place, steps.encode(self.attempt, value=b"null"))
                    return None
                await request("keep", place, claim)
            packed = await self._run_step(request, call, name, undone)
            await request("keep", place, steps.encode(self.attempt, value=packed))
            return from_json(packed)

    async def _run_step(
        self, request: Ask, call: Callable[[], Awaitable[Any]], name: str, undone: StepErrors
    ) -> bytes:
        """Call the function of a claimed step. Its exception is stored and raised."""
        try:
            return pack_result(name, await call())
        except Exception as error:
            nothing = isinstance(error, undone) and not isinstance(error, BadResult)
            raised = "" if nothing else describe_error(error).error
            with contextlib.suppress(JsqError):  # the claim is stored, and is enough
                note = steps.encode(self.attempt, undone=nothing, error=raised)
                await request("keep", steps.step_key(name), note)
            raise

    @contextlib.contextmanager
    def _exclusive(self, name: str) -> Iterator[None]:
        if name in self._running_steps:
            raise UsageError(f"step {name} of job {self.id} is under way: each step takes a name of its own")
        self._running_steps.add(name)
        try:
            yield
        finally:
            self._running_steps.discard(name)


explain_missing(Context, CONTEXT_TERMS)


class BlockingContext:
    """The methods of a `Context` for tasks that are not coroutine functions: the calls block their thread."""

    __slots__ = ("_context",)

    def __init__(self, context: Context) -> None:
        self._context = context

    def checkpoint(self, value: object) -> None:
        """As `Context.checkpoint`."""
        run_without_waiting(self._context._keep_checkpoint(self._request, value))

    def add_header(self, name: str, value: str) -> None:
        """As `Context.add_header`."""
        run_without_waiting(self._context._add_header(self._request, name, value))

    @overload
    def once(
        self,
        name: str,
        function: Callable[[*Ts], R],
        /,
        *args: *Ts,
        unknown: Literal["raise", "run"] = "raise",
        undone: StepErrors = (),
    ) -> R: ...
    @overload
    def once(
        self,
        name: str,
        function: Callable[[*Ts], R],
        /,
        *args: *Ts,
        unknown: OnUnknownStep,
        undone: StepErrors = (),
    ) -> R | None: ...

    def once(
        self,
        name: str,
        function: Callable[[*Ts], Any],
        /,
        *args: *Ts,
        unknown: OnUnknownStep = "raise",
        undone: StepErrors = (),
    ) -> Any:
        """As `Context.once`, for a plain function."""
        if inspect.iscoroutinefunction(function):
            raise UsageError(f"{name}: ctx.blocking.once takes no coroutine function; await ctx.once")

        async def call() -> Any:
            return function(*args)

        return run_without_waiting(self._context._once(self._request, call, name, unknown, undone))

    async def _request(self, what: str, place: str, body: bytes) -> bytes:
        """Block until the reply. Raises `UsageError` on an event loop, which must not be blocked."""
        if asyncio._get_running_loop() is not None:
            raise UsageError("ctx.blocking would block the event loop: await the method of ctx itself")
        return self._context._store(what, place, body).result()


def run_without_waiting(work: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine that blocks and never suspends to its end."""
    try:
        work.send(None)
    except StopIteration as end:
        return cast(R, end.value)
    raise RuntimeError("a coroutine that must not suspend has suspended")


def pack_result(name: str, value: object) -> bytes:
    """The result of a step as JSON. Raises `BadResult`."""
    try:
        return pack_value(f"the result of step {name}", value, MAX_VALUE_BYTES)
    except BadOption as error:
        raise BadResult(f"{error}; its effect has happened") from error
