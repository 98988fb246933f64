"""The instruments that metrics are recorded with, and those of Prometheus.

`Metrics` and `QueueMetrics` state each metric once. An `Instruments` creates it for one library, so the
metrics of Prometheus and those of OpenTelemetry are the same.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, Self, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

GaugeMode: TypeAlias = Literal["livesum", "livemax", "livemostrecent"]
"""How Prometheus merges a gauge of several worker processes."""


class CounterInstrument(Protocol):
    """A number that only rises. `labels` returns the counter for some values of its labels."""

    def labels(self, *values: str) -> Self: ...

    def inc(self, amount: float = 1) -> None: ...


class GaugeInstrument(Protocol):
    """A number that rises and falls."""

    def labels(self, *values: str) -> Self: ...

    def set(self, value: float) -> None: ...


class HistogramInstrument(Protocol):
    """The distribution of many numbers."""

    def labels(self, *values: str) -> Self: ...

    def observe(self, amount: float) -> None: ...


class Instruments(Protocol):
    """Creates instruments. A name has the unit of the values at its end, as the names of Prometheus have."""

    def counter(self, name: str, about: str, *labels: str) -> CounterInstrument: ...

    def gauge(self, name: str, about: str, *labels: str, mode: GaugeMode = "livesum") -> GaugeInstrument: ...

    def histogram(
        self, name: str, about: str, *labels: str, buckets: Sequence[float]
    ) -> HistogramInstrument: ...


class PrometheusInstruments:
    """The instruments of one registry of Prometheus."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"jsq_{name}", about, labels, registry=self._registry)

    def gauge(self, name: str, about: str, *labels: str, mode: GaugeMode = "livesum") -> Gauge:
        return Gauge(f"jsq_{name}", about, labels, registry=self._registry, multiprocess_mode=mode)

    def histogram(self, name: str, about: str, *labels: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"jsq_{name}", about, labels, buckets=buckets, registry=self._registry)
