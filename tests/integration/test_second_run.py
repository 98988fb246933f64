"""A finished job runs again, with the arguments and options in its record."""

import asyncio
import contextlib
from typing import Any

import pytest

from jsq import App, ArgumentsNotKept, Client, Context, JobFailed, JobHandle, JobNotFound, WrongState
from jsq.model.repair import Inconsistency
from jsq.model.revision import MAX_RECORD_ARGUMENTS, Revision
from tests.helpers.conditions import Until
from tests.helpers.crash_points import NewSite, Site, at_each_point
from tests.helpers.workers import Working

WAIT = 60.0
HOUR = 3600.0


async def history(client: Client, id: str) -> list[str]:
    return [one.state async for one in client.jobs.events(job=id, follow=False)]


async def test_a_job_that_succeeded_runs_again_under_its_id(
    app: App, client: Client, working: Working
) -> None:
    runs: list[tuple[int, int]] = []

    @app.task
    async def add(a: int, b: int) -> int:
        runs.append((a, b))
        return a + b + 100 * len(runs)

    async with working():
        job = await add.submit(1, b=2)
        assert await job.result(WAIT) == 103
        result = await client.jobs.retry(job.id, again=True)
        assert (result.id, result.state) == (job.id, "retrying") or result.state in ("running", "succeeded")
        assert await job.result(WAIT) == 203
    assert runs == [(1, 2), (1, 2)]
    assert await history(client, job.id) == ["running", "succeeded", "retrying", "running", "succeeded"]
    first, second = await job.attempts()
    assert (first.number, second.number) == (1, 1)


async def test_the_second_run_has_the_options_of_the_submit(
    app: App, client: Client, working: Working
) -> None:
    seen: list[tuple[Any, ...]] = []

    @app.task(retries=0)
    async def flaky(ctx: Context, n: int) -> int:
        seen.append((ctx.headers, ctx.attempt))
        if len(seen) in (1, 3):
            raise ValueError("no luck")
        return n

    options = flaky.options(
        retries=2, backoff=[0, 0], headers={"Trace": "é"}, tags=["x"], priority="high", key="k", per_key=1
    )
    async with working():
        job = await options.submit(5)
        assert await job.result(WAIT) == 5
        await job.retry(again=True)
        assert await job.result(WAIT) == 5
    assert seen == [({"Trace": "é"}, n) for n in (1, 2, 1, 2)]
    found = await job.status()
    assert (found.tags, found.key, found.options["retries"]) == (("x",), "k", 2)
    assert found.options["per_key"] == 1


async def has_state(job: JobHandle[Any], state: str) -> bool:
    return (await job.status()).state == state


async def test_jobs_that_were_cancelled_or_expired_or_failed_run_again(
    app: App, client: Client, working: Working, until: Until
) -> None:
    allowed = False

    @app.task(retries=0)
    async def work(how: str) -> str:
        if not allowed:
            raise ValueError("not yet")
        return how

    cancelled = await work.options(delay=HOUR).submit("cancelled")
    await cancelled.cancel()
    unseen = await work.options(expires=0.001, queue="default").submit("unseen")
    await until(lambda: has_state(unseen, "expired"))  # no worker has recorded it
    await client.jobs.retry(unseen.id, again=True)
    allowed = True
    async with working():
        assert await unseen.result(WAIT) == "unseen"
        expired = await work.options(delay=0.3, expires=0.31).submit("expired")
        assert (await expired.wait(WAIT)).state in ("expired", "succeeded")
        allowed = False
        failed = await work.submit("failed")
        with pytest.raises(JobFailed):
            await failed.result(WAIT)
        allowed = True
        for job, how in ((cancelled, "cancelled"), (expired, "expired"), (failed, "failed")):
            await job.retry(again=True)
            assert await job.result(WAIT) == how
    assert await client.dead_letters.list() == []


