"""The start of a child process: it takes no time from the function, and happens in advance."""

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from jsq import App, JobExpired, JobFailed
from jsq.server import EmbeddedServer
from jsq.worker import run
from tests.apps import slow_import
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

WAIT = 60.0
"""Seconds after which a test fails: a child starts as a new interpreter."""

Imports = Callable[[], list[int]]


@pytest.fixture
async def app(server: EmbeddedServer, namespace: str) -> AsyncIterator[App]:
    async with App(server.url, namespace=namespace) as app:
        for task in slow_import.app.tasks.values():
            declared = task.declaration
            app.task(name=declared.name, retries=0, timeout=declared.timeout, executor="process")(
                task.function
            )
        yield app


@pytest.fixture
def importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Imports]:
    """Makes an import in a child take this many seconds; yields the process ids of the importing children."""

    def importing(seconds: float) -> Imports:
        file = tmp_path / "imports"
        file.touch()
        monkeypatch.setenv(slow_import.IMPORTS, str(file))
        monkeypatch.setenv(slow_import.IMPORT_SECONDS, str(seconds))
        return lambda: [int(line) for line in file.read_text().split()]

    return importing


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_timeout_does_not_count_the_start_of_the_child(
    app: App, working: Working, importing: Callable[[float], Imports]
) -> None:
    importing(1.5)  # three times the timeout
    async with working(concurrency=3):
        jobs = [await app.tasks["child_pid"].submit() for _ in range(3)]
        assert len({await job.result(WAIT) for job in jobs}) <= 3
        with pytest.raises(JobFailed) as caught:
            await (await app.tasks["sleep_long"].submit()).result(WAIT)
    assert caught.value.reason == "timeout"


async def test_a_child_is_started_in_advance_after_one_has_died(
    app: App, working: Working, importing: Callable[[float], Imports], until: Until
) -> None:
    imports = importing(0)
    async with working(concurrency=1):
        await until(lambda: len(imports()) == 1, 20)
        assert await (await app.tasks["child_pid"].submit()).result(WAIT) == imports()[0]
        with pytest.raises(JobFailed):
            await (await app.tasks["end_child"].submit()).result(WAIT)
        await until(lambda: len(imports()) == 2, 20)
        assert await (await app.tasks["child_pid"].submit()).result(WAIT) == imports()[1]
    assert not any(is_alive(pid) for pid in imports())


async def test_a_child_is_started_in_advance_while_another_one_runs(
    app: App, working: Working, importing: Callable[[float], Imports], until: Until
) -> None:
    imports = importing(0)
    async with working(concurrency=2):
        await until(lambda: len(imports()) == 1, 20)
        job = await app.tasks["child_pid"].submit()
        await until(lambda: len(imports()) == 2, 20)
        assert await job.result(WAIT) == imports()[0]


async def test_a_child_that_never_reaches_the_function_fails_the_job(
    app: App,
    working: Working,
    importing: Callable[[float], Imports],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "CHILD_START_SECONDS", 0.5)
    importing(60)
    async with working(concurrency=1):
        with pytest.raises(JobFailed, match=r"ChildDied: .* did not call it within 0\.5 s") as caught:
            await (await app.tasks["child_pid"].submit()).result(WAIT)
    assert caught.value.reason == "child_died"


async def test_a_deadline_applies_while_a_child_starts(
    app: App, working: Working, importing: Callable[[float], Imports]
) -> None:
    importing(60)
    async with working(concurrency=1):
        with pytest.raises(JobExpired):
            await (await app.tasks["child_pid"].options(deadline=1).submit()).result(WAIT)


async def test_a_stop_does_not_wait_for_the_start_of_a_child(
    app: App, working: Working, importing: Callable[[float], Imports], until: Until
) -> None:
    imports = importing(60)
    async with working(grace=0.1):
        job = await app.tasks["child_pid"].submit()

        async def is_running() -> bool:
            return (await job.status()).state == "running" and imports() != []

        await until(is_running, 20)
    assert (await job.status()).state in ("queued", "interrupted")


async def test_a_child_that_dies_during_imports_is_not_restarted_in_a_loop(
    app: App, working: Working, importing: Callable[[float], Imports], until: Until
) -> None:
    imports = importing(-1)
    async with working(concurrency=1):
        await until(lambda: len(imports()) == 1, 20)
        for _ in range(2):
            with pytest.raises(JobFailed, match="exit code 9"):
                await (await app.tasks["child_pid"].submit()).result(WAIT)
    # One child at the start, its own child for each job, one in advance, and one after it.
    assert len(imports()) <= 7
    assert os.getpid() not in imports()
