"""Declarations: the tasks, queues and schedules that an App or a Router declares.

`App` and `Router` share this base, so that a module declares in the same way with both. A task that a Router
declares may get another name and another queue when the Router is included. It keeps them from then on: its
jobs on the server are found by them.
"""

import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack, overload

from jsq.batch import BatchItem, BatchLimits
from jsq.client.bulk import CallArguments
from jsq.client.connection import Connection
from jsq.client.schedules import scheduled
from jsq.context import Context
from jsq.declaration import (
    BatchOptions,
    Declaration,
    TaskOptions,
    check_function,
    check_quarantine,
    check_runs,
    read_batch,
    read_declaration,
)
from jsq.errors import BadOption, TaskExists
from jsq.middleware import Middleware, read_middleware
from jsq.model.durations import Duration, seconds
from jsq.model.job import check_queue
from jsq.model.rate_limit import Rate
from jsq.model.schedule import Recurrence, Schedule, ScheduleOptions, read_schedule
from jsq.settings import QueueSettings, Storage
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


@dataclass(frozen=True, slots=True)
class WrittenSchedule:
    """A schedule as its author wrote it. Without a `name` it has the name of its task."""

    name: str | None
    task: AnyTask | str
    args: CallArguments
    options: Mapping[str, Any]

    @property
    def full_name(self) -> str:
        """The name of the schedule."""
        if self.name is not None:
            return self.name
        return (self.task if isinstance(self.task, str) else self.task.name).replace(".", "-")

    def renamed(self, names: Mapping[str, str]) -> "WrittenSchedule":
        """The schedule with the new name of its task, if that is given by name."""
        return replace(self, task=names.get(self.task, self.task)) if isinstance(self.task, str) else self


