"""The encoding of a job as a message, and messages that are not jobs."""

import json
import math
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsq.codec.envelope import ATTEMPTS, DEADLINE, ENVELOPE_VERSION, JOB, ORIGIN_QUEUE, decode, encode
from jsq.errors import BadEnvelope, BadName, BadOption, NewerEnvelope
from jsq.model.durations import MAX_DURATION
from jsq.model.job import PRIORITIES, Job
from jsq.model.options import Options
from jsq.model.retry import Backoff
from tests.helpers.examples import examples

quick = examples(100)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True)
lines = st.text(st.characters(codec="utf-8"), max_size=20).filter(str.isprintable)
durations = st.none() | st.floats(0.001, MAX_DURATION)
counts = st.integers(0, 2**53)
backoffs = st.builds(
    Backoff,
    shape=st.sampled_from(["none", "linear", "exponential"]),
    base=st.floats(0.001, 100),
    factor=st.floats(1, 100),
    ceiling=st.floats(100, MAX_DURATION),
    steps=st.lists(st.floats(0, MAX_DURATION), max_size=5).map(tuple),
    jitter=st.none() | st.floats(0, 1),
)
moments = st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(
    lambda at: at.replace(microsecond=at.microsecond // 1000 * 1000)
)
"""Times with the precision of a message: milliseconds."""
deadlines = st.integers(1, 10**9).map(lambda ms: ms / 1000) | moments
jobs = st.builds(
    Job,
    id=names,
    task=st.lists(names, min_size=1, max_size=3).map(".".join),
    queue=names,
    priority=st.sampled_from(PRIORITIES),
    arguments=st.binary(max_size=50),
    headers=st.dictionaries(names.map("X-".__add__), lines, max_size=4),
    tags=st.lists(lines.filter(bool), max_size=4).map(tuple),
    retries=st.none() | st.integers(0, 1000),
    backoff=st.none() | backoffs,
    timeout=durations,
    keep_result=durations,
    failures=counts,
    crashes=counts,
    previous_sequence=counts,
    deadline=st.none() | deadlines,
    retry_for=durations,
    retry_until=st.none() | moments,
    callback_of=st.just("") | names,
    interruptions=counts,
    first_started=counts,
)


def opened(headers: dict[str, str] | None, payload: bytes = b"{}") -> Job:
    return decode(headers, payload, id="j1", queue="mail")


def order(**fields: Any) -> dict[str, str]:
    """The headers of a message of another program."""
    return {JOB: json.dumps({"v": ENVELOPE_VERSION, "task": "send"} | fields)}


# -- round trips ---------------------------------------------------------------------------------------------


@quick
@given(job=jobs)
def test_a_job_is_decoded_as_it_was_encoded(job: Job) -> None:
    headers = encode(job)

    assert decode(headers, job.arguments, id=job.id, queue=job.queue, priority=job.priority) == job


@quick
@given(job=jobs)
def test_headers_are_lines_of_ascii_on_the_wire(job: Job) -> None:
    for name, value in encode(job).items():
        assert (name + value).isascii()
        assert (name + value).isprintable()


def test_a_quarantined_job_is_decoded_with_its_origin_queue() -> None:
    job = Job("j1", "send", "mail", crashes=4, previous_sequence=9, quarantine="apart", forgiven_crashes=3)

    assert encode(job)[ORIGIN_QUEUE] == "mail 3"
    assert decode(encode(job), job.arguments, id="j1", queue="apart") == job


@pytest.mark.parametrize("header", ["", "mail", "mail x", "a.b 3", "mail 3 4", "mail -1"])
def test_an_invalid_origin_queue_is_refused(header: str) -> None:
    with pytest.raises(BadEnvelope):
        opened(order() | {ORIGIN_QUEUE: header})


def test_a_plain_job_takes_one_small_header() -> None:
    assert encode(Job("j1", "emails.send")) == {JOB: '{"v":1,"task":"emails.send"}'}


def test_a_later_attempt_carries_the_counts_of_earlier_ones() -> None:
    assert encode(Job("j1", "send", failures=1, previous_sequence=4711))[ATTEMPTS] == "1 0 4711"


def test_text_of_any_script_is_sent_as_escapes() -> None:
    headers = encode(Job("j1", "send", tags=("é🐢",)))

    assert headers[JOB] == '{"v":1,"task":"send","tags":["\\u00e9\\ud83d\\udc22"]}'
    assert opened(headers).tags == ("é🐢",)


def test_a_worker_reads_every_option_that_a_submit_accepts() -> None:
    options = Options(
        headers={"X-A": '"\\ é🐢'},
        tags=("a",),
        retries=0,
        backoff=Backoff("none"),
        timeout=0.001,
        keep_result=0.0,
    )

    job = opened(
        encode(
            Job(
                "j1",
                "send",
                headers=options.headers,
                tags=options.tags,
                retries=options.retries,
                backoff=options.backoff,
                timeout=options.timeout,
                keep_result=options.keep_result,
            )
        )
    )

    assert (job.retries, job.timeout, job.keep_result) == (0, 0.001, 0.0)
    assert (job.headers, job.tags, job.backoff) == (options.headers, ("a",), Backoff("none"))


# -- other releases ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ENVELOPE_VERSION + 1, 99, 2.5])
def test_a_job_of_a_later_release_is_recognized(version: float) -> None:
    with pytest.raises(
        NewerEnvelope, match=f"job j1 has envelope version {version}; this release reads up to 1"
    ):
        opened(order(v=version, task={"unheard": "of"}))


def test_unknown_fields_are_ignored() -> None:
    headers = order(colour="red", backoff={"shape": "linear", "base": 2.0, "tint": 1}) | {"Nats-Msg-Id": "x"}

    assert opened(headers) == Job("j1", "send", "mail", backoff=Backoff("linear", 2.0))


def test_omitted_fields_are_left_to_the_task() -> None:
    job = opened(order())

    assert (job.retries, job.backoff, job.timeout, job.keep_result) == (None, None, None, None)
    assert (job.failures, job.crashes, job.previous_sequence, job.attempt) == (0, 0, 0, 1)


# -- messages that are not jobs ------------------------------------------------------------------------------

WHOLE = encode(Job("j1", "send", tags=("a",), retries=3))[JOB]


@pytest.mark.parametrize(
    "headers",
    [
        None,
        {},
        {"Jsq-Other": WHOLE},
        {JOB: ""},
        {JOB: "not JSON"},
        {JOB: pickle.dumps({"v": 1}).decode("latin-1")},
        {JOB: "null"},
        {JOB: "[]"},
        {JOB: '"text"'},
        {JOB: "5"},
        {JOB: '{"task": "send"}'},
        {JOB: '{"v": 1}'},
        {JOB: '{"v": 1, "task": "\\ud800"}'},
        {JOB: '{"a":' * 100_000},
        order(v="1"),
        order(v=None),
        order(v=[1]),
        order(task=""),
        order(task="a b"),
        order(task=5),
        order(task="t" * 60_000),
        order() | {DEADLINE: ""},
        order() | {DEADLINE: "30"},
        order() | {DEADLINE: "+soon"},
        order() | {DEADLINE: "+nan"},
        order() | {DEADLINE: "+-1"},
        order() | {DEADLINE: "2030-13-01T00:00:00.000Z"},
        order(headers=[1]),
        order(headers={"Nats-Rollup": "all"}),
        order(headers={"X-A": 5}),
        order(headers={"X-A": "a\r\nb"}),
        order(tags=5),
        order(tags=[5]),
        order(tags=["a\nb"]),
        order(retries="many"),
        order(retries=-1),
        order(retries=1.5),
        order(timeout="5m"),
        order(timeout=0),
        order(timeout=math.nan),
        order(keep_result=-1),
        order(keep_result=math.inf),
        order(backoff="linear"),
        order(backoff={"shape": "quadratic"}),
        order(backoff={"base": None}),
        order(backoff={"factor": "2"}),
        order(backoff={"steps": [None]}),
        order(backoff={"steps": 5}),
        order() | {ATTEMPTS: ""},
        order() | {ATTEMPTS: "1 2"},
        order() | {ATTEMPTS: "1 2 3 4"},
        order() | {ATTEMPTS: "a b c"},
        order() | {ATTEMPTS: "-1 0 0"},
        order() | {ATTEMPTS: "1.0 0 0"},
        order() | {ATTEMPTS: f"{'9' * 5_000} 0 0"},
    ],
    ids=lambda headers: ascii(headers)[:60],
)
def test_a_message_that_is_not_a_job_is_recognized(headers: dict[str, str] | None) -> None:
    with pytest.raises(BadEnvelope, match="message j1 on queue mail is not a job: ") as refused:
        opened(headers)

    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_a_truncated_job_is_refused(length: int) -> None:
    with pytest.raises(BadEnvelope):
        opened({JOB: WHOLE[:length]})


@quick
@given(text=st.text(max_size=40), again=st.text(max_size=12))
def test_the_decoder_raises_only_bad_envelope_for_any_text(text: str, again: str) -> None:
    with pytest.raises(BadEnvelope):
        opened({JOB: text, ATTEMPTS: again})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@quick
@given(
    fields=st.dictionaries(
        st.sampled_from(["headers", "tags", "retries", "backoff", "timeout", "keep_result"]),
        json_values,
        max_size=3,
    )
)
def test_every_decoded_job_has_options_that_a_submit_accepts(fields: dict[str, Any]) -> None:
    try:
        job = opened(order(**fields))
    except BadEnvelope:
        return

    try:
        Options(
            headers=job.headers,
            tags=job.tags,
            retries=job.retries,
            backoff=job.backoff,
            timeout=job.timeout,
            keep_result=job.keep_result,
        )
    except (BadName, BadOption) as refused:
        pytest.fail(str(refused))


def test_the_envelope_does_not_parse_the_payload() -> None:
    payload = pickle.dumps(print)

    assert opened(order(), payload).arguments is payload
