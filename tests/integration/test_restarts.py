"""The server is killed and comes back: submits remain idempotent, and no result is lost."""

import asyncio
import json
import urllib.request
from pathlib import Path

import pytest

from jsq import App, Client
from jsq.server import EmbeddedServer
from jsq.worker import Worker
from tests.helpers.conditions import Until
from tests.helpers.jobs import final_states
from tests.helpers.workers import running_worker, worker_processes

pytestmark = pytest.mark.proof


async def restarted(server: EmbeddedServer) -> None:
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.restart)


async def subscriptions(server: EmbeddedServer) -> int:
    """The number of subscriptions of all clients, as the server reports it."""

    def ask() -> int:
        with urllib.request.urlopen(f"{server.monitor}/varz", timeout=5) as answer:
            return int(json.load(answer)["subscriptions"])

    return await asyncio.to_thread(ask)


async def test_a_repeated_submit_is_one_job_over_restarts_of_the_server(
    own_server: EmbeddedServer, namespace: str, tmp_path: Path
) -> None:
    async with worker_processes(own_server.url, namespace, tmp_path) as workers:
        ask = workers.client.task("nap").options(id="order-1")

        first = await ask.submit(0)
        await restarted(own_server)
        waiting = await ask.submit(0)
        await workers.start(lease=10)
        result = await first.result(30)
        ended = await ask.submit(0)
        await restarted(own_server)
        async with Client(own_server.url, namespace=namespace) as other:
            elsewhere = await other.task("nap").options(id="order-1").submit(0)
            assert await elsewhere.result(60) == result

        assert [one.duplicate for one in (first, waiting, ended, elsewhere)] == [False, True, True, True]
        assert {one.id for one in (first, waiting, ended, elsewhere)} == {"order-1"}
        assert len(workers.effects()) == 1
        assert await final_states(first) == ["succeeded"]


async def test_submits_during_which_the_server_dies_are_one_job_for_each_id(
    own_server: EmbeddedServer, namespace: str, tmp_path: Path
) -> None:
    async with worker_processes(own_server.url, namespace, tmp_path) as workers:
        ids = [f"order-{n}" for n in range(200)]
        answered: list[str] = []
        one_answered = asyncio.Event()

        async def submit(id: str) -> None:
            answered.append((await workers.client.task("nap").options(id=id).submit(0)).id)
            one_answered.set()

        submitting = asyncio.gather(*(submit(id) for id in ids * 2))
        await one_answered.wait()
        own_server.kill()
        assert len(answered) < 2 * len(ids)
        await asyncio.to_thread(own_server.restart)

        await submitting
        assert sorted(answered) == sorted(ids * 2)
        await workers.start("--concurrency", "50", lease=10)
        jobs = [workers.client.jobs.handle(id) for id in ids]
        await asyncio.gather(*(job.result(60) for job in jobs))
        assert sorted(effect.job for effect in workers.effects()) == sorted(ids)


async def test_a_client_gets_the_result_it_waits_for_though_server_and_worker_are_killed(
    own_server: EmbeddedServer, namespace: str, tmp_path: Path, until: Until
) -> None:
    async with worker_processes(own_server.url, namespace, tmp_path) as workers:
        before = await subscriptions(own_server)
        jobs = [await workers.client.task("nap").submit(2) for _ in range(20)]
        waiting = asyncio.gather(*(job.result(60) for job in jobs))

        async def is_subscribed() -> bool:
            return await subscriptions(own_server) >= before + len(jobs)

        await until(is_subscribed)
        worker = await workers.start("--concurrency", "20", lease=10)
        await until(lambda: len(workers.effects()) == len(jobs))
        await restarted(own_server)
        results = await waiting

        worker.kill()
        await restarted(own_server)
        async with Client(own_server.url, namespace=namespace) as other:
            again = [other.jobs.handle(job.id) for job in jobs]
            assert await asyncio.gather(*(job.result(60) for job in again)) == results
        assert sorted(effect.job for effect in workers.effects("end")) == sorted(job.id for job in jobs)


async def test_the_event_log_follows_the_records_within_a_second_after_restarts(
    own_server: EmbeddedServer, namespace: str, until: Until
) -> None:
    async with App(own_server.url, namespace=namespace, events="30d") as app:

        @app.task
        async def add(a: int, b: int) -> int:
            return a + b

        broker = await app.client.broker()
        names = broker.subjects.streams

        async def messages(stream: str) -> int:
            found = await broker.jetstream.stream_info(stream)
            return found["state"]["messages"] if found is not None else 0

        async def has_followed() -> bool:
            return await messages(names.events) >= await messages(names.records)

        async with running_worker(Worker(app)):
            for number in range(3):
                await restarted(own_server)
                assert await (await add.submit(1, number)).result(30) == 1 + number
                await until(has_followed, 1)
        assert await messages(names.events) >= 6
