"""A task: a declared function, which can be called as itself or submitted as a job."""

import inspect
import sys
import typing
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, Literal, ParamSpec, TypedDict, TypeVar, Unpack, overload

from pydantic_core import from_json, to_json

from jsq.batch import BatchLimits, items_of
from jsq.client.client import Call, Client, check_each, pack_each
from jsq.client.handle import JobHandle
from jsq.client.map import MapOptions, Results
from jsq.client.sync import SyncJobHandle, each
from jsq.codec.signature import Signature, explain_refusal, resolve_hints
from jsq.context import Context
from jsq.errors import BadArguments, BadOption, JobError, seconds
from jsq.model.callback import Callbacks
from jsq.model.job import DEFAULT_QUEUE, Priority, check_queue, check_task
from jsq.model.options import Options, SubmitOptions, check_known, check_slots, read_options, read_tags
from jsq.model.rate_limit import Rate, read_rate
from jsq.model.retry import (
    BackoffOption,
    ExceptionTypes,
    Predicate,
    Retries,
    RetryPolicy,
    build_backoff,
    build_policy,
)
from jsq.model.unique import OnDuplicate, UniqueUntil, arguments_key

P = ParamSpec("P")
C = ParamSpec("C")
R = TypeVar("R")
V = TypeVar("V")

DAY = 86_400.0

KeyFunction = Callable[..., object]
"""Makes a job's unique key of its arguments."""

ExecutorKind = Literal["async", "thread", "process"]
"""Where a task's function runs: on the worker's loop, in a thread, or in a process of its own."""


@dataclass(frozen=True, slots=True)
class FunctionLocation:
    """Where another process finds a function: a module (or the file run as main), and its name there."""

    module: str
    file: str
    name: str


class TaskOptions(TypedDict, total=False):
    """What may be written for a task. Durations are seconds or `timedelta`.

    `name`: the function's own by default.
    `queue`, `priority`, `tags`, `deadline`, `expires`, `per_key`: of its jobs, where a submit does not say
    otherwise; see `SubmitOptions`.
    `retries`: how often a job that raises is tried again [3], after waits that `backoff` gives: none, linear,
    exponential (with full jitter), a list of seconds, or a `Backoff`. None leaves the end to `retry_for`.
    `backoff_max`: the longest wait. `jitter`: the share of each wait that is left to chance, from 0 (False)
    to 1 (True) [1 for exponential, 0 for the others].
    `retry_for`: from a job's first start; no failure is tried again after that, nor after `retries`.
    `retry_on`, `no_retry_on`: types of exceptions: only those are tried again, those are not.
    `retry`: types of exceptions, each with `Retries(...)` of its own. Of all types that these three name, the
    one nearest to the exception's own decides.
    `retry_if`: is asked with the exception and the number of the attempt whether it is tried again.
    `on_failure`, `on_dead`: a task, or its name, which is submitted with a `Failure` after each attempt that
    failed, and once a job is dead.
    `fallback`: a task, or its name, which is submitted with the same arguments when a job is dead.
    `timeout`: for each attempt, which then has 5 seconds to clean up.
    `hard_timeout`: no less than `timeout`; a process is killed then, and what cannot be killed is given up,
    its slot free.
    `keep_result`: how long a result is kept [a day]; 0 keeps only the outcome.
    `executor`: a coroutine function runs on the worker's loop, any other in a thread; `process` runs either
    in a process of its own, which can be killed.
    `aliases`: older names of the task, whose jobs it runs too.
    `quarantine`: the queue where a job goes on that took down too many workers; see `App.queue`.
    `unique`: as for a submit, or the names of the arguments that make two jobs the same, or a function which
    makes a key of the arguments; with `unique_until`, `unique_for`, `on_duplicate`, `debounce`, `throttle`.
    `rate`: how often jobs of the task may start, by all workers together: "10/s", "100/m", or a `Rate`.
    `key_rate`: the same for those of each `key=` of a submit; of jobs without one it says nothing.
    `slots`: how many of its worker's slots a job takes [1]; see `SubmitOptions`.
    """

    name: str | None
    queue: str
    priority: Priority
    retries: int | None
    backoff: BackoffOption
    backoff_max: float | timedelta | None
    jitter: float | None
    retry_for: float | timedelta | None
    retry_on: ExceptionTypes | None
    no_retry_on: ExceptionTypes | None
    retry: Mapping[type[BaseException], Retries] | None
    retry_if: Predicate | None
    on_failure: "AnyTask | str | None"
    on_dead: "AnyTask | str | None"
    fallback: "AnyTask | str | None"
    timeout: float | timedelta | None
    keep_result: float | timedelta
    tags: Iterable[str]
    executor: ExecutorKind | None
    hard_timeout: float | timedelta | None
    aliases: Iterable[str]
    deadline: float | timedelta | None
    expires: float | timedelta | None
    quarantine: str | None
    per_key: int | None
    unique: str | bytes | bool | Sequence[str] | KeyFunction | None
    unique_until: UniqueUntil | None
    unique_for: float | timedelta | None
    on_duplicate: OnDuplicate | None
    debounce: float | timedelta | None
    throttle: float | timedelta | None
    rate: Rate | str | None
    key_rate: Rate | str | None
    slots: int


