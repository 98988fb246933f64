"""The workers of tests: drains, and deaths with jobs of each kind."""

import asyncio
from pathlib import Path

import pytest

from jsq import App, Client, Context, UsageError
from jsq.testing import Drain, JsqWorker
from tests.apps import children
from tests.helpers.conditions import Until


@pytest.fixture
def worker(app: App) -> JsqWorker:
    """A worker, which does not run yet."""
    return JsqWorker(app)


async def test_a_job_in_a_thread_runs_again_after_the_death_of_its_worker(
    app: App, worker: JsqWorker
) -> None:
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    @app.task
    def wait(ctx: Context) -> int:
        if ctx.attempt == 1:
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
        return ctx.attempt

    async with worker.running():
        await worker.until_started(await wait.submit())
        await worker.kill()
        [job] = await worker.drain()
        release.set()

    assert (job.state, job.crashes, job.result) == ("succeeded", 1, 2)


async def test_a_job_that_does_not_start_ends_the_wait_with_its_state(app: App, worker: JsqWorker) -> None:
    @app.task
    async def later() -> None: ...

    async with worker.running():
        job = await later.options(delay="1h").submit()
        with pytest.raises(
            TimeoutError, match=f"job {job.id} did not start .* within 0.1 s; it is scheduled"
        ):
            await worker.until_started(job, 0.1)


async def test_a_job_in_a_child_process_runs_again_after_the_death_of_its_worker(
    app: App, worker: JsqWorker, tmp_path: Path, until: Until
) -> None:
    wait = app.task(executor="process", name="wait")(children.wait_once)
    began = tmp_path / "began"

    async with worker.running():
        await wait.submit(str(began))
        await until(began.exists)
        await worker.kill()
        [job] = await worker.drain()

    assert (job.state, job.crashes, job.result) == ("succeeded", 1, 2)


async def test_the_next_job_of_a_key_waits_for_the_job_of_a_dead_worker(app: App, worker: JsqWorker) -> None:
    @app.task
    async def wait(ctx: Context, label: str) -> str:
        if (ctx.attempt, label) == (1, "first"):
            await asyncio.sleep(60)
        return label

    keyed = wait.options(key="k", per_key=1)
    async with worker.running():
        first = await keyed.submit("first")
        await keyed.submit("second")
        await worker.until_started(first)
        await worker.kill()
        ran = await worker.drain()

    assert [(job.result, job.crashes) for job in ran] == [("first", 1), ("second", 0)]


async def test_a_drain_leaves_jobs_that_a_limit_or_a_pause_holds_back(app: App, client: Client) -> None:
    @app.task(rate="1/h")
    async def rated() -> None: ...

    @app.task(queue="mail")
    async def mail() -> None: ...

    for _ in range(3):
        await rated.submit()
    await mail.submit()
    await client.queues.pause("mail")

    ran = await Drain(app)()

    assert [job.task for job in ran] == ["rated"]


async def test_a_drain_that_takes_too_long_names_the_running_tasks(app: App) -> None:
    @app.task
    async def endless() -> None:
        await asyncio.sleep(60)

    await endless.submit()

    with pytest.raises(TimeoutError, match=r"after 0\.5 s; running: endless"):
        await Drain(app)(timeout=0.5)


async def test_only_a_running_worker_can_die(worker: JsqWorker) -> None:
    with pytest.raises(UsageError, match="start it before you kill it"):
        await worker.kill()
    with pytest.raises(UsageError, match="only a task may call this"):
        worker.die()


async def test_a_worker_that_cannot_start_raises_its_error(app: App, worker: JsqWorker) -> None:
    @app.task(on_failure="missing")
    async def nothing() -> None: ...

    with pytest.raises(UsageError, match="missing"):
        await worker.start()
    assert not worker.is_running
