"""The cause of a failure, shortened to the size limit of a dead letter."""

import json

import pytest

from jsq.broker.operations.dead_letters import MAX_CAUSE_BYTES, encode_cause


def test_a_cause_that_fits_is_stored_uncut() -> None:
    why = {"reason": "error", "error": "ValueError: no", "traceback": "  File x\n    boom()\n"}

    assert json.loads(encode_cause(why, 8_000)) == why


@pytest.mark.parametrize("room", [200, 1_000, 10**6])
def test_a_long_traceback_keeps_its_innermost_frames(room: int) -> None:
    why = {"reason": "error", "error": "ValueError: no", "traceback": "\n".join(map(str, range(5_000)))}

    encoded = encode_cause(why, room)

    assert len(encoded) <= min(room, MAX_CAUSE_BYTES)
    assert json.loads(encoded)["error"] == "ValueError: no"
    assert json.loads(encoded)["traceback"].endswith("4999")


def test_with_little_space_the_traceback_is_dropped_before_the_error_is_cut() -> None:
    why = {"reason": "error", "error": "e" * 9_000, "traceback": "t" * 9_000}

    encoded = json.loads(encode_cause(why, 100))

    assert (encoded["reason"], encoded["traceback"]) == ("error", "")
    assert 0 < len(encoded["error"]) < 100
