"""The messages of key groups on the server."""

from jsq.broker import Broker

QUEUE = "default"


async def in_line(broker: Broker, queue: str = QUEUE) -> list[str]:
    found = await broker.reads.fetch(
        broker.subjects.groups_stream(queue), broker.subjects.group_job(queue, "*", "*")
    )
    return [reply.headers["Nats-Subject"].rpartition(".")[2] for reply in found]


async def on_queue(broker: Broker, queue: str = QUEUE) -> list[str]:
    found = await broker.reads.fetch(
        broker.subjects.ready_stream(queue), broker.subjects.ready(queue, "*", "*")
    )
    return [reply.headers["Nats-Subject"].rpartition(".")[2] for reply in found]


async def nothing_is_left(broker: Broker, queue: str = QUEUE) -> bool:
    """Nobody waits, nobody has a place, no message stands."""
    subjects = broker.subjects
    turns = await broker.reads.fetch(subjects.group_state_stream(queue), subjects.group_state(queue, "*"))
    held = [token for one in turns if (token := b'"slots":{}' not in one.payload)]
    return not (await in_line(broker, queue) or await on_queue(broker, queue) or held)
