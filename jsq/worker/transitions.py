"""The revisions that an attempt writes into its job's record: pure functions of outcomes."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from jsq.broker.jobs.records import RECORD_SECONDS
from jsq.codec.envelope import first_start
from jsq.codec.revisions import milliseconds, moment_of
from jsq.declaration import Declaration
from jsq.errors import shorten
from jsq.model.callback import Callbacks
from jsq.model.expiry import NOT_STARTED, UNKNOWN_TASK, has_not_started
from jsq.model.job import NO_RARE_OPTIONS, Job
from jsq.model.options import CALLBACK_OPTIONS
from jsq.model.outcome import (
    MAX_ERROR_LENGTH,
    Cancelled,
    Expired,
    Failed,
    Fault,
    Interrupted,
    Outcome,
    Quarantined,
    Succeeded,
    TryAgain,
    Waiting,
)
from jsq.model.revision import DeliveryInfo, Revision, StoredRevision, parent_of, revision_headers
from jsq.model.workflow import PARKED
from jsq.task import AnyTask

PAST_DEADLINE = Expired(Fault("its deadline passed before it could start"))
"""The outcome of a job that is found after its deadline."""

EXPIRED_UNSTARTED = Expired(Fault(NOT_STARTED))
"""The outcome of a job that expires before it has started."""

UNKNOWN_DECLARATION = Declaration("_")
"""The options of a task that this worker does not know."""


def effective_options(job: Job, task: AnyTask | None) -> Declaration:
    """The options of a job: those that its task declares, overridden by those of its submit."""
    own = task.declaration if task is not None else UNKNOWN_DECLARATION
    times = (job.timeout, job.keep_result, job.retry_for)
    asked = (job.retries, job.backoff, *times, job.keep_arguments, job.rare)
    if asked == (None,) * len(asked):
        return own
    rare = job.rare or NO_RARE_OPTIONS
    hard = own.hard_timeout if rare.hard_timeout is None else rare.hard_timeout
    timeout = own.timeout if job.timeout is None else job.timeout
    return replace(
        own,
        retry=own.retry.with_submit_options(job.retries, job.backoff, job.retry_for),
        timeout=timeout if hard is None or timeout is None else min(timeout, hard),
        hard_timeout=hard,
        callbacks=own.callbacks if job.rare is None else callbacks_of(job, own),
        keep_result=own.keep_result if job.keep_result is None else job.keep_result,
        keep_arguments=own.keep_arguments and job.keep_arguments is not False,
    )


def callbacks_of(job: Job, own: Declaration) -> Callbacks:
    """The callbacks of a job: those of its submit, and else those that its task declares.

    A fallback to the task itself, by an older name, is ignored: it would never end.
    """
    given = (job.rare or NO_RARE_OPTIONS).given
    asked = {name: given[name] for name in CALLBACK_OPTIONS if name in given}
    if asked.get("fallback") in (own.name, *own.aliases):
        del asked["fallback"]
    return replace(own.callbacks, **asked)


def running_revision(job: Job, info: DeliveryInfo, submitted: int, started: int = 0) -> Revision:
    """The revision of an attempt that starts. Times are in milliseconds since the epoch, 0 for none."""
    return Revision(
        "running",
        job.task,
        job.attempt,
        job.failures,
        job.crashes,
        info.worker,
        info.message,
        info.delivery,
        tags=tuple(job.tags),
        quarantine=job.quarantine,
        forgiven_crashes=job.forgiven_crashes,
        key=job.key,
        expires=job.expires,
        headers=revision_headers(job.headers),
        retry_until=job.retry_until,
        interruptions=job.interruptions,
        priority="" if job.priority == "normal" else job.priority,
        parent=parent_of(job.flow),
        submitted=moment_of(submitted) if submitted else None,
        first_started=moment_of(job.first_started) if job.first_started else None,
        started=moment_of(started) if started else None,
    )


def outcome_revision(running: Revision, outcome: Outcome, *, token: int, now: datetime) -> Revision:
    """The event of an attempt that started as `running`, with `token`, and ended with `outcome`.

    `jsq.codec.revisions.encode_succeeded` makes the event of a success.
    """
    state = state_of(outcome)
    match outcome:
        case Failed(reason=reason, fault=fault):
            return replace(
                running,
                state=state,
                token=token,
                attempt=running.attempt - (reason == "overdue"),  # this attempt did not start
                reason=reason,
                error=fault.error,
                traceback=fault.traceback,
            )
        case TryAgain(delay=delay, fault=fault, counts_as_failure=counts):
            return replace(
                running,
                state=state,
                token=token,
                reason=outcome.reason,
                text=outcome.text,
                due=now + timedelta(seconds=delay),
                failures=running.failures + int(counts),
                error=fault.error,
                traceback=fault.traceback,
            )
        case Quarantined(queue=queue, fault=fault):
            return replace(
                running,
                state=state,
                token=token,
                reason="quarantined",
                due=now,
                error=fault.error,
                quarantine=queue,
                forgiven_crashes=running.crashes,
            )
        case Expired(cause=fault):
            return replace(running, state=state, token=token, error=fault.error, traceback=fault.traceback)
        case Interrupted():
            return replace(running, state=state, token=token, interruptions=running.interruptions + 1)
        case Waiting(delay=delay):
            return replace(running, state=state, token=token, due=now + timedelta(seconds=delay))
    return replace(running, state=state, token=token)


def unstarted_revision(
    job: Job, info: DeliveryInfo, submitted: int = 0, late: Expired = PAST_DEADLINE
) -> Revision:
    """The revision of a job that is found too late, and does not start (again)."""
    event = outcome_revision(running_revision(job, info, submitted), late, token=0, now=datetime.min)
    return replace(event, attempt=job.attempt - 1)


def overdue_failure(last: Revision) -> Failed:
    """The outcome of a job whose next attempt would start after its retry window."""
    error = f"the window of its retries closed before another attempt; the last: {last.error}"
    return Failed("overdue", Fault(shorten(error, MAX_ERROR_LENGTH), last.traceback))


def with_deadline(job: Job, declared: float | None, stored: float) -> Job:
    """The job with its deadline as a datetime. Its message was `stored` at that second of the server's clock.

    Without a deadline of the submit, the `declared` deadline of the task counts from the first message.
    """
    asked = declared if job.deadline is None and not job.previous_sequence else job.deadline
    if not isinstance(asked, float):
        return job
    return replace(job, deadline=datetime.fromtimestamp(stored + asked, UTC))


def with_declared_expiry(job: Job, declared: float | None, stored: float) -> Job:
    """The job with the declared expiry of its task, if its submit did not set one and it has not started."""
    if declared is None or job.expires is not None or job.previous_sequence:
        return job
    return replace(job, expires=datetime.fromtimestamp(stored + declared, UTC))


def with_log_counts(job: Job, last: StoredRevision) -> Job:
    """The job with the counts of its last revision, which has refused a start.

    It expires only if it has not started yet. The recorded retry window replaces its own.
    """
    event = last.revision
    return replace(
        job,
        failures=event.failures,
        crashes=event.crashes,
        interruptions=event.interruptions,
        first_started=job.first_started or first_start(event),
        retry_until=event.retry_until or job.retry_until,
        expires=job.expires if has_not_started(last) else None,
    )


def next_attempt_of(job: Job, last: Revision, token: int) -> Job:
    """The next attempt of a job, as its last revision announces it. A job that has started no longer expires.

    A slot for the whole job is kept until then; otherwise the job returns to its key group.
    """
    return replace(
        job,
        previous_sequence=token,
        failures=last.failures,
        crashes=last.crashes,
        interruptions=last.interruptions,
        quarantine=last.quarantine,
        forgiven_crashes=last.forgiven_crashes,
        expires=job.expires if last.reason == UNKNOWN_TASK else None,
        group_slot=job.group_slot if job.group_slot == "job" and not last.quarantine else None,
        retry_until=last.retry_until,
        flow=PARKED if last.state == "waiting" else job.flow,
        submitted=milliseconds(last.submitted.timestamp()) if last.submitted else job.submitted,
        first_started=job.first_started or first_start(last),
    )


def with_retry_window(job: Job, retry_for: float, now: float) -> Job:
    """The job with the end of its retry window, if it starts `now`, a second of the server's clock."""
    if job.retry_until is not None:
        return job
    return replace(job, retry_until=datetime.fromtimestamp(now + retry_for, UTC))


