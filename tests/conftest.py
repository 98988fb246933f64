"""One real nats-server for the whole run (one for each process of it), and a namespace for each test."""

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from jsq import App, Client
from jsq.server import EmbeddedServer
from jsq.settings import WorkerSettings
from jsq.worker import Observer, Worker

pytest_plugins = ["tests.helpers.tiers"]

_numbers = itertools.count()

Working = Callable[..., AbstractAsyncContextManager[Worker]]
Until = Callable[..., Awaitable[None]]


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """The server of this run. Its disk is not waited for: tests of durability start their own."""
    with EmbeddedServer(sync_interval="1s") as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server of the test's own, to be killed and restarted."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def namespace() -> str:
    return f"t{os.getpid()}-{next(_numbers)}"


@pytest.fixture
async def app(server: EmbeddedServer, namespace: str) -> AsyncIterator[App]:
    async with App(server.url, namespace=namespace) as app:
        yield app


@pytest.fixture
async def client(app: App) -> Client:
    return app.client


@contextlib.asynccontextmanager
async def at_work(worker: Worker) -> AsyncIterator[None]:
    """Runs a worker until the end, from when it is ready. Raises what keeps it from that."""
    running = asyncio.create_task(worker.run())
    ready = asyncio.create_task(worker.ready.wait())
    await asyncio.wait((running, ready), timeout=30, return_when="FIRST_COMPLETED")
    ready.cancel()
    if running.done():
        running.result()
    try:
        yield
    finally:
        worker.stop()
        await asyncio.wait_for(running, 60)


@pytest.fixture
def working(app: App) -> Working:
    """`async with working():` runs a worker of the app in this process, stopped at the end."""

    @contextlib.asynccontextmanager
    async def working(
        *, queues: list[str] | None = None, watcher: Observer | None = None, **settings: Any
    ) -> AsyncIterator[Worker]:
        worker = Worker(app, queues=queues, watcher=watcher, settings=WorkerSettings(**settings))
        async with at_work(worker):
            yield worker

    return working


@pytest.fixture
def until() -> Until:
    """`await until(lambda: ...)` waits for a condition itself; fails after `seconds`."""

    async def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
        async with asyncio.timeout(seconds):
            while True:
                found = condition()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return
                await asyncio.sleep(0.01)

    return until
