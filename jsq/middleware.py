"""Middleware: code around every job of an App, a queue or a task, in the submitting process and the worker.

An error of `submitting` goes to the caller, and an error of `around` is judged as the task's. Errors of the
other methods are logged: they change nothing.
"""

import contextvars
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeAlias

from jsq.context import Context
from jsq.errors import BadOption, NoCurrentJob
from jsq.model.job import Job
from jsq.model.options import is_header_name

CallNext: TypeAlias = Callable[[], Awaitable[Any]]
"""Calls the next middleware, and the last one the function of the task."""


class Middleware:
    """Code that runs around jobs. A subclass overrides the methods that it needs; every method is optional.

    `submitting`, `submitted` and `submit_ended` run where a job is submitted. `around` and `around_sync` run
    where the function runs: in the worker, or in the child process. The others run in the worker, after the
    outcome is recorded. If a worker crashes before it settles the delivery, the next one runs them again.

    The order is: those of the App, of the queue, of the task, and the first is the outermost.
    """

    def submitting(self, job: Job) -> Job:
        """Return the job to store, with other headers for example: `dataclasses.replace(job, headers=...)`.

        An error is raised to the caller before anything is sent.
        """
        return job

    def submitting_many(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Return the jobs of a bulk submit to store, in the same order; without it, `submitting` of each.

        Jobs that differ only in their ids and arguments are stored together, the others one by one.
        """
        return [self.submitting(job) for job in jobs]

    def submitted(self, job: Job) -> None:
        """The server has stored a job."""

    def submit_ended(self, jobs: Sequence[Job], error: BaseException | None) -> None:
        """The submit of one job, or the bulk submit of several, has ended.

        Called last, and after each call of `submitting` or `submitting_many`: the jobs are stored, or were
        stored before, or the caller gets the error.
        """

    async def around(self, ctx: Context, call: CallNext) -> Any:
        """Run the function by `await call()`; return its result, or another one."""
        return await call()

    def around_sync(self, ctx: Context, call: Callable[[], Any]) -> Any:
        """Run a plain function (`def`) by `call()`, in its thread; return its result, or another one.

        It runs inside `around`, for what belongs to a thread, such as the connections of Django. In a child
        process that is the main thread. It is not called for a coroutine function.
        """
        return call()

    async def succeeded(self, job: Job, result: Any) -> None:
        """A job has succeeded; `result` is None if its record holds no result."""

    async def failed(self, job: Job, error: BaseException) -> None:
        """A job has failed for good, or has expired (`JobExpired`)."""

    async def retrying(self, job: Job, error: BaseException) -> None:
        """An attempt has failed, and another one follows."""

    async def cancelled(self, job: Job) -> None:
        """A job was cancelled while it was held by this worker."""

    async def settled(self, job: Job) -> None:
        """An attempt has ended with any outcome; called after the other methods."""


class MiddlewareRegistry:
    """The middleware of an App, and that of its queues by their names."""

    def __init__(self, middleware: Iterable[Middleware] = ()) -> None:
        self.of_app = read_middleware(middleware)
        self.of_queues: Mapping[str, tuple[Middleware, ...]] = {}

    def find(self, queue: str) -> tuple[Middleware, ...]:
        """The middleware of the jobs on a queue, the outermost first. That of the task is inside it."""
        return self.of_app + self.of_queues.get(queue, ())


class CurrentJob(Middleware):
    """Makes the `Context` of the running job available everywhere in the task, as `jsq.current_job()`."""

    async def around(self, ctx: Context, call: CallNext) -> Any:
        token = _current.set(ctx)
        try:
            return await call()
        finally:
            _current.reset(token)


_current: contextvars.ContextVar[Context] = contextvars.ContextVar("jsq_current_job")


def current_job() -> Context:
    """The `Context` of the job that runs here. Needs `App(middleware=[CurrentJob()])`.

    It works in coroutines, in the thread of a plain function, and in a child process. A thread that the task
    starts has it if it runs in a copy of the context, as `asyncio.to_thread` does. Raises `NoCurrentJob`.
    """
    found = _current.get(None)
    if found is None:
        raise NoCurrentJob
    return found


class ContextVars(Middleware):
    """Carries context variables from the process that submits a job to its task.

    The values travel in the headers of the job as JSON, so they must be JSON values, and small. A variable
    without a value is left out. Two variables must not have the same name.
    """

    def __init__(self, *variables: contextvars.ContextVar[Any]) -> None:
        self._variables = {header_of(variable): variable for variable in variables}
        if len(self._variables) < len(variables):
            names = [variable.name for variable in variables]
            raise BadOption("ContextVars", names, "must be variables with different names")

    def submitting(self, job: Job) -> Job:
        carried: dict[str, str] = {}
        for header, variable in self._variables.items():
            with suppress(LookupError):
                carried[header] = encode_value(variable.name, variable.get())
        return replace(job, headers={**job.headers, **carried}) if carried else job

    async def around(self, ctx: Context, call: CallNext) -> Any:
        tokens = [
            (variable, variable.set(json.loads(ctx.headers[header])))
            for header, variable in self._variables.items()
            if header in ctx.headers
        ]
        try:
            return await call()
        finally:
            for variable, token in reversed(tokens):
                variable.reset(token)


def header_of(variable: contextvars.ContextVar[Any]) -> str:
    """The header of a context variable. Raises `BadOption`."""
    if not isinstance(variable, contextvars.ContextVar):
        raise BadOption("ContextVars", variable, "must be context variables")
    header = f"var-{variable.name}"
    if not is_header_name(header):
        rule = "must have a name of letters, digits, _ or -, of 60 characters at most"
        raise BadOption("ContextVars", variable.name, rule)
    return header


def encode_value(name: str, value: object) -> str:
    """The value of a context variable as JSON in ASCII. Raises `BadOption`."""
    text = ""
    try:
        text = json.dumps(value)
        unchanged = json.loads(text) == value
    except (TypeError, ValueError, RecursionError):
        unchanged = False
    if not unchanged:
        raise BadOption(f"context variable {name}", type(value).__name__, "must have a JSON value")
    return text


def read_middleware(given: Iterable[Middleware]) -> tuple[Middleware, ...]:
    """The middleware that a user listed. Raises `BadOption`."""
    if isinstance(given, Middleware) or not isinstance(given, Iterable):
        raise BadOption("middleware", given, "must be a list of middleware; write middleware=[...]")
    found = tuple(given)
    for one in found:
        if not isinstance(one, Middleware):
            fix = "; create it with parentheses, as Timing()" if isinstance(one, type) else ""
            raise BadOption("middleware", one, f"must be objects of subclasses of Middleware{fix}")
    return found
