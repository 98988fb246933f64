"""Schedules on a real server: their ticks, and the effect of workers that die."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jsq import (
    App,
    BadArguments,
    BadName,
    BadOption,
    BrokerUnavailable,
    Client,
    Context,
    QueueFull,
    ScheduleNotFound,
)
from jsq.broker.schedules import ScheduleEntry
from jsq.broker.topology.provision import Change
from jsq.codec import schedules as codec
from jsq.errors import NewerEnvelope
from jsq.model.schedule import ScheduleState, tick_id
from jsq.server import EmbeddedServer
from jsq.settings import QueueSettings, WorkerSettings
from jsq.transport.wire import Wire
from jsq.worker import Worker
from tests.helpers.conditions import Until
from tests.helpers.workers import Working, running_worker

PAST = datetime(2026, 1, 1, tzinfo=UTC)


async def entry(client: Client, name: str) -> ScheduleEntry:
    return await (await client.broker()).schedules.find(name)


async def stored_tick(client: Client, name: str, queue: str = "default") -> str:
    """When the server is to wake a worker for a schedule, as stored; empty without a stored tick."""
    broker = await client.broker()
    found = await broker.reads.last(
        broker.subjects.streams.scheduled(queue), broker.subjects.next_tick(queue, name), consistent=True
    )
    return found.headers["Nats-Schedule"] if found is not None else ""


async def reset(client: Client, name: str, done: datetime, **more: Any) -> None:
    """Reset a schedule to the tick `done`, and wake a worker for it."""
    broker = await client.broker()
    found = await broker.schedules.find(name)
    key = broker.subjects.schedule(found.queue, name)
    await broker.wire.publish(key, codec.encode(found.schedule, ScheduleState(done, **more)))
    await broker.jetstream.purge(
        broker.subjects.streams.scheduled(found.queue), broker.subjects.next_tick(found.queue, name)
    )
    await broker.ticks.repair_wakeups(found.queue, [])


async def ids(client: Client) -> list[str]:
    """The ids of all jobs, sorted."""
    return sorted(job.id for job in await client.jobs.list(limit=None))


# -- ticks ---------------------------------------------------------------------------------------------------


async def test_a_declared_schedule_submits_a_job_at_each_tick(
    app: App, working: Working, until: Until
) -> None:
    submitted: list[dict[str, str]] = []

    @app.every("1s", args=["x"], tags=["beat"])
    async def beat(ctx: Context, word: str) -> str:
        submitted.append({**ctx.headers, "word": word, "id": ctx.job.id})
        return word

    async with working():
        await until(lambda: len(submitted) >= 3)

    ticks = [datetime.fromisoformat(one["tick"]) for one in submitted]
    assert ticks == [ticks[0] + timedelta(seconds=n) for n in range(len(ticks))]
    assert [one["id"] for one in submitted] == [tick_id("beat", tick) for tick in ticks]
    assert {(one["schedule"], one["word"]) for one in submitted} == {("beat", "x")}
    assert (await app.client.jobs.list())[0].tags == ("beat",)


async def test_a_task_has_several_schedules_with_their_own_arguments(app: App, client: Client) -> None:
    @app.cron("0 3 * * *", {"region": "eu"}, name="nightly-eu", tz="Europe/Berlin")
    @app.cron("@daily", ["us"], name="nightly-us", queue="us", overlap="skip", jitter=60)
    @app.task(name="reports.nightly", queue="reports", priority="low", tags=["nightly"])
    async def nightly(region: str) -> str:
        return region

    app.schedule("hourly", nightly, ["all"], every=timedelta(hours=1), start=PAST, catch_up="none")

    assert app.queues == ["reports", "us"]
    await client.admin.provision(schedules=app.schedules.values(), app=app.name)
    found = {one.name: one for one in await client.schedules.list()}
    assert list(found) == ["hourly", "nightly-eu", "nightly-us"]
    assert {one.task for one in found.values()} == {"reports.nightly"}
    eu, us = found["nightly-eu"], found["nightly-us"]
    assert (eu.queue, eu.cron, eu.tz, eu.arguments) == (
        "reports",
        "0 3 * * *",
        "Europe/Berlin",
        '{"region":"eu"}',
    )
    assert (us.queue, us.overlap, us.jitter, us.declared) == ("us", "skip", 60, app.name)
    assert (await entry(client, "nightly-us")).schedule.job.priority == "low"
    assert await nightly("here") == "here"
    with pytest.raises(BadOption, match="unique among the declared schedules"):
        app.cron("@hourly", ["x"], name="hourly")(nightly)
    with pytest.raises(BadArguments, match="missing a required argument"):
        app.schedule("other", nightly, every=5)
    with pytest.raises(BadName, match="schedule name must be"):
        app.every(5, ["x"], name="a\tb")


async def test_a_schedule_is_added_at_run_time_by_the_name_of_its_task(
    client: Client, app: App, working: Working, until: Until
) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with working():
        added = await client.schedules.add("sums", "add", [1, 2], every=1, retries=0)
        await until(lambda: ended(client, "sums"))
        with pytest.raises(BadArguments, match="missing a required argument"):
            await client.schedules.add("sums", add, [1], every=1)

    [found_schedule] = await client.schedules.list()
    assert (added.task, added.fired, added.declared) == ("add", 0, "")
    assert found_schedule.fired >= 1
    assert await client.jobs.handle(found_schedule.last).result(60) == 3


async def ended(client: Client, name: str, state: str = "succeeded") -> bool:
    found = (await entry(client, name)).state.last
    return bool(found) and (await client.jobs.handle(found).status()).state == state


async def test_two_workers_fire_a_tick_once(app: App, client: Client, working: Working, until: Until) -> None:
    ran: list[str] = []

    @app.every(1)
    async def beat(ctx: Context) -> None:
        ran.append(ctx.job.id)

    async with working(), working(), working():
        await until(lambda: len(ran) >= 3)

    assert len(ran) == len(set(ran))


async def test_a_tick_that_is_delivered_twice_submits_once(app: App, client: Client) -> None:
    await client.admin.provision()
    broker = await client.broker()
    now = broker.schedules.now()
    start = now - timedelta(minutes=150)
    await client.schedules.add("beat", "any", every=3600, catch_up="all", start=start)
    await reset(client, "beat", start - timedelta(hours=1))
    before = await entry(client, "beat")
    consistent = lambda: True  # noqa: E731 -- a lease that holds

    runs = await asyncio.gather(
        *(broker.ticks.run("default", "beat", now.timestamp(), consistent) for _ in range(8))
    )

    assert sum(run is not None for run in runs) == 1
    [run] = [run for run in runs if run is not None]
    assert len(run.ticks) == 3
    assert sorted(await broker.job_reader.waiting_ids("default")) == [
        tick_id("beat", tick) for tick in run.ticks
    ]
    # A worker that died before it stored its progress leaves a state that submits the same jobs again.
    key = broker.subjects.key("schedules", "default.beat")
    await broker.wire.publish(key, codec.encode(before.schedule, before.state))
    assert await broker.ticks.run("default", "beat", now.timestamp(), consistent) == run
    assert len(await broker.job_reader.waiting_ids("default")) == 3
    assert await stored_tick(client, "beat") != ""


@pytest.mark.proof
async def test_a_worker_without_its_lease_writes_no_tick(
    app: App, client: Client, own_server: EmbeddedServer
) -> None:
    async with Client(own_server.url) as other:
        await other.schedules.add("beat", "any", every=60)
        broker = await other.broker()
        await reset(other, "beat", PAST)
        found_schedule = await entry(other, "beat")
        own_server.kill()
        lost = asyncio.Event()
        tick = asyncio.create_task(broker.ticks.run("default", "beat", 0, lost.is_set))
        lost.set()
        with pytest.raises(BrokerUnavailable):
            await tick
        own_server.restart()
        assert await entry(other, "beat") == found_schedule
        assert await broker.job_reader.waiting_ids("default") == []


class Died(BaseException):
    """The exception with which a process would end."""


def die_at(wire: Wire, point: int, *, before: bool) -> None:
    """Have a connection die at its n-th message: just before it is sent, or just after."""
    put, left = wire._nats.put, itertools.count(1)

    def put_or_die(command: bytes) -> None:
        last = next(left) == point
        if not (last and before):
            put(command)
        if last:
            raise Died(command)

    wire._nats.put = put_or_die  # type: ignore[method-assign]  # what this connection is for


@pytest.mark.parametrize("before", [True, False])
async def test_a_tick_of_a_killed_worker_is_completed_once_by_another(
    before: bool, server: EmbeddedServer, client: Client, namespace: str
) -> None:
    broker, died = await client.broker(), list[str]()
    for point in itertools.count(1):
        name = f"beat-{point}"
        now = broker.schedules.now()
        start = (now - timedelta(minutes=150)).replace(microsecond=0)
        await client.schedules.add(name, "any", every=3600, catch_up="all", start=start)
        await reset(client, name, start - timedelta(hours=1))
        async with Client(server.url, namespace=namespace) as doomed:
            other = await doomed.broker()
            die_at(other.wire, point, before=before)
            try:
                await other.ticks.run("default", name, now.timestamp(), lambda: True)
            except Died as error:
                died.append(str(error).partition(".")[2].partition(".")[0])

        await broker.ticks.run("default", name, now.timestamp(), lambda: True)

        found = await entry(client, name)
        *ticks, following = [start + timedelta(hours=number) for number in range(4)]
        waiting = [id for id in await broker.job_reader.waiting_ids("default") if id.startswith(f"{name}-")]
        assert sorted(waiting) == sorted(tick_id(name, tick) for tick in ticks)
        assert (found.state.decided_until, found.state.fired) == (ticks[-1], 3)
        assert await stored_tick(client, name) == f"@at {following:%Y-%m-%dT%H:%M:%S}.000Z"
        if len(died) < point:
            break
    assert died[:5] == ["API", *["q"] * 3, f"{namespace}_schedules"]
    assert "next-tick" in died


# -- missed ticks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("catch_up", "count"), [("latest", 1), ("all", 5), ("none", 0)])
async def test_ticks_missed_without_a_worker_are_caught_up(
    catch_up: Any, count: int, app: App, client: Client, working: Working, until: Until
) -> None:
    ran: list[str] = []

    @app.task
    async def note(ctx: Context) -> None:
        ran.append(ctx.headers["tick"])

    broker = await client.broker()
    await client.admin.provision()
    half_past = broker.schedules.now().replace(microsecond=0) - timedelta(minutes=30)
    start = half_past - timedelta(days=1)
    await client.schedules.add("hours", note, every=3600, catch_up=catch_up, start=start)
    await reset(client, "hours", half_past - timedelta(hours=5))

    async with working():
        await until(lambda: moved(client, "hours", half_past))
        await until(lambda: len(ran) == count)
        await until(lambda: stored_tick(client, "hours"))

    expected = [half_past - timedelta(hours=n) for n in reversed(range(count))]
    assert sorted(datetime.fromisoformat(tick) for tick in ran) == expected
    following = (half_past + timedelta(hours=1)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert await stored_tick(client, "hours") == f"@at {following}"


async def moved(client: Client, name: str, done: datetime) -> bool:
    return (await entry(client, name)).state.decided_until >= done


async def test_all_missed_ticks_are_caught_up_in_several_parts(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def note() -> None: ...

    await client.schedules.add("minutes", note, every=60, catch_up="all")
    start = (await client.broker()).schedules.now().replace(second=0, microsecond=0)
    await reset(client, "minutes", start - timedelta(minutes=250))

    async with working(concurrency=50):
        await until(lambda: moved(client, "minutes", start))

    found = await ids(client)
    assert {tick_id("minutes", start - timedelta(minutes=n)) for n in range(250)} <= set(found)


# -- overlap -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["queue", "skip", "cancel"])
async def test_a_tick_while_the_previous_job_runs(
    overlap: Any, app: App, client: Client, working: Working, until: Until
) -> None:
    go_on = asyncio.Event()

    @app.every(1, overlap=overlap)
    async def slow() -> None:
        await go_on.wait()

    async def overlap_is_visible() -> bool:
        found = (await entry(client, "slow")).state
        states = [job.state for job in await client.jobs.list()]
        match overlap:
            case "queue":
                return states.count("running") >= 3
            case "skip":
                return found.skipped >= 2 and states == ["running"] and found.fired == 1
            case _:
                return states.count("cancelled") >= 2 and states.count("running") == 1

    async with working(grace=1.0):
        await until(overlap_is_visible)
        if overlap == "skip":
            go_on.set()
            await until(lambda: fired_again(client))


async def fired_again(client: Client) -> bool:
    return (await entry(client, "slow")).state.fired > 1


# -- changes -------------------------------------------------------------------------------------------------


async def test_a_paused_schedule_submits_nothing_and_catches_up_nothing(
    app: App, client: Client, working: Working, until: Until
) -> None:
    ran: list[str] = []

    @app.task
    async def note(ctx: Context) -> None:
        ran.append(ctx.headers.get("tick", "now"))

    await client.schedules.add("beat", note, every=1, catch_up="all")
    assert (await client.schedules.pause("beat")).paused
    await reset(client, "beat", PAST, paused=True)
    [found_schedule] = await client.schedules.list()
    assert (found_schedule.paused, found_schedule.next) == (True, None)

    async with working():
        assert await (await client.schedules.run("beat")).result(60) is None
        assert ran == ["now"]
        resumed = await client.schedules.resume("beat")
        assert await client.schedules.resume("beat")
        await until(lambda: len(ran) >= 3)

    assert resumed.next is not None
    assert datetime.fromisoformat(ran[1]) >= resumed.next
    assert len(ran) == len(set(ran))


async def test_a_changed_schedule_replaces_its_stored_tick(client: Client) -> None:
    await client.schedules.add("report", "any", cron="0 3 1 1 *")
    first = await stored_tick(client, "report")
    assert first.endswith("-01-01T03:00:00.000Z")

    changed = await client.schedules.add("report", "any", cron="0 4 1 1 *")

    assert await stored_tick(client, "report") == first.replace("T03", "T04")
    assert changed.cron == "0 4 1 1 *"
    [found_schedule] = await client.schedules.list()
    assert found_schedule == changed
    before = (await entry(client, "report")).revision
    await client.schedules.add("report", "any", cron="0 4 1 1 *")
    assert (await entry(client, "report")).revision == before


async def test_changed_arguments_keep_the_due_tick_and_changed_times_replace_it(client: Client) -> None:
    await client.schedules.add("report", "any", ["a"], every=60)
    await reset(client, "report", PAST)

    await client.schedules.add("report", "any", ["b"], every=60)
    assert (await entry(client, "report")).state.decided_until == PAST

    await client.schedules.add("report", "any", ["b"], every=61)
    assert (await entry(client, "report")).state.decided_until > PAST


async def test_a_schedule_moves_to_another_queue_completely(client: Client) -> None:
    await client.schedules.add("report", "any", every=3600, queue="mail")

    await client.schedules.add("report", "any", every=3600, queue="pdf")

    assert [one.queue for one in await client.schedules.list()] == ["pdf"]
    assert await stored_tick(client, "report", "mail") == ""
    assert await stored_tick(client, "report", "pdf") != ""
    await client.schedules.add("report", "any", every=3600, queue="mail")
    assert [one.queue for one in await client.schedules.list()] == ["mail"]


async def test_a_removed_schedule_leaves_no_trace(client: Client) -> None:
    await client.schedules.add("report", "any", every=3600)

    removed = await client.schedules.remove("report")

    assert removed.every == 3600
    assert await client.schedules.list() == []
    assert await stored_tick(client, "report") == ""
    for act in (client.schedules.remove, client.schedules.run, client.schedules.pause, client.schedules.next):
        with pytest.raises(ScheduleNotFound, match="no schedule is named 'report'"):
            await act("report")
    await client.schedules.add("report", "any", every=3600)
    assert await stored_tick(client, "report") != ""


async def test_a_schedule_that_has_ended_stores_no_tick(client: Client) -> None:
    now = datetime.now(UTC)
    added = await client.schedules.add("report", "any", every=60, end=now - timedelta(hours=1))

    assert (added.next, await client.schedules.next("report")) == (None, [])
    assert await stored_tick(client, "report") == ""


async def test_the_next_ticks_are_shown_in_the_zone_of_the_schedule(client: Client) -> None:
    await client.schedules.add("report", "any", cron="30 9 * * MON", tz="America/New_York")

    found = await client.schedules.next("report", 3)

    assert [f"{tick:%a %H:%M}" for tick in found] == ["Mon 09:30"] * 3
    assert found[0] == (await client.schedules.list())[0].next
    with pytest.raises(BadOption, match="n must be a number from 1 to 1000"):
        await client.schedules.next("report", 0)


# -- declared schedules --------------------------------------------------------------------------------------


def declaring(server: EmbeddedServer, namespace: str, **schedules: str) -> App:
    """An App of a release that declares these schedules of one task, each with its interval."""
    app = App(server.url, namespace=namespace)

    @app.task
    async def note() -> None: ...

    for name, every in schedules.items():
        app.schedule(name, note, every=every)
    return app


@contextlib.asynccontextmanager
async def released(app: App) -> AsyncIterator[None]:
    async with app, running_worker(Worker(app, settings=WorkerSettings())):
        yield


async def test_a_release_changes_only_the_schedules_it_declares(
    server: EmbeddedServer, namespace: str, client: Client
) -> None:
    async with released(declaring(server, namespace, old="1h", both="1h")):
        pass
    async with released(declaring(server, namespace, both="2h", new="1h")):
        found = {one.name: one.every for one in await client.schedules.list()}

    assert found == {"old": 3600.0, "both": 7200.0, "new": 3600.0}


async def test_provision_removes_schedules_that_no_code_declares(
    server: EmbeddedServer, namespace: str, client: Client, until: Until
) -> None:
    old, new = (declaring(server, namespace, **names) for names in ({"a": "1h", "b": "1h"}, {"a": "1h"}))
    await client.schedules.add("ours", "note", every="1h")

    async def orphans() -> list[str]:
        return [one.name for one in await client.schedules.list() if one.orphan]

    async def provision(*, check: bool = False) -> list[Change]:
        found = await client.admin.provision(schedules=new.schedules.values(), app=new.name, check=check)
        return [one for one in found if one.what.startswith("schedule")]

    async with released(old):
        await until(lambda: client.admin.workers())
        assert await orphans() == []
        [left] = await provision()
        assert "not declared any more; kept, because worker" in left.how
    async with released(new):
        await until(lambda: orphans_are_reported(orphans))
    gone = [Change("schedule b", "not declared any more: an orphan")]
    await until(lambda: nobody(client))

    assert await provision(check=True) == gone
    assert len(await client.schedules.list()) == 3
    assert await provision() == gone
    assert await provision() == []
    assert [one.name for one in await client.schedules.list()] == ["a", "ours"]
    assert await stored_tick(client, "b") == ""


async def orphans_are_reported(orphans: Any) -> bool:
    return bool(await orphans() == ["b"])


async def nobody(client: Client) -> bool:
    return not await client.admin.workers()


async def test_provision_reports_differences_and_repairs_them(client: Client, app: App) -> None:
    @app.every("1h")
    async def beat() -> None: ...

    def of(changes: list[Change]) -> list[Change]:
        return [one for one in changes if one.what == "schedule beat"]

    declared = app.schedules.values()
    assert of(await client.admin.provision(schedules=declared, app="jsq", check=True)) == [
        Change("schedule beat", "missing")
    ]
    await client.admin.provision(schedules=declared, app="jsq")
    assert of(await client.admin.provision(schedules=declared, app="jsq")) == []
    other = App(namespace="x")
    other.schedule("beat", "beat", every="2h")
    changes = await client.admin.provision(schedules=other.schedules.values(), app="jsq")
    assert of(changes)[0] == Change("schedule beat", "every is 3600.0, should be 7200.0")
    with pytest.raises(BadOption, match="change it in the App jsq"):
        await client.schedules.add("beat", "beat", every=5)


# -- inconsistencies -----------------------------------------------------------------------------------------


async def test_a_schedule_without_a_tick_is_found_and_repaired(
    app: App, client: Client, working: Working, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[int] = []

    @app.task
    async def note() -> None:
        ran.append(1)

    await client.schedules.add("beat", note, every=1)
    broker = await client.broker()
    # The client that wrote it died before the tick was stored.
    await broker.jetstream.purge(
        broker.subjects.streams.scheduled("default"), broker.subjects.next_tick("default", "beat")
    )
    assert await stored_tick(client, "beat") == ""

    with caplog.at_level(logging.WARNING, "jsq.schedule"):
        async with working():
            await until(lambda: ran)

    assert [one.message for one in caplog.records] == ["schedule tick restored"]


async def test_a_tick_scheduled_too_late_is_repaired_and_one_too_early_is_kept(
    client: Client,
) -> None:
    await client.schedules.add("beat", "any", every=60)
    broker = await client.broker()
    subject, right = broker.subjects.next_tick("default", "beat"), await stored_tick(client, "beat")

    async def hold(at: str) -> None:
        target = broker.subjects.due_tick("default", "normal", "beat")
        await broker.wire.publish(subject, b"", {"Nats-Schedule": at, "Nats-Schedule-Target": target})

    await hold("@at 2099-01-01T00:00:00.000Z")
    assert await broker.ticks.repair_wakeups("default", []) == ["beat"]
    repaired = await stored_tick(client, "beat")
    assert right <= repaired < "@at 2099"
    early = f"@at {(broker.schedules.now() + timedelta(seconds=20)).isoformat(timespec='milliseconds')[:-6]}Z"
    if early < repaired:
        await hold(early)
        assert await broker.ticks.repair_wakeups("default", []) == []


async def test_a_queue_of_an_older_release_is_updated_for_schedules(
    app: App, client: Client, working: Working, until: Until
) -> None:
    ran: list[int] = []

    @app.every(1)
    async def beat() -> None:
        ran.append(1)

    await client.admin.provision()
    broker = await client.broker()
    stream = broker.subjects.streams.scheduled("default")
    await broker.wire.api(f"CONSUMER.DELETE.{stream}.ticks")
    await broker.wire.api(f"STREAM.DELETE.{broker.subjects.streams.bucket('schedules')}")
    config = (await broker.jetstream.stream_info(stream) or {})["config"]
    old = [subject for subject in config["subjects"] if ".tick" not in subject]
    await broker.wire.api(f"STREAM.UPDATE.{stream}", config | {"subjects": old})
    broker.streams.forget()

    async with working():
        await until(lambda: len(ran) >= 2)


@pytest.mark.proof
async def test_schedules_of_a_memory_queue_continue_after_its_server_was_killed(
    own_server: EmbeddedServer, until: Until
) -> None:
    ran: list[str] = []
    app = App(own_server.url)
    app.queue("fast", storage="memory")

    @app.every(1, queue="fast")
    async def beat(ctx: Context) -> None:
        ran.append(ctx.job.id)

    async with released(app):
        await until(lambda: len(ran) >= 2)
        own_server.kill()
        own_server.restart()
        seen = len(ran)
        await until(lambda: len(ran) > seen + 1, seconds=45)

    assert len(ran) == len(set(ran))


async def test_a_full_queue_postpones_a_tick(
    app: App, client: Client, working: Working, until: Until
) -> None:
    ran: list[str] = []
    app.queue("small", max_jobs=1)

    @app.task(queue="small")
    async def note(ctx: Context) -> None:
        ran.append(ctx.job.id)

    await client.admin.provision({"small": QueueSettings(max_jobs=1)})
    waiting = await note.submit()
    await client.schedules.add("beat", note, every=3600)
    broker = await client.broker()
    hour = broker.schedules.now().replace(minute=0, second=0, microsecond=0)
    await reset(client, "beat", hour - timedelta(hours=1))
    with pytest.raises(QueueFull, match="queue small is full"):
        await broker.ticks.run("small", "beat", 0, lambda: True)
    assert (await entry(client, "beat")).state.fired == 0

    async with working(queues=["small"]):
        await until(lambda: len(ran) == 2)

    assert ran == [waiting.id, tick_id("beat", hour)]


async def test_an_invalid_schedule_record_affects_no_other_schedule(
    app: App, client: Client, working: Working, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []

    @app.every(1)
    async def beat(ctx: Context) -> None:
        ran.append(ctx.headers["schedule"])

    await client.schedules.add("newer", beat, every=1)
    broker = await client.broker()
    found = await broker.schedules.find("newer")
    stored = codec.encode(found.schedule, found.state).replace(b'"v":1', b'"v":2')
    await broker.wire.publish(broker.subjects.key("schedules", "default.newer"), stored)

    async with working():
        await until(lambda: any("tick abandoned" in one.message for one in caplog.records))
        await until(lambda: len(ran) >= 2)

    assert set(ran) == {"beat"}
    [abandoned] = {one.__dict__["why"] for one in caplog.records if "tick abandoned" in one.message}
    assert abandoned == "schedule newer has version 2; this release reads up to 1"
    assert [one.name for one in await client.schedules.list()] == ["beat"]
    with pytest.raises(NewerEnvelope, match="version 2"):
        await client.schedules.remove("newer")


async def test_stored_ticks_are_not_jobs(client: Client) -> None:
    await client.schedules.add("beat", "any", every=3600)
    await client.task("any").options(delay=3600).submit()

    [stats] = await client.queues.stats()
    assert stats.scheduled == 1
    assert len(await client.jobs.list_open(queue="default")) == 1
    assert await client.admin.sweep(age=0) == []
