"""How many servers of a cluster hold what the queues share: three, where the cluster has them.

Durability is the choice of each queue. What they share must not be the weakest part of any of them, so a new
namespace follows its cluster. A queue without `replicas=` has as many replicas as the event log.
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
"""Replicas of a new namespace on a cluster: they survive the loss of one server."""

PEERS_SECONDS = 10.0
"""Seconds to wait for more servers of a cluster, which may be starting. Then one server holds everything."""


async def create_first(create: Callable[[Config], Awaitable[Config]], wire: Wire, config: Config) -> Config:
    """Create the first shared stream of a namespace, unless it exists; returns what `create` returns.

    On a cluster it gets `CLUSTER_REPLICAS` at least; what `config` says if the cluster has too few servers.
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