SUBMITTED_STATES = (
    *("queue", "priority", "tags", "deadline", "expires", "per_key"),
    *("unique", "unique_until", "unique_for", "on_duplicate", "debounce", "throttle"),
)
"""What a task declares of the options of each submit."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """How the jobs of a task are submitted and run, where a submit does not say otherwise."""

    name: str
    queue: str = DEFAULT_QUEUE
    priority: Priority = "normal"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    keep_result: float = DAY
    tags: tuple[str, ...] = ()
    hard_timeout: float | None = None
    executor: ExecutorKind | None = None
    deadline: float | None = None
    quarantine: str | None = None
    aliases: tuple[str, ...] = ()
    per_key: int | None = None
    expires: float | None = None
    callbacks: Callbacks = field(default_factory=Callbacks)
    batch: BatchLimits | None = None
    unique: str | bytes | bool | tuple[str, ...] | KeyFunction | None = None
    unique_until: UniqueUntil | None = None
    unique_for: float | None = None
    on_duplicate: OnDuplicate | None = None
    debounce: float | None = None
    throttle: float | None = None
    rate: Rate | None = None
    key_rate: Rate | None = None
    slots: int = 1

    def __post_init__(self) -> None:
        check_task(self.name)
        read_options(**self.asked)
        check_executor(self.executor)
        check_slots(self.slots)
        hard, limit = self.hard_timeout, self.timeout
        if hard is not None and limit is not None and hard < limit:
            raise BadOption("hard_timeout", hard, f"it takes no less than the timeout, {limit:g} s")
        for alias in self.aliases:
            check_task(alias)
        check_quarantine(self.quarantine, self.queue)
        if self.callbacks.fallback in (self.name, *self.aliases):
            raise BadOption("fallback", self.callbacks.fallback, "it takes another task")

    @property
    def asked(self) -> dict[str, Any]:
        """The options of each submit, where that says nothing else."""
        said = {name: getattr(self, name) for name in SUBMITTED_STATES}
        return {**said, "unique": True} if self.makes_keys else said

    @property
    def makes_keys(self) -> bool:
        """Whether the unique key of each job is made of its arguments."""
        return isinstance(self.unique, tuple) or callable(self.unique)


class BatchOptions(TaskOptions, total=False):
    """What may be written for a batch task: what may be for any, but for `executor="process"`.

    `size`: how many jobs it gets at most, up to 1,000 [100].
    `wait`: how long others are waited for, when there is one [half a second].
    """

    size: int
    wait: float | timedelta


_OPTION_NAMES = (*TaskOptions.__annotations__,)


def read_declaration(default_name: str, **written: Unpack[TaskOptions]) -> Declaration:
    """A declaration as a user wrote it. Raises `BadName`, `BadOption`."""
    given: dict[str, Any] = {name: value for name, value in written.items() if value is not None}
    check_known(given, _OPTION_NAMES)
    given["name"] = given.get("name") or default_name
    for name in ("timeout", "hard_timeout", "deadline", "expires", "keep_result"):
        if name in given:
            given[name] = seconds(name, given[name], least=0.0 if name == "keep_result" else 0.001)
    for name in ("rate", "key_rate"):
        given[name] = read_rate(name, given.get(name))
    if isinstance(given.get("aliases"), str):
        raise BadOption("aliases", given["aliases"], "it takes a list of names")
    given["callbacks"] = Callbacks(
        **{name: named(name, given.pop(name)) for name in CALLBACKS if name in given}
    )
    for name in ("unique_for", "debounce", "throttle"):
        if name in given:
            given[name] = seconds(name, given[name])
    if isinstance(given.get("unique"), list | tuple):
        given["unique"] = check_parameters(given["unique"])
    given["aliases"] = tuple(given.get("aliases", ()))
    given["tags"] = read_tags(given.get("tags", ()))
    for name in RETRY_OPTIONS:
        given.pop(name, None)
    return Declaration(retry=read_policy(written), **given)


CALLBACKS = (*Callbacks.__annotations__,)

RETRY_OPTIONS = (
    *("retries", "backoff", "backoff_max", "jitter"),
    *("retry_for", "retry_on", "no_retry_on", "retry", "retry_if"),
)


def read_policy(written: TaskOptions) -> RetryPolicy:
    """How a task is tried again, as a user wrote it. Raises `BadOption`."""
    shape = written.get("backoff")
    waits = "exponential" if shape is None else shape
    return build_policy(
        written.get("retries", 3),
        build_backoff(waits, written.get("backoff_max"), written.get("jitter")),
        retry_for=written.get("retry_for"),
        retry_on=written.get("retry_on"),
        no_retry_on=written.get("no_retry_on"),
        retry_if=written.get("retry_if"),
        retry=written.get("retry"),
    )


def named(option: str, task: object) -> str:
    """The name of a task that is given as itself, or by its name. Raises `BadOption`, `BadName`."""
    if isinstance(task, Task):
        return task.name
    if not isinstance(task, str):
        raise BadOption(option, task, "it takes a task, or the name of one")
    return check_task(task)


def read_batch(**written: Any) -> tuple[BatchLimits, dict[str, Any]]:
    """How a batch task's jobs are gathered, and its other options. Raises `BadOption`."""
    check_known(written, (*_OPTION_NAMES, "size", "wait"))
    wait = written.pop("wait", 0.5)
    batch = BatchLimits(written.pop("size", 100), seconds("wait", wait) or 0.0)
    if written.get("executor") == "process":
        raise BadOption("executor", "process", "a batch task runs on the worker's loop, or in a thread")
    return batch, written


