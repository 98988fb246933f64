"""An App declares tasks, queues and schedules: clients submit jobs to it, and workers run them."""

import inspect
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, Unpack, overload

from jsq.batch import BatchItem, BatchLimits
from jsq.client.bulk import CallArguments
from jsq.client.client import Client
from jsq.client.schedules import scheduled
from jsq.context import Context
from jsq.declaration import (
    BatchOptions,
    TaskOptions,
    check_function,
    check_quarantine,
    check_runs,
    read_batch,
    read_declaration,
)
from jsq.errors import BadOption, TaskExists, UnknownTask, count_noun
from jsq.model.durations import Duration, seconds
from jsq.model.job import DEFAULT_QUEUE, check_queue
from jsq.model.peer_terms import APP_TERMS, explain_missing
from jsq.model.rate_limit import Rate
from jsq.model.schedule import Recurrence, Schedule, ScheduleOptions, read_schedule
from jsq.settings import Login, QueueSettings, Storage
from jsq.task import AnyTask, Task

P = ParamSpec("P")
R = TypeVar("R")
K = TypeVar("K", bound=AnyTask)
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")


class Declare(Protocol):
    """The result of `@app.task(...)`: a decorator that keeps the function's types."""

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


class Function(Protocol[P, R_co]):
    """A function that is not a Task, for type checkers: a Task is a callable too."""

    @property
    def __code__(self) -> Any: ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call it."""
        ...


class Recur(Protocol):
    """The result of `@app.cron(...)` and `@app.every(...)`: a decorator of a task or a function."""

    @overload
    def __call__(self, function: K, /) -> K: ...
    @overload
    def __call__(
        self, function: Function[Concatenate[Context, P], Coroutine[Any, Any, R]], /
    ) -> Task[Concatenate[Context, P], Coroutine[Any, Any, R], P, R]: ...
    @overload
    def __call__(
        self, function: Function[P, Coroutine[Any, Any, R]], /
    ) -> Task[P, Coroutine[Any, Any, R], P, R]: ...
    @overload
    def __call__(
        self, function: Function[Concatenate[Context, P], R], /
    ) -> Task[Concatenate[Context, P], R, P, R]: ...
    @overload
    def __call__(self, function: Function[P, R], /) -> Task[P, R, P, R]: ...


class DeclareBatch(Protocol):
    """The result of `@app.batch_task(...)`: a decorator that knows the type of one item and of its result."""

    @overload
    def __call__(
        self, function: Callable[[list[BatchItem[T]]], Coroutine[Any, Any, None]], /
    ) -> Task[[list[BatchItem[T]]], Coroutine[Any, Any, None], [T], None]: ...
    @overload
    def __call__(
        self, function: Callable[[list[BatchItem[T]]], Coroutine[Any, Any, Sequence[R | BaseException]]], /
    ) -> Task[[list[BatchItem[T]]], Coroutine[Any, Any, Sequence[R | BaseException]], [T], R]: ...
    @overload
    def __call__(
        self, function: Callable[[list[T]], Coroutine[Any, Any, None]], /
    ) -> Task[[list[T]], Coroutine[Any, Any, None], [T], None]: ...
    @overload
    def __call__(
        self, function: Callable[[list[T]], Coroutine[Any, Any, Sequence[R | BaseException]]], /
    ) -> Task[[list[T]], Coroutine[Any, Any, Sequence[R | BaseException]], [T], R]: ...
    @overload
    def __call__(
        self, function: Callable[[list[BatchItem[T]]], None], /
    ) -> Task[[list[BatchItem[T]]], None, [T], None]: ...
    @overload
    def __call__(
        self, function: Callable[[list[BatchItem[T]]], Sequence[R | BaseException]], /
    ) -> Task[[list[BatchItem[T]]], Sequence[R | BaseException], [T], R]: ...
    @overload
    def __call__(self, function: Callable[[list[T]], None], /) -> Task[[list[T]], None, [T], None]: ...
    @overload
    def __call__(
        self, function: Callable[[list[T]], Sequence[R | BaseException]], /
    ) -> Task[[list[T]], Sequence[R | BaseException], [T], R]: ...


class App:
    """Tasks, queues and schedules under one name, and the client that submits to them.

    `url`: see `Client`. `name` is the name of the connections on the server. `namespace` separates
    installations that share a server. `events`, such as "30d", is how long an event log keeps each change of
    each job; without it there is no event log. Workers and `provision` create the log. Raises `BadOption`.
    """

    def __init__(
        self,
        url: str | Login | None = None,
        *,
        name: str = "jsq",
        namespace: str | None = None,
        events: Duration | None = None,
    ) -> None:
        self.client = Client(url, namespace=namespace, name=name)
        self.name = name
        self.events = None if events is None else seconds("events", events, least=1.0)
        self.namespace = self.client.namespace
        self.tasks: dict[str, AnyTask] = {}
        self.aliases: dict[str, str] = {}
        self.declared: dict[str, QueueSettings] = {}
        self.schedules: dict[str, Schedule] = {}

    def __repr__(self) -> str:
        return f"<App {self.name!r} in namespace {self.namespace!r}: {count_noun(len(self.tasks), 'task')}>"

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
        """Declare a function as a task, with or without parentheses; `TaskOptions` lists the options.

        Raises `BadName`, `BadOption`, `TaskExists`.
        """
        read_declaration("_", **options)  # a wrong option raises in the line that has it

        def declare(function: Callable[..., Any]) -> AnyTask:
            return self._declare(function, options)

        return declare if function is None else declare(function)

    def batch_task(self, /, **options: Unpack[BatchOptions]) -> DeclareBatch:
        """Declare a function that gets many jobs at once: `async def index(items: list[Item])`.

        Each job is submitted with one argument, `index.submit(item)`, and has its own record and outcome. A
        worker collects up to `size` jobs, or as many as arrive within `wait` seconds of the first, and calls
        the function once. The call takes one slot. `BatchOptions` lists the other options. The function
        returns None if all jobs succeeded, or a list with one element for each item: its result, or an
        exception, which counts as if a task had raised it. An exception that the function raises counts for
        every job. The function may take `list[BatchItem[Item]]` to know the jobs; it takes no `Context`.
        Raises `BadName`, `BadOption`, `TaskExists`.
        """
        batch, others = read_batch(**options)
        read_declaration("_", **others)

        def declare(function: Callable[..., Any]) -> AnyTask:
            return self._declare(function, others, batch)

        return declare

    def _declare(
        self, function: Callable[..., Any], options: Mapping[str, Any], batch: BatchLimits | None = None
    ) -> AnyTask:
        if isinstance(function, Task):
            rule = "must be a function, not a task; put @app.cron and @app.every above @app.task"
            raise BadOption("task", function.name, rule)
        check_function(function)
        declaration = replace(read_declaration(getattr(function, "__name__", ""), **options), batch=batch)
        check_runs(function, declaration.executor)
        for taken in (declaration.name, *declaration.aliases):
            if taken in self.tasks or taken in self.aliases:
                raise TaskExists(taken)
        task: AnyTask = Task(function, declaration, self.client)
        self.tasks[task.name] = task
        self.aliases.update(dict.fromkeys(declaration.aliases, task.name))
        return task

    def queue(
        self,
        name: str,
        *,
        storage: Storage = "file",
        replicas: int | None = None,
        max_jobs: int | None = None,
        max_bytes: int | None = None,
        lease: Duration = 30.0,
        concurrency: int | None = None,
        max_crashes: int = 3,
        quarantine: str | None = None,
        per_key: int | None = None,
        weights: Mapping[str, int] | None = None,
        rate: Rate | str | None = None,
        keep_arguments: bool = True,
    ) -> QueueSettings:
        """Declare the settings of a queue; see `QueueSettings`. Workers and `provision` apply them.

        Without `replicas` a queue keeps its present number: an operator's `jsq provision --replicas` stays.
        A job that crashes `max_crashes` workers fails, or goes to the queue `quarantine`, which a worker
        serves only if it is started with it. `rate` limits the starts of jobs by all workers together:
        "100/m", or a `Rate`. `per_key` is how many jobs of one key run at once, unless a submit or its task
        sets another number. Without it keys take turns: each key starts one job in a turn, or as many as its
        weight. With `keep_arguments=False` the record of an ended job does not hold its arguments. Raises
        `BadName`, `BadOption`.
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
            rate=rate,
            keep_arguments=keep_arguments,
        )
        return settings

    def cron(
        self,
        cron: str,
        /,
        args: CallArguments = (),
        *,
        name: str | None = None,
        **options: Unpack[Recurrence],
    ) -> Recur:
        """Submit a job of the task below at each tick of a cron expression; see `schedule`.

        Put `@app.cron("0 3 * * *", tz="Europe/Berlin")` above `@app.task`, or use it alone; the task is then
        on the `queue` of the schedule. The schedule has the name of the task, or `name`. Several schedules of
        one task need a `name` each.
        """
        return self._recur(name, args, {**options, "cron": cron})

    def every(
        self,
        every: Duration,
        /,
        args: CallArguments = (),
        *,
        name: str | None = None,
        **options: Unpack[Recurrence],
    ) -> Recur:
        """Submit a job of the task below at an interval: `@app.every("30s")`; see `cron` and `schedule`."""
        return self._recur(name, args, {**options, "every": every})

    def schedule(
        self, name: str, task: AnyTask | str, args: CallArguments = (), **options: Unpack[ScheduleOptions]
    ) -> Schedule:
        """Declare that jobs of a task are submitted at regular times; workers and `provision` store the
        schedule.

        `args` is a list of positional arguments, or a dictionary of named ones. `ScheduleOptions` lists the
        options. `client.schedules` adds a schedule at run time. Raises `BadName`, `BadOption`,
        `BadArguments`.
        """
        found = scheduled(name, task, args, self.name, **options)
        if name in self.schedules:
            raise BadOption(
                "name", name, "must be unique among the declared schedules; give one of them another name"
            )
        self.schedules[name] = found
        return found

    def _recur(self, name: str | None, args: CallArguments, options: Any) -> Recur:
        read_schedule(
            "any" if name is None else name, "any", b"", **options
        )  # raises in the line with the option

        def recur(function: Any) -> Any:
            queue = {"queue": options["queue"]} if options.get("queue") else {}
            task: AnyTask = function if isinstance(function, Task) else self.task(**queue)(function)
            self.schedule(task.name.replace(".", "-") if name is None else name, task, args, **options)
            return task

        return recur

    def find(self, name: str) -> AnyTask:
        """A task by its name, or by an older name (`aliases`). Raises `UnknownTask`."""
        task = self.known(name)
        if task is None:
            raise UnknownTask(name)
        return task

    def known(self, name: str) -> AnyTask | None:
        """A task by its name or an older name; None if there is no such task."""
        return self.tasks.get(name) or self.tasks.get(self.aliases.get(name, name))

    def check(self) -> None:
        """Check that the tasks fit together. A worker does this before it starts.

        Raises `UnknownTask` for a callback or fallback that is not declared. Raises `BadOption` for a
        callback or fallback with other parameters, for fallbacks in a circle, and for a `retry_if` that a
        child process would not find.
        """
        for task in self.tasks.values():
            for option, name in task.declaration.callbacks.task_names.items():
                other = self.known(name)
                if other is None:
                    raise UnknownTask(name, f"{option} of task {task.name}")
                check_callback(task, option, other)
            check_circle(task, self.known)
            check_reach(task)

    @property
    def queues(self) -> list[str]:
        """The queues that are declared or named by a task, without quarantines: other workers serve these."""
        declared = [task.declaration for task in self.tasks.values()]
        named = {one.queue for one in declared} | {one.job.queue for one in self.schedules.values()}
        apart = {one.quarantine for one in declared}
        apart |= {settings.quarantine for settings in self.declared.values()}
        return sorted(named | (set(self.declared) - apart)) or [DEFAULT_QUEUE]

    # -- connect -----------------------------------------------------------------------------------------

    async def connect(self) -> Self:
        """Connect now; otherwise the first submit connects.

        Raises `BrokerUnavailable`, `NotAllowed`, `ServerTooOld`.
        """
        await self.client.connect()
        return self

    async def close(self) -> None:
        await self.client.close()

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(self, *_: object) -> None:
        await self.close()


