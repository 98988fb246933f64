"""Dependencies: where providers run, what they share, when they clean up, and what a worker records then."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import pytest

from jsq import (
    INJECTED,
    App,
    BadArguments,
    Context,
    CurrentJob,
    Depends,
    JobFailed,
    current_job,
)
from jsq.server import EmbeddedServer
from jsq.worker import Worker
from tests.helpers.conditions import Until
from tests.helpers.workers import running_worker

Build = Callable[..., App]

notes: list[Any] = []
"""The calls of the providers below; the tests of this file clear it."""


@pytest.fixture(autouse=True)
def _clear() -> None:
    notes.clear()


@pytest.fixture
def build(server: EmbeddedServer, namespace: str) -> Build:
    """Makes an App of the test's namespace with the given options."""
    return lambda **options: App(server.url, namespace=namespace, **options)


def where() -> str:
    """The name of the thread that calls, or `loop`."""
    thread = threading.current_thread()
    return "loop" if thread is threading.main_thread() else thread.name


def settings() -> dict[str, int]:
    notes.append(("settings", where()))
    return {"size": 3}


async def pool(config: Annotated[dict[str, int], Depends(settings)], ctx: Context) -> AsyncIterator[str]:
    notes.append(("open pool", where()))
    yield f"pool of {config['size']} for {ctx.task}"
    notes.append(("close pool", where()))


def session(source: Annotated[str, Depends(pool)], *, echo: bool = False) -> Iterator[str]:
    notes.append(("open session", where()))
    try:
        yield f"session of {source}"
    except Exception as error:
        notes.append(("rollback", type(error).__name__))
        raise
    finally:
        notes.append(("close session", where()))


Settings = Annotated[dict[str, int], Depends(settings)]
Pool = Annotated[str, Depends(pool)]
Session = Annotated[str, Depends(session)]


async def test_a_coroutine_function_gets_all_dependencies_on_the_loop(build: Build) -> None:
    app = build()

    @app.task
    async def work(
        ctx: Context, db: Session, config: Settings, word: str, *, other: Pool = INJECTED
    ) -> list[Any]:
        notes.append("run")
        return [db, config, word, other]

    async with app, running_worker(Worker(app)):
        found = await (await app.client.task(work.name).submit(word="a")).result(10)

    assert found == ["session of pool of 3 for work", {"size": 3}, "a", "pool of 3 for work"]
    assert notes == [
        ("settings", "loop"),
        ("open pool", "loop"),
        ("open session", "loop"),
        "run",
        ("close session", "loop"),
        ("close pool", "loop"),
    ]


async def test_a_dependency_may_be_anywhere_among_the_parameters(build: Build) -> None:
    app = build()

    @app.task
    async def first(config: Settings, word: str, other: str = "b") -> list[Any]:
        return [config, word, other]

    @app.task
    def many(ctx: Context, config: Settings, *words: str, sep: str = "-", **more: int) -> list[Any]:
        return [config, sep.join(words), more, ctx.attempt]

    async with app, running_worker(Worker(app)):
        found = await (await app.client.task(first.name).submit("a")).result(10)
        assert found == [{"size": 3}, "a", "b"]
        found = await (await app.client.task(many.name).submit("a", "b", sep="+", x=1)).result(10)
        assert found == [{"size": 3}, "a+b", {"x": 1}, 1]


async def test_a_plain_function_gets_plain_dependencies_in_its_own_thread(build: Build) -> None:
    app = build(middleware=[CurrentJob()])

    def in_thread() -> Iterator[list[int]]:
        seen = [threading.get_ident()]
        yield seen
        notes.append(("same thread", seen == [threading.get_ident()], current_job().attempt))

    @app.task
    def work(
        word: str, db: Session = INJECTED, ident: Annotated[list[int], Depends(in_thread)] = INJECTED
    ) -> list[Any]:
        return [word, db, ident == [threading.get_ident()]]

    async with app, running_worker(Worker(app)):
        found = await (await work.submit("a")).result(10)

    assert found == ["a", "session of pool of 3 for work", True]
    assert notes == [
        ("settings", "loop"),  # the pool needs it, which is opened on the loop
        ("open pool", "loop"),
        ("open session", "jsq-task"),
        ("same thread", True, 1),
        ("close session", "jsq-task"),
        ("close pool", "loop"),
    ]


async def test_a_clean_up_sees_the_error_of_the_function_and_each_attempt_has_its_own(build: Build) -> None:
    app = build()

    @app.task(retries=1, backoff=[0.01])
    async def fail(ctx: Context, db: Session = INJECTED) -> None:
        raise KeyError(ctx.attempt)

    async with app, running_worker(Worker(app)):
        with pytest.raises(JobFailed, match="KeyError: 2") as caught:
            await (await fail.submit()).result(10)

    assert "clean_up" not in caught.value.traceback
    once = [
        *(("settings", "loop"), ("open pool", "loop"), ("open session", "loop")),
        *(("rollback", "KeyError"), ("close session", "loop")),
    ]
    assert notes == once * 2  # the pool does not reach its close: the error is raised at its yield


