"""Bad inputs 44 to 51: tasks that return or raise bad values, or damage their process."""

import asyncio
import contextlib
import functools
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jsq import App, BadOption, Client, JobFailed
from jsq.task import AnyTask
from jsq.worker.timings import WorkerTimings
from tests.acceptance.bad_inputs import mentions, row, rows
from tests.acceptance.conftest import Command, Dying
from tests.apps import hostile
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

EXECUTORS = ("async", "thread", "process")


def declared(app: App, function: Callable[..., Any], executor: Any, **options: Any) -> AnyTask:
    """Declare a function as a task with an executor; without retries unless an option sets them."""
    options = {"retries": 0, "executor": executor, "name": function.__name__} | options

    @functools.wraps(function)
    async def on_the_loop(*args: Any) -> Any:
        return function(*args)

    task: AnyTask = app.task(**options)(on_the_loop if executor == "async" else function)
    return task


async def failure(task: AnyTask, *args: Any) -> JobFailed:
    """Submit a job of a task and return its failure."""
    with pytest.raises(JobFailed) as caught:
        await (await task.submit(*args)).result(30)
    return caught.value


# -- return values and errors ---------------------------------------------------------------------------


@rows({f"44-{executor}": executor for executor in EXECUTORS})
async def test_a_result_that_cannot_be_stored_is_dropped_and_the_job_succeeds(
    app: App, client: Client, working: Working, given: str
) -> None:
    give = declared(app, hostile.give, given, retries=3)
    kept = declared(app, hostile.give_bytes, given)

    async with working():
        kinds = ("generator", "socket", "lambda", "bytes", "5 MB")
        records = [await (await give.submit(kind)).wait(30) for kind in kinds]
        assert await (await kept.submit()).result(30) == b"\xff\x00"  # bytes can be stored with an annotation
    assert {(one.state, one.attempt) for one in records} == {("succeeded", 1)}
    generator, socket, function, raw, large = (one.result_dropped for one in records)
    assert "generator" in generator
    assert "socket" in socket
    assert "function" in function
    assert raw.startswith("give returned ")
    assert large.startswith(
        "the result of give must be 1,032,192 bytes at most, got 5,000,013; store it elsewhere"
    )
    assert not await client.dead_letters.list()


@rows({f"45-{executor}": executor for executor in EXECUTORS})
async def test_a_base_exception_fails_the_job_and_not_the_worker(
    app: App, working: Working, given: str
) -> None:
    leave, fine = declared(app, hostile.leave, given), declared(app, hostile.fine, given)
    kinds = ("SystemExit", "KeyboardInterrupt", "GeneratorExit", "Strange", "CancelledError")

    async with working(concurrency=1) as worker:
        failures = [await failure(leave, kind) for kind in kinds]
        pid = await (await fine.submit()).result(30)
        assert worker.is_ready()

    assert [(one.reason, one.error) for one in failures] == [("error", kind) for kind in kinds]
    assert (pid == os.getpid()) == (given != "process")


