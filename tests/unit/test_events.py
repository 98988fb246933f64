"""An event as JSON, and moments as text."""

import json
import pickle
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jsq.codec.events import (
    decode,
    encode,
    encode_first_event,
    encode_running,
    encode_succeeded,
    format_time,
    parse_time,
)
from jsq.errors import BadEnvelope
from jsq.model.event import FINAL_STATES, OPEN_STATES, SUBMITTED_STATES, DeliveryInfo, Event
from jsq.model.job import Job
from jsq.worker.transitions import running_event

quick = settings(deadline=None, max_examples=100)
text = st.text(st.characters(codec="utf-8"), max_size=20)
counts = st.integers(0, 2**53)
milliseconds = st.integers(0, 4_000_000_000_000).map(
    lambda number: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=number)
)
events = st.builds(
    Event,
    state=st.sampled_from([*SUBMITTED_STATES, *OPEN_STATES, *FINAL_STATES]),
    task=text.filter(bool),
    attempt=counts,
    failures=counts,
    crashes=counts,
    worker=text,
    message=counts,
    delivery=counts,
    token=counts,
    due=st.none() | milliseconds,
    reason=text,
    error=text,
    traceback=text,
    progress=st.none() | st.floats(0, 1),
    text=text,
    tags=st.lists(text, max_size=3).map(tuple),
    has_result=st.booleans(),
    quarantine=text,
    forgiven_crashes=counts,
    retry_until=st.none() | milliseconds,
    callbacks_pending=st.booleans(),
    fallback=text,
    interruptions=counts,
)


@quick
@given(event=events)
def test_an_event_comes_back_as_it_was_written(event: Event) -> None:
    assert decode(encode(event)) == event


@quick
@given(event=events, result=st.none() | st.integers() | text | st.lists(st.booleans()))
def test_a_result_is_taken_over_as_it_is(event: Event, result: object) -> None:
    packed = json.dumps({"result": result}).encode()

    assert decode(encode(event, packed)) == replace(event, result=result)


names = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)
jobs = st.builds(
    Job,
    id=names,
    task=names,
    tags=st.lists(text, max_size=3),
    failures=st.integers(0, 2000),
    crashes=st.integers(0, 100),
    quarantine=st.just("") | names,
    retry_until=st.none() | milliseconds,
    interruptions=st.integers(0, 100),
)
handings = st.builds(DeliveryInfo, worker=names, message=st.integers(1, 2**53), delivery=st.integers(1, 1000))


@quick
@given(job=jobs, handing=handings)
def test_the_short_way_to_write_a_start_says_the_same(job: Job, handing: DeliveryInfo) -> None:
    assert decode(encode_running(job, handing)) == running_event(job, handing)


@quick
@given(job=jobs, handing=handings, token=st.integers(1, 2**53), value=st.none() | st.integers() | text)
def test_the_short_way_to_write_a_success_says_the_same(
    job: Job, handing: DeliveryInfo, token: int, value: object
) -> None:
    running = encode_running(job, handing)
    ended = replace(running_event(job, handing), state="succeeded", token=token)

    kept = encode_succeeded(running, token, json.dumps({"result": value}).encode())
    assert decode(kept) == replace(ended, has_result=True, result=value)
    assert decode(encode_succeeded(running, token, b"")) == ended


@quick
@given(task=names, tags=st.lists(text, max_size=3).map(tuple))
def test_a_first_event_says_what_was_submitted(task: str, tags: tuple[str, ...]) -> None:
    assert decode(encode_first_event("queued", task, tags)) == Event("queued", task, tags=tags)


def test_what_is_empty_is_left_out() -> None:
    assert encode(Event("queued", "mail")) == b'{"state":"queued","task":"mail"}'


def test_no_progress_and_none_yet_are_two_things() -> None:
    assert decode(encode(Event("running", "mail", progress=0.0))).progress == 0.0
    assert decode(encode(Event("running", "mail"))).progress is None


def test_unknown_fields_are_passed_over() -> None:
    assert decode(b'{"state":"queued","task":"mail","colour":"red"}') == Event("queued", "mail")


def test_what_became_of_a_message_without_a_task_can_be_read() -> None:
    put_away = Event("failed", "", reason="bad_envelope", error="no job")
    assert decode(encode(put_away)) == put_away


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"null",
        b"5",
        b"[]",
        b'"queued"',
        b"{}",
        b'{"task":"mail"}',
        b'{"state":"queued","task":"mail","due":"tomorrow"}',
        b'{"state":"queued","task":"mail","due":5}',
        b'{"state":"queued","task":"mail","tags":5}',
        b"\xff",
        b'{"state":"\\ud800","task":"mail"}',
        b"[" * 100_000,
        pickle.dumps({"state": "queued"}),
    ],
    ids=lambda payload: ascii(payload)[:40],
)
def test_what_is_no_event_is_told_apart(payload: bytes) -> None:
    with pytest.raises(BadEnvelope, match="not an event of a job"):
        decode(payload)


@quick
@given(payload=st.binary(max_size=40))
def test_no_bytes_break_the_reader(payload: bytes) -> None:
    with pytest.raises(BadEnvelope):
        decode(payload)


# -- moments -------------------------------------------------------------------------------------------------


@quick
@given(at=milliseconds)
def test_a_moment_comes_back_to_the_millisecond(at: datetime) -> None:
    assert parse_time(format_time(at)) == at


@quick
@given(at=milliseconds, hours=st.integers(-23, 23))
def test_a_moment_is_written_in_utc(at: datetime, hours: int) -> None:
    elsewhere = at.astimezone(timezone(timedelta(hours=hours)))

    assert format_time(elsewhere) == format_time(at)
    assert format_time(elsewhere).endswith("Z")


def test_a_moment_is_cut_to_the_millisecond_and_never_late() -> None:
    assert format_time(datetime(2026, 1, 1, 12, 0, 0, 999_999, tzinfo=UTC)) == "2026-01-01T12:00:00.999Z"


@pytest.mark.parametrize(
    ("written", "microseconds"),
    [
        ("2026-01-01T12:00:00Z", 0),
        ("2026-01-01T12:00:00.5Z", 500_000),
        ("2026-01-01T12:00:00.123Z", 123_000),
        ("2026-01-01T12:00:00.12345Z", 123_450),
        ("2026-01-01T12:00:00.123456Z", 123_456),
        ("2026-01-01T12:00:00.1234567Z", 123_456),
        ("2026-01-01T12:00:00.123456789Z", 123_456),
        ("2026-01-01T12:00:00.999999999Z", 999_999),
    ],
)
def test_a_moment_of_the_servers_is_read_whatever_its_digits(written: str, microseconds: int) -> None:
    assert parse_time(written) == datetime(2026, 1, 1, 12, 0, 0, microseconds, tzinfo=UTC)
    assert parse_time(written).tzinfo is UTC
