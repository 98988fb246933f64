"""The parts of immediate mode that no server has. `test_immediate_equals_server.py` compares the others."""

import asyncio
import contextvars
import gc
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jsq import (
    App,
    BadOption,
    BrokerUnavailable,
    Context,
    Immediate,
    ImmediateUnsupported,
    JobFailed,
    JobNotFound,
    LifespanFailed,
    Snooze,
    UnknownTask,
    UsageError,
)

NOWHERE = "nats://127.0.0.1:1"
"""An address without a server: a call that reaches for one fails."""


@pytest.fixture(name="app")
def _app() -> App:
    return App(NOWHERE, namespace="nowhere")


async def test_the_submits_are_recorded_with_those_of_jobs_and_failures(app: App) -> None:
    @app.task
    async def child(a: int) -> None: ...

    @app.task
    async def note_death(failure: Any) -> None: ...

    @app.task(retries=1, backoff=[5], on_dead=note_death)
    async def parent() -> None:
        await child.options(queue="slow", delay="1m").submit(1)
        raise ValueError("broken")

    async with app.immediate() as immediate:
        await parent.submit()

        immediate.submits.assert_submitted(parent)
        immediate.submits.assert_submitted(child, 1, queue="slow", delay="1m")
        immediate.submits.assert_submitted("note_death")
        immediate.submits.assert_not_submitted(child, 2)
        assert [one.task for one in immediate.submits] == ["parent", "child", "child", "note_death"]


async def test_a_submit_that_finds_an_existing_job_is_not_recorded(app: App) -> None:
    @app.task(unique=True, debounce=60)
    async def work(a: int) -> None: ...

    async with app.immediate() as immediate:
        await work.submit(1)
        await work.submit(1)
        await work.submit(2)
        await immediate.advance(60)

        assert [str(one) for one in immediate.submits] == ['work{"a":1}, delay=60', 'work{"a":2}, delay=60']


async def test_a_retry_moves_the_clock_and_records_its_delay(app: App) -> None:
    @app.task(retries=3, backoff=[60, 3600])
    async def flaky(ctx: Context) -> int:
        if ctx.attempt < 3:
            raise ValueError("no")
        return ctx.attempt

    start = datetime(2030, 1, 1, tzinfo=UTC)
    async with app.immediate(start=start) as immediate:
        job = await flaky.submit()

        assert await job.result() == 3
        assert await immediate.delays(job) == await immediate.delays(job.id) == [60.0, 3600.0]
        assert immediate.clock.moment() == start + timedelta(seconds=3660)


