"""What is to be broken: one server, or a cluster of three; each with the faults that befall it."""

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
WELL_SECONDS = 40.0
DISK = "1g"

Fault = tuple[int, str, Callable[[], Awaitable[int | None]]]
"""How often it comes beside others, its name, and what does it and mends it again.

That returns the process that it befell, if it was one.
"""


class Broker(Protocol):
    """What a run needs of it: where it listens, and what may befall it."""

    has_hand: bool
    """Whether its faults come beside those of workers and links, or one after the other with them."""

    @property
    def url(self) -> str: ...

    def faults(self, chance: random.Random, lease: float) -> list[Fault]: ...

    async def well(self) -> None:
        """Wait until what was broken works again."""

    async def mend(self) -> list[str]:
        """Wait until all replicas hold the same. Which servers stayed behind the others, and for how long.

        One that stays behind is restarted; if that does not help it is stopped, for nobody to read from it.
        """


class Lone:
    """One server."""

    has_hand = False

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
            """Fill the disk, and free it; such a server stays broken until it is started again."""
            assert self._disk is not None
            filler = self._disk / "filler"
            await asyncio.to_thread(fill_up, filler)
            await asyncio.sleep(chance.uniform(1, 4))
            filler.unlink()
            await stop()

        faults: list[Fault] = [
            (3, "server killed", kill),
            (1, "server told to stop", stop),
            (2, "server halted", halt),
        ]
        return [*faults, (2, "disk filled", fill)] if self._disk is not None else faults

    async def well(self) -> None:
        """One server is well when it runs."""

    async def mend(self) -> list[str]:
        return []


class Three:
    """A cluster. One server at a time is broken, until all are well again; now and then all are killed."""

    has_hand = True

    def __init__(self, servers: Cluster) -> None:
        self._servers = servers
        self.url = servers.url

    def faults(self, chance: random.Random, lease: float) -> list[Fault]:
        least, most = 1.0, lease * 1.4
        each = functools.partial(self._break, chance, lambda: chance.uniform(least, most))
        return [
            (3, "leader killed", each(Node.kill, Node.start, leading=True)),
            (2, "leader told to stop", each(told_to_stop, Node.start, leading=True)),
            (2, "leader halted", each(Node.halt, Node.go_on, leading=True)),
            (2, "leader parted from the others", each(Node.part, Node.heal, leading=True)),
            (1, "leader held apart from the others", each(Node.hold, Node.heal, leading=True)),
            (1, "server killed", each(Node.kill, Node.start)),
            (1, "server parted from the others", each(Node.part, Node.heal)),
            (1, "all servers killed", self._kill_all),
            (1, "servers restarted in turn", self._servers.restart_in_turn),
        ]

    def _break(
        self,
        chance: random.Random,
        pause: Callable[[], float],
        harm: Callable[[Node], None],
        mend: Callable[[Node], None],
        *,
        leading: bool = False,
    ) -> Callable[[], Awaitable[None]]:
        """What harms a server, mends it after a while, and waits until all are well."""

        async def fault() -> None:
            node = await self._leader(chance) if leading else chance.choice(self._servers.nodes)
            await asyncio.to_thread(harm, node)
            await asyncio.sleep(pause())
            mend(node)
            await self.well()

        return fault

    async def _kill_all(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(node.kill) for node in self._servers.nodes))
        for node in self._servers.nodes:
            node.start()
        await self.well()

    async def well(self) -> None:
        """A server that was cut off may take a minute to catch up: then the next fault finds it behind."""
        with contextlib.suppress(AssertionError):
            await self._servers.well(WELL_SECONDS)

    async def mend(self) -> list[str]:
        late = await self._servers.behind(WELL_SECONDS)
        for node in late:
            await asyncio.to_thread(node.kill, signal.SIGTERM)
            node.start()
        left = await self._servers.behind(WELL_SECONDS)
        assert len(left) < 2, f"servers stay behind: {[(node.name, node.holds()) for node in left]}"
        for node in left:
            await asyncio.to_thread(node.kill, signal.SIGTERM)
        return [f"{node.name} {'for good' if node in left else 'until a restart'}" for node in late]

    async def _leader(self, chance: random.Random) -> Node:
        """Who leads the log, or the queue."""
        async with Client(self.url, namespace=NAMESPACE) as client:
            subjects = (await client.broker()).subjects
            streams = [subjects.streams.records, subjects.streams.ready("default")]
            return await self._servers.leader(client, chance.choice(streams))


def told_to_stop(node: Node) -> None:
    node.kill(signal.SIGTERM)


@contextlib.asynccontextmanager
async def serving(servers: int, folder: Path, *, disk: bool = False) -> AsyncIterator[Broker]:
    """A broker of one server or of three; with `disk` one on a small disk of its own, which asks for root."""
    if servers == 1 and disk:
        with small_disk(folder / "disk") as place, EmbeddedServer(place / "js", sync_interval="1s") as server:
            yield Lone(server, place)
    elif servers == 1:
        with EmbeddedServer(sync_interval="1s") as server:
            yield Lone(server)
    else:
        async with cluster(folder, size=servers) as found:
            yield Three(found)


def fill_up(filler: Path) -> None:
    """Write until there is no room left."""
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(2**20)):
            pass


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A disk in memory, which can be filled."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
