"""Mistakes of users. mypy and pyright refuse exactly the lines that are marked `# error`."""

from typing import Annotated, Any

from jsq import App, Backoff, BlockingJobHandle, Client, Context, Depends, INJECTED, JobHandle, QueueSettings
from jsq import Retries, Snooze, chain, group
from jsq.contrib.django import on_commit

app = App()
client = Client()


@app.task
async def fetch(url: str, tries: int = 1) -> bytes:
    return url.encode() * tries


@app.task(queue="reports")
async def report(ctx: Context, rows: list[int]) -> float:
    return float(len(rows))


@app.task
def add(a: int, b: int = 2) -> int:
    return a + b


@app.task(retries=1)
def log(ctx: Context, line: str) -> None: ...


async def submits(ctx: Context) -> None:
    await fetch.submit(5)  # error
    await fetch.submit()  # error
    await fetch.submit("u", 1, 2)  # error
    await fetch.submit("u", retries=1)  # error
    await fetch.submit("u", tries="twice")  # error
    await report.submit(ctx, [1])  # error
    await report.submit(["a"])  # error
    await report.submit()  # error
    await add.submit("1")  # error
    await add.submit(1, c=2)  # error
    await log.submit(ctx, "x")  # error
    await log.submit(5)  # error


def get_size() -> int:
    return 3


@app.task
async def injected(to: str, size: Annotated[int, Depends(get_size)] = INJECTED) -> int:
    return size


async def submits_injected() -> None:
    await injected.submit()  # error
    await injected.submit("a", size="5")  # error
    App(lifespan=5)  # error
    App(middleware=[5])  # error
    app.task(middleware="all")  # error
    Depends(5)  # error


def delays() -> None:
    add.delay("1")  # error
    add.delay()  # error
    report.delay(["a"])  # error


async def results() -> None:
    a: str = await (await add.submit(1)).result()  # error
    b: int = await (await fetch.submit("u")).result()  # error
    c: float = add.delay(1).result(timeout=[5])  # error
    d: int = await add.submit(1)  # error
    e: bytes = fetch.delay("u")  # error
    add.submit(1).result()  # error
    await add.delay(1).result()  # error
    print(a, b, c, d, e)


async def options() -> None:
    add.options(priority="urgent")  # error
    add.options(delay=[5])  # error
    add.options(deadline=b"5m")  # error
    add.options(at="2030-01-01")  # error
    add.options(retry=3)  # error
    add.options(retries="3")  # error
    add.options(backoff="weekly")  # error
    add.options(retry_for=None, retry_on=None)  # error
    add.options(retry_on=KeyError)  # error
    add.options(headers={"X-A": 5})  # error
    add.options(unique=5)  # error
    add.options(unique="k", unique_until="end")  # error
    add.options(unique="k", on_duplicate="ignore")  # error
    add.options(key=7)  # error
    add.options(key="k", per_key="1")  # error
    add.options(slots="4")  # error
    add.options(expires=("5m",))  # error
    add.options(1)  # error
    await add.options(delay=1).submit("1")  # error
    add.options(delay=1).delay(1)  # error
    add.options(delay=1).blocking.submit()  # error
    add.options(delay=1).job()  # error
    add.options(delay=1)(1)  # error
    client.task("add").options(priority=99)  # error
    client.options(priority="low")  # error
    client.submit("add", 1)  # error
    client.delay("add", 1)  # error


async def calls(ctx: Context) -> None:
    add("1")  # error
    add(1, 2, 3)  # error
    await report([1])  # error
    await report(ctx, ["a"])  # error
    log("x")  # error
    x: bytes = fetch("u")  # error
    print(x)


async def keeps(ctx: Context) -> None:
    await ctx.once("fetch", fetch, 5, 2)  # error
    await ctx.once("add", add, 1, 2)  # error
    await ctx.once(fetch, "u", 2)  # error
    await ctx.once("fetch", fetch, "u", 2, unknown="ask")  # error
    await ctx.once("fetch", fetch, "u", 2, undone=5)  # error
    f: str = await ctx.once("fetch", fetch, "u", 2)  # error
    g: bytes = await ctx.once("fetch", fetch, "u", 2, unknown="skip")  # error
    ctx.blocking.once("add", add, "1", 2)  # error
    print(f, g)
    await ctx.blocking.checkpoint(1)  # error
    await ctx.checkpoint()  # error
    ctx.checkpointed = 5  # error


