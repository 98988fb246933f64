"""The lifespan of an App: what a process opens before its first job, and closes after its last one.

A lifespan is an async context manager, as in Starlette. It is entered once in each worker process, and once
in each child process; several workers on one event loop share it. It is entered and left in one asyncio task,
so it may hold a `TaskGroup`.
"""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypeAlias

from jsq.errors import BadOption, LifespanFailed
from jsq.model.outcome import drop_caller_frames

log = logging.getLogger("jsq.worker")

LifespanFunction: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]
"""`async with lifespan(app) as state`: the yielded mapping becomes `ctx.state`."""

CHILD_STOP_SECONDS = 5.0
"""Seconds that the stop of a lifespan may take in a child process."""

ABANDON_SECONDS = 1.0
"""Seconds that a lifespan gets after it was cancelled, because its stop took too long."""


class Lifespan:
    """The functions that an App runs at the start and at the end of a process.

    `function` is the `lifespan=` of the App. `starts` run after it was entered, in their order; `stops` run
    before it is left, in reverse order.
    """

    def __init__(self, function: LifespanFunction | None = None) -> None:
        if function is not None:
            check_lifespan(function)
        self.function = function
        self.starts: list[Callable[..., Any]] = []
        self.stops: list[Callable[..., Any]] = []
        self.entries: dict[asyncio.AbstractEventLoop, LifespanEntry] = {}

    @property
    def is_used(self) -> bool:
        """Whether there is anything to run."""
        return self.function is not None or bool(self.starts or self.stops)

    @contextlib.asynccontextmanager
    async def entered(self, app: object) -> AsyncIterator[dict[str, Any]]:
        """Enter the lifespan; the value is the state of the process.

        Raises the errors of the functions. An error of a stop function is logged, so that the others run.
        """
        async with AsyncExitStack() as stack:
            state: dict[str, Any] = {}
            if self.function is not None:
                state = read_state(await stack.enter_async_context(self.function(app)))
            for function in self.starts:
                await call_with_state(function, state)
            yield state
            for function in reversed(self.stops):
                try:
                    await call_with_state(function, state)
                except Exception as error:  # a user's function may raise anything
                    drop_caller_frames(error)
                    log.error("lifespan failed", exc_info=error, extra={"function": name_function(function)})


class RunningLifespan:
    """The lifespan of one process, in an asyncio task of its own.

    `failure` is an error that ended the lifespan before `stop`; `on_failure` is called then.
    """

    failure: BaseException | None = None

    def __init__(
        self, lifespan: Lifespan, app: object, on_failure: Callable[[], object] = lambda: None
    ) -> None:
        self._lifespan = lifespan
        self._app = app
        self._on_failure = on_failure
        self._leaving = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> dict[str, Any]:
        """Enter the lifespan; returns the state. Raises `LifespanFailed`."""
        if not self._lifespan.is_used:
            return {}
        loop = asyncio.get_running_loop()
        entered: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._task = loop.create_task(self._run(entered))
        try:
            return await asyncio.shield(entered)
        except asyncio.CancelledError:
            entered.cancel()
            self._task.cancel()
            await asyncio.wait((self._task,), timeout=CHILD_STOP_SECONDS)
            raise

    async def stop(self, seconds: float) -> None:
        """Leave the lifespan within `seconds`. An error, or a stop that takes longer, is logged."""
        task, self._task = self._task, None
        if task is None:
            return
        self._leaving.set()
        await asyncio.wait((task,), timeout=seconds)
        if not task.done():
            log.error("lifespan abandoned", extra={"why": f"its stop took longer than {seconds:g} s"})
            task.cancel()
            await asyncio.wait((task,), timeout=ABANDON_SECONDS)

    async def _run(self, entered: asyncio.Future[dict[str, Any]]) -> None:
        try:
            async with self._lifespan.entered(self._app) as state:
                if not entered.cancelled():
                    entered.set_result(state)
                await self._leaving.wait()
        except asyncio.CancelledError:
            if self._leaving.is_set() or entered.cancelled():
                return
            self._fail(asyncio.CancelledError("the lifespan was cancelled"), entered)
        except (Exception, SystemExit) as error:  # a user's function may raise anything
            self._fail(error, entered)

    def _fail(self, error: BaseException, entered: asyncio.Future[dict[str, Any]]) -> None:
        if not entered.done():
            failed = LifespanFailed("start", error)
            failed.__cause__ = error
            entered.set_exception(failed)
        elif self._leaving.is_set():
            drop_caller_frames(error)
            log.error("lifespan failed", exc_info=error, extra={"function": "lifespan"})
        else:
            self.failure = error
            self._on_failure()

    def check(self) -> None:
        """Raise `LifespanFailed` if the lifespan has ended before its stop."""
        if self.failure is not None:
            raise LifespanFailed("run", self.failure) from self.failure


