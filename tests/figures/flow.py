"""Figures of flow control: fairness, order, rate limits, and the cost of each.

    python -m tests.figures.flow [fairness] [order] [rates] [ratios]

Each run has a server of its own and worker processes, one of which is killed in the middle. The ratios are
measured in one run. The figures are computed from the notes of the tasks themselves.
"""

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from jsq import Client
from jsq.server import EmbeddedServer

ROOT = Path(__file__).parents[2]
BACKLOG = 100_000
KEYS = 1_000
JOBS = 5_000


class Site:
    """A server, its workers, and the notes of their tasks."""

    def __init__(self, url: str, folder: str, client: Client) -> None:
        self.url = url
        self.effects = Path(folder, "effects")
        self.effects.touch()
        self.client = client
        self.workers: list[subprocess.Popen[bytes]] = []

    async def work(self, count: int, kind: str, slots: int = 10) -> None:
        """Start workers and wait until they are registered."""
        env = {**os.environ, "JSQ_URL": self.url, "EFFECTS": str(self.effects), "KIND": kind}
        command = [sys.executable, "-m", "jsq", "worker", "tests.figures.tasks:app"]
        command += ["--concurrency", str(slots), "--log-level", "error"]
        self.workers += [
            subprocess.Popen(command, cwd=ROOT, env=env)  # noqa: ASYNC220 -- it returns at once
            for _ in range(count)
        ]
        while len(await self.client.admin.workers()) < count:  # noqa: ASYNC110 -- they are other processes
            await asyncio.sleep(0.05)

    def starts(self) -> list[tuple[float, str, int]]:
        """The start time, the key and the number of each job."""
        read = (line.split() for line in self.effects.read_text().splitlines())
        return [(float(at), key, int(number)) for at, key, number in read]

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 -- other processes write it
            await asyncio.sleep(0.02)

    async def ten(self, key: str) -> float:
        """The seconds that ten jobs of a key take, from the first submit to the last end."""
        began = time.monotonic()
        jobs = [await self.client.task("note").options(key=key).submit(key, n) for n in range(10)]
        await asyncio.gather(*(job.wait(120) for job in jobs))
        return time.monotonic() - began


@contextlib.asynccontextmanager
async def site() -> AsyncIterator[Site]:
    with EmbeddedServer(sync_interval="1s") as server, tempfile.TemporaryDirectory() as folder:
        async with Client(server.url) as client:
            made = Site(server.url, folder, client)
            try:
                yield made
            finally:
                for worker in made.workers:
                    worker.kill()
                    worker.wait()


async def fairness() -> None:
    """Ten jobs of one tenant, on an empty queue and with the backlog of another tenant."""
    async with site() as place:
        await place.work(3, "plain")
        await place.ten("warm")
        alone = [await place.ten(f"alone-{n}") for n in range(3)]
        await place.client.task("note").options(key="a").submit_many([["a", n] for n in range(BACKLOG)])
        beside = [await place.ten(f"b-{n}") for n in range(3)]
        place.workers[0].kill()
        after = [await place.ten(f"c-{n}") for n in range(3)]
        since, done = time.monotonic(), len(place.starts())
        await asyncio.sleep(5)
        rate = (len(place.starts()) - done) / (time.monotonic() - since)
        [stats] = await place.client.queues.stats("default")
        print(f"fairness: ten jobs of B on an empty queue: {shown(alone)} s")
        print(f"  beside {BACKLOG:,} jobs of A: {shown(beside)} s; a worker was killed: {shown(after)} s")
        print(f"  A alone, two workers: {rate:.0f}/s; {stats.waiting_for_key:,} of its jobs wait for a key")


async def order() -> None:
    """Strict order for each of fifty keys, with a worker killed in the middle."""
    keys, each = 50, 40
    async with site() as place:
        await place.work(3, "plain")
        calls = [(f"k{key}", number) for number in range(each) for key in range(keys)]
        began = time.monotonic()
        for key, number in calls:
            await place.client.task("note").options(key=key, per_key=1).submit(key, number)
        await place.until(lambda: len(place.starts()) > len(calls) // 2)
        place.workers[0].kill()
        await place.until(lambda: len({(key, n) for _, key, n in place.starts()}) == len(calls))
        took, found = time.monotonic() - began, place.starts()
        wrong = sum(
            earlier > later
            for key in range(keys)
            for earlier, later in itertools.pairwise([n for _, one, n in found if one == f"k{key}"])
        )
        print(f"order: {keys} keys x {each} jobs in {took:.1f} s, a worker killed: {wrong} out of order,")
        print(f"  {len(found) - len(calls)} started twice (those of the worker that was killed)")


async def rates() -> None:
    """50 starts per second for 20 seconds, by two workers, one of which is killed in the middle."""
    for kind in ("slow queue", "slow task"):
        async with site() as place:
            await place.work(2, kind, slots=20)
            await place.client.task("note").submit_many([["x", n] for n in range(1_500)])
            await place.until(lambda site=place: bool(site.starts()))  # type: ignore[misc]
            await asyncio.sleep(10)
            place.workers[0].kill()
            await asyncio.sleep(10.5)
            found = sorted(at for at, _, _ in place.starts())
            within = [at for at in found if at < found[0] + 20]
            most = max(bisect_left(found, at + 1) - place for place, at in enumerate(found))
            share = len(within) / (50 * 20)
            print(f"rates: {kind}, 50/s: at most {most} in any second; {share:.1%} used over 20 s")


async def ratios() -> None:
    """The jobs per second that two workers start with each feature, compared with a plain queue."""
    found: dict[str, list[float]] = {}
    features = ("plain", "concurrency", "queue rate", "task rate", "1,000 keys", "1,000 keys in order")
    for _ in range(3):
        for feature in features:
            found.setdefault(feature, []).append(await drained(feature))
    plain = max(found["plain"])
    for feature, rates in found.items():
        print(f"ratios: {feature}: {max(rates):,.0f}/s, {max(rates) / plain:.2f} of plain")


async def drained(feature: str) -> float:
    keys = KEYS if "keys" in feature else 0
    async with site() as place:
        if keys:
            per_key = 1 if "order" in feature else None
            calls = iter(range(JOBS))

            async def submit_next() -> None:
                for n in calls:
                    key = f"k{n % keys}"
                    await place.client.task("note").options(key=key, per_key=per_key).submit(key, n)

            await asyncio.gather(*(submit_next() for _ in range(50)))
        else:
            await place.client.task("note").submit_many([["x", n] for n in range(JOBS)])
        await place.work(2, feature, slots=50)
        await place.until(lambda: len(place.starts()) >= JOBS)
        moments = [at for at, _, _ in place.starts()]
        return JOBS / (max(moments) - min(moments))


def shown(seconds: list[float]) -> str:
    return ", ".join(f"{one:.2f}" for one in seconds)


FIGURES = {"fairness": fairness, "order": order, "rates": rates, "ratios": ratios}


async def main(names: list[str]) -> None:
    for name in names or list(FIGURES):
        await FIGURES[name]()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
