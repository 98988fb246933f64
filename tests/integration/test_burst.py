"""`burst`: a worker that exits when no job can start, after it has run all jobs that can."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from jsq import App, Client, Rate, Retry
from jsq.codec.subject_token import ANY
from jsq.settings import WorkerSettings
from jsq.worker import Worker

ENDS = 40.0
"""Seconds within which a worker must exit. Generous, because the machine may be busy."""


async def burst(app: App, *queues: str) -> None:
    """Work until no job can start."""
    settings = WorkerSettings(burst=True, concurrency=10)
    await asyncio.wait_for(Worker(app, queues=queues or None, settings=settings).run(), ENDS)


@pytest.fixture
def started(app: App) -> list[str]:
    """Declares `note` and `other`, which record that they ran, and `slow`, which may start once an hour."""
    started: list[str] = []

    @app.task
    async def note(label: str) -> None:
        started.append(label)

    @app.task
    async def other(label: str) -> None:
        started.append(label)

    @app.task(rate="1/h")
    async def slow(label: str) -> None:
        started.append(label)

    @app.task(retries=3, backoff=[3600])
    async def later(label: str) -> None:
        started.append(label)
        raise Retry("not now")

    return started


async def pause_queue(client: Client) -> None:
    await client.queues.pause("default")
    await client.task("note").submit("held")


async def pause_task(client: Client) -> None:
    await client.queues.pause("default", task="note")
    await client.task("note").submit("held")
    await client.task("other").submit("ran")


async def pause_key(client: Client) -> None:
    await client.queues.pause("default", key="k")
    await client.task("note").options(key="k").submit("held")
    await client.task("note").options(key="o").submit("ran")


async def pause_head_of_key_group(client: Client) -> None:
    await client.queues.pause("default", task="other")
    for task in ("other", "note", "note"):
        await client.task(task).options(key="k", per_key=1).submit("held")
    await client.task("note").options(key="o", per_key=1).submit("ran")


async def use_up_limit(client: Client) -> None:
    for label in ("ran", "held", "held"):
        await client.task("slow").submit(label)


async def use_up_limit_at_head_of_key_group(client: Client) -> None:
    await client.task("slow").submit("ran")
    for task in ("slow", "note"):
        await client.task(task).options(key="k", per_key=1).submit("held")


async def retry_at_head_of_key_group(client: Client) -> None:
    await client.task("later").options(key="k", per_key=1).submit("ran")
    await client.task("note").options(key="k", per_key=1).submit("held")


async def use_up_limit_of_queue(client: Client) -> None:
    await client.admin.provision()
    await client.queues.update("default", rate="1/h")
    for label in ("ran", "held"):
        await client.task("note").submit(label)


@pytest.mark.parametrize(
    "prepare",
    [
        pause_queue,
        pause_task,
        pause_key,
        pause_head_of_key_group,
        use_up_limit,
        use_up_limit_at_head_of_key_group,
        retry_at_head_of_key_group,
        use_up_limit_of_queue,
    ],
)
async def test_a_burst_does_not_wait_for_paused_or_limited_jobs(
    prepare: Callable[[Client], Awaitable[None]], app: App, client: Client, started: list[str]
) -> None:
    await client.admin.provision()
    await prepare(client)

    await burst(app)

    assert "held" not in started
    assert started == ["ran"] * len(started)
    assert bool(started) is (prepare is not pause_queue)
    assert len([job for job in await client.jobs.list() if job.state == "succeeded"]) == len(started) - (
        prepare is retry_at_head_of_key_group
    )


async def test_a_burst_waits_for_a_rate_limit_that_ends_soon(app: App) -> None:
    started: list[int] = []

    @app.task(rate=Rate(2, 1))
    async def task_limited(number: int) -> None:
        started.append(number)

    @app.task(queue="narrow")
    async def queue_limited(number: int) -> None:
        started.append(number)

    app.queue("narrow", rate="2/s")
    await app.client.admin.provision(app.declared)
    for number in range(5):
        await task_limited.submit(number)
        await queue_limited.submit(number)

    await burst(app)

    assert sorted(started) == sorted([*range(5)] * 2)


async def test_a_burst_runs_all_jobs_of_a_key_group(app: App) -> None:
    started: list[int] = []

    @app.task(per_key=1)
    async def visit(number: int) -> None:
        started.append(number)

    for number in range(20):
        await visit.options(key=f"k{number % 2}").submit(number)

    await burst(app)

    assert sorted(started) == [*range(20)]


async def test_a_burst_runs_due_jobs_that_wait_for_room_on_a_full_queue(app: App, client: Client) -> None:
    started: list[int] = []

    @app.task(queue="small")
    async def take(number: int) -> None:
        started.append(number)

    app.queue("small", max_jobs=2)
    await client.admin.provision(app.declared)
    jobs = [await take.options(delay=0.3).submit(number) for number in range(6)]
    broker = await client.broker()
    later = broker.subjects.streams.scheduled("small")

    async def due() -> int:
        return await broker.jetstream.count(later, broker.subjects.due("small", "*", ANY))

    async with asyncio.timeout(30):
        while await due() < len(jobs) - 2:  # noqa: ASYNC110 -- the server makes them due
            await asyncio.sleep(0.02)

    await burst(app)

    assert sorted(started) == [*range(6)]
