"""The event log, which exists only if it is requested, and the records as NATS clients see them."""

import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import nats
import pytest
from nats.js.errors import KeyNotFoundError, NoKeysError
from nats.js.kv import KeyValue

from jsq import App, BadOption, Client, Context, Reject
from jsq.server import EmbeddedServer
from tests.chaos.run import read_events
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

WAIT = 60.0
DAYS = 86_400.0


async def log_config(client: Client) -> dict[str, Any] | None:
    broker = await client.broker()
    found = await broker.jetstream.stream_info(broker.subjects.streams.events)
    return found["config"] if found is not None else None


async def events_of(client: Client, **filters: Any) -> list[tuple[str, str]]:
    since = datetime.now(UTC) - timedelta(hours=1)
    return [(one.id, one.state) async for one in client.jobs.events(since=since, follow=False, **filters)]


# -- the event log -------------------------------------------------------------------------------------------


async def test_there_is_no_event_log_unless_it_is_requested(
    app: App, client: Client, working: Working
) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    await client.admin.provision()
    async with working():
        job = await add.submit(1, 2)
        await job.result(WAIT)
    assert await log_config(client) is None
    assert await events_of(client) == [(job.id, "running"), (job.id, "succeeded")]


async def test_provision_creates_the_event_log_and_changes_its_retention(client: Client) -> None:
    missing = await client.admin.provision(events="30d", check=True)
    assert [one.how for one in missing if one.what.endswith("_EVENTS")] == ["missing"]
    await client.admin.provision(events="30d")
    config = await log_config(client)
    assert config is not None
    assert config["max_age"] == 30 * DAYS * 1e9
    assert await client.admin.provision(events="30d", check=True) == []
    [change] = await client.admin.provision(events="7d")
    assert "max_age" in change.how
    assert await client.admin.provision() == []
    config = await log_config(client)
    assert config is not None
    assert config["max_age"] == 7 * DAYS * 1e9
    with pytest.raises(BadOption, match="events"):
        await client.admin.provision(events=0)
    with pytest.raises(BadOption, match="events"):
        App(events="soon")


async def test_a_worker_of_an_app_with_events_creates_a_log_that_outlives_the_records(
    server: EmbeddedServer, namespace: str, until: Until
) -> None:
    from jsq.worker import Worker
    from tests.helpers.workers import running_worker

    async with App(server.url, namespace=namespace, events="30d") as app:
        client = app.client

        @app.task(retries=0)
        async def add(ctx: Context, a: int, b: int) -> int:
            if b == 0:
                raise Reject("no")
            ctx.progress(0.5, "half")
            return a + b

        async with running_worker(Worker(app)):
            jobs = [await add.submit(1, n) for n in range(3)]
            jobs.append(await add.options(delay=3600).submit(1, 5))
            for job in jobs[:3]:
                await job.wait(WAIT)
            await jobs[3].cancel()
        expected = [one for one in await events_of(client) if one[1] != "running"]
        assert sorted(state for _, state in expected) == ["cancelled", "failed", "succeeded", "succeeded"]
        complete = await events_of(client)

        broker = await client.broker()

        async def all_are_copied() -> bool:
            found = await broker.jetstream.stream_info(broker.subjects.streams.events)
            return found is not None and found["state"]["messages"] >= 7

        await until(all_are_copied)
        assert await events_of(client) == complete  # none is stored twice
        # Progress is not a revision: the log does not have it.
        revisions = [
            one
            async for one in client.jobs.events(follow=False)
            if one.state != "running" or one.progress is None
        ]
        await client.jobs.remove_many(state=["succeeded", "failed", "cancelled"])
        assert await client.jobs.list() == []
        events = [one async for one in client.jobs.events(follow=False)]
        assert [(one.id, one.state, one.sequence) for one in events] == [
            (one.id, one.state, one.sequence) for one in revisions
        ]
        assert [one.state for one in events if one.id == jobs[0].id] == ["running", "failed"]
        states = [one.state async for one in client.jobs.events(job=jobs[1].id, follow=False)]
        assert states == ["running", "succeeded"]


