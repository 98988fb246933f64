"""What a worker shows of itself: metrics for Prometheus, probes for Kubernetes, and log lines.

`/livez` tells whether the event loop turns, and does not depend on NATS: restarting a worker does not mend a
server. `/readyz` tells whether it takes jobs.
"""

import functools
import json
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from jsq.errors import BadOption
from jsq.job import Job
from jsq.outcome import Failed, Outcome
from jsq.worker.record import state_of
from jsq.worker.watcher import Watcher

RUN_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800)
WAIT_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 60, 300, 1800, 7200)

Format = Literal["text", "json"]


class Metrics(Watcher):
    """A worker's numbers, under the names that are usual in the field."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"jsq_{name}", about, labels, registry=registry)

        def gauge(name: str, about: str, mode: Literal["livesum", "livemax"] = "livesum") -> Gauge:
            return Gauge(f"jsq_{name}", about, registry=registry, multiprocess_mode=mode)

        self._started = counter("jobs_started", "Attempts begun.", "queue", "task")
        self._finished = counter("jobs_finished", "Attempts by their outcome.", "queue", "task", "outcome")
        self._crashed = counter("jobs_crashed", "Jobs taken over from a silent worker.", "queue", "task")
        self._lost = counter("jobs_lost", "Attempts whose outcome was refused.", "queue", "task")
        self._back = counter("deliveries_handed_back", "Deliveries given back unbegun.", "queue")
        self._ran = Histogram(
            "jsq_job_run_seconds",
            "How long attempts ran.",
            ("queue", "task"),
            buckets=RUN_BUCKETS,
            registry=registry,
        )
        self._waited = Histogram(
            "jsq_job_queue_seconds",
            "How long jobs waited since they could have begun.",
            ("queue",),
            buckets=WAIT_BUCKETS,
            registry=registry,
        )
        self._slots = gauge("worker_slots", "Jobs that can run at once.")
        self._running = gauge("worker_running", "Jobs that run.")
        self._held = gauge("worker_held", "Deliveries held which have not begun.")
        self._lag = gauge("event_loop_lag_seconds", "How late the event loop comes to a timer.", "livemax")
        self._reconnects = counter("reconnects", "How often the connection was made anew.")
        self._known_reconnects = 0
        # Finding a metric by its labels costs more than counting.
        self._of_start = functools.lru_cache(1024)(self._find_start)
        self._of_end = functools.lru_cache(1024)(self._find_end)

    def started(self, job: Job, waited: float) -> None:
        begun, waits = self._of_start(job.queue, job.task)
        begun.inc()
        waits.observe(waited)

    def finished(self, job: Job, outcome: Outcome, ran: float) -> None:
        # A name that is no task of ours may be anything: it makes no label.
        unknown = isinstance(outcome, Failed) and outcome.reason == "unknown_task"
        task = "unknown" if unknown else job.task
        finished, runs = self._of_end(job.queue, task, state_of(outcome))
        finished.inc()
        runs.observe(ran)

    def _find_start(self, queue: str, task: str) -> tuple[Counter, Histogram]:
        return self._started.labels(queue, task), self._waited.labels(queue)

    def _find_end(self, queue: str, task: str, state: str) -> tuple[Counter, Histogram]:
        return self._finished.labels(queue, task, state), self._ran.labels(queue, task)

    def crashed(self, job: Job) -> None:
        self._crashed.labels(job.queue, job.task).inc()

    def lost(self, job: Job) -> None:
        self._lost.labels(job.queue, job.task).inc()

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


class Probes:
    """Serves `/metrics`, `/livez` and `/readyz` from a thread, so that a blocked loop can still be told."""

    def __init__(
        self,
        address: str,
        registry: CollectorRegistry,
        *,
        alive: Callable[[], bool],
        ready: Callable[[], bool],
    ) -> None:
        host, port = read_address(address)
        looks = {"registry": registry, "alive": staticmethod(alive), "ready": staticmethod(ready)}
        handler = type("Handler", (_Handler,), looks)
        try:
            self._server = ThreadingHTTPServer((host, port), handler)
        except OSError as error:
            raise BadOption("http", address, f"nobody can listen there: {error}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="jsq-probes", daemon=True)

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def __enter__(self) -> "Probes":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers the three paths, and nothing else."""

    registry: CollectorRegistry
    alive: Callable[[], bool]
    ready: Callable[[], bool]
    timeout = 10

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(200, generate_latest(self.registry), CONTENT_TYPE_LATEST)
        elif path == "/livez":
            self._say(self.alive())
        elif path == "/readyz":
            self._say(self.ready())
        else:
            self._answer(404, b"not found\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the library's name
        """Probes come every second: they are no news."""

    def _say(self, well: bool) -> None:
        self._answer(200 if well else 503, b"ok\n" if well else b"no\n")

    def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def read_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, or a port alone, which means 127.0.0.1. Raises `BadOption`."""
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65_535:
        raise BadOption("http", text, "it takes HOST:PORT, such as 127.0.0.1:9464")
    return host.strip("[]") or "127.0.0.1", int(port)


# -- log lines ------------------------------------------------------------------------------------------

_usual = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def log_to_stderr(form: Format, level: str) -> None:
    """Write our log lines, and those of tasks, to stderr: one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("nats").setLevel("WARNING")


def extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _usual}


class TextLines(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO job started job=... task=...`"""

    def format(self, record: logging.LogRecord) -> str:
        told = " ".join(f"{name}={shown(value)}" for name, value in extras(record).items())
        head = f"{moment(record)} {record.levelname} {one_line(record.getMessage())}"
        line = f"{head} {told}" if told else head
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """One JSON object a line: `at`, `level`, `logger`, `message`, and what the line is about."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **extras(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def moment(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shown(value: object) -> str:
    text = one_line(str(value))
    return json.dumps(text) if " " in text or '"' in text or not text else text


def one_line(text: str) -> str:
    """Text without what moves a terminal's cursor or reading direction."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
