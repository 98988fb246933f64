"""The translation of replies of the server."""

import base64

import pytest

from jsq.errors import BrokerError, ForeignStream, JetStreamOff, QueueFull, Refused
from jsq.transport.replies import (
    NoReply,
    WrongSequence,
    acknowledged,
    block,
    header_line,
    leader_reply,
    translate,
)


def test_an_acknowledgement_has_the_sequence() -> None:
    assert acknowledged(b'{"stream":"S","seq":7}', "jsq.q.mail.normal.x") == 7


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (10071, "wrong last sequence: 12", WrongSequence),
        (10076, "JetStream not enabled for account", JetStreamOff),
        (10058, "stream name already in use with a different configuration", ForeignStream),
        (10077, "maximum messages exceeded", QueueFull),
        (10000, "something new", Refused),
    ],
)
def test_a_refusal_is_translated_to_its_error_class(code: int, text: str, kind: type[BrokerError]) -> None:
    error = translate({"err_code": code, "description": text}, "jsq.q.mail.normal.x")

    assert type(error) is kind


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (10164, "wrong last sequence"),
        (10008, "JetStream system temporarily unavailable"),
        (10005, "no suitable peers for placement, peer offline"),
    ],
)
def test_errors_during_an_election_can_be_retried(code: int, text: str) -> None:
    error = translate({"err_code": code, "description": text}, "jsq.q.mail.normal.x")

    assert isinstance(error, NoReply)
    assert not error.sent, "this try was not stored; an earlier one may have been"


def test_a_message_read_from_the_leader_equals_any_other() -> None:
    stored = block(header_line("Nats-TTL", "60"), header_line("Jsq-Job", '{"task":"send"}'))
    reply = leader_reply(
        "KV_jsq_jobs",
        {
            "subject": "$KV.jsq_jobs.mail.x",
            "seq": 12,
            "time": "2026-11-25T10:00:00.5Z",
            "hdrs": base64.b64encode(stored).decode(),
            "data": base64.b64encode(b"{}").decode(),
        },
    )

    assert reply.payload == b"{}"
    assert reply.status == ""
    assert reply.headers == {
        "Nats-TTL": "60",
        "Jsq-Job": '{"task":"send"}',
        "Nats-Stream": "KV_jsq_jobs",
        "Nats-Subject": "$KV.jsq_jobs.mail.x",
        "Nats-Sequence": "12",
        "Nats-Time-Stamp": "2026-11-25T10:00:00.5Z",
    }


def test_a_message_without_headers_and_body_can_be_read() -> None:
    reply = leader_reply("S", {"subject": "s", "seq": 1, "time": "2026-11-25T10:00:00Z"})

    assert (reply.payload, reply.headers["Nats-Sequence"]) == (b"", "1")
