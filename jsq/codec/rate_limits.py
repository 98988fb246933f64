"""The state of a rate limit as JSON."""

import json
from typing import Any

from jsq.errors import BadOption
from jsq.model.rate_limit import Rate, RateLimitState, convert_state, read_rate


def encode_state(state: RateLimitState, rate: Rate) -> bytes:
    """Encode a state, with the rate that it was calculated with."""
    base = state.slices[0][0] if state.slices else 0
    written: dict[str, Any] = {
        "rate": str(rate),
        "base": base,
        "slices": [number for part, count in state.slices for number in (part - base, count)],
        "full_at": state.full_at,
        "deferred_until": state.deferred_until,
        "last_return": state.last_return,
    }
    return json.dumps(written, separators=(",", ":")).encode()


def decode_state(body: bytes, rate: Rate, now: float) -> RateLimitState:
    """Decode a state, converted to `rate` if it was calculated with another rate.

    An unreadable body is an empty state.
    """
    try:
        fields = json.loads(body)
        numbers = [int(number) for number in fields["slices"]]
        taken = tuple(
            (fields["base"] + part, count) for part, count in zip(numbers[::2], numbers[1::2], strict=True)
        )
        state = RateLimitState(
            taken, float(fields["full_at"]), float(fields["deferred_until"]), float(fields["last_return"])
        )
        before = read_rate("rate", fields["rate"]) or rate
    except (ValueError, KeyError, TypeError, BadOption):
        return RateLimitState()
    # Compared as text: a bucket without a burst is encoded with its actual burst.
    return state if fields["rate"] == str(rate) else convert_state(state, before, rate, now)
