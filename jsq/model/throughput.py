"""How many jobs come to a queue and leave it in a second, from two samples of its stream.

The server numbers the messages of a stream, so the last number says how many have ever come. What is
stored says how many of them have left. Nothing has to be counted for each job.
"""

from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_SECONDS = 60.0
"""Seconds over which a throughput is measured."""


@dataclass(frozen=True, slots=True)
class QueueSample:
    """How many jobs had ever come to a queue, and left it, at a moment (monotonic)."""

    at: float
    arrived: int
    departed: int


@dataclass(frozen=True, slots=True)
class Throughput:
    """Jobs that came to a queue and left it each second, over some `seconds`.

    A job comes when it is submitted, due, or tried again; it leaves after each attempt.
    """

    arrivals: float
    departures: float
    seconds: float


def add_sample(samples: Sequence[QueueSample], new: QueueSample) -> list[QueueSample]:
    """Samples with a new one, and without those that the window no longer needs.

    Only the new one if the queue was created again: its numbers begin anew.
    """
    if samples and (new.arrived < samples[-1].arrived or new.departed < samples[-1].departed):
        return [new]
    recent = [one for one in samples if new.at - one.at < WINDOW_SECONDS]
    older = samples[len(samples) - len(recent) - 1 : len(samples) - len(recent)]
    return [*older, *recent, new]


def throughput_of(samples: Sequence[QueueSample]) -> Throughput | None:
    """The throughput from the first to the last sample; None if there is but one."""
    if len(samples) < 2:
        return None
    first, last = samples[0], samples[-1]
    seconds = last.at - first.at
    return Throughput(
        (last.arrived - first.arrived) / seconds, (last.departed - first.departed) / seconds, seconds
    )
