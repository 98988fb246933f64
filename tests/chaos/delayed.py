"""`python -m tests.chaos.delayed`: measure the lateness of delayed jobs, their cost, and many due at once.

- lateness: jobs due at random times within some seconds, on an idle worker
- held: submit and run rates of a queue with many delayed jobs, compared with an empty queue
- instant: jobs that are due at the same time; each runs exactly once
"""

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from jsq import App
from jsq.broker.topology.removal import remove_everything
from jsq.cli.bench.command import machine
from jsq.cli.bench.tasks import QUEUE
from jsq.cli.bench.workloads import Plan, Site, percentile, submit
from jsq.codec.envelope import new_id
from jsq.server import EmbeddedServer

AT_ONCE = 200
AHEAD = 3.0
"""Seconds between the submits and the earliest due time."""


@contextlib.asynccontextmanager
async def site(server: EmbeddedServer, jobs: int) -> AsyncIterator[Site]:
    """A queue of its own for one run, removed at the end."""
    async with App(server.url, name="jsq-delayed", namespace=f"delayed-{new_id()[-8:]}") as app:
        await app.client.admin.provision()
        found = Site(Plan(jobs=jobs), app, server.pid)
        try:
            yield found
        finally:
            await remove_everything((await app.client.broker()).namespace, QUEUE)
            for path in found.folder.iterdir():
                path.unlink()
            found.folder.rmdir()


async def send_at(site: Site, moments: list[datetime]) -> None:
    """Submit a job for each time. The job notes its start and its due time, which also holds its number."""
    left = iter(enumerate(moments))

    async def send_next() -> None:
        for number, at in left:
            due = round(at.timestamp() * 1e6) * 1000 + number % 1000
            await site.tasks["noop"].options(at=at).submit(due, str(number))

    await asyncio.gather(*(send_next() for _ in range(AT_ONCE)))


async def lateness(server: EmbeddedServer, jobs: int, seconds: float) -> bool:
    """Measure how late jobs start that are due at random times."""
    async with site(server, jobs) as one, one.working("noop", baseline=False) as worker:
        start = datetime.now(UTC) + timedelta(seconds=AHEAD)
        await send_at(one, [start + timedelta(seconds=random.uniform(0, seconds)) for _ in range(jobs)])
        await one.until(jobs, worker)
        late = sorted((began - due) / 1e6 for due, began in one.rows())
    p50, p99 = percentile(late, 0.5), percentile(late, 0.99)
    print(
        f"lateness of {jobs:,} jobs within {seconds:g} s: p50 {p50} ms, p99 {p99} ms, most {late[-1]:.1f} ms"
    )
    return p99 <= 300 and late[0] > -1


async def rates(server: EmbeddedServer, jobs: int, held: int) -> tuple[float, float]:
    """The jobs submitted and run per second on a queue that holds `held` delayed jobs."""
    async with site(server, jobs) as one:
        noop = one.tasks["noop"]
        for start in range(0, held, 10_000):
            count = min(10_000, held - start)
            await noop.options(delay=86_400).submit_many([(0, "")] * count)
        submitted = (await submit(one, baseline=False)).per_second or 0.0
        count = jobs + 2 * min(jobs, 200)
        async with one.working("noop", baseline=False) as worker:
            await one.until(count, worker)
            rows = one.rows()
    return submitted, (len(rows) - 1) / max(1, rows[-1][1] - rows[0][1]) * 1e9


async def held(server: EmbeddedServer, jobs: int, many: int, rounds: int) -> bool:
    """Compare the rates with many delayed jobs and without: the best of several alternating rounds."""
    found = [(await rates(server, jobs, 0), await rates(server, jobs, many)) for _ in range(rounds)]
    empty, full = ([max(pair[way][what] for pair in found) for what in (0, 1)] for way in (0, 1))
    for name, before, after in zip(("submitted", "run"), empty, full, strict=True):
        compared = f"{before:,.0f}/s on an empty queue, {after:,.0f}/s with {many:,} delayed jobs"
        print(f"{name}: {compared}: {after / before:.2f}")
    return all(after >= 0.8 * before for before, after in zip(empty, full, strict=True))


async def instant(server: EmbeddedServer, jobs: int) -> bool:
    """Check that each of many jobs that are due at the same time starts once."""
    async with site(server, jobs) as one, one.working("noop", baseline=False) as worker:
        due = datetime.now(UTC) + timedelta(seconds=AHEAD + jobs / 500)
        await send_at(one, [due + timedelta(microseconds=number // 1000) for number in range(jobs)])
        early = one.count()
        await one.until(jobs, worker)
        await asyncio.sleep(2.0)  # so that a second run of a job would be noticed
        rows = one.rows()
    late = sorted((began - due_at) / 1e6 for due_at, began in rows)
    different = len({due_at for due_at, _ in rows})
    print(
        f"instant: {jobs:,} due at once: {len(rows):,} runs of {different:,} jobs, {early} of them early; "
        f"the last started {late[-1]:,.0f} ms late"
    )
    return len(rows) == different == jobs and not early and time.time() > due.timestamp()


async def run(arguments: argparse.Namespace) -> bool:
    print(machine())
    with EmbeddedServer(sync_interval="1s") as server:
        passed = [
            "lateness" not in arguments.what or await lateness(server, arguments.jobs, arguments.seconds),
            "held" not in arguments.what
            or await held(server, arguments.drained, arguments.held, arguments.rounds),
            "instant" not in arguments.what or await instant(server, arguments.due),
        ]
    return all(passed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="*", default=["lateness", "held", "instant"])
    parser.add_argument("--jobs", type=int, default=1_000, help="jobs of `lateness`")
    parser.add_argument(
        "--seconds", type=float, default=60, help="seconds within which the jobs of `lateness` are due"
    )
    parser.add_argument("--held", type=int, default=100_000, help="delayed jobs on the queue of `held`")
    parser.add_argument(
        "--drained", type=int, default=10_000, help="jobs submitted and run on the queue of `held`"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--due", type=int, default=10_000, help="jobs of `instant`")
    sys.exit(0 if asyncio.run(run(parser.parse_args())) else 1)


if __name__ == "__main__":
    main()
