"""Metrics and probes over HTTP.

`/livez` is 200 if the event loop runs. It does not depend on NATS, because the restart of a worker does not
repair a server. `/readyz` is 200 if the worker takes jobs.
"""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from jsq.errors import BadOption


class Probes:
    """Serves `/metrics`, `/livez` and `/readyz` from a thread, even while the event loop is blocked."""

    def __init__(
        self,
        address: str,
        registry: CollectorRegistry,
        *,
        alive: Callable[[], bool],
        ready: Callable[[], bool],
    ) -> None:
        host, port = read_address(address)
        members = {"registry": registry, "alive": staticmethod(alive), "ready": staticmethod(ready)}
        handler = type("Handler", (_Handler,), members)
        try:
            self._server = ThreadingHTTPServer((host, port), handler)
        except OSError as error:
            raise BadOption(
                "http", address, f"cannot listen on {address}: {error.strerror or error}"
            ) from error
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
    """Answers requests for the three paths."""

    registry: CollectorRegistry
    alive: Callable[[], bool]
    ready: Callable[[], bool]
    timeout = 10

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(200, generate_latest(self.registry), CONTENT_TYPE_LATEST)
        elif path == "/livez":
            self._respond(self.alive())
        elif path == "/readyz":
            self._respond(self.ready())
        else:
            self._answer(404, b"not found\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the library's name
        """Log nothing: probes come every second."""

    def _respond(self, well: bool) -> None:
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
        raise BadOption("http", text, "must be HOST:PORT, such as 127.0.0.1:9464")
    return host.strip("[]") or "127.0.0.1", int(port)
