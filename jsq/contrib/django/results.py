"""The result of a Django task, made from the record of its job.

Two headers of the job hold the values for which a record has no field: the alias of the backend, the exact
priority, and the paths of the exception types.
"""
# pyright: reportMissingImports=false

import builtins
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.tasks import Task, TaskResult, TaskResultStatus
from django.tasks.base import TaskError
from django.tasks.exceptions import InvalidTask, InvalidTaskBackend
from django.utils import timezone
from django.utils.json import normalize_json

import jsq
from jsq.client.client import Client
from jsq.errors import BadName, JobNotFound
from jsq.model.attempts import JobAttempt
from jsq.model.job import JobRecord

CALL_HEADER = "django-task"
ERRORS_HEADER = "django-errors"
MOST_ERRORS = 12
"""Failed attempts of which the path of the exception type is kept."""

LONGEST_PATH = 120

STATUS = {
    "running": TaskResultStatus.RUNNING,
    "succeeded": TaskResultStatus.SUCCESSFUL,
    "failed": TaskResultStatus.FAILED,
    "cancelled": TaskResultStatus.FAILED,
    "expired": TaskResultStatus.FAILED,
}
"""The status of a result by the state of its job; in all other states it is READY."""


@dataclass(frozen=True, slots=True)
class TaskCall:
    """The values of a Django task for which a job has no field. They are sent in a header of the job."""

    backend: str
    priority: int
    enqueued_at: datetime
    run_after: datetime | None = None

    @property
    def header(self) -> str:
        """The header, in JSON."""
        later = self.run_after.isoformat() if self.run_after is not None else None
        return json.dumps([self.backend, self.priority, self.enqueued_at.isoformat(), later])

    @classmethod
    def read(cls, header: str) -> "TaskCall":
        """The values of a header. Raises `ValueError`, `TypeError`."""
        backend, priority, enqueued, later = json.loads(header)
        run_after = datetime.fromisoformat(later) if later is not None else None
        return cls(str(backend), int(priority), datetime.fromisoformat(enqueued), run_after)

    def task(self, declared: Task, queue: str) -> Task:
        """The task as it was enqueued. Without its backend or queue in the settings, it is as declared."""
        chosen = {"priority": self.priority, "queue_name": queue, "run_after": self.run_after}
        try:
            return declared.using(backend=self.backend, **chosen)
        except (InvalidTask, InvalidTaskBackend):
            return declared


@dataclass(frozen=True, slots=True)
class StoredCall:
    """The job of a Django task as the server has it. `arguments` are the positional and the named ones.

    `call` is None for a job that no backend has submitted: one of a schedule, or of `jsq submit`.
    """

    record: JobRecord
    call: TaskCall | None
    attempts: Sequence[JobAttempt]
    arguments: tuple[list[Any], dict[str, Any]]


async def find_call(client: Client, id: object, queue: str = "*") -> StoredCall | None:
    """A job; None if there is no such job. The caller decides whether its task is one of Django."""
    try:
        handle = client.jobs.handle(id, queue)  # type: ignore[arg-type]  # it may be a value of any type
        record = await handle.status()
    except (BadName, JobNotFound):
        return None
    call = None
    with contextlib.suppress(KeyError, ValueError, TypeError):
        call = TaskCall.read(record.headers[CALL_HEADER])
    retried = record.attempt > 1 or record.failures > 1 or record.crashes > 0
    attempts = await handle.attempts() if retried else last_attempt(record)
    arguments = record.arguments if record.has_arguments else await waiting_arguments(client, record)
    return StoredCall(record, call, attempts, named_parts(arguments))


def last_attempt(record: JobRecord) -> list[JobAttempt]:
    """The only attempt of a job, if it has started."""
    if not record.worker:
        return []
    end = record.at if record.state != "running" else None
    text = record.reason, record.error, record.traceback
    return [JobAttempt(record.attempt, record.worker, record.started, end, record.state, *text)]


async def waiting_arguments(client: Client, record: JobRecord) -> Any:
    """The arguments of a job that has not ended, from its message; None if it is gone, or they are large."""
    if record.ended is not None:
        return None
    broker = await client.broker()
    found = await broker.job_reader.find_by_message(record.id, record.queue, consistent=False)
    return found.revision.arguments if found is not None else None


