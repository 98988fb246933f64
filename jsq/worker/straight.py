"""The straight path of a plain job: one flat coroutine from its message to its acknowledgement.

A plain job is the first delivery of a job whose message has no headers besides its order, and which has no
stages. The common parts of such jobs of one task are prepared once, in a plan. The straight path makes the
same writes as `jsq.worker.attempt`, with the same encoders. In unusual cases (a refusal, an error, no reply
of the server, a stop, a lapsed lease) the attempt continues there, and that path adopts the revisions written
here.
"""

import asyncio
import dataclasses
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from jsq.broker import Delivery
from jsq.broker.jobs.records import MAX_RECORD_RESULT, RECORD_SECONDS, own_expectation_lines
from jsq.codec import revisions
from jsq.codec.subject_token import STEM
from jsq.errors import BadArguments, BadEnvelope, BadName, BadResult, BrokerError, LeaseLost, NewerEnvelope
from jsq.executors.base import FunctionEnd, Raised, Returned
from jsq.executors.labels import LABEL_SOURCE
from jsq.model.job import Job, Priority
from jsq.model.outcome import Interrupted, Outcome, Succeeded
from jsq.task import AnyTask
from jsq.transport.replies import HEADERS_END, HEADERS_START, Reply, acknowledged
from jsq.transport.wire import ACK
from jsq.worker.attempt import Attempt, option_shape
from jsq.worker.resources import Resources
from jsq.worker.run import EVENT_OVERHEAD, TaskRun, ended_well, limit_of, outcome_of
from jsq.worker.settle import end_attempt, report_outcome
from jsq.worker.stages.plans import MOST_PLANS, StagePlan, StagePlans
from jsq.worker.start import decode_delivery, note_start

log = logging.getLogger("jsq.job")

_ORDER, _LINE_END = b"Jsq-Job: ", b"\r\n"


class AttemptOwner(Protocol):
    """The owner of the attempts of a worker: its dispatcher."""

    plans: StagePlans
    closing: bool

    def end(self, attempt: Attempt) -> None: ...

    def conclude(self, attempt: Attempt, steps: Callable[[], Any]) -> None: ...


class StraightPlan:
    """The common parts of plain jobs of one order and one priority on one queue. `job` is such a job."""

    def __init__(
        self, owner: AttemptOwner, resources: Resources, plan: StagePlan, task: AnyTask, job: Job
    ) -> None:
        broker, options = resources.broker, plan.options
        self.owner = owner
        self.stage_plan = plan
        self.job = job
        self.wire, self.records, self.clock = broker.wire, broker.records, broker.wire.clock
        self.key_prefix = broker.subjects.record(job.queue, STEM)
        self.running = revisions.running_format(job, resources.name)
        self.first_headers = (
            HEADERS_START + own_expectation_lines(0, resources.timings.start_ttl) + HEADERS_END
        )
        self.start_ttl = resources.timings.start_ttl
        self.keeps_arguments, self.keeps_result = options.keep_arguments, options.keep_result > 0
        apart = 0 < options.keep_result < RECORD_SECONDS
        self.largest = 0 if apart else min(MAX_RECORD_RESULT, broker.wire.max_payload - EVENT_OVERHEAD)
        self.limit, self.hard_timeout = limit_of(options), options.hard_timeout
        self.function: Callable[..., Any] | None = (
            task.function if task.is_async and not task.location else None
        )
        self.unpack, self.pack_result = task.signature.unpack, task.signature.pack_result
        self.unwind = resources.timings.unwind
        self.reports = resources.observer.observes_jobs or log.isEnabledFor(logging.INFO)
        self.reports_start = resources.observer.observes_jobs or log.isEnabledFor(logging.DEBUG)


