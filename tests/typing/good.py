"""Correct code of users and the types that it has. Checked by mypy and pyright, never run."""

import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, assert_type

from jsq import (
    INJECTED,
    App,
    Backoff,
    BatchItem,
    BlockingJobHandle,
    ChildDied,
    Client,
    Context,
    ContextVars,
    CurrentJob,
    Depends,
    EmbeddedWorker,
    Failure,
    Immediate,
    JobError,
    JobHandle,
    JobRecord,
    Middleware,
    QueueSettings,
    Retries,
    Router,
    ScheduleRecord,
    StepOutcome,
    Submitter,
    TaskTimeout,
    chain,
    current_job,
    group,
)
from jsq.contrib.django import on_commit
from jsq.model.job import Job

app = App()
client = app.client


# -- async or plain, with or without Context, with or without parentheses


@app.task
async def fetch(url: str, tries: int = 1) -> bytes:
    return url.encode() * tries


@app.task()
async def fetch_called(url: str) -> bytes:
    return url.encode()


@app.task
async def report(ctx: Context, rows: list[int]) -> float:
    ctx.progress(0.5, "half")
    return sum(rows) / ctx.attempt


@app.task(name="reports.weekly", queue="reports", priority="low", retries=5, backoff=[1, 60.0, 600])
async def report_called(ctx: Context, rows: list[int]) -> float:
    return float(len(rows))


@app.task
def add(a: int, b: int = 2) -> int:
    return a + b


@app.task(
    timeout=timedelta(minutes=1), deadline=3600, keep_result=0, tags=["sums"], backoff=Backoff("linear", 2.0)
)
def add_called(a: int, b: int = 2) -> int:
    return a + b


@app.task
def log(ctx: Context, line: str) -> None:
    ctx.log.info(line)


@app.task(timeout=5)
def log_called(ctx: Context, *lines: str, level: str = "info") -> None:
    for line in lines:
        ctx.log.info("%s %s", level, line)


@app.task
def nothing() -> None: ...


@app.task
async def noted(failure: Failure) -> None:
    assert_type(failure.arguments, Any)


@app.task(
    retries=None,
    retry_for=timedelta(hours=1),
    backoff_max=timedelta(minutes=1),
    jitter=0.5,
    retry_on=(ConnectionError, TaskTimeout),
    no_retry_on=KeyError,
    retry={ConnectionResetError: Retries(9, backoff=[1], jitter=True), ChildDied: Retries(0)},
    retry_if=lambda error, attempt: attempt < 3,
    on_failure=noted,
    on_dead="noted",
    fallback=add,
)
async def ruled(ctx: Context, a: int, b: int = 2) -> int:
    return a + b


@app.task
async def only_context(ctx: Context) -> dict[str, int]:
    return {ctx.id: ctx.token}


# -- submit: the parameters of the function without its Context, the result without its Awaitable


async def submits() -> None:
    assert_type(await fetch.submit("u", tries=2), JobHandle[bytes])
    assert_type(await fetch_called.submit("u"), JobHandle[bytes])
    assert_type(await report.submit([1, 2]), JobHandle[float])
    assert_type(await report_called.submit(rows=[1]), JobHandle[float])
    assert_type(await add.submit(1), JobHandle[int])
    assert_type(await add_called.submit(1, b=2), JobHandle[int])
    assert_type(await log.submit("x"), JobHandle[None])
    assert_type(await log_called.submit("x", "y", level="debug"), JobHandle[None])
    assert_type(await nothing.submit(), JobHandle[None])
    assert_type(await ruled.submit(1, b=2), JobHandle[int])
    assert_type(await only_context.submit(), JobHandle[dict[str, int]])


async def results() -> None:
    assert_type(await (await fetch.submit("u")).result(), bytes)
    assert_type(await (await fetch_called.submit("u")).result(timeout=5), bytes)
    assert_type(await (await report.submit([1])).result(), float)
    assert_type(await (await report_called.submit([1])).result(), float)
    assert_type(await (await add.submit(1, 2)).result(), int)
    assert_type(await (await add_called.submit(1)).result(), int)
    assert_type(await (await only_context.submit()).result(0), dict[str, int])


# -- delay: short for blocking.submit


def delays() -> None:
    assert_type(fetch.delay("u"), BlockingJobHandle[bytes])
    assert_type(fetch.delay("u").result(), bytes)
    assert_type(report.delay([1]).result(timeout=5.0), float)
    assert_type(report_called.delay([1]).result(), float)
    assert_type(add.delay(1, b=2).result(), int)
    assert_type(add_called.delay(1).result(), int)
    assert_type(only_context.delay().result(), dict[str, int])
    assert_type(add.delay(1).status(), JobRecord)
    for event in add.delay(1).events():
        assert_type(event, JobRecord)


