"""The requests of a puller for deliveries."""

import asyncio

from jsq import Client
from jsq.broker import ConsumerAddress, Delivery, Puller, PullHandlers


async def test_a_request_before_a_puller_is_open_delays_no_delivery(client: Client) -> None:
    broker = await client.broker()
    job = await client.task("send").submit("a@b.c")
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    address = ConsumerAddress("default", broker.subjects.streams.ready("default"), "normal", lease=30.0)
    puller = Puller(broker.wire, address, PullHandlers(arrived.put_nowait, demand=lambda _: 10))

    puller.request()  # a duty of the worker may find more room while its pullers are still being opened
    await puller.open()

    async with asyncio.timeout(5):
        assert (await arrived.get()).id == job.id
    await puller.close()
