"""An App declares tasks and queues: what a client submits and a worker runs."""

from collections.abc import Callable, Coroutine, Iterable
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, overload

from jsq.client import Client, spread
from jsq.context import Context
from jsq.errors import TaskExists, UnknownTask, seconds
from jsq.job import DEFAULT_QUEUE, Options, Priority, check_queue, check_task
from jsq.retry import BackoffOption, RetryPolicy
from jsq.retry import backoff as read_backoff
from jsq.settings import Login, QueueSettings, Storage
from jsq.task import DAY, AnyTask, Declaration, Task, check_function

P = ParamSpec("P")
R = TypeVar("R")


class Declare(Protocol):
    """What `@app.task(...)` gives: a decorator that keeps the function's types."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[Context, P], Coroutine[Any, Any, R]], /
    ) -> Task[Concatenate[Context, P], Coroutine[Any, Any, R], P, R]: ...
    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Task[P, Coroutine[Any, Any, R], P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Context, P], R], /
    ) -> Task[Concatenate[Context, P], R, P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R, P, R]: ...


class App:
    """Tasks and queues under one name, and the client that submits to them.

    `url`: see `Client`. `name` is what the server shows for our connections. `namespace` sets installations
    that share a server apart.
    """

    def __init__(
        self, url: str | Login | None = None, *, name: str = "jsq", namespace: str | None = None
    ) -> None:
        self.client = Client(url, namespace=namespace, name=name)
        self.name = name
        self.namespace = self.client.namespace
        self.tasks: dict[str, AnyTask] = {}
        self.declared: dict[str, QueueSettings] = {}

    # -- declare -----------------------------------------------------------------------------------------

    @overload
    def task(
        self, function: Callable[Concatenate[Context, P], Coroutine[Any, Any, R]], /
    ) -> Task[Concatenate[Context, P], Coroutine[Any, Any, R], P, R]: ...
    @overload
    def task(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> Task[P, Coroutine[Any, Any, R], P, R]: ...
    @overload
    def task(
        self, function: Callable[Concatenate[Context, P], R], /
    ) -> Task[Concatenate[Context, P], R, P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R, P, R]: ...
    @overload
    def task(
        self,
        /,
        *,
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
        priority: Priority = "normal",
        retries: int = 3,
        backoff: BackoffOption = "exponential",
        timeout: float | timedelta | None = None,
        keep_result: float | timedelta = DAY,
        tags: Iterable[str] = (),
    ) -> Declare: ...

    def task(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
        priority: Priority = "normal",
        retries: int = 3,
        backoff: BackoffOption = "exponential",
        timeout: float | timedelta | None = None,
        keep_result: float | timedelta = DAY,
        tags: Iterable[str] = (),
    ) -> Any:
        """Declare a function as a task, with or without parentheses.

        `name` is the function's own by default. A job that raises is tried again `retries` times, after waits
        that `backoff` gives: none, linear, exponential (with full jitter), a list of seconds, or a `Backoff`.
        `timeout` is in seconds for each attempt. A result is kept for `keep_result` seconds; 0 keeps only the
        outcome. Raises `BadName`, `BadOption`, `TaskExists`.
        """
        policy = RetryPolicy(retries, read_backoff(backoff))
        limit = seconds("timeout", timeout, least=0.001)
        keep = seconds("keep_result", keep_result) or 0.0
        marks = tuple(Options(queue=queue, priority=priority, tags=spread(tags)).tags)

        def declare(function: Callable[..., Any]) -> AnyTask:
            check_function(function)
            called = check_task(name or function.__name__)
            if called in self.tasks:
                raise TaskExists(called)
            declaration = Declaration(called, queue, priority, policy, limit, keep, marks)
            task: AnyTask = Task(function, declaration, self.client)
            self.tasks[called] = task
            return task

        return declare if function is None else declare(function)

    def queue(
        self,
        name: str,
        *,
        storage: Storage = "file",
        replicas: int = 1,
        max_jobs: int | None = None,
        max_bytes: int | None = None,
        lease: float | timedelta = 30.0,
        concurrency: int | None = None,
        max_crashes: int = 3,
    ) -> QueueSettings:
        """Declare how a queue is kept and run; see `QueueSettings`. Workers and `provision` see to it.

        Raises `BadName`, `BadOption`.
        """
        self.declared[check_queue(name)] = settings = QueueSettings.read(
            storage=storage,
            replicas=replicas,
            max_jobs=max_jobs,
            max_bytes=max_bytes,
            lease=seconds("lease", lease, least=1),
            concurrency=concurrency,
            max_crashes=max_crashes,
        )
        return settings

    def find(self, name: str) -> AnyTask:
        """A task by its name. Raises `UnknownTask`."""
        try:
            return self.tasks[name]
        except KeyError:
            raise UnknownTask(name) from None

    @property
    def queues(self) -> list[str]:
        """The queues that are declared, or that a task names."""
        named = {task.declaration.queue for task in self.tasks.values()}
        return sorted(named | set(self.declared)) or [DEFAULT_QUEUE]

    # -- connect -----------------------------------------------------------------------------------------

    async def connect(self) -> Self:
        """Connect now; left out, the first submit does it. Raises `BrokerUnavailable`, `NotAllowed`,
        `ServerTooOld`.
        """
        await self.client.connect()
        return self

    async def close(self) -> None:
        await self.client.close()

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(self, *_: object) -> None:
        await self.close()
