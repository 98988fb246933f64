"""The start of an attempt: the job is decoded, and its start is recorded on top of its last revision."""

import logging
import time
from dataclasses import replace

from jsq.broker import Delivery
from jsq.broker.topology.configs import MAX_DELIVER
from jsq.codec import envelope, revisions
from jsq.errors import BadEnvelope, BadName, NewerEnvelope
from jsq.model.job import Job
from jsq.model.outcome import Expired, Outcome
from jsq.model.revision import StartVerdict, StoredRevision, judge_start
from jsq.transport.replies import WrongSequence
from jsq.worker.settle import (
    amended,
    encode_revision,
    end_attempt,
    finish,
    finish_logged,
    follow_log,
    report_outcome,
    settle_unstarted,
)
from jsq.worker.stages.base import Run
from jsq.worker.stages.key_groups import release_unread
from jsq.worker.stages.plans import StagedAttempt
from jsq.worker.state import AttemptState
from jsq.worker.transitions import outcome_revision, unstarted_revision, with_log_counts

log = logging.getLogger("jsq.job")

MAX_DELIVERIES = MAX_DELIVER // 2
"""Deliveries after which a message is replaced by a new one: at `MAX_DELIVER` the server would hide it."""


def decode_delivery(delivery: Delivery) -> Job:
    """The job of a delivery. Raises `BadEnvelope`, `BadName`, `NewerEnvelope`."""
    if not delivery.token:
        raise BadName("job", delivery.id, "the subject of its message ends with a token that no id has")
    return envelope.decode(
        delivery.headers,
        delivery.payload,
        id=delivery.id,
        queue=delivery.queue,
        priority=delivery.submitted_priority,
    )


async def reject(attempt: AttemptState, error: BadEnvelope | BadName | NewerEnvelope) -> None:
    """Settle a delivery that cannot be decoded: a newer release may, or it becomes a dead letter."""
    delivery, broker = attempt.delivery, attempt.resources.broker
    attempt.job = Job(delivery.id, "", delivery.queue, delivery.priority)
    if isinstance(error, NewerEnvelope):
        log.warning("delivery requeued", extra=attempt.log_fields(why=str(error)))
        await broker.job_writer.requeue(delivery, attempt.resources.timings.newer_release)
    else:
        log.error("delivery rejected", extra=attempt.log_fields(why=str(error)))
        await broker.dead_letters.write_raw(delivery, "bad_envelope", str(error))
        await release_unread(attempt)
    attempt.ack()


async def start_attempt(attempt: StagedAttempt) -> bool:
    """Record the start. False if there is no job to run: the delivery is settled, or another worker's."""
    if attempt.delivery.number > MAX_DELIVERIES:
        await renew_message(attempt)
        return False
    if not await write_first_revision(attempt):
        return False
    if attempt.unstarted is None and attempt.stages:
        await prepare_stages(attempt)
    if attempt.unstarted is not None:
        outcome, event = attempt.unstarted
        await finish(attempt, event)
        report_outcome(attempt, event.state, outcome, 0.0)
        return False
    note_start(attempt)
    return True


async def write_first_revision(attempt: StagedAttempt) -> bool:
    """Write the start on top of the last revision, or the outcome that a stage puts in its place.

    False if the record allows neither.
    """
    expect = attempt.job.previous_sequence
    if expect and not await may_continue(attempt):
        return False
    while True:
        try:
            await write_start(attempt, expect, await instead_of_start(attempt))
            return True
        except WrongSequence as refused:
            expect = refused.last
        attempt.continues = True
        attempt.unstarted = None
        attempt.complete_stages()
        last = await attempt.read(expect)
        if last is not None:
            expect = last.sequence
            attempt.job = with_log_counts(attempt.job, last)
        verdict = judge_start(last, attempt.delivery_info(), other_waits=await other_waits(attempt, last))
        if last is not None and last.state == "running":
            verdict = await attempt.resources.holders.judge(attempt, last, verdict)
        if verdict is not StartVerdict.RESUME:
            if not await follow(attempt, verdict, last) or not await may_continue(attempt):
                return False
        elif await instead_of_start(attempt) is None:
            attempt.token = expect
            return True


async def may_continue(attempt: StagedAttempt) -> bool:
    """Ask the stages whether a job with a history may start now. If not, the delivery is settled."""
    attempt.continues = True
    if not attempt.job.crashes and not attempt.job.interruptions:
        return True
    attempt.complete_stages()
    for stage in attempt.stages:
        admission = await stage.admit_again(attempt)
        if not isinstance(admission, Run):
            await settle_unstarted(attempt, admission)
            return False
    return True


