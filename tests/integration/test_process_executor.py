"""Tasks in their own processes: however a child ends, its job has one outcome and the worker survives."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from jsq import App, BadOption, JobFailed, ResultDropped
from jsq.server import EmbeddedServer
from jsq.worker import Worker
from tests.apps import children
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

WAIT = 60.0
"""Seconds after which a test fails: a child starts as a new interpreter."""


@pytest.fixture
async def app(server: EmbeddedServer, namespace: str) -> AsyncIterator[App]:
    """An app for one test, with the tasks of `tests.apps.children`."""
    async with App(server.url, namespace=namespace) as app:
        for task in children.app.tasks.values():
            declared = task.declaration
            app.task(
                name=declared.name,
                retries=declared.retry.retries,
                timeout=declared.timeout,
                hard_timeout=declared.hard_timeout,
                executor=declared.executor,
            )(task.function)
        yield app


async def ran(app: App, name: str, *args: object) -> Any:
    return await (await app.tasks[name].submit(*args)).result(WAIT)


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_function_runs_in_another_process(app: App, working: Working) -> None:
    async with working(concurrency=1):
        assert await ran(app, "add", 1, 2) == 3
        assert await ran(app, "add_async", 1, 2) == 3
        child = await ran(app, "pid")
        assert child != os.getpid()
        assert await ran(app, "pid") == child
    assert not is_alive(child)


DEATHS = {
    "exit": "exit code 7",
    "segfault": "SIGSEGV",
    "killed": "SIGKILL, as when the system is out of memory",
    "holding": "exit code 7",
}
"""How a child may end itself, and the error of its job."""


async def test_a_child_that_dies_is_one_failure_and_the_worker_survives(app: App, working: Working) -> None:
    async with working(concurrency=1):
        for how, message in DEATHS.items():
            with pytest.raises(JobFailed, match=message) as caught:
                await ran(app, "die", how)
            assert caught.value.reason == "child_died"
        assert await ran(app, "add", 1, 2) == 3


async def test_the_death_of_a_child_is_retried_like_any_failure(app: App, working: Working) -> None:
    retried = app.task(name="again", executor="process", retries=2, backoff="none")(children.die.function)

    async with working(concurrency=1):
        job = await retried.submit("exit")
        with pytest.raises(JobFailed):
            await job.result(WAIT)
    assert (await job.status()).failures == 2


async def test_an_idle_child_that_is_killed_is_replaced(app: App, working: Working, until: Until) -> None:
    async with working(concurrency=1):
        child = await ran(app, "pid")
        os.kill(child, 9)
        await until(lambda: not is_alive(child))
        assert await ran(app, "pid") != child


async def test_a_base_exception_in_a_child_fails_the_job(app: App, working: Working) -> None:
    async with working(concurrency=1):
        for kind in ("SystemExit", "KeyboardInterrupt", "MemoryError"):
            with pytest.raises(JobFailed, match=kind) as caught:
                await ran(app, "leave", kind)
            assert caught.value.reason == "error"
        assert await ran(app, "add", 1, 2) == 3


async def test_retry_snooze_and_reject_work_in_a_child(app: App, working: Working, until: Until) -> None:
    async with working(concurrency=1):
        with pytest.raises(JobFailed, match="Reject: never") as caught:
            await ran(app, "signalled", "Reject")
        assert caught.value.reason == "rejected"
        snoozed = await app.tasks["signalled"].submit("Snooze")

        async def is_snoozed() -> bool:
            return (await snoozed.status()).state == "snoozed"

        await until(is_snoozed)


async def test_a_result_of_a_child_that_cannot_be_stored_is_dropped(app: App, working: Working) -> None:
    async with working(concurrency=1):
        for kind, message in (("object", "object"), ("large", "2,000,0"), ("lambda", "func")):
            with pytest.raises(ResultDropped, match=message):
                await ran(app, "give", kind)


async def test_an_error_of_the_child_is_the_error_of_the_job(app: App, working: Working) -> None:
    """An exception that cannot be pickled, invalid arguments, and a checkpoint that is too large."""
    async with working(concurrency=1):
        with pytest.raises(JobFailed, match="Unpicklable: cannot be sent") as caught:
            await ran(app, "raise_unpicklable")
        assert "raise Unpicklable(1, 2)" in caught.value.traceback
        job = await app.client.task("add").submit(a="x", b=1)
        with pytest.raises(JobFailed) as caught:
            await job.result(WAIT)
        assert caught.value.reason == "bad_arguments"
        with pytest.raises(JobFailed, match=r"checkpoint must .*got '70,002 bytes'"):
            await ran(app, "climb_too_high")


async def test_a_call_that_holds_the_gil_longer_than_the_lease_keeps_its_job(
    app: App, working: Working
) -> None:
    app.queue("default", lease=1)

    async with working(concurrency=1), working(concurrency=1):
        job = await app.tasks["hold_the_lock"].submit(3)
        assert await job.result(WAIT) == "held"
        record = await job.status()
    assert (record.attempt, record.crashes) == (1, 0)


async def test_a_task_may_clean_up_at_its_timeout(app: App, working: Working, tmp_path: Path) -> None:
    file = tmp_path / "file"

    async with working(concurrency=1):
        await ran(app, "pid")
        with pytest.raises(JobFailed) as caught:
            await ran(app, "clean_up", str(file))
        assert caught.value.reason == "timeout"
        assert file.read_text() == "clean"


async def test_a_task_is_killed_at_its_hard_timeout(
    app: App, working: Working, tmp_path: Path, until: Until
) -> None:
    file = tmp_path / "file"

    async with working(concurrency=1):
        await ran(app, "pid")
        start_time = time.monotonic()
        with pytest.raises(JobFailed) as caught:
            await ran(app, "stubborn", str(file))
        assert caught.value.reason == "timeout"
        assert time.monotonic() - start_time < 4  # less than a task without a hard timeout gets
        await until(lambda: not is_alive(int(file.read_text())))
        assert await ran(app, "add", 1, 2) == 3


async def test_a_cancelled_job_ends_its_function_in_the_child(
    app: App, working: Working, tmp_path: Path, until: Until
) -> None:
    file = tmp_path / "file"

    async with working(concurrency=1):
        job = await app.tasks["nap"].submit(str(file))
        await until(lambda: file.exists() and file.read_text(), WAIT)
        assert await job.cancel()

        async def is_cancelled() -> bool:
            return (await job.status()).state == "cancelled"

        await until(is_cancelled)


async def test_the_children_of_a_killed_worker_end(
    server: EmbeddedServer, app: App, tmp_path: Path, until: Until
) -> None:
    file = tmp_path / "file"
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jsq", "worker", "tests.apps.children:app"),
        env={**os.environ, "JSQ_URL": server.url, "JSQ_NAMESPACE": app.namespace},
        stderr=asyncio.subprocess.DEVNULL,
    )
    await app.tasks["nap"].submit(str(file))
    await until(lambda: file.exists() and file.read_text(), WAIT)

    worker.kill()
    await worker.wait()

    await until(lambda: not is_alive(int(file.read_text())))


async def test_a_child_reports_progress_and_logs_like_the_worker(
    app: App, working: Working, tmp_path: Path, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    caplog.set_level(logging.INFO)

    async with working(concurrency=1) as worker:
        job = await app.tasks["describe_context"].submit(str(file))

        async def is_half() -> bool:
            return (await job.status()).progress == 0.5

        await until(is_half, WAIT)
        file.touch()
        assert await job.result(WAIT) == [job.id, 1, True, worker.name]
    lines = {line.getMessage(): line for line in caplog.records}
    assert vars(lines["from the child"])["job"] == job.id
    assert lines["of a library"].name == "theirs"


async def test_a_child_is_replaced_after_its_maximum_number_of_tasks(app: App, working: Working) -> None:
    async with working(concurrency=1, child_tasks=2):
        pids = [await ran(app, "pid") for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


async def test_a_child_that_has_grown_too_large_is_replaced(app: App, working: Working) -> None:
    async with working(concurrency=1, child_memory=200):
        small = [await ran(app, "grow", 1) for _ in range(2)]
        large = await ran(app, "grow", 250)
        after = await ran(app, "pid")
    assert small[0] == small[1] == large != after


async def test_as_many_children_as_slots_run_at_once(app: App, working: Working, tmp_path: Path) -> None:
    async with working(concurrency=2) as worker:
        jobs = [await app.tasks["pid"].submit() for _ in range(10)]
        pids = {await job.result(WAIT) for job in jobs}
        assert isinstance(worker, Worker)
    assert len(pids) <= 2


def test_a_function_that_a_child_cannot_import_is_refused() -> None:
    def inner() -> None: ...

    with pytest.raises(BadOption, match=r"inner. has no name in a module"):
        App().task(executor="process")(inner)
    with pytest.raises(BadOption, match="has no name in a module"):
        App().task(name="l", executor="process")(lambda: None)


@pytest.mark.parametrize("executor", ["fork", "async", "PROCESS", 1])
def test_an_executor_that_cannot_run_a_function_is_refused(executor: Any) -> None:
    with pytest.raises(BadOption, match="executor must "):
        App().task(executor=executor)(children.add.function)


def test_a_coroutine_function_cannot_run_in_a_thread() -> None:
    with pytest.raises(BadOption, match=r"executor must .*got 'thread'"):
        App().task(executor="thread")(children.add_async.function)


def test_a_hard_timeout_below_the_timeout_is_refused() -> None:
    with pytest.raises(BadOption, match=r"hard_timeout must not be below the timeout"):
        App().task(timeout=2, hard_timeout=1)


async def test_a_checkpoint_of_a_child_survives_its_death(app: App, working: Working) -> None:
    async with working(concurrency=1):
        for name in ("climb", "climb_async"):
            assert await ran(app, name) == [2, {"step": 1}]


async def test_a_step_of_a_child_runs_once_though_the_child_dies(
    app: App, working: Working, tmp_path: Path
) -> None:
    file = tmp_path / "effects"
    async with working(concurrency=1):
        assert await ran(app, "buy", str(file)) == ["receipt"]
    assert file.read_text() == "charged\n"


async def test_a_step_during_which_a_child_died_is_unknown(
    app: App, working: Working, tmp_path: Path
) -> None:
    file = tmp_path / "effects"
    async with working(concurrency=1):
        with pytest.raises(JobFailed, match="started by attempt 1 and has no known end") as caught:
            await ran(app, "buy_and_die", str(file))
    assert caught.value.reason == "step_unknown"
    assert file.read_text() == "charged\n"
