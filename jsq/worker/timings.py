"""The waits of a worker that are no user's setting, each with its reason; tests shorten them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerTimings:
    """Seconds that a worker waits.

    `unwind` is how long a cancelled task may clean up; then it is killed, or abandoned. `newer_release` is
    the delay before a delivery that only a newer release can handle is offered again.
    """

    unwind: float = 5.0
    newer_release: float = 30.0
