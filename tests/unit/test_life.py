"""A model of the life of one job: a record, a queue, and workers that die, stall and lose replies.

The decisions are those of jsq: `judge_start`, the table of transitions, and the events of outcomes. The
server and the order of steps belong to the model, which has one queue: no job moves to another one.

Hypothesis searches for an order in which a job is lost, ends twice, starts after a confirmed cancel, or
starts as it was before an edit. The same search detects faulty models: a log that accepts every write, or a
wrong verdict.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jsq.model.job import Job
from jsq.model.outcome import (
    Cancelled,
    Expired,
    Failed,
    Fault,
    Interrupted,
    Outcome,
    Succeeded,
    TryAgain,
    Waiting,
)
from jsq.model.revision import (
    EDITED,
    FINAL_STATES,
    TRANSITIONS,
    DeliveryInfo,
    Revision,
    StartVerdict,
    StoredRevision,
    judge_start,
)
from jsq.worker.transitions import (
    PAST_DEADLINE,
    outcome_revision,
    running_revision,
    state_of,
    unstarted_revision,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
WORKERS = st.sampled_from(["w1", "w2", "w3"])
MAX_CRASHES = 3
OUTCOMES: list[Outcome] = [
    Succeeded(b"1"),
    Failed("error", Fault("ValueError: no")),
    TryAgain(1.0, Fault("ValueError: again")),
    TryAgain(1.0, Fault(""), counts_as_failure=False),
    Interrupted(),
    Cancelled(),
    Expired(Fault("its deadline passed while it ran")),
    Waiting(1.0),
]


@dataclass
class Message:
    """The message of the job, on its queue or due later."""

    job: Job
    deliveries: int = 0
    holder: str = ""


@dataclass
class HeldDelivery:
    """A worker with a delivery of the job, in a phase between its start and its end."""

    info: DeliveryInfo
    job: Job
    expect: int
    phase: str = "got"
    token: int = 0
    lapsed: bool = False
    outcome: Outcome | None = None
    recorded: Revision | None = None


@dataclass
class Server:
    """The durable state: the record, the queue, the message that is due later, and the dead letter.

    A failure and its dead letter are one write, and so are a retry of a dead letter and its removal. With
    `apart` they are separate writes.
    """

    compares: bool = True
    apart: bool = False
    log: list[StoredRevision] = field(default_factory=list)
    ready: dict[int, Message] = field(default_factory=dict)
    later: Message | None = None
    dead_letter: bool = False
    sequence: int = 0

    @property
    def last(self) -> StoredRevision | None:
        return self.log[-1] if self.log else None

    @property
    def at(self) -> int:
        return self.log[-1].sequence if self.log else 0

    @property
    def ended(self) -> bool:
        return bool(self.log) and self.log[-1].state in FINAL_STATES

    def write(self, event: Revision, expect: int) -> int:
        """Store an event on top of `expect`; 0 if the log has moved on."""
        if self.compares and expect != self.at:
            return 0
        if not self.apart:
            self.dead_letter = event.state == "failed"
        self.log.append(StoredRevision("default", "j1", self.next(), NOON, event))
        return self.at

    def put_ready(self, job: Job) -> None:
        self.ready[self.next()] = Message(job)

    def put_later(self, job: Job) -> None:
        self.later = self.later or Message(job)

    def next(self) -> int:
        self.sequence += 1
        return self.sequence


@dataclass(frozen=True)
class Reading:
    """A job that has not started, as an editor has read it: its revision, and its message on the queue."""

    revision: int
    message: int | None


class Life(RuleBasedStateMachine):
    """Everything that can happen to a job, one step at a time."""

    compares = True
    apart = False
    swapped: ClassVar[Mapping[StartVerdict, StartVerdict]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.server = Server(self.compares, self.apart)
        self.held: dict[str, HeldDelivery] = {}
        self.ran: set[int] = set()
        self.replaying: StoredRevision | None = None
        self.cancelling: StoredRevision | None = None
        self.cancel_read = False
        self.editing: Reading | None = None
        self.server.put_ready(Job("j1", "mail", "default"))

    # -- the server ----------------------------------------------------------------------------------------

    @precondition(lambda self: any(not message.holder for message in self.server.ready.values()))
    @rule(worker=WORKERS)
    def deliver(self, worker: str) -> None:
        worker = next((name for name in (worker, "w1", "w2", "w3") if name not in self.held), "")
        if not worker:
            return
        sequence, message = next((k, m) for k, m in self.server.ready.items() if not m.holder)
        message.deliveries += 1
        message.holder = worker
        previous = message.job.previous_sequence
        info = DeliveryInfo(worker, sequence, message.deliveries, previous=previous)
        self.held[worker] = HeldDelivery(info, message.job, previous)

    @precondition(lambda self: self.held)
    @rule(worker=WORKERS)
    def lapse(self, worker: str) -> None:
        """The lease expires. Writes of the worker may still arrive."""
        if delivery := self.held.get(worker):
            delivery.lapsed = True
            self.free(delivery)

    @precondition(lambda self: self.held)
    @rule(worker=WORKERS)
    def die(self, worker: str) -> None:
        if delivery := self.held.pop(worker, None):
            self.free(delivery)

    @precondition(lambda self: self.server.later is not None)
    @rule()
    def fire(self) -> None:
        assert self.server.later is not None
        self.server.put_ready(self.server.later.job)
        self.server.later = None

    def free(self, delivery: HeldDelivery) -> None:
        message = self.server.ready.get(delivery.info.message)
        if message is not None and message.holder == delivery.info.worker:
            message.holder = ""

    # -- a worker ------------------------------------------------------------------------------------------

    @precondition(lambda self: self.in_phase("got"))
    @rule(worker=WORKERS, answered=st.booleans(), late=st.sampled_from([False] * 9 + [True]))
    def start(self, worker: str, answered: bool, late: bool) -> None:
        """Start the job, or record that its deadline has passed."""
        delivery = self.held_in(worker, "got")
        if delivery is None:
            return
        event = unstarted_revision(delivery.job, delivery.info) if late else started(delivery)
        edited = self.server.at if self.edited() else 0
        token = self.server.write(event, delivery.expect)
        assert not (token and edited) or late or delivery.job.previous_sequence == edited, "an edit is lost"
        if token and answered and late:
            delivery.outcome, delivery.phase = PAST_DEADLINE, "done"
        elif token and answered:
            delivery.token, delivery.phase = token, "running"
        elif not token:
            self.refused_start(delivery)

    def refused_start(self, delivery: HeldDelivery) -> None:
        server, last = self.server, self.server.last
        other = last is not None and last.revision.message != delivery.info.message
        waits = other and last is not None and last.revision.message in server.ready
        verdict = judge_start(last, delivery.info, other_waits=waits)
        verdict = self.swapped.get(verdict, verdict)
        delivery.expect = server.at
        if last is not None:
            delivery.job = with_counts(delivery.job, last.revision)
        match verdict:
            case StartVerdict.RESUME:
                delivery.token, delivery.phase = server.at, "running"
            case StartVerdict.START:
                pass
            case StartVerdict.RECLAIM:
                self.reclaim(delivery)
            case StartVerdict.ABANDON:
                self.settle(delivery, acknowledged=False)
            case _:
                if verdict is StartVerdict.ENSURE_NEXT_ATTEMPT and last is not None:
                    self.ensure_next_attempt(with_counts(delivery.job, last.revision, after=last.sequence))
                self.settle(delivery, acknowledged=True)

    def reclaim(self, delivery: HeldDelivery) -> None:
        delivery.job = with_counts(delivery.job, started(delivery), crashes=delivery.job.crashes + 1)
        if delivery.job.crashes >= MAX_CRASHES:
            delivery.token, delivery.phase = delivery.expect, "ended"
            delivery.outcome = Failed("crashed", Fault("its workers died"))

    @precondition(lambda self: self.in_phase("running"))
    @rule(worker=WORKERS, outcome=st.sampled_from(OUTCOMES))
    def run(self, worker: str, outcome: Outcome) -> None:
        if delivery := self.held_in(worker, "running"):
            self.ran.add(delivery.token)
            delivery.outcome, delivery.phase = outcome, "ended"

    @precondition(lambda self: self.in_phase("ended"))
    @rule(worker=WORKERS, answered=st.booleans())
    def record(self, worker: str, answered: bool) -> None:
        delivery = self.held_in(worker, "ended")
        if delivery is None:
            return
        assert delivery.outcome is not None
        event = outcome_revision(started(delivery), delivery.outcome, token=delivery.token, now=NOON)
        written = self.server.write(event, delivery.token)
        if written and not answered:
            return
        last = self.server.last
        ours = last is not None and last.revision.token == delivery.token and last.state == event.state
        if not written and not ours:
            delivery.outcome = None
            self.settle(delivery, acknowledged=self.server.ended and not delivery.lapsed)
            return
        delivery.token, delivery.recorded, delivery.phase = written or self.server.at, event, "recorded"

    @precondition(lambda self: self.in_phase("recorded"))
    @rule(worker=WORKERS)
    def follow_up(self, worker: str) -> None:
        """Store the next attempt or the dead letter of the record, before the delivery is settled."""
        delivery = self.held_in(worker, "recorded")
        if delivery is None:
            return
        assert delivery.recorded is not None
        if isinstance(delivery.outcome, TryAgain | Waiting):
            self.ensure_next_attempt(with_counts(delivery.job, delivery.recorded, after=delivery.token))
        if isinstance(delivery.outcome, Failed) and self.server.apart:
            self.server.dead_letter = True
        delivery.phase = "done"

    @precondition(lambda self: self.in_phase("done"))
    @rule(worker=WORKERS)
    def settle_recorded(self, worker: str) -> None:
        """The acknowledgement arrives, perhaps so late that another worker has the message."""
        if delivery := self.held_in(worker, "done"):
            self.settle(delivery, acknowledged=not isinstance(delivery.outcome, Interrupted))

    def settle(self, delivery: HeldDelivery, *, acknowledged: bool) -> None:
        self.free(delivery)
        del self.held[delivery.info.worker]
        if acknowledged:
            self.server.ready.pop(delivery.info.message, None)

    def ensure_next_attempt(self, job: Job) -> None:
        self.server.put_later(job)
        last = self.server.last
        if last is not None and last.sequence != job.previous_sequence and last.state in FINAL_STATES:
            self.server.later = None

    def held_in(self, worker: str, phase: str) -> HeldDelivery | None:
        """A delivery in that phase: that of the worker if possible, so that most steps act."""
        found = [delivery for delivery in self.held.values() if delivery.phase == phase]
        return next(
            (delivery for delivery in found if delivery.info.worker == worker), found[0] if found else None
        )

    def in_phase(self, phase: str) -> bool:
        return any(delivery.phase == phase for delivery in self.held.values())

    # -- submitter and operator ----------------------------------------------------------------------------

    @rule()
    def submit_again(self) -> None:
        """A submitter whose reply was lost submits again, perhaps long after the job has ended."""
        if not self.server.ready:
            self.server.put_ready(Job("j1", "mail", "default"))

    @precondition(lambda self: not self.server.ended)
    @rule()
    def begin_cancel(self) -> None:
        self.cancelling, self.cancel_read = self.server.last, True

    @precondition(lambda self: self.cancel_read)
    @rule(dies=st.booleans())
    def cancel(self, dies: bool) -> None:
        """Record the cancel on the revision that was read, then delete the messages, or die in between."""
        self.cancel_read = False
        found = self.cancelling.revision if self.cancelling is not None else Revision("queued", "mail")
        counts = (found.attempt, found.failures, found.crashes)
        event = Revision("cancelled", "mail", *counts, interruptions=found.interruptions)
        expect = self.cancelling.sequence if self.cancelling is not None else 0
        if self.server.write(event, expect) and not dies:
            self.server.ready.clear()
            self.server.later = None

    @precondition(
        lambda self: self.server.dead_letter and self.server.last and self.server.last.state == "failed"
    )
    @rule()
    def begin_dead_letter_retry(self) -> None:
        failed = self.server.at
        if self.server.write(Revision("retrying", "mail", due=NOON, reason="replayed", token=failed), failed):
            self.replaying = self.server.last

    @precondition(lambda self: self.replaying is not None)
    @rule()
    def end_dead_letter_retry(self) -> None:
        """Store the message of a retried dead letter, as the operator or a later sweep does."""
        assert self.replaying is not None
        self.server.put_later(Job("j1", "mail", "default", previous_sequence=self.replaying.sequence))
        self.replaying = None

    @precondition(lambda self: self.server.ended and self.server.last.state != "failed")
    @rule()
    def begin_second_run(self) -> None:
        """An operator runs a job again that has ended, as its record has it."""
        ended = self.server.at
        if self.server.write(Revision("retrying", "mail", due=NOON, reason="replayed", token=ended), ended):
            self.replaying = self.server.last

    @precondition(lambda self: not self.server.log or self.edited())
    @rule()
    def begin_edit(self) -> None:
        message = next((sequence for sequence in reversed(self.server.ready)), None)
        self.editing = Reading(self.server.at, message)

    @precondition(lambda self: self.editing is not None)
    @rule(dies=st.booleans())
    def edit(self, dies: bool) -> None:
        """Record the edited job, then store its message and delete the old one, or die in between."""
        read, self.editing = self.editing, None
        assert read is not None
        event = Revision("queued", "mail", reason=EDITED, token=read.revision)
        if not self.server.write(event, read.revision) or dies:
            return
        job = Job("j1", "mail", "default", previous_sequence=self.server.at)
        if self.server.later is not None:
            self.server.later = Message(job)
        elif read.message in self.server.ready:
            self.server.put_ready(job)
            del self.server.ready[read.message]
        else:
            self.server.put_later(job)

    def edited(self) -> bool:
        """Whether the last revision of the record is an edit."""
        return self.server.last is not None and self.server.last.revision.reason == EDITED

    @precondition(lambda self: self.server.later is not None and self.next_attempt_pending())
    @rule(dies=st.booleans())
    def reschedule(self, dies: bool) -> None:
        """Change the due time of the next attempt in the record, then in its message, or die in between."""
        last = self.server.last
        assert last is not None
        assert self.server.later is not None
        if self.server.write(replace(last.revision, due=NOON), last.sequence) and not dies:
            self.server.later = Message(replace(self.server.later.job, previous_sequence=self.server.at))

    def next_attempt_pending(self) -> bool:
        last = self.server.last
        return last is not None and last.state in ("retrying", "snoozed")

    # -- invariants ----------------------------------------------------------------------------------------

    @invariant()
    def every_event_may_follow_the_one_before(self) -> None:
        states = ["queued", *(event.state for event in self.server.log)]
        for before, after in pairwise(states):
            if before == after in ("retrying", "snoozed"):
                continue  # another due time of the same next attempt
            assert after in TRANSITIONS[before], f"{after} after {before}"

    @invariant()
    def only_jobs_that_ran_have_succeeded(self) -> None:
        for event in self.server.log:
            assert event.state != "succeeded" or event.revision.token in self.ran

    @invariant()
    def an_unfinished_job_has_a_message(self) -> None:
        server = self.server
        assert server.ended or server.ready or server.later or self.replaying, "the job is lost"

    @invariant()
    def a_job_has_a_dead_letter_if_and_only_if_it_failed(self) -> None:
        last = self.server.last
        assert self.server.dead_letter == (last is not None and last.state == "failed"), (
            "dead letter and record differ"
        )

    @invariant()
    def attempts_rise(self) -> None:
        counts = [(event.revision.failures, event.revision.crashes) for event in self.server.log]
        starts = [0, *(n for n, event in enumerate(self.server.log) if is_replay(event.revision))]
        for begin, end in zip(starts, [*starts[1:], len(counts)], strict=True):
            assert counts[begin:end] == sorted(counts[begin:end])

    @invariant()
    def every_interruption_is_counted(self) -> None:
        counted = 0
        for event in (logged.revision for logged in self.server.log):
            if event.state == "interrupted":
                counted += 1
            elif is_replay(event):
                counted = 0
            assert event.interruptions == counted, event.state

    def teardown(self) -> None:
        """Without further faults, one correct worker ends the job, and nothing is left over."""
        for worker in list(self.held):
            self.die(worker)
        if self.replaying is not None:
            self.end_dead_letter_retry()
        for _ in range(60):
            if self.server.later is not None:
                self.fire()
            if not self.server.ready:
                break
            self.deliver("w1")
            self.finish("w1")
        assert self.server.ended, "the job does not end"
        assert not self.server.ready, "a message is left"
        assert self.server.later is None, "a next attempt is left"
        self.a_job_has_a_dead_letter_if_and_only_if_it_failed()

    def finish(self, worker: str) -> None:
        for _ in range(20):
            self.start(worker, True, False)
            self.run(worker, Succeeded(b"1"))
            self.record(worker, True)
            self.follow_up(worker)
            self.settle_recorded(worker)
            if worker not in self.held:
                return


def started(delivery: HeldDelivery) -> Revision:
    return running_revision(delivery.job, delivery.info, submitted=1)


def is_replay(event: Revision) -> bool:
    """Whether an operator ran the job again, so that all counts restart at 0."""
    return event.reason == "replayed"


def with_counts(job: Job, event: Revision, *, after: int | None = None, crashes: int | None = None) -> Job:
    return Job(
        job.id,
        job.task,
        job.queue,
        failures=event.failures,
        crashes=event.crashes if crashes is None else crashes,
        interruptions=event.interruptions,
        previous_sequence=job.previous_sequence if after is None else after,
    )


class SeparateDeadLetter(Life):
    """The model with dead letters that are written after the record of the failure."""

    apart = True


class AcceptsEveryWrite(Life):
    """The model with a log that accepts every write."""

    compares = False


class LosesNextAttempt(Life):
    swapped: ClassVar = {StartVerdict.ENSURE_NEXT_ATTEMPT: StartVerdict.DROP}


class StartsEndedJobs(Life):
    swapped: ClassVar = {StartVerdict.SETTLE: StartVerdict.START}


class DropsJobsOfOthers(Life):
    swapped: ClassVar = {StartVerdict.ABANDON: StartVerdict.DROP}


class DropsCrashedJobs(Life):
    swapped: ClassVar = {StartVerdict.RECLAIM: StartVerdict.DROP}


class StartsOldMessages(Life):
    swapped: ClassVar = {StartVerdict.ENSURE_NEXT_ATTEMPT: StartVerdict.START}


FAULTY = [
    AcceptsEveryWrite,
    SeparateDeadLetter,
    LosesNextAttempt,
    StartsEndedJobs,
    DropsJobsOfOthers,
    DropsCrashedJobs,
    StartsOldMessages,
]

THOROUGH = settings(
    stateful_step_count=60,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

SEARCH = settings(THOROUGH, max_examples=40_000, derandomize=True, phases=[Phase.generate], print_blob=False)
"""Enough examples to find a built-in fault; the counterexample need not be minimal."""

Step = Callable[[Life], None]


def deliver(worker: str) -> Step:
    return lambda life: life.deliver(worker)


def lapse(worker: str) -> Step:
    return lambda life: life.lapse(worker)


def start(worker: str, *, answered: bool = True, late: bool = False) -> Step:
    return lambda life: life.start(worker, answered, late)


def run(worker: str, outcome: Outcome) -> Step:
    return lambda life: life.run(worker, outcome)


def record(worker: str, *, answered: bool = True) -> Step:
    return lambda life: life.record(worker, answered)


def follow_up(worker: str) -> Step:
    return lambda life: life.follow_up(worker)


def settle(worker: str) -> Step:
    def step(life: Life) -> None:
        life.follow_up(worker)
        life.settle_recorded(worker)

    return step


def cancel(life: Life) -> None:
    life.begin_cancel()
    life.cancel(dies=False)


def edit(life: Life, *, dies: bool = False) -> None:
    life.begin_edit()
    life.edit(dies)


def edit_halfway(life: Life) -> None:
    edit(life, dies=True)


CANCELLED_THEN_SUBMITTED_AGAIN = [cancel, Life.submit_again, deliver("w1")]
STARTED_THEN_LAPSED = [deliver("w1"), start("w1"), lapse("w1")]

COUNTEREXAMPLES: dict[type[Life], list[Step]] = {
    AcceptsEveryWrite: [*CANCELLED_THEN_SUBMITTED_AGAIN, start("w1", answered=False)],
    SeparateDeadLetter: [deliver("w1"), start("w1"), run("w1", Failed("error", Fault(""))), record("w1")],
    LosesNextAttempt: [
        *(deliver("w1"), start("w1"), run("w1", TryAgain(1.0, Fault("again"))), lapse("w1")),
        record("w1", answered=False),
    ],
    StartsEndedJobs: [
        *(*CANCELLED_THEN_SUBMITTED_AGAIN, start("w1", answered=False), start("w1", answered=False))
    ],
    DropsJobsOfOthers: [deliver("w2"), lapse("w2"), deliver("w1"), start("w1"), start("w2")],
    DropsCrashedJobs: STARTED_THEN_LAPSED,
    StartsOldMessages: [deliver("w1"), edit_halfway, start("w1"), start("w1")],
}
"""For each faulty model, a counterexample that its search has found.

