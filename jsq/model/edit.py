"""The edit of a job that has not started: other arguments, options, priority or queue."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from jsq.errors import BadOption
from jsq.model.callback import NamedTask
from jsq.model.durations import Duration
from jsq.model.expiry import expiry_time
from jsq.model.job import ExecutorKind, Job, Priority
from jsq.model.options import Options, check_fallback, check_known
from jsq.model.retry import BackoffOption
from jsq.model.revision import EDITED, SUBMITTED_STATES, StoredRevision


class JobChanges(TypedDict, total=False):
    """The options that an edit may change; see `SubmitOptions`. An option that is left out does not change.

    `deadline` and `expires` count from the edit. `priority` moves the job to the end of that priority.
    """

    priority: Priority | None
    headers: Mapping[str, str] | None
    tags: Iterable[str] | None
    retries: int | None
    backoff: BackoffOption | None
    backoff_max: Duration | None
    jitter: float | None
    retry_for: Duration | datetime | None
    timeout: Duration | None
    keep_result: Duration | None
    deadline: Duration | datetime | None
    expires: Duration | datetime | None
    slots: int | None
    hard_timeout: Duration | None
    executor: ExecutorKind | None
    on_failure: NamedTask | str | None
    on_dead: NamedTask | str | None
    fallback: NamedTask | str | None


@dataclass(frozen=True, slots=True)
class JobEdit:
    """The changes of an edit: encoded `arguments`, `options`, and the queue; None for no change.

    `verb` is what errors call the edit.
    """

    options: Options
    arguments: bytes | None = None
    queue: str | None = None
    verb: str = "edited"

    @property
    def changes_nothing(self) -> bool:
        options = self.options
        asked = (options.priority, options.deadline, options.expires, options.retry_until)
        return not options.job_fields and {*asked, self.arguments, self.queue} == {None}

    def apply(self, job: Job, due: datetime | None, now: datetime) -> Job:
        """The job as it is after the edit at `now`. Raises `BadOption`."""
        options = self.options
        fields: dict[str, Any] = dict(options.job_fields)
        if "rare" in fields and job.rare is not None:
            fields["rare"] = replace(job.rare, **fields["rare"].given)
        if options.priority is not None:
            fields["priority"] = options.priority
        if options.retry_until is not None:
            fields["retry_until"] = options.retry_until
        if options.expires is not None:
            fields["expires"] = expiry_time(options.expires, due, now)
        if options.deadline is not None:
            fields["deadline"] = absolute_deadline(options.deadline, due, now)
        if self.arguments is not None:
            fields["arguments"] = self.arguments
        if self.queue is not None:
            fields |= {"quarantine": self.queue if self.queue != job.queue else "", "forgiven_crashes": 0}
        edited = replace(job, **fields)
        if edited.rare is not None:
            check_fallback(edited.rare.fallback, edited.task)
        return edited


def check_changes(written: Mapping[str, object]) -> None:
    """Raises `BadOption` for an option that an edit cannot change."""
    check_known(written, [*JobChanges.__annotations__])


def absolute_deadline(deadline: float | datetime, due: datetime | None, now: datetime) -> datetime:
    """The time of a deadline that is given at `now`. Raises `BadOption` if it is before the due time."""
    moment = deadline if isinstance(deadline, datetime) else now + timedelta(seconds=deadline)
    if due is not None and moment <= due:
        raise BadOption("deadline", deadline, "must be after the start of the job")
    return moment.astimezone(UTC)


def is_edited(found: StoredRevision) -> bool:
    """Whether the record is that of a job that was edited, and has not started since."""
    return found.revision.reason == EDITED and found.state in SUBMITTED_STATES
