"""Roles on a real server, by the block that `jsq provision --roles` prints: what each may do, and may not."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nats
import pytest
from nats.aio.client import Client as NatsClient

from jsq import App, Client, Context, DuplicateJob, Failure, JobHandle, Login, NotAllowed, RateLimited
from jsq.broker.flow.wakeup_source import WakeupSource
from jsq.broker.topology.subjects import Subjects
from jsq.model.job import JobRecord
from jsq.model.schedule import read_schedule
from jsq.settings import QueueSettings, WorkerSettings
from jsq.worker import Worker
from tests.helpers.conditions import Until
from tests.helpers.rate_limits import most_in_a_window
from tests.helpers.servers import nats_server
from tests.helpers.workers import running_worker

USERS = (
    "jsq=admin",
    "web=submitter:mail",
    "shop-1=submitter:*",
    "hands=worker:mail",
    "eyes=observer:mail",
    "tower=observer:*",
)
NAMES = Subjects("jsq")
PROMPT = 10.0
"""Seconds within which a refusal is reported: well below those of a request without a reply."""


@dataclass(frozen=True)
class Place:
    """A server with the roles, and two queues."""

    address: str

    def login(self, user: str) -> Login:
        return Login(
            url=f"nats://{self.address}", user=user, password=f"of-{user}", inbox_prefix=f"_INBOX_{user}"
        )

    def client(self, user: str) -> Client:
        return Client(self.login(user))

    @contextlib.asynccontextmanager
    async def raw(self, user: str, refused: list[str]) -> AsyncIterator[NatsClient]:
        """A connection without jsq, as an intruder has it."""

        async def record_refusal(error: Exception) -> None:
            refused.append(str(error))

        login = self.login(user)
        wire = await nats.connect(
            login.url,
            user=user,
            password=login.password,
            inbox_prefix=login.inbox_prefix,
            error_cb=record_refusal,
        )
        try:
            yield wire
        finally:
            await wire.close()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Place]:
    roles = Client("nats://nowhere").admin.roles(*USERS)
    conf = f"jetstream {{ store_dir: '{folder}/js', sync_interval: 1s }}\n{roles.conf()}"
    names = [user.partition("=")[0] for user in USERS]
    passwords = {f"{name.replace('-', '_').upper()}_PASSWORD": f"of-{name}" for name in names}
    with nats_server(folder, conf, passwords) as address:
        yield Place(address)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    """A server for one test."""
    with served(tmp_path) as place:
        async with place.client("jsq") as admin:
            await admin.admin.provision({"mail": QueueSettings(), "pay": QueueSettings()})
        yield place


@pytest.fixture(scope="module")
def read_only_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server for roles that may change nothing there. Each queue has a waiting job and a finished one."""

    async def fill() -> None:
        async with address.client("jsq") as admin:
            for queue in ("mail", "pay"):
                await to(admin, queue, id=f"{queue}-1")
                await (await to(admin, queue, id=f"{queue}-2")).cancel()
            await dead_letter(admin, "pay", "x")
            await admin.schedules.add("weekly", "greet", every=604_800, queue="pay")

    with served(tmp_path_factory.mktemp("quiet")) as address:
        asyncio.run(fill())
        yield address


async def to(client: Client, queue: str, **options: Any) -> JobHandle[Any]:
    return await client.task("greet").options(queue=queue, **options).submit("you")


