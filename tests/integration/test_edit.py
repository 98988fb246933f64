"""Edits of a job that has not started: its arguments, options, priority or queue."""

import asyncio
import contextlib
from typing import Any

import pytest

from jsq import App, BadOption, Client, Context, JobHandle, JobNotFound, WrongState
from jsq.model.repair import Inconsistency
from jsq.model.revision import EDITED, Revision, StoredRevision
from tests.helpers.conditions import Until
from tests.helpers.crash_points import NewSite, Site, at_each_point
from tests.helpers.key_groups import nothing_is_left
from tests.helpers.workers import Working

WAIT = 60.0
HOUR = 3600.0


async def last(client: Client, id: str) -> StoredRevision | None:
    return await (await client.broker()).records.last(id)


async def history(client: Client, id: str) -> list[str]:
    return [one.state for one in await (await client.broker()).records.history(id)]


async def messages(client: Client, queue: str = "default") -> list[str]:
    return await (await client.broker()).job_reader.waiting_ids(queue)


async def nothing_waits(client: Client) -> bool:
    return await messages(client) == []


@pytest.mark.parametrize("delay", [0, 0.5])
async def test_a_waiting_job_runs_with_its_new_arguments_and_options(
    app: App, client: Client, working: Working, until: Until, delay: float
) -> None:
    runs: list[tuple[int, int, int]] = []

    @app.task(retries=0)
    async def add(ctx: Context, a: int, b: int) -> int:
        runs.append((a, b, ctx.attempt))
        if ctx.attempt == 1:
            raise ValueError("once more")
        return a + b

    job = await add.options(delay=delay, headers={"Trace": "7"}, tags=["old"]).submit(1, b=2)
    edited = await job.edit({"a": 40, "b": 2}, retries=2, backoff=[0], tags=["new"], timeout=30)
    assert edited.arguments == {"a": 40, "b": 2}
    assert (edited.options["retries"], edited.tags) == (2, ("new",))
    assert (await job.status()).arguments == {"a": 40, "b": 2}
    async with working():
        assert await job.result(WAIT) == 42
        await until(lambda: nothing_waits(client))
    assert runs == [(40, 2, 1), (40, 2, 2)]
    found = await job.status()
    assert (found.headers, found.tags, found.arguments) == ({"Trace": "7"}, ("new",), {"a": 40, "b": 2})


async def test_a_job_is_edited_twice_and_keeps_what_was_not_given(
    app: App, client: Client, working: Working
) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    job = await add.submit(1, 2)
    await job.edit([5, 6])
    await client.jobs.edit(job.id, timeout=9)
    await client.jobs.edit(job.id, priority="high")
    found = await job.status()
    assert (found.state, found.options) == ("queued", {"timeout": 9})
    assert [one.id for one in await client.jobs.list(state="queued")] == [job.id]
    assert [one.id for one in await client.jobs.list(arg={"a": 5})] == [job.id]
    assert await client.jobs.list(arg={"a": 1}) == []
    async with working():
        assert await job.result(WAIT) == 11


async def test_a_job_moves_to_the_front_of_its_queue(app: App, client: Client, working: Working) -> None:
    order: list[int] = []

    @app.task
    async def note(n: int) -> None:
        order.append(n)

    jobs = [await note.submit(n) for n in range(4)]
    await client.jobs.move(jobs[3].id, priority="high")
    async with working(concurrency=1):
        for job in jobs:
            await job.result(WAIT)
    assert order == [3, 0, 1, 2]


