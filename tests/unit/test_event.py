"""The states of a job: the table of transitions, and the verdict on a delivery."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsq.model.job import JobRecord
from jsq.model.revision import (
    EDITED,
    FINAL_STATES,
    OPEN_STATES,
    SUBMITTED_STATES,
    TRANSITIONS,
    Revision,
    StoredRevision,
    judge_start,
    record_fields,
)
from jsq.model.revision import DeliveryInfo as Info
from jsq.model.revision import StartVerdict as Verdict
from tests.helpers.examples import examples

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
STATES = (*SUBMITTED_STATES, *OPEN_STATES, *FINAL_STATES)


def logged(event: Revision, *, sequence: int = 7) -> StoredRevision:
    return StoredRevision("default", "j1", sequence, NOON, event)


def running(quarantine: str = "", *, delivery: int = 1) -> StoredRevision:
    return logged(
        Revision("running", "mail", worker="w1", message=10, delivery=delivery, quarantine=quarantine)
    )


def in_state(state: str) -> StoredRevision:
    return logged(Revision(state, "mail", worker="w1", message=10, delivery=1))


def ended_as(state: str, sequence: int = 7) -> StoredRevision:
    """An attempt that began at revision 5 and ended at 7; a later `sequence` gives it another due time."""
    return logged(Revision(state, "mail", worker="w1", message=10, delivery=1, token=5), sequence=sequence)


# -- the table -----------------------------------------------------------------------------------------------


def test_the_transition_table_has_exactly_the_known_states() -> None:
    named = set(TRANSITIONS) | {state for following in TRANSITIONS.values() for state in following}

    assert named == set(STATES)
    assert len(STATES) == len(set(STATES))


def test_every_state_can_be_reached_from_a_submit() -> None:
    reached = set(SUBMITTED_STATES)
    while more := {after for state in reached for after in TRANSITIONS[state]} - reached:
        reached |= more

    assert reached == set(STATES)


def test_every_state_can_reach_a_final_state() -> None:
    ending = set(FINAL_STATES)
    while more := {state for state in TRANSITIONS if TRANSITIONS[state] & ending} - ending:
        ending |= more

    assert ending == set(STATES)


def test_nothing_follows_a_final_state_but_an_operators_replay() -> None:
    assert all(TRANSITIONS[state] == {"retrying"} for state in FINAL_STATES)


def test_only_a_running_job_can_succeed() -> None:
    assert [state for state in STATES if "succeeded" in TRANSITIONS[state]] == ["running"]


@pytest.mark.parametrize("state", [state for state in STATES if state not in FINAL_STATES])
def test_every_unfinished_state_can_become_running_cancelled_failed_or_expired(state: str) -> None:
    assert {"running", "cancelled", "failed", "expired"} <= TRANSITIONS[state]


def test_only_a_reschedule_or_an_edit_returns_to_a_submitted_state() -> None:
    back = {
        (state, after)
        for state, following in TRANSITIONS.items()
        for after in following & set(SUBMITTED_STATES)
    }

    assert back == {("scheduled", "scheduled"), ("scheduled", "queued"), ("queued", "queued")}


@pytest.mark.parametrize(
    ("previous", "verdict"),
    [
        (0, Verdict.ENSURE_NEXT_ATTEMPT),
        (5, Verdict.ENSURE_NEXT_ATTEMPT),
        (7, Verdict.START),
        (9, Verdict.START),
    ],
)
@pytest.mark.parametrize("quarantine", ["", "apart"])
def test_only_a_message_written_after_the_edit_starts_an_edited_job(
    previous: int, verdict: Verdict, quarantine: str
) -> None:
    edited = logged(Revision("queued", "mail", reason=EDITED, token=5, quarantine=quarantine), sequence=7)

    assert judge_start(edited, Info("w2", 11, 1, previous=previous), other_waits=False) is verdict


# -- the verdict on a delivery -------------------------------------------------------------------------------

ROWS = [
    ("a job without a record is started", None, Info("w1", 10, 1), False, Verdict.START),
    ("a queued job is started", in_state("queued"), Info("w2", 10, 1), False, Verdict.START),
    ("a scheduled job is started", in_state("scheduled"), Info("w2", 10, 1), False, Verdict.START),
    ("an interrupted job is started", in_state("interrupted"), Info("w2", 10, 2), False, Verdict.START),
    ("a repeated number is started", in_state("interrupted"), Info("w2", 10, 1), False, Verdict.START),
    ("a job that succeeded is settled", in_state("succeeded"), Info("w1", 10, 2), False, Verdict.SETTLE),
    ("a job that failed is settled", in_state("failed"), Info("w1", 10, 2), False, Verdict.SETTLE),
    ("an expired job is settled", in_state("expired"), Info("w1", 10, 2), False, Verdict.SETTLE),
    ("a cancelled job is settled", in_state("cancelled"), Info("w1", 10, 1), False, Verdict.SETTLE),
    ("a retry is ensured", in_state("retrying"), Info("w2", 10, 2), False, Verdict.ENSURE_NEXT_ATTEMPT),
    ("a snooze is ensured", in_state("snoozed"), Info("w2", 10, 2), False, Verdict.ENSURE_NEXT_ATTEMPT),
    ("a stored retry is started", ended_as("retrying"), Info("w2", 12, 1, previous=7), False, Verdict.START),
    ("a stored snooze is started", ended_as("snoozed"), Info("w2", 12, 1, previous=7), False, Verdict.START),
    ("a moved retry is started", ended_as("retrying", 9), Info("w2", 12, 1, "", 7), False, Verdict.START),
    ("an older message", ended_as("retrying"), Info("w2", 10, 2, "", 4), False, Verdict.ENSURE_NEXT_ATTEMPT),
    ("the start of this delivery is resumed", running(), Info("w1", 10, 1), False, Verdict.RESUME),
    ("a job of a silent worker is reclaimed", running(), Info("w2", 10, 2), False, Verdict.RECLAIM),
    ("an expired delivery of the same worker", running(), Info("w1", 10, 2), False, Verdict.RECLAIM),
    ("a late delivery is abandoned", running(delivery=3), Info("w2", 10, 2), False, Verdict.ABANDON),
    ("a late one of the same worker", running(delivery=3), Info("w1", 10, 2), False, Verdict.ABANDON),
    ("a delivery beside another worker", running(), Info("w2", 10, 1), False, Verdict.ABANDON),
    ("a duplicate is dropped while the first waits", running(), Info("w2", 11, 1), True, Verdict.DROP),
    ("a quarantined job runs there", running("q"), Info("w2", 10, 2), False, Verdict.DROP),
    ("in its quarantine it is reclaimed", running("q"), Info("w2", 10, 2, "q"), False, Verdict.RECLAIM),
    ("there a duplicate is dropped", running("q"), Info("w2", 11, 1, "q"), True, Verdict.DROP),
    ("an equal number in the origin queue", running(), Info("w2", 10, 2, "q"), True, Verdict.DROP),
    ("a duplicate reclaims from a missing one", running(), Info("w2", 11, 1), False, Verdict.RECLAIM),
]  # fmt: skip


@pytest.mark.parametrize(
    ("last", "info", "other_waits", "verdict"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_a_delivery_whose_start_was_refused_gets_the_verdict_of_the_record(
    last: StoredRevision | None, info: Info, other_waits: bool, verdict: Verdict
) -> None:
    assert judge_start(last, info, other_waits=other_waits) is verdict


def test_every_verdict_has_a_row() -> None:
    # The record does not contain whether a worker is alive: see `jsq.worker.holders`.
    assert {row[4] for row in ROWS} == set(Verdict) - {Verdict.RESTART}


workers = st.sampled_from(["w1", "w2", "w3"])
numbers = st.integers(1, 4)
lanes = st.sampled_from(["", "q"])
sequences = st.integers(0, 12)
handings = st.builds(
    Info, worker=workers, message=numbers, delivery=numbers, quarantine=lanes, previous=sequences
)
events = st.builds(
    Revision,
    state=st.sampled_from(STATES),
    task=st.just("mail"),
    worker=workers,
    message=numbers,
    delivery=numbers,
    quarantine=lanes,
    token=sequences,
).map(logged)
quick = examples(200)


@quick
@given(last=events, info=handings, other_waits=st.booleans())
def test_a_finished_job_never_runs_again(last: StoredRevision, info: Info, other_waits: bool) -> None:
    verdict = judge_start(last, info, other_waits=other_waits)

    assert (verdict is Verdict.SETTLE) == (last.state in FINAL_STATES)


@quick
@given(last=events, info=handings, other_waits=st.booleans())
def test_every_start_is_a_transition_of_the_table(
    last: StoredRevision, info: Info, other_waits: bool
) -> None:
    verdict = judge_start(last, info, other_waits=other_waits)

    if verdict in (Verdict.START, Verdict.RECLAIM):
        assert "running" in TRANSITIONS[last.state]
    if verdict is Verdict.RECLAIM:
        assert last.state == "running"


@quick
@given(last=events, info=handings, other_waits=st.booleans())
def test_only_the_same_delivery_resumes_its_attempt(
    last: StoredRevision, info: Info, other_waits: bool
) -> None:
    event = last.revision
    own = info == Info(event.worker, event.message, event.delivery, event.quarantine, info.previous)

    verdict = judge_start(last, info, other_waits=other_waits)

    assert (verdict is Verdict.RESUME) == (own and last.state == "running")


@quick
@given(last=events, info=handings, other_waits=st.booleans())
def test_a_next_attempt_starts_only_if_its_message_follows_the_last_outcome(
    last: StoredRevision, info: Info, other_waits: bool
) -> None:
    verdict = judge_start(last, info, other_waits=other_waits)

    if last.state in ("retrying", "snoozed", "waiting"):
        starts = info.previous > last.revision.token
        assert verdict is (Verdict.START if starts else Verdict.ENSURE_NEXT_ATTEMPT)
    else:
        assert verdict is not Verdict.ENSURE_NEXT_ATTEMPT


@quick
@given(last=events, info=handings, other_waits=st.booleans(), later=st.integers(1, 5))
def test_rescheduling_the_next_attempt_changes_no_verdict(
    last: StoredRevision, info: Info, other_waits: bool, later: int
) -> None:
    again = replace(last, sequence=last.sequence + later, revision=replace(last.revision, due=NOON))

    assert judge_start(again, info, other_waits=other_waits) is judge_start(
        last, info, other_waits=other_waits
    )


@quick
@given(info=handings, started=sequences, state=st.sampled_from(["retrying", "snoozed", "waiting"]))
def test_after_an_outcome_only_the_message_of_the_next_attempt_starts(
    info: Info, started: int, state: str
) -> None:
    begun = replace(info, previous=started)  # it wrote `running` with `started` as the expected sequence
    token, end = started + 1, started + 2
    last = logged(Revision(state, "mail", token=token, message=info.message), sequence=end)

    assert judge_start(last, begun, other_waits=False) is Verdict.ENSURE_NEXT_ATTEMPT
    assert judge_start(last, replace(info, previous=end), other_waits=False) is Verdict.START


@quick
@given(last=events, info=handings, previous=sequences, other_waits=st.booleans())
def test_the_previous_sequence_matters_only_to_a_next_attempt(
    last: StoredRevision, info: Info, previous: int, other_waits: bool
) -> None:
    if last.state not in ("retrying", "snoozed", "waiting"):
        assert judge_start(last, info, other_waits=other_waits) is judge_start(
            last, replace(info, previous=previous), other_waits=other_waits
        )


@quick
@given(last=events, one=handings, other=handings)
def test_only_the_newer_of_two_deliveries_reclaims(last: StoredRevision, one: Info, other: Info) -> None:
    older, newer = sorted((one.delivery, other.delivery))

    message, quarantine = last.revision.message, last.revision.quarantine
    takes = [
        judge_start(last, Info("w9", message, number, quarantine), other_waits=False) is Verdict.RECLAIM
        for number in (older, newer)
    ]

    assert takes != [True, False]


@quick
@given(last=events, info=handings, other_waits=st.booleans())
def test_a_reclaimed_delivery_cannot_reclaim_the_job_back(
    last: StoredRevision, info: Info, other_waits: bool
) -> None:
    if judge_start(last, info, other_waits=other_waits) is not Verdict.RECLAIM:
        return
    worker, message, delivery = info.worker, info.message, info.delivery
    after = logged(
        Revision("running", "mail", 1, 0, 0, worker, message, delivery, quarantine=info.quarantine)
    )
    before = last.revision
    loser = Info(before.worker, before.message, before.delivery, before.quarantine)

    verdict = judge_start(after, loser, other_waits=True)

    assert verdict in (Verdict.ABANDON, Verdict.DROP)


# -- the record ----------------------------------------------------------------------------------------------


def test_a_job_record_has_the_fields_of_its_last_event() -> None:
    event = Revision(
        "failed",
        "mail",
        attempt=2,
        failures=1,
        worker="w1",
        reason="error",
        error="ValueError: no",
        tags=("a",),
    )

    record = JobRecord(**record_fields(logged(event, sequence=42)))

    assert (record.id, record.queue, record.sequence, record.at) == ("j1", "default", 42, NOON)
    assert (record.state, record.task, record.attempt, record.failures) == ("failed", "mail", 2, 1)
    assert (record.reason, record.error, record.tags) == ("error", "ValueError: no", ("a",))
