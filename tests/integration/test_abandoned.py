"""Functions that do not end are abandoned and logged; a blocked event loop is logged while it is blocked."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from jsq import App, Context, JobFailed, TaskExists
from jsq.client.client import Client
from jsq.telemetry.instruments import PrometheusInstruments
from jsq.telemetry.metrics import Metrics
from jsq.worker import Worker
from jsq.worker.timings import WorkerTimings
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

SHORT_UNWIND = WorkerTimings(unwind=0.1)


async def test_a_coroutine_that_swallows_its_cancellation_is_abandoned(
    app: App, working: Working, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    release = asyncio.Event()

    @app.task(retries=0, timeout=0.1)
    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    await check_abandoned(app, working, until, caplog, "stubborn", release.set, SHORT_UNWIND)


async def test_a_thread_that_does_not_end_is_abandoned(
    app: App, working: Working, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()

    @app.task(retries=0, timeout=0.1)
    def stubborn_thread() -> None:
        release.wait(30)

    await check_abandoned(app, working, until, caplog, "stubborn_thread", release.set, SHORT_UNWIND)


async def test_a_function_that_cannot_be_killed_is_abandoned_at_its_hard_timeout(
    app: App, working: Working, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()

    @app.task(retries=0, hard_timeout=0.2)
    def endless() -> None:
        release.wait(30)

    start_time = time.monotonic()
    await check_abandoned(app, working, until, caplog, "endless", release.set)
    assert time.monotonic() - start_time < WorkerTimings().unwind


async def check_abandoned(
    app: App,
    working: Working,
    until: Until,
    caplog: pytest.LogCaptureFixture,
    name: str,
    release: Callable[[], None],
    timings: WorkerTimings | None = None,
) -> None:
    """Run a task that does not end in the only slot: the slot becomes free, and log and metrics report it."""
    registry = CollectorRegistry()

    @app.task
    async def fine() -> str:
        return "fine"

    def count(metric: str, **labels: str) -> float | None:
        return registry.get_sample_value(metric, labels)

    labels = {"queue": "default", "task": name}
    async with working(concurrency=1, observer=Metrics(PrometheusInstruments(registry)), timings=timings):
        try:
            with pytest.raises(JobFailed) as caught:
                await (await app.tasks[name].submit()).result(60)
            assert caught.value.reason == "timeout"
            assert await (await fine.submit()).result(60) == "fine"
            assert count("jsq_jobs_abandoned_total", **labels) == 1
            assert count("jsq_abandoned_running") == 1
            (line,) = [one for one in caplog.records if one.getMessage() == "task abandoned"]
            assert vars(line)["task"] == name
        finally:
            release()
        await until(lambda: count("jsq_abandoned_running") == 0)
        assert await (await fine.submit()).result(60) == "fine"


async def test_a_thread_that_ends_at_its_timeout_is_not_abandoned(
    app: App, working: Working, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[int] = []

    @app.task(retries=0, timeout=0.1)
    def polite(ctx: Context) -> None:
        while not ctx.cancelled:
            pass
        ended.append(1)

    async with working(concurrency=1) as worker:
        with pytest.raises(JobFailed):
            await (await polite.submit()).result(60)
        await until(lambda: ended and worker.dispatcher.occupied == 0)
    assert "task abandoned" not in caplog.messages


async def test_a_coroutine_that_ends_when_cancelled_is_not_abandoned(
    app: App, working: Working, caplog: pytest.LogCaptureFixture
) -> None:
    @app.task(retries=0, hard_timeout=0.1)
    async def obedient() -> None:
        await asyncio.sleep(60)

    async with working():
        with pytest.raises(JobFailed, match=r"hard timeout of 0\.1 s"):
            await (await obedient.submit()).result(60)
    assert "task abandoned" not in caplog.messages


async def test_a_blocked_event_loop_is_logged_while_it_is_blocked(
    app: App, working: Working, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    seen: list[bool] = []

    def blocked_records() -> list[logging.LogRecord]:
        return [one for one in caplog.records if one.getMessage() == "event loop stalled"]

    @app.task
    async def blocks() -> None:
        late = time.monotonic() + 20
        while not blocked_records() and time.monotonic() < late:
            time.sleep(0.01)  # noqa: ASYNC251 -- on purpose
        seen.append(bool(blocked_records()))

    async with working(observer=Metrics(PrometheusInstruments(registry))):
        await (await blocks.submit()).result(30)
    assert seen == [True]
    (line,) = blocked_records()
    assert vars(line)["task"] == "blocks"
    assert f"{__file__}:{blocks.function.__code__.co_firstlineno + 4} in blocks" in vars(line)["at"]
    assert registry.get_sample_value("jsq_event_loop_blocked_total", {"task": "blocks"}) == 1


async def test_a_job_of_an_unknown_task_waits_for_a_worker_that_knows_it(
    app: App, client: Client, working: Working, until: Until
) -> None:
    async with working(queues=["default"]):
        job = await client.task("newer").submit(1)

        async def is_snoozed() -> bool:
            return (await job.status()).state == "snoozed"

        await until(is_snoozed)
        record = await job.status()
        assert (record.reason, record.failures) == ("unknown_task", 0)

        @app.task(retries=0)
        async def newer(number: int) -> int:
            return number + 1

        assert await job.result(60) == 2
    assert (await job.status()).attempt == 1


async def test_a_job_whose_task_stays_unknown_fails_after_the_limit(client: Client, working: Working) -> None:
    async with working(queues=["default"], unknown_task_for=1.5):
        start_time = time.monotonic()
        job = await client.task("never").submit()
        with pytest.raises(JobFailed) as caught:
            await job.result(60)
    assert caught.value.reason == "unknown_task"
    assert time.monotonic() - start_time >= 1.5
    assert (await job.status()).failures == 0


async def test_a_renamed_task_runs_the_jobs_of_its_old_names(
    app: App, client: Client, working: Working
) -> None:
    @app.task(name="mail.send", aliases=["send_mail", "post"], retries=0)
    async def send(to: str) -> str:
        return to

    async with working():
        for name in ("mail.send", "send_mail", "post"):
            assert await (await client.task(name).submit("a@b.c")).result(60) == "a@b.c"
    for taken in ("send_mail", "mail.send"):
        with pytest.raises(TaskExists):
            app.task(name=taken)(send.function)
    with pytest.raises(TaskExists):
        app.task(name="other", aliases=["post"])(send.function)


async def test_a_worker_that_stops_abandons_no_function_that_ends_in_time(
    app: App, working: Working, caplog: pytest.LogCaptureFixture
) -> None:
    has_started = asyncio.Event()

    @app.task
    async def long() -> None:
        has_started.set()
        await asyncio.sleep(60)

    async with working(grace=0) as worker:
        assert isinstance(worker, Worker)
        await long.submit()
        await has_started.wait()
    assert "task abandoned" not in caplog.messages