async def test_the_judge_of_chaos_runs_reads_from_the_log_what_the_bucket_has_dropped(
    client: Client, until: Until
) -> None:
    await client.admin.provision(events="1d")
    few, many = [await client.task("add").submit(1, 2) for _ in range(2)]
    for number in range(70):
        await many.edit([number])
    await few.cancel()
    broker = await client.broker()

    async def copied() -> bool:
        found = await broker.jetstream.stream_info(broker.subjects.streams.events)
        return found is not None and found["state"]["messages"] == 71

    await until(copied)
    events, from_log = await read_events(broker)
    assert from_log == [many.id]
    assert [one.revision.arguments[0][0] for one in events if one.job == many.id] == list(range(70))
    assert [one.state for one in events if one.job == few.id] == ["cancelled"]


# -- the bucket, as other NATS clients see it ----------------------------------------------------------------


@contextlib.asynccontextmanager
async def bucket(server: EmbeddedServer, namespace: str) -> AsyncIterator[KeyValue]:
    connection = await nats.connect(server.url)
    try:
        yield await connection.jetstream().key_value(f"{namespace}_jobs")
    finally:
        await connection.close()


def value(entry: KeyValue.Entry) -> dict[str, Any]:
    assert entry.value is not None
    found: dict[str, Any] = json.loads(entry.value)
    return found


async def test_a_kv_client_reads_the_record_and_the_history_of_a_job(
    app: App, client: Client, server: EmbeddedServer, namespace: str, working: Working
) -> None:
    @app.task(retries=1, backoff=[0])
    async def flaky(ctx: Context, n: int) -> int:
        if ctx.attempt == 1:
            raise ValueError("no luck")
        return n

    async with working():
        job = await flaky.submit(42)
        await job.result(WAIT)
        waiting = await flaky.options(delay=3600).submit(1)
    async with bucket(server, namespace) as kv:
        entry = await kv.get(f"default.{job.id}")
        assert entry.revision == (await job.status()).sequence
        assert value(entry) == value(entry) | {
            "state": "succeeded",
            "task": "flaky",
            "attempt": 2,
            "result": 42,
            "arguments": {"n": 42},
        }
        history = [value(one) for one in await kv.history(f"default.{job.id}")]
        assert [one["state"] for one in history] == ["running", "retrying", "running", "succeeded"]
        assert history[1]["error"] == "ValueError: no luck"
        # A waiting job has no record: its message has its state.
        with pytest.raises(KeyNotFoundError):
            await kv.get(f"default.{waiting.id}")


async def test_a_kv_client_watches_the_jobs_of_a_queue(
    app: App, client: Client, server: EmbeddedServer, namespace: str, working: Working
) -> None:
    @app.task
    async def add(ctx: Context, a: int, b: int) -> int:
        return a + b

    await client.admin.provision()
    async with bucket(server, namespace) as kv, working():
        watcher = await kv.watch("default.*")
        assert await watcher.updates(timeout=10) is None  # type: ignore[no-untyped-call]  # nothing is there yet
        job = await add.submit(1, 2)
        seen: list[tuple[str, str]] = []
        while len(seen) < 2:
            entry = await watcher.updates(timeout=10)  # type: ignore[no-untyped-call]  # the library's
            assert entry is not None
            seen.append((entry.key, value(entry)["state"]))
        await watcher.stop()  # type: ignore[no-untyped-call]  # the library's
    assert seen == [(f"default.{job.id}", "running"), (f"default.{job.id}", "succeeded")]


async def test_a_kv_client_sees_that_a_removed_job_is_gone(
    app: App, client: Client, server: EmbeddedServer, namespace: str, working: Working
) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with working():
        job = await add.submit(1, 2)
        await job.result(WAIT)
    async with bucket(server, namespace) as kv:
        assert await kv.keys() == [f"default.{job.id}"]
        await job.remove()
        with pytest.raises(KeyNotFoundError):
            await kv.get(f"default.{job.id}")
        with pytest.raises(NoKeysError):
            await kv.history(f"default.{job.id}")
