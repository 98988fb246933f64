"""500 keys, raced by 12 submitters on their own event loops while servers die: one job of each key."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jsq import App, BrokerError, Client, DuplicateJob
from jsq.model.unique import OnDuplicate
from jsq.server import EmbeddedServer
from jsq.worker import Worker
from tests.helpers.cluster import cluster
from tests.helpers.conditions import Until
from tests.helpers.workers import running_worker

pytestmark = pytest.mark.proof

KEYS = 500
SUBMITTERS = 12
AT_ONCE = 20


class Race:
    """The jobs that the submitters received for each key."""

    def __init__(self, url: str, way: OnDuplicate = "return") -> None:
        self.url = url
        self.way: OnDuplicate = way
        self.got: dict[int, set[str]] = defaultdict(set)
        self.answers = 0
        self.again = 0
        self.over = False
        """Nobody waits for the end any more: a thread cannot be cancelled."""

    async def run(self) -> None:
        # These are separate threads: the event loop has fewer, and needs them to start servers again.
        threads, loop = ThreadPoolExecutor(SUBMITTERS), asyncio.get_running_loop()
        try:
            await asyncio.gather(
                *(
                    loop.run_in_executor(threads, asyncio.run, self.submit(number))
                    for number in range(SUBMITTERS)
                )
            )
        finally:
            threads.shutdown(wait=False)

    async def submit(self, number: int) -> None:
        keys = list(range(KEYS))
        random.Random(number).shuffle(keys)
        left = iter(keys)
        async with Client(self.url, name=f"submitter-{number}") as client:
            await asyncio.gather(*(self.submit_next(client, left) for _ in range(AT_ONCE)))

    async def submit_next(self, client: Client, left: Iterable[int]) -> None:
        for key in left:
            self.got[key].add(await self.until_stored(client, key))
            self.answers += 1

    async def until_stored(self, client: Client, key: int) -> str:
        """Submit again whenever an error reports that the job is not stored, or may not be stored."""
        while True:
            try:
                submitter = client.task("work").options(unique=f"key {key}", on_duplicate=self.way)
                return (await submitter.submit(key)).id
            except DuplicateJob as error:
                return error.id
            except BrokerError:
                if self.over:
                    raise
                self.again += 1

    def check_each_key(self, waiting: Iterable[str]) -> None:
        """All submits of a key returned one job, and that job is stored."""
        wrong = [ids for ids in self.got.values() if len(ids) != 1]
        assert (len(self.got), self.answers, wrong) == (KEYS, KEYS * SUBMITTERS, [])
        jobs = list(waiting)
        assert len(jobs) == KEYS
        assert set(jobs) == {id for ids in self.got.values() for id in ids}


async def run_all(url: str, until: Until) -> None:
    """Run all waiting jobs: one run for each key."""
    ran: Counter[int] = Counter()
    app = App(url)

    @app.task(name="work")
    async def work(key: int) -> None:
        ran[key] += 1

    async with app, running_worker(Worker(app)):
        broker = await app.client.broker()

        async def nothing_waits() -> bool:
            return not await broker.job_reader.waiting_ids("default")

        await until(nothing_waits, 60)
    assert ran == Counter(range(KEYS))


async def raced(race: Race, break_something: Callable[[], Awaitable[None]] | None, until: Until) -> None:
    running = asyncio.create_task(race.run())
    try:
        if break_something is not None:
            await until(lambda: race.answers > KEYS * 2 or running.done(), 60)
            assert not running.done(), "it was over before anything broke"
            await break_something()
        await asyncio.wait_for(asyncio.shield(running), 120)
    finally:
        race.over = True
    async with Client(race.url) as client:
        race.check_each_key(await (await client.broker()).job_reader.waiting_ids("default"))
    await run_all(race.url, until)


@pytest.mark.parametrize("way", ["return", "raise"])
async def test_500_raced_keys_on_one_server_have_one_job_each(
    own_server: EmbeddedServer, until: Until, way: OnDuplicate
) -> None:
    await raced(Race(own_server.url, way), None, until)


async def test_500_raced_keys_on_a_killed_server_have_one_job_each(
    own_server: EmbeddedServer, until: Until
) -> None:
    async def kill() -> None:
        for _ in range(2):
            own_server.kill()
            await asyncio.to_thread(own_server.restart)

    await raced(Race(own_server.url), kill, until)


async def test_500_raced_keys_on_a_cluster_with_a_killed_leader_have_one_job_each(
    tmp_path: Path, until: Until
) -> None:
    async with cluster(tmp_path) as servers:
        async with Client(servers.url) as client:
            await client.admin.provision(replicas=3)
            bucket = (await client.broker()).subjects.streams.bucket("ids")
            leader = await servers.leader(client, bucket)

        async def kill() -> None:
            leader.kill()
            await asyncio.to_thread(leader.start)
            await servers.wait_healthy(60)

        race = Race(servers.url)
        await raced(race, kill, until)
