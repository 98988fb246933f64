"""The encoding of a revision of a record as JSON, and of times as text."""

import hashlib
import json
import pickle
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jsq.broker.jobs.records import is_final
from jsq.codec.revisions import (
    SEPARATE_RESULT,
    argument_members,
    decode,
    encode,
    encode_running,
    encode_succeeded,
    format_time,
    milliseconds,
    moment_of,
    parse_time,
    with_arguments,
)
from jsq.errors import BadEnvelope
from jsq.model.job import PRIORITIES, Job
from jsq.model.revision import (
    FINAL_STATES,
    MAX_RECORD_ARGUMENTS,
    OPEN_STATES,
    SUBMITTED_STATES,
    DeliveryInfo,
    Revision,
)
from jsq.worker.transitions import running_revision
from tests.helpers.examples import examples

quick = examples(100)
text = st.text(st.characters(codec="utf-8"), max_size=20)
counts = st.integers(0, 2**53)
stamps = st.integers(1, 4_000_000_000_000)
moments = st.integers(0, 4_000_000_000_000).map(moment_of)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=10,
)
argument_fields = st.one_of(
    st.just({}),
    json_values.map(lambda value: {"has_arguments": True, "arguments": value}),
    st.integers(1, 2**53).map(lambda size: {"arguments_size": size, "arguments_hash": "0" * 64}),
)
result_fields = st.one_of(
    st.just({}),
    json_values.map(lambda value: {"has_result": True, "result": value}),
    st.just({"separate_result": True}),
)
plain_events = st.builds(
    Revision,
    state=st.sampled_from([*SUBMITTED_STATES, *OPEN_STATES, *FINAL_STATES]),
    task=text.filter(bool),
    attempt=counts,
    failures=counts,
    crashes=counts,
    worker=text,
    message=counts,
    delivery=counts,
    token=counts,
    due=st.none() | moments,
    reason=text,
    error=text,
    traceback=text,
    progress=st.none() | st.floats(0, 1),
    text=text,
    tags=st.lists(text, max_size=3).map(tuple),
    quarantine=text,
    forgiven_crashes=counts,
    key=text,
    expires=st.none() | moments,
    headers=st.dictionaries(text, text, max_size=3),
    retry_until=st.none() | moments,
    callbacks_pending=st.booleans(),
    fallback=text,
    interruptions=counts,
    priority=st.sampled_from(["", "high", "low"]),
    submitted=st.none() | stamps.map(moment_of),
    first_started=st.none() | stamps.map(moment_of),
    started=st.none() | stamps.map(moment_of),
)
events = st.builds(
    lambda event, arguments, result: replace(event, **arguments, **result),
    plain_events,
    argument_fields,
    result_fields,
)


@quick
@given(event=events)
def test_a_revision_is_decoded_as_it_was_encoded(event: Revision) -> None:
    assert decode(encode(event)) == event


@quick
@given(event=events)
def test_a_final_revision_is_recognized_without_decoding_it(event: Revision) -> None:
    assert is_final(encode(event)) == (event.state in FINAL_STATES)


names = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)
jobs = st.builds(
    Job,
    id=names,
    task=names,
    priority=st.sampled_from(PRIORITIES),
    tags=st.lists(text, max_size=3),
    headers=st.dictionaries(text.filter(bool), text, max_size=3),
    failures=st.integers(0, 2000),
    crashes=st.integers(0, 100),
    quarantine=st.just("") | names,
    forgiven_crashes=st.just(0),
    key=text,
    expires=st.none() | moments,
    retry_until=st.none() | moments,
    interruptions=st.integers(0, 100),
    first_started=st.just(0) | stamps,
) | st.builds(Job, id=names, task=names, quarantine=names, forgiven_crashes=st.integers(0, 100))
deliveries = st.builds(
    DeliveryInfo, worker=names, message=st.integers(1, 2**53), delivery=st.integers(1, 1000)
)
raw_arguments = json_values.map(lambda value: json.dumps(value).encode())


@quick
@given(job=jobs, delivery=deliveries, submitted=stamps, started=stamps)
def test_the_fast_encoding_of_a_start_equals_that_of_its_event(
    job: Job, delivery: DeliveryInfo, submitted: int, started: int
) -> None:
    event = running_revision(job, delivery, submitted, started)

    assert decode(encode_running(job, delivery, submitted, started)) == decode(encode(event)) == event


def test_the_fast_encoding_of_a_plain_start_is_the_same_bytes() -> None:
    job, delivery = Job("j1", "mail"), DeliveryInfo("w1", 7, 1)

    fast = encode_running(job, delivery, 1_700_000_000_000, 1_700_000_000_001)

    assert fast == encode(running_revision(job, delivery, 1_700_000_000_000, 1_700_000_000_001))


@quick
@given(
    job=jobs,
    delivery=deliveries,
    submitted=stamps,
    token=st.integers(1, 2**53),
    value=json_values,
    arguments=raw_arguments,
)
def test_the_fast_encoding_of_a_success_equals_that_of_its_event(
    job: Job, delivery: DeliveryInfo, submitted: int, token: int, value: Any, arguments: bytes
) -> None:
    running = encode_running(job, delivery, submitted, submitted + 1)
    ended = replace(running_revision(job, delivery, submitted, submitted + 1), state="succeeded", token=token)
    packed = json.dumps({"result": value}).encode()
    members, expected = argument_members(arguments), with_arguments(ended, arguments)

    encoded = encode_succeeded(running, token, members, packed)
    assert is_final(encoded)
    assert decode(encoded) == decode(encode(replace(expected, has_result=True, result=value)))
    assert decode(encode_succeeded(running, token, b"", packed)) == replace(
        ended, has_result=True, result=value
    )
    assert decode(encode_succeeded(running, token, members, b"")) == expected
    assert decode(encode_succeeded(running, token, b"", b"")) == ended


