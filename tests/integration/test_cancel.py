"""Cancel: confirmed before the start, the job never starts; a running job is cancelled by its worker."""

import asyncio
import threading
import time
from typing import Any

import pytest

from jsq import App, BadOption, Client, Context, JobCancelled, JobHandle, JobNotFound, WrongState
from jsq.broker.operations.cancel import CancelCount
from jsq.model.revision import FINAL_STATES, Revision
from jsq.server import EmbeddedServer
from jsq.worker import Worker
from tests.helpers.conditions import Until
from tests.helpers.workers import Working


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
    [stats] = await client.queues.stats("default")
    assert (stats.waiting, stats.running) == ({"high": 0, "normal": 0, "low": 0}, 0)


async def test_jobs_cancelled_while_a_worker_fetches_them_never_start_or_are_cancelled(
    app: App, working: Working
) -> None:
    started_ids: set[str] = set()

    @app.task
    async def run(ctx: Context) -> None:
        started_ids.add(ctx.id)

    async def submit_and_cancel() -> None:
        job = await run.submit()
        try:
            unstarted = (await job.cancel()).attempt == 0
        except WrongState:
            return
        assert not (unstarted and job.id in started_ids)

    async with working():
        await asyncio.gather(*(submit_and_cancel() for _ in range(200)))


async def test_a_scheduled_job_that_is_cancelled_never_starts(app: App, client: Client) -> None:
    job = await client.task("later").options(delay=0.5).submit()
    assert (await job.cancel()).state == "cancelled"
    [stats] = await client.queues.stats("default")
    assert stats.scheduled == 0


async def test_a_running_coroutine_is_cancelled(
    app: App, client: Client, working: Working, until: Until
) -> None:
    has_started, cleaned = asyncio.Event(), asyncio.Event()

    @app.task
    async def long() -> None:
        has_started.set()
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.set()

    async with working():
        job = await long.submit()
        await asyncio.wait_for(has_started.wait(), 5)
        assert (await job.cancel()).state == "cancelled"
        assert cleaned.is_set()

        async def settled() -> bool:
            return (await client.queues.stats("default"))[0].running == 0

        await until(settled)


async def test_a_thread_is_notified_of_its_cancellation_and_its_outcome_is_refused(
    app: App, working: Working
) -> None:
    seen = threading.Event()

    @app.task
    def long(ctx: Context) -> str:
        while not ctx.cancelled:
            pass
        seen.set()
        return "too late"

    async with working():
        job = await long.submit()
        async for event in job.events():
            if event.state == "running":
                break
        assert (await job.cancel()).state == "cancelled"
        with pytest.raises(JobCancelled):
            await job.result(60)
    # The outcome does not wait for the end of the thread, which only receives a notification.
    assert await asyncio.to_thread(seen.wait, 10)


async def test_a_job_is_cancelled_though_its_worker_does_not_reply(client: Client) -> None:
    job = await client.task("any").submit()
    broker = await client.broker()
    await broker.records.write(
        job.queue, job.id, Revision("running", "any", attempt=1, worker="gone"), expect=0
    )
    assert (await job.cancel()).state == "cancelled"
    assert (await client.queues.stats("default"))[0].waiting["normal"] == 0


async def test_a_second_cancel_succeeds_without_effect(client: Client) -> None:
    job = await client.task("any").submit()
    first, second = await job.cancel(), await job.cancel()
    assert first == second


async def test_a_finished_job_cannot_be_cancelled(app: App, working: Working) -> None:
    @app.task
    async def quick() -> int:
        return 1

    async with working():
        job = await quick.submit()
        await job.result(60)
        with pytest.raises(WrongState, match="is succeeded"):
            await job.cancel()


async def test_an_unknown_job_cannot_be_cancelled(client: Client) -> None:
    with pytest.raises(JobNotFound):
        await client.jobs.handle("nobody").cancel()


async def test_a_purged_queue_leaves_every_waiting_job_cancelled(app: App, client: Client) -> None:
    jobs = [await client.task("any").submit() for _ in range(5)]
    jobs.append(await client.task("any").options(delay=60).submit())
    assert await client.queues.count_waiting("default") == 6
    assert await client.queues.purge("default") == 6
    assert {(await job.status()).state for job in jobs} == {"cancelled"}
    assert await client.queues.count_waiting("default") == 0


