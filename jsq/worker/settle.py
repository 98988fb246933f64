"""The end of an attempt: the outcome is recorded, the stages finish, and the delivery is settled.

There is one path to the end. `finish` takes the recorded event, whether this attempt wrote it or a worker
that crashed before it settled the delivery.
"""

import logging
from dataclasses import replace
from typing import NamedTuple

from jsq.broker.jobs.records import MAX_RECORD_RESULT, RECORD_SECONDS, result_message
from jsq.codec import envelope, revisions
from jsq.codec.revisions import SEPARATE_RESULT
from jsq.errors import BrokerError, LeaseLost
from jsq.model.outcome import (
    Expired,
    Failed,
    Fault,
    Interrupted,
    Outcome,
    Quarantined,
    Succeeded,
    TryAgain,
)
from jsq.model.revision import FINAL_STATES, Revision, StoredRevision
from jsq.transport.batch_publish import OutgoingMessage
from jsq.transport.replies import WrongSequence
from jsq.worker.fast_log import emit
from jsq.worker.stages.base import Admission, Drop, HandBack, Leave, Requeue
from jsq.worker.stages.plans import StagedAttempt
from jsq.worker.transitions import outcome_fields, outcome_revision, outcome_ttl, with_log_counts

log = logging.getLogger("jsq.job")

CUT_OFF = "the lease expired: it could not be renewed"

LOG_LEVELS = {
    Failed: logging.ERROR,
    TryAgain: logging.WARNING,
    Expired: logging.WARNING,
    Quarantined: logging.ERROR,
}
"""The log level of each outcome; the others are logged at info."""


async def end_attempt(attempt: StagedAttempt, outcome: Outcome, ran: float = 0.0) -> None:
    """Take an attempt with an outcome to its end: recorded before settled."""
    event = await record_outcome(attempt, outcome)
    if event is not None:
        await finish(attempt, event)
        report_outcome(attempt, event.state, outcome, ran)


class EncodedOutcome(NamedTuple):
    """The revision of an outcome: its event and bytes, its TTL in seconds, and what is stored with it."""

    revision: Revision
    body: bytes
    ttl: float | None = None
    other: OutgoingMessage | None = None


async def record_outcome(attempt: StagedAttempt, outcome: Outcome) -> Revision | None:
    """Write the outcome on top of the token of the attempt; None if the record has a newer revision."""
    if isinstance(outcome, Succeeded):
        encoded = encode_success(attempt, outcome)
    else:
        encoded = encode_outcome(attempt, outcome)
    token = attempt.token
    try:
        attempt.token = await attempt.write(encoded.body, token, encoded.ttl, encoded.other)
    except WrongSequence as refused:
        if await attempt.was_renewed(token):
            return await record_outcome(attempt, outcome)
        return await settle_refused(attempt, encoded.revision, refused)
    except (LeaseLost, BrokerError):
        if attempt.has_lease():
            raise
        return await record_late(attempt, outcome, encoded)
    return encoded.revision


async def record_late(attempt: StagedAttempt, outcome: Outcome, encoded: EncodedOutcome) -> Revision | None:
    """Record an outcome though the lease has lapsed, if the record still shows this attempt as the last.

    The server was out of reach, or this process has stalled. A worker that has reclaimed the job wins,
    because the write expects the token of this attempt. Raises `LeaseLost` for a task that failed because its
    lease had lapsed, in a process that has stalled.
    """
    if failed_without_lease(outcome):
        if not attempt.resources.holders.was_cut_off(attempt):
            raise LeaseLost(f"the lease of job {attempt.job.id} lapsed")
        encoded = encode_outcome(attempt, Interrupted())
    log.warning("outcome delayed", extra=attempt.log_fields(outcome=encoded.revision.state, why=CUT_OFF))
    try:
        attempt.token = await attempt.write_late(encoded.body, encoded.ttl, encoded.other)
    except WrongSequence as refused:
        return await settle_refused(attempt, encoded.revision, refused)
    attempt.recorded_late = True
    return encoded.revision


def failed_without_lease(outcome: Outcome) -> bool:
    """Whether a task failed because a checkpoint, or a step, was refused without the lease."""
    return isinstance(outcome, Failed | TryAgain) and outcome.fault.error.startswith(LeaseLost.__name__)


async def settle_refused(attempt: StagedAttempt, event: Revision, refused: WrongSequence) -> Revision | None:
    """Handle a refused outcome; None unless this attempt wrote it, and the reply was lost."""
    last = await attempt.read(refused.last)
    if last is None or not (last.revision.token == attempt.token and last.state == event.state):
        await settle_superseded(attempt, last)
        return None
    attempt.token = last.sequence
    attempt.recorded_late = attempt.delivery.lease.lapsed()
    return event


def encode_success(attempt: StagedAttempt, outcome: Succeeded) -> EncodedOutcome:
    """The revision of a success. A result with a shorter life than the record has a key of its own.

    A result that would not have been kept anyway is not noted as dropped.
    """
    options, job, result, dropped = attempt.options, attempt.job, outcome.result, outcome.dropped
    apart = None
    if options.keep_result <= 0 or dropped:
        result = b""
    elif options.keep_result < RECORD_SECONDS or len(result) > MAX_RECORD_RESULT:
        record = attempt.resources.broker.subjects.record(job.queue, job.id)
        apart = result_message(record, result, options.keep_result)
        result = SEPARATE_RESULT
    arguments = attempt.option_member
    if options.keep_arguments:
        arguments += revisions.argument_members(job.arguments)
    if dropped and options.keep_result > 0:
        arguments += revisions.dropped_member(dropped)
    if attempt.reported is not None:
        arguments += revisions.completed_member(attempt.reported[1])
    body = revisions.encode_succeeded(attempt.running, attempt.token, arguments, result)
    return EncodedOutcome(SUCCESS_REVISION, body, None if attempt.continues else attempt.success_ttl, apart)


