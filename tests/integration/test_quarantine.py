"""Quarantine: a job that crashes workers continues apart from the others, once, with its counts."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jsq import App, BadName, BadOption, Client, Context, JobCancelled, JobFailed, JobHandle, Retry
from jsq.model.repair import Inconsistency
from jsq.model.revision import Revision
from jsq.server import EmbeddedServer
from tests.helpers.conditions import Until
from tests.helpers.jobs import moving_due_jobs
from tests.helpers.workers import Working, worker_processes


@pytest.fixture
def risky(app: App) -> App:
    """An app whose queue `risky` has a quarantine, `apart`."""
    app.queue("risky", max_crashes=2, quarantine="apart")
    app.queue("apart", max_crashes=2)

    @app.task(queue="risky", retries=2, backoff=[0.05])
    async def work(ctx: Context, how: str = "") -> list[Any]:
        if how == "again" and ctx.attempt == 3:
            raise Retry
        if how == "hang":
            await asyncio.Event().wait()
        return [ctx.attempt, ctx.token > 0]

    return app


async def crashed(job: JobHandle[Any], times: int) -> None:
    """Write what workers leave that die one after another while they run a job."""
    log = (await job._connection.broker()).records
    for _ in range(times):
        last = await log.last(job.id, job.queue, consistent=True)
        before = last.revision if last is not None else Revision("queued", "work")
        queue = before.quarantine or job.queue
        message = await (await job._connection.broker()).reads.last(
            (await job._connection.broker()).subjects.streams.ready(queue),
            (await job._connection.broker()).subjects.ready(queue, "*", job.id),
        )
        assert message is not None
        gone = Revision(
            "running",
            "work",
            worker="gone",
            message=int(message.headers["Nats-Sequence"]),
            crashes=before.crashes + int(before.state == "running"),
            quarantine=before.quarantine,
            forgiven_crashes=before.forgiven_crashes,
        )
        await log.write(job.queue, job.id, gone, expect=last.sequence if last is not None else 0)


async def empty(client: Client) -> bool:
    stats = [one for queue in ("risky", "apart") for one in await client.queues.stats(queue)]
    return not any(sum(one.waiting.values()) + one.running + one.scheduled for one in stats)


def test_a_quarantine_is_served_only_by_workers_configured_for_it(risky: App) -> None:
    assert risky.queues == ["risky"]


@pytest.mark.parametrize(("name", "error"), [("risky", BadOption), ("a.b", BadName), ("dead", BadName)])
def test_a_quarantine_is_another_queue(name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        App().queue("risky", quarantine=name)
    with pytest.raises(error):
        App().task(queue="risky", quarantine=name)


async def test_a_job_that_crashes_workers_continues_in_quarantine(
    risky: App, client: Client, working: Working, until: Until
) -> None:
    await client.admin.provision(risky.declared)
    job = await risky.tasks["work"].submit()
    await crashed(job, 2)
    async with working(), moving_due_jobs(client, "apart"):
        await until(lambda: all_moved(client, 1))
        record = await job.status()
        assert (record.state, record.queue, record.quarantine) == ("retrying", "risky", "apart")
        assert (record.reason, record.crashes, record.failures) == ("quarantined", 2, 0)
        assert "2 workers died" in record.error
        assert await client.jobs.list(state="queued") == []
        assert [one.state for one in await client.jobs.list()] == ["retrying"]
        async with working(queues=["apart"]):
            assert await job.result(60) == [3, True]
        await until(lambda: empty(client))
    states = [event.state for event in await (await job._connection.broker()).records.history(job.id)]
    assert states == ["running", "running", "retrying", "running", "succeeded"]
    assert await client.dead_letters.list() == []


async def test_a_task_may_have_its_own_quarantine(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task(queue="risky", quarantine="apart")
    async def work(ctx: Context) -> int:
        return ctx.attempt

    app.queue("risky", max_crashes=1)
    app.queue("apart")
    assert app.queues == ["risky"]
    await client.admin.provision(app.declared)
    job = await work.submit()
    direct = await work.options(queue="apart").submit()
    await crashed(job, 1)
    async with working(), working(queues=["apart"]):
        assert await job.result(60) == 2
        assert await direct.result(60) == 1
        await until(lambda: empty(client))
    assert [(await one.status()).quarantine for one in (job, direct)] == ["apart", ""]


async def test_a_retry_stays_in_quarantine(
    risky: App, client: Client, working: Working, until: Until
) -> None:
    await client.admin.provision(risky.declared)
    job = await risky.tasks["work"].submit("again")
    await crashed(job, 2)
    async with working(), moving_due_jobs(client, "apart"):
        await until(lambda: all_moved(client, 1))
        async with working(queues=["apart"]):
            assert await job.result(60) == [4, True]
        await until(lambda: empty(client))
    runs = [
        event
        for event in await (await job._connection.broker()).records.history(job.id)
        if event.revision.worker != "gone"
    ]
    assert {event.revision.quarantine for event in runs if event.state == "running"} == {"apart"}
    assert (await job.status()).failures == 1


async def test_a_job_that_crashes_workers_of_the_quarantine_becomes_a_dead_letter(
    risky: App, client: Client, working: Working, until: Until
) -> None:
    await client.admin.provision(risky.declared)
    job = await risky.tasks["work"].submit()
    await crashed(job, 2)
    async with working(), moving_due_jobs(client, "apart"):
        await until(lambda: all_moved(client, 1))
    await crashed(job, 2)
    async with working(queues=["apart"]):
        with pytest.raises(JobFailed, match="4 workers died") as caught:
            await job.result(60)
        assert caught.value.reason == "crashed"
        await until(lambda: empty(client))
        [dead_letter] = await client.dead_letters.list(queue="risky")
        assert dead_letter.id == job.id
    # A replay starts on the original queue, with its crashes reset.
    await client.dead_letters.retry(job.id)
    async with working():
        assert await job.result(60) == [1, True]
        await until(lambda: empty(client))
    assert (await job.status()).quarantine == ""


async def test_a_job_that_waits_in_quarantine_can_be_cancelled(
    risky: App, client: Client, working: Working, until: Until
) -> None:
    await client.admin.provision(risky.declared)
    one, other = [await risky.tasks["work"].submit() for _ in range(2)]
    await asyncio.gather(crashed(one, 2), crashed(other, 2))
    async with working(), moving_due_jobs(client, "apart"):
        await until(lambda: all_moved(client, 2))
    await one.cancel()
    await until(lambda: all_moved(client, 1))
    assert await client.queues.purge("apart") == 1
    for job in (one, other):
        with pytest.raises(JobCancelled):
            await job.result(1)
    await until(lambda: empty(client))


async def test_a_job_that_runs_in_quarantine_can_be_cancelled(
    risky: App, client: Client, working: Working, until: Until
) -> None:
    await client.admin.provision(risky.declared)
    job = await risky.tasks["work"].submit("hang")
    await crashed(job, 2)
    async with working(), working(queues=["apart"]):

        async def runs_there() -> bool:
            record = await job.status()
            return (record.state, record.worker != "gone") == ("running", True)

        await until(runs_there)
        await job.cancel()
        with pytest.raises(JobCancelled):
            await job.result(1)
        await until(lambda: empty(client))


async def test_a_sweep_of_a_quarantine_repairs_only_the_inconsistencies_in_it(
    risky: App, client: Client, working: Working, until: Until
) -> None:
    await client.admin.provision(risky.declared)
    one, other = [await risky.tasks["work"].submit() for _ in range(2)]
    await asyncio.gather(crashed(one, 2), crashed(other, 2))
    async with working(), moving_due_jobs(client, "apart"):
        await until(lambda: all_moved(client, 2))
    await until(lambda: all_received(client))
    assert await client.admin.sweep(age=0) == []
    # The client that cancelled it died before it removed the message.
    log = (await one._connection.broker()).records
    last = await log.last(one.id, one.queue, consistent=True)
    assert last is not None
    await log.write(one.queue, one.id, replace(last.revision, state="cancelled"), expect=last.sequence)
    [swept] = await client.admin.sweep(age=0)
    assert (swept.kind, swept.job, swept.repaired) == (Inconsistency.LEFTOVER_MESSAGE, one.id, True)
    assert await client.admin.sweep(age=0) == []
    async with working(queues=["apart"]):
        assert await other.result(60) == [3, True]


async def all_received(client: Client) -> bool:
    """Whether the quarantine has received all jobs that were due there."""
    [apart] = await client.queues.stats("apart")
    return apart.scheduled == 0


async def all_moved(client: Client, count: int) -> bool:
    """Whether this number of jobs is available in quarantine, and none on the original queue."""
    [home], [apart] = [await client.queues.stats(queue) for queue in ("risky", "apart")]
    return apart.waiting["normal"] == count and home.running == sum(home.waiting.values()) == 0


@pytest.mark.proof
async def test_a_job_that_kills_processes_moves_to_quarantine(
    server: EmbeddedServer, namespace: str, tmp_path: Path, until: Until
) -> None:
    """Whole worker processes, killed by the job itself: two on the queue, two in quarantine.

    Each runs one job at a time: jobs that run beside the one that kills their process crash and move too.
    """
    async with worker_processes(server.url, namespace, tmp_path) as workers:
        workers.env |= {"QUARANTINE": "apart", "CRASHES": "1"}
        await workers.start("--concurrency", "1", "--processes", "2", lease=1, known=2)
        poison = await workers.client.task("die").submit()
        others = [await workers.client.task("add").submit(n, n) for n in range(20)]

        async def apart() -> bool:
            return (await poison.status()).quarantine == "apart"

        await until(apart, 30)
        assert [await job.result(30) for job in others] == [2 * n for n in range(20)]
        assert len(workers.effects()) == 1
        await workers.start("--queues", "apart", "--processes", "2", lease=1, known=2)
        with pytest.raises(JobFailed) as caught:
            await poison.result(40)
        assert caught.value.reason == "crashed"
        record = await poison.status()
        assert (record.crashes, record.failures, record.quarantine) == (2, 0, "apart")
        assert len(workers.effects()) == 2
