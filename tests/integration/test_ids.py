"""Ids and keys may be any printable text: it is shown as given, and never acts as a wildcard."""

import asyncio
import json
from pathlib import Path
from typing import Any

import nats
import pytest

from jsq import (
    App,
    BadArguments,
    BadName,
    Client,
    Context,
    DuplicateJob,
    Failure,
    JobFailed,
    JobNotFound,
    Reject,
    Retry,
)
from jsq.codec.subject_token import MAX_TOKEN_LENGTH, encode_token
from jsq.model.repair import Inconsistency
from jsq.server import EmbeddedServer
from tests.helpers.conditions import Until
from tests.helpers.ids import ODD_IDS, PLAIN_IDS
from tests.helpers.servers import nats_server
from tests.helpers.undeliverable import READY, make_undeliverable, repair_summary
from tests.helpers.workers import Working

IDS = (*PLAIN_IDS, *ODD_IDS)
WAIT = 20.0


async def pay() -> int:
    return 1


async def test_a_job_with_any_id_runs_is_found_runs_again_and_is_removed(
    app: App, client: Client, working: Working
) -> None:
    @app.task(retries=1, backoff="none")
    async def climb(ctx: Context, name: str) -> list[Any]:
        if ctx.checkpointed is None:
            ctx.progress(0.5, "half")
            await ctx.checkpoint({"of": name})
            raise Retry
        return [ctx.id, ctx.checkpointed, await ctx.once(ctx.id, pay)]

    async def live(id: str) -> None:
        submitter = climb.options(id=id, key=id, tags=["odd"])
        job = await submitter.submit(id)
        assert (job.id, (await submitter.submit(id)).duplicate) == (id, True)
        assert await job.result(WAIT) == [id, {"of": id}, 1]
        record = await client.jobs.get(id)
        assert (record.id, record.key, record.state, record.arguments) == (id, id, "succeeded", {"name": id})
        assert {event.id async for event in job.events()} == {id}
        assert [event.state async for event in client.jobs.events(job=id, follow=False)][-1] == "succeeded"
        assert len(await job.attempts()) == 2
        await job.retry(again=True)
        assert (await job.result(WAIT))[0] == id
        await job.remove()
        with pytest.raises(JobNotFound):
            await job.status()
        assert not (await submitter.submit(id)).duplicate

    async with working(concurrency=10):
        await asyncio.gather(*(live(id) for id in IDS))
        assert {one.id for one in await client.jobs.list(tag="odd")} == {*IDS}
        for id in IDS:
            await client.jobs.handle(id).result(WAIT)


async def test_a_failed_job_with_any_id_has_a_dead_letter_and_callbacks(
    app: App, client: Client, working: Working
) -> None:
    failures: dict[str, Failure] = {}

    @app.task
    async def note(failure: Failure) -> None:
        failures[failure.job] = failure

    @app.task
    async def instead(fails: bool) -> str:
        return "instead"

    @app.task(on_failure=note, fallback=instead)
    async def fail(fails: bool) -> str:
        if fails:
            raise Reject("no")
        return "done"

    @app.task
    async def plain(id: str) -> str:
        return id

    @app.batch_task(size=len(IDS), wait=0.1)
    async def together(items: list[str]) -> list[str]:
        return items

    async def live(id: str) -> None:
        job = await fail.options(id=id).submit(True)
        with pytest.raises(JobFailed) as caught:
            await job.result(WAIT)
        assert caught.value.id == id
        assert await client.jobs.handle(caught.value.fallback).result(WAIT) == "instead"
        dead_letter = await client.dead_letters.get(id)
        assert (dead_letter.id, dead_letter.job and dead_letter.job.id) == (id, id)
        await client.dead_letters.retry(id, [False])
        assert await job.result(WAIT) == "done"
        await job.remove()

    async with working(concurrency=10):
        await asyncio.gather(*(live(id) for id in IDS))
        assert failures.keys() == {*IDS}
        assert await client.dead_letters.list() == []
        jobs = [await plain.options(id=id).submit(id) for id in IDS]
        assert [await job.result(WAIT) for job in jobs] == [*IDS]
        for id in IDS:
            await client.jobs.remove(id)
        jobs = await together.submit_many([[id] for id in IDS], ids=IDS)
        assert [await job.result(WAIT) for job in jobs] == [*IDS]
        assert all(job.duplicate for job in await together.submit_many([[id] for id in IDS], ids=IDS))


