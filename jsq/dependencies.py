"""Dependencies: parameters of a task that jsq provides where the function runs.

`db: Annotated[Pool, Depends(get_pool)]` is no argument of a submit. A provider is a function, a coroutine
function, or a generator of either kind, whose part after `yield` cleans up. The plan of a function is made
once, when the task is declared, so that a provider that cannot work is refused there.
"""

import contextlib
import functools
import inspect
import logging
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from jsq.codec.signature import resolve_hints
from jsq.context import Context
from jsq.errors import BadOption, UsageError
from jsq.model.outcome import drop_caller_frames

log = logging.getLogger("jsq.job")

Provider: TypeAlias = Callable[..., Any]
Overrides: TypeAlias = Mapping[Provider, Provider]
"""The providers that are replaced, such as in tests, and their replacements."""

ProviderKind = Literal["function", "coroutine", "generator", "async generator"]

CONTEXT = -1
"""The source of a parameter that gets the `Context`."""


class Depends:
    """Marks a parameter that jsq provides: `db: Annotated[Pool, Depends(get_pool)]`.

    A provider is called once for each job, and its value is shared by all who depend on it; with
    `cache=False` each dependent gets a value of its own. Raises `BadOption`.
    """

    __slots__ = ("cache", "provider")

    def __init__(self, provider: Provider, *, cache: bool = True) -> None:
        if not callable(provider):
            raise BadOption("Depends", provider, "must name a function; write Depends(get_pool)")
        self.provider = provider
        self.cache = cache

    def __repr__(self) -> str:
        return f"Depends({name_provider(self.provider)})"


class Injected:
    """The default of a parameter that jsq provides. A use of it means that nothing was provided."""

    def __repr__(self) -> str:
        return "INJECTED"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the parameter has no {name}: jsq provides its value when a worker runs the job; a direct call "
            "of the function must give it"
        )


INJECTED: Any = Injected()
"""A default for parameters with `Depends`, so that type checkers do not require them in a submit."""


@dataclass(frozen=True, slots=True)
class Provision:
    """One call of a provider: the parameters that get values, each from an earlier provision or the context.

    `early` means that it runs on the event loop even if the function of the task runs in a thread.
    """

    provider: Provider
    kind: ProviderKind
    sources: tuple[tuple[str, int], ...]
    early: bool


