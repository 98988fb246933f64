"""The task backend: `TASKS = {"default": {"BACKEND": "jsq.contrib.django.JsqBackend"}}`."""
# pyright: reportMissingImports=false

import asyncio
import functools
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from asgiref.sync import sync_to_async
from django.core import checks
from django.db import transaction
from django.tasks import Task, TaskResult, TaskResultStatus
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist
from django.tasks.signals import task_enqueued
from django.utils import timezone

from jsq.client.submitter import Submitter
from jsq.codec.envelope import new_id
from jsq.contrib.django.project import ADDRESS_OPTIONS, DjangoApp, project_app
from jsq.contrib.django.results import (
    CALL_HEADER,
    StoredCall,
    TaskCall,
    build_result,
    find_call,
    plain_json,
    present,
)
from jsq.contrib.django.running import find_task
from jsq.declaration import read_declaration
from jsq.errors import UsageError
from jsq.model.job import Priority, check_queue, check_task

BACKEND_OPTIONS = (*ADDRESS_OPTIONS, "retries", "timeout", "enqueue_on_commit")
"""The keys of `OPTIONS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsqTask(Task):  # type: ignore[misc]  # Django has no types
    """A Django task with two options of jsq: `@task(retries=5, timeout=30)`, from Django 6.1 on.

    None means the value in the `OPTIONS` of the backend.
    """

    retries: int | None = None
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class PreparedCall:
    """A task that is about to be submitted: its checked arguments, and the submitter with its options."""

    submitter: Submitter[..., Any]
    packed: bytes
    result: TaskResult
    enqueued_at: datetime


class JsqBackend(BaseTaskBackend):  # type: ignore[misc]  # Django has no types
    """Runs Django tasks on workers of jsq: `manage.py jsq worker`.

    `OPTIONS` may have:
    `url`, `namespace`: as for `jsq.App`.
    `retries`: how often a task that raises is retried [0]; `timeout`: the limit of each attempt [none].
    `enqueue_on_commit`: whether a task that is enqueued in a transaction is submitted at its commit [False].

    A priority above 0 is `high`, 0 is `normal`, and one below 0 is `low`.
    """

    task_class = JsqTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True
    runs_on_jsq = True

    @property
    def app(self) -> DjangoApp:
        """The App of the project."""
        return project_app()

    def task_options(self, task: Task) -> dict[str, Any]:
        """The options of the task of jsq that runs a Django task."""
        retries, timeout = getattr(task, "retries", None), getattr(task, "timeout", None)
        chosen = {
            "retries": self.options.get("retries", 0) if retries is None else retries,
            "timeout": self.options.get("timeout") if timeout is None else timeout,
        }
        return {name: value for name, value in chosen.items() if value is not None}

    def validate_task(self, task: Task) -> None:
        """Raises `InvalidTask`."""
        super().validate_task(task)
        try:
            check_task(task.module_path)
            check_queue(task.queue_name)
            read_declaration("_", **self.task_options(task))  # type: ignore[misc]  # the keys are known
        except UsageError as error:
            raise InvalidTask(str(error)) from error

    def check(self, **_: Any) -> list[Any]:
        """The errors in the settings of this backend, for `manage.py check`."""
        found = []
        for option in sorted(set(self.options) - set(BACKEND_OPTIONS)):
            hint = f"The options are {', '.join(BACKEND_OPTIONS)}."
            text = f"TASKS[{self.alias!r}] has an unknown option {option!r}."
            found.append(checks.Error(text, hint=hint, id="jsq.E002"))
        for queue in sorted(self.queues):
            try:
                check_queue(queue)
            except UsageError as error:
                found.append(checks.Error(f"TASKS[{self.alias!r}]: {error}", id="jsq.E003"))
        return found

    # -- enqueue -----------------------------------------------------------------------------------------

    def enqueue(self, task: Task, args: Any, kwargs: Any) -> TaskResult:
        """Submit a task; returns its result, once the server has stored the job.

        Raises `InvalidTask`, `TypeError` for arguments that are no JSON, and the errors of
        `jsq.Submitter.submit`. It may be called where an event loop runs, which it blocks meanwhile.
        """
        if not self.options.get("enqueue_on_commit"):
            call = self._prepare(task, args, kwargs)
            handle = self._portal.run(call.submitter.submit_packed(call.packed))
            return self._enqueued(call, handle.id)
        id = new_id()
        call = self._prepare(task, args, kwargs, id=id)
        result = self._with_id(call, id)
        transaction.on_commit(functools.partial(self._submit_later, call, result))
        return result

    async def aenqueue(self, task: Task, args: Any, kwargs: Any) -> TaskResult:
        """As `enqueue`, without blocking."""
        if self.options.get("enqueue_on_commit"):
            return await sync_to_async(self.enqueue, thread_sensitive=True)(task, args, kwargs)
        call = self._prepare(task, args, kwargs)
        handle = await asyncio.wrap_future(self._portal.start(call.submitter.submit_packed(call.packed)))
        result = self._with_id(call, handle.id, call.enqueued_at)
        await task_enqueued.asend(sender=type(self), task_result=result)
        return result

    def _prepare(self, task: Task, args: Any, kwargs: Any, **options: Any) -> PreparedCall:
        """Check a task and its arguments. Raises `InvalidTask`, `TypeError`."""
        self.validate_task(task)
        now = present()
        call = TaskCall(self.alias, task.priority, now, task.run_after)
        result = TaskResult(
            task=task,
            id="",
            status=TaskResultStatus.READY,
            enqueued_at=None,
            started_at=None,
            last_attempted_at=None,
            finished_at=None,
            args=args,
            kwargs=kwargs,
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )
        found = self.app.known(task.module_path)
        if found is None:
            path = task.module_path
            raise InvalidTask(f"a worker finds the task by its path, but {path} is not a task; rename one")
        try:
            submitter = found.options(
                queue=task.queue_name,
                priority=priority_level(task.priority),
                at=aware(task.run_after),
                headers={CALL_HEADER: call.header},
                **options,
            )
            packed = submitter.target.pack(plain_json(result.args), plain_json(result.kwargs))
        except UsageError as error:
            raise InvalidTask(str(error)) from error
        return PreparedCall(submitter, packed, result, now)

    def _with_id(self, call: PreparedCall, id: str, enqueued_at: datetime | None = None) -> TaskResult:
        return replace(call.result, id=id, enqueued_at=enqueued_at)

    def _enqueued(self, call: PreparedCall, id: str) -> TaskResult:
        result = self._with_id(call, id, call.enqueued_at)
        task_enqueued.send(sender=type(self), task_result=result)
        return result

    def _submit_later(self, call: PreparedCall, result: TaskResult) -> None:
        """Submit a task whose transaction has committed."""
        self._portal.run(call.submitter.submit_packed(call.packed))
        object.__setattr__(result, "enqueued_at", call.enqueued_at)
        task_enqueued.send(sender=type(self), task_result=result)

    # -- results -----------------------------------------------------------------------------------------

    def get_result(self, result_id: str) -> TaskResult:
        """The result of a task by its id, which is that of its job.

        Raises `TaskResultDoesNotExist`, also for a job of another task. A record is kept for 7 days.
        """
        return self._result(self._portal.run(find_call(self.app.client, result_id)), result_id)

    async def aget_result(self, result_id: str) -> TaskResult:
        """As `get_result`, without blocking."""
        reading = self._portal.start(find_call(self.app.client, result_id))
        return self._result(await asyncio.wrap_future(reading), result_id)

    def _result(self, stored: StoredCall | None, id: str) -> TaskResult:
        if stored is None:
            raise TaskResultDoesNotExist(id)
        path = stored.record.task
        declared = find_task(path)
        if declared is None:
            self.app.load()
            declared = find_task(path)
        if declared is None:
            raise TaskResultDoesNotExist(f"{id}: its task {path} is in none of the imported modules")
        return build_result(stored, declared)

    @property
    def _portal(self) -> Any:
        return self.app.client.connection.portal


def priority_level(priority: int) -> Priority:
    """The priority of jsq for one of Django."""
    return "high" if priority > 0 else "low" if priority < 0 else "normal"


def aware(moment: datetime | None) -> datetime | None:
    """A time with its time zone: that of the project, if it has none."""
    return timezone.make_aware(moment) if moment is not None and timezone.is_naive(moment) else moment
