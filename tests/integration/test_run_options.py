"""The limits of an attempt, and the options of a submit about its executor and its callbacks."""

import asyncio
import os
from concurrent.futures import Future
from typing import Any

import pytest

from jsq import App, BadOption, Client, Context, JobFailed
from jsq.context import ContextLink
from jsq.model.job import Job, RareOptions
from jsq.server import EmbeddedServer
from jsq.worker import Worker
from jsq.worker.timings import WorkerTimings
from tests.apps import limits
from tests.helpers.conditions import Until
from tests.helpers.workers import Working, running_worker


def ignore(fraction: float, text: str) -> None: ...


def no_store(what: str, place: str, body: bytes) -> Future[bytes]:
    return Future()


# -- timeouts -------------------------------------------------------------------------------------------


async def test_a_task_without_a_timeout_keeps_its_slot_until_it_ends(
    app: App, working: Working, until: Until
) -> None:
    release = asyncio.Event()

    @app.task
    async def hung() -> None:
        await release.wait()

    @app.task
    async def other() -> int:
        return 1

    async with working(concurrency=1) as worker:
        job = await hung.submit()
        await until(lambda: worker.dispatcher.occupied == 1)
        waiting = await other.submit()
        assert (await job.status()).state == "running"
        assert (await waiting.status()).state == "queued"
        await job.cancel()
        assert await waiting.result(30) == 1


async def test_the_timeout_of_an_app_applies_to_its_tasks_that_declare_none(
    server: EmbeddedServer, namespace: str
) -> None:
    app = App(server.url, namespace=namespace, timeout=0.2)

    @app.task(retries=0)
    async def hung() -> None:
        await asyncio.sleep(60)

    @app.task(timeout=None)
    async def free() -> None: ...

    @app.task(hard_timeout=0.1)
    async def hard() -> None: ...

    assert (free.declaration.timeout, hard.declaration.timeout) == (None, 0.1)
    async with app, running_worker(Worker(app, timings=WorkerTimings(unwind=0.1))):
        with pytest.raises(JobFailed, match=r"ran longer than its timeout of 0\.2 s"):
            await (await hung.submit()).result(30)


async def test_a_hard_timeout_limits_the_timeout_of_a_submit(app: App, working: Working) -> None:
    @app.task(hard_timeout=0.2, retries=0)
    async def hung() -> None:
        await asyncio.sleep(60)

    @app.task(retries=0)
    async def unlimited() -> None:
        await asyncio.sleep(60)

    async with working():
        for asked in (hung.options(timeout=60), unlimited.options(hard_timeout=0.2)):
            with pytest.raises(JobFailed, match=r"ran longer than its hard timeout of 0\.2 s"):
                await (await asked.submit()).result(30)
    with pytest.raises(BadOption, match="hard_timeout must not be below the timeout, 2 s"):
        unlimited.options(timeout=2, hard_timeout=1)


@pytest.mark.parametrize("executor", ["async", "thread", "process"])
async def test_a_task_extends_its_timeout_from_each_executor(
    app: App, working: Working, executor: Any
) -> None:
    function = limits.extend_on_loop if executor == "async" else limits.extend
    task = app.task(executor=executor, timeout=1, retries=0, name="extend")(function)

    async with working():
        assert await (await task.submit(60, 1.5)).result(30) == 1.5


async def test_an_extended_timeout_ends_at_the_hard_timeout_and_at_the_deadline(
    app: App, working: Working
) -> None:
    @app.task(timeout=0.2, retries=0)
    async def extend(ctx: Context, seconds: float) -> None:
        ctx.extend_timeout(0.01)  # shortens nothing
        ctx.extend_timeout(seconds)
        await asyncio.sleep(60)

    async with working():
        cases = {
            "its timeout of 0.2 s, extended to 0.5 s": extend.submit(0.5),
            "its hard timeout of 0.4 s": extend.options(hard_timeout=0.4).submit(60),
            "its deadline passed while it ran": extend.options(deadline=0.8).submit(60),
        }
        for text, submit in cases.items():
            assert text in (await (await submit).wait(30)).error
    with pytest.raises(BadOption, match=r"timeout must be 0\.001 to"):
        Context(Job("a", "t"), token=1, worker="w", link=ContextLink(ignore, no_store)).extend_timeout(-1)


