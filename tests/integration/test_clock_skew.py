"""A machine whose clock is an hour wrong: what is due is due by the server's."""

import asyncio

import pytest

from jsq import App, Client, Retry
from jsq.model.event import Event
from jsq.model.unique import JobLife
from tests.helpers.clocks import put_clock_ahead
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

WAIT = 20.0
HOUR = 3600.0


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
async def test_a_job_is_tried_again_after_the_delay_that_was_asked_for(
    app: App, working: Working, until: Until, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    put_clock_ahead(monkeypatch, ahead)
    ran: list[int] = []

    @app.task(retries=2)
    async def again() -> int:
        ran.append(1)
        if len(ran) == 1:
            raise Retry(delay=1.5)
        return len(ran)

    async with working():
        job = await again.submit()
        assert await job.result(WAIT) == 2

    retrying, running = [event async for event in job.events()][-3:-1]
    assert (retrying.state, running.state) == ("retrying", "running")
    assert running.at is not None
    assert retrying.at is not None
    assert (running.at - retrying.at).total_seconds() >= 1.2


async def test_a_queue_and_a_task_go_on_when_they_are_resumed(
    app: App, client: Client, working: Working, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task(queue="mail")
    async def send(number: int) -> int:
        return number

    @app.task(queue="mail")
    async def other(number: int) -> int:
        return number

    async with working():
        await client.queues.pause("mail")
        await client.queues.pause("mail", task="send")
        jobs = [await send.submit(1), await other.submit(2)]
        put_clock_ahead(monkeypatch, HOUR)
        await client.queues.resume("mail")
        assert await jobs[1].result(WAIT) == 2

        async def is_put_aside() -> bool:
            [stats] = await client.queues.stats("mail")
            return stats.scheduled == 1

        await until(is_put_aside)
        await client.queues.resume("mail", task="send")
        assert await jobs[0].result(WAIT) == 1


async def test_a_job_that_waits_for_the_end_of_another_is_called_at_once(
    app: App, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_clock_ahead(monkeypatch, HOUR)
    began, go_on = asyncio.Event(), asyncio.Event()

    @app.task
    async def work(number: int) -> int:
        began.set()
        await go_on.wait()
        return number

    async with working():
        await work.options(unique="k", on_duplicate="keep_last").submit(1)
        await began.wait()
        second = await work.options(unique="k", on_duplicate="keep_last").submit(2)
        go_on.set()
        assert await second.result(WAIT) == 2


async def test_a_job_that_has_just_started_holds_its_key(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor has it ended where the view does not know of it yet."""

    @app.task
    async def work() -> None: ...

    broker = await app.client.broker()
    job = await work.options(unique="k").submit()
    event = Event("running", "work", 1, message=1)
    await broker.event_log.write("default", job.id, event, expect=0)
    await broker.jetstream.purge(
        broker.subjects.streams.bucket("jobs"), broker.subjects.key("jobs", f"default.{job.id}")
    )
    put_clock_ahead(monkeypatch, HOUR)
    assert (await broker.unique.positions.find("default", job.id)).life is JobLife.STARTED


async def test_a_job_that_is_promoted_begins_at_once(
    app: App, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task
    async def send(number: int) -> int:
        return number

    job = await send.options(delay=2 * HOUR).submit(1)
    put_clock_ahead(monkeypatch, HOUR)
    await job.promote()
    async with working():
        assert await job.result(WAIT) == 1


async def test_a_sweep_lets_be_what_is_young(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = await client.broker()
    await broker.streams.ensure_shared()
    key = broker.subjects.key("ids", "id.mine")
    await broker.wire.publish(key, b'{"queue": "default", "stored": false}')
    put_clock_ahead(monkeypatch, HOUR)
    assert await client.admin.sweep() == []
