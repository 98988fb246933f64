"""A job is a record: its arguments, its times, its attempts with their errors and workers."""

from datetime import UTC, datetime, timedelta

import pytest

from jsq import App, BadOption, Client, Context, JobFailed, JobNotFound, JobRecord, Retry, Snooze
from jsq.model.revision import MAX_RECORD_ARGUMENTS
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

SECRET = "4711-secret"


async def revisions(client: Client, id: str) -> list[bytes]:
    """The bodies of all revisions of a record, as any observer of the bucket reads them."""
    broker = await client.broker()
    stored = await broker.reads.fetch(broker.subjects.streams.records, broker.subjects.record("*", id))
    return [one.payload for one in stored]


async def test_the_record_of_a_finished_job_holds_arguments_times_and_options(
    app: App, client: Client, working: Working
) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    before = datetime.now(UTC) - timedelta(seconds=1)
    job = await add.options(delay=0.3, retries=7, timeout=30, backoff=[1, 2]).submit(1, b=2)
    async with working():
        await job.result(60)
        found = await job.status()

    assert found.arguments == {"a": 1, "b": 2}
    assert found.options["retries"] == 7
    assert found.options["timeout"] == 30
    assert found.options["backoff"]["steps"] == [1, 2]
    assert found.submitted is not None
    assert found.started is not None
    assert found.ended is not None
    assert before < found.submitted < found.started <= found.ended
    assert found.waited is not None
    assert found.waited >= 0
    assert found.ran is not None
    assert found.ran >= 0


@pytest.mark.parametrize(
    "end", [Retry("again", delay=0.1), Snooze(0.1), None], ids=["retry", "snooze", "run again"]
)
async def test_a_job_with_several_attempts_waited_until_its_first_start(
    app: App, working: Working, end: Exception | None
) -> None:
    starts: list[datetime] = []

    @app.task(backoff=[0.1])
    async def twice(ctx: Context) -> None:
        starts.append(datetime.now(UTC))
        if len(starts) == 1 and end is not None:
            raise end

    async with working():
        job = await twice.submit()
        await job.result(60)
        if end is None:
            await job.retry(again=True)
            await job.result(60)
    found = await job.status()
    assert found.submitted is not None
    assert found.started is not None
    assert found.first_started is not None
    assert len(starts) == 2
    assert found.submitted <= found.first_started < found.started
    assert found.waited == (found.first_started - found.submitted).total_seconds()


async def test_the_record_of_a_plain_job_has_no_options(app: App, client: Client, working: Working) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with working():
        job = await add.submit(1, 2)
        await job.result(60)
    assert (await job.status()).options == {}
    assert not any(b"options" in body for body in await revisions(client, job.id))


async def test_large_arguments_are_recorded_by_their_size_and_hash(app: App, working: Working) -> None:
    @app.task
    async def size(text: str) -> int:
        return len(text)

    async with working():
        job = await size.submit("x" * MAX_RECORD_ARGUMENTS)
        await job.result(60)
    found = await job.status()
    assert (found.has_arguments, found.arguments) == (False, None)
    assert found.arguments_size > MAX_RECORD_ARGUMENTS
    assert len(found.arguments_hash) == 64


async def test_the_attempts_of_a_job_have_their_workers_and_errors(app: App, working: Working) -> None:
    @app.task(retries=3, backoff="none")
    async def flaky(ctx: Context) -> str:
        if ctx.attempt < 3:
            raise ValueError(f"no luck at {ctx.attempt}")
        return "well"

    async with working() as worker:
        job = await flaky.submit()
        await job.result(60)
        attempts = await job.attempts()

    assert [one.number for one in attempts] == [1, 2, 3]
    assert [one.state for one in attempts] == ["retrying", "retrying", "succeeded"]
    assert [one.error for one in attempts] == ["ValueError: no luck at 1", "ValueError: no luck at 2", ""]
    assert "raise ValueError" in attempts[0].traceback
    assert {one.worker for one in attempts} == {worker.name}
    assert all(one.ran is not None and one.ran >= 0 for one in attempts)


async def test_a_running_attempt_is_the_last_one_and_has_no_end(
    app: App, working: Working, until: Until
) -> None:
    @app.task
    async def endless(ctx: Context) -> None:
        ctx.progress(0.5, "half")
        await until(lambda: ctx.cancelled, 60)

    async def half() -> bool:
        return (await job.status()).progress == 0.5

    async with working():
        job = await endless.submit()
        await until(half, 30)
        (attempt,) = await job.attempts()
        await job.cancel()
        (ended,) = await job.attempts()
    assert (attempt.state, attempt.ended, attempt.ran) == ("running", None, None)
    assert (ended.state, ended.ended is None) == ("cancelled", False)


async def test_a_job_that_has_not_started_has_no_attempts(app: App, client: Client) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    job = await add.submit(1, 2)
    assert await client.jobs.attempts(job.id) == []
    await job.cancel()
    assert await client.jobs.attempts(job.id) == []
    with pytest.raises(JobNotFound):
        await client.jobs.attempts("nothing")


async def test_a_replayed_job_shows_the_attempts_before_and_after_the_replay(
    app: App, working: Working
) -> None:
    lives: list[int] = []

    @app.task(retries=0)
    async def once() -> str:
        lives.append(1)
        if len(lives) == 1:
            raise ValueError("first life")
        return "second life"

    async with working():
        job = await once.submit()
        with pytest.raises(JobFailed):
            await job.result(60)
        await job.retry()
        await job.result(60)
        attempts = await job.attempts()
    assert [(one.number, one.state) for one in attempts] == [(1, "failed"), (1, "succeeded")]


