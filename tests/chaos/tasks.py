"""The tasks of a chaos run. Each run of a task notes its start and its end in a file."""

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jsq import INJECTED, App, BatchItem, Context, Rate, Reject, Snooze
from jsq.declaration import TaskOptions
from jsq.settings import QueueSettings
from tests.chaos.hooks import (
    Broken,
    BrokenLater,
    Raising,
    RaisingAtOutcomes,
    fail_to_start,
    lifespan,
    stop_late,
)

KEEP = 7_200.0
"""Seconds that results are kept: the checker reads all of them at the end."""


RATES = {"limited": Rate(12, per=3), "metered": Rate(20, per=4)}
"""How often two tasks may start: the rate of a queue that has no other task, and the rate of a task."""

CONCURRENCY = {"narrowed": 3}
"""How many runs of a task may be in progress: the concurrency of a queue that has no other task."""


def settings(servers: int) -> QueueSettings:
    """The settings of a queue.

    With several servers the lease is longer than an election, which takes up to 9 s.
    """
    return QueueSettings(lease=5.0) if servers == 1 else QueueSettings(lease=10.0, replicas=3)


def queues(servers: int) -> dict[str, QueueSettings]:
    """All queues: a plain one, and ones with a limit per key, a rate, a concurrency limit, and pauses."""
    usual = settings(servers)
    return {
        "default": usual,
        "groups": usual.replace(per_key=1),
        "limited": usual.replace(rate=RATES["limited"]),
        "narrow": usual.replace(concurrency=CONCURRENCY["narrowed"]),
        "gated": usual,
        "apart": usual,
    }


HOOKED = ("hooked", "hooked_in_a_thread", "hooked_in_a_child")
"""The tasks around which every hook raises. They fail twice because of it, and then succeed."""

HOOKED_OPTIONS: TaskOptions = {
    "keep_result": KEEP,
    "retries": 9,
    "backoff": [0.2],
    "middleware": [Raising()],
}

HOOKED_IN_A_CHILD: TaskOptions = {**HOOKED_OPTIONS, "executor": "process"}

app = App(namespace=os.environ.get("JSQ_NAMESPACE", "chaos"), lifespan=lifespan)
app.on_start(fail_to_start)
app.on_stop(stop_late)
for name, declared in queues(int(os.environ.get("CHAOS_SERVERS", "1"))).items():
    app.queue(name, **declared.as_dict())

if os.environ.get("CHAOS_MUTANT"):
    from tests.chaos import mutant

    for name in os.environ["CHAOS_MUTANT"].split(","):
        mutant.MUTANTS[name]()


class Attempted(Protocol):
    """The fields of an attempt that a task knows."""

    @property
    def id(self) -> str: ...

    @property
    def token(self) -> int: ...


class Effects:
    """Writes a file for each process with a line for each effect: word, job, token, pid, time."""

    def __init__(self) -> None:
        self._file = -1

    def note(self, word: str, ctx: Attempted) -> None:
        if self._file < 0:
            path = Path(os.environ["EFFECTS"], str(os.getpid()))
            self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.write(self._file, f"{word} {ctx.id} {ctx.token} {os.getpid()} {time.time()}\n".encode())


effects = Effects()


@app.task
async def work(ctx: Context, seconds: float) -> str:
    effects.note("begin", ctx)
    await asyncio.sleep(seconds)
    effects.note("end", ctx)
    return ctx.id


@app.task(middleware=[RaisingAtOutcomes()])
def work_in_a_thread(ctx: Context, seconds: float, broken: Broken = INJECTED) -> str:
    effects.note("begin", ctx)
    time.sleep(seconds)
    effects.note("end", ctx)
    return ctx.id


@app.task(keep_result=KEEP, retries=5, backoff=[0.2], middleware=[RaisingAtOutcomes()])
async def flaky(ctx: Context, broken: Broken = INJECTED) -> str:
    effects.note("begin", ctx)
    if ctx.attempt < 3:
        raise RuntimeError("not yet")
    effects.note("end", ctx)
    return ctx.id


@app.task(**HOOKED_OPTIONS)
async def hooked(ctx: Context, first: Broken = INJECTED, second: BrokenLater = INJECTED) -> str:
    return run_hooked(ctx, first, second)


