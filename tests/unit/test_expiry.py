"""The expiry of a job: pure functions of its last event and a time."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from jsq.codec import envelope, revisions
from jsq.errors import BadOption
from jsq.model.expiry import NOT_STARTED, apply_expiry, expiry_time, has_expired, has_not_started
from jsq.model.job import Job
from jsq.model.repair import Inconsistency, StoredMessage, judge_message
from jsq.model.revision import (
    FINAL_STATES,
    MAX_REVISION_HEADER_BYTES,
    DeliveryInfo,
    Revision,
    StoredRevision,
    first_revision,
    revision_headers,
)
from jsq.worker.transitions import next_attempt_of, running_revision, with_declared_expiry, with_log_counts

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
JOB = Job("j1", "mail", tags=("x",), headers={"A": "b"}, expires=NOON)


def last(state: str, at: datetime = NOON - SECOND, **more: Any) -> StoredRevision:
    return StoredRevision("default", "j1", 9, at, Revision(state, "mail", expires=NOON, **more))


@pytest.mark.parametrize("state", ["queued", "scheduled"])
def test_a_job_that_has_not_started_expires_at_its_expiry_time(state: str) -> None:
    assert not has_expired(last(state), NOON - SECOND / 1000)
    assert has_expired(last(state), NOON)

    read = apply_expiry(last(state, due=NOON), NOON + SECOND)
    assert (read.state, read.at, read.sequence) == ("expired", NOON, 9)
    assert (read.revision.error, read.revision.due, read.revision.task) == (NOT_STARTED, None, "mail")
    assert apply_expiry(last(state), NOON - SECOND) == last(state)


@pytest.mark.parametrize("state", ["running", "retrying", "snoozed", "interrupted", *FINAL_STATES])
def test_a_job_that_started_in_time_never_expires(state: str) -> None:
    assert not has_not_started(last(state))
    assert apply_expiry(last(state), NOON + SECOND) == last(state)


def test_a_start_stored_after_the_expiry_does_not_count() -> None:
    assert not has_not_started(last("running", at=NOON))
    assert has_not_started(last("running", at=NOON + SECOND))


def test_a_job_snoozed_for_an_unknown_task_has_not_started() -> None:
    assert has_expired(last("snoozed", reason="unknown_task"), NOON)


def test_a_job_without_an_expiry_never_expires() -> None:
    found = StoredRevision("default", "j1", 9, NOON, Revision("queued", "mail"))
    assert not has_expired(found, datetime.max.replace(tzinfo=UTC))


def test_an_expiry_is_stored_in_utc_to_the_millisecond() -> None:
    berlin = timezone(timedelta(hours=2))
    expires = datetime(2026, 7, 1, 15, 0, 0, 123_456, tzinfo=berlin)
    assert expiry_time(expires, None, NOON) == datetime(2026, 7, 1, 13, 0, 0, 123_000, tzinfo=UTC)
    assert expiry_time(1.5, None, NOON) == NOON + 1.5 * SECOND


@pytest.mark.parametrize(
    ("expires", "due", "message"),
    [
        (NOON, None, "must be in the future"),
        (5, NOON + 5 * SECOND, "must be after the start of the job"),
        (NOON + SECOND, NOON + 2 * SECOND, "must be after the start of the job"),
    ],
)
def test_an_expiry_that_no_job_could_meet_is_refused(
    expires: Any, due: datetime | None, message: str
) -> None:
    with pytest.raises(BadOption, match=f"expires {message}"):
        expiry_time(expires, due, NOON)


def test_messages_and_events_carry_the_expiry_unchanged() -> None:
    assert envelope.decode(envelope.encode(JOB), b"{}", id="j1").expires == NOON
    first = first_revision(JOB, "queued")
    assert (first.expires, first.headers, first.tags) == (NOON, {"A": "b"}, ("x",))
    running = running_revision(JOB, DeliveryInfo("w", 1, 1), 5, 6)
    assert revisions.decode(revisions.encode_running(JOB, DeliveryInfo("w", 1, 1), 5, 6)) == running
    assert (running.expires, running.headers) == (NOON, {"A": "b"})


def test_headers_beyond_the_limit_of_a_record_are_omitted() -> None:
    many = {f"h{n}": "x" * 200 for n in range(60)}
    kept = revision_headers(many)
    assert 5 < len(kept) < 15
    assert list(kept) == list(many)[: len(kept)]
    assert sum(len(name) + len(value) for name, value in kept.items()) < MAX_REVISION_HEADER_BYTES


def test_the_expiry_ends_with_the_first_start() -> None:
    assert with_log_counts(JOB, last("snoozed", reason="unknown_task")).expires == NOON
    assert with_log_counts(JOB, last("interrupted")).expires is None
    assert next_attempt_of(JOB, Revision("retrying"), 7).expires is None
    assert next_attempt_of(JOB, Revision("snoozed", reason="unknown_task"), 7).expires == NOON


def test_a_declared_expiry_counts_from_the_first_message() -> None:
    plain = Job("j1", "mail")
    assert with_declared_expiry(plain, 60.0, NOON.timestamp()).expires == NOON + 60 * SECOND
    assert with_declared_expiry(JOB, 60.0, NOON.timestamp()).expires == NOON
    assert (
        with_declared_expiry(Job("j1", "mail", previous_sequence=5), 60.0, NOON.timestamp()).expires is None
    )
    assert with_declared_expiry(plain, None, NOON.timestamp()).expires is None


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("lost", [False, True])
def test_a_sweep_records_expiries_without_waiting_for_the_minimum_age(lost: bool, recorded: bool) -> None:
    message = StoredMessage("default", "j1", "READY", 7, NOON - SECOND, undeliverable=lost, expires=NOON)
    found = (
        last("snoozed", reason="unknown_task") if recorded else None
    )  # without a record, only the message counts

    assert judge_message(message, found, expired_before=NOON) is Inconsistency.UNRECORDED_EXPIRY
    early = judge_message(message, found, expired_before=NOON - SECOND)
    assert early is (Inconsistency.UNDELIVERABLE if lost else None)


def test_the_message_of_a_started_job_does_not_expire_it() -> None:
    message = StoredMessage("default", "j1", "READY", 7, NOON - SECOND, undeliverable=False, expires=NOON)

    assert judge_message(message, last("interrupted"), expired_before=NOON + SECOND) is None
