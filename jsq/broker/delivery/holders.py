"""Asks the workers of a queue whether the worker that a record names still holds the job.

A lease lapses when its worker dies. It also lapses when the server was out of reach for as long, or when the
server was killed and lost the last renewals. The record does not show which of these happened, but the worker
knows. All workers of a queue subscribe to one subject for the questions and the answers, because a reply
would not reach a worker of another account.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from jsq.broker.topology.namespace import Namespace
from jsq.transport.replies import Reply

ASK = "ask"
ANSWER_SECONDS = 0.3
"""Seconds within which a live worker answers. A job whose worker died starts again after this time."""


class Holding(Enum):
    """The answer of a worker about one of its attempts. A worker that died does not answer."""

    RUNNING = "running"
    """The worker holds the lease."""

    RECORDING = "recording"
    """The lease has lapsed, and the worker records the outcome of the attempt."""

    INTERRUPTED = "interrupted"
    """The server was out of reach, and the worker ended the attempt because of that."""

    CRASHED = "crashed"
    """The worker stalled for longer than the lease, or could not record the outcome."""


@dataclass(frozen=True, slots=True)
class StartedAttempt:
    """An attempt as the record of its start names it.

    `worker` and `token` are those of the attempt, `message` is the sequence of its message, and `delivery`
    the number of its delivery.
    """

    worker: str
    token: int
    message: int
    delivery: int

    def encode(self, kind: str) -> bytes:
        """A message about the attempt: the question `ask`, or one of the answers."""
        return f"{kind} {self.worker} {self.token} {self.message} {self.delivery}".encode()


Answer = Callable[[StartedAttempt], Holding]


class Holders:
    """Asks other workers about their attempts, and answers their questions about those of this worker."""

    def __init__(self, namespace: Namespace) -> None:
        self._wire = namespace.wire
        self._subjects = namespace.subjects
        self._waiting: dict[StartedAttempt, asyncio.Future[Holding]] = {}

    async def subscribe(self, queue: str, worker: str, answer: Answer) -> Callable[[], Awaitable[None]]:
        """Answer questions about this worker's attempts on a queue, and receive the answers of other workers.

        Returns a function that ends the subscription.
        """
        subject = self._subjects.holders(queue)

        def receive(message: Reply) -> None:
            kind, about = read_message(message.payload)
            if about is None:
                return
            if kind == ASK and about.worker == worker:
                self._wire.send(subject, about.encode(answer(about).value))
            future = self._waiting.get(about)
            if kind != ASK and future is not None and not future.done():
                future.set_result(Holding(kind))

        return functools.partial(self._wire.unsubscribe, await self._wire.subscribe(subject, receive))

    async def ask(self, queue: str, about: StartedAttempt) -> Holding | None:
        """Ask the worker of an attempt about it; None if no answer arrives within `ANSWER_SECONDS`."""
        future = self._waiting.get(about)
        if future is None:
            future = self._waiting[about] = asyncio.get_running_loop().create_future()
        self._wire.send(self._subjects.holders(queue), about.encode(ASK))
        try:
            return await asyncio.wait_for(asyncio.shield(future), ANSWER_SECONDS)
        except TimeoutError:
            return None
        finally:
            if self._waiting.get(about) is future:
                del self._waiting[about]


MESSAGE_KINDS = {ASK, *(one.value for one in Holding)}


def read_message(payload: bytes) -> tuple[str, StartedAttempt | None]:
    """The kind of a question or an answer, and its attempt.

    The attempt is None if jsq did not write the message, or if a later release of jsq did.
    """
    try:
        kind, worker, *numbers = payload.decode().split()
        token, message, delivery = map(int, numbers)
    except ValueError:
        return "", None
    return kind, StartedAttempt(worker, token, message, delivery) if kind in MESSAGE_KINDS else None
