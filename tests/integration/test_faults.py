"""Workers and servers that die, stall or are stopped: each job ends exactly once.

These tests run real worker processes and kill them. Tasks write their effects to a file. So the assertions do
not rely only on what jsq reports.
"""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jsq import JobFailed, JobHandle
from jsq.model.revision import FINAL_STATES, Revision
from jsq.server import EmbeddedServer
from jsq.transport.replies import WrongSequence
from tests.helpers.conditions import Until
from tests.helpers.forkserver import ForkServer
from tests.helpers.jobs import final_states
from tests.helpers.workers import Workers, exit_code, worker_processes

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def workers(
    server: EmbeddedServer, namespace: str, tmp_path: Path, forks: ForkServer
) -> AsyncIterator[Workers]:
    async with worker_processes(server.url, namespace, tmp_path, forks) as workers:
        yield workers


async def test_jobs_of_a_killed_worker_start_again_when_their_lease_ends(
    workers: Workers, until: Until
) -> None:
    lease = 5.0
    doomed = await workers.start("--concurrency", "20", lease=lease)
    jobs = [await workers.client.task("nap_at_first").submit(300) for _ in range(20)]
    await until(lambda: len(workers.effects(pid=doomed.pid)) == 20)
    second_worker = await workers.start("--concurrency", "20", lease=lease)

    doomed.kill()
    killed = time.time()
    results = await asyncio.gather(*(job.result(60) for job in jobs))

    assert all(str(second_worker.pid) in result for result in results)
    starts = workers.effects(pid=second_worker.pid)
    assert Counter(start.job for start in starts) == Counter(job.id for job in jobs)
    # Measured by the runs of `tests.chaos`: within the lease and a second. A sweep would take 30 seconds.
    assert max(start.at for start in starts) - killed < 4 * lease
    for job in jobs:
        record = await job.status()
        assert (record.crashes, record.failures, record.attempt) == (1, 0, 2)
        assert await final_states(job) == ["succeeded"]


async def test_a_worker_suspended_past_its_lease_cannot_record_its_outcome(
    workers: Workers, until: Until
) -> None:
    stalled = await workers.start("--concurrency", "1", lease=1.5)
    job = await workers.client.task("nap").submit(0.5)
    await until(lambda: workers.effects(pid=stalled.pid))
    stalled.send_signal(signal.SIGSTOP)
    second_worker = await workers.start("--concurrency", "1", lease=1.5)
    result = await job.result(60)
    first, second = [
        e.sequence
        for e in await (await job._connection.broker()).records.history(job.id)
        if e.state == "running"
    ]
    await until(workers.nothing_runs)

    stalled.send_signal(signal.SIGCONT)
    other = await workers.client.task("nap").submit(0)
    assert await other.result(60)
    stalled.send_signal(signal.SIGTERM)
    assert await exit_code(stalled) == 0

    # The outcome is that of the second worker; the first one stored and settled nothing.
    assert str(second_worker.pid) in result
    assert await job.result(1) == result
    assert await final_states(job) == ["succeeded"]
    assert second > first
    # If the first worker had sent its outcome, its token would have been refused.
    with pytest.raises(WrongSequence):
        await (await job._connection.broker()).records.write(
            job.queue, job.id, Revision("failed", "nap", token=first), expect=first, while_=lambda: False
        )
    assert await final_states(job) == ["succeeded"]


async def test_a_job_of_a_killed_worker_continues_from_its_checkpoint(workers: Workers, until: Until) -> None:
    doomed = await workers.start(lease=1)
    job = await workers.client.task("climb").submit(1)
    await until(lambda: workers.effects("kept-1"))
    doomed.kill()
    second_worker = await workers.start(lease=1)

    assert await job.result(60) == [2, 3]
    steps = [[one.pid for one in workers.effects(f"step-{step}")] for step in range(3)]
    assert steps == [[doomed.pid], [doomed.pid], [second_worker.pid]]


async def test_a_worker_suspended_past_its_lease_stores_no_checkpoint(workers: Workers, until: Until) -> None:
    stalled = await workers.start("--concurrency", "1", lease=1.5)
    job = await workers.client.task("climb").submit(1)
    await until(lambda: workers.effects("kept-0"))
    stalled.send_signal(signal.SIGSTOP)
    await workers.start("--concurrency", "1", lease=1.5)
    await until(lambda: workers.effects("kept-1"))

    stalled.send_signal(signal.SIGCONT)

    assert await job.result(60) == [1, 2, 3]
    stalled.send_signal(signal.SIGTERM)
    assert await exit_code(stalled) == 0
    assert [one.pid for one in workers.effects("kept-0")] == [stalled.pid]
    assert workers.effects("kept-1", stalled.pid) == workers.effects("kept-2", stalled.pid) == []


