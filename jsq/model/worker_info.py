"""The description that a live worker publishes: which queues it serves, and which tasks it knows."""

from collections.abc import Mapping
from typing import Any

from jsq.model.routes import matches_any


def serves_queue(worker: Mapping[str, Any], queue: str) -> bool:
    """Whether a worker serves a queue."""
    return queue in texts(worker.get("queues"))


def knows_task(worker: Mapping[str, Any], task: str) -> bool:
    """Whether a worker knows a task, by its name, an older name, or the reference of a function."""
    if task in texts(worker.get("tasks")) or task in texts(worker.get("aliases")):
        return True
    return ":" in task and matches_any(task, tuple(texts(worker.get("functions"))))


def declared_options(worker: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The options of submits that a task of a worker declares, by their names."""
    declared = worker.get("declared")
    found = declared.get(task) if isinstance(declared, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def texts(value: object) -> list[str]:
    """The texts in a list; an empty list for anything else."""
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
