"""The app of the worker processes in the fault tests. Each run of a task writes a line to `EFFECTS`."""

import asyncio
import os
import time
from pathlib import Path

from jsq import App, BatchItem, Context

LEASE = float(os.environ.get("LEASE", "5"))
CRASHES = int(os.environ.get("CRASHES", "3"))

app = App(namespace=os.environ.get("JSQ_NAMESPACE", "jsq"))
app.queue("default", lease=LEASE, max_crashes=CRASHES, quarantine=os.environ.get("QUARANTINE"))
if "QUARANTINE" in os.environ:
    app.queue(os.environ["QUARANTINE"], lease=LEASE, max_crashes=CRASHES)
if "LIMIT" in os.environ:
    app.queue("limited", lease=LEASE, max_crashes=CRASHES, concurrency=int(os.environ["LIMIT"]))


def effect(word: str, ctx: Context | BatchItem[float]) -> None:
    with Path(os.environ["EFFECTS"]).open("a") as file:
        file.write(f"{time.time()} {os.getpid()} {word} {ctx.id} {ctx.attempt}\n")


@app.task
async def nap(ctx: Context, seconds: float) -> str:
    effect("begin", ctx)
    await asyncio.sleep(seconds)
    effect("end", ctx)
    return ctx.worker


@app.task
async def nap_at_first(ctx: Context, seconds: float) -> str:
    """Sleep only in the first attempt."""
    effect("begin", ctx)
    await asyncio.sleep(seconds if ctx.attempt == 1 else 0)
    effect("end", ctx)
    return ctx.worker


@app.task
def thread_nap(ctx: Context, seconds: float) -> str:
    effect("begin", ctx)
    time.sleep(seconds)
    effect("end", ctx)
    return ctx.worker


@app.task(executor="process")
def process_nap(ctx: Context, seconds: float) -> str:
    effect("begin", ctx)
    time.sleep(seconds)
    effect("end", ctx)
    return ctx.worker


@app.task
async def block(ctx: Context, seconds: float) -> str:
    """Block the event loop, as no task should."""
    effect("begin", ctx)
    time.sleep(seconds)  # noqa: ASYNC251 -- on purpose
    return ctx.worker


@app.task
def die(ctx: Context) -> None:
    effect("begin", ctx)
    os._exit(1)


@app.task(backoff=[0.1])
async def unlucky(ctx: Context) -> int:
    """Never end in the first attempt, fail in the second, succeed in the third."""
    effect("begin", ctx)
    if ctx.attempt == 1:
        await asyncio.sleep(600)
    if ctx.attempt == 2:
        raise ValueError("no")
    return ctx.attempt


@app.task
async def count_tasks() -> int:
    """The number of asyncio tasks of the worker."""
    return len(asyncio.all_tasks())


@app.task
async def add(a: int, b: int) -> int:
    return a + b


@app.task(retries=0)
async def buy(ctx: Context, before: float, within: float) -> str:
    """Execute a step that starts after `before` seconds and takes `within` seconds."""
    effect("begin", ctx)
    await asyncio.sleep(before)

    async def charge() -> str:
        effect("charge", ctx)
        await asyncio.sleep(within)
        return ctx.worker

    return await ctx.once("charge", charge)


@app.task
async def climb(ctx: Context, seconds: float) -> list[int | None]:
    """Store checkpoints and continue from the last one; return those that this attempt read or stored."""
    kept: list[int | None] = [ctx.checkpointed]
    for step in range(ctx.checkpointed or 0, 3):
        effect(f"step-{step}", ctx)
        await ctx.checkpoint(step + 1)
        effect(f"kept-{step}", ctx)
        kept.append(ctx.checkpointed)
        await asyncio.sleep(seconds)
    return kept


@app.batch_task(size=20, wait=float(os.environ.get("WAIT", "0.3")))
async def nap_together(items: list[BatchItem[float]]) -> list[str]:
    """Sleep as long as the longest item; a negative item ends the process."""
    for item in items:
        effect("begin", item)
    if any(item.value < 0 for item in items):
        os._exit(1)
    await asyncio.sleep(max(item.value for item in items))
    for item in items:
        effect("end", item)
    return [str(os.getpid())] * len(items)


@app.task(retries=5, backoff=[0.05])
async def visit(ctx: Context, key: str, number: int, seconds: float, fails: bool = False) -> int:
    """Note the start and the end of a job of a key; it may fail once."""
    effect(f"in:{key}:{number}", ctx)
    await asyncio.sleep(seconds)
    effect(f"out:{key}:{number}", ctx)
    if fails and ctx.attempt == 1:
        raise ValueError("once more")
    return number


@app.task
async def instead(number: int) -> int:
    return -number


@app.task(retries=0, fallback=instead)
async def fail(number: int) -> None:
    raise ValueError(number)
