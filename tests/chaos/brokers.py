"""The servers of a chaos run, one or a cluster of three, and the faults that can be injected into them."""

import asyncio
import contextlib
import functools
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol

from jsq import Client
from jsq.server import EmbeddedServer
from tests.helpers.cluster import Cluster, Node, cluster

NAMESPACE = "chaos"
HEALTHY_SECONDS = 40.0
DISK = "1g"

Fault = tuple[int, str, Callable[[], Awaitable[int | None]]]
"""Relative frequency, name, and a function that injects the fault and ends it.

The function returns the id of the affected process if the fault affects a single one.
"""


class Broker(Protocol):
    """The interface of the servers for a run: their address and their faults."""

    concurrent_faults: bool
    """Whether server faults are injected concurrently with faults of workers and links."""

    @property
    def url(self) -> str: ...

    def faults(self, chance: random.Random, lease: float) -> list[Fault]: ...

    async def wait_healthy(self) -> None:
        """Wait until the servers have recovered from a fault."""

    async def synchronize(self) -> list[str]:
        """Wait until all replicas are equal. Return the servers that lagged behind, each with its duration.

        A server that lags behind is restarted. If it still lags, it is stopped so that no client reads from
        it.
        """


class SingleServer:
    """A broker of one server."""

    concurrent_faults = False

    def __init__(self, server: EmbeddedServer, disk: Path | None = None) -> None:
        self._server = server
        self._disk = disk
        self.url = server.url

    def faults(self, chance: random.Random, lease: float) -> list[Fault]:
        async def kill() -> None:
            await asyncio.to_thread(self._server.kill)
            await asyncio.sleep(chance.uniform(0, 3))
            await asyncio.to_thread(self._server.restart)

        async def stop() -> None:
            await asyncio.to_thread(self._server.kill, signal.SIGTERM)
            await asyncio.to_thread(self._server.restart)

        async def halt() -> None:
            os.kill(self._server.pid, signal.SIGSTOP)
            await asyncio.sleep(chance.uniform(0.2, lease * 1.4))
            os.kill(self._server.pid, signal.SIGCONT)

        async def fill() -> None:
            """Fill the disk and free it.

            The server does not recover from a full disk until it is restarted.
            """
            assert self._disk is not None
            filler = self._disk / "filler"
            await asyncio.to_thread(fill_up, filler)
            await asyncio.sleep(chance.uniform(1, 4))
            filler.unlink()
            await stop()

        faults: list[Fault] = [
            (3, "server killed", kill),
            (1, "server stopped", stop),
            (2, "server halted", halt),
        ]
        return [*faults, (2, "disk filled", fill)] if self._disk is not None else faults

    async def wait_healthy(self) -> None:
        """Return at once: a single server is healthy while it runs."""

    async def synchronize(self) -> list[str]:
        return []


class ServerCluster:
    """A broker of three servers.

    A fault affects one server until all are healthy again, or kills all three.
    """

    concurrent_faults = True

    def __init__(self, servers: Cluster) -> None:
        self._servers = servers
        self.url = servers.url

    def faults(self, chance: random.Random, lease: float) -> list[Fault]:
        least, most = 1.0, lease * 1.4
        each = functools.partial(self._break, chance, lambda: chance.uniform(least, most))
        return [
            (3, "leader killed", each(Node.kill, Node.start, leading=True)),
            (2, "leader stopped", each(stop_node, Node.start, leading=True)),
            (2, "leader halted", each(Node.halt, Node.resume, leading=True)),
            (2, "leader partitioned from the others", each(Node.partition, Node.heal, leading=True)),
            (1, "links of the leader held", each(Node.hold, Node.heal, leading=True)),
            (1, "server killed", each(Node.kill, Node.start)),
            (1, "server partitioned from the others", each(Node.partition, Node.heal)),
            (1, "all servers killed", self._kill_all),
            (1, "servers restarted one by one", self._servers.restart_one_by_one),
        ]

    def _break(
        self,
        chance: random.Random,
        pause: Callable[[], float],
        start: Callable[[Node], None],
        end: Callable[[Node], None],
        *,
        leading: bool = False,
    ) -> Callable[[], Awaitable[None]]:
        """Return a fault that affects a server for `pause()` seconds, then waits until all are healthy."""

        async def fault() -> None:
            node = await self._leader(chance) if leading else chance.choice(self._servers.nodes)
            await asyncio.to_thread(start, node)
            await asyncio.sleep(pause())
            end(node)
            await self.wait_healthy()

        return fault

    async def _kill_all(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(node.kill) for node in self._servers.nodes))
        for node in self._servers.nodes:
            node.start()
        await self.wait_healthy()

    async def wait_healthy(self) -> None:
        """Wait for at most `HEALTHY_SECONDS`. A server that was cut off may need a minute to catch up."""
        with contextlib.suppress(AssertionError):
            await self._servers.wait_healthy(HEALTHY_SECONDS)

    async def synchronize(self) -> list[str]:
        late = await self._servers.lagging(HEALTHY_SECONDS)
        for node in late:
            await asyncio.to_thread(node.kill, signal.SIGTERM)
            node.start()
        lagging = await self._servers.lagging(HEALTHY_SECONDS)
        assert len(lagging) < 2, (
            f"servers lag behind: {[(node.name, node.last_sequences()) for node in lagging]}"
        )
        for node in lagging:
            await asyncio.to_thread(node.kill, signal.SIGTERM)
        return [f"{node.name} {'permanently' if node in lagging else 'until a restart'}" for node in late]

    async def _leader(self, chance: random.Random) -> Node:
        """The leader of the stream of records or of the queue, chosen at random."""
        async with Client(self.url, namespace=NAMESPACE) as client:
            subjects = (await client.broker()).subjects
            streams = [subjects.streams.records, subjects.streams.ready("default")]
            return await self._servers.leader(client, chance.choice(streams))


def stop_node(node: Node) -> None:
    node.kill(signal.SIGTERM)


@contextlib.asynccontextmanager
async def serving(servers: int, folder: Path, *, disk: bool = False) -> AsyncIterator[Broker]:
    """Run a broker of one server or of three.

    With `disk`, the single server has a small disk; this needs root.
    """
    if servers == 1 and disk:
        with small_disk(folder / "disk") as place, EmbeddedServer(place / "js", sync_interval="1s") as server:
            yield SingleServer(server, place)
    elif servers == 1:
        with EmbeddedServer(sync_interval="1s") as server:
            yield SingleServer(server)
    else:
        async with cluster(folder, size=servers) as found:
            yield ServerCluster(found)


def fill_up(filler: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(2**20)):
            pass


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """Mount a small disk in memory that can be filled."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
