"""Metrics by OpenTelemetry: the same names, labels and values as those of Prometheus."""

from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from jsq.broker import QueueStats
from jsq.model.job import Job
from jsq.model.outcome import Failed, Fault, Succeeded
from jsq.model.throughput import Throughput
from jsq.settings import QueueSettings
from jsq.telemetry.metrics import Metrics
from jsq.telemetry.otel_instruments import OtelInstruments, name_and_unit
from tests.guide.reference import metric_rows

SUFFIXES = {"s": "_seconds", "{job}/s": "_per_second", "": ""}
"""The ending that an exporter for Prometheus adds to a name for its unit."""


class Recorded:
    """The metrics of one meter provider."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.metrics = Metrics(OtelInstruments(MeterProvider([self._reader], shutdown_on_exit=False)))

    def read(self) -> dict[str, Any]:
        data = self._reader.get_metrics_data()
        assert data is not None
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def value(self, name: str, **attributes: str) -> float:
        [point] = [point for point in self.read()[name].data.data_points if point.attributes == attributes]
        return float(point.value)


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def test_attempts_are_counted_by_queue_task_and_outcome(recorded: Recorded) -> None:
    job = Job("a1", "send", "mail")

    recorded.metrics.started(job, 0.25)
    recorded.metrics.finished(job, Succeeded(b""), 0.5)
    recorded.metrics.finished(job, Failed("error", Fault("no way")), 2.0)

    assert recorded.value("jsq.jobs_started", queue="mail", task="send") == 1
    assert recorded.value("jsq.jobs_finished", queue="mail", task="send", outcome="succeeded") == 1
    assert recorded.value("jsq.jobs_finished", queue="mail", task="send", outcome="failed") == 1
    [ran] = recorded.read()["jsq.job_run"].data.data_points
    assert (ran.count, ran.sum, ran.explicit_bounds[:2]) == (2, 2.5, (0.001, 0.005))


def test_gauges_have_the_last_value(recorded: Recorded) -> None:
    stats = QueueStats("mail", QueueSettings(), {"high": 1, "normal": 2}, 3, 4, 5, 6, oldest_job_age=7.5)

    recorded.metrics.busy(1, 2, 10)
    recorded.metrics.busy(3, 2, 10)
    recorded.metrics.queue_measured(stats, Throughput(8.0, 9.0, 60.0))

    assert recorded.value("jsq.worker_running") == 3
    assert recorded.value("jsq.queue_depth", queue="mail", priority="high") == 1
    assert recorded.value("jsq.queue_oldest_job_age", queue="mail") == 7.5
    assert recorded.value("jsq.queue_arrivals", queue="mail") == 8
    recorded.metrics.queue_missing("mail")
    assert recorded.value("jsq.queue_depth", queue="mail", priority="high") == 0


def test_an_exporter_for_prometheus_restores_every_name() -> None:
    names = [name.strip("`").removeprefix("jsq_").removesuffix("_total") for name, _, _ in metric_rows()]

    for name in names:
        short, unit = name_and_unit(name)
        assert short.replace(".", "_") + SUFFIXES[unit] == f"jsq_{name}"