explain_missing(App, APP_TERMS)


def check_callback(task: AnyTask, option: str, other: AnyTask) -> None:
    """Raises `BadOption` for a callback without exactly one argument, or a fallback with other parameters."""
    shape, field = other.signature.shape, f"{option} of {task.name}"
    if option != "fallback":
        try:
            shape.bind(None)
        except TypeError as error:
            raise BadOption(
                field, other.name, f"must be a task of one argument, a Failure; {error}"
            ) from error
        return
    given = [one for one in task.signature.shape.parameters.values() if one.kind not in VARIABLE]
    named = ", ".join(one.name for one in given) or "none"
    try:
        shape.bind(**{one.name: None for one in given})
    except TypeError as error:
        raise BadOption(
            field, other.name, f"must be a task with parameters of the same names, {named}; {error}"
        ) from error


def check_circle(task: AnyTask, known: Callable[[str], AnyTask | None]) -> None:
    """Raises `BadOption` for a task whose fallbacks lead back to it."""
    seen: list[str] = []
    following: AnyTask | None = task
    while following is not None and following.name not in seen:
        seen.append(following.name)
        following = known(following.declaration.callbacks.fallback)
    if following is not None:
        rule = f"must not form a circle; it is {' -> '.join((*seen, following.name))}"
        raise BadOption(f"fallback of {seen[-1]}", following.name, rule)


def check_reach(task: AnyTask) -> None:
    """Raises `BadOption` if a child process would not find the predicate of a task."""
    if task.place is None or task.declaration.retry.retry_if is None:
        return
    found: Any = sys.modules.get(task.function.__module__)
    for part in task.place.name.split("."):
        found = getattr(found, part, None)
    if found is not task:
        rule = "must be found by a child process, but the name of the task does not lead to the task"
        raise BadOption(
            f"retry_if of {task.name}", task.place.name, f"{rule}; declare the task with @app.task"
        )


VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
"""Kinds of parameters that take any number of arguments."""
