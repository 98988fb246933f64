"""A task: a declared function, which can be called as itself or submitted as a job."""

import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Generic, Literal, ParamSpec, TypeVar

from jsq.client import Client, pack_each, read_options
from jsq.codec.signature import Signature, resolved
from jsq.context import Context
from jsq.errors import BadOption
from jsq.handle import JobHandle
from jsq.job import DEFAULT_QUEUE, Options, Priority
from jsq.retry import BackoffOption, RetryPolicy
from jsq.sync import SyncJobHandle

P = ParamSpec("P")
C = ParamSpec("C")
R = TypeVar("R")
V = TypeVar("V")

DAY = 86_400.0

Kind = Literal["async", "thread", "process"]
"""Where a task's function runs: on the worker's loop, in a thread, or in a process of its own."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where another process finds a function: a module (or the file run as main), and its name there."""

    module: str
    file: str
    name: str


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
    executor: Kind | None = None
    deadline: float | None = None
    quarantine: str | None = None


class Task(Generic[C, V, P, R]):
    """A declared function. Called, it runs here and now; submitted, it runs on a worker.

    `C` and `V` are the parameters and the return of the function itself; `P` and `R` are what a submit takes
    (without the `Context`) and what its result is (without the `Awaitable`).
    """

    def __init__(self, function: Callable[C, V], declaration: Declaration, client: Client) -> None:
        self.function = function
        self.declaration = declaration
        self.takes_context = takes_context(function)
        self.is_async = inspect.iscoroutinefunction(function)
        self.place = place_of(function) if declaration.executor == "process" else None
        self.signature = Signature(function, skip=int(self.takes_context))
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", declaration.name)
        self.__wrapped__ = function
        self._client = client
        self._options = Options(
            queue=declaration.queue,
            priority=declaration.priority,
            tags=declaration.tags,
            deadline=declaration.deadline,
        )

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
        self, calls: Iterable[Sequence[object] | Mapping[str, object]]
    ) -> list[JobHandle[R]]:
        """Submit a job for each call, `[(1, 2), {"a": 3, "b": 4}]`; see `Client.submit_many`."""
        return await self._send_many(self._options, calls)

    def delay_many(self, calls: Iterable[Sequence[object] | Mapping[str, object]]) -> list[SyncJobHandle[R]]:
        """The blocking twin of `submit_many`."""
        portal = self._client.portal
        return [SyncJobHandle(handle, portal) for handle in portal.call(self.submit_many(calls))]

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> SyncJobHandle[R]:
        """The blocking twin of `submit`, for callers without an event loop."""
        return SyncJobHandle(self._client.portal.call(self.submit(*args, **kwargs)), self._client.portal)

    def options(
        self,
        *,
        queue: str | None = None,
        priority: Priority | None = None,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        tags: Iterable[str] | None = None,
        retries: int | None = None,
        backoff: BackoffOption | None = None,
        timeout: float | timedelta | None = None,
        keep_result: float | timedelta | None = None,
        wait_for_room: float | timedelta | None = None,
        deadline: float | timedelta | datetime | None = None,
    ) -> "TaskCall[P, R]":
        """Options for one submit: `send.options(delay=60, priority="high").submit("a@b.c")`.

        Durations are seconds or `timedelta`; `at` is an aware `datetime`. `id` is the caller's own: the same
        id gives the same job back, marked as duplicate. `wait_for_room` is how long a submit is tried again
        where the queue or the server is full; see `Client.options`. By `deadline`,
        seconds from now or an aware moment, the job is to have ended; else it ends as `expired`. Raises
        `BadOption`, `BadName`.
        """
        chosen = read_options(
            queue=self.declaration.queue if queue is None else queue,
            priority=self.declaration.priority if priority is None else priority,
            delay=delay,
            at=at,
            id=id,
            headers=headers or {},
            tags=self.declaration.tags if tags is None else tags,
            retries=retries,
            backoff=backoff,
            timeout=timeout,
            keep_result=keep_result,
            wait_for_room=wait_for_room,
            deadline=self.declaration.deadline if deadline is None else deadline,
        )
        return TaskCall(self, chosen)

    async def _send(
        self, options: Options, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> JobHandle[R]:
        packed = self.signature.pack(args, kwargs)
        return await self._client.send(self.name, packed, options, signature=self.signature)

    async def _send_many(
        self, options: Options, calls: Iterable[Sequence[object] | Mapping[str, object]]
    ) -> list[JobHandle[R]]:
        packed = pack_each(self.name, calls, self.signature.pack)
        return await self._client.send_many(self.name, packed, options, signature=self.signature)


class TaskCall(Generic[P, R]):
    """A task with options, to be submitted."""

    def __init__(self, task: Task[Any, Any, P, R], options: Options) -> None:
        self._task = task
        self._options = options

    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]:
        """Submit a job with these options; see `Task.submit`."""
        return await self._task._send(self._options, args, kwargs)

    async def submit_many(
        self, calls: Iterable[Sequence[object] | Mapping[str, object]]
    ) -> list[JobHandle[R]]:
        """Submit many jobs with these options; see `Client.submit_many`."""
        return await self._task._send_many(self._options, calls)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> SyncJobHandle[R]:
        """The blocking twin of `submit`."""
        portal = self._task._client.portal
        return SyncJobHandle(portal.call(self.submit(*args, **kwargs)), portal)


def takes_context(function: Callable[..., object]) -> bool:
    """Whether a function's first parameter is declared as a `Context`."""
    first = next(iter(inspect.signature(function).parameters.values()), None)
    if first is None or first.annotation is inspect.Parameter.empty:
        return False
    kind = resolved(function).get(first.name)
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


def check_executor(function: Callable[..., object], executor: Kind | None) -> None:
    """Raises `BadOption` for an executor that cannot run the function."""
    if executor not in (None, *typing.get_args(Kind)):
        raise BadOption("executor", executor, "it takes async, thread or process")
    if executor == "async" and not inspect.iscoroutinefunction(function):
        raise BadOption("executor", executor, "only a coroutine function (async def) runs on the loop")
    if executor == "thread" and inspect.iscoroutinefunction(function):
        raise BadOption("executor", executor, "a coroutine function runs on the loop, or in a process")


def place_of(function: Callable[..., object]) -> Place:
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
        return Place(module, "", name)
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return Place(spec.name, "", name)
    if file is None:
        raise BadOption("executor", "process", f"{name} was typed in, not written to a file: none finds it")
    return Place("", str(Path(file).resolve()), name)


AnyTask: typing.TypeAlias = Task[Any, Any, Any, Any]
