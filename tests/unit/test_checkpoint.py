"""The encoding of the record of a step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import to_json

from jsq.codec.checkpoints import decode, encode, step_key, step_name, with_number
from jsq.errors import BadEnvelope, BadName, StepUnknown
from jsq.model.checkpoint import CheckpointRecord, is_step
from jsq.model.outcome import Failed, judge_outcome
from jsq.model.retry import RetryPolicy

values = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text() | st.lists(st.integers(0, 9))


@settings(deadline=None)
@given(attempt=st.integers(1, 10**6), value=values)
def test_a_completed_step_is_decoded_with_its_value(attempt: int, value: object) -> None:
    body = encode(attempt, value=to_json(value))

    assert decode(body) == CheckpointRecord(attempt, done=True, value=value)
    assert decode(with_number(body, 7)) == CheckpointRecord(attempt, done=True, number=7, value=value)


def test_a_started_step_differs_from_one_that_returned_none() -> None:
    assert decode(encode(3)) == CheckpointRecord(3)
    assert decode(encode(3, value=b"null")) == CheckpointRecord(3, done=True)
    assert decode(encode(3, undone=True)) == CheckpointRecord(3, not_executed=True)
    assert decode(encode(3, error="ValueError: \xe9")) == CheckpointRecord(3, error="ValueError: \xe9")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"5", b"{", b'{"value":1}'])
def test_an_invalid_step_record_is_refused(body: bytes) -> None:
    with pytest.raises(BadEnvelope):
        decode(body)


@pytest.mark.parametrize("name", ["", "a\n", "a" * 129, "\u202e"])
def test_a_step_name_must_be_printable_text(name: str) -> None:
    with pytest.raises(BadName):
        step_key(name)


def test_no_step_name_collides_with_the_checkpoint() -> None:
    assert step_key("checkpoint") == "once.checkpoint"
    assert step_name(step_key("a.b")) == "a.b"
    assert step_key(">") == "once.=3E"
    assert is_step("once.checkpoint")
    assert not is_step("checkpoint")


def test_a_job_whose_step_outcome_is_unknown_is_not_retried() -> None:
    outcome = judge_outcome(StepUnknown("j1", "charge", 1), failures=0, policy=RetryPolicy(9), pick=max)

    assert isinstance(outcome, Failed)
    assert outcome.reason == "step_unknown"
