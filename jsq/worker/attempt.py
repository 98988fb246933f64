"""One delivery, from its message to its end: the heart of a worker, as a list of steps.

Recorded before settled: a crash between the two brings the delivery back, finds the record final, and settles
it without running. Work whose lease has lapsed writes nothing at all: the job already belongs to another.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from jsq.app import App
from jsq.broker import Broker, Delivery
from jsq.broker.answers import WrongSequence
from jsq.broker.streams import MAX_DELIVER
from jsq.codec import envelope, events
from jsq.context import Context
from jsq.errors import (
    BadArguments,
    BadEnvelope,
    BadName,
    BadResult,
    BrokerError,
    LeaseLost,
    NewerEnvelope,
    UnknownTask,
)
from jsq.event import FINAL, Event, Handing, LoggedEvent, Verdict, judge_start
from jsq.executors import Execution, LoopExecutor, Returned, ThreadExecutor
from jsq.job import Job, check_id
from jsq.outcome import Failed, Fault, Interrupted, Outcome, Succeeded, TaskTimeout, TryAgain, describe, judge
from jsq.settings import QueueSettings
from jsq.task import AnyTask, Declaration
from jsq.worker.progress import Progress
from jsq.worker.record import begun, ended, kept_for, state_of, terms_of, told
from jsq.worker.telling import tell
from jsq.worker.watcher import Watcher

log = logging.getLogger("jsq.job")

UNWIND = 5.0
"""Seconds a cancelled task gets to clean up; then it is left to itself."""

ROOM_IN_RESULT = 16_384
"""Bytes of an event left for all but the result."""

LOUDNESS = {Failed: logging.ERROR, TryAgain: logging.WARNING}
"""How loud an outcome is told; the others at info."""

NEWER_DELAY = 30.0
"""Seconds before a job that only a newer release can read is offered again."""

_untold: contextlib.nullcontext[None] = contextlib.nullcontext()

WORN_OUT = MAX_DELIVER // 2
"""Deliveries after which a message is replaced by a new one: at `MAX_DELIVER` the server would hide it."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What the attempts of a worker share."""

    name: str
    app: App
    broker: Broker
    queues: dict[str, QueueSettings]
    watcher: Watcher
    loop: LoopExecutor
    threads: ThreadExecutor