async def test_a_job_moves_to_another_queue_and_back(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def where() -> str:
        return "somewhere"

    async def nothing_is_wrong() -> bool:  # once the last messages are settled
        return await client.admin.sweep(age=0, dry_run=True) == []

    job = await where.submit()
    later = await where.options(delay=0.5).submit()
    back = await where.submit()
    for one in (job, later, back):
        assert (await one.move(queue="other")).quarantine == "other"
    assert (await back.move(queue="default")).quarantine == ""
    async with working(queues=["default"]):
        await back.result(WAIT)
        await until(lambda: nothing_waits(client))
        assert {(await one.status()).state for one in (job, later)} <= {"queued", "scheduled"}
    async with working(queues=["other"]):
        for one in (job, later):
            await one.result(WAIT)
        await until(nothing_is_wrong)


async def test_an_edited_job_is_cancelled(app: App, client: Client, working: Working) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    job = await add.submit(1, 2)
    await job.edit([3, 4])
    moved = await add.submit(1, 2)
    await moved.move(queue="other")
    for one in (job, moved):
        found = await one.cancel()
        assert (found.state, found.reason) == ("cancelled", "")
    assert await messages(client) == await messages(client, "other") == []


async def test_an_edit_of_a_started_or_finished_job_is_refused(
    app: App, client: Client, working: Working, until: Until
) -> None:
    gate = asyncio.Event()

    @app.task
    async def wait(n: int) -> int:
        await gate.wait()
        return n

    async def running() -> bool:
        return (await job.status()).state == "running"

    async with working():
        job = await wait.submit(1)
        await until(running)
        with pytest.raises(WrongState, match="is running: it cannot be edited: only a job that has"):
            await job.edit([2])
        gate.set()
        assert await job.result(WAIT) == 1
    with pytest.raises(WrongState, match="is succeeded: it cannot be moved: only a job that has not started"):
        await job.move(priority="high")
    with pytest.raises(JobNotFound):
        await client.jobs.edit("nothing", [1])
    with pytest.raises(BadOption, match="an edit must change"):
        await job.edit()
    with pytest.raises(BadOption, match="there is no option delay"):
        await job.edit(delay=5)  # type: ignore[call-arg] # a wrong option is the point


async def test_arguments_that_are_not_recorded_cannot_be_edited(
    app: App, client: Client, working: Working
) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    unkept = await add.options(keep_arguments=False).submit(1, 2)
    with pytest.raises(BadOption, match="must not be changed with keep_arguments=False"):
        await unkept.edit([3, 4])
    await unkept.edit(timeout=5)
    found = await last(client, unkept.id)
    assert found is not None
    assert not found.revision.has_arguments
    async with working():
        assert await unkept.result(WAIT) == 3


@pytest.mark.parametrize("per_key", [None, 1])
async def test_an_edited_job_keeps_its_position_in_its_key_group(
    app: App, client: Client, working: Working, until: Until, per_key: int | None
) -> None:
    order: list[int] = []

    @app.task(retries=1, backoff=[0])
    async def note(ctx: Context, n: int) -> int:
        if n == 99 and ctx.attempt == 1:
            raise ValueError("once")
        order.append(n)
        return n

    broker = await client.broker()
    jobs = [await note.options(key="k", per_key=per_key).submit(n) for n in range(8)]
    await jobs[6].edit([60], tags=["edited"])
    await jobs[6].edit([61], timeout=9)
    assert ((await jobs[6].status()).arguments, (await jobs[6].status()).state) == ({"n": 61}, "queued")
    await jobs[7].edit([70])
    await jobs[7].cancel()
    async with working(concurrency=1):
        assert [await job.result(WAIT) for job in jobs[:7]] == [0, 1, 2, 3, 4, 5, 61]
        late = [await note.options(key="k", per_key=per_key).submit(n) for n in (99, 100)]
        assert [await job.result(WAIT) for job in late] == [99, 100]
        await until(lambda: nothing_is_left(broker))
    assert sorted(order[:7]) == [0, 1, 2, 3, 4, 5, 61]
    if per_key == 1:
        assert order == [0, 1, 2, 3, 4, 5, 61, 99, 100]
    found = await jobs[6].status()
    assert (found.tags, found.options["timeout"]) == (("edited",), 9)


async def test_jobs_of_a_key_are_edited_and_moved_before_a_worker_and_while_it_runs(
    app: App, client: Client, working: Working, until: Until
) -> None:
    ran: dict[str, list[int]] = {}

    @app.task
    async def give(ctx: Context, n: int) -> int:
        ran.setdefault(ctx.id, []).append(n)
        return n

    async def changed(job: JobHandle[Any], number: int) -> bool:
        with contextlib.suppress(WrongState):
            await (job.move(queue="other") if number % 3 == 0 else job.edit([1]))
            return True
        return False

    broker = await client.broker()
    keyed = give.options(key="k", per_key=1)
    waiting = [await keyed.submit(0) for _ in range(4)]
    first = [await changed(job, number) for number, job in enumerate(waiting)]
    assert first == [True] * 4
    async with working(queues=["default", "other"]):
        assert [await job.result(WAIT) for job in waiting] == [0, 1, 1, 0]
        for number in range(40):
            job = await keyed.submit(0)
            won = await changed(job, number)
            assert await job.result(WAIT) == int(won and number % 3 > 0)
            assert len(ran[job.id]) == 1
            assert (await job.status()).quarantine == ("other" if won and number % 3 == 0 else "")
        await until(lambda: nothing_is_left(broker))
        await until(lambda: nothing_waits(client))


@pytest.mark.parametrize("delay", [0, HOUR])
async def test_one_of_two_concurrent_edits_wins(
    app: App, client: Client, working: Working, delay: float
) -> None:
    @app.task
    async def give(n: int) -> int:
        return n

    async def edit(job: JobHandle[Any], n: int) -> int | None:
        with contextlib.suppress(WrongState):
            await job.edit([n])
            return n
        return None

    for _ in range(10):
        job = await give.options(delay=delay).submit(0)
        done = await asyncio.gather(*(edit(job, n) for n in range(1, 5)))
        winners = [n for n in done if n is not None]
        assert winners
        arguments = (await job.status()).arguments
        assert arguments["n"] in winners
    if delay:
        await client.jobs.promote_many(state="scheduled")
    async with working():
        for found in await client.jobs.list():
            assert await client.jobs.handle(found.id).result(WAIT) == found.arguments["n"]


async def test_only_one_of_a_concurrent_edit_and_start_happens(
    app: App, client: Client, working: Working, until: Until
) -> None:
    ran: dict[str, list[int]] = {}

    @app.task
    async def give(ctx: Context, n: int) -> int:
        ran.setdefault(ctx.id, []).append(n)
        return n

    async def edited(job: JobHandle[Any]) -> bool:
        with contextlib.suppress(WrongState):
            await job.edit([1])
            return True
        return False

    async with working():
        for _ in range(60):
            job = await give.submit(0)
            won = await edited(job)
            assert await job.result(WAIT) == int(won)
            assert ran[job.id] == [int(won)]
        await until(lambda: nothing_waits(client))


@pytest.mark.parametrize("way", ["worker", "sweep"])
@pytest.mark.parametrize("queue", ["default", "other"])
async def test_an_edit_interrupted_after_its_record_was_written_is_completed(
    app: App, client: Client, working: Working, until: Until, queue: str, way: str
) -> None:
    runs: list[int] = []

    @app.task
    async def give(n: int) -> int:
        runs.append(n)
        return n

    job = await give.submit(1)
    broker = await client.broker()
    await broker.streams.ensure_queue(queue)
    apart = queue if queue != "default" else ""
    event = Revision(
        "queued", "give", reason=EDITED, quarantine=apart, has_arguments=True, arguments=[[2], {}]
    )
    await broker.records.write("default", job.id, event, expect=0)
    if way == "sweep":
        await broker.job_writer.remove("default", job.id)
        found = await client.admin.sweep(age=0)
        assert [(one.kind, one.repaired) for one in found] == [(Inconsistency.INCOMPLETE_RETRY, True)]
    async with working(queues=["default", "other"]):
        assert await job.result(WAIT) == 2
        await until(lambda: nothing_waits(client))
    assert runs == [2]
    assert await history(client, job.id) == ["queued", "running", "succeeded"]


@pytest.mark.proof
@pytest.mark.parametrize("delay", [0, 0.5])
@pytest.mark.parametrize("operation", ["edit", "elsewhere"])
async def test_an_edit_killed_at_any_point_loses_and_repeats_no_job(
    new_site: NewSite, until: Until, operation: str, delay: float
) -> None:
    async def killed_at(point: int) -> Site:
        site = new_site()
        async with site.app:
            client = site.app.client
            await client.admin.provision(site.app.declared)
            await client.task("last").options(id="mine", delay=delay, unique=False).submit(n=1)
            await site.die_at(point, operation)
            await site.finish("mine", until)
            states = await site.check_history("mine")
            found = await client.jobs.get("mine")
            edited = found.result == 2 or bool(found.quarantine)
            assert edited or point
            if states[0] in ("queued", "scheduled"):
                assert edited  # once it is recorded, it is effective
            assert ("edited" in found.tags) is (found.result == 2)
        return site

    sites = await at_each_point(killed_at, least=4)
    assert sites[0].runs("mine") == len(sites)  # they share the file


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("full", [False, True])
async def test_a_due_job_that_no_worker_has_moved_can_be_edited(
    app: App, client: Client, working: Working, until: Until, key: str | None, full: bool
) -> None:
    ran: list[int] = []

    @app.task(retries=0)
    async def note(n: int) -> None:
        ran.append(n)

    app.queue("default", max_jobs=1)
    await client.admin.provision(app.declared)
    if full:
        await note.submit(0)
    job = await note.options(delay=0.2, key=key).submit(1)

    async def is_due() -> bool:
        broker = await client.broker()
        subjects = broker.subjects
        due = (
            subjects.due("default", "*", job.id)
            if key is None
            else subjects.groups.due("default", "*", job.id)
        )
        return await broker.jetstream.count(subjects.streams.scheduled("default"), due) == 1

    await until(is_due)

    edited = await job.edit([2], tags=["edited"])
    assert (edited.arguments, edited.tags, edited.state) == ({"n": 2}, ("edited",), "queued")
    async with working():
        await job.result(WAIT)
        await until(lambda: nothing_waits(client))
    assert sorted(ran) == ([0, 2] if full else [2])
