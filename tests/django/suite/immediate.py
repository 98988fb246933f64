"""Jobs that run at once in the process of a test, without a server."""

from django.db import transaction
from django.test import TransactionTestCase

from jsq.contrib.django import app, on_commit
from jsq.contrib.django.project import HAS_TASKS
from tests.django.shop.models import Order
from tests.django.shop.tasks import count, pack


class ImmediateTests(TransactionTestCase):
    """`app.immediate()` with the App of a project."""

    async def test_a_task_that_uses_the_orm_runs_in_the_process_of_the_test(self) -> None:
        order = await Order.objects.acreate(name="book")
        async with app.immediate():
            job = await pack.submit(order.pk)
            self.assertEqual(await job.result(5), "book")
            self.assertEqual(await (await count.submit()).result(5), 1)
        await order.arefresh_from_db()
        self.assertEqual(order.state, "packed")

    def test_a_job_runs_when_the_transaction_commits(self) -> None:
        with app.immediate():
            with transaction.atomic():
                order = Order.objects.create(name="book")
                on_commit(pack.options(id="packed")).delay(order.pk)
            self.assertEqual(pack.job("packed").blocking.result(5), "book")
        order.refresh_from_db()
        self.assertEqual(order.state, "packed")


if HAS_TASKS:
    from django.tasks import TaskResultStatus, default_task_backend

    from tests.django.shop import django_tasks

    class ImmediateBackendTests(TransactionTestCase):
        """The task backend in immediate mode."""

        def test_an_enqueued_task_has_ended(self) -> None:
            order = Order.objects.create(name="book")
            with app.immediate():
                done = django_tasks.rename.enqueue(order.pk, name="pen")
                failed = django_tasks.decline.enqueue("no")
                done.refresh()
                failed.refresh()
                self.assertEqual((done.status, done.return_value), (TaskResultStatus.SUCCESSFUL, "pen"))
                self.assertIs(failed.errors[0].exception_class, django_tasks.Declined)
                self.assertEqual(default_task_backend.get_result(done.id), done)
            order.refresh_from_db()
            self.assertEqual(order.name, "pen")
