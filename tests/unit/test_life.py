"""The life of one job as a model: a record, a queue, and workers that die, stall and lose answers.

The judgement is jsq's own (`judge_start`, the table of moves, what an outcome writes); the server and the
order of things are the model's. Hypothesis looks for an order of steps in which a job is lost, ends twice,
or starts after a confirmed cancel. A model whose log does not compare, or which follows a wrong verdict, is
found out in the same way.
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
from jsq.model.outcome import Cancelled, Expired, Failed, Fault, Interrupted, Outcome, Succeeded, TryAgain
from jsq.model.revision import (
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
]


@dataclass
class Message:
    """The job's message, standing on its queue or due later."""

    job: Job
    deliveries: int = 0
    holder: str = ""


@dataclass
class Hand:
    """A worker with a delivery of the job, somewhere between its start and its end."""

    handing: DeliveryInfo
    job: Job
    expect: int
    phase: str = "got"
    token: int = 0
    lapsed: bool = False
    outcome: Outcome | None = None
    recorded: Revision | None = None


@dataclass
class Server:
    """What survives everything: the record, the queue, what is due later, the dead letter.

    A failure and its letter are one write, and so are a replay and the end of the letter; unless it is
    `apart`.
    """

    compares: bool = True
    apart: bool = False
    log: list[StoredRevision] = field(default_factory=list)
    ready: dict[int, Message] = field(default_factory=dict)
    later: Message | None = None
    letter: bool = False
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
            self.letter = event.state == "failed"
        self.log.append(StoredRevision("default", "j1", self.next(), NOON, event))
        return self.at

    def put_ready(self, job: Job) -> None:
        self.ready[self.next()] = Message(job)

    def put_later(self, job: Job) -> None:
        self.later = self.later or Message(job)

    def next(self) -> int:
        self.sequence += 1
        return self.sequence