def check_parameters(names: Sequence[str]) -> tuple[str, ...]:
    """Raises `BadOption` for what is no list of the names of arguments."""
    if not names or not all(isinstance(name, str) for name in names):
        raise BadOption("unique", names, "a list takes the names of arguments, one at least")
    return tuple(names)


class Task(Generic[C, V, P, R]):
    """A declared function. Called, it runs here and now; submitted, it runs on a worker.

    `C` and `V` are the parameters and the return of the function itself; `P` and `R` are what a submit takes
    (without the `Context`) and what its result is (without the `Awaitable`).
    """

    def __init__(self, function: Callable[C, V], declaration: Declaration, client: Client) -> None:
        self.function = function
        self.declaration = declaration
        self.items = items_of(function) if declaration.batch is not None else None
        self.takes_context = self.items is None and takes_context(function)
        self.is_async = inspect.iscoroutinefunction(function)
        self.place = place_of(function) if declaration.executor == "process" else None
        called = function if self.items is None else self.items.function
        self.signature = Signature(called, skip=int(self.takes_context))
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", declaration.name)
        self.__wrapped__ = function
        self._client = client
        self._options = read_options(**declaration.asked)
        if isinstance(declaration.unique, tuple):
            self._check_key(declaration.unique)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def __call__(self, *args: C.args, **kwargs: C.kwargs) -> V:
        return self.function(*args, **kwargs)

    @property
    def name(self) -> str:
        return self.declaration.name

    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]:
        """Submit a job. Returns when the server has stored it.

        Raises `BadArguments` before anything is sent; `QueueFull`, `BrokerFull`, `BrokerUnavailable`,
        `NotAllowed` if it is not stored; `SubmitUnknown` if that cannot be known.
        """
        return await self._send(self._options, args, kwargs)

    async def submit_many(
        self, calls: Iterable[Call], *, ids: Sequence[str] | None = None, all_or_nothing: bool = False
    ) -> list[JobHandle[R]]:
        """Submit a job for each call, `[(1, 2), {"a": 3, "b": 4}]`; see `Client.submit_many`."""
        return await self._send_many(self._options, calls, ids, all_or_nothing)

    def delay_many(
        self, calls: Iterable[Call], *, ids: Sequence[str] | None = None, all_or_nothing: bool = False
    ) -> list[SyncJobHandle[R]]:
        """The blocking twin of `submit_many`."""
        portal = self._client.portal
        handles = portal.call(self.submit_many(calls, ids=ids, all_or_nothing=all_or_nothing))
        return [SyncJobHandle(handle, portal) for handle in handles]

    @overload
    def map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: Literal[False] = False,
        **how: Unpack[MapOptions],
    ) -> Results[R]: ...
    @overload
    def map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: bool,
        **how: Unpack[MapOptions],
    ) -> Results[R | JobError]: ...

    def map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: bool = False,
        **how: Unpack[MapOptions],
    ) -> Results[Any]:
        """The results of a job for each call: `async for result in add.map(calls)`; see `Client.map`."""
        return self._map(self._options, calls, return_exceptions, how)

    @overload
    def delay_map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: Literal[False] = False,
        **how: Unpack[MapOptions],
    ) -> Iterator[R]: ...
    @overload
    def delay_map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: bool,
        **how: Unpack[MapOptions],
    ) -> Iterator[R | JobError]: ...

    def delay_map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: bool = False,
        **how: Unpack[MapOptions],
    ) -> Iterator[Any]:
        """The blocking twin of `map`: an iterator."""
        results = self._map(self._options, calls, return_exceptions, how)
        return each(results, self._client.portal)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> SyncJobHandle[R]:
        """The blocking twin of `submit`, for callers without an event loop."""
        return SyncJobHandle(self._client.portal.call(self.submit(*args, **kwargs)), self._client.portal)

    def options(self, **options: Unpack[SubmitOptions]) -> "TaskCall[P, R]":
        """Options for one submit: `send.options(delay=60, priority="high").submit("a@b.c")`.

        What they are, `SubmitOptions` tells; what is left out, the task's declaration says. Raises
        `BadOption`, `BadName`.
        """
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if self.items is not None and "timeout" in given:
            raise BadOption("timeout", given["timeout"], "a batch has that of its task, not one for each job")
        if "backoff" not in given and given.keys() & {"backoff_max", "jitter"}:
            given["backoff"] = self.declaration.retry.backoff
        return TaskCall(self, read_options(**self.declaration.asked | given))

    async def _send(
        self, options: Options, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> JobHandle[R]:
        packed = self.signature.pack(args, kwargs)
        options = self.keyed(options, packed)
        return await self._client.send(self.name, packed, options, signature=self.signature)

    async def _send_many(
        self, options: Options, calls: Iterable[Call], ids: Sequence[str] | None, all_or_nothing: bool
    ) -> list[JobHandle[R]]:
        packed = pack_each(self.name, calls, self.signature.pack)
        if options.unique:
            check_each(options, ids, all_or_nothing)
            each = [self.keyed(options, one) for one in packed]
            return await self._client.send_each(self.name, packed, each, signature=self.signature)
        return await self._client.send_many(
            self.name, packed, options, signature=self.signature, ids=ids, all_or_nothing=all_or_nothing
        )

    def _map(
        self,
        options: Options,
        calls: Iterable[object] | AsyncIterable[object],
        return_exceptions: bool,
        how: MapOptions,
    ) -> Results[Any]:
        async def submit(some: Sequence[Call], ids: Sequence[str], before: int) -> list[JobHandle[Any]]:
            packed = pack_each(self.name, some, self.signature.pack, before)
            return await self._client.send_many(
                self.name, packed, options, signature=self.signature, ids=ids, anew=True
            )

        return Results(self._client.mapped(options, submit, calls, return_exceptions, how))

    def keyed(self, options: Options, packed: bytes) -> Options:
        """Options with the key of one job, where that is made of its arguments.

        Raises `BadArguments` where the declaration makes none of them.
        """
        if options.unique is not True:
            return options
        made = self.declaration.makes_keys
        key = self._key(packed) if made else arguments_key(self.signature.filled(packed))
        return replace(options, unique=key)

    def _key(self, packed: bytes) -> str | bytes:
        make = self.declaration.unique
        if isinstance(make, tuple):
            values = from_json(self.signature.filled(packed))
            return to_json([values.get(name) for name in make], inf_nan_mode="constants")
        args, named = self.signature.unpack(packed)
        try:
            key = make(*args, **named) if callable(make) else None
            made = key if isinstance(key, str | bytes) else to_json(key) if key is not None else b""
        except Exception as error:  # the user's function may raise anything
            raise BadArguments(
                f"{self.name}: unique= made no key of them: {explain_refusal(error)}"
            ) from error
        if not made:
            raise BadArguments(f"{self.name}: unique= made no key of them, but {key!r}")
        return made

    def _check_key(self, names: tuple[str, ...]) -> None:
        known = self.signature.shape.parameters
        for name in names:
            if name not in known:
                rule = f"{self.name} has no argument {name}; it has {', '.join(known) or 'none'}"
                raise BadOption("unique", list(names), rule)


class TaskCall(Generic[P, R]):
    """A task with options, to be submitted."""

    def __init__(self, task: Task[Any, Any, P, R], options: Options) -> None:
        self._task = task
        self._options = options

    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]:
        """Submit a job with these options; see `Task.submit`."""
        return await self._task._send(self._options, args, kwargs)

    async def submit_many(
        self, calls: Iterable[Call], *, ids: Sequence[str] | None = None, all_or_nothing: bool = False
    ) -> list[JobHandle[R]]:
        """Submit many jobs with these options; see `Client.submit_many`."""
        return await self._task._send_many(self._options, calls, ids, all_or_nothing)

    @overload
    def map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: Literal[False] = False,
        **how: Unpack[MapOptions],
    ) -> Results[R]: ...
    @overload
    def map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: bool,
        **how: Unpack[MapOptions],
    ) -> Results[R | JobError]: ...

    def map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: bool = False,
        **how: Unpack[MapOptions],
    ) -> Results[Any]:
        """The results of many calls with these options; see `Client.map`."""
        return self._task._map(self._options, calls, return_exceptions, how)

    @overload
    def delay_map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: Literal[False] = False,
        **how: Unpack[MapOptions],
    ) -> Iterator[R]: ...
    @overload
    def delay_map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: bool,
        **how: Unpack[MapOptions],
    ) -> Iterator[R | JobError]: ...

    def delay_map(
        self,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: bool = False,
        **how: Unpack[MapOptions],
    ) -> Iterator[Any]:
        """The blocking twin of `map`."""
        results = self._task._map(self._options, calls, return_exceptions, how)
        return each(results, self._task._client.portal)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> SyncJobHandle[R]:
        """The blocking twin of `submit`."""
        portal = self._task._client.portal
        return SyncJobHandle(portal.call(self.submit(*args, **kwargs)), portal)


