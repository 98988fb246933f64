"""Three real nats-servers that form a cluster on this machine, to be killed, halted and parted.

Each route goes through a proxy of its own, so that a server can be parted from the others; what the servers
tell of their addresses is of no use to anyone (`no_advertise`, and an `advertise` where nobody listens).
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from jsq import BrokerError, Client
from jsq.server import die_with_us, find_server
from tests.helpers.proxy import Proxy

READY_SECONDS = 30.0
STOP_SECONDS = 15.0


def free_ports(number: int) -> list[int]:
    """Ports on loopback that were free just now, below those that the system gives to connections."""
    found: set[int] = set()
    while len(found) < number:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as each, contextlib.suppress(OSError):
            each.bind(("127.0.0.1", port))
            found.add(port)
    return sorted(found)


class Node:
    """One server of the cluster."""

    def __init__(self, name: str, folder: Path, port: int, monitor: int, conf: str) -> None:
        self.name = name
        self.url = f"nats://127.0.0.1:{port}"
        self.monitor = f"http://127.0.0.1:{monitor}"
        self.store = folder / name
        self.routes: list[Proxy] = []
        """The proxies between this server and the others, both ways."""
        self._conf = folder / f"{name}.conf"
        self._conf.write_text(conf)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    def start(self) -> None:
        with self._conf.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(
                [find_server(), "-c", str(self._conf)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_us(),
            )

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the process and leave all it keeps."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(how)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def halt(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def part(self) -> None:
        """Cut it off from the other servers; its clients stay."""
        for route in self.routes:
            route.refuse()

    def hold(self) -> None:
        """Let nothing through to the other servers or from them, and end no route."""
        for route in self.routes:
            route.hold()

    def heal(self) -> None:
        for route in self.routes:
            route.heal()

    def holds(self) -> dict[str, int]:
        """Its streams, and the last sequence of each."""
        told = self.get("/jsz?accounts=true&streams=true") or {}
        return {
            stream["name"]: stream["state"]["last_seq"]
            for account in told.get("account_details") or []
            for stream in account.get("stream_detail") or []
        }

    def get(self, path: str) -> Any:
        """What it says when its monitoring port is asked; None while it does not answer, or not with 200."""
        try:
            with urllib.request.urlopen(self.monitor + path, timeout=2) as answer:
                return json.load(answer)
        except (OSError, ValueError):
            return None

    def ails(self) -> str:
        """What is wrong with it, as it says itself; empty when all its streams are up to date."""
        try:
            with urllib.request.urlopen(self.monitor + "/healthz", timeout=2):
                return ""
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError as error:
            return str(error)


class Cluster:
    """Servers with a cluster's address: `url` names them all."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.url = ",".join(node.url for node in nodes)

    async def well(self, seconds: float = READY_SECONDS) -> None:
        """Wait until every server is up, follows a leader, and its streams are up to date."""
        end = time.monotonic() + seconds
        while True:
            ailing = await asyncio.gather(*(asyncio.to_thread(node.ails) for node in self.nodes))
            if not any(ailing):
                return
            assert time.monotonic() < end, f"not well after {seconds} s: {ailing}"
            await asyncio.sleep(0.05)

    async def behind(self, seconds: float = READY_SECONDS) -> list[Node]:
        """Wait until every replica of every stream holds the same; the servers that are still behind."""
        end = time.monotonic() + seconds
        while True:
            held = await asyncio.gather(*(asyncio.to_thread(node.holds) for node in self.nodes))
            last = {name: max(one.get(name, 0) for one in held) for one in held for name in one}
            late = [node for node, one in zip(self.nodes, held, strict=True) if one != last]
            if not late or time.monotonic() > end:
                return late
            await asyncio.sleep(0.1)

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    async def leader(self, client: Client, stream: str) -> Node:
        """The server that leads a stream."""
        broker = await client.broker()
        async with asyncio.timeout(READY_SECONDS):
            while True:
                with contextlib.suppress(BrokerError):  # it has no leader just now
                    found = await broker.jetstream.stream_info(stream)
                    if found is not None and (name := found.get("cluster", {}).get("leader")):
                        return self.node(name)
                await asyncio.sleep(0.05)

    async def restart_in_turn(self) -> None:
        """Stop and start one server after the other, waiting each time until all is well again."""
        for node in self.nodes:
            await asyncio.to_thread(node.kill, signal.SIGTERM)
            node.start()
            await self.well()


async def replicas_of(client: Client) -> set[int]:
    """The numbers of replicas that the streams of a namespace have."""
    broker = await client.broker()
    names = broker.subjects.streams
    prefixes = (f"KV_{client.namespace}_", names.events.removesuffix("EVENTS"))
    return {
        stream["config"]["num_replicas"]
        async for page in broker.jetstream.pages("STREAM.LIST", ">")
        for stream in page
        if stream["config"]["name"].startswith(prefixes)
    }


@contextlib.asynccontextmanager
async def cluster(
    folder: Path, *, size: int = 3, sync_interval: str = "1s", more: str = ""
) -> AsyncIterator[Cluster]:
    """Servers that run and are well, and are ended at the end. `more` goes into the conf of each."""
    ports = free_ports(3 * size)
    clients, monitors, routes = ports[:size], ports[size : 2 * size], ports[2 * size :]
    async with contextlib.AsyncExitStack() as stack:
        between: dict[tuple[int, int], Proxy] = {}
        for one in range(size):
            for other in range(size):
                if one != other:
                    between[one, other] = await stack.enter_async_context(Proxy("127.0.0.1", routes[other]))
        nodes = []
        for number in range(size):
            addresses = [link.url for (one, _), link in between.items() if one == number]
            conf = written(
                f"n{number}",
                folder,
                clients[number],
                monitors[number],
                routes[number],
                addresses,
                sync_interval,
            )
            node = Node(f"n{number}", folder, clients[number], monitors[number], conf + more)
            node.routes = [link for ends, link in between.items() if number in ends]
            nodes.append(node)
        found = Cluster(nodes)
        try:
            for node in nodes:
                node.start()
            await found.well()
            yield found
        finally:
            for node in nodes:
                await asyncio.to_thread(node.kill)


def written(
    name: str, folder: Path, port: int, monitor: int, route: int, addresses: list[str], sync_interval: str
) -> str:
    """A server's conf."""
    return f"""
server_name: {name}
listen: 127.0.0.1:{port}
http: 127.0.0.1:{monitor}
jetstream {{ store_dir: {json.dumps(str(folder / name))}, sync_interval: {sync_interval} }}
cluster {{
  name: jsq
  listen: 127.0.0.1:{route}
  advertise: "127.0.0.1:1"
  no_advertise: true
  routes: {json.dumps(addresses)}
}}
"""
