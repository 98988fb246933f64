"""How many slots of its worker a job takes: set by its submit or its task, limited by the worker."""

from jsq.app import App
from jsq.broker import Delivery
from jsq.codec.envelope import JOB, read_order
from jsq.errors import UsageError

SLOTS_FIELD = '"slots"'
SLOTS_MEMBER = SLOTS_FIELD.encode()
"""The part of an encoded job that sets its slots."""


class JobSlots:
    """How many slots the jobs of one worker take.

    `declared` is true if a task takes more than one slot; it was computed when there were `known` tasks.
    """

    def __init__(self, app: App, most: int) -> None:
        self._app = app
        self._most = most
        self.known = 0
        self.declared = False

    def of(self, delivery: Delivery) -> int:
        """The number of slots that a delivery takes; 1 for a message that is not a job."""
        order = delivery.headers.get(JOB, "")
        if SLOTS_FIELD not in order and not self._are_declared():
            return 1
        try:
            _, name, options = read_order(order)
        except (UsageError, ValueError, KeyError, TypeError, AttributeError):
            return 1
        task = self._app.known(name)
        if task is not None and task.declaration.batch is not None:
            return 1  # many jobs run as one
        declared = task.declaration.slots if task is not None else 1
        return min(options.slots or declared, self._most)

    def _are_declared(self) -> bool:
        """Whether any task takes more than one slot; computed again when there are more tasks."""
        tasks = self._app.tasks
        if len(tasks) != self.known:
            self.known = len(tasks)
            self.declared = any(task.declaration.slots > 1 for task in tasks.values())
        return self.declared
