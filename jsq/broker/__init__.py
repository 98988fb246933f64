"""The broker: jobs on JetStream, without user code. Its wings, in import order:

- `topology` names and creates streams.
- `delivery` pulls messages and renews leases.
- `access` writes roles.
- `jobs` stores and finds jobs.
- `flow` limits jobs.
- `operations` changes jobs and queues.
- `submit` stores many jobs or unique jobs.
- `schedules` stores schedules and submits the jobs of ticks.
- `maintenance` finds and repairs inconsistencies.
- `broker` is the facade.
- `health` examines the server.
"""

from jsq.broker.broker import Broker
from jsq.broker.delivery.delivery import Delivery, Lease
from jsq.broker.delivery.holders import Holding, StartedAttempt
from jsq.broker.delivery.leases import Leases
from jsq.broker.delivery.puller import ConsumerAddress, Puller, PullHandlers
from jsq.broker.maintenance.queue_removal import QueueContents
from jsq.broker.operations.queue_stats import QueueStats

__all__ = [
    "Broker",
    "ConsumerAddress",
    "Delivery",
    "Holding",
    "Lease",
    "Leases",
    "PullHandlers",
    "Puller",
    "QueueContents",
    "QueueStats",
    "StartedAttempt",
]
