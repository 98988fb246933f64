"""An App declares tasks and queues: what a client submits and a worker runs."""

from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, Unpack, overload

from jsq.client import Client
from jsq.context import Context
from jsq.errors import TaskExists, UnknownTask, seconds
from jsq.job import DEFAULT_QUEUE, check_queue
from jsq.settings import Login, QueueSettings, Storage
from jsq.task import (
    AnyTask,
    Task,
    TaskOptions,
    check_function,
    check_quarantine,
    check_runs,
    read_declaration,
)

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
        self.aliases: dict[str, str] = {}
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
    def task(self, /, **options: Unpack[TaskOptions]) -> Declare: ...

    def task(self, function: Callable[..., Any] | None = None, /, **options: Unpack[TaskOptions]) -> Any:
        """Declare a function as a task, with or without parentheses; what it takes, `TaskOptions` tells.

        Raises `BadName`, `BadOption`, `TaskExists`.
        """
        read_declaration("_", **options)  # what is wrong is told where it is written

        def declare(function: Callable[..., Any]) -> AnyTask:
            check_function(function)
            declaration = read_declaration(getattr(function, "__name__", ""), **options)
            check_runs(function, declaration.executor)
            for taken in (declaration.name, *declaration.aliases):
                if taken in self.tasks or taken in self.aliases:
                    raise TaskExists(taken)
            task: AnyTask = Task(function, declaration, self.client)
            self.tasks[task.name] = task
            self.aliases.update(dict.fromkeys(declaration.aliases, task.name))
            return task

        return declare if function is None else declare(function)

    def queue(
        self,
        name: str,
        *,
        storage: Storage = "file",
        replicas: int | None = None,
        max_jobs: int | None = None,
        max_bytes: int | None = None,
        lease: float | timedelta = 30.0,
        concurrency: int | None = None,
        max_crashes: int = 3,
        quarantine: str | None = None,
        per_key: int | None = None,
        weights: Mapping[str, int] | None = None,
    ) -> QueueSettings:
        """Declare how a queue is kept and run; see `QueueSettings`. Workers and `provision` see to it.

        Without `replicas` a queue keeps those it has: an operator's `jsq provision --replicas` stays.
        A job that takes down `max_crashes` workers fails, or goes to the queue `quarantine`, which only
        workers serve that are told to. So many jobs of one key run at once as `per_key` says, where a submit
        or its task says nothing; without it keys take turns, and each has one, or as many as its weight, for
        each turn of another. Raises `BadName`, `BadOption`.
        """
        check_quarantine(quarantine, name)
        self.declared[check_queue(name)] = settings = QueueSettings.read(
            storage=storage,
            **({"replicas": replicas} if replicas is not None else {}),
            max_jobs=max_jobs,
            max_bytes=max_bytes,
            lease=seconds("lease", lease, least=1),
            concurrency=concurrency,
            max_crashes=max_crashes,
            quarantine=quarantine,
            per_key=per_key,
            weights=weights,
        )
        return settings

    def find(self, name: str) -> AnyTask:
        """A task by its name, or by an older one (`aliases`). Raises `UnknownTask`."""
        task = self.known(name)
        if task is None:
            raise UnknownTask(name)
        return task

    def known(self, name: str) -> AnyTask | None:
        """A task by its name or an older one, None if there is none."""
        return self.tasks.get(name) or self.tasks.get(self.aliases.get(name, name))

    @property
    def queues(self) -> list[str]:
        """The queues that are declared, or that a task names; no quarantine, which is for other workers."""
        declared = [task.declaration for task in self.tasks.values()]
        named = {one.queue for one in declared}
        apart = {one.quarantine for one in declared}
        apart |= {settings.quarantine for settings in self.declared.values()}
        return sorted(named | (set(self.declared) - apart)) or [DEFAULT_QUEUE]

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
