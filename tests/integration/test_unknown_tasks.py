"""A job of a task that one worker does not know reaches a worker of its queue that knows it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest

import jsq.worker.stages.unknown_task
from jsq import App, Client, JobFailed
from jsq.server import EmbeddedServer
from jsq.settings import WorkerSettings
from jsq.worker import Worker
from tests.helpers.conditions import Until
from tests.helpers.workers import Working, running_worker

SOON = 5.0
"""Seconds within which a job reaches a worker that knows its task."""


def double(number: int) -> int:
    return 2 * number


@pytest.fixture
async def mail(server: EmbeddedServer, namespace: str) -> AsyncIterator[App]:
    """Another App in the namespace, with the task `send`; its jobs are on the queue `default` too."""
    async with App(server.url, namespace=namespace, name="mail") as mail:

        @mail.task(aliases=["send_old"])
        async def send(number: int) -> int:
            return number + 1

        yield mail


def mail_worker(mail: App, concurrency: int = 10) -> AbstractAsyncContextManager[None]:
    return running_worker(Worker(mail, settings=WorkerSettings(concurrency=concurrency)))


async def test_jobs_reach_the_one_worker_that_knows_their_task_without_an_attempt(
    app: App, client: Client, mail: App, working: Working
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(working(queues=["default"]))
        await stack.enter_async_context(mail_worker(mail))

        jobs = [await client.task(("send", "send_old")[n % 2]).submit(n) for n in range(20)]
        results = await asyncio.wait_for(asyncio.gather(*(job.result() for job in jobs)), SOON)

        assert results == [n + 1 for n in range(20)]
        records = [await job.status() for job in jobs]
        assert {(one.state, one.attempt, one.failures) for one in records} == {("succeeded", 1, 0)}
        assert {one.state for job in jobs for one in await job.attempts()} == {"succeeded"}


async def test_jobs_behind_one_of_another_app_do_not_wait_for_its_busy_worker(
    app: App, client: Client, mail: App, working: Working, until: Until
) -> None:
    release = asyncio.Event()

    @mail.task
    async def hold() -> None:
        await release.wait()

    @app.task
    async def own() -> str:
        return "own"

    async with mail_worker(mail, concurrency=1):
        held = await hold.submit()

        async def is_running() -> bool:
            return (await held.status()).state == "running"

        await until(is_running)
        async with working(concurrency=1):
            waiting = [await client.task("send").submit(n) for n in range(5)]
            assert await (await own.submit()).result(SOON) == "own"
            assert {(await one.status()).state for one in waiting} == {"queued"}
            release.set()
            assert [await one.result(2 * SOON) for one in waiting] == [1, 2, 3, 4, 5]


async def test_a_worker_that_stops_takes_no_delivery_that_another_gives_to_it(
    app: App, client: Client, mail: App, working: Working, until: Until
) -> None:
    broker = await mail.client.broker()
    leaving = LeavingWorker()
    end = await broker.task_knowers.subscribe("default", leaving)
    async with working(queues=["default"]):
        job = await client.task("send").submit(1)
        await until(lambda: leaving.offered > 0)
        await end()
        async with mail_worker(mail):
            assert await job.result(SOON) == 2  # it does not wait for the lease


class LeavingWorker:
    """A worker that answers that it knows the task, and then takes nothing."""

    name = "leaving"
    offered = 0

    def takes(self, task: str) -> bool:
        return task == "send"

    def has_room(self, queue: str) -> bool:
        return True

    def receive(self, queue: str, reply: str) -> bool:
        self.offered += 1
        return False

    def worker_started(self, queue: str) -> None: ...


async def test_jobs_of_a_queue_with_a_limit_reach_the_worker_that_knows_them(
    app: App, client: Client, mail: App, working: Working
) -> None:
    for one in (app, mail):
        one.queue("default", concurrency=2)

    @app.task
    async def own(number: int) -> int:
        return number

    async with working(), working(), mail_worker(mail):
        jobs = [await (client.task("send"), own)[n % 2].submit(n) for n in range(20)]
        results = await asyncio.gather(*(job.result(4 * SOON) for job in jobs))

    assert results == [n + (n + 1) % 2 for n in range(20)]


@pytest.fixture
def long_snooze(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of a task that no worker knows is snoozed for a minute."""
    monkeypatch.setattr(jsq.worker.stages.unknown_task, "MIN_AND_MAX_DELAY", (60.0, 60.0))


@pytest.mark.usefixtures("long_snooze")
async def test_a_worker_that_starts_gets_the_jobs_that_wait_for_its_tasks(
    client: Client, mail: App, working: Working, until: Until
) -> None:
    async with working(queues=["default"]):
        jobs = [await client.task("send").submit(n) for n in range(3)]

        async def are_snoozed() -> bool:
            return {(await job.status()).state for job in jobs} == {"snoozed"}

        await until(are_snoozed)
        async with mail_worker(mail):
            assert [await job.result(SOON) for job in jobs] == [1, 2, 3]


@pytest.mark.usefixtures("long_snooze")
async def test_a_worker_that_stops_returns_the_jobs_that_it_has_snoozed(
    client: Client, mail: App, working: Working, until: Until
) -> None:
    async with working(queues=["default"]):
        job = await client.task("send").submit(1)

        async def is_snoozed() -> bool:
            return (await job.status()).state == "snoozed"

        await until(is_snoozed)
    async with mail_worker(mail):
        assert await job.result(SOON) == 2


async def test_a_worker_runs_an_allowed_function_by_reference_and_refuses_another(
    server: EmbeddedServer, namespace: str
) -> None:
    allowing = App(server.url, namespace=namespace, allow_functions=[f"{__name__}:double"])
    async with allowing.load(), running_worker(Worker(allowing, settings=WorkerSettings(unknown_task_for=0))):
        assert await (await allowing.client.submit(f"{__name__}:double", 4)).result(SOON) == 8
        with pytest.raises(JobFailed, match=r"UnknownTask: the function .* is not allowed") as caught:
            await (await allowing.client.submit(f"{__name__}:mail_worker", 4)).result(SOON)
    assert caught.value.reason == "unknown_task"
