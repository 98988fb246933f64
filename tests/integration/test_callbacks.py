"""Callbacks and fallbacks: jobs that follow the failure of another job, each once, even if workers die."""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jsq import (
    App,
    BadName,
    BadOption,
    Client,
    Context,
    Failure,
    JobFailed,
    JobHandle,
    JobNotFound,
    Reject,
    Snooze,
    UnknownTask,
)
from jsq.codec import revisions
from jsq.model.callback import callback_id
from jsq.model.job import Job
from jsq.model.repair import Inconsistency
from jsq.model.revision import Revision
from jsq.server import EmbeddedServer
from jsq.settings import WorkerSettings
from jsq.worker import Worker
from jsq.worker.timings import WorkerTimings
from tests.helpers.conditions import Until
from tests.helpers.forkserver import ForkServer
from tests.helpers.jobs import queued_job
from tests.helpers.workers import Working, running_worker

ROOT = Path(__file__).parents[2]
WAIT = 30.0


class Received:
    """The failures that the callbacks of an app received, with the name of the called task."""

    def __init__(self, app: App) -> None:
        self.calls: list[tuple[str, Failure]] = []
        self.ids: list[str] = []

        @app.task
        async def note(ctx: Context, failure: Failure) -> None:
            self.calls.append(("note", failure))
            self.ids.append(ctx.id)

        @app.task
        async def report_death(ctx: Context, failure: Failure) -> None:
            self.calls.append(("report_death", failure))
            self.ids.append(ctx.id)

    def of(self, name: str) -> list[Failure]:
        return [failure for called, failure in self.calls if called == name]


@pytest.fixture
def received(app: App) -> Received:
    return Received(app)


async def failed(job: JobHandle[Any]) -> JobFailed:
    with pytest.raises(JobFailed) as caught:
        await job.result(WAIT)
    return caught.value


async def nothing_is_stored(client: Client, queue: str = "default") -> bool:
    return await (await client.broker()).job_reader.waiting_ids(queue) == []


@pytest.fixture
def until_idle(client: Client, until: Until) -> Callable[[], Any]:
    """Waits until no job waits or runs."""

    async def until_idle() -> None:
        await until(lambda: nothing_is_stored(client), WAIT)

    return until_idle


# -- when callbacks run, and what they receive ---------------------------------------------------------------


async def test_each_failed_attempt_is_logged_and_the_dead_letter_once(
    app: App, received: Received, working: Working, until_idle: Callable[[], Any]
) -> None:
    @app.task(retries=2, backoff=[0.05], tags=["x"], on_failure="note", on_dead="report_death")
    async def down(to: str, *, size: int = 1) -> None:
        raise ValueError(f"no {to}")

    async with working():
        job = await down.submit("a@b.c", size=2)
        await failed(job)
        await until_idle()

    notes, deaths = received.of("note"), received.of("report_death")
    assert sorted(one.attempt for one in notes) == [1, 2, 3]
    assert [(one.attempt, one.reason, one.dead) for one in deaths] == [(3, "error", True)]
    assert sorted((one.attempt, one.reason, one.due is None) for one in notes) == [
        (1, "", False),
        (2, "", False),
        (3, "error", True),
    ]
    for one in (*notes, *deaths):
        assert (one.job, one.task, one.queue, one.tags) == (job.id, "down", "default", ("x",))
        assert one.error == "ValueError: no a@b.c"
        assert "in down" in one.traceback
        assert one.arguments == {"to": "a@b.c", "size": 2}
    assert len(set(received.ids)) == 4


async def test_a_callback_is_a_job_with_the_options_of_its_own_task(
    app: App, client: Client, working: Working, until: Until
) -> None:
    called: list[tuple[dict[str, str], dict[str, Any]]] = []

    @app.task(queue="alerts", priority="high", tags=["alert"])
    def alert(ctx: Context, failure: dict[str, Any]) -> str:
        called.append((dict(ctx.headers), failure))
        return "called"

    @app.task(retries=0, on_dead=alert)
    def down() -> None:
        raise KeyError("k")

    async with working():
        job = await down.options(headers={"X-Trace": "7"}).submit()
        await failed(job)
        await until(lambda: called)
        await until(lambda: client.jobs.list(task="alert"))  # the job list is slightly behind
        [found] = await client.jobs.list(task="alert")
        record = await client.jobs.handle(found.id).wait(WAIT)
    assert called[0][0] == {"X-Trace": "7"}
    assert (called[0][1]["job"], called[0][1]["reason"]) == (job.id, "error")
    assert (record.queue, record.state, record.tags, record.result) == (
        "alerts",
        "succeeded",
        ("alert",),
        "called",
    )
    assert record.id.startswith(f"{job.id}-dead-")