async def test_a_step_during_which_its_worker_was_killed_is_unknown_and_not_repeated(
    workers: Workers, until: Until
) -> None:
    doomed = await workers.start(lease=1)
    job = await workers.client.task("buy").submit(0, 30)
    await until(lambda: workers.effects("charge"))
    doomed.kill()
    await workers.start(lease=1)

    with pytest.raises(JobFailed, match=r"step charge .* was started by attempt 1") as caught:
        await job.result(60)
    assert caught.value.reason == "step_unknown"
    assert len(workers.effects("charge")) == 1
    assert len(workers.effects("begin")) == 2


async def test_a_worker_suspended_past_its_lease_runs_no_step(workers: Workers, until: Until) -> None:
    stalled = await workers.start("--concurrency", "1", lease=1.5)
    job = await workers.client.task("buy").submit(1, 0)
    await until(lambda: workers.effects("begin", stalled.pid))
    stalled.send_signal(signal.SIGSTOP)
    second_worker = await workers.start("--concurrency", "1", lease=1.5)
    assert str(second_worker.pid) in str(await job.result(60))

    stalled.send_signal(signal.SIGCONT)
    stalled.send_signal(signal.SIGTERM)
    assert await exit_code(stalled) == 0
    assert [one.pid for one in workers.effects("charge")] == [second_worker.pid]


async def test_a_killed_server_loses_and_repeats_no_job(
    own_server: EmbeddedServer, namespace: str, tmp_path: Path, until: Until, forks: ForkServer
) -> None:
    async with worker_processes(own_server.url, namespace, tmp_path, forks) as workers:
        await workers.start("--concurrency", "20", lease=10)
        running = [await workers.client.task("nap").submit(3) for _ in range(20)]
        await until(lambda: len(workers.effects()) == 20)
        gate = asyncio.Semaphore(100)

        async def submit(n: int) -> JobHandle[object]:
            async with gate:
                return await workers.client.task("add").submit(n, 1)

        queued = await asyncio.gather(*(submit(n) for n in range(300)))
        own_server.kill()
        await asyncio.to_thread(own_server.restart)

        assert await asyncio.gather(*(job.result(60) for job in queued)) == [n + 1 for n in range(300)]
        await asyncio.gather(*(job.result(60) for job in running))
        events = [event async for event in workers.client.jobs.events(follow=False)]
        outcomes = Counter(event.id for event in events if event.state in FINAL_STATES)
        assert outcomes == Counter(job.id for job in [*running, *queued])
        assert Counter(effect.job for effect in workers.effects("end")) == Counter(job.id for job in running)

        async def drained() -> bool:
            [stats] = await workers.client.queues.stats("default")
            return stats.running == 0 and sum(stats.waiting.values()) == 0

        await until(drained)


async def test_a_task_that_kills_its_process_is_dead_lettered_and_others_run(
    workers: Workers, until: Until
) -> None:
    await workers.start("--processes", "2", "--concurrency", "4", lease=1, known=2)
    poison = await workers.client.task("die").submit()
    others = [await workers.client.task("add").submit(n, n) for n in range(50)]
    with pytest.raises(JobFailed) as caught:
        await poison.result(30)
    assert caught.value.reason == "crashed"
    assert [await job.result(30) for job in others] == [2 * n for n in range(50)]
    assert len(workers.effects()) == 3

    async def is_dead_lettered() -> bool:
        return [dead_letter.id for dead_letter in await workers.client.dead_letters.list()] == [poison.id]

    await until(is_dead_lettered)
    record = await poison.status()
    assert (record.crashes, record.failures) == (3, 0)
    assert await final_states(poison) == ["failed"]


async def test_a_stop_finishes_running_jobs_and_hands_back_fetched_ones(
    workers: Workers, until: Until
) -> None:
    stopped = await workers.start("--concurrency", "10", "--prefetch", "100", "--grace", "20")
    running = [await workers.client.task("nap").submit(2) for _ in range(10)]
    await until(lambda: len(workers.effects()) == 10)
    fetched_jobs = await asyncio.gather(*(workers.client.task("add").submit(n, 0) for n in range(100)))

    async def fetched() -> bool:
        return (await workers.client.queues.stats("default"))[0].running == 110

    await until(fetched)
    stopped.send_signal(signal.SIGTERM)
    stop_time = time.monotonic()
    assert await exit_code(stopped) == 0
    assert time.monotonic() - stop_time < 18  # the grace is 20
    assert [await job.result(1) for job in running]

    await workers.start("--concurrency", "50")
    assert [await job.result(60) for job in fetched_jobs] == list(range(100))
    for job in [*running, *fetched_jobs]:
        record = await job.status()
        assert (record.attempt, record.failures, record.crashes) == (1, 0, 0)
        assert await final_states(job) == ["succeeded"]


async def test_an_idle_worker_stops_at_once(workers: Workers) -> None:
    idle = await workers.start()
    idle.send_signal(signal.SIGTERM)
    stop_time = time.monotonic()
    assert await exit_code(idle) == 0
    assert time.monotonic() - stop_time < 10  # the grace is 25
    assert await workers.client.admin.workers() == []