async def test_held_retries_wait_until_the_clock_moves(app: App) -> None:
    @app.task(retries=1, backoff=[60])
    async def flaky(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise ValueError("no")
        return ctx.attempt

    async with app.immediate(hold_retries=True) as immediate:
        job = await flaky.submit()

        assert (await job.status()).state == "retrying"
        await immediate.advance(59)
        assert (await job.status()).state == "retrying"
        await immediate.advance(1)
        assert await job.result() == 2


async def test_a_job_that_failed_raises_its_exception_out_of_the_submit(app: App) -> None:
    class Custom(Exception): ...

    @app.task(retries=1, backoff="none")
    async def fail(a: int) -> int:
        if a < 0:
            raise Custom(a)
        return a

    @app.task(retries=0)
    async def parent() -> None:
        await fail.submit(-2)

    async with app.immediate(raise_errors=True) as immediate:
        with pytest.raises(Custom):
            await fail.submit(-1)
        with pytest.raises(Custom):
            await parent.submit()
        with pytest.raises(Custom):
            await fail.submit_many([[1], [-1]])
        held = await fail.options(delay=5).submit(-1)
        with pytest.raises(Custom):
            await immediate.advance(5)

        assert (await held.status()).state == "failed"
        assert await (await fail.submit(1)).result() == 1


async def test_delayed_jobs_run_at_their_times_in_order(app: App) -> None:
    ran: list[tuple[str, float]] = []

    @app.task
    async def work(name: str) -> None:
        ran.append((name, round(immediate.clock.now() - start, 3)))
        if name == "first":
            await work.options(delay=10).submit("by the first")

    async with app.immediate() as immediate:
        start = immediate.clock.now()
        await work.options(delay=30).submit("last")
        await work.options(delay=5).submit("first")
        await immediate.advance("20s")
        assert ran == [("first", 5.0), ("by the first", 15.0)]

        await immediate.run_due()
        assert ran[2:] == [("last", 30.0)]


async def test_a_wait_that_could_never_end_raises(app: App) -> None:
    @app.task
    async def work() -> None: ...

    @app.task(retries=0, queue="keyed")
    async def parent() -> None:
        job = await work.options(key="same", queue="keyed").submit()
        await job.result()

    app.queue("keyed", per_key=1)
    async with app.immediate():
        held = await work.options(delay=60).submit()
        with pytest.raises(ImmediateUnsupported, match=r"due at .*; move the clock first"):
            await held.result(5)
        with pytest.raises(ImmediateUnsupported, match=r"due at .*; move the clock first"):
            assert [event.state async for event in held.events()] == []
        with pytest.raises(ImmediateUnsupported, match="submit them without delay"):
            await work.options(delay=60).map([()])
        job = await parent.options(key="same").submit()
        with pytest.raises(JobFailed, match="after the jobs that wait for it"):
            await job.result()


async def test_jobs_without_end_are_refused(app: App) -> None:
    @app.task
    async def poll() -> None:
        raise Snooze(60)

    @app.task(retries=0)
    async def deeper(level: int) -> None:
        reached.append(level)
        await deeper.submit(level + 1)

    reached: list[int] = []
    async with app.immediate(max_depth=5):
        with pytest.raises(ImmediateUnsupported, match="hold_retries=True"):
            await poll.submit()
        await deeper.submit(1)

    assert reached == [1, 2, 3, 4, 5]


async def test_a_long_chain_of_jobs_needs_no_deep_stack(app: App) -> None:
    @app.task
    async def page(number: int) -> int:
        if number == 90:
            return number
        return await (await page.submit(number + 1)).result()

    @app.task
    def plain_page(number: int) -> int:
        return number if number == 40 else plain_page.delay(number + 1).result()

    async with app.immediate():
        assert await (await page.submit(1)).result() == 90
        assert await (await plain_page.submit(1)).result() == 40
    await app.close()


async def test_a_thread_waits_for_a_job_that_others_run(app: App) -> None:
    started, release = asyncio.Event(), asyncio.Event()

    @app.task
    async def slow() -> str:
        started.set()
        await release.wait()
        return "done"

    async with app.immediate() as immediate:
        submit = asyncio.create_task(slow.submit())
        await started.wait()
        [found] = await immediate.jobs()
        handle = app.client.blocking.jobs.handle(found.id)
        waiting = asyncio.create_task(asyncio.to_thread(handle.result))
        threading_waits = asyncio.create_task(asyncio.to_thread(handle.status))
        assert (await threading_waits).state == "running"
        release.set()
        assert await waiting == "done"
        await submit
    await app.close()


async def test_what_it_cannot_show_raises_and_names_an_alternative(app: App) -> None:
    app.queue("mail")
    client = app.client
    async with app.immediate():
        for call in (
            client.queues.stats("mail"),
            client.queues.remove("mail"),
            client.admin.workers(),
            client.admin.sweep(),
            client.admin.doctor(),
            client.schedules.list(),
        ):
            with pytest.raises(ImmediateUnsupported, match=r"immediate mode does not support .*: .*; "):
                await call
        with pytest.raises(ImmediateUnsupported, match="declare the task on this App"):
            await client.submit("nobody_knows")
        with pytest.raises(ImmediateUnsupported, match="another worker"):
            await app.working().__aenter__()


async def test_a_block_checks_the_app_as_a_worker_does(app: App) -> None:
    @app.task(on_dead="nobody")
    async def work() -> None: ...

    with pytest.raises(UnknownTask, match="on_dead of task work"):
        await app.immediate().__aenter__()
    with pytest.raises(BadOption, match="no_such"):
        app.immediate(no_such=1)  # type: ignore[call-arg]  # that is what is tested


async def test_the_lifespan_surrounds_the_block() -> None:
    notes: list[str] = []

    def declare(app: App) -> App:
        @app.on_start
        def start(state: dict[str, Any]) -> None:
            state["pool"] = "open"
            notes.append("start")

        @app.on_stop
        def stop() -> None:
            notes.append("stop")

        return app

    app = declare(App(NOWHERE, namespace="nowhere"))

    @app.task
    async def work(ctx: Context) -> Any:
        return dict(ctx.state)

    async with app.immediate():
        assert await (await work.submit()).result() == {"pool": "open"}
    assert notes == ["start", "stop"]

    @app.on_start
    def fail() -> None:
        raise ValueError("no pool")

    with pytest.raises(LifespanFailed):
        await app.immediate().__aenter__()
    with pytest.raises(BrokerUnavailable):  # the App has its own connection again
        await work.submit()


async def test_jobs_that_the_lifespan_submits_reach_no_server(app: App) -> None:
    ran: list[str] = []

    @app.task
    async def work(name: str) -> None:
        ran.append(name)

    @app.on_start
    async def start() -> None:
        await work.submit("by the start")

    @app.on_stop
    async def stop() -> None:
        await work.submit("by the stop")

    async with app.immediate() as immediate:
        assert ran == ["by the start"]

    immediate.submits.assert_submitted(work, "by the stop")
    assert ran == ["by the start"]


async def test_a_block_is_apart_from_the_server_and_from_other_blocks(app: App) -> None:
    @app.task
    async def work() -> int:
        return 1

    async with app.immediate():
        job = await work.submit()
        assert await job.result() == 1
        with pytest.raises(UsageError, match="in a block of immediate mode already"):
            await app.immediate().__aenter__()
    async with app.immediate() as immediate:
        assert list(immediate.submits) == []
        with pytest.raises(JobNotFound):
            await job.status()
        assert (await work.submit()).id
    with pytest.raises(BrokerUnavailable):
        await work.submit()


async def test_a_cancelled_submit_does_not_cancel_its_job(app: App) -> None:
    started, release = asyncio.Event(), asyncio.Event()

    @app.task
    async def slow() -> str:
        started.set()
        await release.wait()
        return "done"

    async with app.immediate() as immediate:
        submit = asyncio.create_task(slow.submit())
        await started.wait()
        submit.cancel()
        await asyncio.wait((submit,))
        [found] = await immediate.jobs()
        assert found.state == "running"

        waiting = asyncio.create_task(app.client.jobs.handle(found.id).result())
        await asyncio.sleep(0)
        release.set()

        assert await waiting == "done"


async def test_what_still_runs_at_the_end_of_a_block_is_interrupted(app: App) -> None:
    started = asyncio.Event()
    ended: list[str] = []

    @app.task
    async def slow() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    async with app.immediate():
        submit = asyncio.create_task(slow.submit())
        await started.wait()
        submit.cancel()
    await asyncio.wait((submit,))

    assert ended == ["cleaned up"]


async def test_concurrent_submits_run_beside_each_other(app: App) -> None:
    together = asyncio.Barrier(2)

    @app.task
    async def meet() -> int:
        return await together.wait()

    async with app.immediate():
        jobs = await asyncio.gather(meet.submit(), meet.submit())
        assert sorted([await job.result() for job in jobs]) == [0, 1]


async def test_a_task_sees_no_context_variable_of_its_submitter(app: App) -> None:
    variable = contextvars.ContextVar[str]("of_the_test")
    variable.set("set")

    @app.task
    async def work() -> str:
        return variable.get("nothing")

    async with app.immediate():
        assert await (await work.submit()).result() == "nothing"


def test_synchronous_code_uses_a_block_without_an_event_loop(app: App) -> None:
    @app.task(retries=1, backoff=[60])
    def add(ctx: Context, a: int, b: int) -> int:
        if ctx.attempt == 1:
            raise ValueError("no")
        return a + b

    with app.immediate() as immediate:
        job = add.delay(1, 2)
        later = add.options(delay="1h").blocking.submit(2, 2)
        assert (job.result(), later.status().state) == (3, "scheduled")
        assert immediate.blocking.delays(job) == [60.0]
        immediate.blocking.advance("1h")
        assert later.result() == 4
        immediate.submits.assert_submitted(add, 2, 2, delay=3600)
        assert [one.state for one in immediate.blocking.jobs()] == ["succeeded", "succeeded"]
        assert list(add.blocking.map([(1, 1)])) == [2]
    app.client.blocking.close()


async def test_a_synchronous_block_is_refused_on_an_event_loop(app: App) -> None:
    with pytest.raises(UsageError, match="write async with"):
        app.immediate().__enter__()


async def test_a_thread_of_the_test_submits_to_the_block(app: App) -> None:
    homes: list[int] = []

    @app.task
    async def work() -> int:
        homes.append(threading.get_ident())
        return 1

    async with app.immediate():
        assert await asyncio.to_thread(lambda: work.delay().result()) == 1
    await app.close()

    assert homes == [threading.get_ident()]


def test_a_block_of_an_event_loop_that_does_not_run_is_an_error(app: App) -> None:
    @app.task
    async def work() -> None: ...

    home, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    immediate = app.immediate()
    home.run_until_complete(immediate.__aenter__())
    with pytest.raises(UsageError, match="use one loop for both"):
        other.run_until_complete(work.submit())
    home.run_until_complete(immediate.__aexit__(None, None, None))
    other.close()
    home.close()


async def test_a_blocked_event_loop_is_an_error(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    @app.task
    async def work() -> None: ...

    monkeypatch.setattr("jsq.testing.immediate_worker.BLOCKED_SECONDS", 0.1)
    errors: list[Exception] = []

    def submit() -> None:
        try:
            work.delay()
        except UsageError as error:
            errors.append(error)

    async with app.immediate():
        thread = threading.Thread(target=submit)
        thread.start()
        thread.join(20)
    await app.close()

    assert "write with app.immediate() around that call" in str(errors)


async def test_schedules_fire_when_the_clock_moves(app: App) -> None:
    ran: list[str] = []

    @app.task
    async def report(name: str) -> None:
        ran.append(f"{name} {immediate.clock.moment():%H:%M}")

    app.schedule("hourly", report, args=["hourly"], cron="0 * * * *")
    app.schedule("often", report, args=["often"], every="25m")
    async with app.immediate(schedules=True, start=datetime(2030, 1, 1, 10, 30, tzinfo=UTC)) as immediate:
        await immediate.advance("1h")
        assert ran == ["often 10:50", "hourly 11:00", "often 11:15"]

        await (await app.client.schedules.run("hourly")).result()
        assert [one.name for one in await app.client.schedules.list()] == ["hourly", "often"]
        immediate.submits.assert_submitted(report, "often")
        with pytest.raises(ImmediateUnsupported, match="they fire without end"):
            await immediate.run_due()


async def test_a_block_leaves_nothing_behind(app: App) -> None:
    @app.task
    async def work() -> int:
        return 1

    async def once() -> None:
        async with app.immediate():
            await (await work.submit()).result()

    await once()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(20):
        await once()
    gc.collect()

    assert len(gc.get_objects()) - before < 2_000
    assert len(asyncio.all_tasks()) == 1


@pytest.fixture
async def session(app: App) -> AsyncIterator[Immediate]:
    """A block as a fixture: it is entered and left in other asyncio tasks than the test, on the same loop."""
    async with app.immediate() as immediate:
        yield immediate


async def test_a_fixture_may_hold_the_block(app: App, session: Immediate) -> None:
    @app.task
    async def work() -> int:
        return 1

    await work.submit()

    session.submits.assert_submitted(work)