@app.task(**HOOKED_OPTIONS)
def hooked_in_a_thread(ctx: Context, first: Broken = INJECTED, second: BrokenLater = INJECTED) -> str:
    return run_hooked(ctx, first, second)


@app.task(**HOOKED_IN_A_CHILD)
def hooked_in_a_child(ctx: Context, first: Broken = INJECTED, second: BrokenLater = INJECTED) -> str:
    return run_hooked(ctx, first, second)


def run_hooked(ctx: Context, *provided: int) -> str:
    effects.note("begin", ctx)
    if {*provided, ctx.state["pid"]} != {os.getpid()}:
        raise Reject("a hook belongs to another process")
    effects.note("end", ctx)
    return ctx.id


@app.task
async def refused(ctx: Context) -> str:
    """Never run: the middleware of the client refuses the submit."""
    effects.note("begin", ctx)
    return ctx.id


@app.task(keep_result=KEEP, retries=5, backoff=[0.2])
async def stepping(ctx: Context, seconds: float) -> str:
    """Execute a step once, fail after it, continue from the checkpoint; fail if its outcome is unknown."""
    effects.note("begin", ctx)

    async def step() -> str:
        effects.note("step", ctx)
        await asyncio.sleep(seconds)
        return ctx.id

    id = await ctx.once("step", step)
    if ctx.checkpointed is None:
        await ctx.checkpoint(ctx.token)
        raise RuntimeError("not yet")
    effects.note("end", ctx)
    return id


@app.task
async def snoozing(ctx: Context, until: float) -> str:
    effects.note("begin", ctx)
    if time.time() < until:
        raise Snooze(0.5)
    effects.note("end", ctx)
    return ctx.id


@app.task
async def doomed(ctx: Context) -> None:
    effects.note("begin", ctx)
    raise Reject("never")


@app.task(keep_result=KEEP)
async def link(ctx: Context, before: object = None) -> str:
    """A node of a workflow, which takes the result of the node before it."""
    effects.note("begin", ctx)
    await asyncio.sleep(0.01)
    effects.note("end", ctx)
    return ctx.id


@app.task
async def poison(ctx: Context) -> None:
    """Kill the worker that runs it."""
    effects.note("begin", ctx)
    os._exit(7)


@dataclass(frozen=True)
class PlainRun:
    """A run of a task without a `Context`, which does not know its token."""

    id: str
    token: int = 0


@app.task
async def plain(id: str, seconds: float) -> str:
    """Run without a `Context`, so that the worker uses the fast path.

    The first argument is the id of the job.
    """
    effects.note("begin", PlainRun(id))
    await asyncio.sleep(seconds)
    effects.note("end", PlainRun(id))
    return id


@app.task(queue="limited")
async def limited(ctx: Context) -> str:
    effects.note("begin", ctx)
    effects.note("end", ctx)
    return ctx.id


@app.task(rate=RATES["metered"])
async def metered(ctx: Context) -> str:
    effects.note("begin", ctx)
    effects.note("end", ctx)
    return ctx.id


@app.task(queue="narrow")
async def narrowed(ctx: Context, seconds: float) -> str:
    """Note when the function leaves, also if it is interrupted."""
    effects.note("begin", ctx)
    try:
        await asyncio.sleep(seconds)
        effects.note("end", ctx)
    finally:
        effects.note("left", ctx)
    return ctx.id


@app.batch_task(size=10, wait=0.2, retries=5, backoff=[0.2])
async def batched(items: list[BatchItem[str]]) -> list[str | BaseException]:
    """End each item as its value requests: `good`, `bad`, or `later`, which succeeds when it is retried."""
    for item in items:
        effects.note("begin", item)
    await asyncio.sleep(0.05)
    return [outcome_of(item) for item in items]


def outcome_of(item: BatchItem[str]) -> str | BaseException:
    if item.value == "bad":
        return Reject("never")
    if item.value == "later" and item.attempt < 2:
        return RuntimeError("not yet")
    effects.note("end", item)
    return item.id


@app.task
async def tick(ctx: Context) -> str:
    """The task of the schedule."""
    effects.note("begin", ctx)
    effects.note("end", ctx)
    return ctx.id
