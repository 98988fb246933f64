"""`client.blocking`: everything but submits for callers without an event loop (Flask, Django, scripts)."""

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from jsq import (
    App,
    BadOption,
    BlockingJobHandle,
    Client,
    JobHandle,
    JobNotFound,
    QueueNotFound,
    ScheduleNotFound,
)
from jsq.client.admin import AdminClient, BlockingAdmin
from jsq.client.dead_letters import BlockingDeadLetters, DeadLettersClient
from jsq.client.jobs import BlockingJobs, JobsClient
from jsq.client.queues import BlockingQueues, QueuesClient
from jsq.client.schedules import BlockingSchedules, SchedulesClient
from jsq.errors import JobFailed, NoSuchMethod, UsageError
from jsq.server import EmbeddedServer
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

PAIRS = (
    (JobsClient, BlockingJobs),
    (QueuesClient, BlockingQueues),
    (DeadLettersClient, BlockingDeadLetters),
    (SchedulesClient, BlockingSchedules),
    (AdminClient, BlockingAdmin),
    (JobHandle, BlockingJobHandle),
)
"""Async objects, and their blocking forms."""


@pytest.fixture
def plain(server: EmbeddedServer, namespace: str) -> Iterator[Client]:
    """A client without an event loop."""
    client = Client(server.url, namespace=namespace)
    yield client
    client.blocking.close()


def asynchronous(of: type) -> set[str]:
    """The async public methods of a class."""
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    return {name for name, one in vars(of).items() if name[0] != "_" and any(kind(one) for kind in kinds)}


@pytest.mark.parametrize(("awaited", "blocking"), PAIRS)
def test_every_awaited_method_has_a_blocking_form_of_the_same_name(awaited: type, blocking: type) -> None:
    assert {name for name in asynchronous(awaited) if not hasattr(blocking, name)} == set()


def test_schedules_are_managed_without_an_event_loop(plain: Client) -> None:
    schedules = plain.blocking.schedules

    added = schedules.add("nightly", "report", ["all"], cron="0 3 * * *", tz="Europe/Berlin")

    assert (added.name, added.cron) == ("nightly", "0 3 * * *")
    assert [one.name for one in schedules.list()] == ["nightly"]
    assert len(schedules.next("nightly", 3)) == 3
    assert schedules.pause("nightly").paused
    assert not schedules.resume("nightly").paused
    job = schedules.run("nightly")
    assert (job.status().task, job.status().state) == ("report", "queued")
    assert schedules.remove("nightly").name == "nightly"
    with pytest.raises(ScheduleNotFound):
        schedules.run("nightly")
    with pytest.raises(BadOption, match="cron"):
        schedules.add("x", "report", cron="never")


def test_pauses_and_queues_are_managed_without_an_event_loop(plain: Client) -> None:
    blocking = plain.blocking
    blocking.admin.provision()

    paused = blocking.queues.pause("default", task="report", until=3600)

    assert paused.task == "report"
    assert blocking.queues.pauses() == {"default": (paused,)}
    blocking.queues.resume("default", task="report")
    assert blocking.queues.pauses() == {}
    assert blocking.queues.update("default", max_jobs=50).max_jobs == 50
    assert blocking.queues.list() == ["default"]
    assert blocking.queues.stats("default")[0].settings.max_jobs == 50
    with pytest.raises(QueueNotFound):
        blocking.queues.pause("none")


def test_jobs_are_found_and_cancelled_without_an_event_loop(plain: Client, until: Until) -> None:
    jobs = plain.task("report").blocking.submit_many([[1], {"page": 2}])
    more = plain.task("report").options(tags=["x"]).blocking.submit_many([[3]])

    async def all_are_shown() -> None:
        async def shown() -> bool:
            return len(await plain.jobs.list(task="report")) == 3

        await until(shown)

    plain.connection.portal.run(all_are_shown())
    assert {job.id for job in plain.blocking.jobs.list(task="report")} == {job.id for job in (*jobs, *more)}
    found = plain.blocking.jobs.handle(jobs[0].id)
    assert found.status().state == "queued"
    assert found.cancel().state == "cancelled"
    assert plain.blocking.jobs.cancel_many(tag="x").cancelled == 1
    assert plain.blocking.queues.purge("default") == 1
    events = list(plain.blocking.jobs.events(job=jobs[0].id, follow=False))
    assert [event.state for event in events] == ["cancelled"]
    chosen = plain.blocking.jobs.events(task=["report"], state=["cancelled", "failed"], follow=False)
    assert {(event.id, event.state) for event in chosen} == {(job.id, "cancelled") for job in (*jobs, *more)}
    assert list(plain.blocking.jobs.events(task="other", follow=False)) == []
    with pytest.raises(BadOption, match=r"state must .*got 'ended'"):
        list(plain.blocking.jobs.events(state="ended", follow=False))
    with pytest.raises(JobNotFound):
        plain.blocking.jobs.handle("none").status()


