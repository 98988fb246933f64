"""The metrics of queues. Each worker reads them from the server; the last reading counts."""

from jsq.broker import QueueStats
from jsq.model.job import PRIORITIES
from jsq.model.throughput import Throughput
from jsq.telemetry.instruments import GaugeInstrument, Instruments


class QueueMetrics:
    """The gauges of queues. All workers of a queue report the same values: use the maximum, not the sum."""

    def __init__(self, instruments: Instruments) -> None:
        def gauge(name: str, about: str, *labels: str) -> GaugeInstrument:
            return instruments.gauge(f"queue_{name}", about, "queue", *labels, mode="livemostrecent")

        self._depth = gauge("depth", "Jobs that wait for a worker.", "priority")
        self._waiting_for_key = gauge("waiting_for_key", "Jobs that wait in the group of their key.")
        self._running = gauge("running", "Jobs that workers hold.")
        self._scheduled = gauge(
            "scheduled", "Jobs that are not due yet, or that no worker has moved to the queue."
        )
        self._oldest = gauge("oldest_job_age_seconds", "Seconds that the oldest waiting job has waited.")
        self._arrivals = gauge("arrivals_per_second", "Jobs that arrived each second, over a minute.")
        self._departures = gauge(
            "departures_per_second", "Jobs that ended or left each second, over a minute."
        )
        self._dead = gauge("dead_letters", "Dead letters, counted once a minute.")
        self._revisions = gauge(
            "revisions", "Revisions of records, two for most jobs; counted once a minute."
        )

    def set(self, stats: QueueStats, throughput: Throughput | None) -> None:
        queue = stats.queue
        for priority, count in stats.waiting.items():
            self._depth.labels(queue, priority).set(count)
        self._waiting_for_key.labels(queue).set(stats.waiting_for_key)
        self._running.labels(queue).set(stats.running)
        self._scheduled.labels(queue).set(stats.scheduled)
        self._oldest.labels(queue).set(stats.oldest_job_age or 0.0)
        for gauge, number in ((self._dead, stats.dead), (self._revisions, stats.revisions)):
            if number is not None:
                gauge.labels(queue).set(number)
        if throughput is not None:
            self._arrivals.labels(queue).set(throughput.arrivals)
            self._departures.labels(queue).set(throughput.departures)

    def clear(self, queue: str) -> None:
        """Report a queue that does not exist any more as empty."""
        for priority in PRIORITIES:
            self._depth.labels(queue, priority).set(0)
        rates = (self._arrivals, self._departures)
        for gauge in (self._waiting_for_key, self._running, self._scheduled, self._oldest, *rates):
            gauge.labels(queue).set(0)
