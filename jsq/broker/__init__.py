"""The server: the only room that speaks NATS.

Everything here is one of two things: a place on the server (`jobs`, `log`, `dead`, `ids`, `queues`,
`workers`), or a way to reach it (`wire`, `puller`, `leases`, `streams`, `names`). NATS errors are translated
here, once.
"""

from jsq.broker.broker import Broker
from jsq.broker.delivery.delivery import Delivery, Lease
from jsq.broker.delivery.leases import Leases
from jsq.broker.delivery.puller import Puller
from jsq.broker.operations.queues import QueueStats

__all__ = ["Broker", "Delivery", "Lease", "Leases", "Puller", "QueueStats"]
