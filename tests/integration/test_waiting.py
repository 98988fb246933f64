"""A worker that starts before its server waits for it. A permanent error ends it at once."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jsq import App, BrokerUnavailable, NotAllowed
from jsq.errors import BrokerError, ServerTooOld
from jsq.server import EmbeddedServer
from jsq.settings import WorkerSettings
from jsq.transport import waiting
from jsq.transport.waiting import wait_for_server
from jsq.worker import Worker
from tests.helpers.conditions import Until
from tests.helpers.proxy import rewriting_proxy
from tests.helpers.repository import ROOT
from tests.helpers.servers import nats_server


@contextlib.asynccontextmanager
async def starting(url: str, *, burst: bool = False) -> AsyncIterator[tuple[Worker, asyncio.Task[None]]]:
    """A running worker with a task `double`."""
    app = App(url)

    @app.task
    async def double(number: int) -> int:
        return 2 * number

    worker = Worker(app, settings=WorkerSettings(burst=burst))
    running = asyncio.create_task(worker.run())
    try:
        yield worker, running
    finally:
        worker.stop()
        await asyncio.wait((running,), timeout=10)
        assert running.done()
        await app.close()


async def end_of(url: str, *, burst: bool = False) -> BaseException | None:
    """How a worker ends by itself that starts with this address."""
    async with starting(url, burst=burst) as (_, running), asyncio.timeout(10):
        await asyncio.wait((running,))
        return running.exception()


def reports(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [str(vars(one)["why"]) for one in caplog.records if one.message == "start delayed"]


async def test_a_worker_that_waits_for_its_server_is_alive_and_not_ready(
    own_server: EmbeddedServer, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    own_server.kill()
    async with starting(own_server.url) as (worker, running):
        await until(lambda: reports(caplog) != [])
        waiting_since = time.monotonic()
        await until(lambda: worker.beaten > waiting_since)
        assert not worker.is_ready()
        await asyncio.to_thread(own_server.restart)
        await until(worker.is_ready)
        assert await (await worker.app.client.task("double").submit(21)).result(10) == 42
        worker.stop()
        await running
    assert reports(caplog) == [
        f"no NATS server answers at {own_server.url}; start one (`jsq dev`), or name another with JSQ_URL"
    ]


async def test_a_worker_that_waits_for_a_server_ends_at_once_when_stopped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also in the middle of a handshake, which the server never answers."""
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        async with starting(url) as (worker, running):
            caller, _ = await asyncio.to_thread(silent.accept)
            with caller:
                worker.stop()
                async with asyncio.timeout(1):
                    await running
                    await worker.app.close()
    assert "worker stopped" in caplog.messages


async def test_a_burst_worker_does_not_wait_for_a_server() -> None:
    assert isinstance(await end_of("nats://127.0.0.1:1", burst=True), BrokerUnavailable)


@pytest.mark.parametrize("url", ["nats://127.0.0.1:notaport", "http://127.0.0.1:4222"])
async def test_an_invalid_address_is_not_waited_for(url: str) -> None:
    assert isinstance(await end_of(url), BrokerUnavailable)


async def test_worker_processes_with_an_invalid_address_end(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jsq", "worker", "tests.apps.faults:app", "--processes", "2"),
        cwd=ROOT,
        env={**os.environ, "JSQ_URL": "http://127.0.0.1:4222", "EFFECTS": str(tmp_path / "effects")},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert b"is not the address of a server" in said


async def test_a_server_without_tls_is_not_waited_for(server: EmbeddedServer) -> None:
    error = await end_of(server.url.replace("nats://", "tls://"))
    assert "no TLS connection" in str(error)


async def test_a_wrong_login_is_not_waited_for(tmp_path: Path) -> None:
    users = f"jetstream {{ store_dir: '{tmp_path}/js' }}\nauthorization {{ user: alice, password: secret }}"
    with nats_server(tmp_path, users) as address:
        assert isinstance(await end_of(f"nats://alice:wrong@{address}"), NotAllowed)


async def test_a_server_that_is_too_old_is_not_waited_for(server: EmbeddedServer) -> None:
    version = b'"version":"2.15.1"'
    async with rewriting_proxy(server.url.removeprefix("nats://"), version, b'"version":"2.14.3"') as address:
        assert isinstance(await end_of(f"nats://{address}"), ServerTooOld)


async def test_a_wait_for_a_server_is_logged_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[BrokerUnavailable] = []
    tries = 0

    async def attempt() -> int:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise BrokerUnavailable(f"try {tries}")
        return tries

    assert await wait_for_server(attempt, reported.append) == 4
    assert [str(error) for error in reported] == ["try 1"]
    monkeypatch.setattr(waiting, "WAITING_REPORT_SECONDS", 0.0)
    tries = 0
    assert await wait_for_server(attempt, reported.append) == 4
    assert [str(error) for error in reported] == ["try 1", "try 1", "try 2", "try 3"]


async def test_a_limited_wait_ends_with_the_last_error() -> None:
    async def attempt() -> None:
        raise BrokerUnavailable(f"at {time.monotonic()}")

    start_time = time.monotonic()
    with pytest.raises(BrokerError):
        await wait_for_server(attempt, lambda _: None, seconds=0.3)
    assert 0.3 <= time.monotonic() - start_time < 2
