"""The waits of a worker that users cannot set, each with its reason; tests shorten them."""

from dataclasses import dataclass

from jsq.broker.jobs.records import RECORD_SECONDS


@dataclass(frozen=True, slots=True)
class WorkerTimings:
    """Seconds that a worker waits.

    `unwind` is how long a cancelled task may clean up before it is killed or abandoned. `newer_release` is
    the delay before a delivery that only a newer release can handle is offered again. `isolation` is how long
    a job that must run alone waits for the others before it is offered to all workers again. `start_ttl` is
    how long the record of a first attempt stays while the attempt runs. It is renewed at half of that.
    """

    unwind: float = 5.0
    newer_release: float = 30.0
    isolation: float = 60.0
    start_ttl: float = RECORD_SECONDS
