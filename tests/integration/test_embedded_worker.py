"""A worker in a process of the user's own: `async with app.working() as worker:`."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from jsq import App, BadOption, BrokerUnavailable, Context, EmbeddedWorker, LifespanFailed, UsageError
from jsq.server import EmbeddedServer
from tests.helpers.conditions import Until

Build = Callable[..., App]


@pytest.fixture
def build(server: EmbeddedServer, namespace: str) -> Build:
    """Makes an App of the test's namespace with the given options."""
    return lambda **options: App(server.url, namespace=namespace, **options)


class Gate:
    """A task that has begun waits here until the test opens the gate."""

    def __init__(self, app: App) -> None:
        self.begun, self.opened = asyncio.Event(), asyncio.Event()

        @app.task(name="pass_gate")
        async def pass_gate() -> str:
            self.begun.set()
            await self.opened.wait()
            return "passed"

        self.task = pass_gate


class Breakable:
    """A lifespan that ends with an error when the test breaks it."""

    def __init__(self) -> None:
        self.broken = asyncio.Event()

    async def fail_soon(self) -> None:
        await self.broken.wait()
        raise OSError("connection lost")

    @contextlib.asynccontextmanager
    async def lifespan(self, app: App) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            failing = group.create_task(self.fail_soon())
            yield
            failing.cancel()


async def test_a_block_has_a_ready_worker_and_leaves_the_connection_open(build: Build) -> None:
    seen: list[str] = []
    app = build()
    app.on_start(lambda: seen.append("start"))
    app.on_stop(lambda: seen.append("stop"))

    @app.task
    async def double(number: int) -> int:
        seen.append("job")
        return 2 * number

    async with app:
        early = await double.submit(1)
        async with app.working(concurrency=4, queues=["default"]) as worker:
            assert (worker.state(), worker.is_ready(), worker.queues) == ("running", True, ("default",))
            assert [one["worker"] for one in await app.client.admin.workers()] == [worker.name]
            assert [await early.result(10), await (await double.submit(4)).result(10)] == [2, 8]
        assert (worker.state(), worker.is_ready()) == ("stopped", False)
        assert repr(worker) == f"<EmbeddedWorker {worker.name} of default: stopped>"
        assert await app.client.admin.workers() == []
        assert (await (await double.submit(5)).status()).state == "queued"

    assert seen == ["start", "job", "job", "stop"]


async def test_the_end_of_a_block_waits_for_running_jobs_and_hands_back_the_others(build: Build) -> None:
    app = build()
    gate = Gate(app)
    async with app:
        async with app.working(concurrency=1, prefetch=5) as worker:
            running, waiting = await gate.task.submit(), await gate.task.submit()
            await gate.begun.wait()
            worker.stop()  # the end of the block does not count as a second call
            asyncio.get_running_loop().call_later(0.1, gate.opened.set)

        assert await running.result(10) == "passed"
        assert ((await waiting.status()).state, (await waiting.status()).attempt) == ("queued", 0)


async def test_a_cancellation_during_the_stop_stops_at_once_and_is_raised(build: Build) -> None:
    app = build()
    gate = Gate(app)

    async def work() -> None:
        async with app.working():
            leaving.set()

    leaving = asyncio.Event()
    async with app:
        job = await gate.task.submit()
        block = asyncio.create_task(work())
        await gate.begun.wait()
        await leaving.wait()
        block.cancel()
        with pytest.raises(asyncio.CancelledError):
            await block
        record = await job.status()
        assert (record.state, record.failures) == ("interrupted", 0)


async def test_a_failing_worker_ends_the_block_with_its_error(build: Build) -> None:
    breakable = Breakable()
    app = build(lifespan=breakable.lifespan)

    async def block() -> None:
        async with app.working():
            breakable.broken.set()
            await asyncio.Event().wait()

    async with app:
        with pytest.raises(LifespanFailed, match="while the worker ran") as caught:
            await block()
        assert isinstance(caught.value.__cause__, ExceptionGroup)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # no cancellation is pending


@pytest.mark.parametrize("raises", [False, True])
async def test_an_error_of_the_worker_is_raised_though_the_block_ends_at_the_same_time(
    build: Build, *, raises: bool
) -> None:
    breakable = Breakable()
    app = build(lifespan=breakable.lifespan)

    async def block() -> None:
        async with app.working() as worker:
            breakable.broken.set()
            with contextlib.suppress(asyncio.CancelledError):
                await worker.wait()
            if raises:
                raise ValueError("of the block")

    async with app:
        with pytest.raises(LifespanFailed, match="while the worker ran") as caught:
            await block()
        notes = getattr(caught.value, "__notes__", [])
        assert notes == (
            ["Before, the block of the worker raised ValueError('of the block')"] if raises else []
        )
        await asyncio.sleep(0)


async def test_an_error_is_raised_at_the_end_if_the_task_that_entered_the_block_has_ended(
    build: Build, until: Until
) -> None:
    """As in a test fixture: pytest-asyncio enters and leaves the block in tasks of their own."""
    breakable = Breakable()
    app = build(lifespan=breakable.lifespan)
    async with app:
        worker = await asyncio.create_task(app.working().__aenter__())
        breakable.broken.set()
        with pytest.raises(LifespanFailed):
            await worker.wait()
        assert worker.state() == "stopped"
        with pytest.raises(LifespanFailed, match="while the worker ran"):
            await asyncio.create_task(worker.__aexit__(None, None, None))


async def test_an_error_of_the_block_is_raised_and_the_worker_stops(build: Build) -> None:
    async with build() as app:
        with pytest.raises(ValueError, match="of the block"):
            async with app.working() as worker:
                raise ValueError("of the block")
        assert worker.state() == "stopped"


