"""What a running task may know of its job, and say about it."""

import logging
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from jsq.errors import BadOption
from jsq.job import Job, encodable

LONGEST_TEXT = 500

Progress = Callable[[float, str], None]


class JobLog(logging.LoggerAdapter[logging.Logger]):
    """A logger whose lines carry the job's id, task and attempt."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, {**kwargs, "extra": {**(self.extra or {}), **kwargs.get("extra", {})}}


class Context:
    """The job a task runs for. A task takes it by declaring a first parameter of this type.

    `attempt` counts from 1. `token` rises with each attempt of the job: hand it to a store that can refuse
    writes with a lower one, and a worker that was thought dead cannot overwrite its successor. `cancelled`
    turns true when the attempt is to end; a task in a thread cannot be interrupted and should look at it.
    """

    __slots__ = ("_progress", "cancelled", "job", "log", "token", "worker")

    def __init__(self, job: Job, *, token: int, worker: str, progress: Progress) -> None:
        self.job = job
        self.token = token
        self.worker = worker
        self.cancelled = False
        self._progress = progress
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
