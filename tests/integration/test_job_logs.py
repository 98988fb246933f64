"""The log lines of jobs: those of failures with a traceback, and those of the user's loggers with labels."""

import asyncio
import gc
import io
import json
import logging
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from jsq import App, Client, Context, CurrentJob, Snooze
from jsq.server import EmbeddedServer
from jsq.telemetry.logging import JobLabels, JsonLines, LineHandler, TextLines
from tests.apps import log_lines
from tests.helpers.workers import Working

WAIT = 60.0
"""Seconds after which a test fails: a child starts as a new interpreter."""


class Records(logging.Handler):
    """A handler of the user, which needs the records themselves."""

    def __init__(self, kept: list[logging.LogRecord]) -> None:
        super().__init__()
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(record)


class Lines:
    """The log lines of a test in both formats, and the records themselves."""

    def __init__(self) -> None:
        self.records: list[logging.LogRecord] = []
        self._json, self._text = io.StringIO(), io.StringIO()
        self.handlers = [LineHandler(), LineHandler(), Records(self.records)]
        for handler, form, stream in zip(
            self.handlers[:2], (JsonLines(), TextLines()), (self._json, self._text), strict=True
        ):
            assert isinstance(handler, LineHandler)
            handler.setFormatter(form)
            handler.setStream(stream)

    def json(self, message: str) -> list[dict[str, Any]]:
        """The JSON lines of a message."""
        self.handlers[0].flush()
        lines = [json.loads(line) for line in self._json.getvalue().splitlines()]
        return [line for line in lines if line["message"] == message]

    @property
    def text(self) -> str:
        self.handlers[1].flush()
        return self._text.getvalue()

    def of(self, message: str) -> list[logging.LogRecord]:
        return [record for record in self.records if record.getMessage() == message]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The log lines from INFO upwards."""
    root, lines = logging.getLogger(), Lines()
    level = root.level
    root.setLevel(logging.INFO)
    for handler in lines.handlers:
        root.addHandler(handler)
    yield lines
    for handler in lines.handlers:
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
async def app(server: EmbeddedServer, namespace: str) -> AsyncIterator[App]:
    """An app for one test, with the tasks of `tests.apps.log_lines`."""
    async with App(server.url, namespace=namespace) as app:
        for task in log_lines.app.tasks.values():
            declared = task.declaration
            app.task(
                name=declared.name, retries=declared.retry.retries, backoff="none", executor=declared.executor
            )(task.function)
        yield app


async def test_a_failure_is_logged_with_its_exception(app: App, working: Working, lines: Lines) -> None:
    async with working():
        await (await app.tasks["on_loop"].submit()).wait(WAIT)
        await (await app.tasks["in_thread"].submit()).wait(WAIT)

    [retried] = lines.of("job retrying")
    failures = lines.of("job failed")
    assert (retried.levelname, {record.levelname for record in failures}) == ("WARNING", {"ERROR"})
    for record in (retried, *failures):
        assert record.exc_info is not None
        kind, error, trace = record.exc_info
        assert kind is ExceptionGroup
        assert isinstance(error, ExceptionGroup)
        assert isinstance(error.__cause__, KeyError)
        assert trace is not None
        assert trace.tb_frame.f_code.co_name == record.__dict__["task"]  # no frame of jsq precedes it

    text = lines.text
    for part in ("KeyError: 'order 17'", "the stock was read at noon", "two faults (2 sub-exceptions)"):
        assert text.count(f" {part}") >= 3
        assert all(part in line["traceback"] for line in lines.json("job failed"))
    shown = text[text.index("job failed") :].splitlines()
    assert shown[1].startswith("  ")
    assert "/jsq/" not in text


async def test_a_failure_in_a_child_process_is_logged_with_its_traceback(
    app: App, working: Working, lines: Lines
) -> None:
    async with working():
        job = await app.tasks["in_process"].submit()
        await job.wait(WAIT)

    [failed] = lines.json("job failed")
    assert failed["traceback"].startswith("Traceback (most recent call last):\n")
    assert ", in in_process" in failed["traceback"]
    assert "two faults (2 sub-exceptions)" in failed["traceback"]
    [own] = lines.json("line with an exception")
    assert "KeyError: 'order 17'" in own["traceback"]
    assert {own["job"], lines.json("direct line")[0]["job"]} == {job.id}


async def test_lines_of_any_logger_carry_the_job_while_it_runs(
    app: App, working: Working, lines: Lines
) -> None:
    left: list[asyncio.Task[None]] = []
    over = asyncio.Event()

    async def outlive() -> None:
        await over.wait()
        logging.getLogger("pool").info("line after the job")

    @app.task(retries=0)
    async def open_pool(ctx: Context) -> None:
        left.append(asyncio.create_task(outlive()))
        logging.getLogger("pool").info("pool opened")

    @app.batch_task(size=2, wait=0.0)
    async def index(items: list[int]) -> None:
        logging.getLogger("index").info("indexed")

    async with working():
        jobs = [await app.tasks[name].submit() for name in ("on_loop", "in_thread")]
        for job in jobs:
            await job.wait(WAIT)
        opened = await open_pool.submit()
        await opened.wait(WAIT)
        over.set()
        await left[0]
        await (await index.submit(1)).wait(WAIT)

    labels = [(line["job"], line["task"], line["attempt"]) for line in lines.json("direct line")]
    assert sorted(labels, key=lambda one: (one[1], one[2])) == [
        (jobs[1].id, "in_thread", 1),
        (jobs[0].id, "mine", 1),
        (jobs[0].id, "mine", 2),
    ]
    for message in ("line of a subtask", "line of a thread"):
        assert {line["job"] for line in lines.json(message)} == {jobs[0].id}
        assert f"{message} job={jobs[0].id} task=on_loop attempt=2" in lines.text
    assert lines.json("pool opened")[0]["job"] == opened.id
    assert "job" not in lines.json("line after the job")[0]
    [indexed] = lines.json("indexed")
    assert (indexed["task"], indexed["jobs"]) == ("index", 1)


async def test_a_handler_of_the_user_gets_the_labels_by_a_filter(
    app: App, working: Working, lines: Lines
) -> None:
    for handler in lines.handlers[:2]:
        logging.getLogger().removeHandler(handler)
    lines.handlers[2].addFilter(JobLabels())

    @app.task(retries=0)
    async def say() -> None:
        logging.getLogger("shop").info("said")

    async with working():
        job = await say.submit()
        await job.wait(WAIT)
    assert [record.__dict__["job"] for record in lines.of("said")] == [job.id]


@pytest.mark.parametrize("deadline", [None, 60], ids=["straight", "general"])
async def test_a_timeout_is_logged_with_the_place_that_it_interrupted(
    app: App, client: Client, working: Working, lines: Lines, deadline: float | None
) -> None:
    @app.task(retries=0, timeout=0.05, deadline=deadline)
    async def hang() -> None:
        await asyncio.sleep(60)

    async with working():
        job = await hang.submit()
        record = await job.wait(WAIT)
    [line] = lines.json("job failed")
    for text in (line["traceback"], record.traceback):
        assert "await asyncio.sleep(60)" in text
        assert "/jsq/" not in text


async def test_a_snooze_is_logged_without_an_exception(app: App, working: Working, lines: Lines) -> None:
    @app.task(retries=0)
    async def later(ctx: Context) -> None:
        if ctx.job.previous_sequence == 0:
            raise Snooze(0.01, "busy")

    async with working():
        await (await later.submit()).wait(WAIT)
    [snoozed] = lines.of("job snoozed")
    assert (snoozed.levelname, snoozed.exc_info, snoozed.exc_text) == ("INFO", None, None)


@pytest.mark.parametrize("executor", ["straight", "loop", "thread", "hooked"])
async def test_a_failed_attempt_keeps_no_frame_alive(
    app: App, working: Working, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("jsq.job"), "propagate", False)  # pytest keeps all records

    class Held:
        """A value in a frame of the task."""

    found: list[weakref.ref[Held]] = []

    def fail() -> None:
        held = Held()
        found.append(weakref.ref(held))
        raise ValueError("no")

    @app.task(name="straight", retries=0)
    async def straight() -> None:
        fail()

    @app.task(name="loop", retries=0, deadline=60)
    async def on_loop() -> None:
        fail()

    @app.task(name="thread", retries=0)
    def in_thread() -> None:
        fail()

    @app.task(name="hooked", retries=0, middleware=[CurrentJob()])
    async def hooked() -> None:
        fail()

    async with working():
        gc.collect()
        gc.disable()
        try:
            await (await app.tasks[executor].submit()).wait(WAIT)
            await (await app.tasks[executor].submit()).wait(WAIT)  # it replaces what the first one left
            assert found[0]() is None
        finally:
            gc.enable()
