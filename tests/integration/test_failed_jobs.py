"""A failed job is complete when it is visible: it can be retried or removed, and its fallback is known.

The worker is another process, so only the server orders its writes and the actions of the client.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from jsq import Client, JobFailed, JobHandle, JobNotFound
from jsq.server import EmbeddedServer
from tests.helpers.cluster import cluster, replicas_of
from tests.helpers.conditions import Until
from tests.helpers.forkserver import ForkServer
from tests.helpers.workers import worker_processes

WAIT = 120.0
AT_ONCE = 10
"""Number of jobs that a test handles at the same time."""


@contextlib.asynccontextmanager
async def address(kind: str, folder: Path) -> AsyncIterator[str]:
    """The address of a server, or of three of them."""
    if kind == "three replicas":
        async with cluster(folder) as servers:
            yield servers.url
    else:
        with EmbeddedServer(sync_interval="always" if kind == "always" else "1h") as server:
            yield server.url


@pytest.mark.parametrize("rounds", [20, pytest.param(1_000, marks=pytest.mark.proof)])
@pytest.mark.parametrize("kind", ["plain", "always", "three replicas"])
async def test_a_failed_job_is_complete_when_it_is_visible(
    kind: str, rounds: int, tmp_path: Path, namespace: str, until: Until, forks: ForkServer
) -> None:
    async with (
        address(kind, tmp_path) as url,
        worker_processes(url, namespace, tmp_path, forks) as workers,
        Client(url, namespace=namespace) as client,
    ):
        if kind == "three replicas":
            assert await replicas_of(client) == {3}
        await workers.start("--concurrency", str(AT_ONCE))
        numbers = iter(range(1, rounds + 1))

        async def take_turns() -> None:
            for number in numbers:
                await fail_and_remove(client, number)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(take_turns())

        async def nothing_waits() -> bool:
            return await client.queues.count_waiting("default") == 0

        await until(nothing_waits, WAIT)
        # No late write of a worker restored a job.
        records = await client.jobs.list(limit=None)
        assert {(record.task, record.state) for record in records} == {("instead", "succeeded")}
        assert len(records) == 3 * rounds
        assert await client.dead_letters.list() == []


async def fail_and_remove(client: Client, number: int) -> None:
    """Have a job fail three times, and act on each failure at once; then remove the job."""
    job = await client.task("fail").submit(number)
    fallbacks = [await failed(client, job)]
    await client.dead_letters.get(job.id)
    await job.retry()
    fallbacks.append(await failed(client, job))
    await client.dead_letters.retry(job.id)
    fallbacks.append(await failed(client, job))
    await job.remove()

    assert len(set(fallbacks)) == 3
    broker = await client.broker()
    assert await broker.records.last(job.id, consistent=True) is None
    with pytest.raises(JobNotFound):
        await client.dead_letters.get(job.id)
    assert [await client.jobs.handle(id).result(WAIT) for id in fallbacks] == [-number] * 3


async def failed(client: Client, job: JobHandle[Any]) -> str:
    """Wait for the failure of a job. Returns the id of its fallback, which is known by then."""
    with pytest.raises(JobFailed) as caught:
        await job.result(WAIT)
    fallback = caught.value.fallback
    assert (await client.jobs.handle(fallback).status()).id == fallback
    return fallback
