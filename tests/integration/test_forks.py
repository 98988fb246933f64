"""Tasks that fork processes, as `multiprocessing` does: their jobs end, and their worker is unharmed.

A forked process inherits the signal handlers of its parent and the descriptor that wakes the event loop. A
SIGTERM to a process of a pool must not reach the worker.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jsq import App, Client, JobFailed
from jsq.server import EmbeddedServer
from tests.apps.forking import AWAITED, FORGOTTEN, as_future
from tests.helpers.conditions import Until
from tests.helpers.repository import ROOT
from tests.helpers.workers import Working, exit_code

WAIT = 60.0

ENDS = {
    "use_pool": 3,
    "end_fork": -signal.SIGTERM,
    "end_fork_on_loop": -signal.SIGTERM,
    "log_in_fork": 0,
    "use_pool_in_process": 3,
    "end_fork_in_process": -signal.SIGTERM,
    "log_in_fork_in_process": 0,
}
"""Tasks that fork, and their results: an exit code, or the sum of a pool."""


async def test_a_signal_to_a_process_that_a_task_has_forked_does_not_reach_the_worker(
    server: EmbeddedServer, client: Client, tmp_path: Path, until: Until
) -> None:
    await client.admin.provision()
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(  # noqa: ASYNC220 -- it returns at once
            [sys.executable, "-m", "jsq", "worker", "tests.apps.forking:app", "--grace", "5"],
            cwd=ROOT,
            env={**os.environ, "JSQ_URL": server.url, "JSQ_NAMESPACE": client.namespace},
            stderr=log,
            start_new_session=True,
        )
    try:
        jobs = [await client.task(task).submit() for task in ENDS]
        results = await asyncio.gather(*(job.result(WAIT) for job in jobs))
        assert dict(zip(ENDS, results, strict=True)) == ENDS
        assert {(await job.status()).attempt for job in jobs} == {1}
        # A coroutine that a plain function returns is awaited before its dependencies are cleaned up.
        for task in ("use_pools", "use_pools_in_process"):
            assert await (await client.task(task).submit()).result(WAIT) == [True, True, "seven"]
        # The processes that a task has started end with the child that is killed at the hard timeout.
        forked = tmp_path / "forked"
        with pytest.raises(JobFailed) as caught:
            await (await client.task("leave_forks").submit(str(forked))).result(WAIT)
        assert caught.value.reason == "timeout"
        await until(lambda: not is_running(int(forked.read_text())))
        assert worker.poll() is None
        worker.send_signal(signal.SIGTERM)
        assert await exit_code(worker) == 0
    finally:
        worker.kill()
        worker.wait()
    text = (tmp_path / "log").read_text()
    assert text.count("from the fork") == 2, text


def is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for its parent."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
async def app(server: EmbeddedServer, namespace: str) -> AsyncIterator[App]:
    """An app for one test, with the tasks of `tests.apps.forking` that return awaitables."""
    async with App(server.url, namespace=namespace) as app:
        for task in (*AWAITED, *FORGOTTEN):
            app.task(name=task.name, retries=0, executor=task.declaration.executor)(task.function)
        yield app


async def test_what_a_plain_function_returns_is_awaited(app: App, client: Client, working: Working) -> None:
    async with working(concurrency=1):
        jobs = [await client.task(task.name).submit(4) for task in AWAITED]
        results = await asyncio.gather(*(job.result(WAIT) for job in jobs), return_exceptions=True)

    assert dict(zip((task.name for task in AWAITED), results, strict=True)) == {
        task.name: 8 for task in AWAITED
    }


async def test_a_coroutine_function_that_awaits_nothing_fails(
    app: App, client: Client, working: Working
) -> None:
    async with working(concurrency=1):
        for task in FORGOTTEN:
            with pytest.raises(
                JobFailed, match="forgotten returned a coroutine that it did not await"
            ) as caught:
                await (await client.task(task.name).submit(4)).result(WAIT)
            assert caught.value.reason == "bad_result"


async def test_a_batch_function_behind_a_plain_decorator_is_awaited(app: App, working: Working) -> None:
    @app.batch_task(size=2, wait=0.05, retries=0)
    @as_future
    async def double_all(items: list[int]) -> list[int]:
        return [2 * item for item in items]

    async with working(concurrency=1):
        jobs = await double_all.submit_many([(1,), (2,)])
        assert [await job.result(WAIT) for job in jobs] == [2, 4]