# -- options


async def options() -> None:
    soon = add.options(
        queue="sums",
        priority="high",
        delay=timedelta(minutes=1),
        id="sum-1",
        headers={"X-Who": "me"},
        tags={"a", "b"},
        retries=0,
        backoff="none",
        timeout=1.5,
        keep_result=60,
        wait_for_room=timedelta(minutes=1),
        deadline=timedelta(minutes=5),
        backoff_max=60,
        jitter=False,
        retry_for=datetime(2030, 1, 1, tzinfo=UTC),
    )
    by = add.options(deadline=datetime(2030, 1, 1, tzinfo=UTC))
    assert_type(await by.submit(1), JobHandle[int])
    assert_type(await soon.submit(1, b=2), JobHandle[int])
    assert_type(soon.blocking.submit(1), BlockingJobHandle[int])
    assert_type(await soon.options(priority="low").submit(1, b=2), JobHandle[int])
    assert_type(await soon.job("sum-1").result(), int)
    text = add.options(
        delay="5m",
        timeout="250ms",
        deadline="1h30m",
        expires="2d",
        retry_for="1h",
        keep_result="90",
        wait_for_room="1m",
        backoff=["1s", "5m"],
        backoff_max="1h",
    )
    assert_type(await text.submit(1), JobHandle[int])
    assert_type(await (await soon.submit(1)).result(), int)
    one = add.options(
        unique="k", unique_until="start", unique_for=timedelta(hours=1), on_duplicate="keep_last", throttle=5
    )
    assert_type(await one.submit(1), JobHandle[int])
    turn = add.options(key="tenant-7", per_key=1, slots=4, expires=timedelta(minutes=5), debounce=5)
    assert_type(await turn.submit(1), JobHandle[int])
    assert_type(await add.options(unique=True, expires=60).submit(1), JobHandle[int])
    at = report.options(at=datetime(2030, 1, 1, tzinfo=UTC))
    assert_type(await (await at.submit([1])).result(), float)


# -- checkpoints and steps


async def keeps(ctx: Context) -> None:
    assert_type(await ctx.checkpoint({"page": 1}), None)
    assert_type(ctx.checkpointed, Any)


async def charge(order: str, euro: int = 5) -> dict[str, int]:
    return {order: euro}


async def steps(ctx: Context) -> None:
    assert_type(await ctx.once("charge", charge, "o1", 7), dict[str, int])
    assert_type(await ctx.once("charge", lambda: charge("o1", euro=7), undone=KeyError), dict[str, int])
    assert_type(await ctx.once("c", charge, "o1", 7, undone=(KeyError, OSError)), dict[str, int])
    assert_type(await ctx.once("charge", charge, "o1", 7, unknown="run"), dict[str, int])
    assert_type(await ctx.once("charge", charge, "o1", 7, unknown="skip"), dict[str, int] | None)


def keeps_blocking(ctx: Context) -> None:
    ctx.blocking.checkpoint([1, None])
    assert_type(ctx.blocking.once("sum", add, 1, 2), int)
    assert_type(ctx.blocking.once("sum", add, 1, 2, unknown="skip"), int | None)


# -- a task is still its function


async def calls(ctx: Context) -> None:
    assert_type(await fetch("u"), bytes)
    coming: Coroutine[Any, Any, bytes] = fetch("u")
    assert_type(await coming, bytes)
    assert_type(await fetch_called("u"), bytes)
    assert_type(await report(ctx, [1]), float)
    assert_type(await report_called(ctx, rows=[1]), float)
    assert_type(add(1, b=2), int)
    assert_type(add_called(1), int)
    assert_type(add.name, str)
    log(ctx, "x")
    log_called(ctx, "x", "y", level="debug")


# -- handles


