"""Statistics of queues: depth, age of the oldest job, arrivals and departures per second, and stored data."""

import asyncio

import pytest

from jsq import App, Client
from jsq.broker import QueueStats
from jsq.model.throughput import Throughput
from jsq.worker import Observer
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

WAIT = 60.0


class Measured(Observer):
    """Stores the last measurements of each queue."""

    def __init__(self) -> None:
        self.stats: dict[str, QueueStats] = {}
        self.throughput: dict[str, Throughput] = {}
        self.missing: list[str] = []

    def queue_measured(self, stats: QueueStats, throughput: Throughput | None) -> None:
        self.stats[stats.queue] = stats
        if throughput is not None:
            self.throughput[stats.queue] = throughput

    def queue_missing(self, queue: str) -> None:
        self.missing.append(queue)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers send heartbeats and samples ten times a second."""
    monkeypatch.setattr("jsq.worker.duties.heartbeat.HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr("jsq.worker.duties.queue_sampling.HEARTBEAT_SECONDS", 0.1)


async def test_the_age_of_a_queue_is_that_of_its_oldest_waiting_job(
    app: App, client: Client, working: Working, until: Until
) -> None:
    started = asyncio.Event()

    @app.task
    async def hold() -> None:
        started.set()
        await asyncio.sleep(60)

    assert await client.queues.stats() == []
    await hold.submit()
    async with working(concurrency=1, grace=0):
        await asyncio.wait_for(started.wait(), WAIT)
        [stats] = await client.queues.stats("default")
        assert (stats.running, stats.oldest_job_age) == (1, None)  # a running job does not wait

        await hold.options(priority="low").submit()

        async def has_aged() -> bool:
            [stats] = await client.queues.stats("default")
            return stats.oldest_job_age is not None and 0.2 < stats.oldest_job_age < 20

        await until(has_aged)


async def test_a_job_that_waits_in_its_key_group_counts_for_the_age(client: Client) -> None:
    for _ in range(2):
        await client.task("any").options(key="k", per_key=1).submit()

    [stats] = await client.queues.stats("default")

    assert (sum(stats.waiting.values()), stats.waiting_for_key) == (0, 2)
    assert stats.oldest_job_age is not None


async def test_dead_letters_revisions_and_records_are_counted(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task(retries=0)
    async def fail(really: bool) -> None:
        if really:
            raise ValueError

    async with working():
        jobs = [await fail.submit(really) for really in (True, True, False)]
        await asyncio.gather(*(job.wait(WAIT) for job in jobs))

        async def are_counted() -> bool:
            [stats] = await client.queues.stats("default", records=True)
            return (stats.dead, stats.revisions, stats.records) == (2, 6, 3)

        await until(are_counted)


async def test_a_worker_measures_how_many_jobs_arrive_and_leave(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def nothing() -> None: ...

    observer = Measured()
    async with working(observer=observer):
        await until(lambda: "default" in observer.throughput)
        assert observer.throughput["default"].arrivals == 0
        for job in [await nothing.submit() for _ in range(50)]:
            await job.result(WAIT)

        def has_passed() -> bool:
            one = observer.throughput["default"]
            return round(one.arrivals * one.seconds) == 50 == round(one.departures * one.seconds)

        await until(has_passed)

        async def is_shown() -> bool:
            [stats] = await client.queues.stats("default")
            return bool(stats.arrivals_per_second and stats.departures_per_second)

        await until(is_shown)
        await client.queues.remove("default", force=True)
        await until(lambda: "default" in observer.missing)


async def test_a_worker_without_metrics_only_samples(
    app: App, client: Client, working: Working, until: Until
) -> None:
    assert not Observer.observes_queues
    assert Measured.observes_queues
    async with working():

        async def is_measured() -> bool:
            [stats] = await client.queues.stats("default")
            return stats.arrivals_per_second == 0

        await until(is_measured)
    [stats] = await client.queues.stats("default")
    assert stats.departures_per_second is None  # the worker has ended, and no worker measures
