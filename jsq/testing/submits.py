"""The jobs that a test has submitted, and assertions about them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic_core import from_json

from jsq.client.submitter import Submitter
from jsq.codec.signature import Signature, pack_call
from jsq.errors import BadArguments
from jsq.model.durations import Duration, seconds
from jsq.model.job import Job

SubmittedTask: TypeAlias = Submitter[..., Any] | str
"""How an assertion names a task: the task itself, or its name."""

DELAY_TOLERANCE = 1.0
"""Seconds by which the delay of a job may differ from the expected one, because both are read from clocks."""


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A submitted job. `delay` is in seconds from its submit; it is 0 for a job that is due at once."""

    job: Job
    delay: float = 0.0

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def task(self) -> str:
        """The name of the task."""
        return self.job.task

    @property
    def queue(self) -> str:
        return self.job.queue

    @property
    def arguments(self) -> Any:
        """The arguments as JSON: an object of named ones, or a list `[positional, named]`."""
        return from_json(self.job.arguments)

    def __str__(self) -> str:
        after = f", delay={self.delay:g}" if self.delay else ""
        queue = f", queue={self.queue!r}" if self.queue != "default" else ""
        return f"{self.task}{self.job.arguments.decode()}{after}{queue}"


class Submits:
    """The jobs that were submitted in this process, in their order.

    A submit that found an existing job, by its id or its unique key, submits none.
    """

    def __init__(self) -> None:
        self._found: list[SubmittedJob] = []

    def add(self, job: Job, delay: float = 0.0) -> None:
        """Record a submitted job."""
        self._found.append(SubmittedJob(job, delay))

    def clear(self) -> None:
        """Forget the jobs so far."""
        self._found.clear()

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[SubmittedJob]:
        return iter(tuple(self._found))

    def __repr__(self) -> str:
        return f"<Submits: {', '.join(map(str, self._found)) or 'none'}>"

    def find(
        self,
        task: SubmittedTask,
        /,
        *args: Any,
        delay: Duration | None = None,
        queue: str | None = None,
        **kwargs: Any,
    ) -> list[SubmittedJob]:
        """The submitted jobs of a task; with arguments, those with exactly these arguments.

        Defaults of the task count as given. `delay` may differ by a second, and `queue` is the queue of the
        job. Raises `BadArguments` for arguments that the task does not take, `BadOption` for a wrong delay.
        """
        name = task if isinstance(task, str) else task.name
        signature = None if isinstance(task, str) else task.target.signature
        expected = comparable(signature, packed(signature, args, kwargs)) if args or kwargs else None
        wanted = seconds("delay", delay)
        return [
            one
            for one in self._found
            if one.task == name
            and (queue is None or one.queue == queue)
            and (wanted is None or abs(one.delay - wanted) <= DELAY_TOLERANCE)
            and (expected is None or comparable(signature, one.job.arguments) == expected)
        ]

    def assert_submitted(
        self,
        task: SubmittedTask,
        /,
        *args: Any,
        delay: Duration | None = None,
        queue: str | None = None,
        **kwargs: Any,
    ) -> SubmittedJob:
        """Assert that a job was submitted; returns the last one that matches. See `find`."""
        found = self.find(task, *args, delay=delay, queue=queue, **kwargs)
        if not found:
            wanted = describe_call(task, args, kwargs, delay=delay, queue=queue)
            raise AssertionError(f"{wanted} was not submitted; submitted:{self._listed()}")
        return found[-1]

    def assert_not_submitted(
        self,
        task: SubmittedTask,
        /,
        *args: Any,
        delay: Duration | None = None,
        queue: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Assert that no such job was submitted. See `find`."""
        found = self.find(task, *args, delay=delay, queue=queue, **kwargs)
        if found:
            raise AssertionError(f"{found[-1]} was submitted")

    def _listed(self) -> str:
        return "".join(f"\n  {one}" for one in self._found) or " nothing"


def packed(signature: Signature | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The encoded arguments of a call. Raises `BadArguments`."""
    return pack_call(args, kwargs) if signature is None else signature.pack(args, kwargs)


def comparable(signature: Signature | None, arguments: bytes) -> Any:
    """Encoded arguments as a value that equals that of the same call in another form."""
    if signature is not None:
        try:
            args, named = signature.unpack(arguments)
            return from_json(signature.filled(signature.pack(args, named)))
        except BadArguments:
            return None
    found = from_json(arguments)
    return [[], found] if isinstance(found, dict) else found


def describe_call(task: SubmittedTask, args: tuple[Any, ...], kwargs: dict[str, Any], **options: Any) -> str:
    """A call as Python writes it, with the options that are given."""
    named = kwargs | {name: value for name, value in options.items() if value is not None}
    parts = [*map(repr, args), *(f"{name}={value!r}" for name, value in named.items())]
    return f"{task if isinstance(task, str) else task.name}({', '.join(parts)})"
