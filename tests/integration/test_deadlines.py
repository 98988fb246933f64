"""Deadlines: a job that has not succeeded by then expires in any state, and leaves no dead letter."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jsq import (
    App,
    BadOption,
    Client,
    Context,
    JobExpired,
    JobFailed,
    JobHandle,
    Reject,
    Retry,
    Snooze,
    WrongState,
)
from jsq.cli.errors import JOB_FAILED, code_of
from jsq.model.options import read_options
from jsq.settings import WorkerSettings
from jsq.worker import Worker
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

WAIT = 60.0


async def states(job: JobHandle[Any]) -> list[str]:
    return [event.state for event in await (await job._connection.broker()).records.history(job.id)]


async def nothing_is_stored(client: Client) -> bool:
    return await (await client.broker()).job_reader.waiting_ids("default") == []


async def passed(until: Until, seconds: float) -> None:
    end = time.time() + seconds
    await until(lambda: time.time() > end)


async def test_a_job_delivered_after_its_deadline_never_starts(
    app: App, client: Client, working: Working, until: Until
) -> None:
    ran: list[int] = []

    @app.task
    async def late() -> None:
        ran.append(1)

    jobs = [
        await late.options(deadline=0.05).submit(),
        *await late.options(deadline=0.05).submit_many([(), ()]),
    ]
    soon = datetime.now(UTC) + timedelta(seconds=0.1)
    jobs.append(await client.task("late").options(deadline=soon).submit())
    await passed(until, 0.2)

    async with working():
        for job in jobs:
            with pytest.raises(JobExpired, match="its deadline passed before it could start") as caught:
                await job.result(WAIT)
            assert code_of(caught.value) == JOB_FAILED
        await until(lambda: nothing_is_stored(client))

    assert ran == []
    for job in jobs:
        assert await states(job) == ["expired"]
        assert (await job.status()).attempt == 0
        with pytest.raises(WrongState, match="expired"):
            await job.cancel()
        with pytest.raises(WrongState, match="expired"):
            await job.retry()
    assert await client.dead_letters.list() == []


async def test_a_coroutine_is_cancelled_at_its_deadline_and_may_clean_up(
    app: App, client: Client, working: Working, until: Until
) -> None:
    cleaned: list[str] = []

    @app.task(timeout=30)
    async def long(ctx: Context) -> None:
        await ctx.checkpoint(1)
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(ctx.id)

    async with working():
        job = await long.options(deadline=0.5).submit()
        with pytest.raises(JobExpired, match="its deadline passed while it ran"):
            await job.result(WAIT)
        assert cleaned == [job.id]
        await until(lambda: nothing_is_stored(client))

    assert await states(job) == ["running", "expired"]
    broker = await client.broker()
    assert (
        await broker.reads.fetch(
            broker.subjects.streams.records, broker.subjects.checkpoint("*", job.id, ">")
        )
        == []
    )
    assert await client.dead_letters.list() == []


async def test_a_job_that_stops_its_worker_each_time_is_handed_back_until_its_deadline(app: App) -> None:
    workers: list[Worker] = []

    @app.task
    async def stopping() -> None:
        workers[-1].stop()
        await asyncio.sleep(WAIT)

    job = await stopping.options(deadline=2).submit()
    while (await job.status()).state != "expired":
        workers.append(Worker(app, settings=WorkerSettings(grace=0.0, burst=True)))
        await workers[-1].run()

    record = await job.status()
    assert (record.failures, record.crashes) == (0, 0)
    assert 2 <= record.interruptions <= len(workers)


async def test_the_result_of_a_thread_after_the_deadline_is_refused(
    app: App, working: Working, until: Until
) -> None:
    @app.task
    def long(ctx: Context) -> int:
        while not ctx.cancelled:
            time.sleep(0.01)
        return 1

    async with working():
        job = await long.options(deadline=0.3).submit()
        with pytest.raises(JobExpired):
            await job.result(WAIT)
    assert await states(job) == ["running", "expired"]


@pytest.mark.parametrize("signal", [Retry, Snooze], ids=["retry", "snooze"])
async def test_a_retry_after_the_deadline_is_not_scheduled(
    app: App, client: Client, working: Working, until: Until, signal: Callable[..., Exception]
) -> None:
    @app.task(retries=5)
    async def again() -> None:
        raise signal(reason="not yet", delay=3600)

    async with working():
        job = await again.options(deadline=60).submit()
        with pytest.raises(JobExpired, match=r"before the next attempt; the last: \w+: not yet"):
            await job.result(WAIT)
        await until(lambda: nothing_is_stored(client))
    assert await states(job) == ["running", "expired"]
    assert await client.dead_letters.list() == []


async def test_a_retry_keeps_the_deadline_of_its_job(app: App, working: Working) -> None:
    seen: list[object] = []

    @app.task(retries=2, backoff="none")
    async def again(ctx: Context) -> None:
        seen.append(ctx.job.deadline)
        if ctx.attempt < 3:
            raise ValueError("again")

    async with working():
        before = datetime.now(UTC)
        await (await again.options(deadline=60).submit()).result(WAIT)

    assert len(seen) == 3
    # With the precision of the message: milliseconds.
    moments = {one.isoformat(timespec="milliseconds") for one in seen if isinstance(one, datetime)}
    assert len(moments) == 1
    assert isinstance(seen[0], datetime)
    assert 59 < (seen[0] - before).total_seconds() < 75


@pytest.mark.parametrize(("timeout", "deadline", "end"), [(0.2, 60, "failed"), (60, 0.4, "expired")])
async def test_the_earlier_of_timeout_and_deadline_applies(
    app: App, working: Working, timeout: float, deadline: float, end: str
) -> None:
    @app.task(retries=0, timeout=timeout, deadline=deadline)
    async def long() -> None:
        await asyncio.Event().wait()

    async with working():
        job = await long.submit()
        record = await job.wait(WAIT)
    assert (record.state, record.reason) == (end, "timeout" if end == "failed" else "")


async def test_a_job_that_fails_before_its_deadline_is_replayed_without_one(
    app: App, client: Client, working: Working, until: Until
) -> None:
    seen: list[object] = []

    @app.task
    async def picky(ctx: Context) -> None:
        seen.append(ctx.job.deadline)
        if len(seen) == 1:
            raise Reject("no")

    async with working():
        job = await picky.options(deadline=0.8).submit()
        with pytest.raises(JobFailed):
            await job.result(WAIT)
        await until(client.dead_letters.list)
        await passed(until, 0.8)
        await job.retry()
        await job.result(WAIT)

    assert isinstance(seen[0], datetime)
    assert seen[1] is None


async def test_the_deadline_of_a_delayed_job_counts_from_its_submit(app: App, working: Working) -> None:
    seen: list[object] = []

    @app.task(deadline=60)
    async def later(ctx: Context) -> None:
        seen.append(ctx.job.deadline)

    async with working():
        before = datetime.now(UTC)
        await (await later.options(delay=1).submit()).result(WAIT)
    assert isinstance(seen[0], datetime)
    assert 59.5 < (seen[0] - before).total_seconds() < 75


async def test_a_declared_deadline_applies_to_jobs_submitted_by_name(
    app: App, client: Client, working: Working
) -> None:
    @app.task(deadline=0.4)
    async def long() -> None:
        await asyncio.Event().wait()

    async with working():
        with pytest.raises(JobExpired):
            await (await client.task("long").submit()).result(WAIT)


BAD: dict[str, tuple[Any, str]] = {
    "naive": (datetime(2030, 1, 1), "must be a datetime with a time zone"),
    "past": (datetime(2020, 1, 1, tzinfo=UTC), "must be in the future"),
    "far": (datetime(9999, 1, 1, tzinfo=UTC), "must be at most 366 days ahead"),
    "zero": (0, "must be 0.001 to 31622400 seconds"),
    "negative": (-1, "must be 0.001 to 31622400 seconds"),
    "nan": (float("nan"), "must be 0.001 to 31622400 seconds"),
    "huge": (1e12, "must be 0.001 to 31622400 seconds"),
    "bool": (True, "must be 0.001 to 31622400 seconds"),
    "text": ("tomorrow", "must be 0.001 to 31622400 seconds"),
}


@pytest.mark.parametrize("bad", BAD)
def test_an_invalid_deadline_is_refused_by_name(bad: str) -> None:
    value, message = BAD[bad]
    with pytest.raises(BadOption, match=f"^deadline {message}"):
        read_options(datetime.now(UTC), deadline=value)


@pytest.mark.parametrize(
    ("deadline", "named"),
    [
        (5, {"delay": 10}),
        (5, {"at": datetime.now(UTC) + timedelta(hours=1)}),
        (timedelta(seconds=5), {"delay": 5}),
    ],
    ids=["delay", "at", "just"],
)
async def test_a_deadline_before_the_start_is_refused(client: Client, deadline: Any, named: Any) -> None:
    with pytest.raises(BadOption, match=r"deadline must be after the start of the job, got 5"):
        await client.task("any").options(deadline=deadline, **named).submit()


async def test_a_deadline_that_has_passed_at_the_submit_is_refused(client: Client, until: Until) -> None:
    chosen = client.task("any").options(deadline=datetime.now(UTC) + timedelta(seconds=0.05))
    await passed(until, 0.1)

    with pytest.raises(BadOption, match="must be in the future"):
        await chosen.submit()


async def test_deadlines_are_judged_by_the_servers_clock(
    app: App, client: Client, working: Working, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = time.time
    job = await client.task("any").options(deadline=0.05).submit()
    await passed(until, 0.1)
    monkeypatch.setattr(time, "time", lambda: clock() - 3600)

    async with working():
        with pytest.raises(JobExpired):
            await job.result(WAIT)
        server_clock = (await client.broker()).wire.clock
        assert abs(server_clock.now() - clock()) < 2
        assert server_clock.ahead > 3590
