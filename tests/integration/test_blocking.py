"""`client.blocking`: what callers without an event loop (Flask, Django, scripts) do beside submitting."""

import inspect
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from jsq import App, BadOption, Client, JobNotFound, QueueNotFound, ScheduleNotFound
from jsq.client.client import Blocking, BlockingSchedules
from jsq.client.schedules import Schedules
from jsq.server import EmbeddedServer
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

SUBMITTING = {"submit": "delay", "submit_many": "delay_many", "map": "delay_map"}
"""What submits has its twin beside it."""

INSIDE = {"broker", "connect", "close", "send", "send_many", "send_each"}


@pytest.fixture
def plain(server: EmbeddedServer, namespace: str) -> Iterator[Client]:
    """A client where there is no event loop."""
    client = Client(server.url, namespace=namespace)
    yield client
    client.portal.stop()


def asynchronous(of: type) -> set[str]:
    """The public methods of a class that are awaited."""
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    return {name for name, one in vars(of).items() if name[0] != "_" and any(kind(one) for kind in kinds)}


@pytest.mark.parametrize(("of", "twins"), [(Client, Blocking), (Schedules, BlockingSchedules)])
def test_all_that_is_awaited_has_a_blocking_twin(of: type, twins: type) -> None:
    missing = {name for name in asynchronous(of) - INSIDE - SUBMITTING.keys() if not hasattr(twins, name)}

    assert missing == set()
    assert all(hasattr(of, SUBMITTING[name]) for name in asynchronous(of) & SUBMITTING.keys())


def test_schedules_are_kept_without_an_event_loop(plain: Client) -> None:
    schedules = plain.blocking.schedules

    added = schedules.add("nightly", "report", ["all"], cron="0 3 * * *", tz="Europe/Berlin")

    assert (added.name, added.cron) == ("nightly", "0 3 * * *")
    assert [one.name for one in schedules.ls()] == ["nightly"]
    assert len(schedules.next("nightly", 3)) == 3
    assert schedules.pause("nightly").paused
    assert not schedules.resume("nightly").paused
    job = schedules.run("nightly")
    assert (job.status().task, job.status().state) == ("report", "queued")
    assert schedules.rm("nightly").name == "nightly"
    with pytest.raises(ScheduleNotFound):
        schedules.run("nightly")
    with pytest.raises(BadOption, match="cron"):
        schedules.add("x", "report", cron="never")


def test_pauses_and_queues_are_looked_after_without_an_event_loop(plain: Client) -> None:
    blocking = plain.blocking
    blocking.provision()

    held = blocking.pause("default", task="report", until=3600)

    assert held.task == "report"
    assert blocking.holds() == {"default": (held,)}
    blocking.resume("default", task="report")
    assert blocking.holds() == {}
    assert blocking.set_queue("default", max_jobs=50).max_jobs == 50
    assert blocking.queues() == ["default"]
    assert blocking.queue_stats("default")[0].settings.max_jobs == 50
    with pytest.raises(QueueNotFound):
        blocking.pause("none")


def test_jobs_are_found_and_cancelled_without_an_event_loop(plain: Client, until: Until) -> None:
    jobs = plain.delay_many("report", [[1], {"page": 2}])
    more = plain.options(tags=["x"]).delay_many("report", [[3]])

    async def all_are_shown() -> None:
        async def shown() -> bool:
            return len(await plain.jobs(task="report")) == 3

        await until(shown)

    plain.portal.call(all_are_shown())
    assert {job.id for job in plain.blocking.jobs(task="report")} == {job.id for job in (*jobs, *more)}
    found = plain.blocking.job(jobs[0].id)
    assert found.status().state == "queued"
    assert found.cancel().state == "cancelled"
    assert plain.blocking.cancel_many(tag="x").cancelled == 1
    assert plain.blocking.purge("default") == 1
    told = list(plain.blocking.events(job=jobs[0].id, follow=False))
    assert [event.state for event in told] == ["queued", "cancelled"]
    with pytest.raises(JobNotFound):
        plain.blocking.job("none").status()


def test_events_that_are_not_followed_on_leave_nothing_behind(plain: Client) -> None:
    async def heard() -> int:
        return len((await plain.broker()).wire._nats._subs)

    job = plain.delay("report", 1)
    before = plain.portal.call(heard())
    following = plain.blocking.events(job=job.id, since=datetime(2020, 1, 1, tzinfo=UTC))
    assert next(following).id == job.id
    assert plain.portal.call(heard()) == before + 1

    following.close()  # type: ignore[attr-defined]  # it is a generator

    assert plain.portal.call(heard()) == before


async def test_threads_share_it_while_a_loop_runs_beside(
    app: App, client: Client, working: Working, until: Until
) -> None:
    """As in a web server with threads: each asks for itself, and a worker runs in the same process."""

    @app.task
    async def double(number: int) -> int:
        return 2 * number

    found: dict[int, int] = {}

    def ask(number: int) -> None:
        job = client.delay("double", number)
        found[number] = client.blocking.job(job.id).result(60)

    async with working():
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        await until(lambda: len(found) == len(threads), 30)
        for thread in threads:
            thread.join()

    assert found == {number: 2 * number for number in range(8)}
