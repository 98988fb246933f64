"""Tasks that run in child processes, and that end, block or damage these processes."""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

from jsq import App, Context, Reject, Retry, Snooze

app = App()


@app.task(executor="process", retries=0)
def add(a: int, b: int) -> int:
    return a + b


@app.task(executor="process")
async def add_async(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


@app.task(executor="process")
def pid() -> int:
    return os.getpid()


@app.task(executor="process", retries=0)
def die(how: str) -> None:
    """End the process, in one of the ways in which processes end."""
    match how:
        case "exit":
            os._exit(7)
        case "segfault":
            ctypes.string_at(0)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "holding":  # a forked process keeps the socket open after this process ends
            if os.fork() == 0:
                os.closerange(0, 3)
                time.sleep(30)
            os._exit(7)


@app.task(executor="process", retries=0)
def leave(kind: str) -> None:
    raise {one.__name__: one for one in (SystemExit, KeyboardInterrupt, MemoryError)}[kind](3)


@app.task(executor="process", retries=0)
def signalled(kind: str) -> None:
    raise {"Reject": Reject("never"), "Retry": Retry("later", delay=0.01), "Snooze": Snooze(60)}[kind]


@app.task(executor="process", retries=0)
def give(kind: str) -> Any:
    return {"object": object(), "large": "x" * 2_000_000, "lambda": lambda: 1}[kind]


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("cannot be sent")
        self.lock = open(os.devnull)  # noqa: SIM115 -- it cannot be pickled


@app.task(executor="process", retries=0)
def raise_unpicklable() -> None:
    raise Unpicklable(1, 2)


@app.task(executor="process", retries=0)
def hold_the_lock(seconds: int) -> str:
    """Hold the GIL for longer than any lease, as a call of C code may."""
    ctypes.PyDLL(None).sleep(seconds)
    return "held"


@app.task(executor="process", retries=0, timeout=0.3)
def clean_up(file: str) -> None:
    try:
        time.sleep(60)
    finally:
        Path(file).write_text("clean")


@app.task(executor="process", retries=0, timeout=0.2, hard_timeout=0.5)
def stubborn(file: str) -> None:
    Path(file).write_text(str(os.getpid()))
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(60)


@app.task(executor="process", retries=0)
def nap(file: str) -> None:
    Path(file).write_text(str(os.getpid()))
    time.sleep(60)


@app.task(executor="process")
def describe_context(ctx: Context, file: str) -> list[Any]:
    ctx.progress(0.5, "half")
    ctx.log.warning("from the child")
    logging.getLogger("theirs").warning("of a %s", "library", extra={"odd": object()})
    while not Path(file).exists():
        time.sleep(0.01)
    return [ctx.id, ctx.attempt, ctx.token > 0, ctx.worker]


@app.task(executor="process")
def grow(megabytes: int) -> int:
    globals()["held"] = bytearray(os.urandom(1_000_000)) * megabytes
    return os.getpid()


@app.task(executor="process", retries=1, backoff="none")
def climb(ctx: Context) -> list[Any]:
    """Store a checkpoint, fail, and continue from the checkpoint."""
    if ctx.checkpointed is None:
        ctx.blocking.checkpoint({"step": 1})
        raise Retry("again", delay=0)
    return [ctx.attempt, ctx.checkpointed]


@app.task(executor="process", retries=1, backoff="none")
async def climb_async(ctx: Context) -> list[Any]:
    if ctx.checkpointed is None:
        await ctx.checkpoint({"step": 1})
        os._exit(1)
    return [ctx.attempt, ctx.checkpointed]


@app.task(executor="process", retries=1, backoff="none")
def buy(ctx: Context, file: str) -> Any:
    """Execute a step, and die right after it."""
    found = ctx.blocking.once("charge", charge, file)
    if ctx.attempt == 1:
        os._exit(1)
    return found


def charge(file: str) -> list[str]:
    with Path(file).open("a") as effects:
        effects.write("charged\n")
    return ["receipt"]


@app.task(executor="process", retries=1, backoff="none")
async def buy_and_die(ctx: Context, file: str) -> None:
    """Die during a step."""

    async def charge_and_die() -> None:
        charge(file)
        os._exit(1)

    await ctx.once("charge", charge_and_die)


@app.task(executor="process", retries=0)
def climb_too_high(ctx: Context) -> None:
    ctx.blocking.checkpoint("x" * 70_000)


def wait_once(ctx: Context, began: str) -> int:
    """Create a file, and wait in the first attempt; returns the number of the attempt."""
    Path(began).touch()
    if ctx.attempt == 1:
        time.sleep(60)
    return ctx.attempt