class LifespanEntry:
    """The lifespan of an App that the workers on one event loop share. `users` are called if it fails."""

    def __init__(self, lifespan: Lifespan, app: object, before: "LifespanEntry | None") -> None:
        self.users: list[Callable[[], object]] = []
        self.left = asyncio.Event()
        self.running = RunningLifespan(lifespan, app, on_failure=self._fail)
        self.entering = asyncio.ensure_future(self._enter(before))

    async def _enter(self, before: "LifespanEntry | None") -> dict[str, Any]:
        if before is not None:  # it is being left
            await before.left.wait()
        return await self.running.start()

    def _fail(self) -> None:
        for call in tuple(self.users):
            call()


class LifespanUse:
    """The use of an App's lifespan by one worker. The first worker on an event loop enters it, and the last
    one leaves it.

    `on_failure` is called if the lifespan ends before `stop`.
    """

    def __init__(self, lifespan: Lifespan, app: object, on_failure: Callable[[], object]) -> None:
        self._lifespan = lifespan
        self._app = app
        self._on_failure = on_failure
        self._entry: LifespanEntry | None = None
        self._is_using = False

    async def start(self) -> dict[str, Any]:
        """Enter the lifespan, unless another worker has; returns the state. Raises `LifespanFailed`."""
        if not self._lifespan.is_used:
            return {}
        entries, loop = self._lifespan.entries, asyncio.get_running_loop()
        for closed in [one for one in entries if one.is_closed()]:
            del entries[closed]
        found = entries.get(loop)
        if found is None or not found.users:
            found = entries[loop] = LifespanEntry(self._lifespan, self._app, found)
        found.users.append(self._on_failure)
        self._entry, self._is_using = found, True
        try:
            return await asyncio.shield(found.entering)
        except BaseException:
            await self.stop(CHILD_STOP_SECONDS)
            raise

    async def stop(self, seconds: float) -> None:
        """Leave the lifespan within `seconds`, unless another worker still uses it; see `RunningLifespan`."""
        found = self._entry
        if found is None or not self._is_using:
            return
        self._is_using = False
        found.users.remove(self._on_failure)
        if found.users:
            return
        found.entering.cancel()
        try:
            await asyncio.wait((found.entering,))
            await found.running.stop(seconds)
        finally:
            found.left.set()
            entries, loop = self._lifespan.entries, asyncio.get_running_loop()
            if entries.get(loop) is found:
                del entries[loop]

    def check(self) -> None:
        """Raise `LifespanFailed` if the lifespan has ended before its stop."""
        if self._entry is not None:
            self._entry.running.check()


def check_lifespan(function: object) -> None:
    """Raises `BadOption` for anything but a function that returns an async context manager."""
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise BadOption(
            "lifespan",
            name_function(function),
            "must return an async context manager; decorate it with @contextlib.asynccontextmanager",
        )
    if not callable(function):
        raise BadOption("lifespan", function, "must be a function of the App; it returns a context manager")


def check_state_function(option: str, function: object) -> None:
    """Raises `BadOption` for a start or stop function that takes more than the state."""
    if not callable(function):
        raise BadOption(option, function, f"must be a function; write @app.{option} without parentheses")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise BadOption(option, name_function(function), "must not yield; use App(lifespan=...) for that")
    try:
        inspect.signature(function).bind()
    except TypeError:
        try:
            inspect.signature(function).bind({})
        except TypeError as error:
            rule = f"must take no argument, or the state; {error}"
            raise BadOption(option, name_function(function), rule) from error


async def call_with_state(function: Callable[..., Any], state: dict[str, Any]) -> None:
    """Call a start or stop function, with the state if it takes an argument."""
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    takes_state = any(one.kind in positional for one in parameters)
    found = function(state) if takes_state else function()
    if inspect.isawaitable(found):
        await found


def read_state(yielded: object) -> dict[str, Any]:
    """The state that a lifespan yields; empty for None. Raises `BadOption` for anything but a mapping."""
    if yielded is None:
        return {}
    if not isinstance(yielded, Mapping):
        raise BadOption("lifespan", type(yielded).__name__, "must yield a mapping, or None")
    return dict(yielded)


def name_function(function: object) -> str:
    """The name of a user's function, for messages."""
    return str(getattr(function, "__qualname__", None) or repr(function))