async def test_a_job_that_outlasts_the_grace_is_handed_back_and_spends_no_attempt(
    workers: Workers, until: Until
) -> None:
    stopped = await workers.start("--grace", "0.2")
    jobs = [await workers.client.task(task).submit(3) for task in ("nap", "thread_nap")]
    await until(lambda: len(workers.effects()) == 2)
    stopped.send_signal(signal.SIGTERM)
    assert await exit_code(stopped) == 0
    assert [(await job.status()).state for job in jobs] == ["interrupted"] * 2
    await workers.start()
    for job in jobs:
        await job.result(60)
        record = await job.status()
        counts = (record.attempt, record.failures, record.crashes, record.interruptions)
        assert counts == (1, 0, 0, 1)
        assert [event.state for event in await (await job._connection.broker()).records.history(job.id)] == [
            "running",
            "interrupted",
            "running",
            "succeeded",
        ]


async def test_failures_crashes_and_interruptions_are_counted_separately(
    workers: Workers, until: Until
) -> None:
    stopped = await workers.start("--grace", "0.2", lease=2)
    job = await workers.client.task("unlucky").submit()
    await until(lambda: len(workers.effects()) == 1)
    stopped.send_signal(signal.SIGTERM)
    assert await exit_code(stopped) == 0
    killed = await workers.start(lease=2)
    await until(lambda: len(workers.effects()) == 2, 20)
    os.killpg(killed.pid, signal.SIGKILL)
    await workers.start(known=None, lease=2)
    assert await job.result(30) == 3
    record = await job.status()
    assert (record.failures, record.crashes, record.interruptions, record.attempt) == (1, 1, 1, 3)


async def test_a_second_signal_hands_jobs_back_at_once(workers: Workers, until: Until) -> None:
    stopped = await workers.start("--grace", "60")
    job = await workers.client.task("nap").submit(60)
    await until(lambda: workers.effects())
    stopped.send_signal(signal.SIGTERM)
    await until(lambda: still_stopping(workers))
    stopped.send_signal(signal.SIGTERM)
    assert await exit_code(stopped, 10) == 0
    assert (await job.status()).state == "interrupted"


async def still_stopping(workers: Workers) -> bool:
    """A stopping worker requests no more jobs: a job submitted now stays queued."""
    job = await workers.client.task("add").submit(1, 1)
    await asyncio.sleep(0.2)  # long enough for a worker that fetches jobs to fetch it
    return (await job.status()).state == "queued"


async def test_a_task_longer_than_its_lease_runs_once(workers: Workers) -> None:
    await workers.start("--concurrency", "3", lease=3)
    await workers.start("--concurrency", "3", lease=3)
    jobs = [await workers.client.task(task).submit(8) for task in ("nap", "thread_nap", "process_nap")]
    for job in jobs:
        await job.result(60)
        record = await job.status()
        assert (record.attempt, record.crashes, record.failures) == (1, 0, 0)
        assert await final_states(job) == ["succeeded"]
    assert sorted(effect.job for effect in workers.effects()) == sorted(job.id for job in jobs)


async def test_a_blocked_event_loop_keeps_its_lease(workers: Workers) -> None:
    await workers.start("--concurrency", "2", lease=3)
    await workers.start("--concurrency", "2", lease=3)
    job = await workers.client.task("block").submit(8)
    await job.result(60)
    assert len(workers.effects()) == 1
    assert (await job.status()).crashes == 0


async def test_children_stop_when_their_parent_is_killed(workers: Workers, until: Until) -> None:
    parent = await workers.start("--processes", "2", known=2)
    children = [worker["pid"] for worker in await workers.client.admin.workers()]
    parent.kill()
    parent.wait()

    async def gone() -> bool:
        return await workers.client.admin.workers() == []

    await until(gone)
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))


async def test_a_child_that_is_killed_is_replaced(workers: Workers, until: Until) -> None:
    await workers.start("--processes", "2", known=2)
    first = {worker["pid"] for worker in await workers.client.admin.workers()}
    os.kill(min(first), signal.SIGKILL)

    async def replaced() -> bool:
        return len({worker["pid"] for worker in await workers.client.admin.workers()} - first) == 1

    await until(replaced)


async def test_a_burst_ends_when_the_queue_is_empty(workers: Workers) -> None:
    jobs = [await workers.client.task("add").submit(n, n) for n in range(20)]
    process = await workers.start("--burst", known=None)
    assert await exit_code(process) == 0
    assert [await job.result(0) for job in jobs] == [2 * n for n in range(20)]


async def test_fencing_tokens_rise_with_every_attempt(workers: Workers) -> None:
    client = workers.client
    job = await client.task("any").submit()
    log = (await client.broker()).records
    tokens = [await log.write(job.queue, job.id, Revision("running", "any"), expect=0)]
    for _ in range(3):
        tokens.append(await log.write(job.queue, job.id, Revision("running", "any"), expect=tokens[-1]))
    assert tokens == sorted(set(tokens))
    for stale in tokens[:-1]:
        with pytest.raises(WrongSequence) as refused:
            await log.write(job.queue, job.id, Revision("succeeded", "any"), expect=stale)
        assert refused.value.last == tokens[-1]