class Life(RuleBasedStateMachine):
    """Everything that can happen to a job, one step at a time."""

    compares = True
    apart = False
    swapped: ClassVar[Mapping[StartVerdict, StartVerdict]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.server = Server(self.compares, self.apart)
        self.hands: dict[str, Hand] = {}
        self.ran: set[int] = set()
        self.replaying: StoredRevision | None = None
        self.cancelling: StoredRevision | None = None
        self.cancel_read = False
        self.server.put_ready(Job("j1", "mail", "default"))

    # -- the server ----------------------------------------------------------------------------------------

    @precondition(lambda self: any(not message.holder for message in self.server.ready.values()))
    @rule(worker=WORKERS)
    def deliver(self, worker: str) -> None:
        worker = next((name for name in (worker, "w1", "w2", "w3") if name not in self.hands), "")
        if not worker:
            return
        sequence, message = next((k, m) for k, m in self.server.ready.items() if not m.holder)
        message.deliveries += 1
        message.holder = worker
        previous = message.job.previous_sequence
        handing = DeliveryInfo(worker, sequence, message.deliveries, previous=previous)
        self.hands[worker] = Hand(handing, message.job, previous)

    @precondition(lambda self: self.hands)
    @rule(worker=WORKERS)
    def lapse(self, worker: str) -> None:
        """The lease is over. What the worker has under way may still arrive."""
        if hand := self.hands.get(worker):
            hand.lapsed = True
            self.free(hand)

    @precondition(lambda self: self.hands)
    @rule(worker=WORKERS)
    def die(self, worker: str) -> None:
        if hand := self.hands.pop(worker, None):
            self.free(hand)

    @precondition(lambda self: self.server.later is not None)
    @rule()
    def fire(self) -> None:
        assert self.server.later is not None
        self.server.put_ready(self.server.later.job)
        self.server.later = None

    def free(self, hand: Hand) -> None:
        message = self.server.ready.get(hand.handing.message)
        if message is not None and message.holder == hand.handing.worker:
            message.holder = ""

    # -- a worker ------------------------------------------------------------------------------------------

    @precondition(lambda self: self.in_phase("got"))
    @rule(worker=WORKERS, answered=st.booleans(), late=st.sampled_from([False] * 9 + [True]))
    def start(self, worker: str, answered: bool, late: bool) -> None:
        """Begin; or, where the deadline has passed, record that it is too late for that."""
        hand = self.hand(worker, "got")
        if hand is None:
            return
        event = unstarted_revision(hand.job, hand.handing) if late else started(hand)
        token = self.server.write(event, hand.expect)
        if token and answered and late:
            hand.outcome, hand.phase = PAST_DEADLINE, "done"
        elif token and answered:
            hand.token, hand.phase = token, "running"
        elif not token:
            self.refused_start(hand)

    def refused_start(self, hand: Hand) -> None:
        server, last = self.server, self.server.last
        other = last is not None and last.revision.message != hand.handing.message
        waits = other and last is not None and last.revision.message in server.ready
        verdict = judge_start(last, hand.handing, other_waits=waits)
        verdict = self.swapped.get(verdict, verdict)
        hand.expect = server.at
        if last is not None:
            hand.job = with_counts(hand.job, last.revision)
        match verdict:
            case StartVerdict.RESUME:
                hand.token, hand.phase = server.at, "running"
            case StartVerdict.START:
                pass
            case StartVerdict.RECLAIM:
                self.take_over(hand)
            case StartVerdict.ABANDON:
                self.settle(hand, acknowledged=False)
            case _:
                if verdict is StartVerdict.ENSURE_NEXT_ATTEMPT and last is not None:
                    self.promise(with_counts(hand.job, last.revision, after=last.sequence))
                self.settle(hand, acknowledged=True)

    def take_over(self, hand: Hand) -> None:
        hand.job = with_counts(hand.job, started(hand), crashes=hand.job.crashes + 1)
        if hand.job.crashes >= MAX_CRASHES:
            hand.token, hand.phase = hand.expect, "ended"
            hand.outcome = Failed("crashed", Fault("its workers died"))

    @precondition(lambda self: self.in_phase("running"))
    @rule(worker=WORKERS, outcome=st.sampled_from(OUTCOMES))
    def run(self, worker: str, outcome: Outcome) -> None:
        if hand := self.hand(worker, "running"):
            self.ran.add(hand.token)
            hand.outcome, hand.phase = outcome, "ended"

    @precondition(lambda self: self.in_phase("ended"))
    @rule(worker=WORKERS, answered=st.booleans())
    def record(self, worker: str, answered: bool) -> None:
        hand = self.hand(worker, "ended")
        if hand is None:
            return
        assert hand.outcome is not None
        event = outcome_revision(started(hand), hand.outcome, token=hand.token, now=NOON)
        written = self.server.write(event, hand.token)
        if written and not answered:
            return
        last = self.server.last
        ours = last is not None and last.revision.token == hand.token and last.state == event.state
        if not written and not ours:
            hand.outcome = None
            self.settle(hand, acknowledged=self.server.ended and not hand.lapsed)
            return
        hand.token, hand.recorded, hand.phase = written or self.server.at, event, "recorded"

    @precondition(lambda self: self.in_phase("recorded"))
    @rule(worker=WORKERS)
    def follow_up(self, worker: str) -> None:
        """Keep what the record promises, before the delivery is settled."""
        hand = self.hand(worker, "recorded")
        if hand is None:
            return
        assert hand.recorded is not None
        if isinstance(hand.outcome, TryAgain):
            self.promise(with_counts(hand.job, hand.recorded, after=hand.token))
        if isinstance(hand.outcome, Failed) and self.server.apart:
            self.server.letter = True
        hand.phase = "done"

    @precondition(lambda self: self.in_phase("done"))
    @rule(worker=WORKERS)
    def settle_recorded(self, worker: str) -> None:
        """The acknowledgement arrives, perhaps so late that another worker has the message."""
        if hand := self.hand(worker, "done"):
            self.settle(hand, acknowledged=not isinstance(hand.outcome, Interrupted))

    def settle(self, hand: Hand, *, acknowledged: bool) -> None:
        self.free(hand)
        del self.hands[hand.handing.worker]
        if acknowledged:
            self.server.ready.pop(hand.handing.message, None)

    def promise(self, job: Job) -> None:
        self.server.put_later(job)
        last = self.server.last
        if last is not None and last.sequence != job.previous_sequence and last.state in FINAL_STATES:
            self.server.later = None

    def hand(self, worker: str, phase: str) -> Hand | None:
        """The worker's hand if it is in that phase, else another's that is: few steps come to nothing."""
        found = [hand for hand in self.hands.values() if hand.phase == phase]
        return next((hand for hand in found if hand.handing.worker == worker), found[0] if found else None)

    def in_phase(self, phase: str) -> bool:
        return any(hand.phase == phase for hand in self.hands.values())

    # -- submitter and operator ----------------------------------------------------------------------------

    @rule()
    def submit_again(self) -> None:
        """A submitter whose answer was lost repeats itself, perhaps when the job has long ended."""
        if not self.server.ready:
            self.server.put_ready(Job("j1", "mail", "default"))

    @precondition(lambda self: not self.server.ended)
    @rule()
    def begin_cancel(self) -> None:
        self.cancelling, self.cancel_read = self.server.last, True

    @precondition(lambda self: self.cancel_read)
    @rule(dies=st.booleans())
    def cancel(self, dies: bool) -> None:
        """Record the cancel on top of what was read, then take the messages away, or die between the two."""
        self.cancel_read = False
        found = self.cancelling.revision if self.cancelling is not None else Revision("queued", "mail")
        counts = (found.attempt, found.failures, found.crashes)
        event = Revision("cancelled", "mail", *counts, interruptions=found.interruptions)
        expect = self.cancelling.sequence if self.cancelling is not None else 0
        if self.server.write(event, expect) and not dies:
            self.server.ready.clear()
            self.server.later = None

    @precondition(lambda self: self.server.letter and self.server.last and self.server.last.state == "failed")
    @rule()
    def begin_replay(self) -> None:
        failed = self.server.at
        if self.server.write(Revision("retrying", "mail", due=NOON, reason="replayed", token=failed), failed):
            self.replaying = self.server.last

    @precondition(lambda self: self.replaying is not None)
    @rule()
    def end_replay(self) -> None:
        """Store the message of a replay: the operator's second step, or that of a sweep after a crash."""
        assert self.replaying is not None
        self.server.put_later(Job("j1", "mail", "default", previous_sequence=self.replaying.sequence))
        self.replaying = None

    @precondition(lambda self: self.server.later is not None and self.promised())
    @rule(dies=st.booleans())
    def reschedule(self, dies: bool) -> None:
        """Give the next attempt another due time: in the record, then in its message, or die between."""
        last = self.server.last
        assert last is not None
        assert self.server.later is not None
        if self.server.write(replace(last.revision, due=NOON), last.sequence) and not dies:
            self.server.later = Message(replace(self.server.later.job, previous_sequence=self.server.at))

    def promised(self) -> bool:
        last = self.server.last
        return last is not None and last.state in ("retrying", "snoozed")

    # -- what must hold ------------------------------------------------------------------------------------

    @invariant()
    def every_event_may_follow_the_one_before(self) -> None:
        states = ["queued", *(event.state for event in self.server.log)]
        for before, after in pairwise(states):
            if before == after in ("retrying", "snoozed"):
                continue  # another due time of the same promised attempt
            assert after in TRANSITIONS[before], f"{after} after {before}"

    @invariant()
    def only_what_ran_has_succeeded(self) -> None:
        for event in self.server.log:
            assert event.state != "succeeded" or event.revision.token in self.ran

    @invariant()
    def a_job_that_has_not_ended_is_somewhere(self) -> None:
        server = self.server
        assert server.ended or server.ready or server.later or self.replaying, "the job is lost"

    @invariant()
    def a_job_has_a_letter_if_and_only_if_it_failed(self) -> None:
        last = self.server.last
        assert self.server.letter == (last is not None and last.state == "failed"), "letter and record differ"

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
        """When nothing breaks any more, one good worker brings the job to its end, and nothing is left."""
        for worker in list(self.hands):
            self.die(worker)
        if self.replaying is not None:
            self.end_replay()
        for _ in range(60):
            if self.server.later is not None:
                self.fire()
            if not self.server.ready:
                break
            self.deliver("w1")
            self.work_off("w1")
        assert self.server.ended, "the job does not end"
        assert not self.server.ready, "a message is left"
        assert self.server.later is None, "a promise is left"
        self.a_job_has_a_letter_if_and_only_if_it_failed()

    def work_off(self, worker: str) -> None:
        for _ in range(20):
            self.start(worker, True, False)
            self.run(worker, Succeeded(b"1"))
            self.record(worker, True)
            self.follow_up(worker)
            self.settle_recorded(worker)
            if worker not in self.hands:
                return


def started(hand: Hand) -> Revision:
    return running_revision(hand.job, hand.handing, submitted=1)


def is_replay(event: Revision) -> bool:
    """Whether a dead letter was replayed, so that all counts begin at 0 again."""
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


class LetterApart(Life):
    """The same with letters that are written after the record of the failure."""

    apart = True


class Careless(Life):
    """The same with a log that takes every write."""

    compares = False


class LosesNextAttempt(Life):
    swapped: ClassVar = {StartVerdict.ENSURE_NEXT_ATTEMPT: StartVerdict.DROP}


class StartsWhatHasEnded(Life):
    swapped: ClassVar = {StartVerdict.SETTLE: StartVerdict.START}


class DropsWhatAnotherHolds(Life):
    swapped: ClassVar = {StartVerdict.ABANDON: StartVerdict.DROP}


class DropsWhatCrashed(Life):
    swapped: ClassVar = {StartVerdict.RECLAIM: StartVerdict.DROP}


FAULTY = [
    Careless,
    LetterApart,
    LosesNextAttempt,
    StartsWhatHasEnded,
    DropsWhatAnotherHolds,
    DropsWhatCrashed,
]

THOROUGH = settings(
    stateful_step_count=60,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

SEARCH = settings(THOROUGH, max_examples=40_000, derandomize=True, phases=[Phase.generate], print_blob=False)
"""Enough to find a fault that is there; the shortest way to it is not wanted."""

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


CANCELLED_THEN_SUBMITTED_AGAIN = [cancel, Life.submit_again, deliver("w1")]
STARTED_THEN_LAPSED = [deliver("w1"), start("w1"), lapse("w1")]

COUNTEREXAMPLES: dict[type[Life], list[Step]] = {
    Careless: [*CANCELLED_THEN_SUBMITTED_AGAIN, start("w1", answered=False)],
    LetterApart: [deliver("w1"), start("w1"), run("w1", Failed("error", Fault(""))), record("w1")],
    LosesNextAttempt: [
        *(deliver("w1"), start("w1"), run("w1", TryAgain(1.0, Fault("again"))), lapse("w1")),
        record("w1", answered=False),
    ],
    StartsWhatHasEnded: [
        *(*CANCELLED_THEN_SUBMITTED_AGAIN, start("w1", answered=False), start("w1", answered=False))
    ],
    DropsWhatAnotherHolds: [deliver("w2"), lapse("w2"), deliver("w1"), start("w1"), start("w2")],
    DropsWhatCrashed: STARTED_THEN_LAPSED,
}
"""For each faulty model an order of steps that its search has found. The search itself is a proof."""


def play(life: Life, steps: Iterable[Step]) -> None:
    """Takes the steps and checks every invariant after each of them, as Hypothesis does."""
    for step in steps:
        step(life)
        life.every_event_may_follow_the_one_before()
        life.only_what_ran_has_succeeded()
        life.a_job_that_has_not_ended_is_somewhere()
        life.a_job_has_a_letter_if_and_only_if_it_failed()
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
