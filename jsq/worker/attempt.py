"""One delivery, from its message to its end: the heart of a worker, as a list of steps.

Recorded before settled: a crash between the two brings the delivery back, finds the record final, and settles
it without running. Work whose lease has lapsed writes nothing at all: the job already belongs to another.
"""

import asyncio
import logging
import math
import time
from dataclasses import replace
from datetime import datetime

from jsq.broker import Delivery
from jsq.broker.topology.configs import MAX_DELIVER
from jsq.codec import envelope, events
from jsq.errors import (
    BadArguments,
    BadEnvelope,
    BadName,
    BrokerError,
    LeaseLost,
    NewerEnvelope,
    UnknownTask,
    count_noun,
)
from jsq.model.callback import is_failed_attempt, with_pending_callbacks
from jsq.model.event import FINAL_STATES, DeliveryInfo, Event, LoggedEvent, StartVerdict, judge_start
from jsq.model.expiry import has_not_started
from jsq.model.job import Job, check_id
from jsq.model.outcome import (
    RATE_LIMITED,
    Cancelled,
    Expired,
    Failed,
    Fault,
    Interrupted,
    Outcome,
    Quarantined,
    Succeeded,
    TryAgain,
    apply_deadline,
    describe_error,
    judge_outcome,
)
from jsq.task import Declaration
from jsq.transport.replies import WrongSequence
from jsq.worker.fast_log import tell
from jsq.worker.resources import Resources
from jsq.worker.run import TaskRun, TooLate
from jsq.worker.stages.batch import BatchCollector, BatchMember
from jsq.worker.stages.callbacks import still_waits, submit_owed
from jsq.worker.stages.checkpoints import Checkpoints
from jsq.worker.stages.key_groups import GroupSlot
from jsq.worker.stages.rate_limits import TOO_LATE, Reservation
from jsq.worker.transitions import (
    LATE,
    NEVER_BEGUN,
    as_the_log_says,
    begun,
    dated,
    ended,
    expiring,
    kept_for,
    missed,
    overdue,
    promised,
    state_of,
    terms_of,
    told,
    windowed,
)

log = logging.getLogger("jsq.job")

LOUDNESS = {
    Failed: logging.ERROR,
    TryAgain: logging.WARNING,
    Expired: logging.WARNING,
    Quarantined: logging.ERROR,
}
"""How loud an outcome is told; the others at info."""

NEWER_DELAY = 30.0
"""Seconds before a job that only a newer release can read is offered again."""

UNKNOWN_DELAYS = (1.0, 30.0)
"""The least and the most seconds before a job of an unknown task is offered again."""

WORN_OUT = MAX_DELIVER // 2
"""Deliveries after which a message is replaced by a new one: at `MAX_DELIVER` the server would hide it."""


CLOSE = 1.0
"""Seconds before a job expires in which its start is so late that the server is asked when it stored it."""

UNREAD = Job("", "")
"""What stands for a job that has not been read yet."""


