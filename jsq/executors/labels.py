"""The labels of log lines: which job the code runs for that writes a line.

The worker sets the source of the labels once for each function that it calls, in the context of that call.
asyncio tasks and `asyncio.to_thread` inherit the context. The labels are made only when a line is written.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Protocol

from jsq.executors.base import Execution
from jsq.model.job import Job


class LabelSource(Protocol):
    """A call of a function, whose log lines have labels until it ends."""

    def labels(self) -> dict[str, object]:
        """The labels; empty once the function has ended."""
        ...


LABEL_SOURCE: ContextVar[LabelSource | None] = ContextVar("jsq_label_source", default=None)


class CallLabels:
    """The labels of one call. Code that outlives the call keeps this object, but not its labels."""

    def __init__(self, labels: dict[str, object]) -> None:
        self._labels = labels

    def labels(self) -> dict[str, object]:
        return self._labels

    def end(self, _: object = None) -> None:
        """Note that the function has ended."""
        self._labels = {}


def job_labels(job: Job) -> dict[str, object]:
    """The labels of the log lines of a job."""
    return {"job": job.id, "task": job.task, "attempt": job.attempt}


def start_labelled(start: Callable[[], Execution], labels: dict[str, object]) -> Execution:
    """Start a function whose log lines have labels until it ends."""
    source = CallLabels(labels)
    LABEL_SOURCE.set(source)
    execution = start()
    execution.end.add_done_callback(source.end)
    return execution


def current_labels() -> dict[str, object]:
    """The labels of the running code; empty outside tasks."""
    source = LABEL_SOURCE.get()
    return {} if source is None else source.labels()