@quick
@given(job=jobs, delivery=deliveries, submitted=stamps)
def test_a_success_marks_a_result_that_is_stored_under_its_own_key(
    job: Job, delivery: DeliveryInfo, submitted: int
) -> None:
    running = encode_running(job, delivery, submitted, submitted)

    read = decode(encode_succeeded(running, 9, b"", SEPARATE_RESULT))

    assert (read.separate_result, read.result, read.state) == (True, None, "succeeded")


# -- arguments -----------------------------------------------------------------------------------------------

ENDED = Revision("failed", "mail")
RUNNING = encode_running(Job("j1", "mail"), DeliveryInfo("w1", 7, 1), 1, 1)


def succeeded_with(arguments: bytes) -> Revision:
    """The decoded revision of a success of a job with these arguments."""
    return decode(encode_succeeded(RUNNING, 9, argument_members(arguments), b""))


@quick
@given(value=json_values)
def test_a_final_revision_has_the_arguments(value: Any) -> None:
    packed = json.dumps(value).encode()

    for read in (decode(encode(with_arguments(ENDED, packed))), succeeded_with(packed)):
        assert (read.has_arguments, read.arguments, read.arguments_size) == (True, value, 0)


@pytest.mark.parametrize("more", [0, 1, 100_000])
def test_arguments_over_8_kib_are_recorded_by_their_size_and_hash(more: int) -> None:
    packed = json.dumps({"text": "x" * (MAX_RECORD_ARGUMENTS - len('{"text": ""}') + more)}).encode()
    assert len(packed) == 8192 + more

    for read in (decode(encode(with_arguments(ENDED, packed))), succeeded_with(packed)):
        assert read.has_arguments == (more == 0)
        assert (read.arguments_size, read.arguments_hash) == (
            (len(packed), hashlib.sha256(packed).hexdigest()) if more else (0, "")
        )


@quick
@given(arguments=st.binary(max_size=40))
@example(arguments=b"")
@example(arguments=b"1,2")
@example(arguments=b"1],[2")
@example(arguments=b"x" * 300)
@example(arguments=b'"\\ud800"')
def test_arguments_that_are_not_json_are_recorded_by_their_size_and_hash(arguments: bytes) -> None:
    read = decode(encode(with_arguments(ENDED, arguments)))

    if read.has_arguments:
        assert read.arguments == json.loads(arguments)
    else:
        assert read.arguments_size == len(arguments)
        assert read.arguments_hash == hashlib.sha256(arguments).hexdigest()


@pytest.mark.parametrize("depth", [100, *range(196, 206), 4000])
def test_arguments_of_any_depth_leave_the_record_readable(depth: int) -> None:
    arguments = b"[" * depth + b"]" * depth

    for read in (decode(encode(with_arguments(ENDED, arguments))), succeeded_with(arguments)):
        assert read.has_arguments == (read.arguments_size == 0) == (read.arguments_hash == "")
        assert read.has_arguments == (depth <= 200)


# -- decoding ------------------------------------------------------------------------------------------------


def test_empty_fields_are_omitted() -> None:
    assert encode(Revision("queued", "mail")) == b'{"state":"queued","task":"mail"}'


def test_progress_zero_differs_from_no_progress() -> None:
    assert decode(encode(Revision("running", "mail", progress=0.0))).progress == 0.0
    assert decode(encode(Revision("running", "mail"))).progress is None


def test_unknown_fields_are_ignored() -> None:
    assert decode(b'{"state":"queued","task":"mail","colour":"red"}') == Revision("queued", "mail")


def test_an_event_of_a_message_without_a_task_can_be_decoded() -> None:
    rejected = Revision("failed", "", reason="bad_envelope", error="no job")
    assert decode(encode(rejected)) == rejected


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
def test_a_payload_that_is_not_an_event_is_refused(payload: bytes) -> None:
    with pytest.raises(BadEnvelope, match="not a record of a job"):
        decode(payload)


@quick
@given(payload=st.binary(max_size=40))
def test_the_decoder_raises_only_its_own_error_for_any_bytes(payload: bytes) -> None:
    with pytest.raises(BadEnvelope):
        decode(payload)


# -- times ---------------------------------------------------------------------------------------------------


@quick
@given(at=moments)
def test_a_time_is_decoded_to_the_millisecond(at: datetime) -> None:
    assert parse_time(format_time(at)) == at


@quick
@given(at=moments, hours=st.integers(-23, 23))
def test_a_time_is_written_in_utc(at: datetime, hours: int) -> None:
    elsewhere = at.astimezone(timezone(timedelta(hours=hours)))

    assert format_time(elsewhere) == format_time(at)
    assert format_time(elsewhere).endswith("Z")


@quick
@given(stamp=stamps)
def test_a_time_in_milliseconds_survives_the_round_trip(stamp: int) -> None:
    assert milliseconds(moment_of(stamp).timestamp()) == stamp


def test_a_time_is_rounded_down_to_the_millisecond() -> None:
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
def test_a_server_time_is_read_with_any_number_of_digits(written: str, microseconds: int) -> None:
    assert parse_time(written) == datetime(2026, 1, 1, 12, 0, 0, microseconds, tzinfo=UTC)
    assert parse_time(written).tzinfo is UTC