def outcome_ttl(outcome: Outcome, *, first: bool) -> float | None:
    """The TTL of the record of an outcome in seconds; None keeps it as long as the bucket does.

    `first` is true if the record has only the revisions of a first attempt; see `RECORD_SECONDS`.
    """
    return RECORD_SECONDS if first and isinstance(outcome, Cancelled | Expired) else None


def success_ttl(keep_result: float) -> float:
    """The TTL of the record of a first attempt that succeeded, in seconds."""
    return max(keep_result, RECORD_SECONDS)


def state_of(outcome: Outcome) -> str:
    """The state that an outcome gives its event."""
    match outcome:
        case Succeeded():
            return "succeeded"
        case Failed():
            return "failed"
        case Cancelled():
            return "cancelled"
        case Expired():
            return "expired"
        case TryAgain(counts_as_failure=counts):
            return "retrying" if counts else "snoozed"
        case Quarantined():
            return "retrying"
        case Waiting():
            return "waiting"
    return "interrupted"


def outcome_fields(outcome: Outcome) -> dict[str, object]:
    """The extras of the log line of an outcome."""
    match outcome:
        case Failed(reason=reason, fault=fault):
            return {"reason": reason, "error": fault.error}
        case Expired(cause=fault):
            return {"error": fault.error}
        case TryAgain(delay=delay, fault=fault, counts_as_failure=counts):
            return {"delay": round(delay, 3), "error" if counts else "why": fault.error}
        case Quarantined(queue=queue, fault=fault):
            return {"quarantine": queue, "error": fault.error}
    return {}