class StraightPlans(dict[tuple[str, Priority, bytes], StraightPlan | None]):
    """The plans of one worker, by queue, priority and order; None for jobs that take the general path."""

    def __init__(self, owner: AttemptOwner, resources: Resources) -> None:
        super().__init__()
        self._owner = owner
        self._resources = resources

    def find(self, delivery: Delivery) -> StraightPlan | None:
        """The plan of a delivery, if its job is plain."""
        raw = delivery.raw
        if delivery.number != 1 or raw.count(b"Jsq-") != 1 or not delivery.token:
            return None
        start = raw.find(_ORDER)
        key = delivery.queue, delivery.priority, raw[start : raw.find(_LINE_END, start)]
        try:
            return self[key]
        except KeyError:
            if len(self) >= MOST_PLANS:
                self.clear()
            plan = self[key] = self._make(delivery)
            return plan

    def _make(self, delivery: Delivery) -> StraightPlan | None:
        try:
            job = decode_delivery(delivery)
        except (BadEnvelope, BadName, NewerEnvelope):
            return None
        shape, plans = option_shape(job), self._owner.plans
        plans.derived = self  # cleared with them
        plan = plans.get((delivery.queue, job.task, shape)) or plans.plan(job, delivery.queue, shape)
        if plan.task is None or plan.stages:
            return None
        return StraightPlan(self._owner, self._resources, plan, plan.task, job)


class DirectExecution:
    """A function that runs in the asyncio task of its attempt, and must end early."""

    def __init__(self, runner: asyncio.Task[Any]) -> None:
        self.end: asyncio.Future[FunctionEnd] = asyncio.get_running_loop().create_future()
        self._runner = runner

    def interrupt(self) -> bool:
        self._runner.cancel()
        return True

    def kill(self) -> bool:
        return False


class DirectRun(TaskRun):
    """The function of a plain job, which is awaited in the asyncio task of its attempt.

    If it must end early, another asyncio task concludes the attempt.
    """

    leave: "functools.partial[None] | None" = None

    def labels(self) -> dict[str, object]:
        """The labels of the log lines of the function, while it runs."""
        if self.leave is None:
            return {}
        attempt, plan, _ = self.leave.args
        return {"job": attempt.delivery.id, "task": plan.job.task, "attempt": plan.job.attempt}

    def stop(self, why: Outcome | LeaseLost) -> None:
        """End early, with this outcome."""
        super().stop(why)
        if self.leave is not None:
            self.leave()

    def call(self, attempt: Attempt, plan: StraightPlan) -> None:
        """Note that the function is called now. If its time is up, or it is stopped, the attempt is left."""
        self.leave = functools.partial(leave_straight, attempt, plan, self)
        if plan.limit is not None:
            self._started_at, self._hard_timeout = time.monotonic(), plan.hard_timeout
            self._timer = asyncio.get_running_loop().call_later(plan.limit, self.leave)

    def ended(self, end: FunctionEnd) -> bool:
        """Note that the function has ended. False if another asyncio task concludes the attempt."""
        self.leave = None  # it refers to the attempt, which refers to this
        if self._timer is not None:
            self._timer.cancel()
        if isinstance(self.execution, DirectExecution):
            self.execution.end.set_result(end)
            return False
        return True


async def run_straight(attempt: Attempt, plan: StraightPlan) -> None:
    """Take the delivery of a plain job to its end. Raises no error that one job could cause."""
    run, ended = attempt.function, True
    end: FunctionEnd | None = None
    assert isinstance(run, DirectRun), "the dispatcher gives it one"
    try:
        try:
            started = await send_start(attempt, plan)
            attempt.token = acknowledged(started.payload, "") if isinstance(started, Reply) else started
        except BrokerError:
            await attempt.run()  # reads the written revision, and continues from it
            return
        arguments = prepare_call(attempt, plan, run)
        if arguments is None:
            await attempt.carry_out(attempt.perform_started)
            return
        assert plan.function is not None, "other functions take the general path"
        began = time.monotonic()
        run.call(attempt, plan)
        LABEL_SOURCE.set(run)
        try:
            end = Returned(await plan.function(*arguments[0], **arguments[1]))
        except BaseException as error:  # a user's function may raise anything
            if plan.owner.closing and run.execution is None:
                raise
            end = Raised(error)
        ended = run.ended(end)
        if not ended:
            return
        try:
            recorded = await send_success(attempt, plan, end)
            if isinstance(recorded, Reply):
                acknowledged(recorded.payload, "")
        except (BadResult, BrokerError, GeneralPath):
            await attempt.carry_out(functools.partial(end_otherwise, attempt, plan, end, began))
            return
        plan.wire.send(attempt.delivery.reply, ACK)
        if plan.reports:
            adopt(attempt, plan)
            report_outcome(attempt, "succeeded", Succeeded(b""), time.monotonic() - began)
    finally:
        end = None  # an exception in it refers to this frame
        if ended:
            plan.owner.end(attempt)