async def test_a_worker_that_cannot_start_raises_where_the_block_begins(build: Build) -> None:
    app = build()

    @app.on_start
    def fail() -> None:
        raise OSError("no database")

    async with app:
        with pytest.raises(LifespanFailed, match="no database"):
            async with app.working():
                pytest.fail("the block began")

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(BrokerUnavailable):
            async with App(f"nats://127.0.0.1:{port}").working():
                pytest.fail("the block began")


async def test_a_cancelled_start_leaves_no_worker(build: Build) -> None:
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
        starting = asyncio.create_task(app.working().__aenter__())
        await entering.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert left.is_set()
        assert not [one for one in asyncio.all_tasks() if one.get_name().startswith("jsq-worker")]


async def test_several_workers_of_an_app_share_its_lifespan(build: Build) -> None:
    seen: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[dict[str, Any]]:
        seen.append("enter")
        yield {"number": len(seen)}
        seen.append("leave")

    app = build(lifespan=lifespan)

    @app.task(queue="mail")
    async def read(ctx: Context) -> tuple[str, int]:
        return ctx.worker, ctx.state["number"]

    @app.task(queue="slow")
    async def read_slowly(ctx: Context) -> tuple[str, int]:
        return ctx.worker, ctx.state["number"]

    async with app:
        async with app.working(queues=["mail"]) as first:
            async with app.working(queues=["slow"], concurrency=1) as second:
                assert await (await read.submit()).result(10) == (first.name, 1)
                assert await (await read_slowly.submit()).result(10) == (second.name, 1)
            assert seen == ["enter"]
            assert await (await read.submit()).result(10) == (first.name, 1)
        async with app.working(queues=["mail"]):
            assert (await (await read.submit()).result(10))[1] == 3
        await asyncio.gather(*(enter_briefly(app) for _ in range(3)))

    assert seen == ["enter", "leave"] * 3


async def enter_briefly(app: App) -> None:
    async with app.working():
        pass


async def test_a_failing_lifespan_ends_all_workers_that_share_it(build: Build, until: Until) -> None:
    breakable = Breakable()
    app = build(lifespan=breakable.lifespan)
    entered: list[EmbeddedWorker] = []

    async def work() -> None:
        async with app.working() as worker:
            entered.append(worker)
            await asyncio.Event().wait()

    async with app:
        blocks = [asyncio.create_task(work()) for _ in range(2)]
        await until(lambda: len(entered) == 2)
        breakable.broken.set()
        ends = await asyncio.gather(*blocks, return_exceptions=True)
    assert [type(end) for end in ends] == [LifespanFailed, LifespanFailed]


async def test_a_burst_ends_by_itself_and_a_block_may_wait_for_it(build: Build) -> None:
    app = build()
    done: list[int] = []

    @app.task
    def note(number: int) -> None:
        done.append(number)

    async with app:
        await note.submit_many([(number,) for number in range(20)])
        async with app.working(burst=True) as worker:
            await worker.wait()
            assert worker.state() == "stopped"
            assert sorted(done) == list(range(20))
        with pytest.raises(UsageError, match="one block only"):
            await worker.__aenter__()
        with pytest.raises(UsageError, match="has not started"):
            await app.working().wait()


async def test_a_quiet_worker_takes_no_job_until_it_resumes(build: Build, until: Until) -> None:
    app = build()
    gate = Gate(app)
    gate.opened.set()
    async with app, app.working() as worker:
        worker.quiet()
        await until(lambda: worker.state() == "quiet")
        assert not worker.is_ready()
        worker.resume()
        assert await (await gate.task.submit()).result(10) == "passed"


async def test_signal_handlers_and_the_main_thread_are_untouched(build: Build) -> None:
    def handlers() -> dict[int, object]:
        return {number: signal.getsignal(number) for number in signal.valid_signals()}

    before, wakeup = handlers(), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    async with build() as app, app.working():
        assert handlers() == before
        now = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(now)
        assert now == wakeup
    assert handlers() == before
    assert not [one for one in threading.enumerate() if one.name.startswith("jsq") and not one.daemon]


async def test_a_block_in_a_task_group_ends_with_it(build: Build, until: Until) -> None:
    app = build()
    gate = Gate(app)
    gate.opened.set()
    entered: list[EmbeddedWorker] = []

    async def serve() -> None:
        async with app.working() as worker:
            entered.append(worker)
            await asyncio.Event().wait()

    async def fail_after_a_job() -> None:
        await until(lambda: entered != [])
        assert await (await gate.task.submit()).result(10) == "passed"
        raise ValueError("of another task")

    async def run_both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(serve())
            group.create_task(fail_after_a_job())

    async with app:
        with pytest.raises(ExceptionGroup) as caught:
            await run_both()
        assert [str(error) for error in caught.value.exceptions] == ["of another task"]

        async with anyio.create_task_group() as scoped:
            scoped.start_soon(serve)
            await until(lambda: len(entered) == 2)
            assert await (await gate.task.submit()).result(10) == "passed"
            scoped.cancel_scope.cancel()
        assert [worker.state() for worker in entered] == ["stopped", "stopped"]
        assert await app.client.admin.workers() == []


async def test_settings_are_those_of_a_worker(build: Build) -> None:
    app = build()
    wrong: dict[str, Any] = {"concurency": 4}

    with pytest.raises(BadOption, match="there is no setting concurency"):
        app.working(**wrong)
    with pytest.raises(BadOption, match="concurrency"):
        app.working(concurrency=0)
    with pytest.raises(BadOption, match="strict"):
        app.working(queues={"mail": 3}, strict=True)
    assert app.working(queues={"mail": 3, "slow": 1}).queues == ("mail", "slow")