@dataclass(frozen=True, slots=True)
class DependencyPlan:
    """The provisions of a function in the order of their calls, and the parameters that get their values.

    `between` are the parameters that a positional argument follows, each with its place in the signature.
    """

    provisions: tuple[Provision, ...]
    parameters: tuple[tuple[str, int], ...]
    between: tuple[tuple[int, str], ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """The parameters that are no arguments."""
        return frozenset(name for name, _ in self.parameters)

    def complete(
        self, args: list[Any], named: dict[str, Any], provided: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a call with the values that are provided, by the names of their parameters."""
        if self.between:
            args, provided = list(args), dict(provided)
            for place, name in self.between:
                if place <= len(args):  # else the arguments before it are given by name
                    args.insert(place, provided.pop(name))
        return args, named | provided


# -- plan --------------------------------------------------------------------------------------------------


def dependency_names(function: Callable[..., Any]) -> frozenset[str]:
    """The parameters of a function that have `Depends`. Raises `BadOption` for a wrong use of it."""
    return frozenset(name for name, _ in marked_parameters(function))


def plan_dependencies(
    function: Callable[..., Any], overrides: Overrides | None = None
) -> DependencyPlan | None:
    """The plan of a task's function; None if it has no dependencies. Raises `BadOption`."""
    marked = marked_parameters(function)
    if not marked:
        return None
    planner = Planner(overrides or {})
    parameters = tuple((name, planner.add(one)) for name, one in marked)
    return DependencyPlan(planner.with_early(), parameters, parameters_between(function, dict(marked)))


def parameters_between(
    function: Callable[..., Any], marked: Mapping[str, Depends]
) -> tuple[tuple[int, str], ...]:
    """The marked parameters of a function that a positional argument follows, with their places."""
    parameters = inspect.signature(function).parameters.values()
    positional = [one for one in parameters if one.kind not in (one.KEYWORD_ONLY, one.VAR_KEYWORD)]
    last = max((place for place, one in enumerate(positional) if one.name not in marked), default=-1)
    return tuple((place, one.name) for place, one in enumerate(positional[:last]) if one.name in marked)


class Planner:
    """Collects the provisions of one function, those that others need first."""

    def __init__(self, overrides: Overrides) -> None:
        self._overrides = overrides
        self._provisions: list[Provision] = []
        self._shared: dict[Provider, int] = {}
        self._open: list[Provider] = []

    def add(self, marker: Depends) -> int:
        """Add the provision of a marker, after those that it needs; returns its place."""
        provider = self._overrides.get(marker.provider, marker.provider)
        if marker.cache and provider in self._shared:
            return self._shared[provider]
        if provider in self._open:
            names = " -> ".join(name_provider(one) for one in (*self._open, provider))
            raise BadOption("Depends", name_provider(provider), f"must not form a circle; it is {names}")
        self._open.append(provider)
        sources = tuple((name, self._source(marker)) for name, marker in provider_parameters(provider))
        self._open.pop()
        self._provisions.append(Provision(provider, kind_of(provider), sources, early=False))
        place = len(self._provisions) - 1
        if marker.cache:
            self._shared[provider] = place
        return place

    def with_early(self) -> tuple[Provision, ...]:
        """The provisions; those are early that are asynchronous, or that an early one needs."""
        early = {place for place, one in enumerate(self._provisions) if one.kind in ASYNC_KINDS}
        for place in range(len(self._provisions) - 1, -1, -1):
            if place in early:
                early.update(source for _, source in self._provisions[place].sources)
        return tuple(
            Provision(one.provider, one.kind, one.sources, place in early)
            for place, one in enumerate(self._provisions)
        )

    def _source(self, marker: Depends | None) -> int:
        return CONTEXT if marker is None else self.add(marker)


ASYNC_KINDS = ("coroutine", "async generator")


def marked_parameters(function: Callable[..., Any]) -> list[tuple[str, Depends]]:
    """The parameters of a function that have `Depends`, with their markers. Raises `BadOption`."""
    parameters = inspect.signature(function).parameters.values()
    for one in parameters:
        if isinstance(one.default, Depends):
            fix = f"write {one.name}: Annotated[..., {one.default!r}]"
            raise BadOption(
                f"parameter {one.name}", one.default, f"must have Depends in its annotation; {fix}"
            )
    if all(one.annotation is inspect.Parameter.empty for one in parameters):
        return []
    hints = resolve_hints(hinted(function))
    found = [(one, marker) for one in parameters if (marker := marker_of(hints.get(one.name))) is not None]
    for one, marker in found:
        if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
            rule = "must be a parameter that can be given by its name"
            raise BadOption(f"parameter {one.name}", marker, rule)
    return [(one.name, marker) for one, marker in found]


def provider_parameters(provider: Provider) -> list[tuple[str, Depends | None]]:
    """The parameters of a provider that get values: by a marker, or None for the `Context`.

    Raises `BadOption` for a parameter that nothing provides.
    """
    marked = dict(marked_parameters(provider))
    parameters = inspect.signature(provider).parameters.values()
    annotated = any(one.annotation is not inspect.Parameter.empty for one in parameters)
    hints = resolve_hints(hinted(provider)) if annotated else {}
    found: list[tuple[str, Depends | None]] = []
    for one in parameters:
        kind = hints.get(one.name)
        if one.name in marked:
            found.append((one.name, marked[one.name]))
        elif isinstance(kind, type) and issubclass(kind, Context) and one.kind is not one.POSITIONAL_ONLY:
            found.append((one.name, None))
        elif one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            raise BadOption(
                f"parameter {one.name} of {name_provider(provider)}",
                "no annotation" if kind is None else kind,
                "must be annotated with Depends or Context, or have a default; write "
                f"{one.name}: Annotated[..., Depends(...)]",
            )
    return found


def marker_of(hint: Any) -> Depends | None:
    """The marker in the annotation of a parameter. Raises `BadOption` for `Depends` without a provider."""
    if typing.get_origin(hint) is not typing.Annotated:
        return None
    for one in reversed(hint.__metadata__):
        if one is Depends:
            raise BadOption("Depends", "no provider", "must name a function; write Depends(get_pool)")
        if isinstance(one, Depends):
            return one
    return None


def kind_of(provider: Provider) -> ProviderKind:
    """How a provider gives its value. Raises `BadOption` for a generator that is decorated as a context."""
    called = called_function(provider)
    if inspect.isasyncgenfunction(called):
        return "async generator"
    if inspect.isgeneratorfunction(called):
        return "generator"
    inner = inspect.unwrap(called)
    if inner is not called and (inspect.isasyncgenfunction(inner) or inspect.isgeneratorfunction(inner)):
        rule = "must be a generator function itself; remove its decorator, such as @contextmanager"
        raise BadOption("Depends", name_provider(provider), rule)
    return "coroutine" if any(map(inspect.iscoroutinefunction, (called, inner))) else "function"


def called_function(provider: Provider) -> Callable[..., Any]:
    """The function that a call of a provider runs."""
    while isinstance(provider, functools.partial):
        provider = provider.func
    if inspect.isroutine(provider) or inspect.isclass(provider):
        return provider
    method: Callable[..., Any] = type(provider).__call__
    return method


def hinted(provider: Provider) -> Callable[..., Any]:
    """The function whose annotations are those of a provider's parameters."""
    called = called_function(provider)
    return called.__init__ if inspect.isclass(called) else called


def name_provider(provider: Provider) -> str:
    return str(getattr(called_function(provider), "__qualname__", repr(provider)))


# -- provide -----------------------------------------------------------------------------------------------


class Injection:
    """The values of one call of a task's function, and their clean-ups.

    An error of a provider is an error of the attempt. An error of a clean-up is logged and changes nothing:
    the function has had its effects.
    """

    def __init__(self, plan: DependencyPlan, context: Context) -> None:
        self.plan = plan
        self._context = context
        self._values: dict[int, Any] = {CONTEXT: context}
        self._generators: list[tuple[Provision, Any]] = []

    async def enter(self, *, early_only: bool) -> None:
        """Provide the values on the event loop; with `early_only`, only those that must run there."""
        for place, one in enumerate(self.plan.provisions):
            if early_only and not one.early:
                continue
            match one.kind:
                case "coroutine":
                    found = self._call(one)  # a plain function around a coroutine function may return a value
                    self._values[place] = await found if inspect.isawaitable(found) else found
                case "async generator":
                    generator = self._call(one)
                    try:
                        self._values[place] = await anext(generator)
                    except StopAsyncIteration:
                        raise no_value(one) from None
                    self._generators.append((one, generator))
                case _:
                    self._enter_plain(place, one)

    @property
    def count(self) -> int:
        """The number of clean-ups."""
        return len(self._generators)

    def enter_late(self) -> None:
        """Provide the other values in the thread of the function."""
        for place, one in enumerate(self.plan.provisions):
            if not one.early:
                self._enter_plain(place, one)

    def complete(self, args: list[Any], named: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of the function with the values of its dependencies."""
        provided = {name: self._values[place] for name, place in self.plan.parameters}
        return self.plan.complete(args, named, provided)

    async def clean_up(self, error: BaseException | None) -> None:
        """Run the clean-ups on the event loop, the last one first. `error` is what the function raised."""
        while self._generators:
            one, generator = self._generators.pop()
            with self._logged(one, error):
                if one.kind == "async generator":
                    await finish_async(one, generator, error)
                else:
                    finish_plain(one, generator, error)

    def clean_up_late(self, before: int, error: BaseException | None) -> None:
        """Run the clean-ups that came after `before`, in the thread of the function."""
        while len(self._generators) > before:
            one, generator = self._generators.pop()
            with self._logged(one, error):
                finish_plain(one, generator, error)

    def _call(self, one: Provision) -> Any:
        return one.provider(**{name: self._values[source] for name, source in one.sources})

    def _enter_plain(self, place: int, one: Provision) -> None:
        if one.kind == "function":
            self._values[place] = self._call(one)
            return
        generator = self._call(one)
        try:
            self._values[place] = next(generator)
        except StopIteration:
            raise no_value(one) from None
        self._generators.append((one, generator))

    @contextlib.contextmanager
    def _logged(self, one: Provision, error: BaseException | None) -> Iterator[None]:
        """Log an error of the clean-up in the block. `error`, that of the function, stays as it was."""
        trace = error.__traceback__ if error is not None else None
        try:
            yield
        except BaseException as second:  # a user's clean-up may raise anything
            self._log(one, second, error)
        finally:
            if error is not None:
                error.__traceback__ = trace

    def _log(self, one: Provision, second: BaseException, error: BaseException | None) -> None:
        """Log the error of a clean-up, unless it is the error of the function."""
        if second is error or (isinstance(second, RuntimeError) and second.__cause__ is error is not None):
            return
        job = self._context.job
        about = {"job": job.id, "task": job.task, "provider": name_provider(one.provider)}
        drop_caller_frames(second)
        log.error("clean-up failed", exc_info=second, extra=about)


def finish_plain(one: Provision, generator: Any, error: BaseException | None) -> None:
    """Run the part of a generator after its `yield`. Raises what it raises, and `UsageError`."""
    try:
        next(generator) if error is None else generator.throw(error)
    except StopIteration:
        return
    generator.close()
    raise yielded_twice(one)


async def finish_async(one: Provision, generator: Any, error: BaseException | None) -> None:
    """As `finish_plain`, for an asynchronous generator."""
    try:
        await (anext(generator) if error is None else generator.athrow(error))
    except StopAsyncIteration:
        return
    await generator.aclose()
    raise yielded_twice(one)


def no_value(one: Provision) -> UsageError:
    return UsageError(f"the provider {name_provider(one.provider)} yielded no value; it must yield once")


def yielded_twice(one: Provision) -> UsageError:
    return UsageError(f"the provider {name_provider(one.provider)} yielded twice; it must yield once")
