"""The metrics of a worker, for Prometheus or OpenTelemetry."""

import functools
from collections.abc import Sequence

from jsq.broker import QueueStats
from jsq.model.job import Job
from jsq.model.outcome import Failed, Outcome, TryAgain
from jsq.model.repair import RepairResult
from jsq.model.throughput import Throughput
from jsq.telemetry.instruments import CounterInstrument, HistogramInstrument, Instruments
from jsq.telemetry.queue_metrics import QueueMetrics
from jsq.worker.observer import Observer
from jsq.worker.transitions import state_of

RUN_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800)
WAIT_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 60, 300, 1800, 7200)


class Metrics(Observer):
    """The metrics of a worker, named by the conventions of Prometheus. `instruments` records them."""

    def __init__(self, instruments: Instruments) -> None:
        counter, gauge, histogram = instruments.counter, instruments.gauge, instruments.histogram
        self._started = counter("jobs_started", "Attempts started.", "queue", "task")
        self._finished = counter("jobs_finished", "Attempts by their outcome.", "queue", "task", "outcome")
        self._reclaimed = counter(
            "jobs_reclaimed", "Jobs reclaimed from a dead or stalled worker.", "queue", "task"
        )
        self._leases_lost = counter(
            "leases_lost", "Attempts whose outcome was refused without a lease.", "queue", "task"
        )
        self._back = counter("deliveries_handed_back", "Deliveries handed back before they started.", "queue")
        self._ran = histogram(
            "job_run_seconds", "Seconds that attempts ran.", "queue", "task", buckets=RUN_BUCKETS
        )
        self._waited = histogram(
            "job_queue_seconds",
            "Seconds that jobs waited since they could have started.",
            "queue",
            buckets=WAIT_BUCKETS,
        )
        self._slots = gauge("worker_slots", "Job slots.")
        self._running = gauge("worker_running", "Slots in use.")
        self._held = gauge("worker_held", "Deliveries that wait for a slot.")
        self._lag = gauge(
            "event_loop_lag_seconds", "Seconds by which the event loop is late.", mode="livemax"
        )
        self._reconnects = counter("reconnects", "Reconnections to the server.")
        self._known_reconnects = 0
        self._abandoned = counter("jobs_abandoned", "Abandoned functions, which do not end.", "queue", "task")
        self._abandoned_running = gauge("abandoned_running", "Abandoned functions that still run.")
        self._blocked = counter(
            "event_loop_blocked", "Times that a task blocked the event loop for 1 s.", "task"
        )
        self._sweeps = counter("sweeps", "Sweeps.")
        self._found = counter(
            "sweep_found", "Inconsistencies that sweeps found.", "inconsistency", "repaired"
        )
        self._queues = QueueMetrics(instruments)
        self._missing = gauge("streams_missing", "Missing streams and consumers.", mode="livemax")
        # Finding a metric by its labels costs more than counting.
        self._of_start = functools.lru_cache(1024)(self._find_start)
        self._of_end = functools.lru_cache(1024)(self._find_end)

    def started(self, job: Job, waited: float) -> None:
        starts, waits = self._of_start(job.queue, job.task)
        starts.inc()
        waits.observe(waited)

    def finished(self, job: Job, outcome: Outcome, ran: float) -> None:
        # The name of an unknown task may be any text, so it is not used as a label.
        unknown = isinstance(outcome, (Failed, TryAgain)) and outcome.reason == "unknown_task"
        task = "unknown" if unknown else job.task
        finished, runs = self._of_end(job.queue, task, state_of(outcome))
        finished.inc()
        runs.observe(ran)

    def _find_start(self, queue: str, task: str) -> tuple[CounterInstrument, HistogramInstrument]:
        return self._started.labels(queue, task), self._waited.labels(queue)

    def _find_end(self, queue: str, task: str, state: str) -> tuple[CounterInstrument, HistogramInstrument]:
        return self._finished.labels(queue, task, state), self._ran.labels(queue, task)

    def reclaimed(self, job: Job) -> None:
        self._reclaimed.labels(job.queue, job.task).inc()

    def lease_lost(self, job: Job) -> None:
        self._leases_lost.labels(job.queue, job.task).inc()

    def handed_back(self, queue: str) -> None:
        self._back.labels(queue).inc()

    def busy(self, running: int, held: int, slots: int) -> None:
        self._running.set(running)
        self._held.set(held)
        self._slots.set(slots)

    def lagged(self, seconds: float) -> None:
        self._lag.set(seconds)

    def reconnected(self, times: int) -> None:
        self._reconnects.inc(times - self._known_reconnects)
        self._known_reconnects = times

    def abandoned(self, job: Job, running: int) -> None:
        self._abandoned.labels(job.queue, job.task).inc()
        self._abandoned_running.set(running)

    def abandoned_ended(self, job: Job, running: int) -> None:
        self._abandoned_running.set(running)

    def blocked(self, task: str) -> None:
        self._blocked.labels(task).inc()

    def queue_measured(self, stats: QueueStats, throughput: Throughput | None) -> None:
        self._queues.set(stats, throughput)

    def queue_missing(self, queue: str) -> None:
        self._queues.clear(queue)

    def swept(self, swept: Sequence[RepairResult]) -> None:
        self._sweeps.inc()
        for one in swept:
            self._found.labels(one.kind.value, str(one.repaired).lower()).inc()

    def streams_missing(self, number: int) -> None:
        self._missing.set(number)
