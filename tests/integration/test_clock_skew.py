"""A machine whose clock is an hour wrong: due times follow the clock of the server."""

import asyncio
from contextlib import aclosing
from datetime import timedelta

import pytest

from jsq import App, Client, Retry
from jsq.model.job import JobRecord
from jsq.model.revision import Revision
from jsq.model.unique import JobLife
from tests.helpers.clocks import set_clock_ahead
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

WAIT = 20.0
HOUR = 3600.0


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
async def test_a_job_is_retried_after_the_requested_delay(
    app: App, working: Working, until: Until, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    set_clock_ahead(monkeypatch, ahead)
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


async def test_a_queue_and_a_task_continue_when_they_are_resumed(
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
        set_clock_ahead(monkeypatch, HOUR)
        await client.queues.resume("mail")
        assert await jobs[1].result(WAIT) == 2

        async def is_requeued() -> bool:
            [stats] = await client.queues.stats("mail")
            return stats.scheduled == 1

        await until(is_requeued)
        await client.queues.resume("mail", task="send")
        assert await jobs[0].result(WAIT) == 1


async def test_a_pending_duplicate_is_submitted_at_once_when_its_predecessor_ends(
    app: App, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock_ahead(monkeypatch, HOUR)
    has_started, go_on = asyncio.Event(), asyncio.Event()

    @app.task
    async def work(number: int) -> int:
        has_started.set()
        await go_on.wait()
        return number

    async with working():
        await work.options(unique="k", on_duplicate="keep_last").submit(1)
        await has_started.wait()
        second = await work.options(unique="k", on_duplicate="keep_last").submit(2)
        go_on.set()
        assert await second.result(WAIT) == 2


async def test_a_job_that_has_just_started_holds_its_key(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    @app.task
    async def work() -> None: ...

    broker = await app.client.broker()
    job = await work.options(unique="k").submit()
    event = Revision("running", "work", 1, message=1)
    await broker.records.write("default", job.id, event, expect=0)
    set_clock_ahead(monkeypatch, HOUR)
    assert (await broker.unique.positions.find("default", job.id)).life is JobLife.STARTED


async def test_a_promoted_job_starts_at_once(
    app: App, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task
    async def send(number: int) -> int:
        return number

    job = await send.options(delay=2 * HOUR).submit(1)
    set_clock_ahead(monkeypatch, HOUR)
    await job.promote()
    async with working():
        assert await job.result(WAIT) == 1


async def test_a_sweep_skips_recent_entries(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = await client.broker()
    await broker.streams.ensure_shared()
    key = broker.subjects.key("ids", "id.mine")
    await broker.wire.publish(key, b'{"queue": "default", "stored": false}')
    set_clock_ahead(monkeypatch, HOUR)
    assert await client.admin.sweep() == []


# -- delays --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
async def test_a_delay_counts_by_the_servers_clock(
    client: Client, until: Until, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    task = client.task("note").options(delay=600)
    listed: list[JobRecord] = []

    async def all_listed() -> bool:
        listed[:] = await client.jobs.list(state="scheduled")
        return len(listed) > len(jobs)

    await client.admin.provision()  # the clock of the server is known
    before = (await client.broker()).wire.clock.moment()
    set_clock_ahead(monkeypatch, ahead)

    jobs = [await task.submit(1)]
    jobs += await task.submit_many([(2,), (3,)])
    jobs += await task.submit_many([(4,), (5,)], all_or_nothing=True)
    jobs += await task.options(unique="six").submit_many([(6,)])
    jobs.append(await task.options(id="own", expires=1200).submit(7))
    jobs.append(await client.task("note").options(unique="eight", debounce=600).submit(8))
    async with aclosing(task.map([9])) as mapped:
        mapping = asyncio.ensure_future(anext(mapped))
        await until(all_listed)
        mapping.cancel()
        await asyncio.gather(mapping, return_exceptions=True)

    after = (await client.broker()).wire.clock.moment()
    assert {one.id for one in jobs} < {one.id for one in listed}
    for record in listed:
        assert record.due is not None
        least, most = (moment + timedelta(seconds=600) for moment in (before, after))
        assert least - timedelta(seconds=1) <= record.due <= most + timedelta(seconds=1)


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
async def test_a_moved_job_is_due_by_the_servers_clock(
    client: Client, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    job = await client.task("note").options(delay=600).submit(1)
    clock = (await client.broker()).wire.clock
    set_clock_ahead(monkeypatch, ahead)

    moved = await job.reschedule(delay=30)

    assert moved.due is not None
    assert abs((moved.due - clock.moment()).total_seconds() - 30) < 2


async def test_an_absolute_start_time_does_not_depend_on_the_clients_clock(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.admin.provision()
    at = (await client.broker()).wire.clock.moment() + timedelta(seconds=1800)
    set_clock_ahead(monkeypatch, HOUR)  # for the client, the time has passed

    job = await client.task("note").options(at=at).submit(1)
    other = await client.task("note").options(delay=60).submit(2)
    moved = await other.reschedule(at=at)

    due = (await job.status()).due
    assert due is not None
    assert moved.due is not None
    assert abs((due - at).total_seconds()) < 0.01
    assert abs((moved.due - at).total_seconds()) < 0.01
