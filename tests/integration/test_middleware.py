"""Middleware around submits, runs and outcomes: its order, its errors, and the shipped ones."""

import asyncio
import contextvars
import logging
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

import pytest

from jsq import (
    INJECTED,
    App,
    BadOption,
    BatchItem,
    Context,
    ContextVars,
    CurrentJob,
    Depends,
    JobFailed,
    Middleware,
    NoCurrentJob,
    PartlySubmitted,
    Reject,
    Retry,
    Router,
    Snooze,
    current_job,
)
from jsq.middleware import CallNext
from jsq.model.job import Job
from jsq.server import EmbeddedServer
from jsq.worker import Worker
from tests.helpers.conditions import Until
from tests.helpers.workers import running_worker

Build = Callable[..., App]


class Recorder(Middleware):
    """Notes each call under its name."""

    def __init__(self, name: str, notes: list[Any]) -> None:
        self.name = name
        self.notes = notes

    def submitting(self, job: Job) -> Job:
        self.notes.append((self.name, "submitting"))
        return replace(job, headers={**job.headers, self.name: "seen"})

    def submitted(self, job: Job) -> None:
        self.notes.append((self.name, "submitted"))

    async def around(self, ctx: Context, call: CallNext) -> Any:
        self.notes.append((self.name, "before", *ctx.headers))
        try:
            return await call()
        finally:
            self.notes.append((self.name, "after"))

    async def succeeded(self, job: Job, result: Any) -> None:
        self.notes.append((self.name, "succeeded", result))

    async def failed(self, job: Job, error: BaseException) -> None:
        self.notes.append((self.name, "failed", repr(error)))

    async def retrying(self, job: Job, error: BaseException) -> None:
        self.notes.append((self.name, "retrying", repr(error)))

    async def cancelled(self, job: Job) -> None:
        self.notes.append((self.name, "cancelled"))

    async def settled(self, job: Job) -> None:
        self.notes.append((self.name, "settled"))


class Failing(Middleware):
    """Raises in every method that must change nothing."""

    def submitted(self, job: Job) -> None:
        raise OSError("submitted")

    async def succeeded(self, job: Job, result: Any) -> None:
        raise OSError("succeeded")

    async def failed(self, job: Job, error: BaseException) -> None:
        raise OSError("failed")

    async def retrying(self, job: Job, error: BaseException) -> None:
        raise OSError("retrying")

    async def settled(self, job: Job) -> None:
        raise OSError("settled")


@pytest.fixture
def build(server: EmbeddedServer, namespace: str) -> Build:
    """Makes an App of the test's namespace with the given options."""
    return lambda **options: App(server.url, namespace=namespace, **options)


async def test_the_order_is_app_queue_task_and_the_first_is_the_outermost(build: Build, until: Until) -> None:
    notes: list[Any] = []
    app = build(middleware=[Recorder("app", notes)])
    app.queue("mail", middleware=[Recorder("queue", notes)])

    @app.task(queue="mail", middleware=[Recorder("task", notes)])
    async def send(to: str) -> str:
        notes.append("run")
        return to

    async with app, running_worker(Worker(app)):
        assert await (await send.submit("a")).result(10) == "a"
        await until(lambda: ("app", "settled") in notes)

    headers = ("app", "queue", "task")
    assert notes == [
        *((name, "submitting") for name in headers),
        *((name, "submitted") for name in headers),
        *((name, "before", *headers) for name in headers),
        "run",
        *((name, "after") for name in reversed(headers)),
        *(
            (name, what, *more)
            for name in reversed(headers)
            for what, *more in (["succeeded", "a"], ["settled"])
        ),
    ]


