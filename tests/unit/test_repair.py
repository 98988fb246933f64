"""What is judged to be left behind: pure functions of what a look has found."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from jsq.model.event import FINAL_STATES, OPEN_STATES, SUBMITTED_STATES, Event, LoggedEvent
from jsq.model.repair import (
    DESCRIPTIONS,
    HARMLESS,
    REPAIR_DESCRIPTIONS,
    Inconsistency,
    StoredMessage,
    is_older,
    judge_dead_letter,
    judge_message,
    judge_record,
    judge_slot,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MESSAGE = StoredMessage("mail", "j1", "READY", 7, NOW, lost=False)
LOST = replace(MESSAGE, lost=True)
ALL_STATES = (*SUBMITTED_STATES, *OPEN_STATES, *FINAL_STATES)


def last(state: str, at: datetime = NOW) -> LoggedEvent:
    return LoggedEvent("mail", "j1", 9, at, Event(state, "any"))


def test_each_flaw_is_told_and_those_that_can_be_are_mended() -> None:
    assert set(DESCRIPTIONS) == set(Inconsistency)
    assert set(Inconsistency) - set(REPAIR_DESCRIPTIONS) == {Inconsistency.STRANDED, Inconsistency.UNSTORED}
    assert set(Inconsistency) - HARMLESS == {
        *(
            Inconsistency.NO_CONSUMER,
            Inconsistency.GHOST,
            Inconsistency.UNBURIED,
            Inconsistency.HALF_REPLAYED,
            Inconsistency.UNCALLED,
            Inconsistency.STRANDED,
        ),
        *(Inconsistency.STALLED, Inconsistency.HELD),
    }


def test_a_place_is_held_in_vain_by_who_has_ended_and_by_who_is_not_there() -> None:
    assert judge_slot(None, stands=True, old=False) is None
    assert judge_slot(None, stands=False, old=False) is Inconsistency.HELD
    for state in ALL_STATES:
        assert judge_slot(last(state), stands=True, old=False) is None
        assert judge_slot(last(state), stands=False, old=False) is None
        assert judge_slot(last(state), stands=False, old=True) is Inconsistency.HELD
        held = judge_slot(last(state), stands=True, old=True)
        assert held is (Inconsistency.HELD if state in FINAL_STATES else None)


@pytest.mark.parametrize("state", [*SUBMITTED_STATES, *OPEN_STATES])
def test_a_message_of_an_open_job_is_well_unless_it_is_lost(state: str) -> None:
    assert judge_message(MESSAGE, last(state), lettered=False) is None
    assert judge_message(LOST, last(state), lettered=False) is Inconsistency.GHOST


@pytest.mark.parametrize("lost", [False, True])
def test_a_message_of_a_job_that_has_ended_is_of_no_use(lost: bool) -> None:
    message = replace(MESSAGE, lost=lost)

    assert judge_message(message, last("succeeded"), lettered=False) is Inconsistency.ENDED
    assert judge_message(message, last("cancelled"), lettered=False) is Inconsistency.ENDED
    assert judge_message(message, last("failed"), lettered=True) is Inconsistency.ENDED
    assert judge_message(message, last("failed"), lettered=False) is Inconsistency.UNBURIED


def test_a_message_without_a_record_gets_one_when_it_can_be_delivered() -> None:
    assert judge_message(MESSAGE, None, lettered=False) is Inconsistency.UNRECORDED
    assert judge_message(LOST, None, lettered=False) is Inconsistency.GHOST


@pytest.mark.parametrize("state", FINAL_STATES)
def test_a_record_that_is_final_needs_no_message(state: str) -> None:
    assert judge_record(last(state), lettered=True) is judge_record(last(state), lettered=False) is None


@pytest.mark.parametrize("state", SUBMITTED_STATES)
@pytest.mark.parametrize("lettered", [False, True])
def test_what_a_submitter_announced_is_his_to_repeat(state: str, lettered: bool) -> None:
    assert judge_record(last(state), lettered=lettered) is Inconsistency.UNSTORED


@pytest.mark.parametrize("state", OPEN_STATES)
def test_a_begun_job_without_a_message_cannot_go_on(state: str) -> None:
    assert judge_record(last(state), lettered=False) is Inconsistency.STRANDED


def test_a_letter_beside_a_promised_attempt_is_a_replay_that_broke_off() -> None:
    assert judge_record(last("retrying"), lettered=True) is Inconsistency.HALF_REPLAYED
    assert judge_record(last("running"), lettered=True) is Inconsistency.STRANDED


@pytest.mark.parametrize("stands", [False, True])
def test_a_letter_belongs_to_a_job_that_failed_or_whose_record_expired(stands: bool) -> None:
    assert judge_dead_letter(NOW, last("failed"), stands=stands) is None
    assert judge_dead_letter(NOW, None, stands=stands) is None


def test_a_letter_of_a_job_with_a_new_life_goes_once_that_is_sure() -> None:
    assert judge_dead_letter(NOW, last("retrying"), stands=True) is Inconsistency.OUTLIVED
    assert judge_dead_letter(NOW, last("retrying"), stands=False) is None
    assert judge_dead_letter(NOW, last("succeeded"), stands=False) is Inconsistency.OUTLIVED


@pytest.mark.parametrize("state", ALL_STATES)
def test_a_letter_that_is_newer_than_the_record_stays(state: str) -> None:
    assert judge_dead_letter(NOW + timedelta(seconds=1), last(state), stands=True) is None


def test_what_is_young_has_not_settled() -> None:
    assert not is_older(NOW, NOW + timedelta(seconds=89), 90)
    assert is_older(NOW, NOW + timedelta(seconds=90), 90)
    assert is_older(NOW, NOW, 0)


@pytest.mark.parametrize(
    ("state", "told", "due", "flaw"),
    [
        ("scheduled", 60, 90, Inconsistency.MISDATED),
        ("retrying", 60, 30, Inconsistency.MISDATED),
        ("scheduled", 60, 60.5, None),
        ("scheduled", None, 60, None),
        ("scheduled", 60, None, None),  # it was put aside
        ("running", 60, 90, None),
    ],
)
def test_a_record_that_tells_another_moment_than_the_schedule_is_wrong(
    state: str, told: float | None, due: float | None, flaw: Inconsistency | None
) -> None:
    def after(seconds: float | None) -> datetime | None:
        return NOW + timedelta(seconds=seconds) if seconds is not None else None

    seen = last(state)
    seen = replace(seen, event=replace(seen.event, due=after(told)))

    assert judge_message(replace(MESSAGE, due=after(due)), seen, lettered=False) is flaw
