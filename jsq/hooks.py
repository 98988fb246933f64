"""The hooks of an App and of its tasks: the lifespan, the middleware, and the dependencies of a function."""

import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict, TypeVar

from jsq.codec.signature import hides_coroutine_function
from jsq.context import Context
from jsq.dependencies import DependencyPlan, Injection, Provider, plan_dependencies
from jsq.errors import BadOption
from jsq.lifespan import Lifespan, LifespanFunction, check_state_function
from jsq.middleware import Middleware, MiddlewareRegistry

F = TypeVar("F", bound=Callable[..., Any])

RunPlain: TypeAlias = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a plain function where it belongs: in a thread, or in the main thread of a child process."""


class AppHooksOptions(TypedDict, total=False):
    """The options of an App for what runs around its tasks.

    `lifespan`: a function of the App that returns an async context manager, as for Starlette. Each worker
    process, and each child process, enters it before its first job and leaves it after its last one. The
    yielded mapping is `ctx.state`.
    `middleware`: objects of subclasses of `Middleware`, the outermost first, for all jobs of the App.
    """

    lifespan: LifespanFunction | None
    middleware: Iterable[Middleware]


class AppHooks:
    """The part of an App that runs around its tasks."""

    def __init__(
        self, *, lifespan: LifespanFunction | None = None, middleware: Iterable[Middleware] = ()
    ) -> None:
        self.lifespan = Lifespan(lifespan)
        self.middleware = MiddlewareRegistry(middleware)
        self.overrides: dict[Provider, Provider] = {}

    def on_start(self, function: F, /) -> F:
        """Declare a function that each worker process, and each child process, runs before its first job.

        It may be a coroutine function. It may take the state, a dictionary, and add values to `ctx.state`. It
        runs after the `lifespan` of the App was entered. If it raises, the worker ends with `LifespanFailed`.
        Raises `BadOption`.
        """
        check_state_function("on_start", function)
        self.lifespan.starts.append(function)
        return function

    def on_stop(self, function: F, /) -> F:
        """Declare a function that each such process runs after its last job; see `on_start`.

        The last one declared runs first. An error is logged, and the others run nevertheless. Raises
        `BadOption`.
        """
        check_state_function("on_stop", function)
        self.lifespan.stops.append(function)
        return function

    @contextlib.contextmanager
    def override(self, provider: Provider, replacement: Provider) -> Iterator[None]:
        """Replace a provider of dependencies until the end of the block, for the workers of this process.

        `app.overrides` is the same without an end. A child process does not see it. Raises `BadOption`.
        """
        for one in (provider, replacement):
            if not callable(one):
                raise BadOption("override", one, "must name functions; wrap a value in a function")
        missing = object()
        before: Any = self.overrides.get(provider, missing)
        self.overrides[provider] = replacement
        try:
            yield
        finally:
            if before is missing:
                self.overrides.pop(provider, None)
            else:
                self.overrides[provider] = before


@dataclass(frozen=True, slots=True)
class TaskHooks:
    """The middleware and the dependencies of a task's jobs on one queue. `overrides` are those of its App."""

    middleware: tuple[Middleware, ...]
    dependencies: DependencyPlan | None = None
    overrides: Mapping[Provider, Provider] | None = None

    def plan(self, function: Callable[..., Any]) -> DependencyPlan | None:
        """The plan of the function, with the providers that are replaced now."""
        if self.dependencies is None or not self.overrides:
            return self.dependencies
        return plan_dependencies(function, dict(self.overrides))

    def around_sync(self, context: Context, call: Callable[[], Any]) -> Callable[[], Any]:
        """A plain call inside the methods `around_sync` of the middleware."""
        for one in reversed(self.middleware):
            if type(one).around_sync is not Middleware.around_sync:
                call = functools.partial(one.around_sync, context, call)
        return call


class HookedCall:
    """One call of a task's function, inside its middleware and with its dependencies.

    `args` and `named` are the arguments of the job, with the `Context` if the function takes it. A function
    that is no coroutine function runs by `run_plain`, with those dependencies that need no event loop.
    """

    def __init__(
        self,
        hooks: TaskHooks,
        function: Callable[..., Any],
        arguments: tuple[list[Any], dict[str, Any]],
        run_plain: RunPlain | None,
    ) -> None:
        self._hooks = hooks
        self._function = function
        self._arguments = arguments
        self._run_plain = run_plain

    async def run(self, context: Context) -> Any:
        """Run the middleware, the outermost first, around the function. Raises what they raise."""
        call: Callable[[], Awaitable[Any]] = functools.partial(self._call, context)
        for one in reversed(self._hooks.middleware):
            call = functools.partial(one.around, context, call)
        return await call()

    async def _call(self, context: Context) -> Any:
        plan = self._hooks.plan(self._function)
        if plan is None:
            args, named = self._arguments
            if self._run_plain is None:
                return await self._function(*args, **named)
            plain = functools.partial(self._function, *args, **named)
            return await self._run_plain(self._hooks.around_sync(context, plain))
        injection = Injection(plan, context)
        # The value of a plain function may be awaited after its thread, with the dependencies still open.
        late = self._run_plain is not None and not hides_coroutine_function(self._function)
        try:
            await injection.enter(early_only=late)
            if self._run_plain is None:
                args, named = injection.complete(*self._arguments)
                result = await self._function(*args, **named)
            elif not late:
                args, named = injection.complete(*self._arguments)
                plain = functools.partial(self._function, *args, **named)
                result = await self._run_plain(self._hooks.around_sync(context, plain))
            else:
                plain = functools.partial(self._call_late, injection)
                result = await self._run_plain(self._hooks.around_sync(context, plain))
        except BaseException as error:
            await injection.clean_up(error)
            raise
        await injection.clean_up(None)
        return result

    def _call_late(self, injection: Injection) -> Any:
        """Call a plain function, with the dependencies that are provided in its thread."""
        before = injection.count
        try:
            injection.enter_late()
            args, named = injection.complete(*self._arguments)
            result = self._function(*args, **named)
        except BaseException as error:
            injection.clean_up_late(before, error)
            raise
        injection.clean_up_late(before, None)
        return result
