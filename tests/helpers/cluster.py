"""Three real nats-servers that form a cluster on this machine and can be killed, halted and partitioned.

Each route goes through a proxy of its own, so that a server can be cut off from the others. The servers do
not advertise their addresses (`no_advertise`, and an unused address in `advertise`), so no route bypasses its
proxy.
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
    """Return free ports on loopback, below those that the system assigns to connections."""
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
        """The proxies between this server and the others, in both directions."""
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

    def reconfigure(self, before: str, after: str) -> None:
        """Change the conf, and have the running server read it."""
        self._conf.write_text(self._conf.read_text().replace(before, after))
        os.kill(self.pid, signal.SIGHUP)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the process; its files are kept."""
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

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def partition(self) -> None:
        """Cut the server off from the other servers; its clients stay connected."""
        for route in self.routes:
            route.refuse()

    def hold(self) -> None:
        """Forward nothing between this server and the others, without closing the routes."""
        for route in self.routes:
            route.hold()

    def heal(self) -> None:
        for route in self.routes:
            route.heal()

    def last_sequences(self) -> dict[str, int]:
        """The last sequence of each stream of the server."""
        report = self.get("/jsz?accounts=true&streams=true") or {}
        return {
            stream["name"]: stream["state"]["last_seq"]
            for account in report.get("account_details") or []
            for stream in account.get("stream_detail") or []
        }

    def get(self, path: str) -> Any:
        """Read a path of the monitoring port; returns None if the reply is missing or not a 200."""
        try:
            with urllib.request.urlopen(self.monitor + path, timeout=2) as answer:
                return json.load(answer)
        except (OSError, ValueError):
            return None

    def health_error(self) -> str:
        """The error of the health check; empty if all streams are up to date."""
        try:
            with urllib.request.urlopen(self.monitor + "/healthz", timeout=2):
                return ""
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError as error:
            return str(error)


class Cluster:
    """The servers of a cluster. `url` names all of them."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.url = ",".join(node.url for node in nodes)

    async def wait_healthy(self, seconds: float = READY_SECONDS) -> None:
        """Wait until every server is up, follows a leader, and its streams are up to date."""
        end = time.monotonic() + seconds
        while True:
            errors = await asyncio.gather(*(asyncio.to_thread(node.health_error) for node in self.nodes))
            if not any(errors):
                return
            assert time.monotonic() < end, f"not healthy after {seconds} s: {errors}"
            await asyncio.sleep(0.05)

    async def lagging(self, seconds: float = READY_SECONDS) -> list[Node]:
        """Wait until all replicas of every stream are equal; return the servers that still lag behind."""
        end = time.monotonic() + seconds
        while True:
            held = await asyncio.gather(*(asyncio.to_thread(node.last_sequences) for node in self.nodes))
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
                with contextlib.suppress(BrokerError):  # the stream has no leader at present
                    found = await broker.jetstream.stream_info(stream)
                    if found is not None and (name := found.get("cluster", {}).get("leader")):
                        return self.node(name)
                await asyncio.sleep(0.05)

    async def restart_one_by_one(self) -> None:
        """Restart one server after another; each time wait until all servers are healthy."""
        for node in self.nodes:
            await asyncio.to_thread(node.kill, signal.SIGTERM)
            node.start()
            await self.wait_healthy()


async def replicas_of(client: Client) -> set[int]:
    """The different numbers of replicas of the streams of a namespace."""
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
    """Run a healthy cluster until the end of the block. `more` is added to the conf of each server."""
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
            conf = server_conf(
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
            await found.wait_healthy()
            yield found
        finally:
            for node in nodes:
                await asyncio.to_thread(node.kill)


def server_conf(
    name: str, folder: Path, port: int, monitor: int, route: int, addresses: list[str], sync_interval: str
) -> str:
    """The conf of a server."""
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