async def test_a_router_brings_its_middleware_into_the_app(build: Build) -> None:
    notes: list[Any] = []
    router = Router("shop")
    router.queue("mail", middleware=[Recorder("queue", notes)])

    @router.task(queue="mail", middleware=[Recorder("task", notes)])
    async def send() -> None: ...

    app = build(middleware=[Recorder("app", notes)])
    app.include(router)
    async with app:
        await send.submit()
        assert notes[:3] == [("app", "submitting"), ("queue", "submitting"), ("task", "submitting")]
        notes.clear()
        # By its name only, a submit does not know the middleware of the task.
        await app.client.task("shop.send").options(queue="mail").submit()
        assert notes[:3] == [("app", "submitting"), ("queue", "submitting"), ("app", "submitted")]
        async with running_worker(Worker(app)):
            await (await send.submit()).result(10)
    assert send.app is app
    assert ("task", "before", "app", "queue", "task") in notes


async def test_each_outcome_has_its_method(build: Build, until: Until) -> None:
    notes: list[Any] = []
    app = build(middleware=[Recorder("m", notes)])
    started = asyncio.Event()

    @app.task(retries=1)
    async def end(how: str) -> None:
        ctx = how
        if ctx == "snooze" and not started.is_set():
            started.set()
            raise Snooze(0.01)
        if ctx == "hang":
            started.set()
            await asyncio.sleep(60)
        if ctx == "retry":
            raise Retry("again", delay=0.01)
        if ctx == "reject":
            raise Reject("never")

    def outcomes() -> list[tuple[Any, ...]]:
        return [note[1:] for note in notes if note[1] not in ("submitting", "submitted", "before", "after")]

    async with app, running_worker(Worker(app)):
        for how, wanted in {
            "reject": [("failed", "Reject('never')"), ("settled",)],
            "retry": [
                ("retrying", "Retry('again')"),
                ("settled",),
                ("failed", "Retry('again')"),
                ("settled",),
            ],
            "snooze": [("settled",), ("succeeded", None), ("settled",)],
        }.items():
            notes.clear()
            await end.submit(how)
            await until(lambda wanted=wanted: outcomes() == wanted)
        notes.clear()
        started.clear()
        job = await end.submit("hang")
        await started.wait()
        await job.cancel()
        await until(lambda: outcomes() == [("cancelled",), ("settled",)])


async def test_the_error_of_a_middleware_is_logged_and_changes_nothing(
    build: Build, caplog: pytest.LogCaptureFixture, until: Until
) -> None:
    notes: list[Any] = []
    app = build(middleware=[Recorder("outer", notes), Failing(), Recorder("inner", notes)])

    @app.task(retries=1, backoff=[0.01])
    async def work(fails: bool) -> str:
        if fails:
            raise ValueError("no")
        return "done"

    with caplog.at_level(logging.ERROR):
        async with app, running_worker(Worker(app)):
            assert await (await work.submit(False)).result(10) == "done"
            with pytest.raises(JobFailed, match="ValueError: no"):
                await (await work.submit(True)).result(10)
            await until(lambda: notes.count(("outer", "settled")) == 3)

    failed = [vars(record) for record in caplog.records if record.message == "middleware failed"]
    assert [one["method"] for one in failed] == [
        *("submitted", "succeeded", "settled"),
        *("submitted", "retrying", "settled", "failed", "settled"),
    ]
    assert {one["middleware"] for one in failed} == {"Failing"}


@pytest.mark.parametrize("executor", ["async", "thread"])
async def test_a_traceback_shows_the_middleware_and_the_task_without_the_frames_between(
    build: Build, caplog: pytest.LogCaptureFixture, executor: Literal["async", "thread"]
) -> None:
    app = build(middleware=[Recorder("outer", []), Recorder("inner", [])])

    async def fails(value: Annotated[int, Depends(lambda: 1)] = INJECTED) -> None:
        raise ValueError("no")

    def fails_in_a_thread(value: Annotated[int, Depends(lambda: 1)] = INJECTED) -> None:
        raise ValueError("no")

    task = app.task(fails if executor == "async" else fails_in_a_thread)
    with caplog.at_level(logging.ERROR):
        async with app, running_worker(Worker(app)):
            with pytest.raises(JobFailed) as failed:
                await (await task.submit()).result(10)

    (logged,) = [record for record in caplog.records if record.message == "job failed"]
    assert logged.exc_info
    shown = "".join(traceback.format_exception(logged.exc_info[1]))
    for text in (shown, failed.value.traceback):
        assert text.count("in around\n") == 2
        assert f"in {task.name}\n" in text
        assert {line.split('"')[1] for line in text.splitlines() if line.startswith("  File")} == {__file__}