async def test_a_waiting_job_with_any_id_is_edited_moved_and_cancelled(client: Client) -> None:
    task = client.task("any")

    async def live(id: str) -> None:
        job = await task.options(id=id, delay=3600, unique=id, on_duplicate="raise").submit(1)
        with pytest.raises(DuplicateJob) as caught:
            await task.options(unique=id, on_duplicate="raise").submit(1)
        assert caught.value.id == id
        assert (await job.reschedule(delay=7200)).id == id
        assert (await job.edit([2], tags=["edited"])).tags == ("edited",)
        assert (await job.promote()).id == id
        assert (await job.move(queue="other", priority="high")).quarantine == "other"
        assert (await job.cancel()).state == "cancelled"
        await job.remove()

    await asyncio.gather(*(live(id) for id in IDS))
    assert await client.jobs.list() == []
    for all_or_nothing in (False, True):
        for key in (None, "a key.*"):
            many = client.task("any").options(key=key) if key else client.task("any")
            jobs = await many.submit_many([[1]] * len(IDS), ids=IDS, all_or_nothing=all_or_nothing)
            assert [job.id for job in jobs] == [*IDS]
            assert {one.id for one in await client.jobs.list()} == {*IDS}
            again = await many.submit_many([[1]] * len(IDS), ids=IDS, all_or_nothing=all_or_nothing)
            assert all(job.duplicate for job in again)
            for id in IDS:
                await client.jobs.cancel(id)
                await client.jobs.remove(id)


async def test_an_id_is_never_a_wildcard(app: App, client: Client, working: Working) -> None:
    @app.task
    async def fail() -> None:
        raise Reject("no")

    other = await fail.options(id="other").submit()
    for id in ("*", ">", "othe*"):
        for ask in (client.jobs.get, client.jobs.cancel, client.jobs.remove, client.dead_letters.get):
            with pytest.raises(JobNotFound):
                await ask(id)
        assert not (await fail.options(id=id).submit()).duplicate
    async with working():
        for id in ("other", "*", ">", "othe*"):
            await client.jobs.handle(id).wait(WAIT)
    assert {event.id async for event in client.jobs.events(job="*", follow=False)} == {"*"}
    assert await client.dead_letters.purge(id="*") == 1
    await client.jobs.remove(">")
    assert {one.id for one in await client.jobs.list()} == {"other", "*", "othe*"}
    assert (await other.status()).state == "failed"


@pytest.mark.parametrize("id", ["", "x" * 129, "a\tb", "\u202e", "\x7f", 7, None])
async def test_any_other_text_is_refused_as_an_id(client: Client, id: Any) -> None:
    with pytest.raises(BadName, match="job id must be printable text of 1 to 128 characters"):
        await client.jobs.get(id)


async def test_the_longest_allowed_names_fit_the_server(
    server: EmbeddedServer, namespace: str, app: App, client: Client, working: Working
) -> None:
    queue, longest = "q" * 64, ODD_IDS[-1]
    assert len(encode_token(longest)) == MAX_TOKEN_LENGTH

    async def fail(ctx: Context) -> None:
        await ctx.checkpoint(ctx.id)
        await ctx.once(longest, pay)
        raise Reject("no")

    task = app.task(name="t" * 128, queue=queue)(fail)
    limit = (await client.broker()).wire.max_payload
    with pytest.raises(BadArguments, match="the server takes"):
        await client.task("any").options(id=longest).submit("x" * (limit - 3_000))
    many = [f"{number:03}{longest[3:]}" for number in range(300)]
    for delay in (None, 1):
        job = await task.options(id=longest, key="k" * 64, per_key=1, delay=delay).submit()
        async with working(queues=[queue]):
            with pytest.raises(JobFailed):
                await job.result(WAIT)
        assert (await client.dead_letters.get(longest)).id == longest
        await job.remove()
    await task.options(id=longest).submit()
    await client.jobs.cancel(longest)
    assert (await task.submit_many([[]] * 300, ids=many, all_or_nothing=True))[0].id == many[0]
    assert all(job.duplicate for job in await task.submit_many([[]] * 300, ids=many))

    connection = await nats.connect(server.url)
    bucket = await connection.jetstream().key_value(f"{namespace}_jobs")
    entry = await bucket.get(f"{queue}.{encode_token(longest)}")
    assert json.loads(entry.value or b"")["state"] == "cancelled"
    await connection.close()


