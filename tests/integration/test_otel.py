"""Telemetry of several processes, exported to a receiver of OTLP."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jsq import Client
from jsq.server import EmbeddedServer
from tests.helpers.conditions import Until
from tests.helpers.otlp import OtlpReceiver, otlp_receiver
from tests.helpers.pages import GUIDE, page_blocks
from tests.helpers.repository import ROOT

FAST = {"OTEL_METRIC_EXPORT_INTERVAL": "100", "OTEL_BSP_SCHEDULE_DELAY": "50"}
"""Milliseconds between two exports."""


class Exporting:
    """Starts processes that export to a receiver."""

    def __init__(self, receiver: OtlpReceiver, server: EmbeddedServer, namespace: str, folder: Path) -> None:
        self.receiver = receiver
        self.log = folder / "log"
        self._env = {
            **os.environ,
            **FAST,
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "JSQ_URL": server.url,
            "JSQ_NAMESPACE": namespace,
        }

    @contextlib.asynccontextmanager
    async def worker(self, *words: str, folder: Path = ROOT) -> AsyncIterator[None]:
        """Run `jsq worker` until the end of the block."""
        with self.log.open("wb") as log:
            process = subprocess.Popen(  # noqa: ASYNC220 -- it returns at once
                [sys.executable, "-m", "jsq", "worker", *words],
                cwd=folder,
                env=self._env | {"OTEL_SERVICE_NAME": "worker"},
                stderr=log,
            )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 30) == 0, self.log.read_text()

    async def run(self, program: str, folder: Path) -> None:
        """Run a program of Python to its end."""
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", program],
            cwd=folder,
            env=self._env | {"OTEL_SERVICE_NAME": "web"},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr


@pytest.fixture
async def exporting(server: EmbeddedServer, namespace: str, tmp_path: Path) -> AsyncIterator[Exporting]:
    with otlp_receiver() as receiver:
        yield Exporting(receiver, server, namespace, tmp_path)


async def test_the_metrics_of_a_worker_are_exported_by_opentelemetry(
    exporting: Exporting, client: Client, until: Until
) -> None:
    received = exporting.receiver
    async with exporting.worker("tests.apps.traced:app", "--metrics", "otel", "--concurrency", "7"):
        assert await (await client.task("add").submit(1, 2)).result(20) == 3

        finished = {"queue": "default", "task": "add", "outcome": "succeeded"}
        await until(lambda: received.value("jsq.jobs_finished", **finished) == 1)
        await until(lambda: received.value("jsq.worker_slots") == 7)

    assert received.value("jsq.job_run", queue="default", task="add") == 1
    assert received.units["jsq.job_run"] == "s"


def test_a_library_for_metrics_that_jsq_does_not_know_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jsq", "worker", "tests.apps.faults:app", "--metrics", "statsd"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
    )

    assert done.returncode == 2
    assert "metrics must be prometheus or otel, got 'statsd'" in done.stderr


async def test_a_request_and_its_jobs_in_three_processes_are_one_trace(
    exporting: Exporting, tmp_path: Path, until: Until
) -> None:
    """The application of the guide: two retries, and a job in a child process."""
    blocks = page_blocks(GUIDE / "tracing-example.md")
    for block in blocks:
        if block.is_file:
            (tmp_path / block.word).write_text(block.text)
    [order] = [block.text for block in blocks if block.language == "python" and block.is_run]
    received = exporting.receiver
    async with exporting.worker("shop:app", folder=tmp_path):
        await exporting.run(order, tmp_path)
    # Each process has exported its last spans when it ended.

    [request] = received.named("POST /orders")
    [sent, sent_next] = received.named("send default")
    first, second, third = attempts = received.named("process charge")
    [rendered] = received.named("process render")
    settled = received.named("settle default")
    assert {span.trace for span in received.spans} == {request.trace}
    assert len(received.spans) == 11
    assert (request.parent, sent.parent, sent_next.parent) == ("", request.id, third.id)
    assert [span.parent for span in (*attempts, rendered)] == [sent.id, sent.id, sent.id, sent_next.id]
    assert [span.links for span in (*attempts, rendered)] == [(), (first.id,), (second.id,), ()]
    assert [span.attributes["jsq.attempt"] for span in attempts] == [1, 2, 3]
    assert [span.attributes.get("error.type") for span in attempts] == [*["ConnectionError"] * 2, None]
    assert [span.error for span in attempts] == [True, True, False]
    assert [span.events for span in attempts] == [("exception",), ("exception",), ()]
    assert {span.parent for span in settled} == {first.id, second.id, third.id, rendered.id}
    outcomes = {span.parent: span.attributes["jsq.outcome"] for span in settled}
    assert [outcomes[span.id] for span in attempts] == ["retrying", "retrying", "succeeded"]
    kinds = [span.kind for span in (request, sent, third, rendered, settled[0])]
    assert kinds == ["server", "producer", "consumer", "consumer", "client"]
    services = [span.resource["service.name"] for span in (request, sent, third, rendered)]
    assert services == ["web", "web", "worker", "worker"]
    instances = {span.resource["service.instance.id"] for span in (sent, third, rendered)}
    assert len(instances) == 3
    timed = [line for line in exporting.log.read_text().splitlines() if "attempt timed" in line]
    assert [request.trace in line for line in timed] == [True] * 4
    assert rendered.id in timed[-1]
    ended = [line for line in exporting.log.read_text().splitlines() if "INFO job succeeded" in line]
    assert [span.id in line for span, line in zip((third, rendered), ended, strict=True)] == [True, True]
