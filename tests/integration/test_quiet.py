"""Quiet workers, the stacks of running jobs, and workers that stop after some jobs or without work."""

import asyncio
import io
import sys
import threading
from pathlib import Path

import pytest

from jsq import App, Client, Context
from jsq.settings import WorkerSettings
from jsq.worker import Worker
from jsq.worker.stacks import print_stacks
from jsq.worker.timings import WorkerTimings
from tests.apps import hostile
from tests.helpers.conditions import Until
from tests.helpers.workers import Working, running_worker

ENDS = 40.0
"""Seconds within which a worker must exit. Generous, because the machine may be busy."""


async def states(client: Client) -> dict[str, str]:
    return {one["worker"]: one["state"] for one in await client.admin.workers()}


async def test_a_quiet_worker_finishes_its_jobs_and_takes_no_more_until_it_is_resumed(
    app: App, client: Client, working: Working, until: Until
) -> None:
    release = asyncio.Event()

    @app.task
    async def where(ctx: Context) -> str:
        return ctx.worker

    @app.task
    async def hold(ctx: Context) -> str:
        await release.wait()
        return ctx.worker

    async def is_shown(worker: Worker, state: str) -> bool:
        return (await states(client)).get(worker.name) == state

    async with working(concurrency=5) as worker:
        held = await hold.submit()
        await until(lambda: len(worker.dispatcher.attempts) == 1)
        worker.quiet()
        await until(lambda: is_shown(worker, "quiet"))
        assert not worker.is_ready()
        other = Worker(app)
        async with running_worker(other):
            jobs = await where.submit_many([()] * 20)
            assert {await job.result(30) for job in jobs} == {other.name}
            assert worker.dispatcher.done == 0
        release.set()
        assert await held.result(30) == worker.name

        worker.resume()
        await until(lambda: is_shown(worker, "running"))
        assert worker.is_ready()
        assert await (await where.submit()).result(30) == worker.name


async def test_the_stacks_of_running_jobs_name_each_job_and_its_line(
    app: App, working: Working, until: Until
) -> None:
    release, thread_release = asyncio.Event(), threading.Event()

    async def inner() -> None:
        await release.wait()  # line on the loop

    @app.task
    async def plain() -> None:
        await inner()

    @app.task
    async def aware(ctx: Context) -> None:
        await inner()

    @app.task
    def threaded() -> None:
        thread_release.wait()  # line in the thread

    @app.batch_task(size=2, wait=5)
    async def batched(items: list[int]) -> None:
        await inner()

    async with working(concurrency=5) as worker:
        jobs = [await task.submit() for task in (plain, aware, threaded)]
        jobs += [await batched.submit(number) for number in range(2)]
        await until(lambda: len(worker.dispatcher.attempts) == 5)
        text = ""

        def printed() -> bool:
            nonlocal text
            file = io.StringIO()
            print_stacks(worker.dispatcher.attempts.values(), file)
            text = file.getvalue()
            return text.count("# line on the loop") == 3 and "# line in the thread" in text

        await until(printed, 5)
        release.set()
        thread_release.set()
        for job in jobs:
            await job.result(30)

    assert "jsq: 5 running jobs of process" in text
    for job, task in zip(jobs[:2], ("plain", "aware"), strict=True):
        assert f"job {job.id}, task {task}, attempt 1, on the event loop for " in text
    assert f"job {jobs[2].id}, task threaded, attempt 1, in a thread for " in text
    assert "run_straight" not in text


@pytest.mark.parametrize("executor", ["async", "batch"])
async def test_a_worker_stops_gently_after_its_maximum_of_jobs(
    app: App, client: Client, executor: str
) -> None:
    ran: list[int] = []

    @app.task
    async def note(number: int) -> None:
        ran.append(number)

    @app.batch_task(size=3, wait=0.1)
    async def notes(numbers: list[int]) -> None:
        ran.extend(numbers)

    await (note if executor == "async" else notes).submit_many([(number,) for number in range(8)])
    worker = Worker(app, settings=WorkerSettings(max_jobs=3, concurrency=1))

    await asyncio.wait_for(worker.run(), ENDS)

    assert worker.spent
    assert len(ran) == 3 or (executor == "batch" and len(ran) == 6)  # a second batch may be under way
    assert len(set(ran)) == len(ran)
    assert len(await client.jobs.list(state="queued")) == 8 - len(ran)


async def test_a_worker_without_work_stops_after_its_idle_time(app: App, until: Until) -> None:
    @app.task
    async def note() -> int:
        return 1

    worker = Worker(app, settings=WorkerSettings(max_idle=0.5))
    running = asyncio.create_task(worker.run())
    try:
        assert await (await note.submit()).result(30) == 1
        await asyncio.wait_for(running, ENDS)
    finally:
        running.cancel()
    assert (worker.spent, worker.dispatcher.done) == (False, 1)


async def test_a_child_process_prints_its_stacks(
    app: App, working: Working, until: Until, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stay = app.task(executor="process", retries=0)(hostile.stay)

    async with working(concurrency=1, timings=WorkerTimings(unwind=0.1)) as worker:
        job = await stay.submit(str(tmp_path / "pid"))
        await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        text = ""

        def printed() -> bool:
            nonlocal text
            print_stacks(worker.dispatcher.attempts.values(), sys.stderr)
            text += capfd.readouterr().err
            return "hostile.py" in text and label in text

        pid = (tmp_path / "pid").read_text()
        label = f"job {job.id}, task stay, attempt 1, in child process {pid} for "
        await until(printed)  # the child writes into the same file, so a reading may lose a part
        await job.cancel()
