"""Connections around jobs, in threads, on the loop and in child processes."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from django.db import connection
from django.test import TransactionTestCase, override_settings

from jsq import App
from jsq.contrib.django import DatabaseConnections, app
from tests.django.shop.hooks import Notes
from tests.django.shop.models import Order
from tests.django.shop.tasks import count, count_in_child, held, pack
from tests.django.suite import working


def close_held() -> None:
    """Close the connections that tasks have used."""
    for one in held:
        one.inc_thread_sharing()
        one.close()


class ConnectionTests(TransactionTestCase):
    """Old connections are closed, young ones are kept."""

    def setUp(self) -> None:
        held.clear()

    def keep_connections(self) -> None:
        """Keep connections open between jobs; at the end of the test, those of other threads are closed."""
        connection.settings_dict["CONN_MAX_AGE"] = None
        self.addCleanup(close_held)
        self.addCleanup(connection.settings_dict.__setitem__, "CONN_MAX_AGE", 0)

    async def test_a_job_in_a_thread_leaves_no_connection_that_is_too_old(self) -> None:
        order = await Order.objects.acreate(name="book")
        async with working():
            job = await pack.submit(order.pk)
            self.assertEqual(await job.result(20), "book")
        [used] = held
        self.assertIsNone(used.connection)
        await order.arefresh_from_db()
        self.assertEqual(order.state, "packed")
        self.assertIn("pack", Notes.ran)

    async def test_a_young_connection_serves_the_next_job_of_its_thread(self) -> None:
        order = await Order.objects.acreate(name="book")
        self.keep_connections()
        async with working(concurrency=1):
            for _ in range(2):
                await (await pack.submit(order.pk)).result(20)
            first, second = held
            before = first.connection
            self.assertIs(first, second)
            self.assertIsNotNone(before)
            first.close_at = 0.0  # it is too old now
            await (await pack.submit(order.pk)).result(20)
            self.assertIs(held[2], first)
            self.assertIsNot(first.connection, before)

    def test_a_coroutine_function_has_a_thread_of_its_own_and_closes_its_connection(self) -> None:
        Order.objects.create(name="book")

        async def run() -> list[int]:
            async with working():
                jobs = [await count.submit() for _ in range(2)]
                return [await job.result(20) for job in jobs]

        with ThreadPoolExecutor() as pool:  # an async test would lend its own thread to `sync_to_async`
            self.assertEqual(pool.submit(asyncio.run, run()).result(), [1, 1])
        self.assertIsNot(*held)
        self.assertEqual([one.connection for one in held], [None, None])

    async def test_a_child_process_closes_its_connection_after_each_job(self) -> None:
        await Order.objects.acreate(name="book")
        async with working(concurrency=1):
            first = await (await count_in_child.submit()).result(25)
            second = await (await count_in_child.submit()).result(25)
        self.assertEqual(first[0], second[0])
        self.assertEqual([first[1:], second[1:]], [(1, False), (1, False)])

    async def test_an_app_of_its_own_closes_connections_with_the_middleware(self) -> None:
        order = await Order.objects.acreate(name="book")
        own = App(namespace=f"{app.namespace}-own", middleware=[DatabaseConnections()])
        own.task(name="pack")(pack.function)
        async with own, own.working():
            job = await own.client.task("pack").submit(order.pk)
            self.assertEqual(await job.result(20), "book")
            await own.client.queues.remove("default", force=True)
        [used] = held
        self.assertIsNone(used.connection)

    @override_settings(DEBUG=True)
    async def test_with_debug_the_queries_of_a_job_do_not_pile_up(self) -> None:
        order = await Order.objects.acreate(name="book")
        self.keep_connections()
        async with working(concurrency=1):
            counts = []
            for _ in range(3):
                await (await pack.submit(order.pk)).result(20)
                counts.append(len(held[-1].queries_log))
        self.assertEqual(counts[0], counts[2])