def handles(job: JobHandle[int], blocking: BlockingJobHandle[int]) -> None:
    wrong: JobHandle[str] = job  # error
    mixed: JobHandle[int] = blocking  # error
    job.results()  # error
    print(wrong, mixed)


def blocking() -> None:
    add.delay_many([(1,)])  # error
    add.delay_map([1])  # error
    add.blocking.delay(1)  # error
    add.blocking.submit("1")  # error
    add.blocking.submit()  # error
    add.blocking.blocking.submit(1)  # error
    b: int = add.blocking.submit(1)  # error
    c: str = add.blocking.submit(1).result()  # error
    d: list[str] = list(add.blocking.map([1]))  # error
    print(b, c, d)
    client.blocking.pause("mail")  # error
    client.blocking.queues.pause()  # error
    client.blocking.queues.pause("mail", untl=5)  # error
    client.blocking.jobs.list(stat="failed")  # error
    client.blocking.jobs()  # error
    client.blocking.admin.sweep(fix=False)  # error


async def namespaces() -> None:
    client.jobs()  # error
    client.pause("mail")  # error
    client.job("j1")  # error
    await client.jobs.handle("j1")  # error
    await client.jobs.get()  # error
    await client.jobs.list(limit="5")  # error
    await client.jobs.cancel_many("mail")  # error
    await client.jobs.reschedule("j1", 60)  # error
    await client.queues.update("mail", leese=5)  # error
    await client.dead_letters.list(reasons="timeout")  # error
    await client.dead_letters.replay("j1")  # error
    await client.schedules.ls()  # error
    await client.provision()  # error
    a: int = await client.queues.list()  # error
    b: str = await add.job("j1").result()  # error
    add.job(5)  # error
    print(a, b)


@app.batch_task(size=10, wait=1)
async def index(items: list[int]) -> list[str]:
    return [str(item) for item in items]


async def batches() -> None:
    await index.submit("a")  # error
    await index.submit(1, 2)  # error
    await index.submit([1])  # error
    await index(1)  # error
    h: JobHandle[list[str]] = await index.submit(1)  # error
    print(h)
    app.batch_task(sizes=10)  # error
    app.batch_task(size="many")  # error
    await add.submit_many([(1,)], all_or_none=True)  # error
    i: list[str] = await add.map([1])  # error
    j: list[int] = await add.map([1], return_exceptions=True)  # error
    add.map(5)  # error
    add.map([1], windows=5)  # error
    print(i, j)


app.task(5)  # error
app.task(add_no_such_name)  # error
app.cron("@daily", overlap="maybe")  # error
app.cron(5)  # error
app.every("5s", cron="@daily")  # error
app.schedule("x", add, evry=5)  # error
app.schedule("x", add_no_such_task, every=5)  # error
app.queue("q", storage="tape")  # error
app.queue("q", leese=3)  # error
app.task(name=5)  # error
app.task(queue="q", priority="urgent")  # error
app.task(retry_on=int)  # error
app.task(no_retry_on="KeyError")  # error
app.task(retry={KeyError: 5})  # error
app.task(retry_if=lambda error: True)  # error
app.task(on_dead=5)  # error
app.task(jitter="full")  # error
Retries("many")  # error
Backoff("quadratic")  # error
Snooze()  # error
QueueSettings(replicas=2)  # error
client.task()  # error
app.working(concurency=4)  # error
app.working(queues=5)  # error
chain(fetch)  # error
group(fetch, on_error="never")  # error
fetch.si(5)  # error
app.workflow("w").add(fetch, "a", after="page")  # error
chain(fetch.s("a")).options(when=5)  # error
on_commit(add).delay("1")  # error
on_commit(add)(1)  # error
on_commit("add").delay(1)  # error


def unspecific(anything: Any) -> None:
    add.delay(anything)
    client.task("add").delay(anything)  # error
    client.task("add").blocking.submit(anything, more=anything)
