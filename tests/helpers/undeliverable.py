"""Undeliverable messages, created on purpose, and the repairs of sweeps."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from jsq import Client
from jsq.broker import Broker
from jsq.broker.jobs.messages import id_of
from jsq.model.repair import Inconsistency, RepairResult
from jsq.transport.replies import NoResponders, Reply

READY = "default"


def repair_summary(swept: list[RepairResult]) -> list[tuple[Inconsistency, str, bool]]:
    return [(one.kind, one.job, one.repaired) for one in swept]


async def make_undeliverable(client: Client, level: str = "normal") -> list[int]:
    """Make the messages of a priority undeliverable: a consumer delivers each once and rejects it.

    Returns the sequences of the messages.
    """
    broker = await client.broker()
    ready = broker.subjects.streams.ready(READY)
    known = await broker.jetstream.consumer_info(ready, level)
    assert known is not None
    await put_consumer(broker, ready, level, known["config"] | {"max_deliver": 1})
    sequences = []
    async with pulling(broker, ready, level) as pull:
        while (message := await pull()) is not None:
            sequences.append(int(message.reply.split(".")[5]))
            await broker.wire.ask(message.reply, b"-NAK")
    await put_consumer(broker, ready, level, known["config"])
    return sequences


async def put_consumer(broker: Broker, stream: str, level: str, config: dict[str, Any]) -> None:
    await broker.wire.api(
        f"CONSUMER.CREATE.{stream}.{level}.{config['filter_subject']}",
        {"stream_name": stream, "config": config},
    )


@contextlib.asynccontextmanager
async def pulling(broker: Broker, stream: str, level: str) -> AsyncIterator[Any]:
    """`await pull()` returns the next message of a consumer, or None."""
    inbox, arrived = broker.wire.new_inbox(), asyncio.Queue[Reply]()
    subscription = await broker.wire.subscribe(inbox, arrived.put_nowait)

    async def pull() -> Reply | None:
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{level}"
        broker.wire.send(subject, b'{"batch":1,"no_wait":true}', None, inbox)
        message = await asyncio.wait_for(arrived.get(), 5)
        return None if message.status else message

    yield pull
    await broker.wire.unsubscribe(subscription)


async def on_queue(client: Client) -> list[str]:
    """The job of each message that is on the queue or due later."""
    broker = await client.broker()
    found: list[str] = []
    for stream, subject, _ in {*await broker.job_reader.message_locations(READY)}:
        with contextlib.suppress(NoResponders):
            found += [id_of(reply) for reply in await broker.reads.fetch(stream, subject)]
    return found