def named_parts(arguments: Any) -> tuple[list[Any], dict[str, Any]]:
    """The positional and the named arguments; none if the record does not have them."""
    match arguments:
        case dict():
            return list(arguments.get("*args", ())), dict(arguments.get("**kwargs", {}))
        case [list(args), dict(named)]:
            return args, named
    return [], {}


def build_result(stored: StoredCall, declared: Task) -> TaskResult:
    """The result of a task, from its job."""
    record = stored.record
    call = stored.call or TaskCall(declared.backend, declared.priority, record.submitted or present())
    enqueued = min(call.enqueued_at, record.submitted or call.enqueued_at)
    started, last = record.first_started or record.started, record.started
    result = TaskResult(
        task=call.task(declared, record.queue),
        id=record.id,
        status=STATUS.get(record.state, TaskResultStatus.READY),
        enqueued_at=shown_time(enqueued),
        started_at=shown_time(started, enqueued),
        last_attempted_at=shown_time(last, enqueued),
        finished_at=shown_time(record.ended, last),
        args=stored.arguments[0],
        kwargs=stored.arguments[1],
        backend=call.backend,
        errors=list(errors_of(stored)),
        worker_ids=list({one.number: one.worker for one in stored.attempts}.values()),
    )
    object.__setattr__(result, "_return_value", record.result)
    return result


def shown_time(moment: datetime | None, least: datetime | None = None) -> datetime | None:
    """A time as the settings of the project want it. The clocks of two machines do not turn the order."""
    if moment is None:
        return None
    latest = moment if least is None else max(moment, least)
    return latest if settings.USE_TZ else timezone.make_naive(latest)


def plain_json(value: Any) -> Any:
    """A value as JSON holds it: a member of `TextChoices` becomes its text. Raises `TypeError`."""
    return json.loads(json.dumps(normalize_json(value)))


def present() -> datetime:
    """The time now, in milliseconds, as records have it."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


# -- errors ------------------------------------------------------------------------------------------------


def errors_of(stored: StoredCall) -> list[TaskError]:
    """The errors of the attempts, and that of a job that ended without an attempt."""
    record, paths = stored.record, read_paths(stored.record.headers.get(ERRORS_HEADER, ""))
    found = [
        TaskError(
            exception_class_path=paths.get(str(one.number)) or guessed_path(one.error, one.state),
            traceback=full_traceback(one.error, one.traceback),
        )
        for one in stored.attempts
        if one.error or one.state in ("crashed", "expired", "cancelled")
    ]
    ended_badly = STATUS.get(record.state) == TaskResultStatus.FAILED
    if ended_badly and not (stored.attempts and stored.attempts[-1].ended == record.at and found):
        path = guessed_path(record.error, record.state)
        text = full_traceback(record.error or f"job {record.state}", record.traceback)
        found.append(TaskError(exception_class_path=path, traceback=text))
    return found


def read_paths(header: str) -> dict[str, str]:
    """The paths of exception types by the number of the attempt."""
    try:
        found = json.loads(header) if header else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def with_path(header: str, attempt: int, error: BaseException) -> str:
    """The header with the path of the type of an exception."""
    kind = type(error)
    path = f"{kind.__module__}.{kind.__qualname__}"
    known = read_paths(header) | ({str(attempt): path} if len(path) <= LONGEST_PATH else {})
    return json.dumps(dict(list(known.items())[-MOST_ERRORS:]), separators=(",", ":"))


def guessed_path(error: str, state: str) -> str:
    """The path of the type of an error that no attempt has noted: one of Python or of jsq."""
    name = error.partition(":")[0]
    if state in ("expired", "cancelled"):
        return f"jsq.Job{state.capitalize()}"
    if isinstance(getattr(builtins, name, None), type):
        return f"builtins.{name}"
    return f"jsq.{name}" if name in dir(jsq) else "jsq.JobFailed"


def full_traceback(error: str, frames: str) -> str:
    """A traceback as Python prints it. The record of a simple exception has the frames only."""
    if frames.startswith(("  File ", "...\n")) or not frames:
        title = "Traceback (most recent call last):\n" if frames else ""
        return f"{title}{frames}{error}\n"
    return frames if frames.endswith("\n") else f"{frames}\n"
