"""Lifespan, middleware and dependencies together: on the loop, in a thread and in a child process."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from jsq import App, ContextVars, JobFailed
from jsq.server import EmbeddedServer
from tests.apps.hooks import tenant
from tests.helpers.conditions import Until
from tests.helpers.forkserver import ForkedProcess, ForkServer
from tests.helpers.repository import ROOT


class HookedWorkers:
    """Starts workers of `tests.apps.hooks`, whose notes are in the file `notes`."""

    def __init__(self, server: EmbeddedServer, namespace: str, folder: Path, forks: ForkServer) -> None:
        self.notes = folder / "notes"
        self._log = folder / "log"
        self._forks = forks
        self._variables = {"JSQ_URL": server.url, "JSQ_NAMESPACE": namespace, "HOOKS_FILE": str(self.notes)}

    def start(self, *arguments: str, **more: str) -> ForkedProcess:
        words = ["worker", "tests.apps.hooks:app", *arguments]
        with self._log.open("wb") as log:
            return self._forks.spawn(words, {**os.environ, **self._variables, **more}, ROOT, log.fileno())

    async def run_burst(self, **more: str) -> tuple[int, str]:
        """Run a worker until its queue is empty; returns its exit code and its stderr."""
        return await self.ended(self.start("--burst", **more))

    async def ended(self, process: ForkedProcess) -> tuple[int, str]:
        """Wait for the worker that was started last; returns its exit code and its stderr."""
        code = await asyncio.to_thread(process.wait, 60)
        return code, self._log.read_text()


@pytest.fixture
def hooked(server: EmbeddedServer, namespace: str, tmp_path: Path, forks: ForkServer) -> HookedWorkers:
    return HookedWorkers(server, namespace, tmp_path, forks)


async def test_every_executor_runs_tasks_inside_their_hooks(
    server: EmbeddedServer, namespace: str, hooked: HookedWorkers
) -> None:
    notes = hooked.notes
    async with App(server.url, namespace=namespace, middleware=[ContextVars(tenant)]) as app:
        tenant.set("seven")
        names = ["on_loop", "in_thread", "in_child", "in_child_async", "in_child"]
        jobs = [await app.client.task(name).submit("hello") for name in names]

        code, printed = await hooked.run_burst()

        assert code == 0, printed
        results: list[Any] = [await job.result(5) for job in jobs]
    on_loop, in_thread, in_child, in_child_async, again = results
    worker = on_loop[5]
    assert on_loop == ["hello", "pool of hooks", True, True, "seven", worker, "around"]
    assert in_thread == ["hello", "pool of hooks", 1, jobs[1].id, "seven", "jsq-task", "around"]
    assert in_child[:6] == ["hello", "pool of hooks", 1, jobs[2].id, "seven", "MainThread"]
    assert again[:6] == ["hello", "pool of hooks", 1, jobs[4].id, "seven", "MainThread"]
    assert in_child_async[:5] == ["hello", "pool of hooks", True, True, "seven"]
    children = {in_child[6], again[6], in_child_async[5]}
    assert worker not in children
    # Each process enters the lifespan once, and leaves it.
    lines = [line.split() for line in notes.read_text().splitlines()]
    entered = [int(pid) for word, pid in lines if word == "enter"]
    assert sorted(entered) == sorted({worker, *entered})
    assert children <= set(entered)
    assert sorted(entered) == sorted(int(pid) for word, pid in lines if word == "leave")


async def test_a_lifespan_that_cannot_start_ends_the_worker_and_takes_no_job(
    server: EmbeddedServer, namespace: str, hooked: HookedWorkers
) -> None:
    async with App(server.url, namespace=namespace) as app:
        job = await app.client.task("on_loop").submit("hello")

        code, printed = await hooked.run_burst(HOOKS_START="fails")

        assert code == 1
        last = printed.splitlines()[-1]
        assert "the lifespan of the App failed to start: RuntimeError: no database" in last
        assert "Traceback" not in printed
        assert (await job.status()).state == "queued"


async def test_a_child_with_an_event_loop_can_be_interrupted_and_is_used_again(
    server: EmbeddedServer, namespace: str, hooked: HookedWorkers
) -> None:
    notes = hooked.notes
    async with App(server.url, namespace=namespace) as app:
        names = ["hang_in_child_async", "hang_in_child", "fail_in_child", "in_child"]
        jobs = [await app.client.task(name).submit(*(["a"] * (name == "in_child"))) for name in names]

        code, printed = await hooked.run_burst(JSQ_CONCURRENCY="1")

        assert code == 0, printed
        for job, error in zip(jobs, ["TaskTimeout", "TaskTimeout", "LookupError: not here"], strict=False):
            with pytest.raises(JobFailed, match=error):
                await job.result(5)
        found = await jobs[3].result(5)
    lines = [line.split() for line in notes.read_text().splitlines()]
    children = [int(pid) for word, pid in lines if word in ("cancelled", "interrupted")]
    assert children == [found[6]] * 2


async def test_a_lifespan_lives_on_while_its_child_waits_for_a_job(
    server: EmbeddedServer, namespace: str, hooked: HookedWorkers, until: Until
) -> None:
    notes = hooked.notes
    async with App(server.url, namespace=namespace) as app:
        worker = hooked.start(HOOKS_BEAT="1")
        child = (await (await app.client.task("in_child").submit("a")).result(30))[6]

        def beats() -> int:
            return notes.read_text().splitlines().count(f"beat {child}")

        before = beats()
        await until(lambda: beats() > before + 10)
        worker.terminate()
        code, printed = await hooked.ended(worker)

    assert code == 0, printed
    assert f"leave {child}" in notes.read_text()


async def test_a_lifespan_that_cannot_start_in_a_child_fails_the_attempt(
    server: EmbeddedServer, namespace: str, hooked: HookedWorkers
) -> None:
    async with App(server.url, namespace=namespace) as app:
        names = ("in_child_async", "on_loop")
        jobs = [await app.client.task(name).options(retries=0).submit("a") for name in names]

        code, printed = await hooked.run_burst(HOOKS_START="fails in children")

        assert code == 0, printed
        with pytest.raises(JobFailed, match=r"LifespanFailed: .* failed to start: RuntimeError: no database"):
            await jobs[0].result(5)
        assert (await jobs[1].result(5))[0] == "a"


async def test_a_killed_worker_loses_no_job_whose_hooks_raise(
    server: EmbeddedServer, namespace: str, hooked: HookedWorkers
) -> None:
    notes = hooked.notes
    async with App(server.url, namespace=namespace) as app:
        job = await app.client.task("kill_worker").submit()
        killed = hooked.start()
        code, _ = await hooked.ended(killed)
        assert code == -signal.SIGKILL

        second = hooked.start()
        assert await job.result(30) == 3
        second.terminate()
        code, printed = await hooked.ended(second)

        assert code == 0, printed
        record = await job.status()
        assert (record.state, record.failures, record.crashes) == ("succeeded", 1, 1)
    lines = [line for line in notes.read_text().splitlines() if not line.startswith(("enter", "leave"))]
    assert lines == ["attempt 1", "settled 1", "attempt 2", "attempt 3", "break", "settled 3"]
    assert printed.count("middleware failed") == 1
    assert "clean-up failed" in printed


async def test_a_middleware_gets_an_outcome_again_if_the_worker_died_before_it_settled(
    server: EmbeddedServer, namespace: str, hooked: HookedWorkers, until: Until
) -> None:
    notes = hooked.notes
    async with App(server.url, namespace=namespace) as app:
        job = await app.client.task("record_then_die").submit("a")
        killed = hooked.start()
        code, _ = await hooked.ended(killed)
        assert code == -signal.SIGKILL
        assert (await job.status()).state == "succeeded"

        second = hooked.start()
        await until(lambda: notes.read_text().count("settled") == 1)
        second.terminate()
        await hooked.ended(second)

    lines = [line for line in notes.read_text().splitlines() if not line.startswith(("enter", "leave"))]
    assert lines == ["run a", "succeeded a around", "succeeded a around", "settled 1"]
