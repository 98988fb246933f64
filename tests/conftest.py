"""One real nats-server for each test process, and a namespace for each test."""

import contextlib
import itertools
import os
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import settings

from jsq import App, Client
from jsq.server import EmbeddedServer
from jsq.settings import WorkerSettings
from jsq.testing.servers import delete_streams
from jsq.worker import Observer, Worker
from jsq.worker.timings import WorkerTimings
from tests.helpers.conditions import Until, until
from tests.helpers.examples import examples
from tests.helpers.servers import memory_server
from tests.helpers.workers import Working, running_worker

pytest_plugins = ["tests.helpers.tiers", "tests.helpers.crash_points", "tests.helpers.forks"]

_numbers = itertools.count()

# The suite starts hundreds of Python processes. Where this variable forbids them to keep what they compiled,
# each compiles the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


settings.register_profile("tests", examples(100))
settings.load_profile("tests")

# Go collects the garbage of a small heap often. The servers of the tests have small heaps.
os.environ.setdefault("GOGC", "400")


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """The server of this process. It does not sync its files; tests of durability start their own server."""
    with memory_server(sync_interval="1h") as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server for one test, which may kill and restart it."""
    with memory_server() as server:
        yield server


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace for the test. Its streams are deleted from the server of this process at the end."""
    name = f"t{os.getpid()}-{next(_numbers)}"
    url = request.getfixturevalue("server").url if "server" in request.fixturenames else None
    yield name
    if url is not None:
        delete_streams(url, name)


@pytest.fixture
async def app(server: EmbeddedServer, namespace: str) -> AsyncIterator[App]:
    async with App(server.url, namespace=namespace) as app:
        yield app


@pytest.fixture
async def client(app: App) -> Client:
    return app.client


@pytest.fixture
def working(app: App) -> Working:
    """`async with working():` runs a worker of the app in this process and stops it at the end."""

    @contextlib.asynccontextmanager
    async def working(
        *,
        queues: list[str] | None = None,
        observer: Observer | None = None,
        timings: WorkerTimings | None = None,
        **settings: Any,
    ) -> AsyncIterator[Worker]:
        chosen = WorkerSettings(**settings)
        worker = Worker(app, queues=queues, observer=observer, settings=chosen, timings=timings)
        async with running_worker(worker):
            yield worker

    return working


@pytest.fixture(name="until")
def _until() -> Until:
    """`await until(lambda: ...)` waits for a condition and fails after `seconds`."""
    return until
