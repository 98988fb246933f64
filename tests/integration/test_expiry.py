"""Expiry: a job that has not started by its expiry never starts and is expired, with or without workers."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jsq import App, BadOption, Client, Context, JobExpired, JobHandle, Retry, Snooze, WrongState
from jsq.cli.errors import JOB_FAILED, code_of
from jsq.client.lookup import job_record
from jsq.codec.revisions import decode
from jsq.model.expiry import NOT_STARTED
from jsq.model.job import Job
from jsq.model.options import read_options
from jsq.model.revision import Revision
from jsq.server import EmbeddedServer
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


async def test_a_job_expires_on_time_without_a_worker(client: Client) -> None:
    start_time = time.time()
    job = await client.task("any").options(expires=1, tags=["x"]).submit()
    submitted = await job.status()
    assert (submitted.state, submitted.tags) == ("queued", ("x",))
    assert submitted.expires is not None

    with pytest.raises(JobExpired, match=NOT_STARTED) as caught:
        await job.result(WAIT)
    took = time.time() - start_time

    assert code_of(caught.value) == JOB_FAILED
    assert 0.95 < took < 5
    record = await job.status()
    assert (record.state, record.at, record.expires) == ("expired", submitted.expires, submitted.expires)
    assert [one.id for one in await client.jobs.list(state="expired")] == [job.id]
    assert await client.jobs.list(state="queued") == []
    assert [one.state async for one in job.events()] == ["expired"]
    assert await states(job) == []  # a reader writes nothing


async def test_a_waiting_client_is_notified_of_an_expiry_without_polling(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await client.task("any").options(expires=1.5).submit()
    broker = await client.broker()
    requests: list[str] = []
    ask = broker.wire.ask

    async def counted(subject: str, *rest: Any, **how: Any) -> Any:
        requests.append(subject)
        return await ask(subject, *rest, **how)

    monkeypatch.setattr(broker.wire, "ask", counted)
    assert (await job.wait(WAIT)).state == "expired"
    assert 0 < len(requests) < 8


async def test_a_worker_that_starts_too_late_records_the_expiry_and_runs_nothing(
    app: App, client: Client, working: Working, until: Until
) -> None:
    ran: list[int] = []

    @app.task
    async def late() -> None:
        ran.append(1)

    jobs = [
        await late.options(expires=0.05, headers={"Trace": "1"}).submit(),
        *await late.options(expires=timedelta(seconds=0.05)).submit_many([(), ()]),
        await late.options(expires=0.4, delay=0.3, id="own").submit(),
    ]
    soon = datetime.now(UTC) + timedelta(seconds=0.1)
    jobs.append(await client.task("late").options(expires=soon).submit())
    await passed(until, 0.9)

    async with working():
        await until(lambda: nothing_is_stored(client))

    assert ran == []
    for job in jobs:
        assert await states(job) == ["expired"]
        record = await job.status()
        assert (record.state, record.attempt, record.error) == ("expired", 0, NOT_STARTED)
    assert (await jobs[0].status()).headers == {"Trace": "1"}
    assert await client.dead_letters.list() == []


async def test_an_expired_job_is_neither_cancelled_nor_retried(client: Client, until: Until) -> None:
    job = await client.task("any").options(expires=0.05).submit()
    await passed(until, 0.1)

    with pytest.raises(WrongState, match="is expired"):
        await job.cancel()
    with pytest.raises(WrongState, match="is expired"):
        await job.retry()
    assert await client.jobs.list_open(task="any") == []
    assert (await client.jobs.cancel_many(task="any")).cancelled == 0
    assert await states(job) == []


async def test_a_job_that_started_in_time_keeps_running_and_is_retried(app: App, working: Working) -> None:
    seen: list[object] = []

    @app.task(retries=3, backoff="none")
    async def long(ctx: Context) -> int:
        seen.append(ctx.job.expires)
        await asyncio.sleep(0.25)
        match len(seen):
            case 1:
                raise Retry("once more")
            case 2:
                raise Snooze(0.1, "a moment")
        return ctx.attempt

    async with working():
        job = await long.options(expires=0.2).submit()
        assert await job.result(WAIT) == 2

    assert await states(job) == [
        "running",
        "retrying",
        "running",
        "snoozed",
        "running",
        "succeeded",
    ]
    assert isinstance(seen[0], datetime)
    assert seen[1:] == [None, None]


async def test_a_start_that_the_server_stored_too_late_does_not_count(
    app: App, client: Client, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    @app.task
    async def late() -> None:
        ran.append(1)

    async with working() as worker:
        broker = worker.resources.broker
        put = broker.records.put

        async def held_up(queue: str, id: str, body: bytes, *args: Any, **named: Any) -> int:
            if decode(body).state == "running":
                await asyncio.sleep(0.6)
            return await put(queue, id, body, *args, **named)

        monkeypatch.setattr(broker.records, "put", held_up)
        job = await late.options(expires=0.3).submit()
        with pytest.raises(JobExpired):
            await job.result(WAIT)
        async for _ in job.events():
            pass
    assert ran == []
    assert await states(job) == ["running", "expired"]


async def test_a_job_that_started_in_time_is_reclaimed_after_a_crash_however_late(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def plain(ctx: Context) -> int:
        return ctx.attempt

    # As a worker leaves it that dies: started, and never settled.
    job = await plain.options(expires=0.2).submit()
    broker = await client.broker()
    await broker.records.write(
        "default", job.id, Revision("running", "plain", 1, worker="dead", message=9), expect=0
    )
    await passed(until, 0.3)
    assert (await job.status()).state == "running"

    async with working():
        assert await job.result(WAIT) == 2


async def test_a_declared_expiry_applies_unless_the_submit_has_its_own(
    app: App, client: Client, working: Working, until: Until
) -> None:
    ran: list[str] = []

    @app.task(expires=0.2)
    async def short(ctx: Context) -> None:
        ran.append(ctx.id)

    expired = await short.submit()
    by_name = await client.task("short").submit()
    longer = await short.options(expires=60).submit()
    await passed(until, 0.3)
    assert (await expired.status()).state == "expired"

    async with working():
        await longer.result(WAIT)
        for job in (expired, by_name):
            assert (await job.wait(WAIT)).state == "expired"
        await until(lambda: nothing_is_stored(client))
    assert ran == [longer.id]


async def test_a_job_of_an_unknown_task_has_not_started(app: App, client: Client, working: Working) -> None:
    job = await client.task("nobody.knows").options(expires=1.5).submit()
    async with working():
        async for event in job.events():
            if event.state == "snoozed":
                assert event.reason == "unknown_task"
                break
        with pytest.raises(JobExpired):
            await job.result(WAIT)


async def test_a_replayed_job_does_not_expire(
    app: App, client: Client, working: Working, until: Until
) -> None:
    seen: list[object] = []

    @app.task(retries=0)
    async def picky(ctx: Context) -> None:
        seen.append(ctx.job.expires)
        if len(seen) == 1:
            raise ValueError("no")

    async with working():
        job = await picky.options(expires=0.5, tags=["x"], headers={"A": "b"}).submit()
        await job.wait(WAIT)
        await until(client.dead_letters.list)
        await passed(until, 0.5)
        await job.retry()
        await job.result(WAIT)
    assert seen[0] is not None
    assert seen[1] is None
    replayed = [job_record(one) for one in await (await job._connection.broker()).records.history(job.id)][2]
    assert (replayed.state, replayed.tags, replayed.headers) == ("retrying", ("x",), {"A": "b"})


async def test_a_sweep_removes_expired_jobs_from_a_queue_without_workers(
    client: Client, until: Until
) -> None:
    broker = await client.broker()
    jobs = [
        await client.task("any").options(queue="alone", expires=0.2).submit(),
        await client.task("any").options(queue="alone", expires=60).submit(),
        await client.task("any").options(queue="alone", delay=0.1, expires=0.3).submit(),
    ]
    await passed(until, 0.6)

    swept = {(one.kind.value, one.job): one.repaired for one in await client.admin.sweep(age=0.1)}

    assert swept == {("unrecorded_expiry", jobs[0].id): True, ("unrecorded_expiry", jobs[2].id): True}
    assert await broker.job_reader.waiting_ids("alone") == [jobs[1].id]
    assert [await states(job) for job in jobs] == [
        ["expired"],
        [],
        ["expired"],
    ]
    assert (await jobs[0].status()).error == NOT_STARTED
    assert await client.admin.sweep(age=0.1) == []


async def test_an_expiry_is_judged_by_the_servers_clock(
    client: Client, working: Working, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 3600)
    job = await client.task("any").options(expires=0.5).submit()
    assert (await job.status()).state == "queued"

    record = await job.wait(WAIT)

    assert record.state == "expired"
    assert record.expires is not None
    assert abs(record.expires.timestamp() - clock()) < 2


async def test_the_earlier_of_deadline_and_expiry_applies(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def plain() -> None: ...

    by_deadline = await plain.options(deadline=0.1, expires=60).submit()
    by_expiry = await plain.options(deadline=60, expires=0.1).submit()
    await passed(until, 0.2)
    async with working():
        assert "deadline" in (await by_deadline.wait(WAIT)).error
        await until(lambda: nothing_is_stored(client))
        assert (await by_expiry.wait(WAIT)).error == NOT_STARTED


BAD: dict[str, tuple[Any, str]] = {
    "naive": (datetime(2030, 1, 1), "must be a datetime with a time zone"),
    "past": (datetime(2020, 1, 1, tzinfo=UTC), "must be in the future"),
    "far": (datetime(9999, 1, 1, tzinfo=UTC), "must be at most 366 days ahead"),
    "zero": (0, "must be 0.001 to 31622400 seconds"),
    "negative": (-1, "must be 0.001 to 31622400 seconds"),
    "nan": (float("nan"), "must be 0.001 to 31622400 seconds"),
    "infinite": (float("inf"), "must be 0.001 to 31622400 seconds"),
    "huge": (1e12, "must be 0.001 to 31622400 seconds"),
    "bool": (True, "must be 0.001 to 31622400 seconds"),
    "text": ("tomorrow", "must be 0.001 to 31622400 seconds"),
}


@pytest.mark.parametrize("bad", BAD)
def test_an_invalid_expiry_is_refused_by_name(bad: str) -> None:
    value, message = BAD[bad]
    with pytest.raises(BadOption, match=f"^expires {message}"):
        read_options(datetime.now(UTC), expires=value)


def test_an_invalid_expiry_is_refused_at_the_declaration(app: App) -> None:
    with pytest.raises(BadOption, match=r"^expires must .*got -1"):

        @app.task(expires=-1)
        async def never() -> None: ...


@pytest.mark.parametrize(
    ("expires", "named"),
    [
        (5, {"delay": 10}),
        (5, {"at": datetime.now(UTC) + timedelta(hours=1)}),
        (timedelta(seconds=5), {"delay": 5}),
        (datetime.now(UTC) + timedelta(hours=1), {"delay": 7200}),
    ],
    ids=["delay", "at", "just", "moment"],
)
async def test_an_expiry_before_the_start_is_refused(client: Client, expires: Any, named: Any) -> None:
    with pytest.raises(BadOption, match=r"expires must be after the start of the job"):
        await client.task("any").options(expires=expires, **named).submit()


async def test_an_expiry_that_has_passed_at_the_submit_is_refused(client: Client, until: Until) -> None:
    chosen = client.task("any").options(expires=datetime.now(UTC) + timedelta(seconds=0.05))
    await passed(until, 0.1)

    with pytest.raises(BadOption, match="must be in the future"):
        await chosen.submit()


async def test_a_job_without_a_record_expires_by_a_sweep_or_a_worker(
    app: App, client: Client, working: Working, until: Until
) -> None:
    broker = await client.broker()
    await client.admin.provision()
    moment = (await broker.expiry.now("default")) + timedelta(seconds=3)
    await broker.job_writer.enqueue(Job("swept", "any", expires=moment))
    assert (await client.jobs.handle("swept").status()).state == "queued"
    await passed(until, 3.1)
    assert (await client.jobs.handle("swept").status()).state == "expired"

    repairs = [{(one.kind.value, one.repaired) for one in await client.admin.sweep(age=0)} for _ in range(2)]
    assert repairs == [{("unrecorded_expiry", True)}, set()]
    assert await nothing_is_stored(client)
    await broker.job_writer.enqueue(Job("met", "any", expires=moment))
    assert (await client.jobs.handle("met").status()).state == "expired"
    async with working():
        await until(lambda: nothing_is_stored(client))
    for id in ("swept", "met"):
        assert await states(client.jobs.handle(id)) == ["expired"]


async def test_a_job_never_starts_after_a_crash_while_its_expiry_was_recorded(
    app: App, client: Client, working: Working, until: Until
) -> None:
    ran: list[int] = []

    @app.task
    async def plain() -> None:
        ran.append(1)

    job = await plain.options(expires=0.1).submit()
    await passed(until, 0.2)
    broker = await client.broker()
    found = await broker.job_reader.find_by_message(job.id, "default", consistent=True)
    assert found is not None
    assert await broker.expiry.record(found)  # the message is still stored
    assert not await broker.expiry.record(found)

    async with working():
        await until(lambda: nothing_is_stored(client))
    assert ran == []
    assert await states(job) == ["expired"]


async def test_a_job_expires_though_the_server_is_killed(own_server: EmbeddedServer) -> None:
    async with App(own_server.url) as app:
        job = await app.client.task("any").options(expires=2).submit()
        later = await app.client.task("any").options(delay=1, expires=2).submit()
        own_server.kill()
        await asyncio.to_thread(own_server.restart)
        for one in (job, later):
            record = await one.wait(WAIT)
            assert (record.state, record.error) == ("expired", NOT_STARTED)


async def test_an_expired_job_never_starts_and_a_started_job_never_expires(
    app: App, working: Working
) -> None:
    ran: list[str] = []

    @app.task(queue="edge")
    async def note(ctx: Context) -> None:
        ran.append(ctx.id)
        await asyncio.sleep(0.03)  # so that many clients wait when their jobs expire

    async with working(queues=["edge"], concurrency=1):
        jobs = [await note.options(expires=1 + n * 0.005).submit() for n in range(100)]
        read = [record.state for record in await asyncio.gather(*(job.wait(WAIT) for job in jobs))]
        for job, state in zip(jobs, read, strict=True):
            assert (state == "succeeded") == (job.id in ran)
            assert (await job.status()).state == state
    assert 0 < len(ran) < 100
    assert set(read) == {"succeeded", "expired"}
    for job, state in zip(jobs, read, strict=True):
        assert (await states(job))[-1] in (state, "queued")
