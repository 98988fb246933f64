"""The pytest plug-in: fixtures for the tests of tasks. Their types are in `jsq.testing`.

pytest imports this module in every run of an environment that has jsq. So it imports nothing of jsq before a
test uses a fixture.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "jsq_app",
        "the App that the fixture jsq_app binds, such as shop.tasks:app; more Apps and Clients may follow",
        type="args",
        default=[],
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        'jsq(app="shop.tasks:app", queues=["mail"]): the App of the test, and the queues of its workers',
    )


@pytest.fixture(scope="session")
def jsq_server() -> Iterator[Any]:
    """The nats-server of this test process: an embedded one, or the one at JSQ_TEST_URL."""
    from jsq.testing.servers import JsqServer

    with JsqServer(os.environ.get("JSQ_TEST_URL", "")) as server:
        yield server


@pytest.fixture
def jsq_app_path(request: pytest.FixtureRequest) -> Any:
    """The App that `jsq_app` binds, or its path; override this fixture to choose another one."""
    return marked_options(request).get("app") or request.config.getini("jsq_app")


@pytest.fixture
def jsq_binding(request: pytest.FixtureRequest, jsq_server: Any, jsq_app_path: Any) -> Iterator[Any]:
    """The binding of the App to a namespace of the test; the other fixtures use it."""
    from jsq.testing.binding import Binding, read_apps

    binding = Binding(read_apps(jsq_app_path), jsq_server, request.node)
    with binding.bound():
        yield binding


@pytest.fixture
def jsq_app(jsq_binding: Any) -> Any:
    """The App of the tests, bound to a namespace of this test; its tasks submit there."""
    return jsq_binding.app


@pytest.fixture
def jsq_submits(jsq_binding: Any) -> Any:
    """The jobs that the test, and the code that it calls, have submitted so far."""
    return jsq_binding.submits


@pytest.fixture
def jsq_worker(request: pytest.FixtureRequest, jsq_binding: Any) -> Iterator[Any]:
    """A worker that runs during the test: on its event loop, or for a plain test in a thread."""
    from jsq.testing.worker import JsqWorker

    jsq_binding.worker = worker = JsqWorker(jsq_binding.app, queues=marked_queues(request))
    if jsq_binding.is_async:
        jsq_binding.during.append(worker.running)
        yield worker
        return
    worker.blocking.start()
    try:
        yield worker
    finally:
        worker.blocking.stop()


@pytest.fixture
def jsq_drain(request: pytest.FixtureRequest, jsq_binding: Any) -> Any:
    """`await jsq_drain()` runs a worker until no job can start now, and returns the jobs that ran."""
    from jsq.testing.worker import Drain

    return Drain(jsq_binding.app, queues=marked_queues(request))


@pytest.fixture
def jsq_clock(jsq_binding: Any) -> Any:
    """`await jsq_clock.advance("1h")` lets time pass for delayed jobs, retries and schedules."""
    from jsq.testing.clock import JsqClock

    return JsqClock(jsq_binding.app, lambda: jsq_binding.worker)


def marked_queues(request: pytest.FixtureRequest) -> list[str] | None:
    """The queues that the marker of the test names."""
    queues: list[str] | None = marked_options(request).get("queues")
    return queues


def marked_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The options in the marker of the test. Raises `UsageError` for another option."""
    marker = request.node.get_closest_marker("jsq")
    if marker is None:
        return {}
    if marker.args or marker.kwargs.keys() - {"app", "queues"}:
        from jsq.errors import UsageError

        given = ", ".join([*map(repr, marker.args), *(f"{name}=" for name in marker.kwargs)])
        raise UsageError(f"pytest.mark.jsq takes app= and queues= only, got {given}")
    return dict(marker.kwargs)