async def test_a_job_whose_record_lacks_its_arguments_is_refused(
    app: App, client: Client, working: Working
) -> None:
    @app.task
    async def size(text: str) -> int:
        return len(text)

    async with working():
        large = await size.submit("x" * MAX_RECORD_ARGUMENTS)
        unkept = await size.options(keep_arguments=False).submit("secret")
        for job in (large, unkept):
            await job.result(WAIT)
    with pytest.raises(ArgumentsNotKept, match=r"they take 8,\d+ bytes, and a record holds 8,192"):
        await large.retry(again=True)
    with pytest.raises(ArgumentsNotKept, match="keep_arguments"):
        await unkept.retry(again=True)
    assert (await large.status()).state == "succeeded"
    assert await client.jobs.retry_many(again=True, state="succeeded") == 0


async def test_only_finished_jobs_run_again_and_only_failed_ones_without_again(
    app: App, client: Client, working: Working
) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    waiting = await add.options(delay=HOUR).submit(1, 2)
    with pytest.raises(WrongState, match="only a job that has ended can"):
        await waiting.retry(again=True)
    with pytest.raises(JobNotFound):
        await client.jobs.retry("nothing", again=True)
    async with working():
        job = await add.submit(1, 2)
        await job.result(WAIT)
    with pytest.raises(WrongState, match="only a failed job"):
        await job.retry()


async def test_one_of_many_concurrent_retries_runs_the_job_again(
    app: App, client: Client, working: Working
) -> None:
    runs = 0

    @app.task
    async def count() -> int:
        nonlocal runs
        runs += 1
        return runs

    async def again() -> None:
        with contextlib.suppress(WrongState):
            await job.retry(again=True)

    async with working():
        job = await count.submit()
        assert await job.result(WAIT) == 1
    await asyncio.gather(*(again() for _ in range(20)))
    assert await history(client, job.id) == ["running", "succeeded", "retrying"]
    async with working():
        assert await job.result(WAIT) == 2
    assert runs == 2


async def test_all_matching_jobs_run_again(app: App, client: Client, working: Working) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with working():
        jobs = [await add.options(tags=["twice"] if n < 3 else []).submit(n, n) for n in range(4)]
        for job in jobs:
            await job.result(WAIT)
        assert await client.jobs.retry_many(again=True, tag="twice") == 3
        for job in jobs:
            await job.result(WAIT)
    lengths = [len(await history(client, job.id)) for job in jobs]
    assert lengths == [5, 5, 5, 2]


async def test_a_sweep_completes_an_interrupted_second_run(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    async def nothing_waits() -> bool:
        return await broker.job_reader.waiting_ids("default") == []

    async with working():
        job = await add.submit(1, b=2)
        await job.result(WAIT)
    broker = await client.broker()
    last = await broker.records.last(job.id)
    assert last is not None
    # As `retry` leaves it if the client dies before it stores the message.
    event = Revision(
        "retrying",
        "add",
        reason="replayed",
        token=last.sequence,
        has_arguments=True,
        arguments={"a": 1, "b": 2},
    )
    await broker.records.write("default", job.id, event, expect=last.sequence)

    found = await client.admin.sweep(age=0)
    assert [(one.kind, one.repaired) for one in found] == [(Inconsistency.INCOMPLETE_RETRY, True)]
    async with working():
        assert await job.result(WAIT) == 3
        await until(nothing_waits)
    assert await client.admin.sweep(age=0) == []


@pytest.mark.proof
@pytest.mark.parametrize("complete", ["again", "sweep"])
async def test_a_retry_of_a_job_killed_at_any_point_can_be_repeated_and_runs_it_once(
    new_site: NewSite, until: Until, complete: str
) -> None:
    async def killed_at(point: int) -> Site:
        site = new_site()
        async with site.app:
            client = site.app.client
            await client.task("succeed").options(id="mine").submit()
            await site.finish("mine", until)
            died = await site.die_at(point, "again")
            if complete == "sweep":
                await client.admin.sweep(age=0)
            if complete == "again" or (await client.jobs.get("mine")).sequence <= 2:
                with contextlib.suppress(WrongState):
                    await client.jobs.retry("mine", again=True)
            await site.finish("mine", until)
            once = ["running", "succeeded"]
            await site.check_history("mine", [*once, "retrying", *once])
            assert died or point == 0
        return site

    sites = await at_each_point(killed_at)
    assert sites[0].runs("mine") == 2 * len(sites)