def test_an_unfinished_iteration_over_events_leaves_no_subscription(plain: Client) -> None:
    async def subscriptions() -> int:
        return len((await plain.broker()).wire._nats._subs)

    job = plain.task("report").blocking.submit(1)
    job.cancel()
    before = plain.connection.portal.run(subscriptions())
    following = plain.blocking.jobs.events(job=job.id, since=datetime(2020, 1, 1, tzinfo=UTC))
    assert next(following).id == job.id
    assert (
        plain.connection.portal.run(subscriptions()) == before + 2
    )  # for revisions of the record, and for progress

    following.close()  # type: ignore[attr-defined]  # it is a generator

    assert plain.connection.portal.run(subscriptions()) == before


async def test_threads_share_a_blocking_client_while_an_event_loop_runs(
    app: App, client: Client, working: Working, until: Until
) -> None:
    """As in a threaded web server: each thread makes its own calls, and a worker runs in the same process."""

    @app.task
    async def double(number: int) -> int:
        return 2 * number

    found: dict[int, int] = {}

    def ask(number: int) -> None:
        job = client.task("double").blocking.submit(number)
        found[number] = client.blocking.jobs.handle(job.id).result(60)

    async with working():
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        await until(lambda: len(found) == len(threads), 30)
        for thread in threads:
            thread.join()

    assert found == {number: 2 * number for number in range(8)}


async def test_a_blocking_call_on_an_event_loop_is_refused_at_once(app: App, client: Client) -> None:
    @app.task
    def add(a: int, b: int) -> int:
        return a + b

    calls: dict[str, Callable[[], object]] = {
        "add.submit": lambda: add.delay(1, 2),
        "add.submit_many": lambda: add.blocking.submit_many([(1, 2)]),
        "add.map": lambda: add.blocking.map([(1, 2)]),
        "job.result": lambda: add.job("some").blocking.result(),
        "job.status": lambda: add.job("some").blocking.status(),
        "client.queues.pause": lambda: client.blocking.queues.pause("mail"),
        "client.jobs.events": lambda: client.blocking.jobs.events(),
    }
    for method, call in calls.items():
        with pytest.raises(UsageError) as refused:
            call()
        assert f"await {method}(...) instead" in str(refused.value)
    assert await client.jobs.list() == []


async def test_a_task_in_a_thread_may_block_and_a_task_on_the_event_loop_may_not(
    app: App, working: Working
) -> None:
    @app.task
    def double(number: int) -> int:
        return 2 * number

    @app.task
    def in_a_thread(number: int) -> int:
        return double.delay(number).result("30s")

    @app.task(retries=0)
    async def on_the_loop(number: int) -> int:
        return double.delay(number).result()

    async with working():
        assert await (await in_a_thread.submit(4)).result("30s") == 8
        with pytest.raises(JobFailed, match=r"UsageError: .*await double\.submit"):
            await (await on_the_loop.submit(4)).result("30s")


async def test_options_have_no_delay_method_and_the_error_names_the_alternative(app: App) -> None:
    @app.task
    def add(a: int, b: int) -> int:
        return a + b

    later: Any = add.options(delay=60)

    with pytest.raises(NoSuchMethod, match=r"use \.blocking\.submit\(\.\.\.\)") as refused:
        later.delay(1, 2)
    assert isinstance(refused.value, AttributeError)
    assert not hasattr(later, "delay")
    assert not hasattr(later, "dealy")


async def test_options_add_up_over_several_calls(app: App, client: Client) -> None:
    later = client.task("any").options(delay="1h", tags=["x"])

    job = await later.options(queue="mail").submit()

    record = await job.status()
    assert (record.state, record.queue, record.tags) == ("scheduled", "mail", ("x",))


async def test_a_job_found_by_its_id_has_the_type_of_its_result(app: App, working: Working) -> None:
    @app.task
    def split(text: str) -> tuple[str, ...]:
        return tuple(text.split())

    job = await split.submit("a b")

    async with working():
        assert await split.job(job.id).result(30) == ("a", "b")
        assert await app.client.task("split").job(job.id).result(30) == ["a", "b"]
        assert await asyncio.to_thread(lambda: split.job(job.id).blocking.result("30s")) == ("a", "b")
