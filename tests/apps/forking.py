"""Tasks that fork processes and end them by signals, and functions that return awaitables."""

import asyncio
import contextlib
import functools
import logging
import multiprocessing
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

from jsq import App, Depends

app = App(namespace=os.environ.get("JSQ_NAMESPACE", "jsq"))
fork = multiprocessing.get_context("fork")


def use_pool() -> int:
    """Leaving a pool sends SIGTERM to its processes."""
    with fork.Pool(2) as pool:
        return sum(pool.map(abs, [-1, -2]))


def end_fork() -> int | None:
    process = fork.Process(target=time.sleep, args=(60,))
    process.start()
    process.terminate()
    return exit_code(process)


def exit_code(process: multiprocessing.process.BaseProcess) -> int | None:
    """Wait for the end of a process; returns its exit code.

    When another thread starts a process, `multiprocessing` reads the exit codes of all that have ended. It
    stores each a moment later, and `exitcode` is None until then.
    """
    process.join(20)
    end = time.monotonic() + 5
    while process.exitcode is None and time.monotonic() < end:
        time.sleep(0.01)
    return process.exitcode


async def end_fork_on_loop() -> int | None:
    return end_fork()


def log_in_fork() -> int | None:
    process = fork.Process(target=logging.getLogger("forked").warning, args=("from the fork",))
    process.start()
    return exit_code(process)


def leave_forks(file: str) -> None:
    """Write the id of a process that this one has started, and wait for it, also when interrupted."""
    process = fork.Process(target=time.sleep, args=(60,))
    process.start()
    Path(file).write_text(str(process.pid))
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            process.join()


for function in (use_pool, end_fork, end_fork_on_loop, log_in_fork):
    app.task(retries=0, timeout=30)(function)
for function in (use_pool, end_fork, log_in_fork):
    app.task(name=f"{function.__name__}_in_process", retries=0, timeout=30, executor="process")(function)
app.task(retries=0, timeout=0.5, hard_timeout=1, executor="process")(leave_forks)


# -- awaitables ----------------------------------------------------------------------------------------------


async def double(n: int) -> int:
    await asyncio.sleep(0)
    return 2 * n


def plainly(function: Any) -> Any:
    """A decorator that is a plain function."""

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        return function(*args, **named)

    return call


def as_future(function: Any) -> Any:
    """A decorator that needs the event loop at the call."""

    @functools.wraps(function)
    def call(n: int) -> Any:
        return asyncio.ensure_future(function(n))

    return call


def blocking(function: Any) -> Any:
    """A decorator that makes a plain function of a coroutine function, and blocks."""

    @functools.wraps(function)
    def call(n: int) -> Any:
        return asyncio.run(function(n))

    return call


def returned(n: int) -> Any:
    return double(n)


async def forgotten(n: int) -> Any:
    return double(n)


wrapped, future, blocked = plainly(double), as_future(double), blocking(double)
for name in ("wrapped", "future", "blocked"):
    globals()[name].__qualname__ = name  # by which a child process finds it

AWAITED = [
    app.task(name=f"{function.__qualname__}_{executor or 'thread'}", retries=0, executor=executor)(function)
    for function in (wrapped, future, blocked, returned)
    for executor in (None, "process")
]
AWAITED += [
    app.task(name=f"{function.__qualname__}_async", retries=0, executor="async")(function)
    for function in (wrapped, future)
]
FORGOTTEN = [
    app.task(name=f"forgotten_{executor or 'loop'}", retries=0, executor=executor)(forgotten)
    for executor in (None, "process")
]


class Pool:
    is_open = True


async def get_pool() -> AsyncIterator[Pool]:
    pool = Pool()
    yield pool
    pool.is_open = False


def get_plain_pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.is_open = False


@plainly
async def get_name() -> str:
    return "seven"


@app.task(retries=0)
@plainly
async def use_pools(
    one: Annotated[Pool, Depends(get_pool)],
    other: Annotated[Pool, Depends(get_plain_pool)],
    name: Annotated[str, Depends(get_name)],
) -> Any:
    """Return what the dependencies are after a turn of the event loop."""
    await asyncio.sleep(0)
    return [one.is_open, other.is_open, name]


@app.task(retries=0, executor="process")
@plainly
async def use_pools_in_process(
    one: Annotated[Pool, Depends(get_pool)],
    other: Annotated[Pool, Depends(get_plain_pool)],
    name: Annotated[str, Depends(get_name)],
) -> Any:
    await asyncio.sleep(0)
    return [one.is_open, other.is_open, name]
