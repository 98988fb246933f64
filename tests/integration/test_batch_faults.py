"""Workers that die while they run or collect a batch: each of its jobs ends once, and none is lost."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jsq import JobFailed
from jsq.server import EmbeddedServer
from tests.helpers.conditions import Until
from tests.helpers.forkserver import ForkServer
from tests.helpers.jobs import final_states
from tests.helpers.workers import Workers, worker_processes


@pytest.fixture
async def workers(
    server: EmbeddedServer, namespace: str, tmp_path: Path, forks: ForkServer
) -> AsyncIterator[Workers]:
    async with worker_processes(server.url, namespace, tmp_path, forks) as workers:
        yield workers


async def test_the_jobs_of_a_killed_workers_batch_run_again_and_end_once(
    workers: Workers, until: Until
) -> None:
    doomed = await workers.start("--concurrency", "2", lease=2)
    jobs = await workers.client.task("nap_together").submit_many([[1.5]] * 60)
    await until(lambda: len(workers.effects(pid=doomed.pid)) == 40)
    doomed.kill()
    second_worker = await workers.start("--concurrency", "2", lease=2)
    results = [await job.result(30) for job in jobs]

    assert set(results) == {str(second_worker.pid)}
    ends = Counter(one.job for one in workers.effects("end"))
    assert ends == Counter(job.id for job in jobs)
    crashed = {one.job for one in workers.effects(pid=doomed.pid)}
    for job in jobs:
        record = await job.status()
        assert (record.crashes, record.failures) == (int(job.id in crashed), 0)
        assert await final_states(job) == ["succeeded"]
    assert await (await workers.client.broker()).job_reader.waiting_ids("default") == []


async def test_a_worker_killed_while_it_collects_a_batch_loses_no_job(workers: Workers, until: Until) -> None:
    workers.env["WAIT"] = "60"
    doomed = await workers.start(lease=2)
    jobs = await workers.client.task("nap_together").submit_many([[0.0]] * 8)

    async def taken() -> bool:
        return (await workers.client.queues.stats("default"))[0].running == 8

    await until(taken)
    doomed.kill()
    workers.env["WAIT"] = "0.3"
    await workers.start(lease=2)
    for job in jobs:
        await job.result(60)
        record = await job.status()
        assert (record.crashes, record.attempt) == (0, 1)
    assert workers.effects(pid=doomed.pid) == []


async def test_a_job_that_crashes_its_workers_does_not_fail_the_rest_of_its_batch(workers: Workers) -> None:
    jobs = await workers.client.task("nap_together").submit_many([[0.0], [0.0], [-1.0], [0.0], [0.0]])
    for _ in range(3):
        process = await workers.start("--concurrency", "4", lease=1.5, known=None)
        assert await asyncio.to_thread(process.wait, 30) == 1
    await workers.start("--concurrency", "4", lease=1.5, known=None)

    for place, job in enumerate(jobs):
        if place == 2:
            with pytest.raises(JobFailed, match="crashed"):
                await job.result(30)
        else:
            await job.result(30)
        assert len(await final_states(job)) == 1
    starts = Counter(one.job for one in workers.effects())
    assert starts[jobs[2].id] == 3
    ends = Counter(one.job for one in workers.effects("end"))
    assert all(ends[job.id] == 1 for place, job in enumerate(jobs) if place != 2)
    [dead_letter] = await workers.client.dead_letters.list()
    assert dead_letter.id == jobs[2].id


async def test_a_worker_suspended_past_its_leases_records_nothing_of_its_batch(
    workers: Workers, until: Until
) -> None:
    stalled = await workers.start("--concurrency", "1", lease=1.5)
    jobs = await workers.client.task("nap_together").submit_many([[0.4]] * 20)
    await until(lambda: len(workers.effects(pid=stalled.pid)) == 20)
    stalled.send_signal(signal.SIGSTOP)
    second_worker = await workers.start("--concurrency", "1", lease=1.5)
    assert {await job.result(60) for job in jobs} == {str(second_worker.pid)}
    stalled.send_signal(signal.SIGCONT)
    other = await workers.client.task("nap_together").submit(0.0)
    await other.result(60)
    stalled.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(stalled.wait, 40) == 0
    for job in jobs:
        assert await final_states(job) == ["succeeded"]
