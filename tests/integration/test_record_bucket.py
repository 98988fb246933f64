"""The bucket of records as any client of KV buckets sees it: the nats CLI, or nats-py."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
from nats.js.kv import KeyValue

from jsq import App, Client, JobFailed, Reject
from jsq.server import EmbeddedServer
from tests.helpers.workers import Working


@pytest.fixture
async def bucket(server: EmbeddedServer, namespace: str, client: Client) -> AsyncIterator[KeyValue]:
    """The bucket `jobs` by nats-py, without jsq."""
    await client.admin.provision()
    connection = await nats.connect(server.url)
    yield await connection.jetstream().key_value(f"{namespace}_jobs")
    await connection.close()


@pytest.fixture
def declared(app: App) -> App:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    @app.task
    async def never() -> None:
        raise Reject("no")

    return app


def value(entry: KeyValue.Entry) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(entry.value or b"")
    return found


async def test_get_shows_a_job(declared: App, client: Client, working: Working, bucket: KeyValue) -> None:
    async with working():
        job = await client.task("add").options(id="order-17").submit(1, 2)
        assert await job.result(60) == 3

    entry = await bucket.get("default.order-17")

    shown = value(entry)
    assert (shown["state"], shown["task"], shown["arguments"], shown["result"]) == (
        "succeeded",
        "add",
        [[1, 2], {}],
        3,
    )
    assert entry.revision == (await job.status()).sequence


async def test_history_shows_the_life_of_a_job(
    declared: App, client: Client, working: Working, bucket: KeyValue
) -> None:
    async with working():
        job = await client.task("never").submit()
        with pytest.raises(JobFailed):
            await job.result(60)
        await job.retry()
        with pytest.raises(JobFailed):
            await job.result(60)

    history = [value(entry) for entry in await bucket.history(f"default.{job.id}")]

    assert [one["state"] for one in history] == ["running", "failed", "retrying", "running", "failed"]
    assert [one.get("reason") for one in history] == [None, "rejected", "replayed", None, "rejected"]


async def test_watch_shows_what_happens_on_a_queue(
    declared: App, client: Client, working: Working, bucket: KeyValue
) -> None:
    watcher = await bucket.watch("default.*")
    seen = [await watcher.updates()]  # type: ignore[no-untyped-call]  # nats-py gives it no types
    assert seen == [None]  # the bucket is still empty

    async with working():
        job = await client.task("add").submit(1, 2)
        assert await job.result(60) == 3
        seen = [await watcher.updates(timeout=10) for _ in range(2)]  # type: ignore[no-untyped-call]  # as above

    assert [(one.key, value(one)["state"]) for one in seen if one is not None] == [
        (f"default.{job.id}", "running"),
        (f"default.{job.id}", "succeeded"),
    ]
    with contextlib.suppress(asyncio.CancelledError):
        await watcher.stop()  # type: ignore[no-untyped-call]  # as above


async def test_a_waiting_job_and_a_removed_job_have_no_key_in_the_bucket(
    declared: App, client: Client, working: Working, bucket: KeyValue
) -> None:
    job = await client.task("never").submit()
    with pytest.raises(nats.js.errors.KeyNotFoundError):
        await bucket.get(f"default.{job.id}")
    async with working():
        with pytest.raises(JobFailed):
            await job.result(60)
    assert value(await bucket.get(f"default.{job.id}"))["state"] == "failed"

    await client.dead_letters.purge(id=job.id, free_ids=True)

    with pytest.raises(nats.js.errors.KeyNotFoundError):
        await bucket.get(f"default.{job.id}")
    assert await client.dead_letters.list() == []
