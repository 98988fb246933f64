"""The speed of bulk submits, maps and batches: `python -m tests.figures.bulk [JOBS]`.

Runs on a server of its own with one worker. Each figure is the best of three, because on a busy machine the
slower ones measure the other programs.
"""

import asyncio
import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from jsq import App
from jsq.client.map import Results
from jsq.server import EmbeddedServer

ROOT = Path(__file__).parents[2]
ROUND_TRIP = 0.02
"""Seconds of a simulated call to another service, for one item or for a hundred."""

app = App(namespace="figures")
app.queue("held")


@app.task
async def nothing(n: int) -> int:
    return n


@app.task(queue="single")
async def store_one(n: int) -> None:
    await asyncio.sleep(ROUND_TRIP)


@app.batch_task(queue="batched", size=100, wait=0.05)
async def store_many(items: list[int]) -> None:
    await asyncio.sleep(ROUND_TRIP)


@app.batch_task(queue="batched-nothing", size=100, wait=0.05)
async def nothing_many(items: list[int]) -> None: ...


@app.task(queue="single-nothing")
async def nothing_one(n: int) -> None: ...


async def best(work: Callable[[], Awaitable[object]], times: int = 3) -> float:
    """The seconds of the fastest of several runs."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        await work()
        took.append(time.perf_counter() - began)
    return min(took)


def print_rate(what: str, jobs: int, seconds: float) -> float:
    print(f"{what:<58} {jobs:>7,} in {seconds:7.3f} s  {jobs / seconds:>9,.0f}/s", flush=True)
    return jobs / seconds


async def submits(count: int) -> None:
    calls = [(n,) for n in range(count)]
    apart, first_calls = nothing.options(queue="held"), calls[:1_000]

    async def own_ids() -> None:
        await apart.submit_many(calls, ids=[f"run{time.monotonic_ns()}-{n}" for n in range(count)])

    print_rate("submit_many", count, await best(lambda: apart.submit_many(calls)))
    print_rate("submit_many with ids of the caller", count, await best(own_ids))
    took = await best(lambda: apart.submit_many(first_calls, all_or_nothing=True))
    print_rate("submit_many, all or nothing", len(first_calls), took)


async def maps(count: int) -> None:
    async def mapped() -> None:
        assert await nothing.map(range(count)) == list(range(count))

    async def each() -> None:
        jobs = await nothing.submit_many([(n,) for n in range(count)])
        assert [await job.result() for job in jobs] == list(range(count))

    fast = print_rate("map, in order", count, await best(mapped))
    slow = print_rate("submit_many, then each result", count, await best(each))
    print(f"{'':<58} {fast / slow:.1f} times")


async def batches(count: int) -> None:
    for one, many in ((store_one, store_many), (nothing_one, nothing_many)):
        rates = []
        for task in (one, many):
            mapped = functools.partial(all_of, task.map(range(count), window=count))
            rates.append(print_rate(f"jobs of {task.name}", count, await best(mapped, 1)))
        print(f"{'':<58} {rates[1] / rates[0]:.1f} times")


async def all_of(results: Results[None]) -> None:
    await results


@contextlib.contextmanager
def working(concurrency: int) -> Iterator[None]:
    queues = "default,single,batched,single-nothing,batched-nothing"
    command = [sys.executable, "-m", "jsq", "worker", "tests.figures.bulk:app", "--queues", queues]
    more = ["--concurrency", str(concurrency), "--log-level", "warning"]
    process = subprocess.Popen([*command, *more], cwd=ROOT)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


async def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder), sync_interval="1s") as server:
        os.environ["JSQ_URL"] = server.url
        async with app:
            with working(100):
                await nothing.map([1])
                await maps(count)
            with working(10):
                await store_many.map([1])
                await batches(count)
            await submits(count)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
