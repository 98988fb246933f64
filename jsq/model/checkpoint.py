"""The values that a job stores between its attempts: its last checkpoint, and its once-steps.

Each value is one message in the stream of the records, on a subject of its own. The server accepts it only
from the attempt that wrote the last revision. So it does not change the record, and a stalled attempt cannot
write it.

A step is claimed before its effect and marked as done after it. A crash between the two leaves a claim only:
then nobody can know whether the effect happened.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from jsq.errors import BadOption
from jsq.model.job import check_text

CHECKPOINT = "checkpoint"
"""The key of a job's last checkpoint among its stored values."""

ALL_STEPS = "once.>"
"""The pattern of the keys of all steps."""

MAX_STEP_LENGTH = 128

MAX_VALUE_BYTES = 65_536
"""Maximum size of one stored value, in bytes of JSON."""

MAX_STEPS = 256
"""Maximum number of steps of one job."""

OnUnknownStep = Literal["raise", "run", "skip"]
"""The handling of a step that was started and has no known end."""


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """The stored state of a step: started by an `attempt`, and possibly `done` with a `value`.

    `not_executed` is true if its effect has certainly not happened; `error` is the exception of a failed
    step. `number` is how many steps the job had started when this was written.
    """

    attempt: int
    done: bool = False
    not_executed: bool = False
    error: str = ""
    number: int = 0
    value: Any = None


def check_step(name: object) -> str:
    """The name of a step: any printable text of some length. Raises `BadName`."""
    return check_text("step", name, MAX_STEP_LENGTH)


def is_step(place: str) -> bool:
    return place.startswith("once.")


def check_on_unknown(unknown: str) -> None:
    if unknown not in get_args(OnUnknownStep):
        raise BadOption("unknown", unknown, f"must be one of {', '.join(get_args(OnUnknownStep))}")
