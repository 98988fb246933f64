"""The lifespan of a web server that uses an App: its connection, a worker beside it, and dependencies."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import fastapi
import litestar
import pytest
from litestar.di import NamedDependency
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from jsq import INJECTED, App, BrokerUnavailable, Client, Depends, LifespanFailed, UsageError
from jsq.contrib.fastapi import AppDependency, ClientDependency
from jsq.contrib.litestar import jsq_dependencies
from jsq.contrib.starlette import get_app, get_client, get_worker, jsq_lifespan
from jsq.server import EmbeddedServer
from tests.helpers.conditions import Until
from tests.helpers.web import requests_to, served


@pytest.fixture
def unconnected(app: App) -> App:
    """An App with a task `double`, which a server may connect and close."""

    @app.task
    async def double(number: int) -> int:
        return 2 * number

    return app


def is_connected(app: App) -> bool:
    return app.client.connection.open_broker() is not None


async def test_a_lifespan_surrounds_that_of_the_user_and_keeps_its_state(unconnected: App) -> None:
    app = unconnected
    seen: list[object] = []

    @contextlib.asynccontextmanager
    async def own(server: Starlette) -> AsyncIterator[dict[str, Any]]:
        seen.append(("enter", is_connected(app), hasattr(server.state, "jsq_worker")))
        yield {"pool": 5}
        worker = server.state.jsq_worker
        seen.append(("leave", is_connected(app), worker.state()))

    server = Starlette()
    await app.close()
    async with jsq_lifespan(app, own, worker=True)(server) as state:
        assert state == {"pool": 5, "jsq": app}
        assert server.state.jsq is app
        double: Any = app.find("double")
        assert await (await double.submit(4)).result(10) == 8
    assert seen == [("enter", True, False), ("leave", True, "stopped")]
    assert not is_connected(app)


async def test_the_lifespan_closes_the_app_though_that_of_the_user_fails(unconnected: App) -> None:
    @contextlib.asynccontextmanager
    async def own(server: Starlette) -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    with pytest.raises(OSError, match="no database"):
        async with jsq_lifespan(unconnected, own, worker={"concurrency": 2})(Starlette()):
            pytest.fail("the server started")
    assert not is_connected(unconnected)


async def test_a_server_without_nats_does_not_start_unless_it_may_connect_later() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        app = App(f"nats://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(BrokerUnavailable):
            async with jsq_lifespan(app)(Starlette()):
                pytest.fail("the server started")
        async with jsq_lifespan(app, connect=False)(Starlette()):
            assert not is_connected(app)


async def test_a_failing_worker_is_logged_and_ends_no_server(
    unconnected: App, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    app, broken = unconnected, asyncio.Event()

    async def fail_soon() -> None:
        await broken.wait()
        raise OSError("connection lost")

    @contextlib.asynccontextmanager
    async def worker_lifespan(app: App) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail_soon())
            yield

    app.lifespan.function = worker_lifespan
    server = Starlette()

    async def serve() -> None:
        async with jsq_lifespan(app, worker=True)(server):
            assert server.state.jsq_worker.is_ready()
            broken.set()
            await until(lambda: "worker failed" in caplog.messages)
            assert not server.state.jsq_worker.is_ready()
            await app.client.task("double").submit(1)

    with caplog.at_level(logging.ERROR), pytest.raises(LifespanFailed):
        await serve()


def show(request: Request) -> JSONResponse:
    """An endpoint that answers with the App, the client and the worker that it has."""
    worker = get_worker(request)
    return JSONResponse(
        {
            "app": get_app(request).name,
            "client": type(get_client(request)).__name__,
            "worker": None if worker is None else worker.state(),
        }
    )


async def test_endpoints_of_starlette_reach_the_app_that_the_lifespan_has_connected(
    server: EmbeddedServer, namespace: str
) -> None:
    app = App(server.url, namespace=namespace, name="shop")
    inner = Starlette(routes=[Route("/", show)])
    outer = Starlette(
        routes=[Route("/", show), Mount("/inner", inner)], lifespan=jsq_lifespan(app, worker=True)
    )
    async with served(outer) as web:
        expected = {"app": "shop", "client": "Client", "worker": "running"}
        assert (await web.get("/")).json() == expected
        assert (await web.get("/inner/")).json()["app"] == "shop"
    async with requests_to(inner) as web:
        with pytest.raises(UsageError, match="give it lifespan=jsq_lifespan"):
            await web.get("/")


async def test_endpoints_of_fastapi_have_dependencies_for_the_app_and_its_client(unconnected: App) -> None:
    server = fastapi.FastAPI()
    server.state.jsq = unconnected

    @server.post("/double/{number}")
    async def double(number: int, client: ClientDependency, app: AppDependency) -> dict[str, str]:
        assert app is unconnected
        return {"id": (await client.submit("double", number)).id}

    async with requests_to(server) as web, unconnected.working():
        id = (await web.post("/double/4")).json()["id"]
        assert await unconnected.client.jobs.handle(id).result(10) == 8


async def test_handlers_of_litestar_have_dependencies_for_the_app_and_its_client(unconnected: App) -> None:
    @litestar.post("/double")
    async def double(jsq_client: NamedDependency[Client], jsq_app: NamedDependency[App]) -> dict[str, str]:
        assert jsq_app is unconnected
        return {"id": (await jsq_client.submit("double", 4)).id}

    server = litestar.Litestar(
        [double],
        dependencies=jsq_dependencies(unconnected),
        lifespan=[jsq_lifespan(unconnected, worker={"queues": ["default"]})],
    )
    async with server.lifespan(), requests_to(server) as web:
        assert server.state.jsq_worker.is_ready()
        id = (await web.post("/double")).json()["id"]
        assert await unconnected.client.jobs.handle(id).result(10) == 8


async def test_one_provider_serves_endpoints_and_tasks(app: App) -> None:
    opened: list[str] = []

    def get_settings() -> dict[str, int]:
        return {"factor": 3}

    Settings = Annotated[dict[str, int], fastapi.Depends(get_settings), Depends(get_settings)]  # noqa: N806

    def get_session(settings: Settings = INJECTED) -> Iterator[int]:
        opened.append("open")
        yield settings["factor"]
        opened.append("close")

    Session = Annotated[int, fastapi.Depends(get_session), Depends(get_session)]  # noqa: N806
    server = fastapi.FastAPI()

    @app.task
    def multiply(number: int, session: Session = INJECTED) -> int:
        return number * session

    @server.get("/{number}")
    async def read(number: int, session: Session) -> int:
        return number * session

    async with requests_to(server) as web, app.working():
        assert (await web.get("/5")).json() == 15
        assert await (await multiply.submit(5)).result(10) == 15
        with app.override(get_settings, lambda: {"factor": 10}):
            assert await (await multiply.submit(5)).result(10) == 50
    assert opened == ["open", "close"] * 3
