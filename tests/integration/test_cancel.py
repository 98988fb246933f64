"""Cancel: confirmed before the start means no start; a running job is stopped by the worker that holds it."""

import asyncio

import pytest

from jsq import App, Client, Context, JobCancelled, JobNotFound, WrongState
from jsq.event import Event
from tests.conftest import Until, Working


async def test_a_queued_job_that_is_cancelled_never_starts(
    app: App, client: Client, working: Working
) -> None:
    runs: list[int] = []

    @app.task
    async def run(x: int) -> None:
        runs.append(x)

    jobs = [await run.submit(n) for n in range(20)]
    for job in jobs[::2]:
        assert (await job.cancel()).state == "cancelled"
    async with working():
        await asyncio.gather(*(job.wait(10) for job in jobs))
    assert sorted(runs) == list(range(1, 20, 2))
    with pytest.raises(JobCancelled):
        await jobs[0].result(1)
    [stats] = await client.queue_stats("default")
    assert (stats.waiting, stats.running) == ({"high": 0, "normal": 0, "low": 0}, 0)


async def test_jobs_cancelled_while_a_worker_takes_them_start_never_or_are_stopped(
    app: App, working: Working
) -> None:
    began: set[str] = set()

    @app.task
    async def run(ctx: Context) -> None:
        began.add(ctx.id)

    async def submit_and_cancel() -> None:
        job = await run.submit()
        try:
            unstarted = (await job.cancel()).attempt == 0
        except WrongState:
            return
        assert not (unstarted and job.id in began)

    async with working():
        await asyncio.gather(*(submit_and_cancel() for _ in range(200)))


async def test_a_scheduled_job_that_is_cancelled_never_starts(app: App, client: Client) -> None:
    job = await client.options(delay=0.5).submit("later")
    assert (await job.cancel()).state == "cancelled"
    [stats] = await client.queue_stats("default")
    assert stats.later == 0


async def test_a_running_coroutine_is_cancelled(
    app: App, client: Client, working: Working, until: Until
) -> None:
    began, cleaned = asyncio.Event(), asyncio.Event()

    @app.task
    async def long() -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.set()

    async with working():
        job = await long.submit()
        await asyncio.wait_for(began.wait(), 5)
        assert (await job.cancel()).state == "cancelled"
        assert cleaned.is_set()

        async def settled() -> bool:
            return (await client.queue_stats("default"))[0].running == 0

        await until(settled)


async def test_a_running_thread_is_told_and_its_outcome_is_refused(app: App, working: Working) -> None:
    seen: list[bool] = []

    @app.task
    def long(ctx: Context) -> str:
        while not ctx.cancelled:
            pass
        seen.append(True)
        return "too late"

    async with working():
        job = await long.submit()
        async for event in job.events():
            if event.state == "running":
                break
        assert (await job.cancel()).state == "cancelled"
        with pytest.raises(JobCancelled):
            await job.result(5)
    assert seen == [True]


async def test_a_job_whose_holder_is_silent_is_cancelled_all_the_same(client: Client) -> None:
    job = await client.submit("any")
    broker = await client.broker()
    await broker.log.write(job.queue, job.id, Event("running", "any", attempt=1, worker="gone"), expect=0)
    assert (await job.cancel()).state == "cancelled"
    assert (await client.queue_stats("default"))[0].waiting["normal"] == 0


async def test_cancelling_twice_is_as_good_as_once(client: Client) -> None:
    job = await client.submit("any")
    first, second = await job.cancel(), await job.cancel()
    assert first == second


async def test_a_finished_job_cannot_be_cancelled(app: App, working: Working) -> None:
    @app.task
    async def quick() -> int:
        return 1

    async with working():
        job = await quick.submit()
        await job.result(5)
        with pytest.raises(WrongState, match="is succeeded"):
            await job.cancel()


async def test_an_unknown_job_cannot_be_cancelled(client: Client) -> None:
    with pytest.raises(JobNotFound):
        await (await client.job("nobody")).cancel()


async def test_a_purged_queue_leaves_every_waiting_job_cancelled(app: App, client: Client) -> None:
    jobs = [await client.submit("any") for _ in range(5)]
    jobs.append(await client.options(delay=60).submit("any"))
    assert await client.count_waiting("default") == 6
    assert await client.purge("default") == 6
    assert {(await job.status()).state for job in jobs} == {"cancelled"}
    assert await client.count_waiting("default") == 0
