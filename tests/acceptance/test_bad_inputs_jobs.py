"""Bad inputs 40 to 43 and 55: operations on jobs that do not exist, and full queues."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from jsq import (
    App,
    BadOption,
    BrokerFull,
    BrokerUnavailable,
    Client,
    JobHandle,
    JobNotFound,
    QueueFull,
    ResultTimeout,
)
from jsq.errors import WrongState
from jsq.server import EmbeddedServer
from tests.acceptance.bad_inputs import mentions, row, rows, stored
from tests.helpers.conditions import Until
from tests.helpers.servers import nats_server
from tests.helpers.workers import Working


@pytest.fixture
def sleep(app: App) -> asyncio.Event:
    """Declare a task `sleep` that runs until it is cancelled or the event is set."""
    wake = asyncio.Event()

    @app.task(name="sleep")
    async def sleep() -> str:
        await wake.wait()
        return "awake"

    return wake


async def running(client: Client, until: Until) -> JobHandle[Any]:
    job = await client.task("sleep").submit()

    async def runs() -> bool:
        return (await job.status()).state == "running"

    await until(runs)
    return job


@row("40-unknown-finished-running-twice")
async def test_a_cancel_returns_the_resulting_state(
    client: Client, working: Working, until: Until, sleep: asyncio.Event
) -> None:
    await client.admin.provision()
    with pytest.raises(JobNotFound) as unknown:
        await client.jobs.handle("unknown").cancel()
    assert mentions(unknown, "no job has the id 'unknown'")

    async with working():
        runs = await running(client, until)
        assert (await runs.cancel()).state == "cancelled"
        assert (await runs.cancel()).state == "cancelled"
        sleep.set()
        done = await client.task("sleep").submit()
        assert await done.result(60) == "awake"
    with pytest.raises(WrongState) as finished:
        await done.cancel()
    assert mentions(finished, f"job {done.id} is succeeded: it cannot be cancelled")
    assert [one.state async for one in runs.events()].count("cancelled") == 1


@rows(
    {
        "41-result": lambda job: job.result(timeout=30),
        "41-wait": lambda job: job.wait(timeout=30),
        "41-wait-for-ever": lambda job: job.wait(),
        "41-check-once": lambda job: job.wait(timeout=0),
    }
)
async def test_a_wait_for_an_unknown_job_fails_at_once(
    client: Client, given: Callable[[JobHandle[Any]], Awaitable[Any]]
) -> None:
    await client.admin.provision()
    job = client.jobs.handle("unknown")
    async with asyncio.timeout(5):
        with pytest.raises(JobNotFound) as caught:
            await given(job)
    assert mentions(caught, "'unknown'")


@rows({"42-zero": 0, "42-a-moment": 0.2})
async def test_a_wait_ends_in_time(client: Client, given: float) -> None:
    job = await client.task("any").submit()
    began = time.monotonic()
    with pytest.raises(ResultTimeout) as caught:
        await job.wait(timeout=given)
    assert given <= time.monotonic() - began < given + 5
    assert mentions(caught, job.id, f"did not end within {given:g} s; it continues")


@rows({"42-negative": -1, "42-no-number": float("nan"), "42-text": "soon", "42-infinite": float("inf")})
async def test_an_invalid_timeout_of_a_wait_is_refused(client: Client, given: Any) -> None:
    job = await client.task("any").submit()
    for wait in (job.wait, job.result):
        with pytest.raises(BadOption) as caught:
            await wait(timeout=given)
        assert mentions(caught, "timeout must ", f"got {given!r}", "must be 0 to 31622400 seconds")


@row("42-after-the-server-died")
async def test_a_wait_without_a_server_fails_in_time(own_server: EmbeddedServer, until: Until) -> None:
    async with Client(own_server.url) as client:
        job = await client.task("any").submit()
        wire = (await client.broker()).wire
        own_server.kill()
        await until(lambda: not wire.connected)
        async with asyncio.timeout(5):
            for wait in (job.wait, job.result):
                with pytest.raises(BrokerUnavailable) as caught:
                    await wait(timeout=0.5)
                assert mentions(caught, f"no NATS server answers at {own_server.url}", job.id)
                assert caught.value.retryable


@row("43-running-and-cancelled")
async def test_only_a_failed_job_can_be_retried(
    client: Client, working: Working, until: Until, sleep: asyncio.Event
) -> None:
    async with working():
        job = await running(client, until)
        with pytest.raises(WrongState) as caught:
            await job.retry()
        assert mentions(caught, f"job {job.id} is running: it cannot be retried")
        await job.cancel()
    with pytest.raises(WrongState) as caught:
        await job.retry()
    assert mentions(caught, f"job {job.id} is cancelled: it cannot be retried")
    assert caught.value.state == "cancelled"


@rows({"55-jobs": {"max_jobs": 2}, "55-bytes": {"max_bytes": 1_600}})
async def test_a_full_queue_refuses_and_stores_nothing(
    app: App, client: Client, working: Working, given: dict[str, Any]
) -> None:
    @app.task(queue="small")
    async def size(text: str) -> int:
        return len(text)

    app.queue("small", **given)
    await client.admin.provision(app.declared)
    taken = [await size.submit("x" * 300) for _ in range(2)]

    async def there(count: int) -> bool:
        return await stored(client) == count

    assert await there(2)
    for options in (size.options(), size.options(id="mine")):
        with pytest.raises(QueueFull) as caught:
            await options.submit("x" * 300)
        [(limit, value)] = given.items()
        assert mentions(
            caught, "queue small is full", f"its {limit}, {value:,}, is reached", "submit again later"
        )
        assert caught.value.retryable
    assert await client.queues.count_waiting("small") == 2
    assert await there(3)  # the id of the caller is claimed; the job may be submitted again

    async with working(queues=["small"]):
        assert [await job.result(60) for job in taken] == [300, 300]
        again = await size.options(id="mine").submit("x" * 300)
        assert (await again.result(60), again.duplicate) == (300, False)


FULL = {
    "55-server": "jetstream { store_dir: '%s/js', max_file_store: 2MB }",
    "55-account": """
        jetstream { store_dir: '%s/js' }
        accounts { A { jetstream { max_file: 2MB }, users: [{ user: a, password: a }] } }
        no_auth_user: a
    """,
}


@rows(FULL)
async def test_a_full_server_refuses_and_stores_nothing(tmp_path: Path, given: str) -> None:
    with nats_server(tmp_path, given % tmp_path) as address:
        async with Client(f"nats://{address}") as client:
            await client.admin.provision()
            wire = (await client.broker()).wire
            await wire.api("STREAM.CREATE.FILL", {"name": "FILL", "subjects": ["fill"]})
            with contextlib.suppress(BrokerFull):
                while True:
                    await wire.publish("fill", b"x" * 200_000)
            for options in (
                client.task("any").options(),
                client.task("any").options(id="mine"),
                client.task("any").options(delay=60),
            ):
                with pytest.raises(BrokerFull) as caught:
                    await options.submit("x" * 200_000)
                assert mentions(caught, "no room for ", "free space, or raise the limits")
                assert caught.value.retryable
            assert await client.queues.count_waiting("default") == 0
            await wire.api("STREAM.DELETE.FILL")
            assert (await (await client.task("any").options(id="mine").submit()).status()).state == "queued"