async def handles(job: JobHandle[int], blocking: BlockingJobHandle[str]) -> None:
    assert_type(await job.result(), int)
    assert_type(await job.wait(), JobRecord)
    assert_type(await job.status(), JobRecord)
    assert_type(await job.cancel(), JobRecord)
    assert_type(await job.checkpoint(), Any)
    assert_type(blocking.checkpoint(), Any)
    assert_type(await job.retry(), JobRecord)
    assert_type(await job.promote(), JobRecord)
    assert_type(await job.reschedule(delay=timedelta(minutes=5)), JobRecord)
    assert_type(await job.reschedule(at=datetime(2030, 1, 1, tzinfo=UTC)), JobRecord)
    assert_type(blocking.promote(), JobRecord)
    assert_type((await job.status()).interruptions, int)
    assert_type(job.duplicate, bool)
    assert_type(job.id, str)
    async for event in job.events():
        assert_type(event, JobRecord)
    assert_type(blocking.result(), str)
    assert_type(blocking.result(timeout="5s"), str)
    assert_type(job.blocking, BlockingJobHandle[int])
    assert_type(job.blocking.result(), int)
    assert_type(job.blocking.reschedule(delay="5m"), JobRecord)
    assert_type(await job.result(timeout=timedelta(seconds=5)), int)
    assert_type(blocking.wait(), JobRecord)


# -- by name: the type of the result is unknown


async def by_name(client: Client) -> None:
    assert_type(await client.task("emails.send").submit("a@b.c", urgent=True), JobHandle[Any])
    assert_type(await (await client.task("add").submit(1)).result(), Any)
    assert_type(client.task("add").blocking.submit(1), BlockingJobHandle[Any])
    assert_type(await client.task("add").options(delay=1, priority="low").submit(1), JobHandle[Any])
    assert_type(client.task("add"), Submitter[..., Any])
    assert_type(client.jobs.handle("j1"), JobHandle[Any])
    assert_type(await client.jobs.get("j1"), JobRecord)
    assert_type(await client.jobs.cancel("j1", "mail"), JobRecord)
    assert_type(await client.jobs.retry("j1"), JobRecord)
    assert_type(await client.jobs.promote("j1"), JobRecord)
    assert_type(await client.jobs.reschedule("j1", delay="5m"), JobRecord)
    assert_type(await client.jobs.remove("j1"), None)
    assert_type(await client.jobs.list(limit=5), list[JobRecord])


async def finding(client: Client) -> None:
    some = await client.jobs.list(
        task="add", state=["failed", "expired"], tag="x", arg={"user.id": 5}, limit=None
    )
    assert_type(some, list[JobRecord])
    assert_type(await client.jobs.retry_many(task="add"), int)
    assert_type(await client.jobs.remove_many(state="expired"), int)
    assert_type((await client.jobs.cancel_many(queue="mail", tag="x")).cancelled, int)
    assert_type((await client.queues.pause("mail", key="a", until=timedelta(hours=2))).key, str)
    assert_type(await client.queues.resume("mail", key="a"), None)
    assert_type((await client.queues.update("mail", rate="50/m", concurrency=None)).lease, float)


async def looked_up() -> None:
    assert_type(add.job("j1"), JobHandle[int])
    assert_type(await add.job("j1", "sums").result(), int)
    assert_type(add.job("j1").blocking.result(), int)
    assert_type(await report.job("j1").result(), float)
    assert_type(await client.task("add").job("j1").result(), Any)


async def managed() -> None:
    assert_type(await client.queues.list(), list[str])
    assert_type((await client.queues.get("mail")).scheduled, int)
    assert_type(await client.queues.purge("mail"), int)
    assert_type((await client.queues.pauses())["mail"][0].key, str)
    assert_type(await client.queues.update("mail", lease="1m"), QueueSettings)
    assert_type((await client.dead_letters.list(error="KeyError"))[0].id, str)
    assert_type((await client.dead_letters.get("j1")).id, str)
    assert_type(await client.dead_letters.retry("j1", {"a": 1}), None)
    assert_type(await client.dead_letters.retry_many(task="add"), int)
    assert_type(await client.dead_letters.purge(id="j1", free_ids=True), int)
    assert_type(await client.schedules.list(), list[ScheduleRecord])
    assert_type(await client.schedules.get("nightly"), ScheduleRecord)
    assert_type(await client.admin.workers(), list[dict[str, Any]])
    assert_type((await client.admin.sweep(age="5m", dry_run=True))[0].queue, str)


async def around() -> None:
    async with App("nats://localhost", namespace="shop") as shop:
        assert_type(shop, App)
    async with Client() as own:
        assert_type(own, Client)


# -- batch tasks: submitted with one item, called with the list of them


@app.batch_task()
async def index(items: list[str]) -> None: ...


@app.batch_task(size=50, wait=timedelta(seconds=1), queue="bulk", retries=1)
async def doubles(items: list[int]) -> list[int]:
    return [2 * item for item in items]


