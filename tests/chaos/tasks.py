"""What the workers of a chaos run execute. Each run of a task notes its begin and its end in a file."""

import asyncio
import os
import time
from pathlib import Path

from jsq import App, Context, Reject, Snooze
from jsq.settings import QueueSettings

KEEP = 7_200.0
"""Seconds that outcomes stay: the checker reads them all at the end."""


def settings(servers: int) -> QueueSettings:
    """How the queue is declared: with several servers its lease outlasts an election, of 9 s at most."""
    return QueueSettings(lease=5.0) if servers == 1 else QueueSettings(lease=10.0, replicas=3)


app = App(namespace=os.environ.get("JSQ_NAMESPACE", "chaos"))
app.queue("default", **settings(int(os.environ.get("CHAOS_SERVERS", "1"))).model_dump())

if os.environ.get("CHAOS_MUTANT"):
    from tests.chaos import mutant

    mutant.switch_fencing_off()


class Effects:
    """A file for each process, one line for each effect: word, job, token, pid, moment."""

    def __init__(self) -> None:
        self._file = -1

    def note(self, word: str, ctx: Context) -> None:
        if self._file < 0:
            path = Path(os.environ["EFFECTS"], str(os.getpid()))
            self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.write(self._file, f"{word} {ctx.id} {ctx.token} {os.getpid()} {time.time()}\n".encode())


effects = Effects()


@app.task(keep_result=KEEP)
async def work(ctx: Context, seconds: float) -> str:
    effects.note("begin", ctx)
    await asyncio.sleep(seconds)
    effects.note("end", ctx)
    return ctx.id


@app.task(keep_result=KEEP)
def work_in_a_thread(ctx: Context, seconds: float) -> str:
    effects.note("begin", ctx)
    time.sleep(seconds)
    effects.note("end", ctx)
    return ctx.id


@app.task(keep_result=KEEP, retries=5, backoff=[0.2])
async def flaky(ctx: Context) -> str:
    effects.note("begin", ctx)
    if ctx.attempt < 3:
        raise RuntimeError("not yet")
    effects.note("end", ctx)
    return ctx.id


@app.task(keep_result=KEEP, retries=5, backoff=[0.2])
async def stepping(ctx: Context, seconds: float) -> str:
    """Takes a step once, fails behind it, goes on from its checkpoint; fails where the step is unknown."""
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


@app.task(keep_result=KEEP)
async def snoozing(ctx: Context, until: float) -> str:
    effects.note("begin", ctx)
    if time.time() < until:
        raise Snooze(0.5)
    effects.note("end", ctx)
    return ctx.id


@app.task(keep_result=KEEP)
async def doomed(ctx: Context) -> None:
    effects.note("begin", ctx)
    raise Reject("never")


@app.task(keep_result=KEEP)
async def poison(ctx: Context) -> None:
    """Takes down whoever runs it."""
    effects.note("begin", ctx)
    os._exit(7)


@app.task(keep_result=KEEP)
async def tick(ctx: Context) -> str:
    """What a schedule submits."""
    effects.note("begin", ctx)
    effects.note("end", ctx)
    return ctx.id