async def test_many_long_ids_are_looked_up_on_a_server_with_small_messages(tmp_path: Path) -> None:
    ids = [f"{number:03}{ODD_IDS[-1][3:]}" for number in range(100)]
    small = f"jetstream {{ store_dir: '{tmp_path}/js' }}\nmax_payload: 65536\n"
    with nats_server(tmp_path, small) as address:
        async with Client(f"nats://{address}") as client:
            await client.task("any").submit_many([[]] * 100, ids=ids)
            again = await client.task("any").submit_many([[]] * 100, ids=ids)
            assert all(job.duplicate for job in again)
            assert {one.id for one in await client.jobs.list()} == {*ids}


async def test_a_key_with_any_text_has_limits_and_pauses(app: App, client: Client, working: Working) -> None:
    @app.task(key_rate="1000/s")
    async def fine(ctx: Context) -> str:
        return ctx.id

    keys = [*IDS, "\U0001f600" * 256]
    async with working(concurrency=10):
        for key in keys[::4]:
            await client.queues.pause("default", key=key)
        jobs = {key: await fine.options(key=key, per_key=1).submit() for key in keys}
        for key in keys[::4]:
            assert await jobs[key].status()
            await client.queues.resume("default", key=key)
        assert [await jobs[key].result(WAIT) for key in keys] == [jobs[key].id for key in keys]
    assert [(await jobs[key].status()).key for key in keys] == keys


async def test_a_schedule_with_any_name_fires(
    app: App, client: Client, working: Working, until: Until
) -> None:
    ran: list[tuple[str, str]] = []

    @app.task
    async def fine(ctx: Context) -> None:
        ran.append((ctx.headers["schedule"], ctx.id))

    names = {name[:100] for name in IDS}
    for name in names:
        assert (await client.schedules.add(name, "fine", every=1)).name == name
    async with working(concurrency=10):
        await until(lambda: {name for name, _ in ran} == names)
    assert all(id.startswith(f"{name}-20") for name, id in ran)
    assert {one.name for one in await client.schedules.list()} == names
    for name in names:
        await client.schedules.pause(name)
        assert (await client.schedules.run(name)).id.startswith(f"{name}-")
        assert (await client.schedules.remove(name)).name == name
    assert await client.schedules.list() == []


async def test_a_sweep_repairs_jobs_with_any_id(app: App, client: Client, working: Working) -> None:
    @app.task
    async def fine(ctx: Context) -> str:
        return ctx.id

    jobs = [await fine.options(id=id).submit() for id in IDS]
    assert len(await make_undeliverable(client)) == len(IDS)
    assert {*repair_summary(await client.admin.sweep(age=0))} == {
        (Inconsistency.UNDELIVERABLE, id, True) for id in IDS
    }
    assert await client.admin.sweep(age=0) == []
    broker = await client.broker()
    for job in jobs:
        await job.cancel()
        await job.retry(again=True)
        await broker.job_writer.remove(READY, job.id)
    swept = await client.admin.sweep(age=0)
    assert {(one.job, one.repaired) for one in swept} == {(id, True) for id in IDS}
    async with working(concurrency=10):
        assert [await job.result(WAIT) for job in jobs] == [*IDS]
