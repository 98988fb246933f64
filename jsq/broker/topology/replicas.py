"""The number of replicas of the shared streams: three, if the cluster has enough servers.

Each queue chooses its own durability. The shared streams must not be less durable than any queue, so a new
namespace adapts to its cluster. A queue without `replicas=` gets as many replicas as the bucket of records.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from jsq.broker.topology.configs import Config
from jsq.transport.replies import TooFewServers
from jsq.transport.wire import Wire

log = logging.getLogger("jsq.broker")

CLUSTER_REPLICAS = 3
"""Replicas of the shared streams of a new namespace on a cluster. Three survive the loss of one server."""

PEERS_SECONDS = 10.0
"""Seconds to wait for more servers of a cluster, which may be starting.

After that, the stream gets the replicas that the caller asks for.
"""


async def create_first(create: Callable[[Config], Awaitable[Config]], wire: Wire, config: Config) -> Config:
    """Create the first shared stream of a namespace, unless it exists; returns what `create` returns.

    On a cluster it gets at least `CLUSTER_REPLICAS` replicas. If the cluster has too few servers for that, it
    gets the `num_replicas` of `config`.
    """
    if not wire.server.cluster or config["num_replicas"] >= CLUSTER_REPLICAS:
        return await create(config)
    began = time.monotonic()
    while True:
        try:
            return await create(config | {"num_replicas": CLUSTER_REPLICAS})
        except TooFewServers as error:
            if time.monotonic() - began > PEERS_SECONDS:
                log.warning("streams not replicated", extra={"stream": config["name"], "why": str(error)})
                return await create(config)
        await asyncio.sleep(0.5)
