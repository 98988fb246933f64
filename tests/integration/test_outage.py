"""NATS is unreachable for longer than the lease: no job of a live worker counts as crashed for that."""

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from jsq import App, JobHandle
from jsq.server import EmbeddedServer
from jsq.settings import WorkerSettings
from jsq.worker import Worker
from jsq.worker.timings import WorkerTimings
from tests.helpers.conditions import Until
from tests.helpers.jobs import final_states
from tests.helpers.workers import running_worker

LEASE = 1.5
Outage = Callable[[EmbeddedServer], contextlib.AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def killed(server: EmbeddedServer) -> AsyncIterator[None]:
    await asyncio.to_thread(server.kill)
    yield
    await asyncio.to_thread(server.restart)


@contextlib.asynccontextmanager
async def halted(server: EmbeddedServer) -> AsyncIterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    yield
    os.kill(server.pid, signal.SIGCONT)


outages = pytest.mark.parametrize("outage", [killed, halted])


class Site:
    """An app whose tasks record each start, and wait for an event of the test."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.starts: Counter[str] = Counter()
        self.runs: dict[str, str] = {}
        self.finish: dict[str, asyncio.Event] = {}
        self.ended: list[str] = []

        @app.task(keep_result=600)
        async def wait_for(name: str) -> str:
            self.starts[name] += 1
            try:
                await self.finish.setdefault(name, asyncio.Event()).wait()
            finally:
                self.ended.append(name)
            return name

        self.task = wait_for

    async def submit(self, *names: str) -> dict[str, JobHandle[Any]]:
        return {name: await self.task.submit(name) for name in names}

    def worker(self) -> contextlib.AbstractAsyncContextManager[None]:
        timings = WorkerTimings(unwind=0.2)
        return running_worker(Worker(self.app, settings=WorkerSettings(concurrency=20), timings=timings))


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server with its streams on the disk, which restarts as fast as that of a user."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
async def site(own_server: EmbeddedServer) -> AsyncIterator[Site]:
    async with App(own_server.url) as app:
        app.queue("default", lease=LEASE, max_crashes=1)
        yield Site(app)


async def counts(job: JobHandle[Any]) -> tuple[str, int, int, int]:
    record = await job.status()
    return record.state, record.failures, record.crashes, record.interruptions


@outages
async def test_a_job_that_ends_during_an_outage_is_recorded_and_not_run_again(
    own_server: EmbeddedServer, site: Site, until: Until, outage: Outage
) -> None:
    async with site.worker():
        jobs = await site.submit("a", "b")
        await until(lambda: site.starts.total() == 2)
        async with outage(own_server):
            site.finish["a"].set()
            site.finish["b"].set()
            await until(lambda: len(site.ended) == 2)
            await asyncio.sleep(2 * LEASE)  # the outage is the subject of the test
        assert [await job.result(20) for job in jobs.values()] == ["a", "b"]

        assert site.starts == {"a": 1, "b": 1}
        for job in jobs.values():
            assert await counts(job) == ("succeeded", 0, 0, 0)
            assert await final_states(job) == ["succeeded"]
        await until(lambda: drained(site))


@outages
async def test_a_job_that_runs_longer_than_its_lease_in_an_outage_starts_again(
    own_server: EmbeddedServer,
    site: Site,
    until: Until,
    caplog: pytest.LogCaptureFixture,
    outage: Outage,
) -> None:
    caplog.set_level(logging.WARNING, "jsq.job")
    async with site.worker():
        jobs = await site.submit("a", "b")
        await until(lambda: site.starts.total() == 2)
        async with outage(own_server):
            await until(lambda: len(site.ended) == 2)
        await until(lambda: site.starts == {"a": 2, "b": 2})
        site.finish["a"].set()
        site.finish["b"].set()
        assert [await job.result(20) for job in jobs.values()] == ["a", "b"]

        for job in jobs.values():
            assert await counts(job) == ("succeeded", 0, 0, 1)
        await until(lambda: drained(site))
    assert "another worker has" not in caplog.text


@outages
async def test_a_second_worker_that_reconnects_first_counts_no_crash(
    own_server: EmbeddedServer, site: Site, until: Until, outage: Outage
) -> None:
    async with site.worker(), App(own_server.url) as other:
        other.queue("default", lease=LEASE, max_crashes=1)
        elsewhere = Site(other)
        names = [f"j{number}" for number in range(20)]
        async with elsewhere.worker():
            jobs = await site.submit(*names)
            await until(lambda: (site.starts + elsewhere.starts).total() == len(names))
            async with outage(own_server):
                for name in names[:10]:
                    for one in (site, elsewhere):
                        one.finish.setdefault(name, asyncio.Event()).set()
                await until(lambda: len(site.ended + elsewhere.ended) == len(names))
            for name in names[10:]:
                for one in (site, elsewhere):
                    one.finish.setdefault(name, asyncio.Event()).set()
            assert [await job.result(20) for job in jobs.values()] == names

            found = {name: await counts(job) for name, job in jobs.items()}
            assert {one[:3] for one in found.values()} == {("succeeded", 0, 0)}
            starts = site.starts + elsewhere.starts
            assert {name: starts[name] for name in names[:10]} == dict.fromkeys(names[:10], 1)
            await until(lambda: drained(site))


@outages
async def test_a_thread_that_runs_during_an_outage_keeps_its_job(
    own_server: EmbeddedServer, site: Site, until: Until, caplog: pytest.LogCaptureFixture, outage: Outage
) -> None:
    caplog.set_level(logging.INFO, "jsq.job")
    finish, starts = threading.Event(), list[int]()

    def hold(number: int) -> int:
        starts.append(number)
        assert finish.wait(30)
        return number

    task = site.app.task(hold)
    async with site.worker(), App(own_server.url) as other:
        job = await task.submit(1)
        await until(lambda: starts)
        other.queue("default", lease=LEASE, max_crashes=1)
        other.task(hold)
        async with Site(other).worker():
            async with outage(own_server):
                await asyncio.sleep(2 * LEASE)  # the outage is the subject of the test
            await until(lambda: "lease regained" in caplog.text)
            await asyncio.sleep(2 * LEASE)  # the lease is renewed, and no other worker reclaims the job
            finish.set()

            assert await job.result(10) == 1
            assert starts == [1]
            assert await counts(job) == ("succeeded", 0, 0, 0)
            await until(lambda: drained(site))


async def test_a_repeated_delivery_does_not_take_a_job_from_the_worker_that_runs_it(
    own_server: EmbeddedServer, site: Site, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jsq.job")
    worker = Worker(site.app, settings=WorkerSettings(concurrency=1, prefetch=0))
    async with running_worker(worker), App(own_server.url) as other:
        job = (await site.submit("a"))["a"]
        await until(lambda: site.starts.total() == 1)
        other.queue("default", lease=LEASE, max_crashes=1)
        elsewhere = Site(other)
        async with elsewhere.worker():
            [attempt] = worker.dispatcher.attempts.values()
            (await site.app.client.broker()).wire.send(attempt.delivery.reply, b"-NAK")
            await until(lambda: "delivery left" in caplog.text)
            site.finish["a"].set()

            assert await job.result(10) == "a"
            assert (site.starts + elsewhere.starts).total() == 1
            assert await counts(job) == ("succeeded", 0, 0, 0)
            await until(lambda: drained(site))


async def drained(site: Site) -> bool:
    [stats] = await site.app.client.queues.stats("default")
    return stats.running == 0 and sum(stats.waiting.values()) == 0
