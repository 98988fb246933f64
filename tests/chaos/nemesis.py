"""Fault injection: kills and halts workers and servers; cuts, holds and slows links."""

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from tests.chaos.brokers import Broker, Fault
from tests.chaos.history import History, InjectedFault
from tests.helpers.proxy import Link

ROOT = Path(__file__).parents[2]
PAUSE = (1.0, 5.0)
"""Seconds between two faults, at least and at most."""


class Workers:
    """Worker processes; a process that has ended is replaced."""

    def __init__(self, count: int, env: dict[str, str], log: Path) -> None:
        self._count = count
        self._env = env
        self._log = log
        self.processes: list[subprocess.Popen[bytes]] = []
        self.halted: set[int] = set()

    def fill(self) -> None:
        self.processes = [one for one in self.processes if one.poll() is None]
        while len(self.processes) < self._count:
            command = (sys.executable, "-m", "jsq", "worker", "tests.chaos.tasks:app")
            options = ("--concurrency", "20", "--log-level", "warning", "--grace", "5")
            with self._log.open("ab") as log:
                self.processes.append(
                    subprocess.Popen((*command, *options), cwd=ROOT, env=self._env, stderr=log, stdout=log)
                )

    async def keep(self) -> None:
        while True:
            self.fill()
            await asyncio.sleep(0.1)

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.processes:
            process.wait()


class Nemesis:
    """Injects one fault after another, chosen by a seeded generator, and ends each after a while."""

    def __init__(
        self,
        broker: Broker,
        workers: Workers,
        links: dict[str, Link],
        chance: random.Random,
        history: History,
        lease: float,
        only: Collection[str] = (),
    ) -> None:
        self._workers = workers
        self._links = links
        self._chance = chance
        self._history = history
        self._lease = lease
        self.faults: Counter[str] = Counter()
        own: list[Fault] = [
            (6, "worker killed", self._kill_worker),
            (4, "worker halted", self._halt_worker),
            (2, "worker stopped", self._stop_worker),
            (2, "link cut", self._cut),
            (1, "link refused", self._refuse),
            (2, "link held", self._hold),
            (2, "link slowed", self._slow),
        ]
        groups = (
            [own, broker.faults(chance, lease)]
            if broker.concurrent_faults
            else [[*own, *broker.faults(chance, lease)]]
        )
        self._groups = [[fault for fault in faults if not only or fault[1] in only] for faults in groups]

    async def run(self, seconds: float) -> None:
        async with asyncio.TaskGroup() as group:
            for faults in filter(None, self._groups):
                group.create_task(self._inject(faults, time.monotonic() + seconds))

    async def _inject(self, faults: list[Fault], end: float) -> None:
        """Inject one fault after another."""
        weights = [weight for weight, _, _ in faults]
        while time.monotonic() < end:
            await asyncio.sleep(self._chance.uniform(*PAUSE))
            _, name, act = self._chance.choices(faults, weights)[0]
            self.faults[name] += 1
            began = time.time()
            pid = await act()
            self._history.injected_faults.append(InjectedFault(name, began, time.time(), pid or 0))

    async def _kill_worker(self) -> None:
        process = self._chance.choice(self._workers.processes)
        self._history.kills.append((process.pid, time.time()))
        process.kill()

    async def _halt_worker(self) -> int:
        process = self._chance.choice(self._workers.processes)
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self._chance.uniform(0.5, self._lease * 1.6))
        process.send_signal(signal.SIGCONT)
        return process.pid

    async def _stop_worker(self) -> None:
        self._chance.choice(self._workers.processes).terminate()

    async def _cut(self) -> None:
        self._link().cut()

    async def _refuse(self) -> None:
        with self._healing() as link:
            link.refuse()
            await asyncio.sleep(self._chance.uniform(0.5, self._lease * 1.4))

    async def _hold(self) -> None:
        with self._healing() as link:
            link.hold()
            await asyncio.sleep(self._chance.uniform(0.5, self._lease * 3))

    async def _slow(self) -> None:
        with self._healing() as link:
            link.slow(self._chance.uniform(0.02, 0.3))
            await asyncio.sleep(self._chance.uniform(1, 5))

    @contextlib.contextmanager
    def _healing(self) -> Iterator[Link]:
        link = self._link()
        try:
            yield link
        finally:
            link.heal()

    def _link(self) -> Link:
        return self._links[self._chance.choice(sorted(self._links))]
