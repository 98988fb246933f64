"""Delayed jobs, retries and keyed jobs start in time though the server was restarted."""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest

from jsq import App, Client, JobHandle
from jsq.broker import Broker, ConsumerAddress, Delivery, Puller, PullHandlers
from jsq.broker.flow.due_jobs import MoveResult
from jsq.broker.flow.wakeup_source import ADMIT_LEASE, WakeupSource
from jsq.broker.topology.configs import DUE_CONSUMER, DUE_LEASE
from jsq.codec.subject_token import ANY
from jsq.server import EmbeddedServer
from jsq.settings import WorkerSettings
from jsq.transport.server_clock import OUTLIVED_SECONDS
from jsq.worker import Worker
from jsq.worker.duties import due_jobs
from tests.helpers.cluster import cluster
from tests.helpers.conditions import Until
from tests.helpers.jobs import final_states
from tests.helpers.workers import running_worker

LATE = 1.0
"""Seconds by which a job may be late that becomes due while the server starts."""

JOBS = 30


class Starts:
    """When each job was due, and when its attempts started."""

    def __init__(self, app: App) -> None:
        self.due: dict[int, float] = {}
        self.start_times: dict[int, list[float]] = defaultdict(list)

        @app.task
        async def note(number: int) -> None:
            self.start_times[number].append(time.time())

        @app.task(retries=1, backoff=[2], jitter=0.0)
        async def fail_once(number: int) -> None:
            self.start_times[number].append(time.time())
            if len(self.start_times[number]) == 1:
                self.due[number] = time.time() + 2
                raise ValueError("once")

        self.note, self.fail_once = note, fail_once

    async def submit(self, first: int) -> None:
        """Submit delayed jobs that are due in the next seconds, half of them with a key; and one retry."""
        for number in range(first, first + JOBS):
            delay = 1 + 2 * (number - first) / JOBS
            key = f"key-{number % 3}" if number % 2 else ""
            self.due[number] = time.time() + delay
            await self.note.options(delay=delay, key=key or None).submit(number)
        await self.fail_once.submit(first + JOBS)

    def late(self) -> float:
        """The delay of the latest attempt."""
        return max(start_times[-1] - self.due[number] for number, start_times in self.start_times.items())

    def all_started(self) -> bool:
        return all(len(self.start_times[number]) == 1 + (number % 100 == JOBS) for number in self.due)


@contextlib.asynccontextmanager
async def two_workers(app: App) -> AsyncIterator[None]:
    async with running_worker(Worker(app)), running_worker(Worker(app)):
        yield


@pytest.mark.proof
async def test_due_jobs_start_within_a_second_after_restarts_of_the_server(
    own_server: EmbeddedServer, namespace: str, until: Until
) -> None:
    async with App(own_server.url, namespace=namespace) as app:
        starts = Starts(app)
        async with two_workers(app):
            await starts.note.options(key="first").submit(-1)
            starts.due[-1] = time.time()
            for first in (0, 100, 200):
                await starts.submit(first)
                await asyncio.to_thread(own_server.kill)
                await asyncio.to_thread(own_server.restart)
                await until(starts.all_started, 20)

        assert starts.late() < LATE


async def test_a_worker_that_starts_after_the_server_moves_due_jobs(
    own_server: EmbeddedServer, namespace: str, until: Until
) -> None:
    async with App(own_server.url, namespace=namespace) as app:
        starts = Starts(app)
        job: JobHandle[Any] = await starts.note.options(delay=0.5).submit(0)
        await asyncio.to_thread(own_server.kill)
        await asyncio.to_thread(own_server.restart)
        started = time.time()
        async with two_workers(app):
            await until(lambda: starts.start_times[0])

        assert starts.start_times[0][0] - started < LATE + 1
        assert await final_states(job) == ["succeeded"]


