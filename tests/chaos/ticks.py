"""A schedule that ticks every second, while its workers and its server are killed.

    python -m tests.chaos.ticks --seconds 120 --kills 20

Two schedules tick side by side: `every` catches up all, `newest` only the latest. Afterwards each tick of
the first must have one job that succeeded and ran once, or again only because its worker was killed in the
middle.
Of the second no tick may have run twice, and after each outage at most one is caught up.
"""

import argparse
import asyncio
import contextlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jsq import BrokerError, Client
from jsq.model.job import JobRecord
from jsq.model.schedule import tick_id
from jsq.server import EmbeddedServer
from tests.chaos.history import Effect, read_effects
from tests.chaos.nemesis import Workers

WORKERS = 3
NAMESPACE = "ticks"
PEACE_SECONDS = 60.0

LATE = 2.0
"""Seconds from which a tick comes late: one until the next, and as much for a machine that is busy."""

TOGETHER = 0.5


@dataclass
class Outcome:
    """What came of a run: the ticks there were, the jobs there are, and what their task noted."""

    ticks: list[datetime]
    jobs: dict[str, JobRecord] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)
    submits: dict[str, float] = field(default_factory=dict)
    kills: list[tuple[str, float]] = field(default_factory=list)

    def wrong(self) -> list[str]:
        """What must not be, one line each; the empty list is the proof."""
        ran = Counter(one.job for one in self.effects if one.word == "end")
        expected = {tick_id("every", tick) for tick in self.ticks}
        found = {id for id in self.jobs if id.startswith("every-")}
        inside = {id for id in self.jobs if id >= min(expected) and id <= max(expected)} & found
        return [
            *(f"{id}: no job for the tick" for id in sorted(expected - found)),
            *(f"{id}: a job without a tick" for id in sorted(inside - expected)),
            *(f"{id}: {job.state}" for id, job in self.jobs.items() if job.state != "succeeded"),
            *(
                f"{id}: ran {ran[id]} times"
                for id in self.jobs
                if ran[id] != 1 and not self.excused(id, ran[id])
            ),
            *self.caught_up_too_much(),
        ]

    def excused(self, id: str, count: int) -> bool:
        """Whether a job ran again for its worker, or the server, was killed around its first end."""
        job = self.jobs[id]
        ends = sorted(one.at for one in self.effects if one.job == id and one.word == "end")
        return count == 1 + job.crashes and all(
            any(-1.0 < killed - at < 5.0 for _, killed in self.kills) for at in ends[:-1]
        )

    def late(self, name: str) -> list[float]:
        """By how many seconds the jobs of a schedule were submitted late, where they were."""
        found = (
            self.submits[id] - tick.timestamp()
            for tick in self.ticks
            if (id := tick_id(name, tick)) in self.submits
        )
        return [seconds for seconds in found if seconds > LATE]

    def caught_up_too_much(self) -> list[str]:
        """Where more of `newest` was caught up than one tick after each outage.

        The last missed tick and the next one in time may come together, and no third.
        """
        told = []
        if len(self.late("newest")) > len(self.kills):
            told.append(f"newest: {len(self.late('newest'))} came late, after {len(self.kills)} outages")
        at = sorted(at for id, at in self.submits.items() if id.startswith("newest-"))
        told += [
            f"newest: three jobs within {TOGETHER:g} s at {first}"
            for first, third in zip(at, at[2:], strict=False)
            if third - first < TOGETHER
        ]
        return told

    def report(self) -> list[str]:
        count = Counter(what for what, _ in self.kills)
        names = Counter(id.partition("-")[0] for id in self.jobs)
        lines = [
            f"kills      {', '.join(f'{number} of a {what}' for what, number in sorted(count.items()))}",
            f"ticks      {len(self.ticks)}, one a second",
            f"crashes    {sum(job.crashes for job in self.jobs.values())} attempts died with their worker",
        ]
        for name in ("every", "newest"):
            late = self.late(name)
            told = f"{names[name]} jobs, {len(late)} submitted late, by {max(late, default=0):.1f} s at most"
            lines.append(f"{name:<10} {told}")
        return lines