@app.batch_task(size=50, wait=1)
async def some_fail(items: list[BatchItem[int]]) -> list[str | BaseException]:
    return [item.id if item.value else ValueError("none") for item in items]


@app.batch_task()
def index_blocking(items: list[BatchItem[dict[str, int]]]) -> None: ...


@app.batch_task()
def doubles_blocking(items: list[float]) -> list[float]:
    return [2 * item for item in items]


async def batches() -> None:
    assert_type(await index.submit("a"), JobHandle[None])
    assert_type(await doubles.submit(1), JobHandle[int])
    assert_type(await some_fail.submit(1), JobHandle[str])
    assert_type(await index_blocking.submit({"a": 1}), JobHandle[None])
    assert_type(doubles_blocking.delay(1.5).result(), float)
    assert_type(await doubles.submit_many([(1,), {"item": 2}], all_or_nothing=True), list[JobHandle[int]])
    await index(["a", "b"])
    index_blocking([])


# -- bulk submits


async def many() -> None:
    ids = ["a", "b"]
    assert_type(await add.submit_many([(1, 2), {"a": 3}], ids=ids), list[JobHandle[int]])
    assert_type(await client.task("add").submit_many([[1], [2]], all_or_nothing=True), list[JobHandle[Any]])
    assert_type(
        add.blocking.submit_many([(1,)], ids=["a"], all_or_nothing=True), list[BlockingJobHandle[int]]
    )


@app.cron("0 3 * * *", ["eu"], name="eu", tz="Europe/Berlin", overlap="skip", tags=["x"])
@app.cron("0 3 * * *", ["us"], name="us", catch_up="all")
@app.task(name="typed.nightly")
async def nightly(region: str) -> int:
    return len(region)


@app.every("30s")
async def beat() -> str:
    return "x"


@app.every(timedelta(hours=1), {"n": 2}, jitter=60)
def hourly(ctx: Context, n: int) -> float:
    return n / 2


async def recurring(client: Client) -> None:
    assert_type(await (await nightly.submit("eu")).result(), int)
    assert_type(await nightly("eu"), int)
    assert_type(await (await beat.submit()).result(), str)
    assert_type(await (await hourly.submit(2)).result(), float)
    app.schedule("other", nightly, ["x"], cron="@daily")
    assert_type(await client.schedules.add("more", nightly, ["x"], every=5), ScheduleRecord)
    assert_type(await client.schedules.next("more"), list[datetime])
    assert_type(await (await client.schedules.run("more")).result(), Any)


def blocking_calls() -> None:
    blocking = client.blocking
    assert_type(blocking.queues.pause("mail", until="5m").key, str)
    assert_type(blocking.queues.stats()[0].scheduled, int)
    assert_type(blocking.dead_letters.retry("j1"), None)
    assert_type(blocking.jobs.get("j1"), JobRecord)
    assert_type(blocking.admin.workers(), list[dict[str, Any]])
    for event in blocking.jobs.events(queue="mail"):
        assert_type(event, JobRecord)
    assert_type(blocking.schedules.add("more", nightly, ["x"], every=5), ScheduleRecord)
    assert_type(blocking.schedules.next("more", n=3), list[datetime])
    assert_type(blocking.schedules.run("more"), BlockingJobHandle[Any])
    assert_type(blocking.jobs.list(limit=3, state=["failed"], queue="mail"), list[JobRecord])
    assert_type(blocking.jobs.retry_many(task="send"), int)
    assert_type(blocking.jobs.handle("a").status(), JobRecord)
    assert_type(client.task("add").blocking.submit_many([[1]]), list[BlockingJobHandle[Any]])


# -- map


async def maps() -> None:
    assert_type(await add.map([(1, 2), {"a": 3}, 4]), list[int])
    async for result in report.map(([n] for n in range(5)), window=2, unordered=True, timeout=5):
        assert_type(result, float)
    assert_type(await add.map([1], return_exceptions=True), list[int | JobError])
    assert_type(await fetch.options(queue="q").map(["u"]), list[bytes])
    assert_type(await client.task("add").map([1]), list[Any])
    assert_type(await doubles.map(range(5)), list[int])
    for blocking in add.options(priority="low").blocking.map([1, 2]):
        assert_type(blocking, int)
    assert_type(list(add.blocking.map([1], return_exceptions=True)), list[int | JobError])
    assert_type(list(client.task("add").blocking.map([1])), list[Any])


# -- a task of a Router keeps its types

router = Router("mail", queue="mail")
router.include(Router())
app.include(router)


