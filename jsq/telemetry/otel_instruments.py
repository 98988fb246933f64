"""The instruments of OpenTelemetry: they record with the meter provider of the process.

A metric has the name of the metric of Prometheus, with `jsq.` for `jsq_` and without its unit, which
OpenTelemetry keeps apart. So an exporter for Prometheus restores the same name. The labels are attributes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from opentelemetry.metrics import MeterProvider, get_meter

import jsq
from jsq.telemetry.instruments import GaugeMode

METRIC_UNITS = {"_seconds": "s", "_per_second": "{job}/s"}
"""The unit of a metric, by the end of its name."""


class Series:
    """The values of one instrument with some attributes."""

    def __init__(
        self,
        record: Callable[[float, Mapping[str, str]], None],
        labels: Sequence[str],
        attributes: Mapping[str, str],
    ) -> None:
        self._record = record
        self._labels = labels
        self._attributes = attributes

    def labels(self, *values: str) -> Self:
        return type(self)(self._record, self._labels, dict(zip(self._labels, values, strict=True)))

    def inc(self, amount: float = 1) -> None:
        self._record(amount, self._attributes)

    def set(self, value: float) -> None:
        self._record(value, self._attributes)

    def observe(self, amount: float) -> None:
        self._record(amount, self._attributes)


class OtelInstruments:
    """The instruments of one meter provider; without one, of the provider that the process has set."""

    def __init__(self, provider: MeterProvider | None = None) -> None:
        self._meter: Any = get_meter("jsq", jsq.__version__, provider)

    def counter(self, name: str, about: str, *labels: str) -> Series:
        short, unit = name_and_unit(name)
        return Series(self._meter.create_counter(short, unit, about).add, labels, {})

    def gauge(self, name: str, about: str, *labels: str, mode: GaugeMode = "livesum") -> Series:
        short, unit = name_and_unit(name)
        return Series(self._meter.create_gauge(short, unit, about).set, labels, {})

    def histogram(self, name: str, about: str, *labels: str, buckets: Sequence[float]) -> Series:
        short, unit = name_and_unit(name)
        made = self._meter.create_histogram(short, unit, about, explicit_bucket_boundaries_advisory=buckets)
        return Series(made.record, labels, {})


def name_and_unit(name: str) -> tuple[str, str]:
    """The name and the unit of OpenTelemetry for a metric: `jsq.job_run` and `s` for `job_run_seconds`."""
    for ending, unit in METRIC_UNITS.items():
        if name.endswith(ending):
            return f"jsq.{name.removesuffix(ending)}", unit
    return f"jsq.{name}", ""
