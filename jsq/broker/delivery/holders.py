"""Asks the workers of a queue whether the one that the record names still holds a job.

A lease lapses when its worker dies, and also when the server was away for as long, or forgot renewals when it
was killed. The record cannot tell these apart, and the worker can. Questions and answers go over one subject
that all workers of a queue hear, because a reply would not reach a worker of another account.
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
"""Seconds within which a worker that lives answers: a job whose worker died waits as long to start again."""


class Holding(Enum):
    """What a worker answers about an attempt of its own; a worker that died does not answer."""

    RUNNING = "running"  # it holds the lease
    RECORDING = "recording"  # its lease has lapsed, and it records how the attempt ended
    INTERRUPTED = "interrupted"  # the server was out of reach, and the attempt was ended for that
    CRASHED = "crashed"  # the worker stalled for longer than the lease, or could not record the outcome


@dataclass(frozen=True, slots=True)
class StartedAttempt:
    """An attempt as its start is recorded: the worker, the token, and the delivery that it stands for."""

    worker: str
    token: int
    message: int
    delivery: int

    def encode(self, word: str) -> bytes:
        return f"{word} {self.worker} {self.token} {self.message} {self.delivery}".encode()


Answer = Callable[[StartedAttempt], Holding]


class Holders:
    """Asks about the attempts of other workers, and answers for those of this one."""

    def __init__(self, namespace: Namespace) -> None:
        self._wire = namespace.wire
        self._subjects = namespace.subjects
        self._waiting: dict[StartedAttempt, asyncio.Future[Holding]] = {}

    async def subscribe(self, queue: str, worker: str, answer: Answer) -> Callable[[], Awaitable[None]]:
        """Answer the questions of a queue about this worker's attempts, and hear the answers of others.

        Returns a function that ends the subscription.
        """
        subject = self._subjects.holders(queue)

        def receive(message: Reply) -> None:
            word, about = read_message(message.payload)
            if about is None:
                return
            if word == ASK and about.worker == worker:
                self._wire.send(subject, about.encode(answer(about).value))
            future = self._waiting.get(about)
            if word != ASK and future is not None and not future.done():
                future.set_result(Holding(word))

        return functools.partial(self._wire.unsubscribe, await self._wire.subscribe(subject, receive))

    async def ask(self, queue: str, about: StartedAttempt) -> Holding | None:
        """Ask the worker of an attempt for it; None if the worker does not answer within `ANSWER_SECONDS`."""
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


WORDS = {ASK, *(one.value for one in Holding)}


def read_message(payload: bytes) -> tuple[str, StartedAttempt | None]:
    """A question or an answer; None for what jsq did not write, or a later release did."""
    try:
        word, worker, *numbers = payload.decode().split()
        token, message, delivery = map(int, numbers)
    except ValueError:
        return "", None
    return word, StartedAttempt(worker, token, message, delivery) if word in WORDS else None
