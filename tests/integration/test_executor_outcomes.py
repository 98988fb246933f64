"""However a task ends, its job has one recorded outcome, its worker survives, and the next job runs.

The same holds for a coroutine on the event loop, a thread and a process. A task that kills its process kills
a child or the worker. The latter is a crash, and another worker reclaims the job.
"""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jsq import App, Client, JobFailed, ResultDropped
from jsq.model.revision import FINAL_STATES
from jsq.server import EmbeddedServer
from tests.apps import outcomes
from tests.apps.outcomes import DEEDS, DROPPED, WAYS
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

ROOT = Path(__file__).parents[2]
WAIT = 60.0
"""Seconds after which a test fails: a child starts as a new interpreter."""


@pytest.fixture
async def app(server: EmbeddedServer, namespace: str) -> AsyncIterator[App]:
    """An app for one test, with the tasks of `tests.apps.outcomes`."""
    async with App(server.url, namespace=namespace) as app:
        for task in outcomes.app.tasks.values():
            declared = task.declaration
            app.task(name=declared.name, retries=0, executor=declared.executor)(task.function)
        yield app


@pytest.mark.parametrize("task", ["on_loop", "in_thread", "in_process", "on_loop_in_process"])
async def test_each_way_to_end_records_one_outcome(
    app: App,
    client: Client,
    working: Working,
    until: Until,
    task: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A test process cannot send a lone surrogate, which one of the logged exceptions contains.
    monkeypatch.setattr(logging.getLogger("jsq.job"), "disabled", True)
    async with working(concurrency=4):
        jobs = await client.task(task).submit_many([(way,) for way in WAYS])
        failed = await asyncio.gather(*(job.result(WAIT) for job in jobs), return_exceptions=True)
        # The worker and its executor survive.
        with pytest.raises(JobFailed, match="SystemExit: 3"):
            await (await client.task(task).submit("SystemExit")).result(WAIT)
    for (way, (_, reason, error_text)), error in zip(WAYS.items(), failed, strict=True):
        if reason == DROPPED:
            assert isinstance(error, ResultDropped), (way, error)
            assert error_text in error.why, (way, error)
            continue
        assert isinstance(error, JobFailed), (way, error)
        assert error.reason == reason, (way, error)
        # Python turns a StopIteration in a coroutine into its own error.
        wanted = (
            "RuntimeError: coroutine raised StopIteration"
            if "loop" in task and way == "StopIteration"
            else error_text
        )
        assert wanted in error.error, (way, error)
        assert len(error.error) < 2_100, way
        assert len(error.traceback) < 13_000, way
    broker = await client.broker()
    for job, (_, reason, _) in zip(jobs, WAYS.values(), strict=True):
        history = await broker.records.history(job.id)
        final = "succeeded" if reason == DROPPED else "failed"
        assert [event.state for event in history if event.state in FINAL_STATES] == [final]
        assert {event.revision.crashes for event in history} == {0}
    failures = sum(reason != DROPPED for _, reason, _ in WAYS.values())
    await until(lambda: each_has_a_dead_letter(client, failures + 1))


@pytest.mark.parametrize("task", ["on_loop", "in_thread", "in_process", "on_loop_in_process"])
async def test_a_traceback_starts_in_the_function_of_the_task(
    app: App, client: Client, working: Working, task: str
) -> None:
    async with working():
        job = await client.task(task).submit("starved")
        with pytest.raises(JobFailed) as caught:
            await job.result(WAIT)

    frames = [line for line in caught.value.traceback.splitlines() if line.startswith("  File ")]
    assert [frame.rpartition(" in ")[2] for frame in frames] == [task, "end_by", "starved"]


async def each_has_a_dead_letter(client: Client, count: int) -> bool:
    return len(await client.dead_letters.list()) == count


@pytest.mark.parametrize("part", [0, 1, 2])
async def test_changes_a_task_makes_to_its_process_do_not_reach_the_next_task(
    app: App, client: Client, working: Working, part: int
) -> None:
    async with working(concurrency=1):
        before = await (await client.task("read_surroundings").submit()).result(WAIT)
        for deed in [*DEEDS][part::3]:
            await (await client.task("do").submit(deed)).result(WAIT)
            assert await (await client.task("read_surroundings").submit()).result(WAIT) == before, deed
            if deed == "set_alarm":
                await asyncio.sleep(1.1)  # the time at which the timeout would have ended it
                assert await (await client.task("read_surroundings").submit()).result(WAIT) == before


async def test_a_task_that_closes_all_files_of_its_process_fails_only_itself(
    app: App, client: Client, working: Working
) -> None:
    async with working(concurrency=1):
        with pytest.raises(JobFailed) as caught:
            await (await client.task("close_everything").submit()).result(WAIT)
        assert caught.value.reason == "child_died"
        assert await (await client.task("read_surroundings").submit()).result(WAIT)


async def test_a_task_that_kills_its_worker_is_a_crash(
    server: EmbeddedServer, app: App, client: Client, until: Until
) -> None:
    app.queue("default", lease=1, max_crashes=1)
    await client.admin.provision(app.declared)
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jsq", "worker", "tests.apps.outcomes:app", "--processes", "2"),
        cwd=ROOT,
        env={**os.environ, "JSQ_URL": server.url, "JSQ_NAMESPACE": client.namespace},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        for task in ("die_in_thread", "die_on_loop"):
            job = await client.task(task).submit()
            with pytest.raises(JobFailed, match="died") as caught:
                await job.result(WAIT)
            assert caught.value.reason == "crashed"
            assert (await job.status()).crashes == 1
        # The supervisor has started other workers, which run jobs.
        with pytest.raises(JobFailed, match="SystemExit: 3"):
            await (await client.task("on_loop").submit("SystemExit")).result(WAIT)
    finally:
        worker.terminate()
        await asyncio.wait_for(worker.wait(), 40)