@router.task
async def routed(ctx: Context, to: str) -> int:
    return len(to)


@router.task(retries=1)
def routed_plain(to: str) -> int:
    return len(to)


async def submit_routed() -> None:
    assert_type(await routed.submit("a@b.c"), JobHandle[int])
    assert_type(await (await routed_plain.submit(to="a@b.c")).result(), int)
    assert_type(await client.submit("shop.tasks:send", "a@b.c"), JobHandle[Any])


# -- a lifespan, middleware, and dependencies, which are no arguments of a submit


class Pool:
    size = 3


class Timing(Middleware):
    def submitting(self, job: Job) -> Job:
        return replace(job, headers={**job.headers, "tenant": "7"})

    async def around(self, ctx: Context, call: Callable[[], Awaitable[Any]]) -> Any:
        return await call()

    async def failed(self, job: Job, error: BaseException) -> None:
        print(job.id, error)


@asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[dict[str, Any]]:
    yield {"pool": Pool()}


tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant")
hooked = App(lifespan=lifespan, middleware=[Timing(), CurrentJob(), ContextVars(tenant)])
hooked.queue("mail", middleware=[Timing()])


@hooked.on_start
async def warm_up(state: dict[str, Any]) -> None:
    state["model"] = None


@hooked.on_stop
def say_goodbye() -> None: ...


def get_pool(ctx: Context) -> Iterator[Pool]:
    yield Pool()


@hooked.task(middleware=[Timing()])
async def injected(to: str, pool: Annotated[Pool, Depends(get_pool)] = INJECTED) -> int:
    assert_type(current_job(), Context)
    return pool.size


@hooked.task
def injected_plain(ctx: Context, to: str, *, pool: Annotated[Pool, Depends(get_pool)] = INJECTED) -> int:
    assert_type(ctx.state["pool"], Any)
    return pool.size


async def submit_injected() -> None:
    assert_type(await injected.submit("a@b.c"), JobHandle[int])
    assert_type(await (await injected_plain.submit(to="a@b.c")).result(), int)
    assert_type(await injected("a@b.c", pool=Pool()), int)
    with hooked.override(get_pool, Pool):
        pass
    hooked.overrides[get_pool] = lambda: Pool()


assert_type(client.blocking.submit("shop.tasks:send", "a@b.c"), BlockingJobHandle[Any])


async def work_in_this_process() -> None:
    async with app.working(concurrency=4, queues={"mail": 3, "slow": 1}, max_idle=5.0) as worker:
        assert_type(worker, EmbeddedWorker)
        assert_type(worker.state(), str)
        assert_type(await worker.wait(), None)
    async for record in client.jobs.handle("any").follow():
        assert_type(record, JobRecord)


async def run_flows() -> None:
    pages = group(fetch.s(url) for url in ("a", "b"))
    assert_type(await (await app.submit(fetch.s("a"))).result(), bytes)
    assert_type(await (await app.submit(chain(fetch.s("a"), report.s()))).result(), float)
    assert_type(await (await app.submit(pages)).result(), list[bytes])
    assert_type(await (await app.submit(chain(fetch.si("a"), pages))).result(), list[bytes])
    mixed = group(chain(fetch.s("a"), report.s()), report.s([1]), on_error="continue")
    assert_type(await (await app.submit(mixed)).result(), list[float | StepOutcome])
    assert_type(app.client.blocking.workflows.submit(pages).result(), list[bytes])
    assert_type(await (await client.workflows.submit(pages.options(unique="k"))).result(), list[bytes])
    with app.workflow("order") as wf:
        page = wf.add(fetch, "a")
        wf.add(report.options(retries=2), page.result, after=[page], on_error="skip")
    assert_type(await wf.submit(), JobHandle[Any])


on_commit(add).delay(1, b=2)
on_commit(report.options(priority="high"), using="other", robust=True).delay([1])


# -- immediate mode


async def test_fetch() -> None:
    async with app.immediate(raise_errors=True, start=datetime(2030, 1, 1, tzinfo=UTC)) as immediate:
        assert_type(immediate, Immediate)
        job = await fetch.submit("a")
        assert_type(await immediate.delays(job), list[float])
        assert_type(await immediate.jobs(), list[JobRecord])
        assert_type(immediate.submits.assert_submitted(fetch, "a").queue, str)
    with app.immediate() as synchronous:
        synchronous.blocking.advance("1h")
        assert_type(synchronous.blocking.jobs(), list[JobRecord])
