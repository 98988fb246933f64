"""Sentry, with its own SDK: what a worker with the middleware and without it sends to a server of Sentry."""

import asyncio
import gzip
import http.server
import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sentry_sdk

from jsq import Client
from jsq.contrib.sentry import Sentry
from jsq.model.job import Job
from jsq.model.options import check_headers
from jsq.server import EmbeddedServer
from tests.helpers.repository import ROOT

Event = dict[str, Any]


class Receiver:
    """A server that keeps the items of the envelopes that it gets."""

    def __init__(self) -> None:
        self.items: list[tuple[str, Event]] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.receive(gzip.decompress(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.dsn = f"http://key@127.0.0.1:{self.server.server_port}/1"

    def receive(self, envelope: bytes) -> None:
        _, *lines = envelope.splitlines()
        for head, body in zip(lines[::2], lines[1::2], strict=False):
            self.items.append((json.loads(head)["type"], json.loads(body)))

    def of(self, kind: str) -> dict[str, Event]:
        """The items of a kind, by their task."""
        found = [item for name, item in self.items if name == kind]
        named = {item.get("tags", {}).get("task") or item["extra"]["task"]: item for item in found}
        assert len(named) == len(found), found
        return named


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever)
    thread.start()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()
    thread.join()


def test_a_job_continues_the_trace_of_the_span_that_submits_it() -> None:
    middleware, job = Sentry(), Job("j1", "mail")

    assert middleware.submitting(job) is job
    with sentry_sdk.start_transaction(name="request"):
        headers = middleware.submitting(job).headers
        assert headers["sentry-trace"] == sentry_sdk.get_traceparent()
    check_headers(headers)


async def test_sentry_gets_each_final_failure_once_with_its_job(
    server: EmbeddedServer, namespace: str, receiver: Receiver
) -> None:
    async with Client(server.url, namespace=namespace) as client:
        jobs = {
            name: await client.task(name).submit() for name in ("on_loop", "in_process", "unwatched", "fine")
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "jsq", "worker", "tests.apps.sentry_tasks:app"),
            cwd=ROOT,
            env={**os.environ, "JSQ_URL": server.url, "JSQ_NAMESPACE": namespace, "DSN": receiver.dsn},
        )
        for job in jobs.values():
            await job.wait(20)
        process.terminate()
        assert await process.wait() == 0

    events = receiver.of("event")
    assert events.keys() == {"on_loop", "in_process", "unwatched"}
    for name in ("on_loop", "in_process"):
        event, job = events[name], jobs[name]
        attempt = "2" if name == "on_loop" else "1"
        assert event["tags"] == {"job": job.id, "task": name, "queue": "default", "attempt": attempt}
        assert (event["transaction"], event["level"]) == (name, "error")
    for name, event in events.items():
        [raised] = event["exception"]["values"]
        assert (raised["type"], raised["value"]) == ("ValueError", "no address")
        [frame] = raised["stacktrace"]["frames"]
        assert (frame["function"], frame["in_app"]) == (name, True)
        assert frame["context_line"].strip() == 'raise ValueError("no address")'
    assert "mail sent" in [crumb["message"] for crumb in events["on_loop"]["breadcrumbs"]["values"]]
    assert {item["transaction"] for kind, item in receiver.items if kind == "transaction"} == {
        "on_loop",
        "in_process",
        "fine",
    }
