"""Hooks that raise. None of them may lose a job, hold it up, or change its outcome.

A middleware raises in each of its methods, a dependency in its clean-up, and the lifespan at its start and at
its end.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from jsq import App, Context, Depends, Middleware
from jsq.client.submit_hooks import SubmitMiddleware
from jsq.middleware import CallNext
from jsq.model.job import Job

REFUSED = "refused"
"""The task of jobs that their middleware refuses at the submit."""


class HookError(Exception):
    """The error that every hook raises."""


class Raising(Middleware):
    """Raises in each method; in `around` before the first attempt and after the second."""

    def submitting(self, job: Job) -> Job:
        if job.task == REFUSED:
            raise HookError("the job is not wanted")
        return job

    def submitted(self, job: Job) -> None:
        raise HookError("the submit cannot be noted")

    def submit_ended(self, jobs: object, error: BaseException | None) -> None:
        raise HookError("the end of the submit cannot be noted")

    async def around(self, ctx: Context, call: CallNext) -> Any:
        if ctx.attempt == 1:
            raise HookError("before the run")
        result = await call()
        if ctx.attempt == 2:
            raise HookError("after the run")
        return result

    async def succeeded(self, job: Job, result: Any) -> None:
        raise HookError("the success cannot be noted")

    async def failed(self, job: Job, error: BaseException) -> None:
        raise HookError("the failure cannot be noted")

    async def retrying(self, job: Job, error: BaseException) -> None:
        raise HookError("the retry cannot be noted")

    async def cancelled(self, job: Job) -> None:
        raise HookError("the cancellation cannot be noted")

    async def settled(self, job: Job) -> None:
        raise HookError("the outcome cannot be noted")


class RaisingAtOutcomes(Raising):
    """Raises in the methods that must change nothing, and not in `around`."""

    async def around(self, ctx: Context, call: CallNext) -> Any:
        return await call()


class RaisingApp:
    """In place of the App of a client: the middleware of all queues."""

    @property
    def middleware(self) -> "RaisingApp":
        return self

    def find(self, queue: str) -> tuple[SubmitMiddleware, ...]:
        return (Raising(),)


def break_at_the_end() -> Iterator[int]:
    yield os.getpid()
    raise HookError("the session cannot be closed")


async def break_later() -> AsyncIterator[int]:
    yield os.getpid()
    await asyncio.sleep(0.01)
    raise HookError("the connection cannot be closed")


Broken = Annotated[int, Depends(break_at_the_end)]
BrokenLater = Annotated[int, Depends(break_later)]


@contextlib.asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[dict[str, int]]:
    """End late, and with an error."""
    yield {"pid": os.getpid()}
    await asyncio.sleep(0.5)
    raise HookError("the pool cannot be closed")


def fail_to_start() -> None:
    """Fail in some of the processes: another process replaces each of them."""
    if os.environ.get("EFFECTS") and os.getpid() % 4 == 0:
        raise HookError("the pool cannot be opened")


async def stop_late() -> None:
    await asyncio.sleep(0.5)
    raise HookError("the pool cannot be emptied")