async def test_a_job_of_a_key_starts_though_the_server_skipped_its_wake_up(app: App, client: Client) -> None:
    """The server skips what is older than the last message of a work queue that sources again."""
    starts = Starts(app)
    async with running_worker(Worker(app)):
        for number in range(3):
            await (await starts.note.options(key="before").submit(number)).wait(30)
    broker = await client.broker()
    names = broker.subjects
    info = await broker.jetstream.stream_info(names.streams.group_state("default"))
    assert info is not None
    await broker.jetstream.update_stream(info["config"] | {"sources": None})
    job: JobHandle[Any] = await starts.note.options(key="skipped").submit(3)
    await broker.wire.publish(names.groups.state("default", "other"), b'{"slots":{},"admitted_up_to":0}')
    await broker.jetstream.update_stream(info["config"])

    async with running_worker(Worker(app, settings=WorkerSettings(sweep=0))):
        assert (await job.wait(15)).state == "succeeded"


async def test_only_one_worker_of_a_queue_resumes_its_wakeups_at_a_time(client: Client, until: Until) -> None:
    broker = await client.broker()
    await client.admin.provision()
    first, second = (WakeupSource(broker.namespace, "default", by) for by in ("first", "second"))

    assert [await first.acquire(), await second.acquire(), await first.acquire()] == [True, False, True]
    await until(second.acquire)  # the first has not renewed its lease
    assert not await first.acquire()


async def test_a_lease_to_resume_that_outlived_its_ttl_is_taken_over(client: Client) -> None:
    broker = await client.broker()
    await client.admin.provision()
    first, second = (WakeupSource(broker.namespace, "default", by) for by in ("first", "second"))
    assert [await first.acquire(), await second.acquire()] == [True, False]

    broker.wire.clock.offset += ADMIT_LEASE + OUTLIVED_SECONDS + 1

    assert await second.acquire()


async def take_due(broker: Broker, until: Until, number: int) -> list[Delivery]:
    """The due jobs of the queue `default`, at their delivery with this number."""
    taken: list[Delivery] = []

    def take(delivery: Delivery) -> None:
        if delivery.number < number:
            broker.wire.send(delivery.reply, b"-NAK")
        else:
            taken.append(delivery)

    address = ConsumerAddress(
        "default", broker.subjects.streams.scheduled("default"), DUE_CONSUMER, DUE_LEASE
    )
    puller = Puller(broker.wire, address, PullHandlers(take, lambda _: 10))
    await puller.open()
    await until(lambda: taken)
    await puller.close()
    return taken


async def test_a_redelivered_due_job_is_not_stored_beside_its_other_message(
    client: Client, until: Until
) -> None:
    await client.admin.provision()
    broker = await client.broker()
    ready = broker.subjects.streams.ready("default")
    await client.task("note").options(id="one", delay=0.3).submit()
    await broker.wire.publish(broker.subjects.ready("default", "low", "one"))

    [delivery] = await take_due(broker, until, 2)

    assert await broker.due_jobs.move(delivery) is MoveResult.WAITS_ALREADY
    await broker.jetstream.purge(ready, broker.subjects.ready("default", "low", "one"))
    assert await broker.due_jobs.move(delivery) is MoveResult.MOVED
    assert await broker.jetstream.count(ready, broker.subjects.ready("default", "normal", "one")) == 1


async def test_a_redelivered_due_job_that_has_run_is_not_stored_again(app: App, until: Until) -> None:
    starts = Starts(app)
    job: JobHandle[Any] = await starts.note.submit(0)
    async with two_workers(app):
        await job.wait()
    broker = await app.client.broker()
    ready, places = broker.subjects.streams.ready("default"), broker.subjects.ready("default", "*", ANY)
    await until(lambda: holds(broker.jetstream.count(ready, places), 0))
    await broker.wire.publish(broker.subjects.due("default", "normal", job.id), b"[[0],{}]")

    [delivery] = await take_due(broker, until, 2)

    assert await broker.due_jobs.move(delivery) is MoveResult.MOVED
    assert await broker.jetstream.count(ready, places) == 0


