"""The detection of inconsistencies: pure functions of the results of a scan."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

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
from jsq.model.revision import FINAL_STATES, OPEN_STATES, SUBMITTED_STATES, Revision, StoredRevision

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MESSAGE = StoredMessage("mail", "j1", "READY", 7, NOW, undeliverable=False)
LOST = replace(MESSAGE, undeliverable=True)
ALL_STATES = (*SUBMITTED_STATES, *OPEN_STATES, *FINAL_STATES)


def last(state: str, at: datetime = NOW) -> StoredRevision:
    return StoredRevision("mail", "j1", 9, at, Revision(state, "any"))


def test_every_inconsistency_is_described_and_all_but_one_have_a_repair() -> None:
    assert set(DESCRIPTIONS) == set(Inconsistency)
    assert set(Inconsistency) - set(REPAIR_DESCRIPTIONS) == {Inconsistency.MISSING_MESSAGE}
    assert set(Inconsistency) - HARMLESS == {
        *(
            Inconsistency.NO_CONSUMER,
            Inconsistency.UNDELIVERABLE,
            Inconsistency.INCOMPLETE_RETRY,
            Inconsistency.ORPHANED_SUCCESSOR,
            Inconsistency.MISSING_MESSAGE,
        ),
        *(Inconsistency.STALLED_KEY_GROUP, Inconsistency.LEAKED_SLOT),
    }


def test_a_slot_of_an_ended_or_missing_job_is_leaked() -> None:
    assert judge_slot(None, has_message=True, is_old=False) is None
    assert judge_slot(None, has_message=False, is_old=False) is Inconsistency.LEAKED_SLOT
    for state in ALL_STATES:
        assert judge_slot(last(state), has_message=True, is_old=False) is None
        assert judge_slot(last(state), has_message=False, is_old=False) is None
        assert judge_slot(last(state), has_message=False, is_old=True) is Inconsistency.LEAKED_SLOT
        held = judge_slot(last(state), has_message=True, is_old=True)
        assert held is (Inconsistency.LEAKED_SLOT if state in FINAL_STATES else None)


@pytest.mark.parametrize("state", [*SUBMITTED_STATES, *OPEN_STATES])
def test_a_message_of_an_unfinished_job_is_consistent_if_it_is_deliverable(state: str) -> None:
    assert judge_message(MESSAGE, last(state)) is None
    assert judge_message(LOST, last(state)) is Inconsistency.UNDELIVERABLE


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("state", FINAL_STATES)
def test_a_message_of_an_ended_job_is_a_leftover(lost: bool, state: str) -> None:
    message = replace(MESSAGE, undeliverable=lost)

    assert judge_message(message, last(state)) is Inconsistency.LEFTOVER_MESSAGE


def test_a_message_without_a_record_is_a_waiting_job() -> None:
    assert judge_message(MESSAGE, None) is None
    assert judge_message(LOST, None) is Inconsistency.UNDELIVERABLE


@pytest.mark.parametrize("state", FINAL_STATES)
def test_a_final_record_needs_no_message(state: str) -> None:
    assert judge_record(last(state), knows_order=True) is judge_record(last(state), knows_order=False) is None


@pytest.mark.parametrize("state", OPEN_STATES)
def test_a_started_job_without_a_message_is_inconsistent(state: str) -> None:
    assert judge_record(last(state), knows_order=False) is Inconsistency.MISSING_MESSAGE


def test_a_dead_letter_beside_a_retrying_record_is_an_incomplete_retry() -> None:
    assert judge_record(last("retrying"), knows_order=True) is Inconsistency.INCOMPLETE_RETRY
    assert judge_record(last("running"), knows_order=True) is Inconsistency.MISSING_MESSAGE


@pytest.mark.parametrize("has_message", [False, True])
def test_a_dead_letter_of_a_failed_job_or_without_a_record_is_consistent(has_message: bool) -> None:
    assert judge_dead_letter(NOW, last("failed"), has_message=has_message) is None
    assert judge_dead_letter(NOW, None, has_message=has_message) is None


def test_a_dead_letter_of_a_retried_job_is_stale_once_the_job_is_stored() -> None:
    assert judge_dead_letter(NOW, last("retrying"), has_message=True) is Inconsistency.STALE_DEAD_LETTER
    assert judge_dead_letter(NOW, last("retrying"), has_message=False) is None
    assert judge_dead_letter(NOW, last("succeeded"), has_message=False) is Inconsistency.STALE_DEAD_LETTER


@pytest.mark.parametrize("state", ALL_STATES)
def test_a_dead_letter_newer_than_the_record_is_kept(state: str) -> None:
    assert judge_dead_letter(NOW + timedelta(seconds=1), last(state), has_message=True) is None


def test_young_entries_are_not_judged() -> None:
    assert not is_older(NOW, NOW + timedelta(seconds=89), 90)
    assert is_older(NOW, NOW + timedelta(seconds=90), 90)
    assert is_older(NOW, NOW, 0)


@pytest.mark.parametrize(
    ("state", "recorded", "due", "inconsistency"),
    [
        ("scheduled", 60, 90, Inconsistency.STALE_SCHEDULE_RECORD),
        ("retrying", 60, 30, Inconsistency.STALE_SCHEDULE_RECORD),
        ("scheduled", 60, 60.5, None),
        ("scheduled", None, 60, None),
        ("scheduled", 60, None, None),  # the job was deferred
        ("running", 60, 90, None),
    ],
)
def test_a_record_with_another_due_time_than_its_message_is_inconsistent(
    state: str, recorded: float | None, due: float | None, inconsistency: Inconsistency | None
) -> None:
    def after(seconds: float | None) -> datetime | None:
        return NOW + timedelta(seconds=seconds) if seconds is not None else None

    seen = last(state)
    seen = replace(seen, revision=replace(seen.revision, due=after(recorded)))

    assert judge_message(replace(MESSAGE, due=after(due)), seen) is inconsistency