async def test_around_may_return_another_result_or_raise_an_error_of_the_attempt(build: Build) -> None:
    class Doubling(Middleware):
        async def around(self, ctx: Context, call: CallNext) -> Any:
            found = await call()
            if found == 0:
                raise ZeroDivisionError("nothing to double")
            return 2 * found

    app = build(middleware=[Doubling()])

    @app.task(retries=0)
    def number(value: int) -> int:
        return value

    async with app, running_worker(Worker(app)):
        assert await (await number.submit(4)).result(10) == 8
        with pytest.raises(JobFailed, match="ZeroDivisionError: nothing to double"):
            await (await number.submit(0)).result(10)


async def test_submitting_raises_to_the_caller_before_anything_is_sent(build: Build) -> None:
    class Refusing(Middleware):
        def submitting(self, job: Job) -> Job:
            if b"wrong" in job.arguments:
                raise PermissionError("not for you")
            return replace(job, id="other") if b"other" in job.arguments else job

    app = build(middleware=[Refusing()])

    @app.task
    async def send(to: str) -> None: ...

    async with app:
        await app.client.admin.provision()
        for submit in (send.submit("wrong"), send.options(id="1").submit("wrong")):
            with pytest.raises(PermissionError):
                await submit
        for many in (
            send.submit_many([("right",), ("wrong",)]),
            send.options(unique=True).submit_many([("wrong",)]),
        ):
            with pytest.raises(PermissionError):
                await many
        with pytest.raises(BadOption, match="must return the job with the same id"):
            await send.submit("other")
        assert (await app.client.queues.stats("default"))[0].waiting["normal"] == 0


async def test_each_way_to_submit_runs_the_middleware(build: Build) -> None:
    submitted: list[str] = []

    class Numbering(Middleware):
        count = 0

        def submitting(self, job: Job) -> Job:
            self.count += 1
            return replace(job, headers={"number": str(self.count)})

        def submitted(self, job: Job) -> None:
            submitted.append(job.id)

    app = build(middleware=[Numbering()])

    @app.task
    async def number(ctx: Context, value: int) -> list[Any]:
        return [value, ctx.headers["number"]]

    async with app:
        jobs = [await number.submit(0), await number.options(delay=0.01).submit(1)]
        jobs += await number.submit_many([(2,), (3,)])
        jobs += await number.options(unique=True).submit_many([(4,)])
        again = await number.options(id="own").submit(5)
        assert (await number.options(id="own").submit(5)).duplicate
        async with running_worker(Worker(app)):
            found = [await job.result(10) for job in [*jobs, again]]
            mapped = await number.map([7])
        with pytest.raises(BadOption, match="all_or_nothing must not be set"):
            await number.submit_many([(1,), (2,)], all_or_nothing=True)

    assert found == [[0, "1"], [1, "2"], [2, "3"], [3, "4"], [4, "5"], [5, "6"]]
    assert mapped == [[7, "8"]]
    assert submitted[:6] == [job.id for job in [*jobs, again]]
    assert len(submitted) == 7


async def test_a_bulk_of_jobs_with_different_headers_reports_what_is_not_stored(build: Build) -> None:
    class Numbering(Middleware):
        def submitting(self, job: Job) -> Job:
            return replace(job, headers={"number": job.arguments.decode()[:60]})

    app = build(middleware=[Numbering()])
    app.queue("small", max_jobs=2)

    @app.task(queue="small")
    async def number(value: int) -> None: ...

    async with app:
        await (await app.client.broker()).queues.declare("small", app.declared["small"])
        with pytest.raises(PartlySubmitted) as caught:
            await number.submit_many([(value,) for value in range(4)])
    assert len(caught.value.stored) == 2
    assert sorted(caught.value.refused) == [2, 3]