async def instead_of_start(attempt: StagedAttempt) -> Outcome | None:
    """The outcome that a stage puts in place of the start."""
    for stage in reversed(attempt.stages):
        outcome = await stage.instead(attempt) if stage.replaces_start else None
        if outcome is not None:
            return outcome
    return None


async def write_start(attempt: StagedAttempt, expect: int, outcome: Outcome | None) -> None:
    """Write that the attempt starts, or the outcome in place of that."""
    if outcome is not None:
        await write_unstarted(attempt, expect, outcome)
        return
    attempt.started = int(1000 * attempt.resources.broker.wire.clock.now())
    attempt.running = revisions.encode_running(
        attempt.job, attempt.delivery_info(), attempt.submitted, attempt.started
    )
    attempt.token = await attempt.write(attempt.running, expect, attempt.start_ttl)


async def write_unstarted(attempt: StagedAttempt, expect: int, outcome: Outcome) -> None:
    """Record the final outcome of a job whose attempt did not start."""
    attempt.complete_stages()
    info = attempt.delivery_info()
    if isinstance(outcome, Expired):
        event = unstarted_revision(attempt.job, info, attempt.submitted, outcome)
    else:
        now = attempt.resources.broker.wire.clock.moment()
        event = outcome_revision(attempt.running_revision(), outcome, token=expect, now=now)
    event = amended(attempt, event)
    attempt.unstarted = (outcome, event)
    encoded = encode_revision(attempt, event, outcome)
    attempt.token = await attempt.write(encoded.body, expect, encoded.ttl, encoded.other)


async def prepare_stages(attempt: StagedAttempt) -> None:
    """Have the stages prepare the run. One may find that the start came too late, and end the attempt."""
    for stage in attempt.stages:
        outcome = await stage.started(attempt)
        if outcome is not None:
            await write_unstarted(attempt, attempt.token, outcome)
            return


def note_start(attempt: StagedAttempt) -> None:
    """Report the start."""
    observer = attempt.resources.observer
    if observer.observes_jobs:
        observer.started(attempt.job, max(0.0, time.time() - attempt.delivery.stored))
    if log.isEnabledFor(logging.DEBUG):
        log.debug("job started", extra=attempt.log_fields(token=attempt.token))


async def follow(attempt: StagedAttempt, verdict: StartVerdict, last: StoredRevision | None) -> bool:
    """Handle a delivery as its record requires. True if the attempt may start on top of the record."""
    if last is not None:
        follow_log(attempt, last)
    match verdict:
        case StartVerdict.START:
            return True
        case StartVerdict.RECLAIM:
            return await reclaim(attempt)
        case StartVerdict.RESTART:
            attempt.job = replace(attempt.job, interruptions=attempt.job.interruptions + 1)
            log.warning(
                "job restarted", extra=attempt.log_fields(why="the other worker was cut off, and is alive")
            )
            return True
        case StartVerdict.ABANDON:
            return False
        case StartVerdict.DROP if last is not None:
            for stage in attempt.stages:
                await stage.dropped(attempt, last)
            attempt.ack()
            log.info("delivery settled", extra=attempt.log_fields(why=verdict.value))
        case _ if last is not None:
            await finish_logged(attempt, last, verdict.value)
    return False


async def reclaim(attempt: StagedAttempt) -> bool:
    """Count a crash of the worker that had the job. False if a stage ends the job because of it."""
    attempt.job = replace(attempt.job, crashes=attempt.job.crashes + 1)
    attempt.resources.observer.reclaimed(attempt.job)
    log.warning("job reclaimed", extra=attempt.log_fields(crashes=attempt.job.crashes))
    for stage in attempt.stages:
        outcome = stage.reclaimed(attempt)
        if outcome is not None:
            await end_attempt(attempt, outcome)
            return False
    return True


async def renew_message(attempt: StagedAttempt) -> None:
    """Replace a message that was delivered very often by a new one."""
    await attempt.resources.broker.job_writer.schedule(attempt.job, None, while_=attempt.has_lease)
    attempt.ack()


async def other_waits(attempt: StagedAttempt, last: StoredRevision | None) -> bool:
    """Whether the message of another running attempt is still on its queue."""
    if last is None or last.state != "running":
        return False
    delivery, message = attempt.delivery, last.revision.message
    if last.current_queue == delivery.queue and message in (delivery.sequence, delivery.replaced_sequence):
        return False  # the replaced message may still exist, but no worker gets it
    return await attempt.resources.broker.job_reader.is_queued(last.current_queue, message)