def takes_context(function: Callable[..., object]) -> bool:
    """Whether a function's first parameter is declared as a `Context`."""
    first = next(iter(inspect.signature(function).parameters.values()), None)
    if first is None or first.annotation is inspect.Parameter.empty:
        return False
    kind = resolve_hints(function).get(first.name)
    return isinstance(kind, type) and issubclass(kind, Context)


def check_function(function: Callable[..., object]) -> None:
    """Raises `BadOption` for what cannot run as a job."""
    if not callable(function):
        raise BadOption("task", function, "it takes a function")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise BadOption("task", function, "a generator has no one result: return a list")
    try:
        inspect.signature(function)
    except ValueError as error:
        raise BadOption("task", function, "its parameters are not known; wrap it in a function") from error


def check_executor(executor: ExecutorKind | None) -> None:
    """Raises `BadOption` for an executor that there is not."""
    if executor not in (None, *typing.get_args(ExecutorKind)):
        raise BadOption("executor", executor, "it takes async, thread or process")


def check_quarantine(quarantine: str | None, queue: str) -> None:
    """Raises `BadName`, and `BadOption` for a queue that would be its own quarantine."""
    if quarantine is not None and check_queue(quarantine) == queue:
        raise BadOption("quarantine", quarantine, "it takes another queue, with workers of its own")


def check_runs(function: Callable[..., object], executor: ExecutorKind | None) -> None:
    """Raises `BadOption` for an executor that cannot run the function."""
    if executor == "async" and not inspect.iscoroutinefunction(function):
        raise BadOption("executor", executor, "only a coroutine function (async def) runs on the loop")
    if executor == "thread" and inspect.iscoroutinefunction(function):
        raise BadOption("executor", executor, "a coroutine function runs on the loop, or in a process")


def place_of(function: Callable[..., object]) -> FunctionLocation:
    """Where a child process finds a function. Raises `BadOption` for one that has no name of its own."""
    name, module = getattr(function, "__qualname__", ""), getattr(function, "__module__", "")
    if not name or "<" in name:
        raise BadOption(
            "executor",
            "process",
            f"a child process finds a function by its name, and {name or function!r} is no name in a module: "
            "define it at the top of one",
        )
    if module != "__main__":
        return FunctionLocation(module, "", name)
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return FunctionLocation(spec.name, "", name)
    if file is None:
        raise BadOption("executor", "process", f"{name} was typed in, not written to a file: none finds it")
    return FunctionLocation("", str(Path(file).resolve()), name)


AnyTask: typing.TypeAlias = Task[Any, Any, Any, Any]
