"""A lab in which a case of a test runs twice: in immediate mode, and with a server and a worker.

A case declares its tasks, submits jobs, and returns what a user can observe of them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, overload

import pytest

from jsq import App, BlockingJobHandle, Client, JobHandle, JsqError
from jsq.immediate import Immediate
from tests.helpers.conditions import until

Declare = Callable[[Callable[..., Any]], Any]
Case = Callable[["Lab"], Awaitable[Any]]


class DelayLog(logging.Handler):
    """The delays of retried and snoozed jobs, by the id of the job, as the worker logs them."""

    def __init__(self) -> None:
        super().__init__()
        self.delays: dict[str, list[float]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() in ("job retrying", "job snoozed"):
            about = vars(record)
            self.delays.setdefault(about["job"], []).append(about["delay"])


class Lab:
    """One run of a case. `immediate` is None with a server; `notes` are for the tasks of the case.

    `log` has the delays of the jobs that a server runs.
    """

    def __init__(self, name: str, app: App, immediate: Immediate | None = None) -> None:
        self.name = name
        self.app = app
        self.immediate = immediate
        self.log = DelayLog()
        self.notes: list[Any] = []

    @property
    def client(self) -> Client:
        return self.app.client

    @overload
    def task(self, function: Callable[..., Any]) -> Any: ...
    @overload
    def task(self, **options: Any) -> Declare: ...

    def task(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Declare a task under a name of this case."""

        def declare(function: Callable[..., Any]) -> Any:
            options.setdefault("name", self.task_name(function.__name__))
            return self.app.task(**options)(function)

        return declare if function is None else declare(function)

    def batch_task(self, **options: Any) -> Declare:
        """Declare a batch task under a name of this case."""

        def declare(function: Callable[..., Any]) -> Any:
            return self.app.batch_task(name=self.task_name(function.__name__), **options)(function)

        return declare

    def task_name(self, name: str) -> str:
        return f"{self.name}.{name}"

    def note(self, *what: Any) -> None:
        self.notes.append(what[0] if len(what) == 1 else what)

    async def due(self, seconds: float, *jobs: JobHandle[Any]) -> None:
        """Let delayed jobs run that are due in `seconds`: the clock moves, or a server gets them promoted."""
        if self.immediate is not None:
            await self.immediate.advance(seconds)
        for job in jobs if self.immediate is None else ():
            await job.promote()

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for a condition; in immediate mode it holds already."""
        if self.immediate is None:
            await until(condition, 20)
            return
        found = condition()
        assert await found if asyncio.iscoroutine(found) else found, "a server would reach this"

    async def error(self, work: Awaitable[Any], job: JobHandle[Any] | None = None) -> tuple[str, str]:
        """The error of a call: its type and its message."""
        with pytest.raises(JsqError) as caught:
            await work
        text = str(caught.value) if job is None else self.without_ids(str(caught.value), job)
        return type(caught.value).__name__, text

    async def outcome(self, job: JobHandle[Any] | BlockingJobHandle[Any]) -> dict[str, Any]:
        """The fields of a job that a user can observe, once it has ended. It must end by itself."""
        handle = job if isinstance(job, JobHandle) else self.client.jobs.handle(job.id, queue=job.queue)
        found = await handle.wait(20)
        attempts = await handle.attempts()
        names = "state task queue attempt failures crashes interruptions reason progress text tags key"
        same = {name: getattr(found, name) for name in names.split()}
        same |= {name: getattr(found, name) for name in ["has_result", "result", "arguments", "options"]}
        same |= {"headers": dict(found.headers), "expires": found.expires is not None}
        same |= {"fallback": bool(found.fallback), "was_started": found.started is not None}
        for name in ("error", "traceback", "result_dropped"):
            same[name] = self.without_ids(getattr(found, name), handle)
        ended = [(one.number, one.state, self.without_ids(one.error, handle)) for one in attempts]
        return same | {"attempts": ended, "delays": await self.delays(handle)}

    async def delays(self, job: JobHandle[Any]) -> list[float]:
        """The delays between the attempts of a job: as recorded, or as a worker has logged them."""
        if self.immediate is not None:
            return await self.immediate.delays(job)
        return self.log.delays.get(job.id, [])

    def without_ids(self, text: str, job: JobHandle[Any]) -> str:
        return text.replace(job.id, "<id>")
