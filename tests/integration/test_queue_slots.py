"""The concurrency of a queue limits the whole queue: all its priorities, workers and batches."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from jsq import App, BatchItem, Client, Context
from jsq.model.job import PRIORITIES
from jsq.model.queue_slots import SlotTable
from jsq.server import EmbeddedServer
from jsq.settings import WorkerSettings
from jsq.worker import Worker
from jsq.worker.timings import WorkerTimings
from tests.helpers.conditions import Until
from tests.helpers.forkserver import ForkServer
from tests.helpers.workers import Effect, Workers, Working, running_worker, worker_processes

WAIT = 25.0


class Running:
    """Counts the jobs that run at the same time. Tasks report their start and end."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.by_worker: Counter[str] = Counter()

    @contextlib.contextmanager
    def one(self, worker: str = "", count: int = 1) -> Iterator[None]:
        self.now += count
        self.most = max(self.most, self.now)
        self.by_worker[worker] += count
        try:
            yield
        finally:
            self.now -= count


@pytest.fixture
def running() -> Running:
    return Running()


@pytest.fixture
async def workers(
    server: EmbeddedServer, namespace: str, tmp_path: Path, forks: ForkServer
) -> AsyncIterator[Workers]:
    async with worker_processes(server.url, namespace, tmp_path, forks) as workers:
        yield workers


async def slots_of(client: Client, queue: str) -> SlotTable:
    return (await (await client.broker()).queue_slots.read(queue)).table


async def slots_held(client: Client, queue: str) -> list[int]:
    """The number of slots that each worker holds, in rising order."""
    return sorted(one.slots for one in (await slots_of(client, queue)).holders.values())


def most_at_once(effects: list[Effect]) -> int:
    """The largest number of runs at one moment. A run without an end lasts to the last moment."""
    now = most = 0
    for effect in sorted(effects, key=lambda one: (one.at, one.word == "begin")):
        now += 1 if effect.word == "begin" else -1
        most = max(most, now)
    return most


# -- the limit -----------------------------------------------------------------------------------------------


async def test_one_job_at_a_time_runs_of_all_priorities_and_workers(
    app: App, working: Working, running: Running
) -> None:
    app.queue("narrow", concurrency=1)

    @app.task(queue="narrow")
    async def work() -> None:
        with running.one():
            await asyncio.sleep(0.01)

    async with working(), working():
        jobs = [await work.options(priority=PRIORITIES[n % 3]).submit() for n in range(60)]
        await asyncio.gather(*(job.result(WAIT) for job in jobs))
    assert running.most == 1


async def test_queue_slots_apply_to_batches_keys_threads_and_limited_rates(
    app: App, working: Working, running: Running
) -> None:
    app.queue("narrow", concurrency=3, per_key=1)

    @app.task(queue="narrow", rate="500/s")
    async def work() -> None:
        with running.one():
            await asyncio.sleep(0.01)

    @app.task(queue="narrow")
    def work_in_a_thread() -> None:
        with running.one():
            time.sleep(0.01)

    @app.batch_task(queue="narrow", size=10, wait=0.05)
    async def batched(items: list[BatchItem[int]]) -> None:
        with running.one(count=len(items)):
            await asyncio.sleep(0.01)

    async with working(), working(prefetch=5):
        jobs = []
        for n in range(15):
            jobs.append(await work.submit())
            jobs.append(await work_in_a_thread.options(priority="high").submit())
            jobs.append(await work.options(key=f"k{n % 4}").submit())
            jobs.append(await batched.submit(n))
        await asyncio.gather(*(job.result(WAIT) for job in jobs))
    assert running.most == 3


@pytest.mark.parametrize(("tasks", "least"), [(("nap", "nap", "thread_nap"), 5), (("process_nap",), 2)])
async def test_five_jobs_at_a_time_run_in_four_processes(
    workers: Workers, tasks: tuple[str, ...], least: int
) -> None:
    """While a child process starts, its job has a slot and does not run: so fewer may run at a time."""
    workers.env["LIMIT"] = "5"
    await asyncio.gather(*(workers.start(known=None) for _ in range(4)))
    jobs = [
        await workers.client.task(tasks[n % len(tasks)])
        .options(queue="limited", priority=PRIORITIES[n % 3])
        .submit(0.1)
        for n in range(20 * len(tasks))
    ]
    await asyncio.gather(*(job.result(WAIT) for job in jobs))

    assert least <= most_at_once(workers.effects("begin") + workers.effects("end")) <= 5


