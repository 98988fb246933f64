"""What a job keeps between its attempts: its last checkpoint, and the steps it has taken once.

Each is one message in the stream of the event log, on a subject of its own, which the log takes only from the
attempt that the log's last word belongs to. So it disturbs no event, and none who fell silent can write it.

A step is claimed before its effect and done after it. A claim that was not followed by anything is what a
crash between the two leaves: nobody can know then whether the effect happened.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from jsq.errors import BadOption
from jsq.model.job import check_text

CHECKPOINT = "checkpoint"
"""The place of a job's last checkpoint among what it keeps."""

ALL_STEPS = "once.>"
"""The places of all steps."""

MAX_STEP_LENGTH = 128

MAX_VALUE_BYTES = 65_536
"""Bytes of JSON that one kept value may take."""

MAX_STEPS = 256
"""Steps that one job may take."""

OnUnknownStep = Literal["raise", "run", "skip"]
"""What to do with a step that was begun and of which no end is known."""


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """What is known of a step: begun by an `attempt`, and `done` with a `value` perhaps.

    `not_executed` is one whose effect has certainly not happened; `error` is what another raised. `number` is
    how many steps the job had begun when this was written.
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
