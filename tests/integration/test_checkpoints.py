"""Checkpoints survive attempts; only the last attempt writes them, and the end of the job removes them."""

import asyncio
import threading
from typing import Any

import pytest

from jsq import (
    App,
    BadOption,
    Client,
    Context,
    JobFailed,
    JobHandle,
    JobNotFound,
    LeaseLost,
    Reject,
    Retry,
    Snooze,
    UsageError,
)
from jsq.broker.flow.checkpoints import CheckpointStore
from jsq.model.checkpoint import MAX_VALUE_BYTES
from jsq.model.revision import Revision
from jsq.transport.reads import Reads
from jsq.transport.replies import Reply, WrongSequence
from jsq.worker.stages.checkpoints import SUPERSEDED
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

WAIT = 60.0


async def stored(app: App, id: str) -> list[Reply]:
    return await stored_messages(app.client, id)


async def stored_messages(client: Client, id: str) -> list[Reply]:
    """All checkpoint messages of a job, including the superseded ones."""
    broker = await client.broker()
    return await broker.reads.fetch(
        broker.subjects.streams.records, broker.subjects.checkpoint("default", id, ">")
    )


async def states(job: JobHandle[Any]) -> list[str]:
    return [event.state for event in await (await job._connection.broker()).records.history(job.id)]


async def test_a_checkpoint_survives_a_retry_and_changes_no_event(app: App, working: Working) -> None:
    @app.task(retries=2, backoff="none")
    async def climb(ctx: Context) -> list[Any]:
        seen = ctx.checkpointed
        if seen is None:
            await ctx.checkpoint({"page": 1, "names": ["é", None]})
            assert (await app.client.jobs.handle(ctx.id).status()).state == "running"
            [shown] = await app.client.jobs.list()
            assert (shown.id, shown.state) == (ctx.id, "running")
            assert await app.client.jobs.handle(ctx.id).checkpoint() == {"page": 1, "names": ["é", None]}
            raise Retry(delay=0)
        return [ctx.attempt, seen, ctx.checkpointed]

    async with working():
        job = await climb.submit()
        recorded = [event.state async for event in job.events()]
        assert await job.result(WAIT) == [2, *[{"page": 1, "names": ["é", None]}] * 2]

    assert recorded == await states(job) == ["running", "retrying", "running", "succeeded"]


async def test_a_checkpoint_of_a_thread_survives_a_retry(app: App, working: Working) -> None:
    @app.task(retries=2, backoff="none")
    def climb(ctx: Context) -> list[Any]:
        assert threading.current_thread() is not threading.main_thread()
        if ctx.checkpointed is None:
            ctx.blocking.checkpoint(1)
            ctx.blocking.checkpoint([1, 2])
            raise ValueError("once")
        return [ctx.attempt, ctx.checkpointed]

    async with working():
        assert await (await climb.submit()).result(WAIT) == [2, [1, 2]]


async def test_a_checkpoint_survives_a_snooze_an_interruption_and_a_replay(
    app: App, client: Client, working: Working, until: Until
) -> None:
    started: list[Any] = []

    @app.task
    async def climb(ctx: Context) -> None:
        seen = ctx.checkpointed or 0
        started.append(seen)
        await ctx.checkpoint(seen + 1)
        if seen == 0:
            raise Snooze(0)
        if seen == 1:
            await asyncio.Event().wait()
        if seen == 2:
            raise Reject("not this way")

    job = await climb.submit()
    async with working(grace=0):
        await until(lambda: len(started) == 2)
    async with working():
        with pytest.raises(JobFailed):
            await job.result(WAIT)
        await until(client.dead_letters.list)
        await job.retry()
        await job.result(WAIT)

    assert started == [0, 1, 2, 3]