async def test_a_function_that_continues_after_its_timeout_keeps_its_slot(
    app: App, working: Working, running: Running, until: Until
) -> None:
    app.queue("narrow", concurrency=1)

    @app.task(queue="narrow", timeout=0.05, retries=0)
    def stubborn() -> None:
        with running.one():
            time.sleep(0.5)

    @app.task(queue="narrow")
    async def work() -> None:
        with running.one():
            pass

    async with working(timings=WorkerTimings(unwind=5.0)):
        await stubborn.submit()
        await until(lambda: running.now == 1)
        await (await work.submit()).result(WAIT)
    assert running.most == 1


# -- workers start and stop ----------------------------------------------------------------------------------


async def test_the_slots_of_a_killed_worker_are_free_after_its_lease(
    workers: Workers, client: Client, until: Until
) -> None:
    workers.env["LIMIT"] = "2"
    first = await workers.start(lease=2)
    nap = client.task("nap_at_first").options(queue="limited")
    jobs = [await nap.submit(60) for _ in range(2)] + [await nap.submit(0.2) for _ in range(4)]
    await until(lambda: len(workers.effects("begin")) == 2)
    await workers.start(lease=2)
    first.kill()
    killed = time.time()
    await asyncio.gather(*(job.result(WAIT) for job in jobs[2:]))

    after = [one for one in workers.effects("begin") if one.pid != first.pid]
    assert 1.0 < min(one.at for one in after) - killed < 2 + 1
    assert most_at_once(after + [one for one in workers.effects("end") if one.pid != first.pid]) == 2


async def test_a_worker_that_stops_releases_its_slots_at_once(
    app: App, client: Client, working: Working, until: Until
) -> None:
    app.queue("narrow", concurrency=2)
    async with working(queues=["narrow"]) as worker:
        await until(lambda: worker.dispatcher.pullers.gates["narrow"].slots)
        assert await slots_held(client, "narrow") == [1]
    assert not (await slots_of(client, "narrow")).holders


async def test_a_task_that_blocks_the_loop_for_longer_than_the_lease_keeps_its_slot(
    workers: Workers, client: Client, until: Until
) -> None:
    workers.env["LIMIT"] = "1"
    first = await workers.start(lease=1.5)
    block = await client.task("block").options(queue="limited").submit(4)
    await until(lambda: workers.effects("begin"))
    await workers.start(lease=1.5)
    other = await client.task("nap").options(queue="limited").submit(0)
    await block.result(WAIT)
    await other.result(WAIT)

    blocked, napped = workers.effects("begin")
    assert blocked.pid == first.pid
    assert napped.at - blocked.at >= 4


async def test_jobs_whose_slots_were_lost_are_interrupted_and_run_again(
    app: App, client: Client, working: Working, until: Until
) -> None:
    attempts: list[int] = []
    app.queue("narrow", concurrency=2, lease=1)

    @app.task(queue="narrow", retries=0)
    async def work(ctx: Context) -> int:
        attempts.append(ctx.attempt)
        await asyncio.sleep(60 if len(attempts) == 1 else 0)
        return ctx.attempt

    async with working() as worker:
        job = await work.submit()
        await until(lambda: attempts)
        broker = await client.broker()
        await broker.queue_slots.change("narrow", lambda table, _: table.without(worker.name), seconds=5)
        assert await job.result(WAIT) == 1
    assert attempts == [1, 1]


# -- distribution of slots -----------------------------------------------------------------------------------


async def test_idle_slots_move_to_a_worker_with_waiting_jobs(
    app: App, client: Client, working: Working, running: Running, until: Until
) -> None:
    """The first worker holds all slots of the queue, and is then busy with another queue."""
    app.queue("narrow", concurrency=2)
    go_on = asyncio.Event()

    @app.task(queue="narrow")
    async def work(*, waits: bool) -> None:
        with running.one():
            await (go_on.wait() if waits else asyncio.sleep(0.1))

    @app.task(queue="wide")
    async def occupy() -> None:
        await go_on.wait()

    async with working(concurrency=2, queues=["narrow", "wide"]):
        await asyncio.gather(*[(await work.submit(waits=False)).result(WAIT) for _ in range(4)])
        assert await slots_held(client, "narrow") == [2]
        busy = [await occupy.submit() for _ in range(2)]
        async with working(queues=["narrow"]):
            start_time = time.monotonic()
            jobs = [await work.submit(waits=True) for _ in range(2)]
            await until(lambda: running.now == 2)
            assert time.monotonic() - start_time < 5.0
            go_on.set()
            await asyncio.gather(*(job.result(WAIT) for job in jobs))
        await asyncio.gather(*(job.result(WAIT) for job in busy))
    assert running.most == 2


