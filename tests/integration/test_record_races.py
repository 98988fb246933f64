"""Races of a record with its message: every reader finds each job once, and one of two writers wins."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jsq import App, Client, Context, JobHandle, Retry, WrongState
from jsq.broker.jobs.records import RecordStore
from jsq.model.revision import FINAL_STATES
from jsq.server import EmbeddedServer
from jsq.transport.replies import own_headers, sequence_of
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

WAIT = 60.0
HOUR = 3600.0


@pytest.fixture
async def observer(server: EmbeddedServer, namespace: str) -> AsyncIterator[Client]:
    """A client with its own connection."""
    async with App(server.url, namespace=namespace) as app:
        yield app.client


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(500, id="500"),
        pytest.param(10_000, id="10000", marks=[pytest.mark.proof, pytest.mark.timeout(600)]),
    ],
)
async def test_an_acknowledged_job_is_never_missing(
    app: App, working: Working, observer: Client, count: int
) -> None:
    @app.task
    async def quick(n: int) -> int:
        return n

    states: dict[str, int] = {}
    numbers = iter(range(count))

    async def submit_and_read() -> None:
        for n in numbers:
            job = await quick.submit(n)
            handle, state = observer.jobs.handle(job.id), ""
            while state not in FINAL_STATES:
                state = (await handle.status()).state  # raises `JobNotFound` for a missing job
                states[state] = states.get(state, 0) + 1

    async with working(concurrency=50):
        await asyncio.gather(*(submit_and_read() for _ in range(20)))
    assert states.pop("succeeded") == count
    assert states.keys() <= {"queued", "running"}


async def test_a_delayed_job_is_never_missing(app: App, working: Working, observer: Client) -> None:
    @app.task
    async def quick(n: int) -> int:
        return n

    seen: set[str] = set()

    async def submit_and_read(n: int) -> None:
        job = await quick.options(delay=0.25 + n * 0.01).submit(n)
        handle, state = observer.jobs.handle(job.id), ""
        while state not in FINAL_STATES:
            state = (await handle.status()).state
            seen.add(state)

    async with working(concurrency=20):
        await asyncio.gather(*(submit_and_read(n) for n in range(30)))
    assert {"scheduled", "succeeded"} <= seen <= {"scheduled", "queued", "running", "succeeded"}


@pytest.mark.parametrize("limit", [None, 1_000])
async def test_a_list_has_each_job_once_while_all_change_state(
    app: App, working: Working, observer: Client, limit: int | None
) -> None:
    @app.task(retries=2, backoff="none")
    async def restless(ctx: Context, n: int) -> int:
        await asyncio.sleep(0.02)
        if ctx.attempt == 1 and n % 3 == 0:
            raise Retry("once more")
        return n

    acknowledged: list[str] = []

    async def submit() -> None:
        for n in range(250):
            acknowledged.append((await restless.options(delay=0.3 * (n % 2)).submit(n)).id)

    async with working(concurrency=10):
        submitting = asyncio.create_task(submit())
        ended = 0
        while not submitting.done() or ended < len(acknowledged):
            before = list(acknowledged)
            found = await observer.jobs.list(limit=limit)
            ids = [one.id for one in found]
            assert len(ids) == len(set(ids))
            assert set(before) <= set(ids)
            ended = sum(one.state in FINAL_STATES for one in found)
        await submitting
    assert {one.state for one in found} == {"succeeded"}


@pytest.mark.proof
async def test_only_one_of_a_reschedule_of_a_retry_and_its_firing_happens(app: App, working: Working) -> None:
    due = datetime.now(UTC) + timedelta(seconds=4)
    runs: dict[str, int] = {}

    @app.task(retries=3)
    async def again(ctx: Context) -> int:
        runs[ctx.id] = runs.get(ctx.id, 0) + 1
        if runs[ctx.id] == 1:
            raise Retry("later", delay=max(0.3, (due - datetime.now(UTC)).total_seconds()))
        return ctx.attempt

    async def move(job: JobHandle[int], after: float) -> bool:
        await asyncio.sleep(max(0.0, (due - datetime.now(UTC)).total_seconds() + after))
        try:
            await job.reschedule(delay=HOUR)
        except WrongState:
            return False
        return True

    async with working(concurrency=50):
        jobs = [await again.submit() for _ in range(50)]
        moved = await asyncio.gather(*(move(job, n * 0.02 - 0.5) for n, job in enumerate(jobs)))
        for job, later in zip(jobs, moved, strict=True):
            record = await (job.status() if later else job.wait(WAIT))
            if later:
                assert (record.state, record.attempt, runs[job.id]) == ("retrying", 1, 1)
                assert record.due is not None
                assert record.due - due > timedelta(seconds=HOUR / 2)
            else:
                assert (record.state, record.attempt, runs[job.id]) == ("succeeded", 2, 2)
        # The record of a moved job was rewritten, and its message names an earlier revision.
        for job in (job for job, later in zip(jobs, moved, strict=True) if later):
            await job.promote()
            assert await job.result(WAIT) == 2
    assert set(runs.values()) == {2}


async def test_a_late_record_of_a_reschedule_is_valid_after_the_job_fired_again(
    app: App, client: Client, working: Working, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []

    @app.task(retries=3)
    async def again(ctx: Context) -> int:
        runs.append(ctx.attempt)
        if len(runs) == 1:
            raise Retry("later", delay=HOUR)
        return ctx.attempt

    async with working():
        job = await again.submit()

        async def retries() -> bool:
            return (await job.status()).state == "retrying"

        await until(retries)
        broker = await client.broker()
        write = broker.records.write

        async def late(self: RecordStore, *args: object, **named: object) -> int:
            if self is broker.records:
                await until(lambda: len(runs) == 2)
            return await write(*args, **named)  # type: ignore[arg-type]  # as it was called

        monkeypatch.setattr(RecordStore, "write", late)
        result = await client.jobs.handle(job.id).promote()
        monkeypatch.undo()
        assert result.state in ("running", "succeeded")
        assert await job.result(WAIT) == 2
    history = [one.state for one in await broker.records.history(job.id)]
    assert history == ["running", "retrying", "running", "succeeded"]


async def test_a_cancel_confirmed_while_a_job_starts_ends_the_job(
    app: App, working: Working, observer: Client
) -> None:
    finished: list[str] = []

    @app.task
    async def short(ctx: Context) -> None:
        await asyncio.sleep(0.01)
        finished.append(ctx.id)

    async def submit_and_cancel(n: int) -> tuple[str, bool]:
        job = await short.submit()
        await asyncio.sleep(n % 10 * 0.002)
        try:
            return job.id, (await observer.jobs.handle(job.id).cancel()).state == "cancelled"
        except WrongState:
            return job.id, False

    async with working(concurrency=20):
        results = await asyncio.gather(*(submit_and_cancel(n) for n in range(200)))
        for id, cancelled in results:
            record = await observer.jobs.handle(id).wait(WAIT)
            assert record.state == ("cancelled" if cancelled else "succeeded")
            assert cancelled or id in finished
            states = [one.state for one in await (await app.client.broker()).records.history(id)]
            assert states in (["cancelled"], ["running", "cancelled"], ["running", "succeeded"])
            if states == ["cancelled"]:
                assert id not in finished


@pytest.mark.parametrize("requeued", [True, False], ids=["requeued", "fired"])
@pytest.mark.parametrize("limit", [None, 10])
async def test_a_job_that_moves_while_messages_are_located_is_listed(
    client: Client, until: Until, monkeypatch: pytest.MonkeyPatch, requeued: bool, limit: int | None
) -> None:
    """The job is like one that a rate limit requeues or admits: it has no record."""
    broker = await client.broker()
    subjects, fetch, page = broker.subjects, broker.reads.fetch, broker.reads.page
    ready, later = subjects.streams.ready("default"), subjects.streams.scheduled("default")
    other = await client.task("any").submit()
    job = await client.task("any").options(delay=0 if requeued else HOUR).submit()
    moves = [ready if requeued else later]

    async def move() -> None:
        subject, due = subjects.ready("default", "normal", job.id), subjects.due("default", "normal", job.id)
        if not requeued:
            await job.promote()
            await until(lambda: broker.reads.last(later, due, consistent=True))
            message = await broker.reads.last(later, due, consistent=True)
            assert message is not None
            await broker.wire.publish(subject, message.payload, own_headers(message.headers))
            await broker.jetstream.delete_message(later, sequence_of(message))
            return
        message = await broker.reads.last(ready, subject, consistent=True)
        assert message is not None
        await broker.job_writer.requeue_message(due, message.payload, own_headers(message.headers), HOUR)
        await broker.jetstream.delete_message(ready, sequence_of(message))

    async def moving_fetch(stream: str, *args: Any, **named: Any) -> Any:
        if stream in moves:
            moves.clear()
            await move()
        return await fetch(stream, *args, **named)

    async def moving_page(stream: str, *args: Any, **named: Any) -> Any:
        if stream in moves:
            moves.clear()
            await move()
        return await page(stream, *args, **named)

    monkeypatch.setattr(broker.reads, "fetch", moving_fetch)
    monkeypatch.setattr(broker.reads, "page", moving_page)
    find = client.jobs.list(limit=limit) if limit else client.jobs.list_open(task="any")
    assert {one.id for one in await find} == {job.id, other.id}
    assert not moves