The search is a test of the proof tier.
"""


def play(life: Life, steps: Iterable[Step]) -> None:
    """Run the steps and check every invariant after each of them, as Hypothesis does."""
    for step in steps:
        step(life)
        life.every_event_may_follow_the_one_before()
        life.only_jobs_that_ran_have_succeeded()
        life.an_unfinished_job_has_a_message()
        life.a_job_has_a_dead_letter_if_and_only_if_it_failed()
        life.attempts_rise()
        life.every_interruption_is_counted()
    life.teardown()


@pytest.mark.parametrize("examples", [100, pytest.param(5_000, marks=pytest.mark.proof)])
def test_no_order_of_crashes_and_lost_replies_loses_a_job_or_ends_it_twice(examples: int) -> None:
    run_state_machine_as_test(Life, settings=settings(THOROUGH, max_examples=examples))


def test_a_job_that_expires_after_its_only_attempt_was_interrupted_keeps_the_count() -> None:
    life = Life()
    interrupted = [deliver("w1"), start("w1"), run("w1", Interrupted()), record("w1"), settle("w1")]

    play(life, [*interrupted, deliver("w2"), start("w2", answered=False), start("w2", late=True)])

    states = [(event.state, event.revision.interruptions) for event in life.server.log]
    assert states == [("running", 0), ("interrupted", 1), ("expired", 1)]


def test_an_edited_job_runs_once_and_runs_again_after_its_end() -> None:
    life = Life()
    succeeds = [start("w1"), run("w1", Succeeded(b"1")), record("w1"), settle("w1")]
    again = [Life.begin_second_run, Life.end_dead_letter_retry, Life.fire, deliver("w1")]

    play(life, [edit, edit, deliver("w1"), *succeeds, *again, *succeeds])

    states = [event.state for event in life.server.log]
    assert states == ["queued", "queued", "running", "succeeded", "retrying", "running", "succeeded"]


@pytest.mark.parametrize("faulty", FAULTY)
def test_the_counterexample_of_a_faulty_model_passes_the_correct_one(faulty: type[Life]) -> None:
    play(Life(), COUNTEREXAMPLES[faulty])

    with pytest.raises(AssertionError):
        play(faulty(), COUNTEREXAMPLES[faulty])


@pytest.mark.proof
@pytest.mark.parametrize("faulty", FAULTY)
def test_a_search_finds_the_fault_of_a_model(faulty: type[Life]) -> None:
    with pytest.raises(AssertionError):
        run_state_machine_as_test(faulty, settings=SEARCH)


def test_the_model_covers_every_outcome() -> None:
    assert {state_of(outcome) for outcome in OUTCOMES} == set(TRANSITIONS["running"]) - {"running"}
