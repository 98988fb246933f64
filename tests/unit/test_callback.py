"""The pending callbacks of a failure, and their ids."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsq.codec import envelope, revisions
from jsq.codec.callbacks import MAX_CALLBACK_ARGUMENTS, encode_failure, failure_of
from jsq.codec.envelope import new_id
from jsq.codec.signature import Signature
from jsq.model.callback import Callbacks, Failure, callback_id, pending_callbacks, with_pending_callbacks
from jsq.model.job import Job, check_id
from jsq.model.revision import Revision
from tests.helpers.examples import examples

ALL = Callbacks("failed", "dead", "instead")
JOB = Job("j1", "mail", "mails", arguments=b'{"to":"a"}', tags=("x",))
IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=128).filter(str.isprintable)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def event(state: str, **fields: Any) -> Revision:
    return Revision(state, "mail", **({"attempt": 1, "token": 7} | fields))


@pytest.mark.parametrize(
    ("revision", "wanted"),
    [
        (event("failed", reason="error"), ["failed", "dead", "fallback"]),
        (event("failed", reason="rejected"), ["failed", "dead", "fallback"]),
        (event("failed", reason="crashed"), ["dead", "fallback"]),
        (event("failed", reason="overdue"), ["dead", "fallback"]),
        (event("retrying", failures=1), ["failed"]),
        (event("retrying", reason="quarantined"), []),
        (event("retrying", token=0, attempt=0), []),  # a retried dead letter
        (event("snoozed"), []),
        (event("interrupted"), []),
        (event("succeeded"), []),
        (event("cancelled"), []),
        (event("expired"), []),
    ],
    ids=str,
)
def test_an_event_has_its_pending_callbacks(revision: Revision, wanted: list[str]) -> None:
    recorded = with_pending_callbacks(revision, JOB, ALL)

    assert [kind for kind, _ in pending_callbacks(recorded, JOB, ALL)] == wanted
    assert recorded.callbacks_pending is bool(wanted)
    assert recorded.fallback == ("j1-fallback-7" if "fallback" in wanted else "")


def test_without_callbacks_nothing_is_pending_and_the_event_does_not_grow() -> None:
    failed = event("failed", reason="error")

    assert with_pending_callbacks(failed, JOB, Callbacks()) is not None
    assert with_pending_callbacks(failed, JOB, Callbacks()) == failed
    assert revisions.encode(with_pending_callbacks(failed, JOB, Callbacks())) == revisions.encode(failed)


def test_a_callback_has_a_fallback_but_no_callbacks_of_its_own() -> None:
    callback = Job("j1-dead-7", "alert", callback_of="j1")

    recorded = with_pending_callbacks(event("failed", reason="error"), callback, ALL)

    assert list(pending_callbacks(recorded, callback, ALL)) == [("fallback", "instead")]
    assert (
        list(pending_callbacks(with_pending_callbacks(event("retrying"), callback, ALL), callback, ALL)) == []
    )


def test_recorded_callbacks_stay_pending_after_the_declaration_drops_them() -> None:
    recorded = with_pending_callbacks(event("failed", reason="error"), JOB, ALL)

    assert recorded.callbacks_pending
    assert list(pending_callbacks(recorded, JOB, Callbacks(on_dead="dead"))) == [("dead", "dead")]


@examples(60)
@given(id=IDS, token=st.integers(1, 10**18))
def test_a_callback_id_is_valid_for_a_job_id_of_any_length(id: str, token: int) -> None:
    found = callback_id(id, "fallback", token)

    assert check_id(found) == found
    assert found.endswith(f"-fallback-{token}")
    assert found == callback_id(id, "fallback", token)
    assert found != callback_id(id, "fallback", token + 1)


def test_callback_ids_of_different_long_job_ids_differ() -> None:
    assert callback_id("x" * 128, "dead", 7) != callback_id("x" * 127 + "y", "dead", 7)


def test_a_chain_of_fallbacks_has_valid_ids() -> None:
    id = new_id()
    for token in range(1_000_000, 1_000_010):
        id = check_id(callback_id(id, "fallback", token))


def test_a_callback_receives_the_failure() -> None:
    failure = failure_of(
        JOB,
        event("retrying", error="KeyError: 'k'", traceback="where", due=NOON, attempt=2, tags=("x",)),
    )

    assert failure == Failure(
        "j1",
        "mail",
        "mails",
        2,
        "KeyError: 'k'",
        "where",
        due=NOON,
        tags=("x",),
        arguments={"to": "a"},
    )
    assert not failure.dead


def on_dead(failure: Failure) -> None: ...
def untyped(failure): ...  # type: ignore[no-untyped-def]  # what users write
def loose(failure: dict[str, Any]) -> None: ...


@pytest.mark.parametrize("function", [on_dead, untyped, loose])
def test_a_callback_may_annotate_its_parameter_or_not(function: Any) -> None:
    failure = failure_of(JOB, event("failed", reason="error", error="E: 1", due=None))

    [[got], named] = Signature(function).unpack(encode_failure(failure))

    assert named == {}
    if function is on_dead:
        assert got == failure
        assert got.dead
    else:
        assert (got["job"], got["reason"], got["arguments"]) == ("j1", "error", {"to": "a"})


def test_unknown_fields_of_a_failure_are_ignored() -> None:
    failure = encode_failure(failure_of(JOB, event("failed", reason="error"))).replace(
        b'"job":', b'"new":1,"job":'
    )

    [[got], _] = Signature(on_dead).unpack(failure)

    assert got.job == "j1"


def test_large_arguments_are_left_out_of_a_failure() -> None:
    large = Job("j1", "mail", arguments=b'{"a":"' + b"x" * MAX_CALLBACK_ARGUMENTS + b'"}')

    assert failure_of(large, event("failed")).arguments is None


@pytest.mark.parametrize(
    "arguments",
    [b"no json", b"", b"{", b'{"a":"\\ud800"}', b"\xff", b"[" * 250 + b"]" * 250, b"1],[2"],
    ids=lambda one: repr(one[:20]),
)
def test_arguments_that_cannot_be_sent_are_left_out_of_a_failure(arguments: bytes) -> None:
    failure = failure_of(Job("j1", "mail", arguments=arguments), event("failed", reason="bad_arguments"))

    assert failure.arguments is None
    assert Signature(on_dead).unpack(encode_failure(failure)) == ([failure], {})


@pytest.mark.parametrize("depth", range(190, 205))
def test_a_callback_can_read_arguments_of_any_depth(depth: int) -> None:
    failure = failure_of(Job("j1", "mail", arguments=b"[" * depth + b"]" * depth), event("failed"))

    assert Signature(on_dead).unpack(encode_failure(failure)) == ([failure], {})


def test_numbers_that_json_lacks_reach_a_callback() -> None:
    odd = Job("j1", "mail", arguments=b'{"a":NaN,"b":Infinity}')

    [[got], _] = Signature(on_dead).unpack(encode_failure(failure_of(odd, event("failed"))))

    assert str(got.arguments) == "{'a': nan, 'b': inf}"


def test_the_message_of_a_callback_marks_it_as_one() -> None:
    job = Job("j1-dead-7", "alert", callback_of="j1", retry_until=NOON)

    assert envelope.decode(envelope.encode(job), b"{}", id=job.id) == job
    assert "Jsq-Callback-Of" not in envelope.encode(Job("j1", "mail"))