# -- arguments that are not kept -----------------------------------------------------------------------------


async def recorded(client: Client, job: JobRecord) -> JobRecord:
    """A job's record. Asserts that none of its revisions contains its arguments."""
    assert not any(SECRET.encode() in body for body in await revisions(client, job.id))
    assert (job.has_arguments, job.arguments, job.arguments_size, job.arguments_hash) == (False, None, 0, "")
    return job


@pytest.mark.parametrize("set_by", ["task", "submit", "queue"])
async def test_records_never_hold_arguments_that_their_task_does_not_keep(
    app: App, client: Client, working: Working, set_by: str
) -> None:
    if set_by == "queue":
        app.queue("default", keep_arguments=False)
        await client.admin.provision(app.declared)

    @app.task(keep_arguments=set_by != "task", retries=1, backoff="none")
    async def use(secret: str, how: str) -> str:
        if how == "raise":
            raise ValueError("no")
        if how == "retry":
            raise Retry(delay=3600)
        return how

    using = use.options(keep_arguments=False) if set_by == "submit" else use.options()
    waiting = await using.options(queue="idle" if set_by != "queue" else "default", delay=3600).submit(
        SECRET, "wait"
    )
    late = await using.options(expires=0.001).submit(SECRET, "expire")
    async with working():
        well = await using.submit(SECRET, "well")
        bad = await using.submit(SECRET, "raise")
        again = await using.submit(SECRET, "retry")
        await recorded(client, await well.wait(60))
        await recorded(client, await bad.wait(60))
        assert (await late.wait(60)).state == "expired"
        async for event in again.events():
            if event.state == "retrying":
                break
    await recorded(client, await waiting.cancel())
    await recorded(client, await again.cancel())
    await recorded(client, await late.status())
    # The dead letter has them: a retry needs them.
    assert SECRET.encode() in (await client.dead_letters.get(bad.id)).payload


async def test_a_cancelled_job_keeps_arguments_and_options_unless_forbidden(
    app: App, client: Client, working: Working
) -> None:
    @app.task(retries=1)
    async def use(text: str) -> None:
        raise Retry(delay=3600)

    waiting = await use.options(delay=3600, timeout=5).submit("waits")
    async with working():
        again = await use.options(timeout=5).submit("again")
        async for event in again.events():
            if event.state == "retrying":
                break
    for job, text in ((waiting, "waits"), (again, "again")):
        found = await job.cancel()
        assert (found.arguments, found.options) == ({"text": text}, {"timeout": 5})


def test_keep_arguments_takes_a_flag() -> None:
    app = App()
    with pytest.raises(BadOption, match="keep_arguments"):
        app.task(keep_arguments="no")  # type: ignore[call-overload] # a wrong type is the point
    with pytest.raises(BadOption, match="keep_arguments"):
        app.queue("mail", keep_arguments="maybe")  # type: ignore[arg-type] # a wrong type is the point


# -- search --------------------------------------------------------------------------------------------------


async def test_finished_jobs_are_found_by_their_arguments_in_any_state(
    app: App, client: Client, working: Working
) -> None:
    @app.task(retries=0)
    async def serve(user: dict[str, int], how: str) -> str:
        if how == "fail":
            raise ValueError("no")
        return how

    async def found(**which: object) -> set[str]:
        return {one.id for one in await client.jobs.list(arg=which, limit=None)}

    cancelled = await serve.options(delay=3600).submit({"id": 5}, "cancel")
    await cancelled.cancel()
    expired = await serve.options(expires=0.001).submit({"id": 5}, "expire")
    async with working():
        well = await serve.submit({"id": 5}, "well")
        other = await serve.submit({"id": 6}, "well")
        failed = await serve.submit({"id": 5}, "fail")
        unkept = await serve.options(keep_arguments=False).submit({"id": 5}, "unkept")
        large = await serve.submit({"id": 5, **{f"k{n}": n for n in range(1000)}}, "large")
        for job in (well, other, failed, unkept, large, expired):
            await job.wait(60)
    waiting = await serve.submit({"id": 5}, "wait")

    assert await found(**{"user.id": 5}) == {one.id for one in (cancelled, expired, well, failed, waiting)}
    assert await found(**{"user.id": 5, "how": "well"}) == {well.id}
    assert await found(**{"user.id": 7}) == set()
    some = await client.jobs.list(state=["succeeded"], arg={"user.id": 5})
    assert [one.id for one in some] == [well.id]
    newest = await client.jobs.list(state=["succeeded", "failed"], arg={"user.id": 5}, limit=1)
    assert [one.id for one in newest] == [failed.id]


async def test_finished_jobs_are_removed_by_their_arguments(
    app: App, client: Client, working: Working
) -> None:
    @app.task
    async def serve(user: int) -> int:
        return user

    async with working():
        jobs = [await serve.submit(n) for n in (1, 2, 1)]
        for job in jobs:
            await job.result(60)
    assert await client.jobs.remove_many(state="succeeded", arg={"user": 1}) == 2
    assert [one.id for one in await client.jobs.list()] == [jobs[1].id]