async def test_an_error_of_a_clean_up_is_logged_and_changes_no_outcome(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    app = build()

    def broken() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise OSError("cannot close")

    def twice() -> Iterator[int]:
        yield 1
        yield 2

    def swallowing() -> Iterator[int]:
        try:
            yield 1
        except ValueError:
            notes.append("swallowed")

    @app.task(retries=0)
    async def work(
        fails: bool,
        a: Annotated[int, Depends(broken)] = INJECTED,
        b: Annotated[int, Depends(twice)] = INJECTED,
        c: Annotated[int, Depends(swallowing)] = INJECTED,
    ) -> str:
        if fails:
            raise ValueError("no")
        return "done"

    @app.task(retries=0)
    def work_in_thread(a: Annotated[int, Depends(broken)] = INJECTED) -> str:
        return "done"

    with caplog.at_level(logging.ERROR):
        async with app, running_worker(Worker(app)):
            assert await (await work.submit(False)).result(10) == "done"
            assert await (await work_in_thread.submit()).result(10) == "done"
            logged = [vars(record) for record in caplog.records if record.message == "clean-up failed"]
            with pytest.raises(JobFailed, match="ValueError: no"):
                await (await work.submit(True)).result(10)

    assert [one["provider"].rpartition(".")[2] for one in logged] == ["twice", "broken", "broken"]
    assert "swallowed" in notes


async def test_an_error_of_a_provider_is_an_error_of_the_attempt_and_earlier_ones_clean_up(
    build: Build,
) -> None:
    app = build()

    def broken(source: Session) -> int:
        raise ConnectionError("no broker")

    async def empty() -> AsyncIterator[int]:
        if notes is None:
            yield 1

    @app.task(retries=0)
    async def work(value: Annotated[int, Depends(broken)]) -> None:
        notes.append("run")

    @app.task(retries=0)
    def work_in_thread(value: Annotated[int, Depends(broken)]) -> None:
        notes.append("run")

    @app.task(retries=0)
    async def nothing(value: Annotated[int, Depends(empty)]) -> None: ...

    async with app, running_worker(Worker(app)):
        for task in (work, work_in_thread):
            notes.clear()
            with pytest.raises(JobFailed, match="ConnectionError: no broker"):
                await (await app.client.task(task.name).submit()).result(10)
            assert "run" not in notes
            assert ("rollback", "ConnectionError") in notes
        with pytest.raises(JobFailed, match="empty yielded no value"):
            await (await app.client.task("nothing").submit()).result(10)


async def test_a_dependency_is_shared_within_a_job_unless_its_cache_is_off(build: Build) -> None:
    app = build()

    def number() -> object:
        return object()

    def shared(value: Annotated[object, Depends(number)]) -> object:
        return value

    @app.task
    async def work(
        a: Annotated[object, Depends(number)] = INJECTED,
        b: Annotated[object, Depends(shared)] = INJECTED,
        c: Annotated[object, Depends(number, cache=False)] = INJECTED,
    ) -> list[Any]:
        return [a is b, a is c, id(a)]

    async with app, running_worker(Worker(app)):
        first = await (await work.submit()).result(10)
    assert first[:2] == [True, False]


async def test_a_provider_can_be_replaced_and_is_back_afterwards(build: Build) -> None:
    app = build()

    async def fake(word: Annotated[str, Depends(lambda: "fake")]) -> str:
        return f"{word} pool"

    @app.task
    def work(db: Session = INJECTED) -> str:
        return db

    async with app, running_worker(Worker(app)):
        with app.override(pool, fake):
            assert await (await work.submit()).result(10) == "session of fake pool"
        assert await (await work.submit()).result(10) == "session of pool of 3 for work"
        app.overrides[session] = lambda: "no session"
        assert await (await work.submit()).result(10) == "no session"


async def test_dependencies_are_no_arguments(build: Build) -> None:
    app = build()

    @app.task
    async def work(word: str, db: Session = INJECTED) -> None: ...

    app.schedule("daily", work, ["a"], cron="@daily")
    with pytest.raises(BadArguments, match="db"):
        work.target.pack((), {"word": "a", "db": "mine"})
    with pytest.raises(BadArguments):
        work.target.pack(("a", "mine"), {})
    assert list(work.signature.shape.parameters) == ["word"]


async def test_a_cancelled_job_cleans_up_and_a_deadline_counts_the_providers(
    build: Build, until: Until
) -> None:
    app = build()
    waiting = asyncio.Event()

    async def slow() -> AsyncIterator[int]:
        try:
            waiting.set()
            await asyncio.sleep(60)
            yield 1
        finally:
            notes.append("left")

    @app.task(retries=0, timeout=0.05)
    def limited(value: Annotated[int, Depends(slow)] = INJECTED) -> None:
        notes.append("run")

    @app.task(retries=0)
    async def unlimited(db: Session = INJECTED) -> None:
        waiting.set()
        await asyncio.sleep(60)

    async with app, running_worker(Worker(app)):
        with pytest.raises(JobFailed, match="TaskTimeout"):
            await (await limited.submit()).result(10)
        assert notes == ["left"]
        waiting.clear()
        job = await unlimited.submit()
        await waiting.wait()
        await job.cancel()
        await until(lambda: ("close session", "loop") in notes)