class GeneralPath(Exception):
    """The attempt continues on the general path."""


def send_start(attempt: Attempt, plan: StraightPlan) -> Awaitable[Reply | int]:
    """Send the write of the start; returns its reply or sequence. Raises `BrokerError`."""
    delivery = attempt.delivery
    attempt.started = started = int(1000 * plan.clock.now())
    attempt.running = body = plan.running % (
        delivery.sequence,
        delivery.number,
        int(1000 * delivery.stored),
        started,
    )
    if plan.records.direct:
        return plan.wire.begin(plan.key_prefix + delivery.token, body, plan.first_headers)
    return plan.records.put(plan.job.queue, delivery.id, body, expect=0, ttl=plan.start_ttl)


def prepare_call(
    attempt: Attempt, plan: StraightPlan, run: DirectRun
) -> tuple[list[Any], dict[str, Any]] | None:
    """The arguments of the function; None if the general path must call it, or refuse the call."""
    if plan.reports_start:
        adopt(attempt, plan)
        note_start(attempt)
    if plan.function is not None and run.stopping is None:
        try:
            return plan.unpack(attempt.delivery.payload)
        except BadArguments:
            pass
    adopt(attempt, plan)
    return None


def send_success(attempt: Attempt, plan: StraightPlan, end: FunctionEnd) -> Awaitable[Reply | int]:
    """Send the record of a success; returns its reply or sequence.

    Raises `BrokerError`; raises `BadResult` or `GeneralPath` for anything but a plain success.
    """
    delivery, token, ttl = attempt.delivery, attempt.token, plan.stage_plan.success_ttl
    if not isinstance(end, Returned) or delivery.lease.lapsed():
        raise GeneralPath
    result = plan.pack_result(end.value)
    if len(result) > plan.largest:
        raise GeneralPath
    arguments = plan.stage_plan.option_member
    if plan.keeps_arguments:
        arguments += revisions.argument_members(delivery.payload)
    body = revisions.encode_succeeded(attempt.running, token, arguments, result if plan.keeps_result else b"")
    if plan.records.direct:
        headers = HEADERS_START + own_expectation_lines(token, ttl) + HEADERS_END
        return plan.wire.begin(plan.key_prefix + delivery.token, body, headers)
    queue, holds = plan.job.queue, attempt.has_lease
    return plan.records.put(queue, delivery.id, body, expect=token, ttl=ttl, while_=holds)


def adopt(attempt: Attempt, plan: StraightPlan) -> None:
    """Give an attempt the values that the general path reads from each message."""
    delivery = attempt.delivery
    attempt.adopt(dataclasses.replace(plan.job, id=delivery.id, arguments=delivery.payload), plan.stage_plan)


async def end_otherwise(attempt: Attempt, plan: StraightPlan, end: FunctionEnd, began: float) -> None:
    """End an attempt whose function did not simply return, or whose success could not be recorded."""
    adopt(attempt, plan)
    assert attempt.task is not None, "a plan is that of a task"
    outcome = outcome_of(end, attempt.resources, attempt.task, attempt.job, attempt.options)
    await end_attempt(attempt, outcome, time.monotonic() - began)


def leave_straight(attempt: Attempt, plan: StraightPlan, run: DirectRun) -> None:
    """End the function of an attempt early, and conclude the attempt in another asyncio task."""
    if run.execution is None and attempt.runner is not None:
        run.execution = DirectExecution(attempt.runner)
        plan.owner.conclude(attempt, functools.partial(conclude_straight, attempt, plan, run, run.execution))


async def conclude_straight(
    attempt: Attempt, plan: StraightPlan, run: DirectRun, execution: DirectExecution
) -> None:
    """Interrupt the function of an attempt, and record the outcome."""
    began = time.monotonic()
    adopt(attempt, plan)
    assert attempt.task is not None, "a plan is that of a task"
    await run.interrupt(execution)
    if execution.end.done() and isinstance(run.stopping, Interrupted) and ended_well(execution):
        end = execution.end.result()
        outcome = outcome_of(end, attempt.resources, attempt.task, attempt.job, attempt.options)
    else:
        outcome = run.cut_short_outcome(attempt.job, attempt.options)
    await end_attempt(attempt, outcome, time.monotonic() - began)
