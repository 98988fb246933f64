"""Runs Django tasks as jobs: each has a task of jsq under its module path.

A job chooses only among the tasks of modules that the worker has imported: `tasks.py` of the installed apps,
what these import, and the modules of `include`.
"""
# pyright: reportMissingImports=false

import contextlib
import sys
from collections.abc import Callable, Iterator
from inspect import iscoroutinefunction
from typing import Any

from asgiref.sync import sync_to_async
from django.tasks import Task, TaskContext, TaskResult, TaskResultStatus
from django.tasks.exceptions import InvalidTaskBackend
from django.tasks.signals import task_finished, task_started

from jsq.app import App
from jsq.context import Context
from jsq.contrib.django.connections import with_connections
from jsq.contrib.django.results import (
    CALL_HEADER,
    ERRORS_HEADER,
    StoredCall,
    TaskCall,
    build_result,
    find_call,
    plain_json,
    present,
    shown_time,
    with_path,
)
from jsq.middleware import Middleware
from jsq.model.job import Job
from jsq.task import AnyTask


def find_task(path: str) -> Task | None:
    """The Django task at a module path, if the module is imported already."""
    module, _, name = path.rpartition(".")
    found: Any = vars(sys.modules.get(module, object)).get(name)
    return found if isinstance(found, Task) and found.module_path == path else None


def imported_tasks() -> Iterator[Task]:
    """The Django tasks of all imported modules, each once."""
    for module, loaded in list(sys.modules.items()):
        for name, value in list(getattr(loaded, "__dict__", {}).items()):
            # The type, because `isinstance` would evaluate lazy objects.
            if issubclass(type(value), Task) and value.module_path == f"{module}.{name}":
                yield value


def declare_tasks(app: App) -> None:
    """Declare the imported Django tasks whose backend is a `JsqBackend`."""
    for task in imported_tasks():
        if runs_here(task) and task.module_path not in app.tasks:
            declare_task(app, task)


def declare_by_path(app: App, path: str) -> AnyTask | None:
    """Declare the Django task at a module path; None if no imported module has it."""
    task = find_task(path)
    return declare_task(app, task) if task is not None else None


def runs_here(task: Task) -> bool:
    """Whether the backend of a task is a `JsqBackend`."""
    try:
        return getattr(task.get_backend(), "runs_on_jsq", False)
    except InvalidTaskBackend:  # the settings of a test lack it
        return False


def declare_task(app: App, task: Task) -> AnyTask:
    """Declare the task of jsq that runs a Django task."""
    options: Any = {"retries": 0}  # a task of another backend, which `using(backend=...)` has sent here
    if runs_here(task):
        options = {"queue": task.queue_name, **task.get_backend().task_options(task)}
    declare = app.task(name=task.module_path, middleware=[TaskSignals(app)], **options)
    return declare(runner_of(app, task))


def runner_of(app: App, task: Task) -> Callable[..., Any]:
    """The function of the task of jsq. It passes JSON values on unchanged, as Django does."""
    function = task.func

    async def run_async(ctx: Context, /, *args: Any, **kwargs: Any) -> Any:
        result = running_result(task, ctx, args, kwargs, await earlier_attempts(app, ctx))
        await task_started.asend(sender=type(result.task.get_backend()), task_result=result)
        try:
            return plain_json(await function(*context_of(task, result), *args, **kwargs))
        except BaseException as error:
            await ctx.add_header(ERRORS_HEADER, noted(ctx, error))
            raise

    def run_sync(ctx: Context, /, *args: Any, **kwargs: Any) -> Any:
        earlier = app.client.connection.portal.run(earlier_attempts(app, ctx)) if ctx.attempt > 1 else None
        result = running_result(task, ctx, args, kwargs, earlier)
        task_started.send(sender=type(result.task.get_backend()), task_result=result)
        try:
            return plain_json(function(*context_of(task, result), *args, **kwargs))
        except BaseException as error:
            with contextlib.suppress(RuntimeError):  # the event loop has ended meanwhile
                ctx.blocking.add_header(ERRORS_HEADER, noted(ctx, error))
            raise

    return run_async if iscoroutinefunction(function) else run_sync


def context_of(task: Task, result: TaskResult) -> list[TaskContext]:
    """The context as the first argument of a task that takes it."""
    return [TaskContext(task_result=result)] if task.takes_context else []


def noted(ctx: Context, error: BaseException) -> str:
    """The header that notes the type of an exception."""
    return with_path(ctx.headers.get(ERRORS_HEADER, ""), ctx.attempt, error)


async def earlier_attempts(app: App, ctx: Context) -> StoredCall | None:
    """The job with its earlier attempts; None for a first attempt."""
    return await find_call(app.client, ctx.id, ctx.queue) if ctx.attempt > 1 else None


def running_result(
    task: Task, ctx: Context, args: tuple[Any, ...], kwargs: dict[str, Any], stored: StoredCall | None
) -> TaskResult:
    """The result of a task that begins to run."""
    if stored is not None:
        return build_result(stored, task)
    header = ctx.headers.get(CALL_HEADER)
    alias, now = task.backend, present()
    call = TaskCall.read(header) if header else TaskCall(alias, task.priority, now)
    return TaskResult(
        task=call.task(task, ctx.queue),
        id=ctx.id,
        status=TaskResultStatus.RUNNING,
        enqueued_at=shown_time(min(call.enqueued_at, now)),
        started_at=shown_time(now),
        last_attempted_at=shown_time(now),
        finished_at=None,
        args=list(args),
        kwargs=kwargs,
        backend=call.backend,
        errors=[],
        worker_ids=[ctx.worker],
    )


class TaskSignals(Middleware):
    """Sends the signal `task_finished`, in the worker, once the outcome of a Django task is recorded."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def succeeded(self, job: Job, result: Any) -> None:
        await self._finished(job, None)

    async def failed(self, job: Job, error: BaseException) -> None:
        await self._finished(job, error)

    async def cancelled(self, job: Job) -> None:
        await self._finished(job, None)

    async def _finished(self, job: Job, error: BaseException | None) -> None:
        stored, task = await find_call(self._app.client, job.id, job.queue), find_task(job.task)
        if stored is not None and task is not None:
            await sync_to_async(with_connections)(lambda: send_finished(stored, task, error))


def send_finished(stored: StoredCall, task: Task, error: BaseException | None) -> None:
    """Send the signal; the exception of a failed task is the current one meanwhile, as Django's log wants."""
    result = build_result(stored, task)
    sender = type(result.task.get_backend())
    if error is None:
        task_finished.send(sender=sender, task_result=result)
        return
    trace = error.__traceback__
    try:
        raise error
    except BaseException:
        error.__traceback__ = trace  # without this frame
        task_finished.send(sender=sender, task_result=result)