async def test_a_checkpoint_is_removed_when_its_job_has_succeeded_or_was_cancelled(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task(retries=1, backoff=[60])
    async def climb(ctx: Context, end: str) -> None:
        await ctx.checkpoint(end)
        if end == "retried":
            raise Retry("later")
        if end == "failed":
            raise Reject("never")
        if end == "stopped":
            await asyncio.Event().wait()

    async with working():
        jobs = {end: await climb.submit(end) for end in ("succeeded", "retried", "failed", "stopped")}
        await jobs["succeeded"].wait(WAIT)
        await jobs["failed"].wait(WAIT)
        for end in ("retried", "stopped"):
            await until(lambda end=end: stored(app, jobs[end].id))
        await until(lambda: is_in(jobs["retried"], "retrying"))
        for end in ("retried", "stopped"):
            await jobs[end].cancel()
        for end in ("succeeded", "retried", "stopped"):
            await until(lambda end=end: nothing_stored(app, jobs[end].id))

    assert len(await stored(app, jobs["failed"].id)) == 1  # a failed job may be replayed
    await client.dead_letters.purge(free_ids=True)
    assert await nothing_stored(app, jobs["failed"].id)


async def nothing_stored(app: App, id: str) -> bool:
    return await stored(app, id) == []


async def is_in(job: JobHandle[Any], state: str) -> bool:
    return (await job.status()).state == state


async def test_a_job_without_checkpoint_shows_none_and_an_unknown_job_is_an_error(client: Client) -> None:
    job = await client.task("any").submit()

    assert await job.checkpoint() is None
    with pytest.raises(JobNotFound):
        await client.jobs.handle("nobody").checkpoint()


async def test_superseded_checkpoints_do_not_pile_up(app: App, working: Working) -> None:
    piled: list[int] = []

    @app.task
    async def climb(ctx: Context) -> int:
        for step in range(3 * SUPERSEDED):
            await ctx.checkpoint(step)
            piled.append(len(await stored(app, ctx.id)))
        return int(ctx.checkpointed)

    async with working():
        assert await (await climb.submit()).result(WAIT) == 3 * SUPERSEDED - 1

    assert max(piled) <= SUPERSEDED
    assert piled.count(1) == 3


@pytest.mark.parametrize("answers", ["await", "blocking"])
async def test_a_superseded_attempt_stores_no_checkpoint_and_ends(
    app: App, client: Client, working: Working, until: Until, answers: str
) -> None:
    errors: list[Exception] = []

    async def supersede(ctx: Context) -> None:
        """Write what another worker writes to which the job was delivered meanwhile."""
        log = (await client.broker()).records
        await log.write("default", ctx.id, Revision("running", "climb", worker="other"), expect=ctx.token)

    if answers == "await":

        @app.task(name="climb")
        async def climb(ctx: Context) -> None:
            await supersede(ctx)
            try:
                await ctx.checkpoint("stale")
            except LeaseLost as lost:
                errors.append(lost)
                await asyncio.Event().wait()

    else:
        is_superseded = threading.Event()

        @app.task(name="climb")
        def blocking(ctx: Context) -> None:
            is_superseded.wait(WAIT)
            try:
                ctx.blocking.checkpoint("stale")
            except LeaseLost as lost:
                errors.append(lost)

    job = await client.task("climb").submit()
    async with working():
        if answers == "blocking":
            await until(lambda: is_in(job, "running"))
            [running] = [
                e
                for e in await (await job._connection.broker()).records.history(job.id)
                if e.state == "running"
            ]
            await (await job._connection.broker()).records.write(
                "default", job.id, Revision("running", "climb", worker="other"), expect=running.sequence
            )
            is_superseded.set()
        await until(lambda: errors)

    assert await nothing_stored(app, job.id)
    assert await states(job) == ["running", "running"]


async def test_only_the_start_of_an_attempt_allows_it_to_write(client: Client) -> None:
    broker = await client.broker()
    job = await client.task("any").submit()
    write = broker.records.write
    first = await write(job.queue, job.id, Revision("running", "any"), expect=0)
    second = await write(job.queue, job.id, Revision("running", "any"), expect=first)

    await broker.checkpoints.write(job.queue, job.id, "checkpoint", b"2", token=second, while_=bool)
    for stale in (0, first):
        with pytest.raises(WrongSequence):
            await broker.checkpoints.write(job.queue, job.id, "checkpoint", b"1", token=stale, while_=bool)
    assert await broker.checkpoints.read(job.queue, job.id, "checkpoint", token=second, while_=bool) == b"2"

    await write(job.queue, job.id, Revision("succeeded", "any", token=second), expect=second)
    with pytest.raises(WrongSequence):
        await broker.checkpoints.write(job.queue, job.id, "checkpoint", b"3", token=second, while_=bool)


async def test_a_checkpoint_is_read_from_the_leader(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer of a replica that is behind is not used; the read is repeated."""
    broker = await client.broker()
    job = await client.task("any").submit()
    token = await broker.records.write(job.queue, job.id, Revision("running", "any"), expect=0)
    for body in (b"1", b"2"):
        await broker.checkpoints.write(job.queue, job.id, "checkpoint", body, token=token, while_=bool)
    first, second = await stored_messages(client, job.id)
    answers = [None, first, second]

    async def behind(reads: Reads, stream: str, subject: str) -> Reply | None:
        return answers.pop(0)

    monkeypatch.setattr(Reads, "last", behind)
    assert await broker.checkpoints.read(job.queue, job.id, "checkpoint", token=token, while_=bool) == b"2"
    assert answers == []


async def test_reading_a_checkpoint_stores_nothing(client: Client) -> None:
    broker = await client.broker()
    job = await client.task("any").submit()
    token = await broker.records.write(job.queue, job.id, Revision("running", "any"), expect=0)

    assert await broker.checkpoints.latest_sequence(job.queue, job.id, ">", token=token, while_=bool) == 0
    assert await broker.checkpoints.read(job.queue, job.id, "checkpoint", token=token, while_=bool) == b""
    assert await stored_messages(client, job.id) == []


BAD = {
    "large": ("x" * MAX_VALUE_BYTES, "checkpoint must be 65,536 bytes"),
    "object": (object(), "checkpoint must "),
    "set": ({1, 2}, "would not come back from JSON"),
    "key": ({1: 2}, "would not come back from JSON"),
    "surrogate": ("\ud800", "must be a value that JSON can hold"),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_checkpoint_that_cannot_be_stored_is_refused_by_name(
    app: App, working: Working, bad: str
) -> None:
    value, message = BAD[bad]

    @app.task
    async def climb(ctx: Context) -> str:
        with pytest.raises(BadOption) as caught:
            await ctx.checkpoint(value)
        assert ctx.checkpointed is None
        await ctx.checkpoint("x" * (MAX_VALUE_BYTES - 2))  # exactly the largest allowed value
        return str(caught.value)

    async with working():
        assert message in await (await climb.submit()).result(WAIT)


async def test_a_blocking_call_on_the_event_loop_is_refused(app: App, working: Working) -> None:
    @app.task
    async def climb(ctx: Context) -> None:
        with pytest.raises(UsageError, match="would block the event loop"):
            ctx.blocking.checkpoint(1)

    async with working():
        await (await climb.submit()).result(WAIT)


async def test_a_first_attempt_reads_no_checkpoint_from_the_server(
    app: App, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    newest = CheckpointStore.latest_sequence

    async def noted(steps: CheckpointStore, queue: str, id: str, place: str, **more: Any) -> int:
        reads.append(id)
        return await newest(steps, queue, id, place, **more)

    monkeypatch.setattr(CheckpointStore, "latest_sequence", noted)

    @app.task(retries=1, backoff="none")
    async def once(ctx: Context) -> None:
        pass

    @app.task(retries=1, backoff="none")
    async def twice(ctx: Context) -> None:
        if ctx.attempt == 1:
            raise ValueError("again")

    async with working():
        await (await once.submit()).result(WAIT)
        again = await twice.submit()
        await again.result(WAIT)

    assert reads == [again.id]
