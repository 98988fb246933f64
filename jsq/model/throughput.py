"""How many jobs arrive at a queue and leave it per second, from two samples of its stream.

The server numbers the messages of a stream, so the last number is the count of all arrivals, and the stored
messages show how many have left. So nothing is counted per job.
"""

from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_SECONDS = 60.0
"""Seconds over which a throughput is measured."""


@dataclass(frozen=True, slots=True)
class QueueSample:
    """The numbers of jobs that had arrived at a queue and left it at a time (monotonic)."""

    at: float
    arrived: int
    departed: int


@dataclass(frozen=True, slots=True)
class Throughput:
    """Jobs that arrived at a queue and left it per second, over some `seconds`.

    A job arrives when it is submitted, due, or retried; it leaves after each attempt.
    """

    arrivals: float
    departures: float
    seconds: float


def add_sample(samples: Sequence[QueueSample], new: QueueSample) -> list[QueueSample]:
    """Samples with a new one, and without those that the window no longer needs.

    Only the new one if the queue was created again: its numbers start again.
    """
    if samples and (new.arrived < samples[-1].arrived or new.departed < samples[-1].departed):
        return [new]
    recent = [one for one in samples if new.at - one.at < WINDOW_SECONDS]
    older = samples[len(samples) - len(recent) - 1 : len(samples) - len(recent)]
    return [*older, *recent, new]


def throughput_of(samples: Sequence[QueueSample]) -> Throughput | None:
    """The throughput from the first to the last sample; None if there is only one."""
    if len(samples) < 2:
        return None
    first, last = samples[0], samples[-1]
    seconds = last.at - first.at
    return Throughput(
        (last.arrived - first.arrived) / seconds, (last.departed - first.departed) / seconds, seconds
    )