async def test_an_outcome_other_than_failure_calls_no_callback(
    app: App, received: Received, working: Working, until_idle: Callable[[], Any], until: Until
) -> None:
    @app.task(retries=3, backoff=[60], on_failure="note", on_dead="report_death")
    async def ends(ctx: Context, how: str) -> None:
        if how == "snooze" and ctx.checkpointed is None:
            await ctx.checkpoint(1)
            raise Snooze(0.05)
        if how == "hang":
            await asyncio.Event().wait()
        if how == "late":
            raise ValueError

    async with working():
        jobs = {how: await ends.submit(how) for how in ("well", "snooze", "hang")}
        jobs["late"] = await ends.options(deadline=5).submit("late")
        await until(lambda: state_is(jobs["hang"], "running"))
        await jobs["hang"].cancel()
        states = {how: (await job.wait(WAIT)).state for how, job in jobs.items()}
        await until_idle()
    assert states == {"well": "succeeded", "snooze": "succeeded", "hang": "cancelled", "late": "expired"}
    assert received.calls == []


async def state_is(job: JobHandle[Any], state: str) -> bool:
    return (await job.status()).state == state


async def test_a_rejected_job_is_dead_at_once(
    app: App, received: Received, working: Working, until_idle: Callable[[], Any]
) -> None:
    @app.task(on_failure="note", on_dead="report_death")
    async def never() -> None:
        raise Reject("no")

    async with working():
        await failed(await never.submit())
        await until_idle()
    assert sorted((name, one.reason, one.error) for name, one in received.calls) == [
        ("note", "rejected", "Reject: no"),
        ("report_death", "rejected", "Reject: no"),
    ]


async def test_a_job_that_crashed_its_workers_is_dead_without_a_failed_attempt(
    app: App, client: Client, received: Received, working: Working, until_idle: Callable[[], Any]
) -> None:
    app.queue("default", max_crashes=1)

    @app.task(on_failure="note", on_dead="report_death")
    async def crash() -> None: ...

    job = await crash.submit()
    await record_start_of_a_dead_worker(client, job.id, "crash")
    async with working():
        assert (await failed(job)).reason == "crashed"
        await until_idle()
    assert [(name, one.reason) for name, one in received.calls] == [("report_death", "crashed")]


async def test_a_replayed_job_that_fails_again_calls_its_callback_again(
    app: App, received: Received, working: Working, until_idle: Callable[[], Any], until: Until
) -> None:
    @app.task(retries=0, on_dead="report_death")
    async def down() -> None:
        raise ValueError

    async with working():
        job = await down.submit()
        await failed(job)
        await until_idle()
        await job.retry()
        await until(lambda: len(received.calls) == 2)
        await until_idle()
    assert len(set(received.ids)) == 2
    assert all(id.startswith(f"{job.id}-dead-") for id in received.ids)


async def test_a_callback_that_fails_calls_no_further_callback(
    app: App, client: Client, received: Received, working: Working, until_idle: Callable[[], Any]
) -> None:
    @app.task(retries=1, backoff="none", on_failure="alert", on_dead="alert")
    async def alert(failure: Failure) -> None:
        raise OSError("the alarm is broken")

    @app.task(retries=0, on_dead="shout")
    async def down() -> None:
        raise ValueError

    @app.task(retries=0, on_failure="note", on_dead="alert")
    async def shout(failure: Failure) -> None:
        raise OSError("hoarse")

    async with working():
        await failed(await down.submit())
        own = await alert.submit(Failure("j", "t", "q", 1, "e"))
        await failed(own)
        await until_idle()
    dead_letters = [
        (dead_letter.task, dead_letter.id.startswith(f"{own.id}-"))
        for dead_letter in await client.dead_letters.list()
    ]
    # As a job of its own, `alert` has callbacks for both its attempts and its death, and no further ones.
    assert sorted(dead_letters) == [
        ("alert", False),
        *[("alert", True)] * 3,
        ("down", False),
        ("shout", False),
    ]
    assert received.calls == []


