"""Submits that wait for a commit."""

from django.db import transaction
from django.test import TestCase, TransactionTestCase

from jsq import BadArguments
from jsq.contrib.django import app, on_commit
from tests.django.shop.models import Order
from tests.django.shop.tasks import pack


def known(id: str) -> bool:
    """Whether a job exists."""
    return any(job.id == id for job in app.client.blocking.jobs.list(limit=None))


class CommitTests(TransactionTestCase):
    """`on_commit`, with real transactions."""

    def test_a_job_is_submitted_when_the_transaction_commits(self) -> None:
        with transaction.atomic():
            order = Order.objects.create(name="book")
            on_commit(pack.options(id="commit")).delay(order.pk)
            self.assertFalse(known("commit"))
        self.assertTrue(known("commit"))

    def test_a_rollback_submits_nothing(self) -> None:
        with self.assertRaises(ValueError), transaction.atomic():
            on_commit(pack.options(id="rollback")).delay(1)
            raise ValueError
        self.assertFalse(known("rollback"))

    def test_a_savepoint_that_is_rolled_back_submits_nothing(self) -> None:
        with transaction.atomic():
            with self.assertRaises(ValueError), transaction.atomic():
                on_commit(pack.options(id="inner")).delay(1)
                raise ValueError
            on_commit(pack.options(id="outer")).delay(1)
        self.assertEqual([known("inner"), known("outer")], [False, True])

    def test_without_a_transaction_a_job_is_submitted_at_once(self) -> None:
        on_commit(pack.options(id="at-once")).delay(1)
        self.assertTrue(known("at-once"))

    def test_wrong_arguments_raise_before_the_commit(self) -> None:
        with transaction.atomic(), self.assertRaises(BadArguments):
            on_commit(pack).delay("no number")  # type: ignore[arg-type]  # that is tested

    def test_arguments_are_those_of_the_call_and_not_of_the_commit(self) -> None:
        many = [1]
        with transaction.atomic():
            on_commit(app.client.task("many").options(id="copied")).delay(many)
            many.append(2)
        self.assertEqual(app.client.blocking.jobs.get("copied").arguments, [[[1]], {}])


class CommitInTestCase(TestCase):
    """`on_commit` inside of the transaction of a `TestCase`."""

    def test_captured_callbacks_submit(self) -> None:
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            on_commit(pack.options(id="captured")).delay(1)
        self.assertEqual(len(callbacks), 1)
        self.assertTrue(known("captured"))
