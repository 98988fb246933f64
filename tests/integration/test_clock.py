"""The clock of tests: what becomes due when it is advanced, and in which order."""

import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from jsq import App, Client, Context, Retry, Snooze, UsageError
from jsq.model.schedule import Overlap
from jsq.testing import JsqClock, JsqWorker


@pytest.fixture
def ran(app: App) -> list[str]:
    """Declares tasks, which note that they ran."""
    ran: list[str] = []

    @app.task
    async def note(label: str) -> str:
        ran.append(label)
        return label

    @app.task(retries=2, backoff=[60, 600])
    async def flaky(ctx: Context, label: str) -> None:
        ran.append(f"{label} {ctx.attempt}")
        raise Retry("not now")

    @app.task
    async def snoozing() -> None:
        ran.append("snoozed")
        if len(ran) < 3:
            raise Snooze(60)

    return ran


@pytest.fixture
async def worker(app: App, ran: list[str]) -> AsyncIterator[JsqWorker]:
    worker = JsqWorker(app)
    async with worker.running():
        yield worker


@pytest.fixture
def clock(app: App, request: pytest.FixtureRequest) -> JsqClock:
    """The clock of a test; it waits for the worker, if the test has one."""
    worker = request.getfixturevalue("worker") if "worker" in request.fixturenames else None
    return JsqClock(app, lambda: worker)


@pytest.mark.usefixtures("ran")
async def test_a_delayed_job_waits_for_its_time_on_its_queue(
    app: App, client: Client, clock: JsqClock
) -> None:
    soon = await client.task("note").options(delay="1h").submit("soon")
    late = await client.task("note").options(delay="3h").submit("late")

    await clock.advance("59m")
    assert (await soon.status()).state == "scheduled"
    await clock.advance("2m")

    assert (await soon.status()).state == "queued"
    due = (await late.status()).due
    assert due is not None
    assert 7_100 < (due - datetime.now(UTC)).total_seconds() < 7_141
    await clock.advance("2h")
    assert (await late.status()).state == "queued"


async def test_jobs_run_in_the_order_of_their_due_times(
    client: Client, worker: JsqWorker, clock: JsqClock, ran: list[str]
) -> None:
    await client.task("note").options(delay="50m").submit("third")
    await client.task("flaky").submit("job")
    await client.task("note").options(delay="5m").submit("second")

    await clock.advance("1h")

    assert ran == ["job 1", "job 2", "second", "job 3", "third"]
    assert [job.state for job in await worker.drain()] == ["failed", "succeeded", "succeeded"]


@pytest.mark.usefixtures("worker")
async def test_a_retry_waits_for_its_backoff(client: Client, clock: JsqClock, ran: list[str]) -> None:
    job = await client.task("flaky").submit("job")

    await clock.advance(59)
    await clock.advance(2)
    assert ran == ["job 1", "job 2"]
    await clock.advance("10m")

    assert ran == ["job 1", "job 2", "job 3"]
    assert (await job.status()).state == "failed"


@pytest.mark.usefixtures("worker")
async def test_a_snoozed_job_comes_back(client: Client, clock: JsqClock, ran: list[str]) -> None:
    job = await client.task("snoozing").submit()

    await clock.advance("3m")

    assert ran == ["snoozed"] * 3
    assert (await job.status()).attempt == 1


@pytest.mark.usefixtures("worker")
async def test_a_debounced_job_runs_once_after_its_pause(
    client: Client, clock: JsqClock, ran: list[str]
) -> None:
    debounced = client.task("note").options(unique="u", debounce="1m")
    await debounced.submit("first")
    await clock.advance(50)
    await debounced.submit("last")

    await clock.advance(50)
    assert ran == []
    await clock.advance(20)

    assert ran == ["last"]


@pytest.mark.usefixtures("worker")
async def test_a_delayed_job_with_a_key_joins_its_group(
    client: Client, clock: JsqClock, ran: list[str]
) -> None:
    for label in ("first", "second"):
        await client.task("note").options(key="k", per_key=1, delay="1h").submit(label)

    await clock.advance("1h")

    assert ran == ["first", "second"]


async def test_a_cancelled_job_does_not_start(
    client: Client, clock: JsqClock, worker: JsqWorker, ran: list[str]
) -> None:
    job = await client.task("note").options(delay="1h").submit("job")
    await job.cancel()

    await clock.advance("2h")

    assert await worker.drain() == []
    assert ran == []


# -- schedules ---------------------------------------------------------------------------------------------


async def test_a_schedule_fires_each_of_its_ticks(app: App, ran: list[str], clock: JsqClock) -> None:
    app.cron("0 3 * * *", ["night"], catch_up="none")(app.tasks["note"])
    worker = JsqWorker(app)
    clock = JsqClock(app, lambda: worker)
    async with worker.running():
        await clock.advance("2d")
        await clock.advance("1d")
        jobs = await worker.drain()

    assert ran == ["night"] * 3
    ticks = [datetime.fromisoformat(job.headers["tick"]) for job in jobs]
    assert {tick.hour for tick in ticks} == {3}
    assert [(later - tick).days for tick, later in itertools.pairwise(ticks)] == [1, 1]


@pytest.mark.parametrize(("overlap", "fired"), [("queue", 6), ("skip", 1)])
async def test_a_schedule_without_a_worker_queues_its_jobs(
    app: App, client: Client, ran: list[str], clock: JsqClock, overlap: Overlap, fired: int
) -> None:
    app.every("10m", ["job"], overlap=overlap)(app.tasks["note"])

    await clock.advance("1h")

    [schedule] = await client.schedules.list()
    assert (schedule.fired, schedule.skipped) == (fired, 6 - fired)
    assert len(await client.jobs.list(state="queued")) == fired
    assert ran == []


@pytest.mark.usefixtures("ran")
async def test_a_new_schedule_counts_from_its_creation(app: App, client: Client, clock: JsqClock) -> None:
    await clock.advance("3h")
    await client.schedules.add("later", app.tasks["note"], ["job"], every="1h")

    await clock.advance("30m")
    fired = (await client.schedules.list())[0].fired
    await clock.advance("1h")

    assert fired <= 1  # an interval begins at a full hour
    assert (await client.schedules.list())[0].fired == fired + 1


@pytest.mark.usefixtures("ran")
async def test_too_many_due_times_are_refused(app: App, clock: JsqClock) -> None:
    app.every(1, ["job"], overlap="skip")(app.tasks["note"])

    clock.max_due_times = 20
    with pytest.raises(UsageError, match="more than 20 due times would pass"):
        await clock.advance("1h")
