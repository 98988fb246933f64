"""An App declares tasks and queues: what a client submits and a worker runs."""

from collections.abc import Callable, Coroutine, Iterable
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, overload

from jsq.client import Client, spread
from jsq.context import Context
from jsq.errors import BadOption, TaskExists, UnknownTask, seconds
from jsq.job import DEFAULT_QUEUE, Options, Priority, check_queue, check_task
from jsq.retry import BackoffOption, RetryPolicy
from jsq.retry import backoff as read_backoff
from jsq.settings import Login, QueueSettings, Storage
from jsq.task import DAY, AnyTask, Declaration, Kind, Task, check_executor, check_function

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
        executor: Kind | None = None,
        hard_timeout: float | timedelta | None = None,
        aliases: Iterable[str] = (),
        deadline: float | timedelta | None = None,
        quarantine: str | None = None,
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
        executor: Kind | None = None,
        hard_timeout: float | timedelta | None = None,
        aliases: Iterable[str] = (),
        deadline: float | timedelta | None = None,
        quarantine: str | None = None,
    ) -> Any:
        """Declare a function as a task, with or without parentheses.

        `name` is the function's own by default. A job that raises is tried again `retries` times, after waits
        that `backoff` gives: none, linear, exponential (with full jitter), a list of seconds, or a `Backoff`.
        `timeout` is in seconds for each attempt. A result is kept for `keep_result` seconds; 0 keeps only the
        outcome. Raises `BadName`, `BadOption`, `TaskExists`.

        `executor`: a coroutine function runs on the worker's loop, any other in a thread; `process` runs
        either in a process of its own, which can be killed. `timeout` asks a task to end, which then has 5
        seconds to clean up; at `hard_timeout` (seconds, not less than `timeout`) a process is killed, and
        what cannot be killed is given up, its slot free. `aliases` are older names whose jobs it runs too.
        A job that has not succeeded `deadline` seconds after its submit ends as `expired`; see README.
        `quarantine` is the queue where a job goes on that took down too many workers; see `queue`.
        """
        policy = RetryPolicy(retries, read_backoff(backoff))
        limit = seconds("timeout", timeout, least=0.001)
        keep = seconds("keep_result", keep_result) or 0.0
        until = seconds("deadline", deadline, least=0.001)
        hard = seconds("hard_timeout", hard_timeout, least=0.001)
        if hard is not None and limit is not None and hard < limit:
            raise BadOption("hard_timeout", hard, f"it takes no less than the timeout, {limit:g} s")
        if isinstance(aliases, str):
            raise BadOption("aliases", aliases, "it takes a list of names")
        others = [check_task(alias) for alias in aliases]
        check_quarantine(quarantine, queue)
        marks = tuple(Options(queue=queue, priority=priority, tags=spread(tags)).tags)

        def declare(function: Callable[..., Any]) -> AnyTask:
            check_function(function)
            check_executor(function, executor)
            called = check_task(name or function.__name__)
            for taken in (called, *others):
                if taken in self.tasks or taken in self.aliases:
                    raise TaskExists(taken)
            declaration = Declaration(
                called,
                queue,
                priority,
                policy,
                limit,
                keep,
                marks,
                hard,
                executor,
                until,
                quarantine,
            )
            task: AnyTask = Task(function, declaration, self.client)
            self.tasks[called] = task
            self.aliases.update(dict.fromkeys(others, called))
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
    ) -> QueueSettings:
        """Declare how a queue is kept and run; see `QueueSettings`. Workers and `provision` see to it.

        Without `replicas` a queue keeps those it has: an operator's `jsq provision --replicas` stays.
        A job that takes down `max_crashes` workers fails, or goes to the queue `quarantine`, which only
        workers serve that are told to. Raises `BadName`, `BadOption`.
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


def check_quarantine(quarantine: str | None, queue: str) -> None:
    """Raises `BadName`, and `BadOption` for a queue that would be its own quarantine."""
    if quarantine is not None and check_queue(quarantine) == queue:
        raise BadOption("quarantine", quarantine, "it takes another queue, with workers of its own")
