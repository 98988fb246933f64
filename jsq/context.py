"""What a running task may know of its job, and say about it."""

import asyncio
import logging
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import Future
from typing import Any

from pydantic_core import from_json

from jsq.codec.signature import pack_value
from jsq.errors import BadOption, UsageError
from jsq.job import Job, encodable
from jsq.step import CHECKPOINT, LARGEST

LONGEST_TEXT = 500

Progress = Callable[[float, str], None]

Keeping = Callable[[str, str, bytes], "Future[bytes]"]
"""Asks that something of the job be kept: what is to be done, at which place, with which JSON.

Returns at once, from any thread; the future has what stands there.
"""


class JobLog(logging.LoggerAdapter[logging.Logger]):
    """A logger whose lines carry the job's id, task and attempt."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, {**kwargs, "extra": {**(self.extra or {}), **kwargs.get("extra", {})}}


class Context:
    """The job a task runs for. A task takes it by declaring a first parameter of this type.

    `attempt` counts from 1. `token` rises with each attempt of the job: hand it to a store that can refuse
    writes with a lower one, and a worker that was thought dead cannot overwrite its successor. `cancelled`
    turns true when the attempt is to end; a task in a thread cannot be interrupted and should look at it.

    What waits for the server is awaited, `await ctx.checkpoint(...)`; a task that is no coroutine function
    calls its twin, `ctx.blocking.checkpoint(...)`.
    """

    __slots__ = (
        "_checkpoint",
        "_keeping",
        "_progress",
        "blocking",
        "cancelled",
        "job",
        "log",
        "token",
        "worker",
    )

    def __init__(
        self,
        job: Job,
        *,
        token: int,
        worker: str,
        progress: Progress,
        keeping: Keeping,
        checkpoint: bytes = b"",
    ) -> None:
        self.job = job
        self.token = token
        self.worker = worker
        self.cancelled = False
        self.blocking = Blocking(self)
        self._progress = progress
        self._keeping = keeping
        self._checkpoint = checkpoint
        extra = {"job": job.id, "task": job.task, "attempt": job.attempt}
        self.log = JobLog(logging.getLogger("jsq.task"), extra)

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def attempt(self) -> int:
        return self.job.attempt

    @property
    def headers(self) -> Mapping[str, str]:
        return self.job.headers

    def progress(self, fraction: float, text: str = "") -> None:
        """Tell how far the job is: `fraction` from 0 to 1. Returns at once; told twice a second at most.

        Raises `BadOption`. May be called from any thread.
        """
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
            raise BadOption("progress", fraction, "it takes a number from 0 to 1")
        if not isinstance(text, str) or len(text) > LONGEST_TEXT or not encodable(text):
            raise BadOption("progress text", text, f"it takes text of {LONGEST_TEXT} characters at most")
        self._progress(float(fraction), text)

    @property
    def checkpointed(self) -> Any:
        """The value of the job's last checkpoint, in this attempt or one before; None where there is none."""
        return from_json(self._checkpoint) if self._checkpoint else None

    async def checkpoint(self, value: object) -> None:
        """Keep a value, for this attempt to be taken up from there by another; the last one counts.

        Returns when the server has stored it. It is kept over crashes, retries, snoozes, interruptions and
        replays, for 7 days, and goes when the job has succeeded or was cancelled. Any JSON value of 64 KiB
        at most; a tuple comes back as a list. Raises `BadOption` for another, and `LeaseLost` where the job
        has been given to another worker: then nothing is stored, and the attempt ends.
        """
        packed = pack_value("checkpoint", value, LARGEST)
        await asyncio.wrap_future(self._keeping("keep", CHECKPOINT, packed))
        self._checkpoint = packed


class Blocking:
    """What a `Context` awaits, for tasks that are no coroutine functions: the calls block their thread."""

    __slots__ = ("_context",)

    def __init__(self, context: Context) -> None:
        self._context = context

    def checkpoint(self, value: object) -> None:
        """As `Context.checkpoint`."""
        packed = pack_value("checkpoint", value, LARGEST)
        waited(self._context._keeping, "keep", CHECKPOINT, packed)
        self._context._checkpoint = packed


def waited(keeping: Keeping, what: str, place: str, body: bytes) -> bytes:
    """What stands there in the end. Raises `UsageError` on an event loop, which must not be blocked."""
    if asyncio._get_running_loop() is not None:
        raise UsageError("ctx.blocking would block the event loop: await the method of ctx itself")
    return keeping(what, place, body).result()
