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
    async def worker(self, *options: str) -> AsyncIterator[None]:
        """Run `jsq worker` until the end of the block."""
        with self.log.open("wb") as log:
            process = subprocess.Popen(  # noqa: ASYNC220 -- it returns at once
                [sys.executable, "-m", "jsq", "worker", "tests.apps.traced:app", *options],
                cwd=ROOT,
                env=self._env | {"OTEL_SERVICE_NAME": "worker"},
                stderr=log,
            )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 30) == 0, self.log.read_text()


@pytest.fixture
async def exporting(server: EmbeddedServer, namespace: str, tmp_path: Path) -> AsyncIterator[Exporting]:
    with otlp_receiver() as receiver:
        yield Exporting(receiver, server, namespace, tmp_path)


async def test_the_metrics_of_a_worker_are_exported_by_opentelemetry(
    exporting: Exporting, client: Client, until: Until
) -> None:
    received = exporting.receiver
    async with exporting.worker("--metrics", "otel", "--concurrency", "7"):
        assert await (await client.task("add").submit(1, 2)).result(20) == 3

        finished = {"queue": "default", "task": "add", "outcome": "succeeded"}
        await until(lambda: received.value("jsq.jobs_finished", **finished) == 1)
        await until(lambda: received.value("jsq.worker_slots") == 7)
        await until(lambda: received.value("jsq.queue_depth", queue="default", priority="normal") == 0)

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
