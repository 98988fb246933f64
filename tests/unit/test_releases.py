"""The messages and records of release 0.1.0, byte for byte.

Every later release reads them, because workers are upgraded one after another. These lines never change; a
release with another format adds its own lines.
"""

import json
from datetime import UTC, datetime

import pytest

from jsq.codec import envelope, revisions
from jsq.model.job import Job
from jsq.model.retry import Backoff
from jsq.model.revision import Revision

HEADERS = {
    "Jsq-Job": '{"v":1,"task":"emails.send","headers":{"X-Trace":"7"},"tags":["x"],"backoff":{"shape":'
    '"exponential","base":2.0,"factor":3.0,"ceiling":60.0,"steps":[]},"retries":5,"timeout":30.0,'
    '"keep_result":600.0}',
    "Jsq-Attempts": "2 1 41",
}


def test_an_envelope_of_0_1_0_is_read() -> None:
    job = envelope.decode(HEADERS, b'{"args":["a@b.c"]}', id="j1", queue="mail", priority="high")

    assert job == Job(
        id="j1",
        task="emails.send",
        queue="mail",
        priority="high",
        arguments=b'{"args":["a@b.c"]}',
        headers={"X-Trace": "7"},
        tags=("x",),
        retries=5,
        backoff=Backoff(shape="exponential", base=2.0, factor=3.0, ceiling=60.0, steps=()),
        timeout=30.0,
        keep_result=600.0,
        failures=2,
        crashes=1,
        previous_sequence=41,
    )


def test_an_envelope_without_retry_options_has_the_format_of_0_1_0() -> None:
    """A worker of that release can read the jobs of this one, unless they use newer features."""
    job = envelope.decode(HEADERS, b"{}", id="j1", queue="mail")
    written = envelope.encode(job)

    assert json.loads(written["Jsq-Job"]) == json.loads(HEADERS["Jsq-Job"])
    assert written.keys() == HEADERS.keys()


def test_the_smallest_envelope_of_0_1_0_is_read() -> None:
    job = envelope.decode({"Jsq-Job": '{"v":1,"task":"send"}'}, b"{}", id="j1", queue="mail")

    assert job == Job(id="j1", task="send", queue="mail", arguments=b"{}")


@pytest.mark.parametrize(
    ("written", "event"),
    [
        (
            b'{"state":"queued","task":"emails.send","tags":["x"]}',
            Revision("queued", "emails.send", tags=("x",)),
        ),
        (
            (
                b'{"state":"running","task":"emails.send","attempt":2,"failures":1,"crashes":1,"worker":"w",'
                b'"message":7,"delivery":2}'
            ),
            Revision("running", "emails.send", 2, 1, 1, worker="w", message=7, delivery=2),
        ),
        (
            (
                b'{"state":"retrying","task":"emails.send","attempt":2,"failures":2,"worker":"w","message":7,'
                b'"delivery":2,"token":12,"error":"ValueError: no","due":"2026-11-25T10:00:00.000Z"}'
            ),
            Revision(
                "retrying",
                "emails.send",
                2,
                2,
                worker="w",
                message=7,
                delivery=2,
                token=12,
                due=datetime(2026, 11, 25, 10, tzinfo=UTC),
                error="ValueError: no",
            ),
        ),
        (
            (
                b'{"state":"succeeded","task":"emails.send","attempt":3,"worker":"w","message":9,"delivery":1,'
                b'"token":15,"has_result":true,"result":{"a":1}}'
            ),
            Revision(
                "succeeded",
                "emails.send",
                3,
                worker="w",
                message=9,
                delivery=1,
                token=15,
                has_result=True,
                result={"a": 1},
            ),
        ),
    ],
    ids=["queued", "running", "retrying", "succeeded"],
)
def test_an_event_of_0_1_0_is_read(written: bytes, event: Revision) -> None:
    assert revisions.decode(written) == event
