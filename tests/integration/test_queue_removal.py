"""Removal of queues: what is deleted, what remains, and what clients and workers notice."""

import asyncio
import contextlib
import logging

import pytest

from jsq import App, Client, JobCancelled, QueueNotEmpty, QueueNotFound
from jsq.broker import QueueContents
from jsq.errors import BrokerError
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

WAIT = 60.0


async def streams_of(client: Client, queue: str) -> list[str]:
    """The names of the streams of a queue."""
    broker = await client.broker()
    names = broker.subjects.streams
    every = (names.ready(queue), names.scheduled(queue), names.groups(queue), names.group_state(queue))
    return [name for name in every if await broker.jetstream.stream_info(name) is not None]


async def test_an_empty_queue_is_removed_with_its_pauses_and_its_rate(app: App, client: Client) -> None:
    app.queue("mail", rate="10/s", per_key=1)
    await client.admin.provision(app.declared)
    await client.queues.pause("mail", until=3600)
    broker = await client.broker()
    await broker.wire.publish(broker.subjects.limits.queue_rate("mail"), b"{}")

    assert await client.queues.remove("mail") == QueueContents("mail", 0, (), 0, 0)

    assert await streams_of(client, "mail") == []
    assert await client.queues.list() == []
    assert await client.queues.pauses() == {}
    limits = broker.subjects.streams.bucket("limits")
    assert await broker.jetstream.count(limits, f"$KV.{client.namespace}_limits.>") == 0
    with pytest.raises(QueueNotFound):
        await client.queues.remove("mail")


async def test_a_queue_with_jobs_or_schedules_is_removed_only_with_force(app: App, client: Client) -> None:
    task = client.task("any").options(queue="mail")
    waiting = await task.submit(1)
    delayed = await task.options(delay=3600).submit(2)
    first = await task.options(key="k", per_key=1).submit(3)
    keyed = await task.options(key="k", per_key=1).submit(4)
    other = await client.task("any").submit(5)
    await client.schedules.add("nightly", "any", cron="0 3 * * *", queue="mail")

    with pytest.raises(QueueNotEmpty) as caught:
        await client.queues.remove("mail")

    assert (caught.value.queue, caught.value.jobs, caught.value.schedules) == ("mail", 4, ("nightly",))
    assert "queue mail holds 4 jobs and 1 schedule (nightly)" in str(caught.value)
    assert (await waiting.status()).state == "queued"
    removal = await client.queues.remove("mail", dry_run=True)
    assert (removal.jobs, removal.schedules, removal.dead) == (4, ("nightly",), 0)

    removal = await client.queues.remove("mail", force=True)

    assert (removal.jobs, removal.schedules, removal.dead) == (4, ("nightly",), 0)

    assert await streams_of(client, "mail") == []
    assert await client.schedules.list() == []
    for job in (waiting, delayed, first, keyed):
        with pytest.raises(JobCancelled):
            await job.result(WAIT)
    assert (await other.status()).state == "queued"


async def test_dead_letters_and_records_remain_after_their_queue_is_removed(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task(queue="mail", retries=0)
    async def fail(really: bool) -> None:
        if really:
            raise ValueError("no such address")

    async with working():
        good, bad = await fail.submit(False), await fail.submit(True)
        await asyncio.gather(good.wait(WAIT), bad.wait(WAIT))

    async def is_settled() -> bool:
        removal = await client.queues.remove("mail", dry_run=True)
        return (removal.jobs, removal.records) == (0, 2)

    await until(is_settled)
    removal = await client.queues.remove("mail")

    assert (removal.dead, removal.records) == (1, 2)
    assert (await good.status()).state == "succeeded"
    assert (await client.dead_letters.get(bad.id)).error == "ValueError: no such address"
    await client.dead_letters.retry(bad.id)  # creates the queue again
    assert await client.queues.list() == ["mail"]


async def test_a_job_submitted_while_its_queue_is_removed_is_not_lost(app: App, client: Client) -> None:
    settings = app.queue("mail")
    task = client.task("any").options(queue="mail")
    broker = await client.broker()
    for number in range(25):
        await client.admin.provision({"mail": settings})
        removing = asyncio.create_task(client.queues.remove("mail"))
        for _ in range(number):  # later each time, by round trips
            await broker.wire.flush()
        try:
            job = await task.submit(1)
        except BrokerError:  # the error is certain: the job is not stored
            await removing
            return
        with contextlib.suppress(QueueNotEmpty):
            await removing
        assert (await job.status()).state == "queued"
        assert job.id in await broker.job_reader.waiting_ids("mail")
        assert await job.cancel()


async def test_a_worker_reports_a_removed_queue_and_serves_it_when_it_is_back(
    app: App,
    client: Client,
    working: Working,
    until: Until,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jsq.worker.duties.heartbeat.HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr("jsq.worker.duties.schedule_ticks.REPAIR_INTERVAL", 0.2)
    caplog.set_level(logging.INFO)
    started = asyncio.Event()

    @app.task(queue="mail", per_key=1)
    async def send() -> None:
        started.set()
        await asyncio.sleep(60)

    @app.task(queue="mail")
    async def count() -> int:
        return 1

    @app.task(queue="other")
    async def other() -> int:
        return 2

    async with working() as worker:
        running = await send.options(key="k").submit()
        await asyncio.wait_for(started.wait(), WAIT)

        await client.queues.remove("mail", force=True)

        with pytest.raises(JobCancelled):
            await running.result(WAIT)
        await until(lambda: "queue removed" in caplog.messages)
        for _ in range(3):  # it continues with its other queue
            assert await (await other.submit()).result(WAIT) == 2

        async def has_beaten() -> bool:
            return bool((await client.admin.workers())[0]["done"] >= 3)

        await until(has_beaten)
        assert await client.queues.list() == ["other"]
        assert worker.is_ready()

        assert await (await count.submit()).result(WAIT) == 1
        await until(lambda: "queue created again" in caplog.messages)
    warned = {one.message for one in caplog.records if one.levelno > logging.INFO}
    assert warned - {"event loop blocked", "event loop stalled"} == {"queue removed"}


async def test_an_interrupted_removal_of_a_queue_is_completed_when_it_is_repeated(
    app: App, client: Client
) -> None:
    await client.admin.provision({"mail": app.queue("mail")})
    broker = await client.broker()
    name = broker.subjects.streams.ready("mail")
    found = await broker.jetstream.stream_info(name)
    assert found is not None
    await broker.jetstream.update_stream(found["config"] | {"subjects": [f"{client.namespace}.closed.x"]})
    await broker.jetstream.call(f"STREAM.DELETE.{broker.subjects.streams.scheduled('mail')}")

    await client.queues.remove("mail")

    assert await streams_of(client, "mail") == []
