"""What an attempt writes into its job's log: pure functions from an outcome to an event."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from jsq.broker.log import SETTLING
from jsq.event import Event, Handing
from jsq.job import Job
from jsq.outcome import Cancelled, Failed, Outcome, Succeeded, TryAgain
from jsq.retry import RetryPolicy
from jsq.task import DAY, AnyTask


@dataclass(frozen=True, slots=True)
class Terms:
    """How a job is run and kept: what its submitter asked, else what its task declares."""

    policy: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    keep_result: float = DAY


def terms_of(job: Job, task: AnyTask | None) -> Terms:
    """The terms of a job; `task` is None where its code is not known."""
    own = task.declaration if task is not None else None
    retry = own.retry if own is not None else RetryPolicy()
    return Terms(
        RetryPolicy(retry.retries if job.retries is None else job.retries, job.backoff or retry.backoff),
        job.timeout if job.timeout is not None else own.timeout if own is not None else None,
        job.keep_result if job.keep_result is not None else own.keep_result if own is not None else DAY,
    )


def begun(job: Job, handing: Handing) -> Event:
    """The event of an attempt that begins."""
    return Event(
        "running",
        job.task,
        attempt=job.attempt,
        failures=job.failures,
        crashes=job.crashes,
        worker=handing.worker,
        message=handing.message,
        delivery=handing.delivery,
        tags=tuple(job.tags),
    )


def ended(running: Event, outcome: Outcome, *, token: int, keep_result: float, now: datetime) -> Event:
    """The event of an attempt that began as `running`, with `token`, and came to `outcome`."""
    state = state_of(outcome)
    match outcome:
        case Succeeded():
            return replace(running, state=state, token=token, kept=keep_result > 0)
        case Failed(reason=reason, fault=fault):
            return replace(
                running,
                state=state,
                token=token,
                reason=reason,
                error=fault.error,
                traceback=fault.traceback,
            )
        case TryAgain(delay=delay, fault=fault, counts=counts):
            return replace(
                running,
                state=state,
                token=token,
                due=now + timedelta(seconds=delay),
                failures=running.failures + int(counts),
                error=fault.error,
                traceback=fault.traceback,
            )
    return replace(running, state=state, token=token)


def kept_for(outcome: Outcome, *, keep_result: float, lease: float) -> float | None:
    """How many seconds the record of an outcome stays; None for one that is not the last.

    Ten leases at least, so that a late redelivery still finds it, and longer than it takes the log to settle;
    a day at least where there is no result.
    """
    match outcome:
        case Succeeded():
            return max(keep_result, 10 * lease, 2 * SETTLING)
        case Failed() | Cancelled():
            return max(keep_result, 10 * lease, DAY)
    return None


def state_of(outcome: Outcome) -> str:
    """An outcome in the word that its event has."""
    match outcome:
        case Succeeded():
            return "succeeded"
        case Failed():
            return "failed"
        case Cancelled():
            return "cancelled"
        case TryAgain(counts=counts):
            return "retrying" if counts else "snoozed"
    return "interrupted"


def told(outcome: Outcome) -> dict[str, object]:
    """What a log line tells of an outcome."""
    match outcome:
        case Failed(reason=reason, fault=fault):
            return {"reason": reason, "error": fault.error}
        case TryAgain(delay=delay, fault=fault):
            return {"delay": round(delay, 3), "error": fault.error}
    return {}
