"""Submit, run, result: the life of a plain job."""

import asyncio
import gc
import os
import time
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel, field_serializer

from jsq import (
    App,
    BadArguments,
    BadOption,
    Client,
    Context,
    JobFailed,
    JobNotFound,
    Reject,
    ResultDropped,
    ResultGone,
    ResultTimeout,
    Retry,
    Snooze,
)
from jsq.broker.jobs.reader import PASS_SECONDS
from jsq.transport.replies import Reply
from jsq.worker import Observer
from tests.helpers.conditions import Until
from tests.helpers.workers import Working


async def test_a_result_is_returned_with_its_type(app: App, working: Working) -> None:
    @app.task
    async def tomorrow(day: datetime) -> datetime:
        return day + timedelta(days=1)

    async with working():
        job = await tomorrow.submit(datetime(2026, 1, 31, tzinfo=UTC))
        assert await job.result(60) == datetime(2026, 2, 1, tzinfo=UTC)


async def test_a_plain_function_runs_in_its_own_thread(app: App, working: Working) -> None:
    @app.task
    def where() -> str:
        import threading

        return threading.current_thread().name

    async with working():
        assert await (await where.submit()).result(60) == "jsq-task"


async def test_a_task_is_submitted_by_name_without_its_code(
    app: App, client: Client, working: Working
) -> None:
    @app.task(name="math.add")
    async def add(a: int, b: int = 2) -> int:
        return a + b

    async with working():
        assert await (await client.task("math.add").submit(1)).result(60) == 3
        assert await (await client.task("math.add").submit(1, b=5)).result(60) == 6


async def test_the_blocking_form_submits_and_waits_from_a_thread(app: App, working: Working) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    def plain_code() -> int:
        return add.delay(1, 2).result(60)

    async with working():
        assert await asyncio.to_thread(plain_code) == 3