async def run(seconds: float, kills: int, seed: int) -> Outcome:
    """Tick for so long, kill so often at moments by chance, then wait until all is done."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="jsq-ticks-") as name, EmbeddedServer() as server:
        folder = Path(name)
        (folder / "effects").mkdir()
        env = os.environ | {
            "JSQ_URL": server.url,
            "JSQ_NAMESPACE": NAMESPACE,
            "EFFECTS": str(folder / "effects"),
        }
        workers = Workers(WORKERS, dict(env), folder / "worker.log")
        outcome = Outcome([])
        async with Client(server.url, namespace=NAMESPACE) as client:
            await provision(client)
            keeping = asyncio.create_task(workers.keep())
            try:
                start = await first_tick(client)
                await break_it(server, workers, chance, outcome, seconds, kills)
                await end(client, start, outcome)
                await settle(client, outcome)
            finally:
                keeping.cancel()
                await asyncio.to_thread(workers.stop)
            outcome.effects = read_effects(folder / "effects")
        if outcome.wrong():
            sys.stderr.write((folder / "worker.log").read_text(errors="replace")[-20_000:])
    return outcome


async def provision(client: Client) -> None:
    from tests.chaos.tasks import settings

    await client.admin.provision({"default": settings(1)})
    for name, catch_up in (("every", "all"), ("newest", "latest")):
        await client.schedules.add(name, "tick", every=1, catch_up=catch_up)  # type: ignore[arg-type]  # one of them


async def first_tick(client: Client) -> datetime:
    """Wait until a tick has fired; returns the one after it."""
    broker = await client.broker()
    while True:
        found = await broker.schedules.find("every")
        if found.state.fired:
            return found.state.decided_until + timedelta(seconds=1)
        await asyncio.sleep(0.05)


async def break_it(
    server: EmbeddedServer,
    workers: Workers,
    chance: random.Random,
    outcome: Outcome,
    seconds: float,
    kills: int,
) -> None:
    """Kill at as many moments as asked, by chance; each third time the server, else a worker, or all."""
    began = time.monotonic()
    for number, moment in enumerate(sorted(chance.uniform(1, seconds - 1) for _ in range(kills))):
        await asyncio.sleep(max(0.0, began + moment - time.monotonic()))
        if number % 3 == 0:
            outcome.kills.append(("server", time.time()))
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(chance.uniform(0, 2))
            await asyncio.to_thread(server.restart)
        else:
            victims = workers.processes if number % 3 == 1 else [chance.choice(workers.processes)]
            outcome.kills.append(("worker", time.time()))
            for process in list(victims):
                process.kill()
    await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))


async def end(client: Client, start: datetime, outcome: Outcome) -> None:
    """Wait until every tick up to now is decided upon; then tick no more."""
    broker = await client.broker()
    last = broker.schedules.now().replace(microsecond=0)
    async with asyncio.timeout(PEACE_SECONDS):
        for name in ("every", "newest"):
            while True:
                with contextlib.suppress(BrokerError):
                    if (await broker.schedules.find(name)).state.decided_until >= last:
                        break
                await asyncio.sleep(0.1)
    for name in ("every", "newest"):
        await client.schedules.pause(name)
    count = round((last - start).total_seconds()) + 1
    outcome.ticks = [start + timedelta(seconds=number) for number in range(count)]


async def settle(client: Client, outcome: Outcome) -> None:
    """Wait until every job has ended."""
    async with asyncio.timeout(PEACE_SECONDS):
        while True:
            with contextlib.suppress(BrokerError):
                if not await client.jobs.list_open(queue="default"):
                    break
            await asyncio.sleep(0.2)
        while True:
            outcome.jobs = {job.id: job for job in await client.jobs.list(limit=None)}
            outcome.submits = {
                id: job.submitted.timestamp() for id, job in outcome.jobs.items() if job.submitted is not None
            }
            if all(job.state == "succeeded" for job in outcome.jobs.values()):
                return
            await asyncio.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.ticks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(datetime.now(UTC).timestamp()))
    asked = parser.parse_args()
    outcome = asyncio.run(run(asked.seconds, asked.kills, asked.seed))
    wrong = outcome.wrong()
    print("\n".join([f"seed       {asked.seed}", *outcome.report(), *wrong]))
    print("PROOF: every tick exactly once" if not wrong else f"NO PROOF: {len(wrong)} things are wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
