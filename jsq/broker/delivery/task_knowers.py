"""Finds a worker of a queue that knows a task, and gives it a delivery.

Several Apps may share a queue, and workers of two releases do during a deployment. The server cannot choose a
worker by the task, and a message that is handed back is offered before all others, often to the same worker.
So a worker that does not know the task of a delivery asks the others, and gives the delivery to one that
knows the task and has a free slot. That one reads the message from the stream, and settles the delivery.

All workers of a queue subscribe to one subject for this, that of `jsq.broker.delivery.holders`: each worker
of the queue may use it.
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from jsq.broker.delivery.delivery import Delivery, read_delivery
from jsq.broker.topology.namespace import Namespace
from jsq.transport.replies import Reply

TASK_ASKED, TASK_KNOWN = "task-asked", "task-known"
TASK_GIVEN, TASK_TAKEN = "task-given", "task-taken"
WORKER_STARTED = "worker-started"

KNOWN_ANSWER_SECONDS = 0.3
"""Seconds within which a worker that knows the task answers, and confirms that it takes a delivery."""

UNKNOWN_SECONDS, BUSY_SECONDS = 0.5, 0.1
"""Seconds without another question after no worker knew the task, and after all that know it were busy."""

MOST_ANSWERS = 1_000


@dataclass(frozen=True, slots=True)
class TaskKnower:
    """An answer: `worker` is a worker that knows the task and has a free slot, if there is one.

    `exists` is true if a live worker knows the task, with or without a free slot.
    """

    worker: str = ""
    exists: bool = False


class TaskWorker(Protocol):
    """The worker that answers questions and receives deliveries."""

    @property
    def name(self) -> str: ...

    def takes(self, task: str, /) -> bool: ...

    def has_room(self, queue: str) -> bool: ...

    def receive(self, queue: str, reply: str) -> bool: ...

    def worker_started(self, queue: str) -> None: ...


class TaskKnowers:
    """Asks other workers about tasks, and answers their questions about those of this worker."""

    def __init__(self, namespace: Namespace) -> None:
        self._wire = namespace.wire
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._asked: dict[tuple[str, str], asyncio.Future[str]] = {}
        self._busy: set[tuple[str, str]] = set()
        self._given: dict[str, asyncio.Future[None]] = {}
        self._no_worker: dict[tuple[str, str], tuple[float, bool]] = {}

    async def subscribe(self, queue: str, worker: TaskWorker) -> Callable[[], Awaitable[None]]:
        """Answer questions about the tasks of a queue, and receive deliveries. Returns a function that ends
        the subscription.
        """
        receive = functools.partial(self._receive, queue, worker)
        return functools.partial(
            self._wire.unsubscribe, await self._wire.subscribe(self._subjects.holders(queue), receive)
        )

    def announce(self, queue: str) -> None:
        """Announce that this worker takes jobs of a queue."""
        self._send(queue, WORKER_STARTED)

    async def give(self, delivery: Delivery, worker: str) -> bool:
        """Give a delivery to another worker of its queue, which settles it.

        False if the worker has not confirmed that it takes the delivery: it may have stopped.
        """
        taken = self._given[delivery.reply] = asyncio.get_running_loop().create_future()
        self._send(delivery.queue, TASK_GIVEN, worker, delivery.reply)
        try:
            await asyncio.wait_for(taken, KNOWN_ANSWER_SECONDS)
        except TimeoutError:
            return False
        finally:
            del self._given[delivery.reply]
        return True

    async def find(self, queue: str, task: str) -> TaskKnower:
        """A worker of a queue that knows a task. If none has a free slot, asks again only after a while."""
        at, exists = self._no_worker.get((queue, task), (0.0, False))
        if at and time.monotonic() - at < (BUSY_SECONDS if exists else UNKNOWN_SECONDS):
            return TaskKnower(exists=exists)
        found = await self._ask(queue, task)
        if not found.worker:
            if len(self._no_worker) >= MOST_ANSWERS:
                self._no_worker.clear()
            self._no_worker[queue, task] = time.monotonic(), found.exists
        return found

    async def read(self, queue: str, reply: str, lease: float) -> Delivery | None:
        """The delivery that another worker gave to this one; None if its message is settled.

        Raises `ValueError` for the reply subject of anything but a delivery of the queue.
        """
        stream = self._subjects.streams.ready(queue)
        tokens = reply.split(".")
        place = tokens.index(stream)
        message = await self._reads.get(stream, int(tokens[place + 3]), consistent=True)
        if message is None:
            return None
        subject = message.headers["Nats-Subject"]
        return read_delivery(Reply(subject, reply, message.payload, message.raw), lease)

    # -- inside ------------------------------------------------------------------------------------------

    def _send(self, queue: str, *words: str) -> None:
        self._wire.send(self._subjects.holders(queue), " ".join(words).encode())

    async def _ask(self, queue: str, task: str) -> TaskKnower:
        key = queue, task
        future = self._asked.get(key)
        if future is None:
            future = self._asked[key] = asyncio.get_running_loop().create_future()
            self._busy.discard(key)
            self._send(queue, TASK_ASKED, task)
        try:
            worker = await asyncio.wait_for(asyncio.shield(future), KNOWN_ANSWER_SECONDS)
            return TaskKnower(worker, exists=True)
        except TimeoutError:
            return TaskKnower(exists=key in self._busy)
        finally:
            if self._asked.get(key) is future:
                del self._asked[key]

    def _receive(self, queue: str, worker: TaskWorker, message: Reply) -> None:
        match message.payload.decode(errors="replace").split(" "):
            case [kind, task] if kind == TASK_ASKED and worker.takes(task):
                self._send(queue, TASK_KNOWN, task, worker.name if worker.has_room(queue) else "-")
            case [kind, task, name] if kind == TASK_KNOWN:
                self._answered((queue, task), name)
            case [kind, name, reply] if kind == TASK_GIVEN and name == worker.name:
                if worker.receive(queue, reply):
                    self._send(queue, TASK_TAKEN, reply)
            case [kind, reply] if kind == TASK_TAKEN and reply in self._given:
                taken = self._given[reply]
                if not taken.done():
                    taken.set_result(None)
            case [kind] if kind == WORKER_STARTED:
                self._no_worker.clear()
                worker.worker_started(queue)

    def _answered(self, key: tuple[str, str], worker: str) -> None:
        future = self._asked.get(key)
        if future is None or future.done():
            return
        if worker == "-":
            self._busy.add(key)
        else:
            future.set_result(worker)
