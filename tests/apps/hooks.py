"""Tasks with a lifespan, middleware and dependencies; some run in child processes."""

import asyncio
import contextlib
import contextvars
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

from jsq import INJECTED, App, Context, ContextVars, CurrentJob, Depends, Middleware, current_job
from jsq.middleware import CallNext
from jsq.model.job import Job

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


def note(*words: object) -> None:
    """Append a line to the file that the test reads."""
    if path := os.environ.get("HOOKS_FILE"):
        with Path(path).open("a") as file:
            file.write(" ".join(map(str, words)) + "\n")


def count_notes(word: str) -> int:
    """How often a word is in that file."""
    return Path(os.environ["HOOKS_FILE"]).read_text().count(word)


@contextlib.asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[dict[str, Any]]:
    fails = os.environ.get("HOOKS_START")
    if fails == "fails" or (fails == "fails in children" and sys.argv[0] == "-c"):
        raise RuntimeError("no database")
    note("enter", os.getpid())
    beating = asyncio.create_task(beat()) if os.environ.get("HOOKS_BEAT") else None
    yield {"pool": f"pool of {app.name}", "pid": os.getpid()}
    if beating is not None:
        beating.cancel()
    note("leave", os.getpid())


async def beat() -> None:
    """Note that the event loop of this process runs."""
    while True:
        note("beat", os.getpid())
        await asyncio.sleep(0.02)


class Noting(Middleware):
    """Changes results, and raises after each outcome."""

    async def around(self, ctx: Context, call: CallNext) -> Any:
        found = await call()
        return [*found, "around"] if isinstance(found, list) else found

    async def settled(self, job: Job) -> None:
        note("settled", job.attempt)
        raise OSError("cannot note")


app = App(name="hooks", lifespan=lifespan, middleware=[CurrentJob(), ContextVars(tenant), Noting()])


app.queue("default", lease=1)


@app.on_start
def started(state: dict[str, Any]) -> None:
    state["started"] = True


async def get_pool(ctx: Context) -> str:
    return str(ctx.state["pool"])


def get_connection() -> Iterator[sqlite3.Connection]:
    """A connection that only the thread which opened it may use."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        yield connection
        connection.execute("SELECT 1")


Pool = Annotated[str, Depends(get_pool)]
Connection = Annotated[sqlite3.Connection, Depends(get_connection)]


@app.task(executor="process")
def in_child(word: str, pool: Pool = INJECTED, connection: Connection = INJECTED) -> list[Any]:
    [(one,)] = connection.execute("SELECT 1").fetchall()
    return [word, pool, one, current_job().id, tenant.get(), threading.current_thread().name, os.getpid()]


@app.task(executor="process")
async def in_child_async(ctx: Context, word: str, pool: Pool = INJECTED) -> list[Any]:
    return [word, pool, ctx.state["started"], current_job() is ctx, tenant.get(), ctx.state["pid"]]


@app.task
def in_thread(word: str, pool: Pool = INJECTED, connection: Connection = INJECTED) -> list[Any]:
    [(one,)] = connection.execute("SELECT 1").fetchall()
    return [word, pool, one, current_job().id, tenant.get(), threading.current_thread().name]


@app.task
async def on_loop(ctx: Context, word: str, pool: Pool = INJECTED) -> list[Any]:
    return [word, pool, ctx.state["started"], current_job() is ctx, tenant.get(), ctx.state["pid"]]


def break_at_the_end() -> Iterator[None]:
    yield
    note("break")
    raise OSError("cannot close")


@app.task(retries=2, backoff=[0.01])
async def kill_worker(ctx: Context, broken: Annotated[None, Depends(break_at_the_end)] = INJECTED) -> int:
    """Fail, then kill the worker, then succeed."""
    note("attempt", ctx.attempt)
    if ctx.attempt == 1:
        raise ValueError("not yet")
    if ctx.attempt == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return ctx.attempt


@app.task(executor="process", retries=0, timeout=0.2)
async def hang_in_child_async(pool: Pool = INJECTED) -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        note("cancelled", os.getpid())
        raise


@app.task(executor="process", retries=0, timeout=0.2)
def hang_in_child(connection: Connection = INJECTED) -> None:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        note("interrupted", os.getpid())
        raise


@app.task(executor="process", retries=0)
def fail_in_child(connection: Connection = INJECTED) -> None:
    asyncio.run(asyncio.sleep(0))  # a plain function may have an event loop of its own
    raise LookupError("not here")


class KillOnce(Middleware):
    """Kills the worker after the first outcome is recorded, and before it is settled."""

    async def succeeded(self, job: Job, result: Any) -> None:
        note("succeeded", *result)
        if count_notes("succeeded") == 1:
            os.kill(os.getpid(), signal.SIGKILL)


@app.task(middleware=[KillOnce()])
async def record_then_die(word: str) -> list[str]:
    note("run", word)
    return [word]