async def test_the_events_of_a_job_arrive_in_order(app: App, working: Working) -> None:
    @app.task(retries=1, backoff="none")
    async def once_more(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise ValueError("not yet")
        return ctx.attempt

    async with working():
        job = await once_more.submit()
        events = [event async for event in job.events()]
    assert [event.state for event in events] == ["running", "retrying", "running", "succeeded"]
    assert [event.attempt for event in events] == [1, 1, 2, 2]
    assert events[1].error == "ValueError: not yet"
    assert [event.sequence for event in events] == sorted(event.sequence for event in events)


async def test_a_job_record_shows_the_last_event(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with working():
        job = await add.options(tags=["sum"]).submit(1, 2)
        await job.result(60)

        async def seen() -> bool:
            return [(r.id, r.state, r.result) for r in await client.jobs.list()] == [(job.id, "succeeded", 3)]

        await until(seen)
        assert [record.id for record in await client.jobs.list(tag="sum", task="add", queue="default")] == [
            job.id
        ]
        assert await client.jobs.list(tag="other") == []


async def test_a_failed_job_has_a_reason_and_one_dead_letter(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task(retries=0)
    async def broken(x: int) -> None:
        raise RuntimeError(f"no {x}")

    async with working():
        job = await broken.submit(7)
        with pytest.raises(JobFailed, match="RuntimeError: no 7") as caught:
            await job.result(60)
        assert caught.value.reason == "error"
        assert "raise RuntimeError" in caught.value.traceback

        async def is_dead_lettered() -> bool:
            return len(await client.dead_letters.list()) == 1

        await until(is_dead_lettered)
        dead_letter = await client.dead_letters.get(job.id)
        assert (dead_letter.task, dead_letter.reason, dead_letter.payload) == ("broken", "error", b'{"x":7}')


async def test_a_rejected_job_is_not_retried(app: App, client: Client, working: Working) -> None:
    @app.task(name="picky")
    async def picky() -> None:
        raise Reject("no")

    async with working():
        job = await client.task("picky").submit()
        with pytest.raises(JobFailed, match="Reject: no"):
            await job.result(timeout=5)
        assert (await job.status()).attempt == 1


async def test_a_retry_with_its_own_delay_spends_a_retry(app: App, working: Working) -> None:
    @app.task(retries=1, backoff=[3600])
    async def again(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise Retry("busy", delay=0)
        return ctx.attempt

    async with working():
        assert await (await again.submit()).result(60) == 2


async def test_snooze_gives_the_attempt_back(app: App, working: Working) -> None:
    naps: list[int] = []

    @app.task(retries=0)
    async def sleepy(ctx: Context) -> int:
        naps.append(ctx.attempt)
        if len(naps) < 3:
            raise Snooze(0)
        return ctx.attempt

    async with working():
        assert await (await sleepy.submit()).result(60) == 1
    assert naps == [1, 1, 1]


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_job_that_runs_too_long_fails_by_timeout(app: App, working: Working, kind: str) -> None:
    released = asyncio.Event()

    @app.task(name="async", retries=0, timeout=0.1)
    async def slow() -> None:
        await asyncio.sleep(60)

    @app.task(name="thread", retries=0, timeout=0.1)
    def slow_thread(ctx: Context) -> None:
        while not ctx.cancelled:
            pass

    async with working():
        with pytest.raises(JobFailed) as caught:
            await (await app.client.task(kind).submit()).result(60)
        assert caught.value.reason == "timeout"
    released.set()


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()]
)
@pytest.mark.parametrize("plain", [True, False], ids=["thread", "loop"])
async def test_a_base_exception_fails_only_the_job(
    app: App, working: Working, error: BaseException, plain: bool
) -> None:
    @app.task(name="quits", retries=0)
    async def quits() -> None:
        raise error

    @app.task(name="quits_thread", retries=0)
    def quits_thread() -> None:
        raise error

    @app.task
    async def fine() -> str:
        return "fine"

    async with working():
        job = await (quits_thread if plain else quits).submit()
        with pytest.raises(JobFailed, match=type(error).__name__):
            await job.result(60)
        assert await (await fine.submit()).result(60) == "fine"


async def test_a_delayed_job_waits_until_it_is_due(app: App, working: Working) -> None:
    @app.task
    async def when() -> float:
        return datetime.now(UTC).timestamp()

    async with working():
        submit_time = datetime.now(UTC).timestamp()
        job = await when.options(delay=0.6).submit()
        assert (await job.status()).state == "scheduled"
        assert (await job.result(60)) - submit_time >= 0.6


async def test_a_start_time_in_the_past_means_now(app: App, working: Working) -> None:
    @app.task
    async def now() -> int:
        return 1

    async with working():
        job = await now.options(at=datetime(2000, 1, 1, tzinfo=UTC)).submit()
        assert await job.result(60) == 1


async def test_a_worker_runs_its_fetched_jobs_by_priority(app: App, working: Working, until: Until) -> None:
    """The worker requests each priority separately: which job arrives first is not defined."""
    order: list[str] = []
    finished: list[int] = []
    gate = asyncio.Event()

    class Watching(Observer):
        def busy(self, running: int, held_now: int, slots: int) -> None:
            finished.append(held_now)

    @app.task
    async def note(word: str) -> None:
        order.append(word)
        await gate.wait()

    async with working(concurrency=1, prefetch=9, observer=Watching()):
        jobs = [await note.submit("first")]
        await until(lambda: order)
        for level in ("low", "normal", "high") * 3:
            jobs.append(await note.options(priority=level).submit(level))
        await until(lambda: finished and finished[-1] == 9)
        gate.set()
        await asyncio.gather(*(job.result(60) for job in jobs))

    assert order == ["first", *["high"] * 3, *["normal"] * 3, *["low"] * 3]


async def test_repeated_submits_with_one_id_are_one_job(app: App, working: Working) -> None:
    runs: list[int] = []

    @app.task
    async def once(x: int) -> int:
        runs.append(x)
        return x

    async with working():
        first = await once.options(id="order-1").submit(1)
        assert await first.result(60) == 1
        second = await once.options(id="order-1").submit(2)
        assert (first.duplicate, second.duplicate) == (False, True)
        assert await second.result(60) == 1
    assert runs == [1]


async def test_concurrent_submits_with_one_id_are_one_job(app: App, working: Working) -> None:
    runs: list[str] = []

    @app.task
    async def once(key: str) -> str:
        runs.append(key)
        return key

    async with working():
        keys = [f"k{n}" for n in range(20)]
        jobs = await asyncio.gather(*(once.options(id=key).submit(key) for key in keys * 6))
        await asyncio.gather(*(job.result(60) for job in jobs))
    assert sorted(runs) == sorted(keys)


async def test_progress_is_visible_to_a_client(app: App, working: Working) -> None:
    go = asyncio.Event()

    @app.task
    async def steps(ctx: Context) -> None:
        ctx.progress(0.25, "a quarter")
        await go.wait()

    async with working():
        job = await steps.submit()
        async for event in job.events():
            if event.progress is not None:
                assert (event.state, event.progress, event.text) == ("running", 0.25, "a quarter")
                break
        assert (await job.status()).progress == 0.25
        go.set()
        await job.result(60)
        ended = await job.status()
        assert (ended.state, ended.progress, ended.text) == ("succeeded", 1.0, "a quarter")


async def test_a_job_that_failed_keeps_its_last_progress_and_a_retry_does_not(
    app: App, working: Working
) -> None:
    go = asyncio.Event()

    @app.task(retries=1, backoff=[0.1])
    async def steps(ctx: Context) -> None:
        ctx.progress(0.25 * ctx.attempt, f"attempt {ctx.attempt}")
        if ctx.attempt == 2:
            await go.wait()
        raise ValueError("no")

    async with working():
        job = await steps.submit()
        events = []
        async for event in job.events():
            events.append((event.state, event.progress, event.text))
            if event.progress == 0.5:
                go.set()
    assert ("retrying", None, "") in events
    assert events[-1] == ("failed", 0.5, "attempt 2")


async def test_a_job_that_reports_no_progress_has_none(app: App, working: Working) -> None:
    @app.task
    async def silent(ctx: Context) -> None:
        pass

    async with working():
        job = await silent.submit()
        await job.result(60)
    assert (await job.status()).progress is None


async def test_the_context_describes_the_job(app: App, working: Working) -> None:
    @app.task(tags=["t"])
    async def describe(ctx: Context) -> dict[str, object]:
        return {
            "id": ctx.id,
            "attempt": ctx.attempt,
            "headers": dict(ctx.headers),
            "tags": list(ctx.job.tags),
            "token": ctx.token,
        }

    async with working():
        job = await describe.options(headers={"trace": "é1"}).submit()
        description = await job.result(60)
        token = description.pop("token")
        assert description == {"id": job.id, "attempt": 1, "headers": {"trace": "é1"}, "tags": ["t"]}
        events = [event async for event in job.events()]
        assert token == events[0].sequence


async def test_a_missing_result_that_was_not_kept_is_reported_as_such(app: App, working: Working) -> None:
    @app.task(keep_result=0)
    async def secret() -> str:
        return "x"

    async with working():
        job = await secret.submit()
        with pytest.raises(ResultGone):
            await job.result(60)
        assert (await job.status()).state == "succeeded"


@pytest.mark.parametrize("value", [object(), lambda: 1, (i for i in [1]), b"\xff", {1, 2}, "\ud800"])
async def test_a_result_that_cannot_be_stored_is_dropped_and_the_job_succeeds_once(
    app: App, working: Working, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[int] = []

    @app.task
    async def odd():  # type: ignore[no-untyped-def]  # what it returns is the point
        runs.append(1)
        return value

    async with working():
        job = await odd.submit()
        with pytest.raises(ResultDropped) as caught:
            await job.result(60)
    record = await job.status()
    assert (record.state, record.has_result, record.result_dropped) == ("succeeded", False, caught.value.why)
    assert f"job {job.id} succeeded, but its result was dropped: " in str(caught.value)
    [line] = [line for line in caplog.records if line.getMessage() == "result dropped"]
    assert vars(line)["why"] == caught.value.why
    assert runs == [1]


async def test_a_result_that_is_too_large_is_dropped(app: App, client: Client, working: Working) -> None:
    @app.task
    async def huge() -> str:
        return "x" * 2_000_000

    @app.task(keep_result=0)
    async def unread() -> str:
        return "x" * 2_000_000

    async with working():
        job = await huge.submit()
        with pytest.raises(ResultDropped, match=r"at most, got 2,000,0.."):
            await job.result(60)
        assert (await (await unread.submit()).wait(60)).result_dropped == ""
    assert not await client.dead_letters.list()


async def test_a_job_succeeds_whose_result_raises_while_it_is_encoded(app: App, working: Working) -> None:
    class Report(BaseModel):
        total: int = 0

        @field_serializer("total")
        def sum_up(self, total: int) -> int:
            raise LookupError("no rows")

    @app.task
    async def report() -> Report:
        return Report()

    async with working():
        with pytest.raises(ResultDropped, match="no rows"):
            await (await report.submit()).result(60)


async def test_an_unknown_task_fails_without_a_retry(app: App, client: Client, working: Working) -> None:
    async with working(queues=["default"], unknown_task_for=0):
        with pytest.raises(JobFailed, match="unknown_task") as caught:
            await (await client.task("os.system").submit("true")).result(60)
    assert caught.value.reason == "unknown_task"


async def test_invalid_arguments_fail_at_the_worker(app: App, client: Client, working: Working) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    with pytest.raises(BadArguments, match="a: Input should be a valid integer"):
        await add.submit("x", 2)  # type: ignore[arg-type]  # the mistake
    async with working():
        with pytest.raises(JobFailed) as caught:
            await (await client.task("add").submit(a="x", b=2)).result(60)
    assert caught.value.reason == "bad_arguments"


async def test_arguments_above_the_limit_of_the_server_are_refused_before_they_are_sent(
    app: App, client: Client
) -> None:
    @app.task
    async def take(text: str) -> int:
        return len(text)

    with pytest.raises(BadArguments, match="the server takes"):
        await take.submit("x" * 1_100_000)
    assert await client.jobs.list() == []


async def test_arguments_just_below_the_limit_run(app: App, working: Working) -> None:
    @app.task
    async def take(text: str) -> int:
        return len(text)

    async with working():
        assert await (await take.submit("x" * 1_045_000)).result(60) == 1_045_000


async def test_a_job_that_moves_during_a_slow_search_is_found(
    client: Client, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During an election a search takes long enough for a job to be requeued with a delay, twice."""
    job = await client.task("note").submit(1)
    broker = await client.broker()
    read, missed, ready = broker.reads.last, 0, broker.subjects.streams.ready("default")

    async def last(stream: str, subject: str, *, consistent: bool = False) -> Reply | None:
        nonlocal missed
        if stream == ready and missed < 4:
            missed += 1
            began = time.monotonic()
            await until(lambda: time.monotonic() - began > PASS_SECONDS / 2)
            return None
        return await read(stream, subject, consistent=consistent)

    monkeypatch.setattr(broker.reads, "last", last)

    assert (await job.status()).state == "queued"
    assert missed == 4


async def test_an_unknown_job_raises_not_found_immediately(client: Client) -> None:
    job = client.jobs.handle("nobody")
    with pytest.raises(JobNotFound):
        await job.status()
    with pytest.raises(JobNotFound):
        await job.result(60)


async def test_a_wait_for_a_result_has_a_timeout(app: App, client: Client) -> None:
    job = await client.task("never.runs").submit()
    with pytest.raises(ResultTimeout):
        await job.result(0)
    with pytest.raises(ResultTimeout):
        await job.result(0.05)
    with pytest.raises(BadOption):
        await job.result(-1)


async def test_a_client_works_on_several_event_loops(app: App, client: Client) -> None:
    def in_another_loop() -> str:
        async def submit() -> str:
            job = await client.task("elsewhere").submit()
            state = (await job.status()).state
            await client.close()
            return state

        return asyncio.run(submit())

    assert (await (await client.task("here").submit()).status()).state == "queued"
    assert await asyncio.to_thread(in_another_loop) == "queued"


async def test_a_worker_is_listed_while_it_runs(
    app: App, client: Client, working: Working, until: Until
) -> None:
    async with working() as worker:

        async def seen() -> bool:
            return [one["worker"] for one in await client.admin.workers()] == [worker.name]

        await until(seen)
        assert (await client.admin.workers())[0]["pid"] == os.getpid()

    async def gone() -> bool:
        return await client.admin.workers() == []

    await until(gone)


async def test_a_finished_job_leaves_no_cyclic_garbage(app: App, working: Working, until: Until) -> None:
    ran = 0

    @app.task
    async def quick() -> None:
        nonlocal ran
        ran += 1

    @app.task
    def plain() -> None:
        nonlocal ran
        ran += 1

    @app.batch_task(size=10, wait=0.1)
    async def collected(items: list[int]) -> None:
        nonlocal ran
        ran += len(items)

    async def submit() -> None:
        await quick.submit_many([()] * 50)
        await plain.submit_many([()] * 50)
        await collected.submit_many([(n,) for n in range(10)])

    async with working() as worker:
        await submit()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await submit()
            await until(lambda: ran == 220 and not worker.dispatcher.attempts)
            gc.collect()
            left = [found for found in gc.garbage if type(found).__name__ in ("Attempt", "Delivery", "Job")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert left == []
