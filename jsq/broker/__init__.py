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

This module imports each class on first use, so that a query imports only the wings that it needs. Type
checkers read the same names from `__init__.pyi`.
"""

from importlib import import_module
from typing import Any

_homes = {
    "broker": ["Broker"],
    "delivery.delivery": ["Delivery", "Lease"],
    "delivery.holders": ["Holding", "StartedAttempt"],
    "delivery.leases": ["Leases"],
    "delivery.puller": ["ConsumerAddress", "PullHandlers", "Puller"],
    "maintenance.queue_removal": ["QueueContents"],
    "operations.queue_stats": ["QueueStats"],
}
_home = {name: module for module, names in _homes.items() for name in names}

__all__ = sorted(_home)


def __getattr__(name: str) -> Any:
    if name not in _home:
        raise AttributeError(f"module 'jsq.broker' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"jsq.broker.{_home[name]}"), name)
    return value
