"""A receiver of OTLP over HTTP: it decodes the spans and metrics that processes export to it."""

import contextlib
import gzip
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

KINDS = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it was exported. Ids are hexadecimal; `parent` is empty for a root. Times are nanoseconds."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    links: tuple[str, ...]
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    error: bool
    events: tuple[str, ...]
    start: int
    end: int


@dataclass
class OtlpReceiver:
    """The telemetry received so far: spans, and for each metric its unit and its points, the newest last."""

    endpoint: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)
    units: dict[str, str] = field(default_factory=dict)
    points: dict[str, list[tuple[Mapping[str, Any], float]]] = field(default_factory=dict)

    def named(self, name: str) -> list[ReceivedSpan]:
        """The spans of a name, in the order of their starts."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start)

    def value(self, metric: str, **attributes: str) -> float | None:
        """The last value of a metric, or the count of a histogram; None if it was not received."""
        found = [value for labels, value in self.points.get(metric, []) if labels == attributes]
        return found[-1] if found else None

    def take_traces(self, body: bytes) -> None:
        for source in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = plain(source.resource.attributes)
            self.spans += [
                ReceivedSpan(
                    span.name,
                    KINDS.get(span.kind, ""),
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    tuple(link.span_id.hex() for link in span.links),
                    plain(span.attributes),
                    resource,
                    span.status.code == 2,
                    tuple(event.name for event in span.events),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                )
                for scope in source.scope_spans
                for span in scope.spans
            ]

    def take_metrics(self, body: bytes) -> None:
        for source in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for metric in (one for scope in source.scope_metrics for one in scope.metrics):
                self.units[metric.name] = metric.unit
                kind = metric.WhichOneof("data")
                for point in getattr(metric, kind).data_points:
                    value = point.count if kind == "histogram" else getattr(point, point.WhichOneof("value"))
                    self.points.setdefault(metric.name, []).append((plain(point.attributes), float(value)))


def plain(attributes: Sequence[KeyValue]) -> dict[str, Any]:
    """Attributes as a dictionary."""
    return {
        one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value") for one in attributes
    }


@contextlib.contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    """Receive on a free port of this machine until the end of the block."""
    receiver = OtlpReceiver()
    takers = {"/v1/traces": receiver.take_traces, "/v1/metrics": receiver.take_metrics}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            takers[self.path](body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        receiver.endpoint = f"http://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            listening.shutdown()
            thread.join()