def encode_outcome(attempt: StagedAttempt, outcome: Outcome) -> EncodedOutcome:
    """The revision of an outcome other than a success."""
    attempt.complete_stages()
    now = attempt.resources.broker.wire.clock.moment()
    event = outcome_revision(attempt.running_revision(), outcome, token=attempt.token, now=now)
    return encode_revision(attempt, amended(attempt, event), outcome)


def encode_revision(attempt: StagedAttempt, event: Revision, outcome: Outcome) -> EncodedOutcome:
    """An encoded revision; a failure is encoded with its dead letter."""
    if event.state in FINAL_STATES:
        event = replace(event, options=envelope.recorded_options(attempt.job))
        if attempt.options.keep_arguments:
            event = revisions.with_arguments(event, attempt.job.arguments)
    dead_letter = None
    if event.state == "failed":
        dead_letter = attempt.resources.broker.dead_letters.message(attempt.job, event)
    ttl = outcome_ttl(outcome, first=not attempt.continues)
    return EncodedOutcome(event, revisions.encode(event), ttl, dead_letter)


def amended(attempt: StagedAttempt, event: Revision) -> Revision:
    """A revision that is about to be recorded, completed by the stages."""
    for stage in attempt.stages:
        event = stage.amend(attempt, event)
    return event


SUCCESS_REVISION = Revision("succeeded")
"""The event of a success for the stages: its state only."""


async def finish(attempt: StagedAttempt, event: Revision) -> bool:
    """Finish the stages after a recorded event, then settle the delivery. False if another worker must do it.

    Each step may run twice. The order is that of the stages; the acknowledgement is last.
    """
    for stage in attempt.stages:
        left = await stage.finish(attempt, event)
        if left is not None:
            await settle_unstarted(attempt, left)
            return False
    if event.state == "interrupted":
        attempt.nak()
    else:
        attempt.ack()
    return True


async def finish_logged(attempt: StagedAttempt, last: StoredRevision, why: str) -> None:
    """Finish the recorded event of a job: a worker that crashed may not have finished all stages."""
    follow_log(attempt, last)
    attempt.last = last
    attempt.complete_stages()
    if await finish(attempt, last.revision):
        log.info("delivery settled", extra=attempt.log_fields(why=why))


def follow_log(attempt: StagedAttempt, last: StoredRevision) -> None:
    """Continue from the last revision: its counts, and its sequence."""
    attempt.job = with_log_counts(attempt.job, last)
    attempt.token = last.sequence


async def settle_superseded(attempt: StagedAttempt, last: StoredRevision | None) -> None:
    """Handle a refused outcome. If the job has another final outcome, the delivery is settled."""
    attempt.resources.observer.lease_lost(attempt.job)
    reason = f"another worker has the job: it is {last.state}" if last else "the job has no record"
    log.warning("lease lost", extra=attempt.log_fields(why=reason))
    if last is not None and last.state in FINAL_STATES:
        await finish_logged(attempt, last, "settle")


async def settle_unstarted(attempt: StagedAttempt, admission: Admission) -> None:
    """Settle a delivery that this worker does not run now."""
    match admission:
        case Requeue(delay=delay, reason=reason):
            log.info("delivery requeued", extra=attempt.log_fields(why=reason, delay=delay))
            await attempt.resources.broker.job_writer.requeue(attempt.delivery, delay)
            attempt.ack()
        case HandBack():
            attempt.nak()
            attempt.resources.observer.handed_back(attempt.delivery.queue)
        case Drop():
            attempt.ack()
        case Leave():
            pass


def report_outcome(attempt: StagedAttempt, state: str, outcome: Outcome, ran: float) -> None:
    """Pass the outcome to the observer, and log it."""
    if attempt.resources.observer.observes_jobs:
        attempt.resources.observer.finished(attempt.job, outcome, ran)
    if isinstance(outcome, Succeeded) and outcome.dropped and attempt.options.keep_result > 0:
        log.warning("result dropped", extra=attempt.log_fields(why=outcome.dropped))
    level = logging.INFO if state == "snoozed" else LOG_LEVELS.get(type(outcome), logging.INFO)
    if log.isEnabledFor(level):
        fields = attempt.log_fields(seconds=round(ran, 6), **outcome_fields(outcome))
        emit(log, level, f"job {state}", fields, failure_fields(outcome) if level > logging.INFO else None)


def failure_fields(outcome: Outcome) -> dict[str, object]:
    """The fields of a log record about an exception: the exception itself, or the text of its traceback.

    Handlers that report errors need the exception. There is none if the attempt ran in another process.
    """
    match outcome:
        case Failed(fault=fault) | TryAgain(fault=fault) | Expired(cause=fault):
            error = fault.exception
            if error is not None:
                return {"exc_info": (type(error), error, error.__traceback__)}
            return {"exc_text": traceback_text(fault)} if fault.traceback else {}
    return {}


def traceback_text(fault: Fault) -> str:
    """The traceback of a fault as `traceback.format_exception` writes it."""
    if not fault.traceback.startswith(("  File", "...")):
        return fault.traceback  # it has more than frames
    return f"Traceback (most recent call last):\n{fault.traceback}{fault.error}"