async def test_a_job_with_an_id_of_64_characters_has_callbacks(
    app: App, received: Received, working: Working, until_idle: Callable[[], Any]
) -> None:
    @app.task(retries=1, backoff="none", on_failure="note", on_dead="report_death")
    async def down() -> None:
        raise ValueError

    async with working():
        ids = ["x" * 64, "x" * 63 + "y"]
        for id in ids:
            await failed(await down.options(id=id).submit())
        await until_idle()
    assert sorted(one.job for one in received.of("report_death")) == ids
    assert sorted(one.job for one in received.of("note")) == sorted(ids * 2)


async def test_callbacks_run_for_an_exception_of_a_child_process(
    app: App, received: Received, working: Working, until_idle: Callable[[], Any]
) -> None:
    from tests.apps import rules

    app.task(name="far", executor="process", retries=0, on_failure="note", on_dead="report_death")(rules.fail)

    async with working():
        await failed(await app.tasks["far"].submit("Busy"))
        await until_idle()
    assert sorted((name, one.error) for name, one in received.calls) == [
        ("note", "Busy: Busy"),
        ("report_death", "Busy: Busy"),
    ]


# -- fallbacks -----------------------------------------------------------------------------------------------


async def test_a_dead_job_submits_its_fallback_and_records_its_id(
    app: App, client: Client, received: Received, working: Working, until_idle: Callable[[], Any]
) -> None:
    @app.task(queue="spare", tags=["spare"])
    async def cached(pair: str, *, factor: int = 1) -> int:
        return 7 * factor

    @app.task(retries=1, backoff="none", fallback=cached, on_dead="report_death")
    async def fetch(pair: str, *, factor: int = 1) -> int:
        raise OSError("down")

    async with working():
        job = await fetch.options(tags=["eur"], headers={"X-Trace": "7"}).submit("EURUSD", factor=3)
        error = await failed(job)
        spare = client.jobs.handle(error.fallback)
        assert await spare.result(WAIT) == 21
        await until_idle()
    record, other = await job.status(), await spare.status()
    assert record.fallback == error.fallback == spare.id
    assert str(error).endswith(f"; job {spare.id} was submitted instead")
    assert (record.state, other.queue, other.tags) == ("failed", "spare", ("eur",))
    assert [one.fallback for one in received.of("report_death")] == [spare.id]
    assert [dead_letter.id for dead_letter in await client.dead_letters.list()] == [job.id]


async def test_a_fallback_may_have_a_fallback(app: App, client: Client, working: Working) -> None:
    @app.task
    async def third(a: int) -> int:
        return a

    @app.task(retries=0, fallback=third)
    async def second(a: int) -> int:
        raise OSError

    @app.task(retries=0, fallback=second)
    async def first(a: int) -> int:
        raise OSError

    async with working():
        error = await failed(await first.submit(5))
        error = await failed(client.jobs.handle(error.fallback))
        assert await client.jobs.handle(error.fallback).result(WAIT) == 5