async def test_the_current_job_is_known_everywhere_in_the_task_and_nowhere_else(build: Build) -> None:
    app = build(middleware=[CurrentJob()])

    @app.task
    async def on_loop() -> list[str]:
        return [current_job().id, await asyncio.to_thread(lambda: current_job().id)]

    @app.task
    def in_thread() -> str:
        return current_job().id

    @app.batch_task(size=2, wait=0.2)
    async def batch(items: list[BatchItem[int]]) -> list[bool]:
        return [current_job().id == items[0].id for _ in items]

    async with app, running_worker(Worker(app)):
        job = await on_loop.submit()
        assert await job.result(10) == [job.id, job.id]
        other = await in_thread.submit()
        assert await other.result(10) == other.id
        jobs = await batch.submit_many([(1,), (2,)])
        assert [await one.result(10) for one in jobs] == [True, True]
    with pytest.raises(NoCurrentJob, match="no job runs here"):
        current_job()


async def test_context_variables_travel_to_the_task_and_to_the_jobs_that_it_submits(build: Build) -> None:
    tenant: contextvars.ContextVar[Any] = contextvars.ContextVar("tenant")
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    app = build(middleware=[ContextVars(tenant, user)])

    @app.task
    def inner() -> list[Any]:
        return [tenant.get(), user.get()]

    @app.task
    async def outer() -> str:
        return (await inner.submit()).id

    async with app, running_worker(Worker(app)):
        tenant.set({"id": 7, "name": "Zoë\n"})
        id = await (await outer.submit()).result(10)
        assert await inner.job(id).result(10) == [{"id": 7, "name": "Zoë\n"}, "nobody"]
        blocking = await asyncio.to_thread(inner.delay)
        assert await inner.job(blocking.id).result(10) == [{"id": 7, "name": "Zoë\n"}, "nobody"]
        tenant.set({7})
        with pytest.raises(BadOption, match="context variable tenant must have a JSON value"):
            await inner.submit()


@pytest.mark.parametrize("wrong", [Middleware, 5, "name"])
def test_anything_but_a_list_of_middleware_is_refused(wrong: Any) -> None:
    for declare in (
        lambda given: App(middleware=given),
        lambda given: App().queue("q", middleware=given),
        lambda given: App().task(middleware=given),
    ):
        with pytest.raises(BadOption, match="middleware must be"):
            declare([wrong])
        with pytest.raises(BadOption, match="middleware must be"):
            declare(Middleware())


async def test_a_timeout_of_a_middleware_waits_for_the_thread_and_the_slot_stays_taken(
    build: Build, until: Until
) -> None:
    limits: list[asyncio.Timeout] = []

    class Limit(Middleware):
        async def around(self, ctx: Context, call: CallNext) -> Any:
            limits.append(asyncio.timeout(0.05))
            async with limits[0]:
                return await call()

    app = build(middleware=[Limit()])
    loop = asyncio.get_running_loop()
    running, may_end = asyncio.Event(), asyncio.Event()

    @app.task(retries=0)
    def block() -> None:
        loop.call_soon_threadsafe(running.set)
        asyncio.run_coroutine_threadsafe(may_end.wait(), loop).result()

    async with app:
        worker = Worker(app)
        async with running_worker(worker):
            job = await block.submit()
            await running.wait()
            await until(lambda: limits[0].expired())
            assert worker.dispatcher.occupied == 1
            may_end.set()
            with pytest.raises(JobFailed, match="TimeoutError"):
                await job.result(10)
            await until(lambda: worker.dispatcher.occupied == 0)


async def test_a_plain_function_inside_middleware_is_abandoned_at_its_timeout(
    build: Build, until: Until
) -> None:
    app = build(middleware=[CurrentJob()])
    loop, may_end = asyncio.get_running_loop(), asyncio.Event()

    @app.task(retries=0, timeout=0.05, hard_timeout=0.05)
    def block() -> None:
        asyncio.run_coroutine_threadsafe(may_end.wait(), loop).result()

    async with app, running_worker(Worker(app)):
        with pytest.raises(JobFailed, match="hard timeout"):
            await (await block.submit()).result(10)
        may_end.set()