class Attempt:
    """A delivery in our hands."""

    job: Job
    terms: Declaration
    running: bytes
    recorded: Event

    def __init__(self, delivery: Delivery, tools: Tools) -> None:
        self.delivery = delivery
        self.tools = tools
        self.token = 0
        self.task: asyncio.Task[None] | None = None
        self.execution: Execution | None = None
        self.stopping: Outcome | LeaseLost | None = None
        self.turn: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Take the delivery to its end. Raises nothing that one job could cause."""
        try:
            if await self.unseal() and await self.start():
                began = time.monotonic()
                outcome = await self.perform()
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

    def stop(self, why: Outcome | LeaseLost) -> None:
        """End the attempt early, with this outcome."""
        if self.stopping is None:
            self.stopping = why
            self.wake()

    def wake(self) -> None:
        """See to the running function: it has ended, its time is up, or we are to stop."""
        if self.turn is not None and not self.turn.done():
            self.turn.set_result(None)

    # -- the steps ---------------------------------------------------------------------------------------

    async def unseal(self) -> bool:
        """Read the job. What is no job is put away with its raw bytes; a newer release's is handed back."""
        delivery = self.delivery
        try:
            self.job = envelope.unseal(
                delivery.headers,
                delivery.payload,
                id=check_id(delivery.id),
                queue=delivery.queue,
                priority=delivery.priority,
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
        self.terms = terms_of(self.job, self.tools.app.tasks.get(self.job.task))
        return True

    async def start(self) -> bool:
        """Record that the attempt begins. False if the log says that there is nothing to do here."""
        if self.delivery.number > WORN_OUT:
            return await self._renew()
        expect = self.job.after
        while True:
            self.check_lease()
            self.running = events.encode_running(self.job, self._handing())
            try:
                self.token = await self._write("running", self.running, expect)
            except WrongSequence as refused:
                expect = refused.last
            else:
                break
            last = await self._read(expect)
            verdict = judge_start(last, self._handing(), other_waits=await self._other_waits(last))
            if verdict is Verdict.ADOPT:
                self.token = expect
                break
            if not await self._follow(verdict, last):
                return False
        self.tools.watcher.started(self.job, max(0.0, time.time() - self.delivery.stored))
        if log.isEnabledFor(logging.DEBUG):
            log.debug("job started", extra=self.about(token=self.token))
        return True

    async def perform(self) -> Outcome:
        """Run the task, and judge how it ended."""
        try:
            task = self.tools.app.find(self.job.task)
            args, named = task.signature.unpack(self.job.arguments)
        except UnknownTask as error:
            return Failed("unknown_task", describe(error))
        except BadArguments as error:
            return Failed("bad_arguments", describe(error))
        try:
            return await self._supervise(task, args, named)
        except LeaseLost:
            raise
        except Exception as error:
            return judge(error, failures=self.job.failures, policy=self.terms.retry)

    async def record(self, outcome: Outcome) -> bool:
        """Write the outcome on top of our own token. False if the log has moved on without us."""
        self.check_lease()
        keep_result = self.terms.keep_result
        state = state_of(outcome)
        keep = kept_for(outcome, keep_result=keep_result, lease=self.tools.queues[self.job.queue].lease)
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
        self.recorded = ended(running, outcome, token=self.token, now=datetime.now(UTC))
        return events.encode(self.recorded)

    async def settle(self, outcome: Outcome) -> None:
        """End the delivery: the record stands, so what follows may be done again, or by another."""
        match outcome:
            case Failed():
                await self.bury(self.recorded)
            case TryAgain():
                await self.promise(self.recorded.due, self.recorded.failures)
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
        """Write the dead letter of a job whose failure is recorded."""
        await self.tools.broker.dead.write(self.job, failed, until=self.holds)

    async def promise(self, due: datetime | None, failures: int) -> None:
        """See that the job's next attempt stands, after so many failures."""
        job = replace(self.job, after=self.token, failures=failures)
        await self.tools.broker.jobs.keep_promise(job, due, until=self.holds)

    def send(self, word: bytes) -> None:
        """Settle the delivery, unless it may be another's by now."""
        if self.holds():
            self.tools.broker.wire.send(self.delivery.reply, word)

    def holds(self) -> bool:
        return not self.delivery.lease.lapsed()

    def check_lease(self) -> None:
        if not self.holds():
            raise LeaseLost(f"the lease of job {self.job.id} lapsed")

    def about(self, **more: object) -> dict[str, object]:
        """What every line about this job carries."""
        job = self.job
        return {"job": job.id, "task": job.task, "queue": job.queue, "attempt": job.attempt, **more}

    # -- parts of unseal and start -----------------------------------------------------------------------

    async def _put_away(self, why: str) -> None:
        log.error("message put away", extra=self.about(why=why))
        await self.tools.broker.dead.write_raw(self.delivery, "bad_envelope", why)
        self.send(b"+ACK")

    async def _renew(self) -> bool:
        """Give a job that was handed over very often a new message, in place of the worn one."""
        await self.tools.broker.jobs.put_later(self.job, None, until=self.holds)
        self.send(b"+ACK")
        return False

    async def _follow(self, verdict: Verdict, last: LoggedEvent | None) -> bool:
        """Do what the log demands. True if the attempt may be started on top of it."""
        if last is not None:
            self.job = replace(self.job, failures=last.event.failures, crashes=last.event.crashes)
            self.token = last.sequence
        match verdict:
            case Verdict.START:
                return True
            case Verdict.TAKE_OVER:
                return await self._take_over()
            case Verdict.KEEP_PROMISE if last is not None:
                await self.promise(last.event.due, last.event.failures)
            case Verdict.SETTLE if last is not None and last.state == "failed":
                await self.bury(last.event)
            case Verdict.LET_GO:
                return False
        self.send(b"+ACK")
        log.info("delivery settled", extra=self.about(why=verdict.value))
        return False

    async def _take_over(self) -> bool:
        """Count a crash. A job that has taken down too many workers is put away before it runs again."""
        self.job = replace(self.job, crashes=self.job.crashes + 1)
        self.tools.watcher.crashed(self.job)
        log.warning("job taken over", extra=self.about(crashes=self.job.crashes))
        if self.job.crashes < self.tools.queues[self.job.queue].max_crashes:
            return True
        outcome = Failed(
            "crashed", Fault(f"{self.job.crashes} workers died or fell silent while they ran it")
        )
        if await self.record(outcome):
            await self.settle(outcome)
            self.tell(outcome, 0.0)
        return False

    # -- parts of perform --------------------------------------------------------------------------------

    async def _supervise(self, task: AnyTask, args: list[object], named: dict[str, object]) -> Outcome:
        """Run the function until it ends, its time is up, or we are told to stop."""
        if self.stopping is not None:
            return self._told_to(self.stopping)
        with self._context(task, args) as context:
            executor = self.tools.loop if task.is_async else self.tools.threads
            self.turn = asyncio.get_running_loop().create_future()
            call = functools.partial(task.function, *args, **named)
            self.execution = execution = executor.start(call, self.wake)
            await self._wait(self.turn)
            if execution.end.done():
                return self._judged(task, execution)
            if context is not None:
                context.cancelled = True
            await self._cut_short(execution)
        if self.stopping is None:
            raise TaskTimeout(f"it ran longer than its timeout of {self.terms.timeout:g} s")
        why = self._told_to(self.stopping)
        return (
            self._judged(task, execution) if isinstance(why, Interrupted) and ended_well(execution) else why
        )

    def _context(
        self, task: AnyTask, args: list[object]
    ) -> contextlib.AbstractContextManager[Context | None]:
        """What the task may know and say, if it asks for it: the first of its arguments."""
        return self._told_of(args) if task.takes_context else _untold

    @contextlib.contextmanager
    def _told_of(self, args: list[object]) -> Iterator[Context]:
        progress = Progress(self._note)
        context = Context(self.job, token=self.token, worker=self.tools.name, progress=progress.tell)
        args.insert(0, context)
        try:
            yield context
        finally:
            progress.close()

    async def _wait(self, turn: asyncio.Future[None]) -> None:
        """Wait until the function has ended, its time is up, or we are told to stop."""
        limit = self.terms.timeout
        if limit is None:
            await turn
            return
        late = asyncio.get_running_loop().call_later(limit, self.wake)
        try:
            await turn
        finally:
            late.cancel()

    def _told_to(self, why: Outcome | LeaseLost) -> Outcome:
        """The outcome we were told to come to."""
        if isinstance(why, LeaseLost):
            raise why
        return why

    async def _cut_short(self, execution: Execution) -> None:
        """Have the function end, or leave it to itself."""
        if execution.interrupt():
            await asyncio.wait((execution.end,), timeout=UNWIND)
        if not execution.end.done():
            log.warning(
                "task does not end", extra=self.about(why="it is left to itself; its slot waits for it")
            )

    def _judged(self, task: AnyTask, execution: Execution) -> Outcome:
        """What a function that has ended came to, whatever it raised."""
        end = execution.end.result()
        if not isinstance(end, Returned):
            return judge(end.error, failures=self.job.failures, policy=self.terms.retry)
        try:
            result = task.signature.pack_result(end.value)
        except BadResult as error:
            return Failed("bad_result", describe(error))
        most = self.tools.broker.wire.max_payload - ROOM_IN_RESULT
        if len(result) > most:
            told = f"{task.name} returned {len(result):,} bytes, and {most:,} can be kept: "
            return Failed("bad_result", Fault(told + "store it elsewhere and return its address"))
        return Succeeded(result)

    def _note(self, fraction: float, text: str) -> None:
        event = replace(begun(self.job, self._handing()), token=self.token, progress=fraction, text=text)
        self.tools.broker.log.note_progress(self.job.queue, self.job.id, event, token=self.token)

    # -- the log -----------------------------------------------------------------------------------------

    async def _refused(self, last: LoggedEvent | None) -> bool:
        """Our outcome was not the one. If the job has another final one, the delivery is done with."""
        self.tools.watcher.lost(self.job)
        log.warning("job lost", extra=self.about(why=f"the log says {last.state if last else 'nothing'}"))
        if last is not None and last.state in FINAL:
            await self._follow(Verdict.SETTLE, last)
        return False

    async def _write(self, state: str, body: bytes, expect: int, keep: float | None = None) -> int:
        job = self.job
        return await self.tools.broker.log.put(
            job.queue, job.id, state, body, expect=expect, keep=keep, until=self.holds
        )

    async def _read(self, sequence: int) -> LoggedEvent | None:
        """The event that stands in our way. A replica may be behind: then the log is asked again."""
        if sequence == 0:
            return None
        broker = self.tools.broker
        found = await broker.log.at(sequence)
        return found or await broker.log.last_run(self.job.queue, self.job.id)

    async def _other_waits(self, last: LoggedEvent | None) -> bool:
        if last is None or last.state != "running" or last.event.message == self.delivery.sequence:
            return False
        return await self.tools.broker.jobs.stands(self.job.queue, last.event.message)

    def _handing(self) -> Handing:
        return Handing(self.tools.name, self.delivery.sequence, self.delivery.number)


def ended_well(execution: Execution) -> bool:
    """Whether a function that was asked to end had ended by itself, with a value."""
    return execution.end.done() and isinstance(execution.end.result(), Returned)
