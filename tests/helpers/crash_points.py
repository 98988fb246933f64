"""Processes that are killed at one point of their work, and checks of the state that they leave."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path

import pytest

from jsq import App, Client
from jsq.broker.topology.removal import remove_everything
from jsq.model.revision import FINAL_STATES, TRANSITIONS
from jsq.server import EmbeddedServer
from jsq.settings import WorkerSettings
from jsq.transport.replies import NoReply
from jsq.worker import Worker
from tests.apps.crash import declare, served_queues
from tests.helpers.conditions import Until
from tests.helpers.forkserver import ForkServer

ROOT = Path(__file__).parents[2]
CONCURRENT_SITES = 2
KILLED = -9

SCENARIOS = {
    "succeed": ("succeeded", 1),
    "retry": ("succeeded", 2),
    "snooze": ("succeeded", 2),
    "fail": ("failed", 1),
    "keep": ("succeeded", 1),
}
"""The final state of the job of each task, and the number of its runs."""


@dataclass
class Site:
    """A namespace for one run, and the points that its process passed."""

    server: EmbeddedServer
    namespace: str
    effects: Path
    points: Path
    forks: ForkServer
    app: App = field(init=False)

    def __post_init__(self) -> None:
        self.effects.touch()
        self.points.touch()
        self.app = declare(App(self.server.url, namespace=self.namespace))

    async def die_at(self, point: int, what: str) -> bool:
        """Run a process that is killed at a point of its work. Returns whether it reached the point."""
        env = {
            **os.environ,
            "JSQ_URL": self.server.url,
            "JSQ_NAMESPACE": self.namespace,
            "CRASH_AT": str(point),
            "POINTS": str(self.points),
            "EFFECTS": str(self.effects),
        }
        process = self.forks.spawn(["-c", "from tests.apps.crash import main; main()", what], env, ROOT)
        died = await asyncio.to_thread(process.wait, 120) == KILLED
        assert died is (len(self.passed()) == point), self.passed()
        return died

    async def remove(self) -> None:
        """Remove the namespace, because other tests share the server."""
        async with Client(self.server.url, namespace=self.namespace) as client:
            broker = await client.broker()
            for queue in served_queues(self.app):
                await remove_everything(broker.namespace, queue)

    def passed(self) -> list[str]:
        return self.points.read_text().splitlines()

    def runs(self, id: str) -> int:
        return self.effects.read_text().split().count(id)

    async def finish(self, id: str, until: Until) -> None:
        """Run an intact worker until no work is left."""
        served = served_queues(self.app)
        worker = Worker(self.app, queues=served, settings=WorkerSettings())
        running = asyncio.create_task(worker.run())
        broker = await self.app.client.broker()

        async def nothing_is_left() -> bool:
            with contextlib.suppress(NoReply):  # many such runs share the machine
                return not any([await broker.job_reader.waiting_ids(queue) for queue in served])
            return False

        try:
            await self.app.client.jobs.handle(id).wait(60)
            await until(nothing_is_left, 60)
        finally:
            worker.stop()
            await asyncio.wait_for(running, 15)

    async def check_history(self, id: str, wanted: list[str] | None = None) -> list[str]:
        """Check that the history is valid and complete, and that only a failed job has a dead letter.

        `wanted` is the exact history that is expected.
        """
        broker = await self.app.client.broker()
        states = [event.state for event in await broker.records.history(id)]
        letters = await self.app.client.dead_letters.list()

        assert wanted is None or states == wanted
        assert states[-1] in FINAL_STATES
        assert all(after in TRANSITIONS[before] for before, after in pairwise(states)), states
        # A job that did not fail never runs again, unless the test expects it.
        assert wanted or not {"succeeded", "cancelled", "expired"}.intersection(states[:-1]), states
        assert [letter.id for letter in letters] == ([id] if states[-1] == "failed" else [])
        kept = await broker.reads.fetch(
            broker.subjects.streams.records, broker.subjects.checkpoint("*", id, ">")
        )
        assert states[-1] == "failed" or kept == []
        return states


NewSite = Callable[[], Site]


@pytest.fixture
def new_site(
    server: EmbeddedServer,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forks: ForkServer,
) -> NewSite:
    effects = tmp_path / "effects"
    monkeypatch.setenv("EFFECTS", str(effects))
    numbers = count()

    def new_site() -> Site:
        number = next(numbers)
        return Site(server, f"{namespace}-{number}", effects, tmp_path / f"points-{number}", forks)

    return new_site


async def kill_worker(site: Site, point: int, task: str, until: Until) -> Site:
    """Kill the worker of a job at a point, let another one finish, check the final state and the runs."""
    end, runs = SCENARIOS[task]
    async with site.app:
        job = await site.app.client.task(task).submit()
        died = await site.die_at(point, "work")
        await site.finish(job.id, until)
        states = await site.check_history(job.id)
        assert states[-1] == end
        # Only a run whose outcome was not recorded is repeated.
        assert runs <= site.runs(job.id) <= runs + died
    return site


async def at_each_point(
    killed_at: Callable[[int], Awaitable[Site]], least: int = 6, first: int = 1, every: int = 1
) -> list[Site]:
    """Count the points, then kill a process at each of them: from `first`, at every `every`th point."""
    slots = asyncio.Semaphore(CONCURRENT_SITES)

    async def with_slot(point: int) -> Site:
        async with slots:
            site = await killed_at(point)
            await site.remove()
            return site

    unharmed = await killed_at(0)
    points = len(unharmed.passed())
    assert points >= least, unharmed.passed()
    some = range(first, points + 1, every)
    return [unharmed, *await asyncio.gather(*(with_slot(point) for point in some))]