# -- the executor of a submit ---------------------------------------------------------------------------


async def test_a_submit_chooses_the_executor_of_its_job(app: App, client: Client, working: Working) -> None:
    where = app.task(limits.where)

    async with working():
        pid, thread = await (await where.submit()).result(30)
        assert (pid, thread) == (os.getpid(), False)
        child, main = await (await where.options(executor="process").submit()).result(30)
        assert (child != os.getpid(), main) == (True, True)
        pid, _ = await (await client.task("where").options(executor="thread").submit()).result(30)
        assert pid == os.getpid()
        job = await client.task("where").options(executor="async").submit()
        refused = await job.wait(30)
        assert (refused.reason, refused.attempt) == ("bad_arguments", 1)
        assert "executor must be thread or process" in refused.error
        assert (await job.status()).options == {"executor": "async"}
    with pytest.raises(BadOption, match="executor must be thread or process"):
        where.options(executor="async")


async def test_a_submit_of_a_batch_task_has_no_executor_and_no_limits_of_its_own(
    app: App, client: Client, working: Working
) -> None:
    @app.batch_task(size=2, wait=0.1)
    async def batch(items: list[int]) -> list[int]:
        return items

    for options in ({"executor": "thread"}, {"hard_timeout": 1}):
        with pytest.raises(BadOption, match="must not be set for a job of a batch task"):
            batch.options(**options)
    async with working():
        job = await client.task("batch").options(hard_timeout=0.001).submit(1)
        assert await job.result(30) == 1


# -- the callbacks of a submit --------------------------------------------------------------------------


async def test_the_callbacks_of_a_submit_replace_those_of_its_task(
    app: App, client: Client, working: Working, until: Until
) -> None:
    called: list[tuple[str, Any]] = []

    @app.task
    async def note(failure: Any) -> None:
        called.append(("note", failure["job"]))

    @app.task
    async def declared(failure: Any) -> None:
        called.append(("declared", failure["job"]))

    @app.task
    async def instead(number: int) -> int:
        called.append(("instead", number))
        return -number

    @app.task(retries=1, backoff=[0.01], on_dead=declared, on_failure=declared)
    async def broken(number: int) -> int:
        raise ValueError(number)

    async with working():
        job = await broken.options(on_failure=note, on_dead="note", fallback=instead, id="one").submit(7)
        record = await job.wait(30)
        assert await client.jobs.handle(record.fallback).result(30) == -7
        await until(lambda: len(called) == 4)
    assert sorted(called, key=str) == [("instead", 7), *[("note", "one")] * 3]
    assert record.options == {"on_failure": "note", "on_dead": "note", "fallback": "instead"}
    with pytest.raises(BadOption, match="fallback must be another task"):
        broken.options(fallback=broken)
    with pytest.raises(BadOption, match="on_dead must be a task, or the name of a task"):
        broken.options(on_dead=3)  # type: ignore[arg-type]  # that is what is tested


async def test_an_edit_changes_one_rare_option_and_keeps_the_others(app: App, client: Client) -> None:
    @app.task
    async def slow(number: int) -> None: ...

    job = await slow.options(delay=600, hard_timeout=60, on_dead="note").submit(1)
    edited = await job.edit(hard_timeout="2m", fallback="other")

    assert edited.options == {"hard_timeout": 120, "on_dead": "note", "fallback": "other"}
    with pytest.raises(BadOption, match="fallback must be another task"):
        await job.edit(fallback="slow")


def test_a_job_without_rare_options_has_none() -> None:
    assert RareOptions(hard_timeout=1.0).given == {"hard_timeout": 1.0}
    assert RareOptions().given == {}
