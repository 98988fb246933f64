"""The lifespan of an App: entered before the first job, left after the last one, in one asyncio task."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from jsq import App, BadOption, Context, LifespanFailed
from jsq.server import EmbeddedServer
from jsq.settings import WorkerSettings
from jsq.worker import Worker
from jsq.worker.timings import WorkerTimings
from tests.helpers.conditions import Until
from tests.helpers.workers import running_worker

Build = Callable[..., App]


@pytest.fixture
def build(server: EmbeddedServer, namespace: str) -> Build:
    """Makes an App of the test's namespace with the given options."""
    return lambda **options: App(server.url, namespace=namespace, **options)


async def test_the_lifespan_surrounds_all_jobs_and_its_mapping_is_the_state(build: Build) -> None:
    seen: list[object] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[dict[str, Any]]:
        seen.append(("enter", app.name))
        async with asyncio.TaskGroup() as group:  # it must be left in the task that entered it
            beat = group.create_task(asyncio.Event().wait())
            yield {"pool": 5}
            beat.cancel()
        seen.append("leave")

    app = build(lifespan=lifespan, name="shop")

    @app.on_start
    async def load(state: dict[str, Any]) -> None:
        state["model"] = state["pool"] + 1

    @app.on_start
    def note_start() -> None:
        seen.append("start")

    @app.on_stop
    def close_first() -> None:
        seen.append("second stop")

    @app.on_stop
    async def close_second(state: dict[str, Any]) -> None:
        seen.append(("first stop", state["model"]))

    @app.task
    async def read(ctx: Context) -> list[int]:
        seen.append("job")
        return [ctx.state["pool"], ctx.state["model"]]

    @app.task
    def read_in_thread(ctx: Context) -> int:
        return int(ctx.state["model"])

    async with app, running_worker(Worker(app)):
        assert await (await read.submit()).result(10) == [5, 6]
        assert await (await read_in_thread.submit()).result(10) == 6

    assert seen == [("enter", "shop"), "start", "job", ("first stop", 6), "second stop", "leave"]


async def test_an_app_without_a_lifespan_has_an_empty_state(build: Build) -> None:
    app = build()

    @app.task
    async def read(ctx: Context) -> int:
        return len(ctx.state)

    async with app, running_worker(Worker(app)):
        assert await (await read.submit()).result(10) == 0


async def test_a_failed_start_ends_the_worker_with_its_cause_and_takes_no_job(build: Build) -> None:
    cause = OSError("no database")

    def fail() -> None:
        raise cause

    app = build()
    app.on_start(fail)

    @app.task
    async def work() -> None: ...

    async with app:
        job = await work.submit()
        with pytest.raises(LifespanFailed, match="failed to start: OSError: no database") as caught:
            await Worker(app).run()
        assert caught.value.__cause__ is cause
        assert (await job.status()).state == "queued"


async def test_a_lifespan_that_ends_early_stops_the_worker_gently(build: Build, until: Until) -> None:
    broken = asyncio.Event()

    async def break_soon() -> None:
        await broken.wait()
        raise OSError("connection lost")

    @contextlib.asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(break_soon())
            yield

    app = build(lifespan=lifespan)
    may_end = asyncio.Event()

    @app.task
    async def work() -> str:
        broken.set()
        await may_end.wait()
        return "done"

    async with app:
        worker = Worker(app)
        running = asyncio.create_task(worker.run())
        job = await work.submit()
        await until(lambda: worker.ready.is_set() and not worker.is_ready())
        may_end.set()
        with pytest.raises(LifespanFailed, match="while the worker ran") as caught:
            await running
        assert isinstance(caught.value.__cause__, ExceptionGroup)
        assert await job.result(10) == "done"


async def test_a_stop_during_the_start_leaves_what_was_entered(build: Build) -> None:
    entering, left = asyncio.Event(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        try:
            entering.set()
            await asyncio.Event().wait()
            yield
        finally:
            left.set()

    async with build(lifespan=lifespan) as app:
        worker = Worker(app)
        running = asyncio.create_task(worker.run())
        await entering.wait()
        worker.stop()
        await running
    assert left.is_set()


async def test_a_stop_that_raises_or_hangs_is_logged_and_ends(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    @contextlib.asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        yield
        await asyncio.Event().wait()

    app = build(lifespan=lifespan)

    @app.on_stop
    def fail() -> None:
        raise OSError("cannot close")

    with caplog.at_level(logging.ERROR):
        async with app:
            worker = Worker(app, settings=WorkerSettings(grace=0.1), timings=WorkerTimings(unwind=0.1))
            async with running_worker(worker):
                pass

    assert [record.message for record in caplog.records] == ["lifespan failed", "lifespan abandoned"]


@contextlib.contextmanager
def not_async(app: App) -> Any:
    yield


async def never_decorated(app: App) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("lifespan", "message"),
    [(5, "lifespan must be a function of the App"), (never_decorated, "decorate it with @contextlib.async")],
)
def test_a_lifespan_of_another_shape_is_refused_where_it_is_declared(lifespan: Any, message: str) -> None:
    with pytest.raises(BadOption, match=message):
        App(lifespan=lifespan)


async def test_a_lifespan_that_is_no_async_context_manager_fails_at_the_start(build: Build) -> None:
    async with build(lifespan=not_async) as app:
        with pytest.raises(LifespanFailed, match="TypeError"):
            await Worker(app).run()


def two_arguments(state: object, more: object) -> None: ...


@pytest.mark.parametrize("function", [5, two_arguments, never_decorated])
def test_start_and_stop_functions_of_another_shape_are_refused(function: Any) -> None:
    for declare in (App().on_start, App().on_stop):
        with pytest.raises(BadOption, match="on_st"):
            declare(function)
