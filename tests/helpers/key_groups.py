"""The messages of key groups on the server."""

from jsq.broker import Broker
from jsq.codec.subject_token import ANY

QUEUE = "default"


async def waiting_for_key(broker: Broker, queue: str = QUEUE) -> list[str]:
    found = await broker.reads.fetch(
        broker.subjects.streams.groups(queue), broker.subjects.groups.job(queue, "*", ANY)
    )
    return [reply.headers["Nats-Subject"].rpartition(".")[2] for reply in found]


async def on_queue(broker: Broker, queue: str = QUEUE) -> list[str]:
    found = await broker.reads.fetch(
        broker.subjects.streams.ready(queue), broker.subjects.ready(queue, "*", ANY)
    )
    return [reply.headers["Nats-Subject"].rpartition(".")[2] for reply in found]


async def nothing_is_left(broker: Broker, queue: str = QUEUE) -> bool:
    """Whether no job waits for a key, no job holds a slot, and the queue has no message."""
    subjects = broker.subjects
    states = await broker.reads.fetch(subjects.streams.group_state(queue), subjects.groups.state(queue, "*"))
    held = [token for one in states if (token := b'"slots":{}' not in one.payload)]
    return not (await waiting_for_key(broker, queue) or await on_queue(broker, queue) or held)