def with_others(app: App) -> None:
    @app.task(queue="mail")
    async def rest(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    @app.task(queue="mail")
    async def mourn(failure: Failure) -> None: ...

    @app.task(queue="other")
    async def shout(failure: Failure) -> None: ...

    @app.task(queue="mail", retries=0, on_failure=shout, on_dead=mourn)
    async def die() -> None:
        raise ValueError("no")


@contextlib.asynccontextmanager
async def working(login: Login, *queues: str) -> AsyncIterator[Worker]:
    """A worker of a user, with two tasks."""
    app = App(login)

    @app.task(queue="mail")
    async def greet(name: str) -> str:
        return f"hello {name}"

    @app.task(queue="mail")
    async def wait() -> None:
        await asyncio.sleep(60)

    @app.task(queue="mail", rate="9/2s", key_rate="3/2s")
    async def rarely() -> float:
        return time.time()

    @app.task(queue="mail", retries=0)
    async def limited(ctx: Context) -> None:
        raise RateLimited(30)

    @app.task(queue="mail", retries=1, backoff=[0.3])
    async def fail() -> None:
        raise ValueError("no")

    @app.task(queue="mail", retries=1, backoff=[0.3])
    async def keep(ctx: Context) -> list[object]:
        checkpoints = [ctx.checkpointed, await ctx.once("greet", greet, str(ctx.attempt))]
        await ctx.checkpoint(ctx.attempt)
        if ctx.attempt == 1:
            raise ValueError("again")
        return checkpoints

    with_others(app)

    async with app:
        worker = Worker(app, queues=list(queues), settings=WorkerSettings(grace=0.1))
        async with running_worker(worker):
            yield worker


# -- what each role may do -----------------------------------------------------------------------------------


async def test_a_submitter_submits_in_every_way_and_gets_the_results(place: Place) -> None:
    async with place.client("web") as web, working(place.login("hands"), "mail"):
        job = await to(web, "mail")
        assert await job.result(60) == "hello you"
        assert (await job.status()).state == "succeeded"
        assert (await web.jobs.handle(job.id, "mail").result(60)) == "hello you"
        for id in ("own", "*", ">", "a b.c"):
            assert (await to(web, "mail", id=id)).duplicate is False
            assert (await to(web, "mail", id=id)).duplicate is True
            assert await web.jobs.handle(id, "mail").result(60) == "hello you"
            delayed = await to(web, "mail", id=f"{id} later", delay=60)
            assert (await delayed.cancel()).id == delayed.id
        later = await to(web, "mail", delay=0.3, priority="high")
        assert await later.result(60) == "hello you"
        states = [event.state async for event in (await to(web, "mail")).events()]
        assert states[-1] == "succeeded"
        many = await web.task("greet").options(queue="mail").submit_many([[str(n)] for n in range(2_500)])
        assert await many[-1].result(60) == "hello 2499"
        assert await many[0].result(60) == "hello 0"
        [stats] = await web.queues.stats("mail")
        assert stats.dead is None


async def test_keys_need_no_further_permissions_once_their_streams_exist(place: Place, until: Until) -> None:
    async with place.client("jsq") as admin, place.client("web") as web, place.client("eyes") as eyes:
        with pytest.raises(NotAllowed, match=r"JSQ_GROUPS_mail is missing.*jsq provision"):
            await to(web, "mail", key="k")
        async with working(place.login("hands"), "mail") as worker:
            await admin.admin.provision({"mail": QueueSettings(per_key=1)})
            jobs = [await to(web, "mail", key="k") for _ in range(3)]
            jobs.append(await to(web, "mail", key="k", delay=0.3))
            jobs += await web.task("greet").options(queue="mail", key="k").submit_many([["a"], ["b"]])
            jobs.append(await to(web, "mail", key="k", id="own"))
            await asyncio.gather(*(job.result(60) for job in jobs))
            retried = await web.task("keep").options(queue="mail", key="k", per_key=2).submit()
            assert await retried.result(60) == [1, "hello 1"]
            worker.stop()
        waits = [await to(web, "mail", key="k") for _ in range(2)]
        [stats] = await eyes.queues.stats("mail")
        assert (stats.waiting_for_key, sum(stats.waiting.values())) == (2, 0)
        assert {job.id for job in waits} <= set(await (await eyes.broker()).job_reader.waiting_ids("mail"))
        assert (await waits[0].cancel()).state == "cancelled"
        async with working(place.login("hands"), "mail"):
            assert await waits[1].result(60) == "hello you"

            # The message of the first job, which its submitter may not remove, was settled like all others.
            async def is_empty() -> bool:
                [stats] = await web.queues.stats("mail")
                return stats.bytes == 0

            await until(is_empty)
        assert not [finding for finding in await admin.admin.doctor() if finding.severity == "error"]


async def test_a_submitter_submits_bulks_and_maps(place: Place) -> None:
    async with place.client("web") as web:
        mail, ids = web.task("greet").options(queue="mail"), [f"b{n}" for n in range(20)]
        calls = [["you"]] * 20
        jobs = await mail.submit_many(calls, ids=ids, all_or_nothing=True)
        again = await mail.submit_many(calls, ids=ids)
        later = (
            await web.task("greet").options(queue="mail", delay=0.3).submit_many(calls, all_or_nothing=True)
        )
        async with working(place.login("hands"), "mail"):
            for job in [*jobs, *again, *later]:
                assert await job.result(60) == "hello you"
            assert await mail.map(calls, timeout=10) == ["hello you"] * 20
            ended = await mail.submit_many(calls, ids=ids)
        assert all(job.duplicate for job in ended)


async def test_a_submitter_cancels_waiting_scheduled_and_running_jobs(place: Place, until: Until) -> None:
    async with place.client("web") as web:
        waits, later = await to(web, "mail"), await to(web, "mail", delay=60)
        assert (await waits.cancel()).state == "cancelled"
        assert (await later.cancel()).state == "cancelled"
        async with working(place.login("hands"), "mail"):
            runs = await web.task("wait").options(queue="mail").submit()

            async def is_running() -> bool:
                return (await runs.status()).state == "running"

            await until(is_running)
            start_time = time.monotonic()
            assert (await runs.cancel()).state == "cancelled"
            assert time.monotonic() - start_time < PROMPT

            # The message of the first job, which it may not remove, was settled without a run.
            async def is_empty() -> bool:
                [stats] = await web.queues.stats("mail")
                return stats.bytes == 0

            await until(is_empty)
        assert (await waits.status()).state == "cancelled"


async def test_a_worker_retries_writes_dead_letters_and_is_listed(place: Place, until: Until) -> None:
    async with place.client("jsq") as admin, working(place.login("hands"), "mail"):
        failed = await admin.task("fail").options(queue="mail").submit()
        assert (await failed.wait(15)).state == "failed"

        async def is_dead() -> bool:
            return bool(await admin.dead_letters.list())

        await until(is_dead)
        assert len(await admin.admin.workers()) == 1
        [dead_letter] = await admin.dead_letters.list(queue="mail")
        assert (dead_letter.id, dead_letter.attempt) == (failed.id, 2)


async def test_a_worker_receives_ticks_and_stores_the_schedules_of_its_app(
    place: Place, until: Until
) -> None:
    ran: list[str] = []
    app = App(place.login("hands"))

    @app.every(1, queue="mail", overlap="cancel")
    async def beat(ctx: Context) -> None:
        ran.append(ctx.headers["schedule"])
        await asyncio.sleep(60)

    async with place.client("jsq") as admin:
        await admin.schedules.add("added", beat, every=1, catch_up="all", queue="mail")
        async with app, running_worker(Worker(app, settings=WorkerSettings(grace=0.1))):
            broker = await admin.broker()
            subject = broker.subjects.next_tick("mail", "beat")
            await until(lambda: {"beat", "added"} <= set(ran))
            # The worker finds a missing tick of its own, though it may not list the ticks.
            await broker.jetstream.purge(broker.subjects.streams.scheduled("mail"), subject)
            hands = await app.client.broker()
            await hands.ticks.repair_wakeups("mail", ["beat"])
            seen = ran.count("beat")
            await until(lambda: ran.count("beat") > seen + 1)

            async def cancelled() -> bool:
                return any(job.state == "cancelled" for job in await admin.jobs.list(task="beat"))

            await until(cancelled)
            assert {job.id.partition("-")[0] for job in await admin.jobs.list()} == {"beat", "added"}


async def test_a_workers_callbacks_go_to_its_queue_and_a_denied_one_blocks_no_job(
    place: Place, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    async with place.client("jsq") as admin, working(place.login("hands"), "mail"):
        job = await admin.task("die").options(queue="mail").submit()

        async def mourned() -> list[JobRecord]:
            return await admin.jobs.list(queue="mail", task="mourn", state="succeeded")

        await until(mourned)
        [call] = await mourned()
        assert call.id.startswith(f"{job.id}-dead-")
        assert [dead_letter.id for dead_letter in await admin.dead_letters.list()] == [job.id]
        states = [event.state async for event in admin.jobs.handle(call.id).events()]
        assert states == ["running", "succeeded"]
    [warning] = [line for line in caplog.records if line.getMessage() == "callback not submitted"]
    assert "not allowed to publish to jsq.q.other.normal." in vars(warning)["why"]


async def test_a_worker_stores_checkpoints_and_steps(place: Place) -> None:
    async with place.client("web") as web, working(place.login("hands"), "mail"):
        job = await web.task("keep").options(queue="mail").submit()
        assert await job.result(60) == [1, "hello 1"]
        failed = await web.task("keep").options(queue="mail", retries=0).submit()
        assert (await failed.wait(15)).state == "failed"
        assert await failed.checkpoint() == 1


async def test_a_worker_observes_rates_and_pauses_of_an_admin(place: Place, until: Until) -> None:
    async with place.client("jsq") as admin, place.client("web") as web:
        await admin.admin.provision({"mail": QueueSettings(weights={"b": 2})})  # so the queue has key groups
        await admin.queues.update("mail", rate="8/2s")
        async with working(place.login("hands"), "mail") as worker:
            jobs = [await web.task("rarely").options(queue="mail", key="a").submit() for _ in range(5)]
            starts = [await job.result(60) for job in jobs]
            assert most_in_a_window(starts, 2.0) <= 3
            await admin.queues.update("mail", rate=None)
            await until(lambda: worker.resources.queues["mail"].rate is None)

            await admin.queues.pause("mail", task="greet")
            await until(lambda: worker.dispatcher.limits.rules.is_paused("mail"))
            paused_job = await to(web, "mail")

            async def is_requeued() -> bool:
                [stats] = await web.queues.stats("mail")
                return (stats.scheduled, len(stats.pauses)) == (1, 1)

            await until(is_requeued)
            await admin.queues.resume("mail", task="greet")
            assert await paused_job.result(60) == "hello you"

            await web.task("limited").options(queue="mail").submit()
            await until(admin.queues.pauses)
            assert (await admin.queues.pauses())["mail"][0].reason == "rate_limited"
            # A worker checks by itself how many jobs it may hold; the consumers belong to an admin.
            assert worker.dispatcher.limits.capacity("mail", 5) == 0


async def test_a_worker_in_the_namespaces_account_replies_to_other_accounts(
    place: Place, until: Until
) -> None:
    async with place.client("web") as web, working(place.login("jsq"), "mail"):
        runs = await web.task("wait").options(queue="mail").submit()

        async def is_running() -> bool:
            return (await runs.status()).state == "running"

        await until(is_running)
        assert (await runs.cancel()).state == "cancelled"


async def test_an_observer_of_a_queue_reads_its_jobs_by_id(place: Place) -> None:
    async with place.client("web") as web, place.client("eyes") as eyes:
        job, later = await to(web, "mail"), await to(web, "mail", delay=60)
        assert (await eyes.jobs.handle(job.id, "mail").status()).state == "queued"
        assert (await eyes.jobs.handle(later.id, "mail").status()).state == "scheduled"
        [stats] = await eyes.queues.stats("mail")
        assert (sum(stats.waiting.values()), stats.scheduled) == (1, 1)
        waiting = await (await eyes.broker()).job_reader.waiting_ids("mail")
        assert sorted(waiting) == sorted([job.id, later.id])
        happens = eyes.jobs.events(queue="mail")
        first = asyncio.ensure_future(anext(happens))
        async with working(place.login("hands"), "mail"):
            assert (await first).id == job.id
        await cast(AsyncGenerator[JobRecord], happens).aclose()


async def test_an_observer_of_all_queues_lists_everything(place: Place) -> None:
    async with place.client("jsq") as admin, place.client("tower") as tower:
        mail, pay = await to(admin, "mail"), await to(admin, "pay")
        assert await tower.queues.list() == ["mail", "pay"]
        assert {one.queue for one in await tower.queues.stats()} == {"mail", "pay"}
        assert (await tower.jobs.handle(pay.id).status()).state == "queued"
        assert await tower.dead_letters.list() == []
        assert await tower.admin.workers() == []
        await admin.schedules.add("nightly", "greet", ["x"], cron="@daily", queue="pay")
        assert [one.name for one in await tower.schedules.list()] == ["nightly"]
        assert len(await tower.schedules.next("nightly", 3)) == 3
        assert {job.id for job in await tower.jobs.list()} == {mail.id, pay.id}
        await mail.cancel()
        assert [(one.id, one.state) async for one in tower.jobs.events(follow=False)] == [
            (mail.id, "cancelled")
        ]
        assert not [finding for finding in await tower.admin.doctor() if finding.severity == "error"]


async def test_observers_read_the_event_log_as_far_as_their_queues_go(place: Place, until: Until) -> None:
    async with place.client("jsq") as admin, place.client("tower") as tower, place.client("eyes") as eyes:
        await admin.admin.provision(events="1d")
        for queue in ("mail", "pay"):
            await (await to(admin, queue, id=f"{queue}-1")).cancel()
        broker = await tower.broker()

        async def copied() -> bool:
            found = await broker.jetstream.stream_info(broker.subjects.streams.events)
            return found is not None and found["state"]["messages"] == 2

        await until(copied)

        broker = await eyes.broker()
        stream, subject = broker.subjects.streams.events, broker.subjects.event
        found = await broker.reads.last(stream, subject("mail", "mail-1"))
        assert found is not None
        assert b"cancelled" in found.payload
        with pytest.raises(NotAllowed):
            await broker.reads.last(stream, subject("pay", "pay-1"))
        with pytest.raises(NotAllowed):
            await broker.reads.fetch(stream, subject("mail", "mail-1"))

        await admin.jobs.remove_many(state="cancelled")
        checkpoints = {(one.id, one.state) async for one in tower.jobs.events(follow=False)}
        assert checkpoints == {("mail-1", "cancelled"), ("pay-1", "cancelled")}


async def test_a_submitter_of_all_queues_submits_to_each(place: Place) -> None:
    async with place.client("shop-1") as shop:
        for queue in ("mail", "pay"):
            job = await to(shop, queue)
            assert (await shop.jobs.handle(job.id).status()).state == "queued"
            await (await to(shop, queue, delay=60)).cancel()


async def test_an_admin_does_everything(place: Place) -> None:
    async with place.client("jsq") as admin:
        await admin.admin.provision({"new": QueueSettings(max_jobs=5)})
        job = await to(admin, "new")
        assert await admin.queues.purge("new") == 1
        assert (await job.status()).state == "cancelled"
        assert not [finding for finding in await admin.admin.doctor() if finding.severity == "error"]


# -- what each role may not do -------------------------------------------------------------------------------

Act = Callable[[Client, dict[str, str]], Awaitable[object]]


async def watch(client: Client, queue: str) -> None:
    async for _ in client.jobs.events(queue=queue):
        pass


DENIED: dict[str, tuple[str, Act]] = {
    "submitter: submit to another queue": ("web", lambda c, _: to(c, "pay")),
    "submitter: submit many to another queue": (
        "web",
        lambda c, _: c.task("greet").options(queue="pay").submit_many([["a"], ["b"]]),
    ),
    "submitter: submit later to another queue": ("web", lambda c, _: to(c, "pay", delay=60)),
    "submitter: submit once to another queue": ("web", lambda c, _: to(c, "pay", id="mine")),
    "submitter: submit to a queue that is not there": ("web", lambda c, _: to(c, "nope")),
    "submitter: read a job of another queue": ("web", lambda c, ids: status(c, ids["pay"], "pay")),
    "submitter: search a job in all queues": ("web", lambda c, ids: status(c, ids["mail"], "*")),
    "submitter: wait for a job of another queue": ("web", lambda c, ids: result(c, ids["pay"], "pay")),
    "submitter: cancel a job of another queue": ("web", lambda c, ids: cancel(c, ids["pay"], "pay")),
    "submitter: watch another queue": ("web", lambda c, _: watch(c, "pay")),
    "submitter: list jobs": ("web", lambda c, _: c.jobs.list()),
    "submitter: empty its queue": ("web", lambda c, _: c.queues.purge("mail")),
    "submitter: count another queue": ("web", lambda c, _: c.queues.stats("pay")),
    "submitter: read dead letters": ("web", lambda c, _: c.dead_letters.list(queue="mail")),
    "submitter: replay": ("web", lambda c, ids: c.dead_letters.retry(ids["dead"])),
    "submitter: provision": ("web", lambda c, _: c.admin.provision({"mail": QueueSettings(max_jobs=1)})),
    "submitter: add a schedule": ("web", lambda c, _: c.schedules.add("x", "greet", every=5, queue="mail")),
    "submitter: list schedules": ("web", lambda c, _: c.schedules.list()),
    "submitter of all: list jobs": ("shop-1", lambda c, _: c.jobs.list()),
    "submitter of all: make a queue": ("shop-1", lambda c, _: to(c, "nope")),
    "submitter of all: read dead letters": ("shop-1", lambda c, _: c.dead_letters.list()),
    "worker: read a job of another queue": ("hands", lambda c, ids: status(c, ids["pay"], "pay")),
    "worker: submit to another queue": ("hands", lambda c, _: to(c, "pay")),
    "worker: read dead letters": ("hands", lambda c, _: c.dead_letters.list(queue="mail")),
    "worker: remove dead letters": ("hands", lambda c, _: c.dead_letters.purge(queue="mail")),
    "worker: list jobs": ("hands", lambda c, _: c.jobs.list(queue="mail")),
    "worker: add a schedule of another queue": ("hands", lambda c, _: schedule(c, "pay")),
    "worker: list schedules": ("hands", lambda c, _: c.schedules.list()),
    "worker: pause its queue": ("hands", lambda c, _: c.queues.pause("mail")),
    "worker: pause a task of another queue": ("hands", lambda c, _: c.queues.pause("pay", task="greet")),
    "submitter: pause its queue": ("web", lambda c, _: c.queues.pause("mail")),
    "submitter: resume a task of its queue": ("web", lambda c, _: c.queues.resume("mail", task="greet")),
    "submitter: set its queue": ("web", lambda c, _: c.queues.update("mail", max_jobs=1)),
    "observer: pause": ("eyes", lambda c, _: c.queues.pause("mail", key="a")),
    "worker: provision": ("hands", lambda c, _: c.admin.provision({"mail": QueueSettings(max_jobs=1)})),
    "observer: submit": ("eyes", lambda c, _: to(c, "mail")),
    "observer: submit many": (
        "eyes",
        lambda c, _: c.task("greet").options(queue="mail").submit_many([["a"], ["b"]]),
    ),
    "observer: add a schedule": ("eyes", lambda c, _: schedule(c, "mail")),
    "observer of all: pause a schedule": ("tower", lambda c, _: c.schedules.pause("weekly")),
    "observer: cancel": ("eyes", lambda c, ids: cancel(c, ids["mail"], "mail")),
    "observer: read a job of another queue": ("eyes", lambda c, ids: status(c, ids["pay"], "pay")),
    "observer: read what waits on another queue": ("eyes", lambda c, _: waiting(c, "pay")),
    "observer: read dead letters of another queue": ("eyes", lambda c, ids: dead(c, ids["dead"], "pay")),
    "observer: watch another queue": ("eyes", lambda c, _: watch(c, "pay")),
    "observer of all: submit": ("tower", lambda c, _: to(c, "mail")),
    "observer of all: cancel": ("tower", lambda c, ids: cancel(c, ids["mail"], "*")),
    "observer of all: remove dead letters": ("tower", lambda c, _: c.dead_letters.purge(id="x", queue="pay")),
    "observer of all: provision": (
        "tower",
        lambda c, _: c.admin.provision({"mail": QueueSettings(max_jobs=1)}),
    ),
}


async def schedule(client: Client, queue: str) -> object:
    found = read_schedule("x", "greet", b"[[],{}]", every=5, queue=queue)
    return await (await client.broker()).schedules.put(found)


async def status(client: Client, id: str, queue: str) -> object:
    return await client.jobs.handle(id, queue).status()


async def result(client: Client, id: str, queue: str) -> object:
    return await client.jobs.handle(id, queue).result(60)


async def cancel(client: Client, id: str, queue: str) -> object:
    return await client.jobs.handle(id, queue).cancel()


async def waiting(client: Client, queue: str) -> object:
    return await (await client.broker()).job_reader.waiting_ids(queue)


async def dead(client: Client, id: str, queue: str) -> object:
    return await (await client.broker()).dead_letters.find(id, queue)


@pytest.mark.parametrize("act", DENIED)
async def test_a_denied_request_is_not_allowed_at_once(read_only_place: Place, act: str) -> None:
    user, do = DENIED[act]
    ids = {"mail": "mail-1", "pay": "pay-1", "dead": "x"}
    async with read_only_place.client(user) as client:
        start_time = time.monotonic()
        with pytest.raises(NotAllowed, match=rf"not allowed to (publish|subscribe) to \S+ as {user}"):
            await asyncio.wait_for(do(client, ids), 30)
        assert time.monotonic() - start_time < PROMPT


async def dead_letter(admin: Client, queue: str, id: str) -> None:
    """A dead letter of some job."""
    wire = (await admin.broker()).wire
    await wire.publish(NAMES.dead(queue, "greet", id), b"{}", {"Jsq-Job": '{"v":1,"task":"greet"}'})


@pytest.mark.parametrize(
    ("user", "queue"),
    [("hands", "pay"), ("web", "mail"), ("shop-1", "mail"), ("eyes", "mail"), ("tower", "pay")],
)
async def test_a_worker_does_not_start_on_a_queue_it_may_not_serve(
    read_only_place: Place, user: str, queue: str
) -> None:
    start_time = time.monotonic()
    with pytest.raises(NotAllowed, match=f"not allowed to publish to .* as {user}"):
        async with working(read_only_place.login(user), queue):
            pass
    assert time.monotonic() - start_time < PROMPT


# -- an intruder with the password of a user, and without jsq ------------------------------------------------

OF_ADMINS = (
    *(f"$JS.API.STREAM.{act}.{stream}" for act in ("DELETE", "UPDATE", "CREATE", "MSG.DELETE", "RESTORE")
      for stream in ("JSQ_READY_mail", "JSQ_SCHEDULED_mail", "JSQ_EVENTS", "KV_jsq_jobs", "KV_jsq_ids")),
    *(f"$JS.API.STREAM.{act}.JSQ_{kind}_mail" for act in ("DELETE", "UPDATE", "PURGE")
      for kind in ("GROUPS", "GROUP_STATE")),
    *(f"$JS.API.STREAM.PURGE.JSQ_{name}" for name in ("READY_mail", "READY_pay", "SCHEDULED_pay")),
    *(f"$JS.API.STREAM.PURGE.{stream}" for stream in ("JSQ_EVENTS", "KV_jsq_jobs", "KV_jsq_ids")),
    "$JS.API.STREAM.CREATE.thief",
    "$JS.API.STREAM.SNAPSHOT.JSQ_READY_mail",
    "$JS.API.CONSUMER.CREATE.JSQ_READY_mail.thief.jsq.q.mail.normal.*",
    "$JS.API.CONSUMER.CREATE.KV_jsq_jobs.thief.$KV.jsq_jobs.mail.>",
    "$JS.API.CONSUMER.CREATE.JSQ_EVENTS.thief.jsq.ev.mail.>",
    "$JS.API.CONSUMER.DURABLE.CREATE.JSQ_READY_mail.thief",
    "$JS.API.CONSUMER.DELETE.JSQ_READY_mail.normal",
    "$JS.API.CONSUMER.PAUSE.JSQ_READY_mail.normal",
    "jsq.on.mail.x",
    "jsq.ev.mail.x",
    "jsq.due.mail.normal.x",
    "jsq.due-tick.mail.normal.x",
)  # fmt: skip
OF_OTHERS = (
    "jsq.q.pay.normal.x",
    "jsq.scheduled.pay.x",
    "jsq.next-tick.pay.x",
    "$KV.jsq_schedules.pay.x",
    "$JS.ACK.JSQ_SCHEDULED_pay.ticks.1.1.1.1.0",
    "$JS.API.CONSUMER.MSG.NEXT.JSQ_SCHEDULED_pay.ticks",
    "$JS.API.DIRECT.GET.KV_jsq_schedules",
    "$JS.API.DIRECT.GET.KV_jsq_schedules.$KV.jsq_schedules.pay.x",
    "$KV.jsq_jobs.pay.x",
    "$KV.jsq_jobs.pay.x.progress",
    "$KV.jsq_jobs.pay.x.result",
    "$KV.jsq_jobs.pay.x.checkpoint.checkpoint",
    "jsq.dead.pay.greet.x",
    "jsq.cancel.pay",
    "jsq.refresh.pay",
    "jsq.holders.pay",
    "$KV.jsq_limits.rate.queue.pay",
    "$KV.jsq_limits.pause.pay",
    "$JS.API.DIRECT.GET.KV_jsq_limits",
    "$JS.ACK.JSQ_READY_pay.normal.1.1.1.1.0",
    "$JS.API.CONSUMER.MSG.NEXT.JSQ_READY_pay.normal",
    "$JS.API.DIRECT.GET.JSQ_READY_pay",
    "$JS.API.DIRECT.GET.JSQ_GROUPS_pay.jsq.group.pay.k.x",
    "$JS.API.STREAM.MSG.DELETE.JSQ_GROUPS_pay",
    "jsq.group.pay.k.x",
    "jsq.group-state.pay.k",
    "$JS.API.DIRECT.GET.JSQ_READY_pay.jsq.q.pay.normal.x",
    "$JS.API.DIRECT.GET.JSQ_EVENTS",
    "$JS.API.DIRECT.GET.KV_jsq_jobs",
    "$JS.API.DIRECT.GET.KV_jsq_jobs.$KV.jsq_jobs.pay.x",
    "$JS.API.DIRECT.GET.KV_jsq_jobs.$KV.jsq_jobs.pay.x.result",
    "$JS.API.DIRECT.GET.KV_jsq_jobs.$KV.jsq_jobs.pay.x.checkpoint.checkpoint",
    "$JS.API.DIRECT.GET.KV_jsq_jobs.jsq.dead.pay.greet.x",
    "$JS.API.STREAM.MSG.GET.JSQ_READY_pay",
    "$JS.API.STREAM.INFO.KV_jsq_jobs",
    "$JS.API.STREAM.LIST",
    "_INBOX_jsq.x",
)
OF_WORKERS = (
    "$KV.jsq_jobs.mail.x.progress",
    "$KV.jsq_jobs.mail.x.result",
    "$KV.jsq_jobs.mail.x.checkpoint.checkpoint",
    "jsq.dead.mail.greet.x",
    "$JS.ACK.JSQ_READY_mail.normal.1.1.1.1.0",
    "$JS.API.CONSUMER.MSG.NEXT.JSQ_READY_mail.normal",
    "$KV.jsq_workers.thief",
    "$KV.jsq_schedules.mail.x",
    "jsq.next-tick.mail.x",
    "$JS.ACK.JSQ_SCHEDULED_mail.ticks.1.1.1.1.0",
    "$JS.API.CONSUMER.MSG.NEXT.JSQ_SCHEDULED_mail.ticks",
    "jsq.group-state.mail.k",
    "$JS.API.STREAM.MSG.DELETE.JSQ_GROUPS_mail",
    "$JS.API.CONSUMER.MSG.NEXT.JSQ_GROUP_STATE_mail.wakeups",
    "$KV.jsq_limits.rate.queue.mail",
    "$KV.jsq_limits.rate.task.greet",
    "$KV.jsq_limits.pause.mail",
    "jsq.refresh.mail",
    "jsq.holders.mail",
)
OF_SUBMITTERS = (
    "jsq.q.mail.normal.x",
    "jsq.scheduled.mail.x",
    "jsq.group.mail.k.x",
    "$KV.jsq_ids.id.x",
    "$KV.jsq_jobs.mail.x",
    "jsq.cancel.mail",
)

KEPT = "$JS.API.DIRECT.GET.KV_jsq_jobs.$KV.jsq_jobs.mail.x.checkpoint.once.charge"

REFUSED = {
    "web": (*OF_ADMINS, *OF_OTHERS, *OF_WORKERS, "$JS.API.STREAM.PURGE.JSQ_SCHEDULED_mail", KEPT),
    "shop-1": (*OF_ADMINS, *OF_WORKERS, "$JS.API.DIRECT.GET.JSQ_EVENTS", "$JS.API.DIRECT.GET.KV_jsq_jobs"),
    "hands": (*OF_ADMINS, *OF_OTHERS, "$KV.jsq_ids.id.x"),
    "eyes": (*OF_ADMINS, *OF_OTHERS, *OF_WORKERS, *OF_SUBMITTERS, KEPT),
    "tower": (*OF_ADMINS, *OF_WORKERS, *OF_SUBMITTERS, "$KV.jsq_jobs.pay.x", "jsq.cancel.pay"),
}
UNHEARD = (
    *(">", "jsq.>", "$JS.>", "$KV.>", "_INBOX.>", "_INBOX_jsq.>", "*.>"),
    *(
        "jsq.q.mail.>",
        "jsq.q.*.*.*",
        "jsq.ev.>",
        "$KV.jsq_jobs.mail.*",
        "jsq.on.>",
        "jsq.dead.>",
        "jsq.scheduled.mail.*",
        "$JS.ACK.>",
    ),
)


async def counted(place: Place) -> dict[str, int]:
    """The number of messages in each stream."""
    async with place.client("jsq") as admin:
        found = await (await admin.broker()).wire.api("STREAM.LIST")
        return {one["config"]["name"]: one["state"]["messages"] for one in found["streams"]}


@pytest.mark.parametrize("user", REFUSED)
async def test_an_intruder_is_refused_actions_that_its_role_does_not_need(
    place: Place, user: str, until: Until
) -> None:
    async with place.client("jsq") as admin:
        for queue in ("mail", "pay"):
            await to(admin, queue, id=f"{queue}-1")
            await to(admin, queue, delay=60)
            await dead_letter(admin, queue, "x")
    before, refused = await counted(place), list[str]()

    async with place.raw(user, refused) as wire:
        for subject in REFUSED[user]:
            await wire.publish(subject, b"{}", reply=f"_INBOX_{user}.x")
        for subject in UNHEARD:
            await wire.subscribe(subject)
        await until(lambda: len(refused) == len(REFUSED[user]) + len(UNHEARD))

    refused_subjects = [text.split('"')[1] for text in refused]
    assert refused_subjects == [subject.lower() for subject in (*REFUSED[user], *UNHEARD)]
    assert await counted(place) == before


@pytest.mark.parametrize("user", ["web", "hands", "shop-1"])
async def test_a_header_cannot_empty_the_stored_jobs(place: Place, user: str) -> None:
    async with place.client("jsq") as admin:
        for queue in ("mail", "pay"):
            await to(admin, queue, id=f"{queue}-1")
            await to(admin, queue, delay=60)
    before, refused = await counted(place), list[str]()
    allowed = {
        "web": ("jsq.q.mail.normal.x", "$KV.jsq_jobs.mail.x", "$KV.jsq_ids.id.x"),
        "shop-1": ("jsq.q.mail.normal.x", "$KV.jsq_jobs.pay.x", "$KV.jsq_ids.id.x"),
        "hands": (
            "jsq.q.mail.normal.x",
            "$KV.jsq_jobs.mail.x",
            "$KV.jsq_jobs.mail.x.checkpoint.checkpoint",
            "jsq.dead.mail.t.x",
            "$KV.jsq_workers.x",
        ),
    }

    async with place.raw(user, refused) as wire:
        for subject in allowed[user]:
            answer = await wire.request(subject, b"", headers={"Nats-Rollup": "all"}, timeout=2)
            assert json.loads(answer.data)["error"]["err_code"] == 10111, subject

    assert await counted(place) == before
    assert refused == []


async def test_a_header_can_empty_only_the_delayed_jobs_of_the_own_queue(place: Place) -> None:
    """As documented, the roles do not prevent this: the server cannot refuse it where it keeps schedules."""
    async with place.client("jsq") as admin:
        for queue in ("mail", "pay"):
            await to(admin, queue, delay=60)
            await to(admin, queue, delay=60)
    before = await counted(place)

    async with place.raw("web", []) as wire:
        aims = {"Nats-Schedule": "@at 2099-01-01T00:00:00Z", "Nats-Schedule-Target": "jsq.due.pay.normal.x"}
        answer = await wire.request("jsq.scheduled.mail.y", b"", headers=aims, timeout=2)
        assert json.loads(answer.data)["error"]["err_code"] == 10190  # a target in another queue
        await wire.request("jsq.scheduled.mail.x", b"", headers={"Nats-Rollup": "all"}, timeout=2)

    after = await counted(place)
    assert (before["JSQ_SCHEDULED_mail"], after.pop("JSQ_SCHEDULED_mail")) == (2, 1)
    assert after == {name: count for name, count in before.items() if name != "JSQ_SCHEDULED_mail"}


@pytest.mark.parametrize("user", ["web", "hands"])
async def test_a_reply_sent_to_another_subject_has_no_effect(place: Place, user: str, until: Until) -> None:
    """NATS does not check the reply subject. In one account this would purge streams and forge jobs."""
    async with place.client("jsq") as admin:
        await to(admin, "pay", id="pay-1")
    order = {"Jsq-Job": '{"v":1,"task":"evil"}'}
    aims = (
        *("jsq.q.pay.normal.evil", "$KV.jsq_jobs.pay.pay-1", "jsq.dead.pay.t.evil", "jsq.cancel.pay"),
        *("$JS.API.STREAM.PURGE.JSQ_READY_pay", "$JS.API.STREAM.PURGE.KV_jsq_jobs", "jsq.scheduled.pay.evil"),
    )
    bait = "$JS.API.DIRECT.GET.JSQ_READY_mail.jsq.q.mail.normal.bait"

    refused = list[str]()
    async with place.raw(user, refused) as wire:
        await wire.request("jsq.q.mail.normal.bait", b"{}", headers=order, timeout=2)
        before = await counted(place)
        for aim in aims:
            await wire.publish(bait, b"", reply=aim)
            await wire.publish("jsq.q.mail.normal.more", b"{}", reply=aim, headers=order)
            await wire.publish("jsq.q.mail.normal.more", b"{}", headers=order | {"Nats-Trace-Dest": aim})
        await wire.flush()
        assert (await wire.request(bait, b"", timeout=2)).data == b"{}"
    before["JSQ_READY_mail"] += len(aims)

    async def is_so() -> bool:
        return await counted(place) == before

    await until(is_so)
    assert [text.split('"')[1] for text in refused] == [aim.lower() for aim in aims]  # refused traces


async def test_in_one_account_a_reply_sent_to_another_subject_has_an_effect(
    tmp_path: Path, until: Until
) -> None:
    """The reason for the accounts: if the server ever checks reply subjects, they may be removed."""
    roles = Client("nats://nowhere").admin.roles("web=submitter:mail")
    subjects = json.dumps(list(roles.permissions(roles.users[0]).requests))
    conf = f"""
    jetstream {{ store_dir: '{tmp_path}/js' }}
    accounts {{ A {{ jetstream: enabled, users: [
        {{ user: jsq, password: of-jsq }},
        {{ user: web, password: of-web, permissions {{ publish: {subjects}, subscribe: "_INBOX_web.>" }} }}
    ] }} }}
    """
    with nats_server(tmp_path, conf) as address:
        place = Place(address)
        async with place.client("jsq") as admin:
            await admin.admin.provision({"mail": QueueSettings(), "pay": QueueSettings()})
            await to(admin, "pay")
        async with place.raw("web", []) as wire:
            await wire.request("jsq.q.mail.normal.bait", b"{}", timeout=2)
            bait = "$JS.API.DIRECT.GET.JSQ_READY_mail.jsq.q.mail.normal.bait"
            await wire.publish(bait, b"", reply="$JS.API.STREAM.PURGE.JSQ_READY_pay")
            await wire.flush()

        async def is_empty() -> bool:
            return (await counted(place))["JSQ_READY_pay"] == 0

        await until(is_empty)


async def test_a_user_does_not_receive_the_replies_of_another(place: Place, until: Until) -> None:
    refused = list[str]()
    async with place.raw("eyes", refused) as thief, place.raw("tower", refused) as other:
        record_refusal = await thief.subscribe("_INBOX_eyes.>")
        await thief.flush()
        await other.publish("_INBOX_eyes.x", b"forged")
        async with place.client("web") as web:
            await (await to(web, "mail")).status()
        await until(lambda: len(refused) == 1)
        with pytest.raises(TimeoutError):
            await record_refusal.next_msg(0.1)


async def test_an_admin_does_not_receive_the_replies_of_another_admin(tmp_path: Path, until: Until) -> None:
    roles = Client("nats://nowhere").admin.roles("one=admin", "two=admin")
    conf = f"jetstream {{ store_dir: '{tmp_path}/js' }}\n{roles.conf()}"
    with nats_server(tmp_path, conf, {"ONE_PASSWORD": "of-one", "TWO_PASSWORD": "of-two"}) as address:
        refused = list[str]()
        async with Place(address).raw("one", refused) as wire:
            for subject in ("_INBOX_two.>", "_INBOX.>", ">"):
                await wire.subscribe(subject)
            await wire.publish("_INBOX_two.x", b"forged")
            await until(lambda: len(refused) == 4)


async def test_a_wrong_inbox_is_refused_at_once(place: Place) -> None:
    login = Login(url=f"nats://{place.address}", user="web", password="of-web", inbox_prefix="_INBOX_eyes")
    with pytest.raises(NotAllowed, match=r"to subscribe to _INBOX_eyes\..* as web, .*JSQ_INBOX_PREFIX"):
        await Client(login).connect()


async def test_the_inbox_prefix_of_a_user_needs_no_configuration(place: Place) -> None:
    async with Client(f"nats://web:of-web@{place.address}") as web:
        assert (await (await to(web, "mail")).status()).state == "queued"


async def test_a_submitter_submits_unique_jobs_in_every_way(place: Place, until: Until) -> None:
    """It may not read from the leaders, and yet decides about a key by their state."""
    async with place.client("web") as web:
        first = await to(web, "mail", unique="k")
        assert (await to(web, "mail", unique="k")).id == first.id
        with pytest.raises(DuplicateJob):
            await to(web, "mail", unique="k", on_duplicate="raise")
        second = await to(web, "mail", unique="k", on_duplicate="replace")
        assert (await first.status()).state == "cancelled"
        due = [await to(web, "mail", unique="d", debounce=0.5) for _ in range(3)]
        assert len({job.id for job in due}) == 1
        thin = [await to(web, "mail", unique="t", throttle=60) for _ in range(2)]
        assert [job.duplicate for job in thin] == [False, True]
        async with working(place.login("hands"), "mail"):
            assert await second.result(60) == "hello you"
            assert await due[0].result(60) == "hello you"
            assert not (await to(web, "mail", unique="k")).duplicate
            assert (await to(web, "mail", unique="t", throttle=60)).id == thin[0].id


async def test_a_worker_submits_the_pending_duplicate_of_a_unique_job(place: Place, until: Until) -> None:
    async with place.client("web") as web, working(place.login("hands"), "mail"):
        submitter = web.task("rest").options(queue="mail", unique="k", on_duplicate="keep_last")
        first = await submitter.submit(1.5)

        async def runs() -> bool:
            return (await first.status()).state == "running"

        await until(runs)
        second = await submitter.submit(0.1)
        third = await submitter.submit(0.2)
        assert (second.id, second.duplicate, third.duplicate) == (third.id, False, True)
        assert [await first.result(60), await third.result(60)] == [1.5, 0.2]


async def test_a_submitter_keeps_waiting_while_a_replica_does_not_have_the_end_of_a_job(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its key would count as held, and the next submit would be lost."""
    logins = place.client("web"), place.client("jsq"), working(place.login("hands"), "mail")
    async with logins[0] as web, logins[1] as admin, logins[2]:
        first = await to(web, "mail", unique="k")
        await first.result(60)
        reads, behind = (await web.broker()).reads, 3
        read, record = reads.last, NAMES.record("mail", first.id)
        running, _ = await (await admin.broker()).reads.fetch(NAMES.streams.records, record)

        async def last_of_one_behind(stream: str, subject: str, *, consistent: bool = False) -> Any:
            nonlocal behind
            found = await read(stream, subject, consistent=consistent)
            if behind and subject == record:
                behind -= 1
                return running
            return found

        monkeypatch.setattr(reads, "last", last_of_one_behind)
        second = await to(web, "mail", unique="k")
        assert (second.duplicate, behind) == (False, 0)
        assert await second.result(60) == "hello you"


# -- due jobs ------------------------------------------------------------------------------------------------


async def test_a_worker_of_a_queue_moves_its_due_jobs(place: Place) -> None:
    async with place.client("jsq") as admin, working(place.login("hands"), "mail"):
        assert await (await to(admin, "mail", delay=0.3)).result(PROMPT) == "hello you"
        assert await (await to(admin, "mail", delay=0.3, key="k")).result(PROMPT) == "hello you"


async def test_a_worker_may_not_update_a_stream(place: Place) -> None:
    async with place.client("jsq") as admin, place.client("hands") as hands:
        await (await admin.broker()).streams.ensure_groups("mail")
        source = WakeupSource((await hands.broker()).namespace, "mail", "hands")

        with pytest.raises(NotAllowed):
            await source.resume()
        assert await source.acquire()


# -- streams that vanish -------------------------------------------------------------------------------------


async def test_a_worker_that_may_create_no_stream_is_not_ready_while_one_is_missing(
    place: Place, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    async with place.client("jsq") as admin, working(place.login("hands"), "mail") as worker:
        assert worker.is_ready()
        jetstream, names = (await admin.broker()).jetstream, NAMES.streams
        await jetstream.call(f"STREAM.DELETE.{names.bucket('ids')}")
        await until(lambda: not worker.is_ready())
        await until(lambda: "stream not restored" in caplog.messages)
        warning = next(one for one in caplog.records if one.message == "stream not restored")
        assert "have an admin run `jsq provision`" in getattr(warning, "why", "")

        await admin.admin.provision()
        await until(worker.is_ready)
        assert await (await to(admin, "mail")).result(PROMPT) == "hello you"


@pytest.mark.parametrize("other", ["hands", "jsq"])
async def test_a_worker_gives_a_job_to_a_worker_of_its_queue_that_knows_the_task(
    place: Place, other: str
) -> None:
    knowing, unknowing = App(place.login("hands")), App(place.login(other))

    @knowing.task(queue="mail")
    async def send(number: int) -> int:
        await asyncio.sleep(2.0)
        return number + 1

    @unknowing.task(queue="mail")
    async def print_all() -> None: ...

    async with place.client("jsq") as admin, knowing, unknowing:
        await admin.queues.update("mail", lease=1.5)  # so the worker that gets a job must renew its lease
        async with running_worker(Worker(unknowing)), running_worker(Worker(knowing)):
            jobs = [await admin.task("send").options(queue="mail").submit(n) for n in range(6)]
            assert [await job.result(15) for job in jobs] == [1, 2, 3, 4, 5, 6]
            assert [(await job.status()).attempt for job in jobs] == [1] * 6