class Declarations:
    """Declares tasks, queues and schedules: the common part of `App` and `Router`.

    `tasks` are those by their names, `aliases` the names of tasks by their older names, `declared` the
    settings of the declared queues with their `queue_middleware`, and `schedules` those by their names.
    """

    def __init__(self, connection: Connection) -> None:
        self.tasks: dict[str, AnyTask] = {}
        self.aliases: dict[str, str] = {}
        self.declared: dict[str, QueueSettings] = {}
        self.schedules: dict[str, Schedule] = {}
        self.queue_middleware: dict[str, tuple[Middleware, ...]] = {}
        self.connection = connection
        self.written_schedules: list[WrittenSchedule] = []

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
        written = self._with_defaults(options)
        read_declaration("_", **written)  # a wrong option raises in the line that has it

        def declare(function: Callable[..., Any]) -> AnyTask:
            return self._declare(function, written)

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
        batch, others = read_batch(**self._with_defaults(options))
        read_declaration("_", **others)

        def declare(function: Callable[..., Any]) -> AnyTask:
            return self._declare(function, others, batch)

        return declare

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
        middleware: Iterable[Middleware] = (),
    ) -> QueueSettings:
        """Declare the settings of a queue; see `QueueSettings`. Workers and `provision` apply them.

        Without `replicas` a queue keeps its present number: an operator's `jsq provision --replicas` stays.
        A job that crashes `max_crashes` workers fails, or goes to the queue `quarantine`, which a worker
        serves only if it is started with it. `rate` limits the starts of jobs by all workers together:
        "100/m", or a `Rate`. `per_key` is how many jobs of one key run at once, unless a submit or its task
        sets another number. Without it keys take turns: each key starts one job in a turn, or as many as its
        weight. With `keep_arguments=False` the record of an ended job does not hold its arguments.
        `middleware` runs around the jobs of the queue, inside that of the App. Raises `BadName`, `BadOption`.
        """
        check_quarantine(quarantine, check_queue(name))
        settings = QueueSettings.read(
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
        self.add_queue(name, settings, read_middleware(middleware))
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
        return self.add_schedule(WrittenSchedule(name, task, args, options))

    def _recur(self, name: str | None, args: CallArguments, options: Any) -> Recur:
        read_schedule(
            "any" if name is None else name, "any", b"", **options
        )  # raises in the line with the option

        def recur(function: Any) -> Any:
            queue = {"queue": options["queue"]} if options.get("queue") else {}
            task: AnyTask = function if isinstance(function, Task) else self.task(**queue)(function)
            self.add_schedule(WrittenSchedule(name, task, args, options))
            return task

        return recur

    # -- inside ------------------------------------------------------------------------------------------

    def _with_defaults(self, written: Any) -> Any:
        """The options of a task, with the defaults for those that it leaves out."""
        return written

    def _placed(self, declaration: Declaration, module: str) -> Declaration:
        """The declaration of a task of a module, with the name and the queue that the task has here."""
        return declaration

    def _declare(
        self, function: Callable[..., Any], options: Mapping[str, Any], batch: BatchLimits | None = None
    ) -> AnyTask:
        if isinstance(function, Task):
            rule = "must be a function, not a task; put @app.cron and @app.every above @app.task"
            raise BadOption("task", function.name, rule)
        check_function(function)
        read = read_declaration(getattr(function, "__name__", ""), **options)
        declaration = self._placed(replace(read, batch=batch), module_name(function))
        check_runs(function, declaration.executor)
        self._check_free(declaration)
        task: AnyTask = Task(function, declaration, self.connection)
        self.add_task(task)
        return task

    def _check_free(self, declaration: Declaration) -> None:
        for taken in (declaration.name, *declaration.aliases):
            if taken in self.tasks or taken in self.aliases:
                raise TaskExists(taken)

    def add_task(self, task: AnyTask) -> None:
        """Add a declared task."""
        self.tasks[task.name] = task
        self.aliases.update(dict.fromkeys(task.declaration.aliases, task.name))

    def add_queue(self, name: str, settings: QueueSettings, middleware: tuple[Middleware, ...] = ()) -> None:
        """Add the settings of a queue, and the middleware of its jobs."""
        self.declared[name] = settings
        self.queue_middleware[name] = middleware

    def add_schedule(self, written: WrittenSchedule) -> Schedule:
        """Add a schedule. Raises `BadName`, `BadArguments`; `BadOption` for the name of another one."""
        found = self._build_schedule(written)
        if found.name in self.schedules:
            raise BadOption(
                "name",
                found.name,
                "must be unique among the declared schedules; give one of them another name",
            )
        self.schedules[found.name] = found
        self.written_schedules.append(written)
        return found

    def _build_schedule(self, written: WrittenSchedule, declared: str = "") -> Schedule:
        options: Any = written.options
        return scheduled(written.full_name, written.task, written.args, declared, **options)

    def adopt(self, tasks: Iterable[AnyTask]) -> dict[str, str]:
        """Give the tasks of an included Router their names here; returns the names that have changed.

        Callbacks that refer to a changed name are changed too. Raises `TaskExists`; no task is changed then.
        """
        placed = {task: self._placed(task.declaration, module_name(task.function)) for task in tasks}
        for declaration in placed.values():
            self._check_free(declaration)
        renamed = {task.name: one.name for task, one in placed.items() if task.name != one.name}
        for task, declaration in placed.items():
            task.redeclare(renamed_callbacks(declaration, renamed), self.connection)
            self.add_task(task)
        if renamed:
            for task in self.tasks.values():
                if task not in placed:
                    task.redeclare(renamed_callbacks(task.declaration, renamed), self.connection)
        return renamed


def renamed_callbacks(declaration: Declaration, renamed: Mapping[str, str]) -> Declaration:
    """A declaration whose callbacks have their new names."""
    names = declaration.callbacks.task_names
    changed = {option: renamed[name] for option, name in names.items() if name in renamed}
    return (
        replace(declaration, callbacks=replace(declaration.callbacks, **changed)) if changed else declaration
    )


def module_name(function: Callable[..., object]) -> str:
    """The module of a function, under the name by which other programs import it."""
    module = getattr(function, "__module__", None) or ""
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return spec.name if spec is not None else Path(file).stem if file is not None else module
