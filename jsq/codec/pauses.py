"""The pauses of a queue as JSON."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import get_args

from jsq.model.pause import Pause, PauseReason, PauseSet


def encode_pauses(pauses: PauseSet) -> bytes:
    written = [
        {
            "task": pause.task,
            "key": pause.key,
            "until": pause.until.isoformat() if pause.until else None,
            "reason": pause.reason,
        }
        for pause in pauses.pauses.values()
    ]
    return json.dumps(written).encode()


def decode_pauses(body: bytes) -> PauseSet:
    """Decode pauses; an unreadable body has none."""
    try:
        found = [decode_pause(one) for one in json.loads(body)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return PauseSet()
    return PauseSet({pause.scope: pause for pause in found})


def decode_pause(fields: Mapping[str, str | None]) -> Pause:
    until = fields["until"]
    reason: PauseReason = "rate_limited" if fields["reason"] == get_args(PauseReason)[1] else "paused"
    moment = datetime.fromisoformat(until).astimezone(UTC) if until else None
    return Pause(str(fields["task"]), str(fields["key"]), moment, reason)