async def test_a_worker_that_starts_later_gets_its_share_of_slots(
    app: App, client: Client, working: Working, running: Running, until: Until
) -> None:
    app.queue("narrow", concurrency=4)

    @app.task(queue="narrow")
    async def work() -> None:
        with running.one():
            await asyncio.sleep(0.02)

    jobs = [await work.submit() for _ in range(400)]
    async with working(queues=["narrow"]):
        await until(lambda: running.now == 4)
        assert await slots_held(client, "narrow") == [4]
        async with working(queues=["narrow"]):

            async def is_shared() -> bool:
                return await slots_held(client, "narrow") == [2, 2]

            await until(is_shared)
            await asyncio.gather(*(job.result(WAIT) for job in jobs))
    assert running.most == 4


async def test_a_worker_that_was_full_takes_a_slot_again_when_it_has_room(
    app: App, working: Working, until: Until
) -> None:
    app.queue("narrow", concurrency=1)
    full, release = asyncio.Event(), asyncio.Event()

    @app.task
    async def fill() -> None:
        full.set()
        await release.wait()

    @app.task(queue="narrow")
    async def work() -> None:
        pass

    async with running_worker(Worker(app, settings=WorkerSettings(concurrency=1))):
        filling = await fill.submit()
        await until(full.is_set)
        async with working(queues=["narrow"]):
            await (await work.submit()).result(WAIT)  # the full worker has released the slot for this
        waiting = await work.submit()
        release.set()
        await filling.result(WAIT)
        await waiting.result(WAIT)


async def test_two_busy_workers_alternate_in_one_slot(
    app: App, server: EmbeddedServer, running: Running, until: Until
) -> None:
    app.queue("narrow", concurrency=1)

    @app.task(queue="narrow")
    async def work(ctx: Context) -> None:
        with running.one(ctx.worker):
            await asyncio.sleep(0.02)

    one, other = Worker(app), Worker(app, settings=WorkerSettings(concurrency=3))
    await work.submit_many([()] * 2_000)
    async with running_worker(one), running_worker(other):
        await until(lambda: len(running.by_worker) == 2)
        first = dict(running.by_worker)
        await until(lambda: all(running.by_worker[name] > first[name] + 20 for name in first))
    assert running.most == 1


# -- changes -------------------------------------------------------------------------------------------------


async def test_the_limit_is_raised_lowered_and_removed_while_workers_run(
    app: App, client: Client, working: Working, running: Running, until: Until
) -> None:
    app.queue("narrow", concurrency=2)

    @app.task(queue="narrow")
    async def work() -> None:
        with running.one():
            await asyncio.sleep(0.02)

    async def never_more_than(limit: int) -> None:
        await until(lambda: running.now <= limit)
        running.most = 0
        before = sum(running.by_worker.values())
        await until(lambda: sum(running.by_worker.values()) > before + 20 and running.most == limit)

    async def slots_are_gone() -> bool:
        return not (await slots_of(client, "narrow")).holders

    await work.submit_many([()] * 3_000)
    async with working(), working():
        await never_more_than(2)
        await client.queues.update("narrow", concurrency=6)
        await never_more_than(6)
        await client.queues.update("narrow", concurrency=1)
        await never_more_than(1)
        await client.queues.update("narrow", concurrency=None)
        await until(lambda: running.now > 6)
        await until(slots_are_gone)
        await client.queues.update("narrow", concurrency=3)
        await never_more_than(3)


async def test_a_queue_without_a_limit_has_no_gate_and_no_record(
    app: App, client: Client, working: Working
) -> None:
    @app.task
    async def work() -> None: ...

    async with working() as worker:
        await (await work.submit()).result(WAIT)
        assert not worker.dispatcher.pullers.gates
        assert not worker.dispatcher.leases.holds
        broker = await client.broker()
        assert (await broker.queue_slots.read("default")).sequence == 0


async def test_a_burst_worker_ends_when_a_limited_queue_is_empty(app: App, running: Running) -> None:
    app.queue("narrow", concurrency=1)

    @app.task(queue="narrow")
    async def work() -> None:
        with running.one():
            await asyncio.sleep(0.01)

    jobs = [await work.options(priority=PRIORITIES[n % 3]).submit() for n in range(9)]
    await asyncio.gather(*(Worker(app, settings=WorkerSettings(burst=True)).run() for _ in range(2)))
    assert [(await job.status()).state for job in jobs] == ["succeeded"] * 9
    assert running.most == 1