async def test_a_second_message_of_a_due_job_that_has_run_starts_nothing(app: App, until: Until) -> None:
    starts = Starts(app)
    job: JobHandle[Any] = await starts.note.options(delay=0.3).submit(0)
    async with two_workers(app):
        await job.wait()
        broker = await app.client.broker()
        await broker.wire.publish(broker.subjects.due("default", "normal", job.id), b"[[0],{}]")
        await until(lambda: holds(messages_of(broker), 0))

    assert len(starts.start_times[0]) == 1


async def test_due_jobs_that_wait_already_hold_no_other_due_job_up(
    app: App, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that die between the store and the acknowledgement leave jobs with two messages."""
    monkeypatch.setattr(due_jobs, "MAX_MOVES", 2)
    starts = Starts(app)
    broker = await app.client.broker()
    await app.client.admin.provision()
    await app.client.queues.pause("default")
    for number in range(10):
        await starts.note.options(id=f"twice {number}", delay=0.1).submit(number)
    taken: list[Delivery] = []
    streams = broker.subjects.streams
    address = ConsumerAddress("default", streams.scheduled("default"), DUE_CONSUMER, DUE_LEASE)
    puller = Puller(broker.wire, address, PullHandlers(taken.append, lambda _: 10 - len(taken)))
    await puller.open()
    await until(lambda: len(taken) == 10)
    await puller.close()
    for delivery in taken:
        assert await broker.due_jobs.move(delivery) is MoveResult.MOVED
        broker.wire.send(delivery.reply, b"-NAK")
    await starts.note.options(id="other", delay=3, priority="high").submit(99)

    async with running_worker(Worker(app)):
        place = broker.subjects.ready("default", "high", "other")
        await until(lambda: holds(broker.jetstream.count(streams.ready("default"), place), 1), 8)


async def messages_of(broker: Broker) -> int:
    """The messages in the streams of the queue `default`."""
    streams = broker.subjects.streams
    return sum(
        [
            await broker.jetstream.count(name, ">")
            for name in (streams.ready("default"), streams.scheduled("default"))
        ]
    )


async def holds(count: Awaitable[int], expected: int) -> bool:
    return await count == expected


@pytest.mark.proof
async def test_deleting_a_due_job_on_three_replicas_deletes_no_other(tmp_path: Path, until: Until) -> None:
    """The server once deleted the due jobs before it as well, while the full queue sourced them."""
    async with cluster(tmp_path) as servers, App(servers.url, namespace="due") as app:
        app.queue("default", replicas=3, max_jobs=1)
        starts = Starts(app)
        await app.client.admin.provision(app.declared)
        await starts.note.submit(0)
        jobs = [await starts.note.options(delay=0.3).submit(number) for number in range(1, 7)]
        broker = await app.client.broker()
        streams, due = broker.subjects.streams, broker.subjects.due("default", "*", ANY)
        await until(lambda: holds(broker.jetstream.count(streams.scheduled("default"), due), 6))

        assert await jobs[-1].cancel()
        async with two_workers(app):
            states = [(await job.wait(30)).state for job in jobs]

        assert states == ["succeeded"] * 5 + ["cancelled"]


@pytest.mark.proof
async def test_due_jobs_start_soon_after_a_restart_of_all_servers_of_a_cluster(
    tmp_path: Path, until: Until
) -> None:
    async with cluster(tmp_path) as servers, App(servers.url, namespace="due") as app:
        app.queue("default", replicas=3)
        starts = Starts(app)
        async with two_workers(app):
            await starts.submit(0)
            for node in servers.nodes:
                await asyncio.to_thread(node.kill)
            for node in servers.nodes:
                node.start()
            await servers.wait_healthy()
            well = time.time()
            delayed = range(0, JOBS, 2)
            await until(lambda: all(starts.start_times[number] for number in delayed), 20)

        # Elections take several seconds more; without help the server needs half a minute.
        assert max(starts.start_times[number][0] for number in delayed) - well < 10