@rows({f"46-{executor}": executor for executor in EXECUTORS})
async def test_an_error_is_recorded_shortened_and_without_the_arguments(
    app: App, client: Client, working: Working, dying: Dying, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    caplog.set_level(logging.DEBUG)
    odd = declared(app, hostile.raise_odd, given, keep_arguments=False)
    declared(app, hostile.take_a_number, given, keep_arguments=False)

    async with working():
        mute, long, secret = [await failure(odd, kind, "hunter2") for kind in ("mute", "long", "secret")]
        job = await client.task("take_a_number").submit("hunter2")
        refused = await job.wait(30)
        await dying(4)

    assert mute.error == "Mute: <its message raised ZeroDivisionError>"
    assert long.error.startswith("ValueError: xxx")
    assert long.error.endswith("... (50000012 characters)")
    assert len(long.error) < 2_100
    assert secret.error == "RuntimeError: 8"
    assert "hostile.py" in secret.traceback
    assert (refused.reason, "number: Input should be a valid integer" in refused.error) == (
        "bad_arguments",
        True,
    )
    events = [event async for event in client.jobs.events(follow=False)]
    dead_letters = await client.dead_letters.list()
    assert "hunter2" not in f"{events}{[(one.error, one.reason) for one in dead_letters]}"
    assert not [line for line in caplog.records if "hunter2" in f"{vars(line)}"]


# -- damage to the process ------------------------------------------------------------------------------


@row("47-process")
async def test_the_death_of_a_child_process_counts_as_one_failure(app: App, working: Working) -> None:
    die, exhaust, fine = (
        declared(app, one, "process") for one in (hostile.die, hostile.exhaust, hostile.fine)
    )
    signs = {
        "exit": "exit code 7",
        "segfault": "SIGSEGV",
        "killed": "SIGKILL, as when the system is out of memory",
    }

    async with working(concurrency=1):
        for how, sign in signs.items():
            failed = await failure(die, how)
            assert failed.reason == "child_died"
            assert sign in failed.error
        failed = await failure(exhaust)
        assert (failed.reason, failed.error) == ("error", "MemoryError")
        assert await (await fine.submit()).result(30) != os.getpid()


@row("47-fork")
async def test_processes_forked_by_a_task_do_not_block_the_worker(app: App, working: Working) -> None:
    multiply, fine = declared(app, hostile.multiply, "process"), declared(app, hostile.fine, "process")
    forked: list[int] = []
    try:
        async with working(concurrency=1):
            forked = await (await multiply.submit(20)).result(30)
            assert await (await fine.submit()).result(30) not in forked
    finally:
        for pid in forked:
            os.kill(pid, signal.SIGKILL)  # raises unless each process outlived its job
    assert len(forked) == 20


CRASH = """
import os
from jsq import App
app = App()
app.queue("default", lease=1, max_crashes=2)

@app.task(retries=5)
def die() -> None:
    with open("runs", "a") as file:
        file.write("x")
    os._exit(1)

@app.task
def fine() -> int:
    return 1
"""


@row("47-thread")
async def test_a_job_that_crashes_workers_is_dead_lettered_at_the_crash_limit(
    client: Client, jsq: Command, tmp_path: Path
) -> None:
    jsq.write("shop.py", CRASH)
    async with jsq.running("worker", "shop:app", "--processes", "2", "--log-level", "error") as process:
        with pytest.raises(JobFailed) as caught:
            await (await client.task("die").submit()).result(60)
        assert await (await client.task("fine").submit()).result(60) == 1
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert (caught.value.reason, (tmp_path / "runs").read_text()) == ("crashed", "xx")


@row("48-process")
async def test_a_child_process_is_reset_after_each_job(app: App, working: Working, until: Until) -> None:
    meddle, surroundings = (
        declared(app, hostile.meddle, "process"),
        declared(app, hostile.surroundings, "process"),
    )
    fine = declared(app, hostile.fine, "process")

    async with working(concurrency=1):
        before = await (await surroundings.submit()).result(30)
        child = await (await fine.submit()).result(30)
        assert await (await meddle.submit()).result(30) == child
        after = await (await surroundings.submit()).result(30)
        assert await (await fine.submit()).result(30) == child
    assert after == before
    assert before[2] == os.environ["PATH"]


@row("48-thread")
async def test_changes_made_in_a_thread_affect_the_whole_worker(
    app: App, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LEFT_BEHIND", raising=False)

    @app.task
    def leave_behind() -> None:
        monkeypatch.setenv("LEFT_BEHIND", "yes")

    @app.task
    def find() -> str | None:
        return os.environ.get("LEFT_BEHIND")

    async with working():
        await (await leave_behind.submit()).result(60)
        assert await (await find.submit()).result(60) == "yes"


# -- functions that do not end --------------------------------------------------------------------------


@row("49-async")
async def test_a_coroutine_that_swallows_its_cancellation_is_abandoned(
    app: App,
    working: Working,
    until: Until,
    caplog: pytest.LogCaptureFixture,
) -> None:
    release = asyncio.Event()

    @app.task(retries=0, timeout=0.1)
    async def deaf() -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    fine = declared(app, hostile.fine, "async")
    async with working(concurrency=1, timings=WorkerTimings(unwind=0.1)) as worker:
        assert (await failure(deaf)).reason == "timeout"
        assert await (await fine.submit()).result(60) == os.getpid()
        [line] = [one for one in caplog.records if one.getMessage() == "task abandoned"]
        assert vars(line)["task"] == "deaf"
        release.set()
        await until(lambda: worker.dispatcher.occupied == 0)


@row("49-process")
async def test_a_function_that_swallows_its_interrupt_is_killed(
    app: App, working: Working, until: Until, tmp_path: Path
) -> None:
    stay = declared(app, hostile.stay, "process", timeout=2, hard_timeout=2.5)
    fine = declared(app, hostile.fine, "process")
    async with working(concurrency=1):
        await (await fine.submit()).result(
            30
        )  # start the child process before, because that takes time as well
        failed = await failure(stay, str(tmp_path / "pid"))
        assert (failed.reason, "timeout of 2 s" in failed.error) == ("timeout", True)
        pid = int((tmp_path / "pid").read_text())
        await until(lambda: not Path(f"/proc/{pid}").exists())


@row("50-blocked-loop")
async def test_a_blocked_event_loop_is_logged_with_the_task_and_keeps_its_lease(
    app: App, working: Working, caplog: pytest.LogCaptureFixture
) -> None:
    app.queue("default", lease=2)
    runs: list[float] = []

    @app.task
    async def blocks() -> float:
        runs.append(time.monotonic())
        time.sleep(3)  # noqa: ASYNC251 -- on purpose
        return time.monotonic() - runs[0]

    async with working():
        assert await (await blocks.submit()).result(60) >= 3
    lines = [one for one in caplog.records if one.getMessage() == "event loop stalled"]
    [line] = [one for one in lines if vars(one)["task"] == "blocks"]
    assert (line.levelname, len(runs)) == ("WARNING", 1)
    assert 1 <= vars(line)["seconds"] <= 3
    assert f"{Path(__file__).name}:" in vars(line)["at"]


@row("51-either-kind-of-function")
async def test_the_task_decorator_refuses_an_executor_that_does_not_fit(app: App, working: Working) -> None:
    @app.task
    def plain() -> str:
        return "plain"

    @app.task()
    async def coroutine() -> str:
        return "coroutine"

    wrong: tuple[tuple[Any, str, str], ...] = (
        ("async", "plain", "must be thread or process for a function that is not async def"),
        ("thread", "coroutine", "must be async or process for a coroutine function"),
    )
    for executor, name, limit in wrong:
        with pytest.raises(BadOption) as caught:
            app.task(executor=executor, name="other")(app.find(name).function)
        assert mentions(caught, "executor must ", f"got '{executor}'", limit)
    async with working():
        assert await (await plain.submit()).result(60) == "plain"
        assert await (await coroutine.submit()).result(60) == "coroutine"