async def test_a_job_that_ran_through_a_kill_of_the_server_is_cancelled_within_a_second(
    own_server: EmbeddedServer, until: Until
) -> None:
    app = App(own_server.url)

    @app.task
    async def endless() -> None:
        await asyncio.Event().wait()

    async with app:
        worker = Worker(app)
        serving = asyncio.create_task(worker.run())
        job = await endless.submit()
        await until(lambda: is_in(job, "running"))
        own_server.kill()
        await asyncio.to_thread(own_server.restart)
        wire = (await job._connection.broker()).wire
        await until(lambda: wire.connected and wire.reconnects, 20)
        start_time = time.monotonic()
        assert (await job.cancel()).worker == worker.name
        assert time.monotonic() - start_time < 5  # without a notification: at the next heartbeat, in 10 s
        history = await (await job._connection.broker()).records.history(job.id)
        assert [event.state for event in history if event.state in FINAL_STATES] == ["cancelled"]
        assert history[-1].revision.token > 0  # the worker wrote it, after its own start
        worker.stop()
        await serving


# -- bulk cancels --------------------------------------------------------------------------------------------


async def is_in(job: JobHandle[Any], state: str) -> bool:
    return (await job.status()).state == state


async def test_many_jobs_are_cancelled_by_filter(app: App, client: Client) -> None:
    tagged = [await client.task("a").options(tags=["x"]).submit() for _ in range(3)]
    mail = [await client.task(task).options(queue="mail").submit() for task in ("a", "b")]
    later = await client.task("a").options(tags=["x"], delay=60).submit()

    assert await client.jobs.cancel_many(queue="mail", task="b") == CancelCount(cancelled=1)
    assert await client.jobs.cancel_many(tag="x", state="scheduled") == CancelCount(cancelled=1)
    assert await client.jobs.cancel_many(tag="y") == CancelCount()
    states = [(await job.status()).state for job in (*tagged, *mail, later)]
    assert states == ["queued"] * 4 + ["cancelled"] * 2
    assert [job.id for job in await client.jobs.list_open(task="a")] == [job.id for job in (*tagged, mail[0])]
    assert await client.jobs.cancel_many(task="a") == CancelCount(cancelled=4)
    assert await client.jobs.cancel_many(task="a") == CancelCount()
    for queue in ("default", "mail"):
        assert await client.queues.count_waiting(queue) == 0


async def test_a_bulk_cancel_includes_running_jobs_unless_a_state_is_given(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def endless() -> None:
        await asyncio.Event().wait()

    async with working(concurrency=5):
        jobs = [await endless.submit() for _ in range(8)]

        async def all_run() -> bool:
            return len(await client.jobs.list_open(state="running", task="endless")) == 5

        await until(all_run)
        assert await client.jobs.cancel_many(state="running", task="endless") == CancelCount(cancelled=5)
        await until(lambda: is_in(jobs[-1], "running"))
        assert await client.jobs.cancel_many(task="endless") == CancelCount(cancelled=3)
    assert {(await job.status()).state for job in jobs} == {"cancelled"}


async def test_a_bulk_cancel_counts_jobs_that_workers_start_meanwhile_by_their_outcome(
    app: App, client: Client, working: Working
) -> None:
    ran: list[str] = []

    @app.task(tags=["bulk"])
    async def quick(ctx: Context) -> None:
        ran.append(ctx.id)

    jobs = await quick.submit_many([()] * 500)
    assert len(await client.jobs.list_open(tag="bulk")) == 500
    async with working(concurrency=50):
        counted, again = await asyncio.gather(
            client.jobs.cancel_many(tag="bulk"), client.jobs.cancel_many(tag="bulk")
        )
        ended = await asyncio.gather(*(job.wait(30) for job in jobs))
    states = [record.state for record in ended]
    assert set(states) == {"succeeded", "cancelled"}
    unstarted = {record.id for record in ended if record.state == "cancelled" and record.attempt == 0}
    assert unstarted
    assert unstarted.isdisjoint(ran)
    assert counted.cancelled + counted.ended <= 500
    assert max(counted.cancelled, again.cancelled) == states.count("cancelled")
    assert (await client.queues.stats("default"))[0].waiting["normal"] == 0


async def test_a_bulk_cancel_without_a_filter_or_with_a_bad_one_is_refused(client: Client) -> None:
    with pytest.raises(BadOption, match="at least one of queue, task, state, tag"):
        await client.jobs.cancel_many()
    with pytest.raises(BadOption, match=r"state must .*got 'succeeded'"):
        await client.jobs.cancel_many(state="succeeded")