class Attempt:
    """A delivery in our hands."""

    job: Job = UNREAD
    terms: Declaration
    running: bytes
    recorded: Event
    slots: int = 1

    def __init__(self, delivery: Delivery, tools: Resources, gatherings: BatchCollector) -> None:
        self.delivery = delivery
        self.tools = tools
        self.gatherings = gatherings
        self.token = 0
        self.continues = False
        self.steps: Checkpoints | None = None
        self.task: asyncio.Task[None] | None = None
        self.function: TaskRun | BatchMember = TaskRun()
        self.leaving: GroupSlot | None = None
        self.permitted: Reservation | None = None
        self.late: Expired | None = None

    async def run(self) -> None:
        """Take the delivery to its end. Raises nothing that one job could cause."""
        try:
            if await self.unseal() and await self.gather() and await self.permit() and await self.start():
                await self.recall()
                began = time.monotonic()
                performing = self.perform() if self.permitted is None else self.await_moment(self.permitted)
                outcome = apply_deadline(await performing, self.left(), self.window())
                if await self.record(outcome):
                    await self.settle(outcome)
                    self.tell(outcome, time.monotonic() - began)
        except LeaseLost:
            self.tools.watcher.lost(self.job)
            log.warning("job lost", extra=self.about(why="the lease lapsed: another worker has it"))
        except BrokerError as error:
            log.warning("job let go", extra=self.about(why=str(error)))
        except Exception:
            log.exception("job let go", extra=self.about(why="an error of jsq itself"))
        finally:
            self.function.leave()
            if self.leaving is not None:
                await self.leaving.close()

    def stop(self, why: Outcome | LeaseLost) -> None:
        """End the attempt early, with this outcome."""
        self.function.stop(why)

    # -- the steps ---------------------------------------------------------------------------------------

    async def unseal(self) -> bool:
        """Read the job. What is no job is put away with its raw bytes; a newer release's is handed back."""
        delivery = self.delivery
        try:
            self.job = envelope.decode(
                delivery.headers,
                delivery.payload,
                id=check_id(delivery.id),
                queue=delivery.queue,
                priority=delivery.own_priority,
            )
        except NewerEnvelope as error:
            self.job = Job(delivery.id, "", delivery.queue, delivery.priority)
            log.warning("job put aside", extra=self.about(why=str(error)))
            await self.tools.broker.jobs.put_aside(delivery, NEWER_DELAY)
            self.send(b"+ACK")
            return False
        except (BadEnvelope, BadName) as error:
            self.job = Job(delivery.id, "", delivery.queue, delivery.priority)
            await self._put_away(str(error))
            return False
        self.terms = terms_of(self.job, self.tools.app.known(self.job.task))
        self.job = dated(self.job, self.terms.deadline, delivery.since)
        self.job = expiring(self.job, self.terms.expires, delivery.since)
        if self.terms.retry.retry_for is not None:
            now = self.tools.broker.wire.clock.now()
            self.job = windowed(self.job, self.terms.retry.retry_for, now)
        if self.job.key:
            return await self.line_up()
        return True

    async def line_up(self) -> bool:
        """See that a job with a key has a place in its turn. One that came without goes to its line."""
        if self.job.waits_for_key:
            await self.tools.broker.jobs.put_ready(self.job, until=self.holds)
            self.send(b"+ACK")
            log.info("job sent to its line", extra=self.about(key=self.job.key))
            return False
        if self.job.group_slot is not None and not self.job.quarantine:
            self.leaving = GroupSlot(self.tools.broker, self.job, self.holds)
        return True

    async def gather(self) -> bool:
        """Wait for others of a batch task. False if they are not to run here: the delivery is handed back."""
        task = self.tools.app.known(self.job.task)
        if task is None or task.declaration.batch is None:
            return True
        seat = await self.gatherings.place(task, task.declaration.batch, self.job, self.delivery)
        if self.function.stopping is not None:
            seat.stop(self.function.stopping)
        self.function = seat
        if self.leaving is not None:
            self.leaving.begin()  # it takes no other's place on the queue any more
        if await seat.gathered():
            return True
        self.send(b"-NAK")
        self.tools.watcher.handed_back(self.delivery.queue)
        return False

    async def permit(self) -> bool:
        """See that the job may begin now. One that is held, or whose limits are used up, waits elsewhere."""
        self.permitted = self.tools.permits.needed(self.delivery, self.job, self.terms)
        if self.permitted is None or self.too_late():
            return True
        if isinstance(self.function, BatchMember):
            self.function.permit = self.permitted
        wait = await self.permitted.take(self.job)
        if wait is None:
            return True
        self.check_lease()
        if not wait.hands_back:
            await self.tools.permits.put_aside(self.delivery, self.job, wait)
        self.send(b"-NAK" if wait.hands_back else b"+ACK")
        return False

    async def start(self) -> bool:
        """Record that the attempt begins. False if the log says that there is nothing to do here."""
        if await self._is_settled() or not await self._write_start():
            return False
        if self.late is None and self.job.expires is not None:
            self.late = await self._begun_too_late()
        if self.late is not None:
            return await self._expire(self.late)
        if self.leaving is not None:
            self.leaving.begin()
        self.tools.watcher.started(self.job, max(0.0, time.time() - self.delivery.stored))
        if log.isEnabledFor(logging.DEBUG):
            log.debug("job started", extra=self.about(token=self.token))
        return True

    async def recall(self) -> None:
        """Make ready what the task may keep, with what the attempts before this one have kept."""
        task = self.tools.app.known(self.job.task)
        if task is None or not task.takes_context:
            return
        place = self.tools.broker.checkpoints
        self.steps = Checkpoints(place, self.job, self.token, holds=self.holds, lost=self.stop)
        if self.continues:  # before a first attempt there was none
            await self.steps.recall()

    async def await_moment(self, permit: Reservation) -> Outcome:
        """Perform at the moment that the limits have given; one too far ahead is waited for elsewhere."""
        while True:
            delay = await permit.await_moment()
            if delay is not None and self.function.stopping is None:
                return TryAgain(delay, TOO_LATE, counts_as_failure=False)
            try:
                return await self.perform()
            except TooLate:
                continue

    async def perform(self) -> Outcome:
        """Run the task, and judge how it ended."""
        try:
            task = self.tools.app.find(self.job.task)
            return await self.function.perform(
                self.tools,
                task,
                self.job,
                self.terms,
                token=self.token,
                note=self._note,
                steps=self.steps,
                left=self.left(),
                may_begin=self.permitted.is_in_time if self.permitted is not None else None,
            )
        except UnknownTask as error:
            return await self._put_off(error)
        except BadArguments as error:
            return Failed("bad_arguments", describe_error(error))
        except (LeaseLost, TooLate):
            raise
        except Exception as error:
            job = self.job
            return judge_outcome(error, failures=job.failures, policy=self.terms.retry, attempt=job.attempt)

    async def record(self, outcome: Outcome) -> bool:
        """Write the outcome on top of our own token. False if the log has moved on without us."""
        self.check_lease()
        keep_result = self.terms.keep_result
        state = state_of(outcome)
        keep = kept_for(outcome, keep_result=keep_result, lease=self.tools.queues[self.delivery.queue].lease)
        body = self._encoded(outcome)
        try:
            self.token = await self._write(state, body, self.token, keep)
        except WrongSequence as refused:
            last = await self._read(refused.last)
            if last is None or not (last.event.token == self.token and last.state == state):
                return await self._refused(last)
            self.token = last.sequence  # our own write, whose answer was lost
        return True

    def _encoded(self, outcome: Outcome) -> bytes:
        """The event of an outcome."""
        if isinstance(outcome, Succeeded):
            return events.encode_succeeded(
                self.running, self.token, outcome.result if self.terms.keep_result > 0 else b""
            )
        running = begun(self.job, self._handing())
        now = self.tools.broker.wire.clock.moment()
        event = ended(running, outcome, token=self.token, now=now)
        self.recorded = with_pending_callbacks(event, self.job, self.terms.callbacks)
        return events.encode(self.recorded)

    async def settle(self, outcome: Outcome) -> None:
        """End the delivery: the record stands, so what follows may be done again, or by another."""
        match outcome:
            case Failed():
                await self.bury(self.recorded)
            case TryAgain() | Quarantined():
                await self.promise(self.recorded)
        if self.job.unique and state_of(outcome) in FINAL_STATES:
            await self.pass_on()
        if self.steps is not None:
            await self.steps.end(over=isinstance(outcome, Succeeded | Cancelled | Expired))
        if self.leaving is not None:
            await self.leaving.end(outcome)
        self.send(b"-NAK" if isinstance(outcome, Interrupted) else b"+ACK")

    def tell(self, outcome: Outcome, ran: float) -> None:
        """Tell who watches, and the log, what the attempt came to."""
        self.tools.watcher.finished(self.job, outcome, ran)
        level = LOUDNESS.get(type(outcome), logging.INFO)
        if log.isEnabledFor(level):
            about = self.about(seconds=round(ran, 6), **told(outcome))
            tell(log, level, f"job {state_of(outcome)}", about)

    # -- what several steps do ---------------------------------------------------------------------------

    async def bury(self, failed: Event) -> None:
        """Submit what a recorded failure owes, then write the dead letter.

        In this order, and the settling last: where there is a letter, nothing is owed any more.
        """
        await self.submit_owed(failed)
        await self.tools.broker.dead_letters.write(self.job, failed, self.token, until=self.holds)

    async def pass_on(self) -> None:
        """Have the job begin that waits for the end of this one, where both have one unique key."""
        if self.job.unique:
            await self.tools.broker.unique.call_follower(self.job.unique, self.job.id)

    async def promise(self, last: Event) -> None:
        """See that the job's next attempt stands, which its last event promises: here, or in a quarantine.

        What the event owes comes first: once the next attempt has begun, nobody looks at this one.
        """
        await self.submit_owed(last)
        job = promised(self.job, last, self.token)
        if last.reason == RATE_LIMITED and last.due is not None:
            await self.tools.permits.hold(self.delivery.queue, self.job.key, last.due)
        await self.tools.broker.jobs.ensure_scheduled(job, last.due, until=self.holds)

    async def submit_owed(self, event: Event) -> None:
        """Submit the callbacks that an event owes, and the fallback."""
        if event.callbacks_pending:
            await submit_owed(self.tools, self.job, event, self.terms, holds=self.holds)

    def send(self, word: bytes) -> None:
        """Settle the delivery, unless it may be another's by now."""
        if self.holds():
            self.tools.broker.wire.send(self.delivery.reply, word)

    def left(self) -> float | None:
        """Seconds until the job's deadline, by the server's clock; None where it has none."""
        deadline = self.job.deadline
        if not isinstance(deadline, datetime):
            return None
        return deadline.timestamp() - self.tools.broker.wire.clock.now()

    def window(self) -> float | None:
        """Seconds until the window of the job's retries closes; None where it has none."""
        until = self.job.retry_until
        return until.timestamp() - self.tools.broker.wire.clock.now() if until is not None else None

    def too_late(self) -> Expired | None:
        """What the job comes to if it may not begin any more."""
        left = self.left()
        if left is not None and left <= 0:
            return LATE
        return NEVER_BEGUN if self._left_to_begin() <= 0 else None

    def is_overdue(self) -> bool:
        """Whether the window of its retries has closed, and before its deadline."""
        window, left = self.window(), self.left()
        return window is not None and window <= 0 and (left is None or window < left)

    def holds(self) -> bool:
        return not self.delivery.lease.lapsed()

    def check_lease(self) -> None:
        if not self.holds():
            raise LeaseLost(f"the lease of job {self.job.id} lapsed")

    def about(self, **more: object) -> dict[str, object]:
        """What every line about this job carries."""
        job = self.job
        return {"job": job.id, "task": job.task, "queue": job.queue, "attempt": job.attempt, **more}

    # -- parts of unseal, gather and start ---------------------------------------------------------------

    async def _write_start(self) -> bool:
        """Write the start, or that it is `late` for one, on top of what the log says. False if we may not."""
        expect = self.job.previous_sequence
        self.continues = expect > 0
        while True:
            self.check_lease()
            self.late = self.too_late()
            try:
                self.token = await self._open(expect, self.late)
                return True
            except WrongSequence as refused:
                expect = refused.last
                self.continues = True
            last = await self._read(expect)
            expect = last.sequence if last is not None else expect
            self.job = as_the_log_says(self.job, last)
            self.late = self.too_late()
            verdict = judge_start(last, self._handing(), other_waits=await self._other_waits(last))
            if verdict is StartVerdict.RESUME and not self.late:
                self.token = expect
                return True
            if verdict is not StartVerdict.RESUME and not await self._follow(verdict, last):
                return False

    async def _put_away(self, why: str) -> None:
        log.error("message put away", extra=self.about(why=why))
        await self.tools.broker.dead_letters.write_raw(self.delivery, "bad_envelope", why)
        place, token, _ = envelope.parse_group_slot(self.delivery.headers)
        if place is not None:
            await self.tools.broker.key_groups.leave(self.job.queue, token, self.job.id, until=self.holds)
        self.send(b"+ACK")

    async def _is_settled(self) -> bool:
        """Whether the delivery is settled before the log is asked: it is worn, or comes too late."""
        if self.delivery.number > WORN_OUT:
            await self._renew()
            return True
        return self.is_overdue() and await self._give_up()

    async def _renew(self) -> None:
        """Give a job that was handed over very often a new message, in place of the worn one."""
        await self.tools.broker.jobs.put_later(self.job, None, until=self.holds)
        self.send(b"+ACK")

    async def _follow(self, verdict: StartVerdict, last: LoggedEvent | None) -> bool:
        """Do what the log demands. True if the attempt may be started on top of it."""
        if last is not None:
            until = last.event.retry_until or self.job.retry_until
            self.job = replace(
                self.job,
                failures=last.event.failures,
                crashes=last.event.crashes,
                interruptions=last.event.interruptions,
                retry_until=until,
            )
            self.token = last.sequence
            if still_waits(self.tools, self.job, last.event, last.at):
                return await self._leave_to_others()
        match verdict:
            case StartVerdict.START:
                return True
            case StartVerdict.RECLAIM:
                return await self._take_over()
            case StartVerdict.ENSURE_NEXT_ATTEMPT if last is not None:
                await self.promise(last.event)
            case StartVerdict.SETTLE if last is not None and last.state == "failed":
                await self.bury(last.event)
                await self.pass_on()
            case StartVerdict.SETTLE:
                await self.pass_on()
                await self.tools.broker.checkpoints.forget(self.job.queue, self.job.id)
            case StartVerdict.ABANDON:
                return False
        await self._leave_place(verdict, last)
        self.send(b"+ACK")
        log.info("delivery settled", extra=self.about(why=verdict.value))
        return False

    async def _leave_place(self, verdict: StartVerdict, last: LoggedEvent | None) -> None:
        """Give up the place of a job that has ended, or goes on from the end of its line."""
        if self.leaving is None or last is None:
            return
        if verdict is StartVerdict.DROP and self.job.group_slot != "once":
            return  # who runs it keeps it
        stays = (
            verdict is StartVerdict.ENSURE_NEXT_ATTEMPT
            and self.job.group_slot == "strict"
            and not last.event.quarantine
        )
        if not stays:
            await self.leaving.give_up(last.sequence - 1)

    async def _leave_to_others(self) -> bool:
        """Leave what an event owes to a worker that knows the job's task."""
        log.info("delivery put aside", extra=self.about(why="its callbacks are not known here"))
        await self.tools.broker.jobs.put_aside(self.delivery, NEWER_DELAY)
        self.send(b"+ACK")
        return False

    async def _take_over(self) -> bool:
        """Count a crash. A job that has taken down too many workers is put away before it runs again."""
        self.job = replace(self.job, crashes=self.job.crashes + 1)
        self.tools.watcher.crashed(self.job)
        log.warning("job taken over", extra=self.about(crashes=self.job.crashes))
        settings = self.tools.queues[self.delivery.queue]
        if self.job.crashes - self.job.forgiven_crashes < settings.max_crashes:
            return True
        fault = Fault(f"{count_noun(self.job.crashes, 'worker')} died or fell silent while running it")
        outcome: Outcome = Failed("crashed", fault)
        apart = self.terms.quarantine or settings.quarantine
        if apart is not None and apart != self.job.queue and not self.job.quarantine:
            outcome = Quarantined(apart, fault)
        if await self.record(outcome):
            await self.settle(outcome)
            self.tell(outcome, 0.0)
        return False

    async def _give_up(self) -> bool:
        """Fail a job whose retry comes after its window. False if it is here for another reason."""
        last = await self.tools.broker.event_log.last_run(
            self.job.queue, self.job.id, least=self.job.previous_sequence
        )
        if last is None or last.sequence != self.job.previous_sequence or not is_failed_attempt(last.event):
            return False
        self.token = last.sequence
        outcome = overdue(last.event)
        if await self.record(outcome):
            await self.settle(outcome)
            self.tell(outcome, 0.0)
        return True

    async def _open(self, expect: int, late: Expired | None) -> int:
        """Write that the attempt begins, or that it is too late for one; returns the sequence."""
        if late is None:
            self.running = events.encode_running(self.job, self._handing())
            return await self._write("running", self.running, expect)
        body = events.encode(missed(self.job, self._handing(), late))
        lease = self.tools.queues[self.delivery.queue].lease
        keep = kept_for(late, keep_result=self.terms.keep_result, lease=lease)
        return await self._write("expired", body, expect, keep)

    def _left_to_begin(self) -> float:
        """Seconds in which the job may begin, by the server's clock."""
        if self.job.expires is None:
            return math.inf
        return self.job.expires.timestamp() - self.tools.broker.wire.clock.now()

    async def _begun_too_late(self) -> Expired | None:
        """Record a job as expired whose start the server stored after it had; whoever reads judges so too."""
        if self._left_to_begin() > CLOSE:
            return None
        last = await self._read(self.token)
        if last is None or last.sequence != self.token or not has_not_started(last):
            return None
        self.token = await self._open(self.token, NEVER_BEGUN)
        return NEVER_BEGUN

    async def _expire(self, late: Expired) -> bool:
        """End a job that is recorded as expired before this attempt of it began."""
        if self.continues:
            await self.tools.broker.checkpoints.forget(self.job.queue, self.job.id)
        await self.settle(late)
        self.tell(late, 0.0)
        return False

    # -- parts of perform --------------------------------------------------------------------------------

    async def _put_off(self, unknown: UnknownTask) -> Outcome:
        """Leave a job of an unknown task to workers of a newer release; fail it when none came for long."""
        now = self.tools.broker.wire.clock.moment()
        last = await self.tools.broker.event_log.last_run(self.job.queue, self.job.id, "snoozed")
        put_off = last is not None and (last.sequence, last.event.reason) == (
            self.job.previous_sequence,
            "unknown_task",
        )
        since = datetime.fromisoformat(last.event.text) if last is not None and put_off else now
        waited = (now - since).total_seconds()
        left = self.tools.settings.unknown_task_for - waited
        if left <= 0:
            return Failed("unknown_task", describe_error(unknown))
        delay = min(max(UNKNOWN_DELAYS[0], waited), UNKNOWN_DELAYS[1], left)
        return TryAgain(
            delay,
            describe_error(unknown),
            counts_as_failure=False,
            reason="unknown_task",
            text=since.isoformat(),
        )

    def _note(self, fraction: float, text: str) -> None:
        event = replace(begun(self.job, self._handing()), token=self.token, progress=fraction, text=text)
        self.tools.broker.event_log.note_progress(self.job.queue, self.job.id, event, token=self.token)

    # -- the log -----------------------------------------------------------------------------------------

    async def _refused(self, last: LoggedEvent | None) -> bool:
        """Our outcome was not the one. If the job has another final one, the delivery is done with."""
        self.tools.watcher.lost(self.job)
        log.warning("job lost", extra=self.about(why=f"the log says {last.state if last else 'nothing'}"))
        if last is not None and last.state in FINAL_STATES:
            await self._follow(StartVerdict.SETTLE, last)
        return False

    async def _write(self, state: str, body: bytes, expect: int, keep: float | None = None) -> int:
        job = self.job
        return await self.tools.broker.event_log.put(
            job.queue, job.id, state, body, expect=expect, keep=keep, until=self.holds
        )

    async def _read(self, sequence: int) -> LoggedEvent | None:
        """The event that stands in our way, or a later one: what is written next expects what is read."""
        log = self.tools.broker.event_log
        return await log.last_run(self.job.queue, self.job.id, least=sequence) if sequence else None

    async def _other_waits(self, last: LoggedEvent | None) -> bool:
        if last is None or last.state != "running":
            return False
        if (last.current_queue, last.event.message) == (self.delivery.queue, self.delivery.sequence):
            return False
        if last.current_queue == self.delivery.queue and last.event.message == self.delivery.instead:
            return False  # it may stand, but nobody gets it any more
        return await self.tools.broker.jobs.stands(last.current_queue, last.event.message)

    def _handing(self) -> DeliveryInfo:
        return DeliveryInfo(
            self.tools.name, self.delivery.sequence, self.delivery.number, self.job.quarantine
        )
