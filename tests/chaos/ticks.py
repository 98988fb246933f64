"""A schedule that ticks every second, while its workers and its server are killed.

    python -m tests.chaos.ticks --seconds 120 --kills 20

Two schedules tick at the same time: `every` catches up all missed ticks, `newest` only the latest one. At the
end each tick of `every` must have one job that succeeded and ran once; it may run again only if its worker
was killed. No tick of `newest` may run twice, and after each outage at most one tick is caught up.
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
QUIET_SECONDS = 60.0

LATE = 2.0
"""Seconds from which a tick is late: one second until the next tick, and one for a busy machine."""

CLOSE = 0.5


@dataclass
class Outcome:
    """The result of a run: the expected ticks, the jobs, and the notes of their task."""

    ticks: list[datetime]
    jobs: dict[str, JobRecord] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)
    submits: dict[str, float] = field(default_factory=dict)
    kills: list[tuple[str, float]] = field(default_factory=list)

    def violations(self) -> list[str]:
        """The violations, one line each; an empty list is the proof."""
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
        """Whether a job ran again because its worker or the server was killed around its first end."""
        job = self.jobs[id]
        ends = sorted(one.at for one in self.effects if one.job == id and one.word == "end")
        return count == 1 + job.crashes and all(
            any(-1.0 < killed - at < 5.0 for _, killed in self.kills) for at in ends[:-1]
        )

    def late(self, name: str) -> list[float]:
        """The delays in seconds of the late submits of a schedule."""
        found = (
            self.submits[id] - tick.timestamp()
            for tick in self.ticks
            if (id := tick_id(name, tick)) in self.submits
        )
        return [seconds for seconds in found if seconds > LATE]

    def caught_up_too_much(self) -> list[str]:
        """The violations where `newest` caught up more than one tick after an outage.

        The last missed tick and the next regular one may come at the same time, but not a third one.
        """
        found = []
        if len(self.late("newest")) > len(self.kills):
            found.append(f"newest: {len(self.late('newest'))} came late, after {len(self.kills)} outages")
        at = sorted(at for id, at in self.submits.items() if id.startswith("newest-"))
        found += [
            f"newest: three jobs within {CLOSE:g} s at {first}"
            for first, third in zip(at, at[2:], strict=False)
            if third - first < CLOSE
        ]
        return found

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
            jobs = f"{names[name]} jobs, {len(late)} submitted late, by {max(late, default=0):.1f} s at most"
            lines.append(f"{name:<10} {jobs}")
        return lines


async def run(seconds: float, kills: int, seed: int) -> Outcome:
    """Tick for `seconds`, kill processes at random times, then wait until all jobs have ended."""
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
                await inject_kills(server, workers, chance, outcome, seconds, kills)
                await end(client, start, outcome)
                await settle(client, outcome)
            finally:
                keeping.cancel()
                await asyncio.to_thread(workers.stop)
            outcome.effects = read_effects(folder / "effects")
        if outcome.violations():
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


async def inject_kills(
    server: EmbeddedServer,
    workers: Workers,
    chance: random.Random,
    outcome: Outcome,
    seconds: float,
    kills: int,
) -> None:
    """Kill at `kills` random times: every third time the server, otherwise one worker or all workers."""
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
    """Wait until every tick up to now is decided, then pause the schedules."""
    broker = await client.broker()
    last = broker.schedules.now().replace(microsecond=0)
    async with asyncio.timeout(QUIET_SECONDS):
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
    async with asyncio.timeout(QUIET_SECONDS):
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
    arguments = parser.parse_args()
    outcome = asyncio.run(run(arguments.seconds, arguments.kills, arguments.seed))
    violations = outcome.violations()
    print("\n".join([f"seed       {arguments.seed}", *outcome.report(), *violations]))
    print("PROOF: every tick exactly once" if not violations else f"NO PROOF: {len(violations)} violations")

    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