async def test_a_fallback_has_the_deadline_of_the_job_that_it_replaces(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def late() -> None:
        await asyncio.Event().wait()

    @app.task(retries=0, fallback=late)
    async def down() -> None:
        raise OSError

    async with working():
        error = await failed(await down.options(deadline=1.5).submit())
        record = await client.jobs.handle(error.fallback).wait(WAIT)
    assert record.state == "expired"


# -- workers that die, lack the task or lack permission ------------------------------------------------------


async def test_pending_callbacks_of_a_killed_worker_are_submitted_by_the_next_worker(
    app: App, client: Client, received: Received, working: Working, until_idle: Callable[[], Any]
) -> None:
    @app.task(retries=0, on_failure="note", on_dead="report_death")
    async def down() -> None:
        raise AssertionError("it ran again")

    job = await down.submit()
    await record_of_one_who_died(client, job.id)
    async with working():
        await until_idle()
    assert sorted((name, one.error) for name, one in received.calls) == [
        ("note", "E: no"),
        ("report_death", "E: no"),
    ]
    assert [dead_letter.id for dead_letter in await client.dead_letters.list()] == [job.id]


@pytest.mark.parametrize("id", ["short", "l" + 61 * "o" + "ng"], ids=["short", "hashed"])
async def test_a_fallback_that_its_worker_has_not_submitted_yet_is_queued(
    app: App, client: Client, working: Working, id: str
) -> None:
    @app.task
    async def instead(number: int) -> int:
        return -number

    @app.task(retries=0, fallback=instead)
    async def down(number: int) -> None:
        raise AssertionError("it ran again")

    await down.options(id=id).submit(5)
    await record_of_one_who_died(client, id, fallback=True)
    fallback = (await client.jobs.handle(id).status()).fallback
    assert fallback
    handle = client.jobs.handle(fallback)
    record = await handle.status()
    assert (record.id, record.state) == (fallback, "queued")
    with pytest.raises(JobNotFound):
        await client.jobs.handle(fallback.replace("-fallback-", "-fallback-9")).status()
    with pytest.raises(JobNotFound):  # no operation on the fallback is possible yet
        await handle.cancel()
    waiting = asyncio.create_task(handle.result(WAIT))
    async with working():
        assert await waiting == -5
    assert (await handle.status()).state == "succeeded"


async def test_a_fallback_that_no_worker_will_submit_is_not_found(app: App, client: Client) -> None:
    job = await client.task("down").submit()
    await record_of_one_who_died(client, job.id, fallback=True)
    fallback = (await job.status()).fallback
    broker = await client.broker()
    await broker.job_writer.remove("default", job.id)
    with pytest.raises(JobNotFound):
        await client.jobs.handle(fallback).status()


async def record_of_one_who_died(client: Client, id: str, *, fallback: bool = False) -> None:
    """Write what a worker leaves that dies just after it recorded a failure, with callbacks pending."""
    broker = await client.broker()
    running, token = await record_start_of_a_dead_worker(client, id, "down")
    failed = replace(
        running, state="failed", token=token, reason="error", error="E: no", callbacks_pending=True
    )
    if fallback:
        failed = replace(failed, fallback=callback_id(id, "fallback", token))
    dead_letter = broker.dead_letters.message(await queued_job(client, id), failed)
    await broker.records.put_with("default", id, revisions.encode(failed), [dead_letter], expect=token)


async def record_start_of_a_dead_worker(client: Client, id: str, task: str) -> tuple[Revision, int]:
    """Write what a worker leaves that dies while it runs a job. Returns the event and its sequence."""
    broker = await client.broker()
    ready = broker.subjects.streams.ready("default"), broker.subjects.ready("default", "*", id)
    message = await broker.reads.last(*ready)
    assert message is not None
    number = int(message.headers["Nats-Sequence"])
    gone = Revision("running", task, attempt=1, worker="gone", message=number)
    return gone, await broker.records.write("default", id, gone, expect=0)


async def test_a_sweep_leaves_pending_callbacks_to_a_worker(
    app: App, client: Client, received: Received, working: Working, until_idle: Callable[[], Any]
) -> None:
    @app.task(retries=0, on_dead="report_death")
    async def down() -> None: ...

    await client.admin.provision()
    job = await down.submit()
    await record_of_one_who_died(client, job.id)

    [swept] = await client.admin.sweep(age=0)
    assert (swept.kind, swept.repaired) == (Inconsistency.LEFTOVER_MESSAGE, True)
    assert await waits(client, job)  # its own message replaces the old one
    assert received.calls == []
    async with working():
        await until_idle()
    assert [one.job for one in received.of("report_death")] == [job.id]
    assert [dead_letter.id for dead_letter in await client.dead_letters.list()] == [job.id]


async def test_a_worker_without_the_task_leaves_its_callbacks_to_a_worker_that_has_it(
    app: App,
    client: Client,
    received: Received,
    working: Working,
    until: Until,
    until_idle: Callable[[], Any],
    server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timings = WorkerTimings(newer_release=1.0)
    job = await client.task("down").submit()
    await record_of_one_who_died(client, job.id)
    other = App(server.url, namespace=app.namespace)
    async with other, running_worker(Worker(other, queues=["default"], timings=timings)):
        await until(lambda: is_requeued(client, job), WAIT)

    @app.task(retries=0, on_dead="report_death")
    async def down() -> None:
        raise AssertionError("it ran again")

    async with working():
        await until(lambda: received.of("report_death"), WAIT)
        await until_idle()
    assert [dead_letter.id for dead_letter in await client.dead_letters.list()] == [job.id]


async def test_a_crash_recorded_by_a_worker_without_the_task_has_its_callbacks(
    app: App,
    client: Client,
    received: Received,
    working: Working,
    until: Until,
    until_idle: Callable[[], Any],
    server: EmbeddedServer,
) -> None:
    timings = WorkerTimings(newer_release=1.0)
    job = await client.task("down").submit()
    await record_start_of_a_dead_worker(client, job.id, "down")
    other = App(server.url, namespace=app.namespace)
    other.queue("default", max_crashes=1)
    async with other, running_worker(Worker(other, queues=["default"], timings=timings)):
        assert (await failed(job)).reason == "crashed"
        await until(lambda: is_requeued(client, job), WAIT)

    @app.task(on_failure="note", on_dead="report_death", fallback="instead")
    async def down() -> None:
        raise AssertionError("it ran again")

    expected = []

    @app.task
    async def instead(ctx: Context) -> None:
        expected.append(ctx.id)

    async with working():
        await until(lambda: received.of("report_death") and expected, WAIT)
        await until_idle()
    assert [(name, one.reason, one.fallback) for name, one in received.calls] == [
        ("report_death", "crashed", *expected)
    ]
    assert [dead_letter.id for dead_letter in await client.dead_letters.list()] == [job.id]


async def test_an_expiry_recorded_by_a_worker_without_the_task_has_its_callbacks(
    app: App,
    received: Received,
    working: Working,
    until: Until,
    until_idle: Callable[[], Any],
    server: EmbeddedServer,
) -> None:
    timings = WorkerTimings(newer_release=1.0)

    @app.task(retries=5, backoff=[1.0], retry_for=1.2, on_dead="report_death")
    async def down() -> None:
        raise ValueError

    async with working():
        job = await down.submit()
        await until(lambda: state_is(job, "retrying"), WAIT)
    closes = time.time() + 1.2
    await until(lambda: time.time() > closes)
    other = App(server.url, namespace=app.namespace)
    async with other, running_worker(Worker(other, queues=["default"], timings=timings)):
        assert (await failed(job)).reason == "overdue"

    async with working():
        await until(lambda: received.of("report_death"), WAIT)
        await until_idle()
    assert [(name, one.reason) for name, one in received.calls] == [("report_death", "overdue")]


async def test_a_job_whose_task_no_worker_knows_becomes_a_dead_letter_without_callbacks(
    app: App, client: Client, until_idle: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    job = await client.task("down").submit()
    await record_of_one_who_died(client, job.id)

    async with running_worker(Worker(app, queues=["default"], settings=WorkerSettings(unknown_task_for=0))):
        await until_idle()
    assert [dead_letter.id for dead_letter in await client.dead_letters.list()] == [job.id]
    assert "callbacks not submitted" in caplog.messages


async def is_requeued(client: Client, job: JobHandle[Any]) -> bool:
    broker = await client.broker()
    later = broker.subjects.streams.scheduled("default"), broker.subjects.scheduled("default", job.id)
    return await broker.reads.last(*later) is not None


async def test_a_callback_whose_queue_is_full_is_submitted_when_there_is_room(
    app: App, client: Client, working: Working, until: Until
) -> None:
    app.queue("default", lease=1)
    app.queue("alerts", max_jobs=1)
    await client.admin.provision(app.declared)
    reported: list[str] = []

    @app.task(queue="alerts")
    async def alert(failure: Failure) -> None:
        reported.append(failure.job)

    @app.task(retries=0, on_dead=alert)
    async def down() -> None:
        raise ValueError

    blocking = await client.task("alert").options(queue="alerts", delay=0).submit({})
    async with working(queues=["default"]):
        job = await down.submit()
        await failed(job)
        # The failure is recorded, but without its callback the delivery is not settled.
        assert await waits(client, job)
        await blocking.cancel()
        await until(lambda: is_settled(client, job), WAIT)
    async with working(queues=["alerts"]):
        await until(lambda: reported == [job.id], WAIT)


async def waits(client: Client, job: JobHandle[Any]) -> bool:
    """Whether the message of a job is still on its queue."""
    return job.id in await (await client.broker()).job_reader.queued_ids("default", [job.id])


async def is_settled(client: Client, job: JobHandle[Any]) -> bool:
    return not await waits(client, job)


async def test_a_callback_runs_once_though_its_worker_is_killed_twice(
    own_server: EmbeddedServer, namespace: str, tmp_path: Path, until: Until, forks: ForkServer
) -> None:
    """Workers are killed (-9) while jobs die. Each death is reported once, and each job has one fallback."""
    effects = tmp_path / "effects"
    effects.touch()
    env = {
        **os.environ,
        "JSQ_URL": own_server.url,
        "JSQ_NAMESPACE": namespace,
        "EFFECTS": str(effects),
    }
    words = ("worker", "tests.apps.dying:app", "--concurrency", "4", "--log-level", "error")

    def lines(kind: str) -> list[str]:
        return [line.split()[1] for line in effects.read_text().splitlines() if line.startswith(kind)]

    async with App(own_server.url, namespace=namespace) as app:
        from tests.apps import dying

        await app.client.admin.provision(dying.app.declared)
        jobs = [job.id for job in await app.client.task("die").submit_many([(n,) for n in range(30)])]
        for kill_round in range(2):
            process = forks.spawn(words, env, ROOT)
            try:
                await until(lambda: len(lines("die")) >= 10 * (kill_round + 1), WAIT)  # noqa: B023 -- waited for here
            finally:
                process.kill()
                process.wait()
        process = forks.spawn(words, env, ROOT)
        try:
            await until(lambda: len(set(lines("dead"))) == 30 and len(set(lines("instead"))) == 30, 60)
            await until(lambda: nothing_is_stored(app.client), 60)
        finally:
            process.kill()
            process.wait()
        assert sorted(dead_letter.id for dead_letter in await app.client.dead_letters.list()) == sorted(jobs)
        broker = await app.client.broker()
        events = await broker.records.history()
    ended = [event.job for event in events if event.state == "succeeded"]
    # A callback runs again if its worker died, like any job; but there is one callback for each death.
    assert len(ended) == len(set(ended)) == 60
    deaths = [id.rsplit("-dead-")[0] for id in ended if "-dead-" in id]
    assert sorted(deaths) == sorted(jobs)


# -- invalid declarations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["on_failure", "on_dead", "fallback"])
async def test_an_undeclared_callback_is_reported_before_the_worker_starts(app: App, option: str) -> None:
    app.task(name="down", **{option: "nobody"})(lambda: None)  # type: ignore[call-overload]  # by its name

    with pytest.raises(UnknownTask, match=f"{option} of task down: no task is named 'nobody'"):
        await Worker(app).run()
    with pytest.raises(UnknownTask):
        app.check()


@pytest.mark.parametrize("option", ["on_failure", "on_dead", "fallback"])
def test_an_undeclared_task_cannot_be_a_callback(app: App, option: str) -> None:
    for wrong in (5, lambda failure: None, ["note"]):
        with pytest.raises(BadOption, match=f"{option} must be a task, or the name of a task"):
            app.task(**{option: wrong})  # type: ignore[call-overload]  # that is what is tested
    with pytest.raises(BadName, match=r"task name must be .*got 'a b'"):
        app.task(**{option: "a b"})  # type: ignore[call-overload]  # that is what is tested
    assert app.tasks == {}


def test_a_callback_takes_one_argument_and_a_fallback_takes_the_same(app: App) -> None:
    @app.task
    def two(a: int, b: int) -> None: ...

    @app.task
    def one(ctx: Context, a: int) -> None: ...

    app.task(name="well", on_dead=one, fallback=one)(lambda a: None)
    app.check()
    app.task(name="called", on_dead=two)(lambda a: None)
    with pytest.raises(BadOption, match="on_dead of called must be a task of one argument"):
        app.check()
    del app.tasks["called"]
    app.task(name="handed", fallback=two)(lambda a, c: None)
    with pytest.raises(
        BadOption, match=r"fallback of handed must be a task with parameters of the same names.*got 'two'"
    ):
        app.check()


def test_a_cycle_of_fallbacks_is_reported(app: App) -> None:
    with pytest.raises(BadOption, match="fallback must be another task"):
        app.task(name="self", fallback="self")(lambda: None)
    app.task(name="a", fallback="b")(lambda: None)
    app.task(name="b", fallback="c")(lambda: None)
    app.task(name="c", fallback="b")(lambda: None)
    with pytest.raises(
        BadOption,
        match=r"circle, got 'b'; it is a -> b -> c -> b",
    ):
        app.check()


async def test_a_job_whose_arguments_are_not_json_is_dead_and_has_callbacks(
    app: App, received: Received, working: Working, until_idle: Callable[[], Any]
) -> None:
    @app.task(on_dead="report_death", fallback="spare")
    async def down() -> None: ...

    @app.task
    async def spare() -> None: ...

    broker = await app.client.broker()
    await app.client.admin.provision()
    await broker.job_writer.submit(Job("raw", "down", arguments=b"no json"))
    async with working():
        error = await failed(app.client.jobs.handle("raw"))
        assert error.reason == "bad_arguments"
        assert (await failed(app.client.jobs.handle(error.fallback))).reason == "bad_arguments"
        await until_idle()
    assert [(one.reason, one.arguments) for one in received.of("report_death")] == [("bad_arguments", None)]
