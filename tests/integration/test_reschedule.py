"""Reschedule: a scheduled job gets another due time if it has not fired. Only one of the two happens."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jsq import (
    App,
    BadOption,
    Client,
    Context,
    JobExpired,
    JobHandle,
    JobNotFound,
    JobRecord,
    Retry,
    Snooze,
    WrongState,
)
from jsq.server import EmbeddedServer
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

WAIT = 60.0
HOUR = 3600.0


async def states(job: JobHandle[Any]) -> list[str]:
    return [event.state for event in await (await job._connection.broker()).records.history(job.id)]


async def nothing_is_stored(client: Client) -> bool:
    return await (await client.broker()).job_reader.waiting_ids("default") == []


async def in_state(job: JobHandle[Any], state: str) -> bool:
    return (await job.status()).state == state


def ahead(found: JobRecord) -> float:
    assert found.due is not None
    return (found.due - datetime.now(UTC)).total_seconds()


async def test_a_delayed_job_that_is_promoted_runs_now(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    job = await add.options(delay=HOUR, priority="high", tags=["x"]).submit(1, 2)
    async with working():
        record = await job.promote()
        assert (record.state, record.tags) == ("scheduled", ("x",))
        assert ahead(record) <= 0
        assert await job.result(WAIT) == 3

    assert (await states(job))[-2:] == ["running", "succeeded"]
    await until(lambda: nothing_is_stored(client))


async def test_a_moved_job_runs_at_its_new_time_and_the_record_shows_it(
    app: App, client: Client, working: Working, until: Until
) -> None:
    seen: list[float] = []

    @app.task
    async def note() -> None:
        seen.append(time.time())

    job = await note.options(delay=HOUR).submit()
    assert HOUR < ahead(await job.reschedule(delay=2 * HOUR)) + 5 < HOUR * 3
    assert 2 * HOUR - 5 < ahead(await job.status()) <= 2 * HOUR

    async def listed() -> bool:
        return [one.due for one in await client.jobs.list(state="scheduled")] == [(await job.status()).due]

    await until(listed)
    soon = datetime.now(UTC) + timedelta(seconds=1.2)
    moment = soon.replace(microsecond=soon.microsecond // 1000 * 1000)
    async with working():
        assert (await job.reschedule(at=moment)).due == moment
        await job.result(WAIT)
    assert -0.01 < seen[0] - moment.timestamp() < 10
    assert len(seen) == 1


async def test_a_reschedule_into_the_past_starts_the_job_at_once(app: App, working: Working) -> None:
    @app.task
    async def note() -> None: ...

    jobs = [await note.options(delay=HOUR).submit() for _ in range(2)]
    async with working():
        await jobs[0].reschedule(delay=0)
        await jobs[1].reschedule(at=datetime(2020, 1, 1, tzinfo=UTC))
        for job in jobs:
            await job.result(WAIT)


@pytest.mark.parametrize("state", ["retrying", "snoozed"])
async def test_a_job_that_waits_for_its_retry_is_moved_and_promoted(
    app: App, client: Client, working: Working, until: Until, state: str
) -> None:
    ran: list[int] = []

    @app.task(retries=3)
    async def again(ctx: Context) -> int:
        ran.append(ctx.attempt)
        if len(ran) == 1:
            raise Retry("later", delay=HOUR) if state == "retrying" else Snooze(HOUR, "later")
        return ctx.attempt

    async with working():
        job = await again.submit()
        await until(lambda: in_state(job, state))
        moved = await job.reschedule(delay=2 * HOUR)
        assert moved.state == (await job.status()).state == state
        assert ahead(await job.status()) > HOUR
        await job.promote()
        assert await job.result(WAIT) == (2 if state == "retrying" else 1)

    assert len(ran) == 2
    assert await states(job) == ["running", state, state, state, "running", "succeeded"]
    await until(lambda: nothing_is_stored(client))


async def test_a_moved_job_can_be_cancelled(app: App, client: Client, working: Working, until: Until) -> None:
    @app.task(retries=3)
    async def again() -> None:
        raise Retry("later", delay=HOUR)

    delayed = await again.options(delay=HOUR).submit()
    async with working():
        retrying = await again.submit()
        await until(lambda: in_state(retrying, "retrying"))
        for job in (delayed, retrying):
            await job.reschedule(delay=2 * HOUR)
            assert (await job.cancel()).state == "cancelled"
            with pytest.raises(WrongState, match="is cancelled: it cannot be promoted"):
                await job.promote()
    assert await (await client.broker()).job_reader.waiting_ids("default") == []


async def test_a_job_that_is_not_scheduled_is_refused_by_its_state(
    app: App, client: Client, working: Working, until: Until
) -> None:
    go = asyncio.Event()

    @app.task
    async def wait_for_test() -> None:
        await go.wait()

    job = await wait_for_test.submit()
    fired = await client.task("wait_for_test").options(delay=0.3).submit()
    await until(lambda: fired_is_ready(client, fired.id))
    for one in (job, fired):
        with pytest.raises(WrongState, match="is queued: it cannot be promoted"):
            await one.promote()
        with pytest.raises(WrongState, match="is queued: it cannot be rescheduled"):
            await one.reschedule(delay=5)
    async with working():
        await until(lambda: in_state(job, "running"))
        with pytest.raises(WrongState, match="is running: it cannot be rescheduled"):
            await job.reschedule(delay=5)
        go.set()
        await job.result(WAIT)
    with pytest.raises(WrongState, match="is succeeded: it cannot be promoted"):
        await job.promote()
    with pytest.raises(JobNotFound):
        await client.jobs.handle("never").promote()
    gone = await client.task("wait_for_test").options(delay=0.1, expires=0.2).submit()
    with pytest.raises(JobExpired):
        await gone.result(WAIT)
    with pytest.raises(WrongState, match="is expired: it cannot be promoted"):
        await gone.promote()


async def fired_is_ready(client: Client, id: str) -> bool:
    broker = await client.broker()
    subject = broker.subjects.scheduled("default", id)
    return await broker.reads.last(broker.subjects.streams.scheduled("default"), subject) is None


async def test_a_reschedule_keeps_the_expiry_and_deadline_of_a_job(app: App, working: Working) -> None:
    seen: list[datetime] = []

    @app.task
    async def note(ctx: Context) -> None:
        assert isinstance(ctx.job.deadline, datetime)
        seen.append(ctx.job.deadline)

    start_time = datetime.now(UTC)
    job = await note.options(delay=100, deadline=200, expires=150).submit()
    with pytest.raises(BadOption, match="must be before the expiry"):
        await job.reschedule(delay=160)
    other = await note.options(delay=100, deadline=200).submit()
    with pytest.raises(BadOption, match="must be before the deadline"):
        await other.reschedule(delay=210)
    async with working():
        await job.promote()
        await job.result(WAIT)
    assert 199 < (seen[0] - start_time).total_seconds() < 220


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "either delay or at"),
    "both": ({"delay": 1, "at": datetime(2030, 1, 1, tzinfo=UTC)}, "must not be combined with delay"),
    "negative": ({"delay": -1}, "must be 0 to 31622400 seconds"),
    "nan": ({"delay": float("nan")}, "must be 0 to 31622400 seconds"),
    "huge": ({"delay": 10**12}, "must be 0 to 31622400 seconds"),
    "naive": ({"at": datetime(2030, 1, 1)}, "must be a datetime with a time zone"),
    "far": ({"at": datetime(9999, 1, 1, tzinfo=UTC)}, "days ahead"),
}


@pytest.mark.parametrize("bad", BAD)
async def test_an_invalid_time_is_refused_and_moves_nothing(client: Client, bad: str) -> None:
    named, message = BAD[bad]
    job = await client.task("any").options(delay=HOUR).submit()
    before = (await job.status()).due
    with pytest.raises(BadOption, match=message):
        await job.reschedule(**named)
    assert (await job.status()).due == before


async def test_only_one_of_a_reschedule_and_the_firing_happens(app: App, working: Working) -> None:
    ran: list[str] = []

    @app.task
    async def note(ctx: Context) -> None:
        ran.append(ctx.id)

    due = datetime.now(UTC) + timedelta(seconds=3)
    jobs = [await note.options(at=due).submit() for _ in range(60)]

    async def move(job: JobHandle[Any], after: float) -> bool:
        # So that some calls arrive just when the schedules fire.
        await asyncio.sleep(max(0.0, due.timestamp() + after - time.time()))
        try:
            await job.reschedule(delay=HOUR)
        except WrongState:
            return False
        return True

    async with working():
        moved = await asyncio.gather(*(move(job, n * 0.02 - 0.6) for n, job in enumerate(jobs)))
        for job, later in zip(jobs, moved, strict=True):
            if later:
                assert ahead(await job.status()) > HOUR - 10
            else:
                await job.wait(WAIT)
    assert sorted(ran) == sorted(job.id for job, later in zip(jobs, moved, strict=True) if not later)
    assert 0 < sum(moved) < 60


async def test_a_job_that_many_clients_promote_runs_once(app: App, working: Working) -> None:
    ran: list[str] = []

    @app.task
    async def note(ctx: Context) -> None:
        ran.append(ctx.id)

    job = await note.options(delay=HOUR).submit()
    async with working():
        tries = [job.promote() if n % 2 else job.cancel() for n in range(10)]
        await asyncio.gather(*tries, return_exceptions=True)
        record = await job.wait(WAIT)
    assert len(ran) == (1 if record.state == "succeeded" else 0)
    assert len([state for state in await states(job) if state == "running"]) == len(ran)


@pytest.mark.parametrize("act", [lambda job: job.promote(), lambda job: job.reschedule(delay=0)])
async def test_a_reschedule_survives_a_killed_server(
    own_server: EmbeddedServer, until: Until, act: Callable[[JobHandle[Any]], Coroutine[Any, Any, JobRecord]]
) -> None:
    async with App(own_server.url) as app:
        job = await app.client.task("any").options(delay=HOUR).submit()
        moving = asyncio.create_task(act(job))
        await asyncio.sleep(0)
        own_server.kill()
        await asyncio.to_thread(own_server.restart)
        assert ahead(await moving) <= 0
        broker = await app.client.broker()
        await until(
            lambda: broker.reads.fetch(broker.subjects.streams.scheduled("default"), "jsq.due.>"), WAIT
        )
        record = await job.status()
        assert (record.state, record.due) == ("queued", None)


async def test_the_blocking_forms_of_reschedule_do_the_same(app: App, client: Client) -> None:
    def call_blocking_forms() -> None:
        job = client.task("any").options(delay=HOUR).blocking.submit()
        assert ahead(job.reschedule(delay=timedelta(hours=2))) > HOUR
        assert ahead(job.promote()) <= 0

    await asyncio.to_thread(call_blocking_forms)
