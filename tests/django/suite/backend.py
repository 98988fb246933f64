"""The task backend, on Django 6: the job of an enqueued task, and the values of its result."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import transaction
from django.tasks import TaskResultStatus, default_task_backend, task, task_backends
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist, TaskResultMismatch
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.test import TransactionTestCase, override_settings

import jsq
from jsq.contrib.django import JsqTask, app
from tests.django.shop import django_tasks as shop
from tests.django.shop.models import Order
from tests.django.shop.tasks import pack
from tests.django.suite import working
from tests.helpers.conditions import until

BACKEND = "jsq.contrib.django.JsqBackend"


async def ended(result: Any) -> Any:
    """The result once its task has ended."""
    await app.client.jobs.handle(result.id).wait(20)
    await result.arefresh()
    return result


async def running(result: Any) -> Any:
    """The result once its task runs."""

    async def runs() -> bool:
        await result.arefresh()
        return bool(result.status == TaskResultStatus.RUNNING)

    await until(runs)
    return await default_task_backend.aget_result(result.id)


@contextlib.asynccontextmanager
async def signals() -> AsyncIterator[list[tuple[str, str]]]:
    """The signals that are sent during a block, each with the status of its result."""
    seen: list[tuple[str, str]] = []
    kinds = {"enqueued": task_enqueued, "started": task_started, "finished": task_finished}
    receivers = {
        name: lambda sender, task_result, name=name, **_: seen.append((name, str(task_result.status)))
        for name in kinds
    }
    for name, receiver in receivers.items():
        kinds[name].connect(receiver)
    try:
        yield seen
    finally:
        for name, receiver in receivers.items():
            kinds[name].disconnect(receiver)


class BackendTestCase(TransactionTestCase):
    """Tests that begin without waiting jobs."""

    def setUp(self) -> None:
        for queue in app.client.blocking.queues.list():
            app.client.blocking.queues.purge(queue)


class ResultTests(BackendTestCase):
    """The results of tasks that run."""

    async def test_a_task_uses_the_orm_and_its_result_is_read_anywhere(self) -> None:
        order = await Order.objects.acreate(name="book")
        result = await shop.rename.aenqueue(order.pk, name="pen")
        self.assertEqual(result.status, TaskResultStatus.READY)
        async with working() as worker:
            await ended(result)
        await order.arefresh_from_db()
        self.assertEqual(order.name, "pen")
        found = await shop.rename.aget_result(result.id)
        self.assertEqual(found, result)
        self.assertEqual((found.status, found.return_value), (TaskResultStatus.SUCCESSFUL, "pen"))
        self.assertEqual((found.args, found.kwargs), ([order.pk], {"name": "pen"}))
        self.assertEqual((found.worker_ids, found.attempts, found.errors), ([worker.name], 1, []))
        times = found.enqueued_at, found.started_at, found.finished_at
        self.assertEqual(sorted(times), list(times))
        self.assertEqual(found.started_at, found.last_attempted_at)

    async def test_a_coroutine_function_runs_with_its_queue_and_its_priority(self) -> None:
        result = await shop.echo.aenqueue(1, [None, {"a": 2.5}], ctx="x", args=[TaskResultStatus.READY])
        record = await app.client.jobs.get(result.id)
        self.assertEqual((record.queue, record.task), ("mail", shop.echo.module_path))
        self.assertEqual(result.task, shop.echo)
        async with working():
            await ended(result)
        self.assertEqual(result.return_value, [[1, [None, {"a": 2.5}]], {"ctx": "x", "args": ["READY"]}])
        self.assertEqual((await default_task_backend.aget_result(result.id)).task.priority, 10)

    async def test_a_failed_task_has_its_exception_and_no_retry(self) -> None:
        result = await shop.decline.aenqueue("too dear")
        async with working():
            await ended(result)
        self.assertEqual(result.status, TaskResultStatus.FAILED)
        [error] = result.errors
        self.assertIs(error.exception_class, shop.Declined)
        self.assertTrue(error.traceback.startswith("Traceback (most recent call last):\n  File "))
        self.assertTrue(error.traceback.endswith("Declined: too dear\n"))
        self.assertIn("raise Declined(reason)", error.traceback)
        with self.assertRaisesMessage(ValueError, "Task failed"):
            result.return_value  # noqa: B018 -- that is what is tested

    async def test_retries_are_an_option_and_each_attempt_leaves_its_error(self) -> None:
        retried = {"default": {"BACKEND": BACKEND, "OPTIONS": {"retries": 5}}}
        with override_settings(TASKS=retried):
            app.tasks.pop(shop.fail_twice.module_path, None)
            result = await shop.fail_twice.aenqueue()
            async with working():
                while not (await app.client.jobs.get(result.id)).ended:
                    with contextlib.suppress(jsq.WrongState):
                        await app.client.jobs.promote(result.id)
                    await asyncio.sleep(0.02)
                await ended(result)
        app.tasks.pop(shop.fail_twice.module_path, None)
        declined = "tests.django.shop.django_tasks.Declined"
        self.assertEqual(result.return_value, [3, 3, [declined, "builtins.KeyError"]])
        self.assertEqual([one.exception_class_path for one in result.errors], [declined, "builtins.KeyError"])
        self.assertEqual(result.attempts, 3)
        self.assertGreater(result.last_attempted_at, result.started_at)

    async def test_a_running_task_shows_its_arguments_and_its_worker(self) -> None:
        shop.open_gate.clear()
        result = await shop.wait_for_gate.aenqueue()
        with_arguments = await shop.echo.using(run_after=soon(60)).aenqueue("later")
        async with working() as worker:
            found = await running(result)
            self.assertEqual((found.worker_ids, found.finished_at), ([worker.name], None))
            later = await default_task_backend.aget_result(with_arguments.id)
            self.assertEqual((later.status, later.args), (TaskResultStatus.READY, ["later"]))
            self.assertEqual(later.task, with_arguments.task)
            shop.open_gate.set()
            await ended(result)
        self.assertIsNone(result.return_value)

    async def test_the_arguments_of_a_running_task_are_read_from_its_message(self) -> None:
        shop.open_gate.clear()
        result = await shop.wait_with.aenqueue("here", named=7)
        async with working():
            found = await running(result)
            shop.open_gate.set()
            await ended(result)
        self.assertEqual((found.args, found.kwargs), (["here"], {"named": 7}))

    async def test_the_context_knows_the_job(self) -> None:
        result = await shop.tell_context.aenqueue(3)
        async with working():
            await ended(result)
        self.assertEqual(result.return_value, [result.id, 1, [3], "RUNNING", result.id, 1])

    async def test_values_are_passed_as_json_whatever_the_annotation(self) -> None:
        result, wrong = await shop.at_noon.aenqueue("2030-01-01"), await shop.at_noon.aenqueue()
        dropped = await shop.return_object.aenqueue()
        async with working():
            for one in (result, wrong, dropped):
                await ended(one)
        self.assertEqual(result.return_value, "str")
        self.assertIs(wrong.errors[0].exception_class, TypeError)
        self.assertIs(dropped.errors[0].exception_class, TypeError)

    async def test_signals_are_sent_where_a_task_is_enqueued_and_where_it_runs(self) -> None:
        async with signals() as seen:
            good = await shop.echo.aenqueue()
            async with working():
                await ended(good)
                bad = await shop.decline.aenqueue("no")
                await ended(bad)
        self.assertEqual(
            seen,
            [
                ("enqueued", "READY"),
                ("started", "RUNNING"),
                ("finished", "SUCCESSFUL"),
                ("enqueued", "READY"),
                ("started", "RUNNING"),
                ("finished", "FAILED"),
            ],
        )

    async def test_a_cancelled_task_has_failed(self) -> None:
        result = await shop.echo.aenqueue()
        await app.client.jobs.cancel(result.id)
        await result.arefresh()
        self.assertEqual(result.status, TaskResultStatus.FAILED)
        self.assertEqual([one.exception_class for one in result.errors], [jsq.JobCancelled])
        self.assertIsNotNone(result.finished_at)
        self.assertEqual(result.attempts, 0)
        await app.close()

    async def test_the_result_of_an_unknown_job_or_of_another_task_does_not_exist(self) -> None:
        other = await pack.submit(1)
        echo = await shop.echo.aenqueue()
        for id in ("nothing", "", 123, "x" * 300, other.id):
            with self.subTest(id), self.assertRaises(TaskResultDoesNotExist):
                await default_task_backend.aget_result(id)
            with self.subTest(id), self.assertRaises(TaskResultDoesNotExist):
                default_task_backend.get_result(id)
        with self.assertRaises(TaskResultMismatch):
            await shop.rename.aget_result(echo.id)
        await app.close()

    async def test_a_job_that_no_backend_has_submitted_has_a_result_too(self) -> None:
        job = await app.client.task(shop.echo.module_path).options(queue="mail").submit("by name")
        async with signals() as seen, working():
            await job.wait(20)
        result = await shop.echo.aget_result(job.id)
        self.assertEqual((result.status, result.args), (TaskResultStatus.SUCCESSFUL, ["by name"]))
        self.assertEqual((result.task, result.backend), (shop.echo, "default"))
        self.assertEqual([name for name, _ in seen], ["started", "finished"])

    @override_settings(USE_TZ=False)
    async def test_without_time_zones_all_times_are_naive(self) -> None:
        result = await shop.echo.using(run_after=datetime.now() - timedelta(seconds=9)).aenqueue()
        async with working():
            await ended(result)
        found = await default_task_backend.aget_result(result.id)
        self.assertEqual(found, result)
        times = [found.task.run_after, found.enqueued_at, found.started_at, found.finished_at]
        self.assertEqual([one.tzinfo for one in times], [None] * 4)
        self.assertLess(abs(found.finished_at - datetime.now()), timedelta(seconds=60))
        self.assertEqual(sorted(times), times)


class EnqueueTests(BackendTestCase):
    """The jobs of enqueued tasks."""

    def test_priorities_map_to_three_levels(self) -> None:
        for priority, level in ((100, "high"), (1, "high"), (0, "normal"), (-1, "low"), (-100, "low")):
            result = shop.rename.using(priority=priority).enqueue(1, "x")
            waiting = app.client.blocking.jobs.get(result.id)
            self.assertEqual(default_task_backend.get_result(result.id).task.priority, priority)
            before = app.client.blocking.queues.get("default").waiting[level]
            app.client.blocking.jobs.cancel(waiting.id)
            self.assertEqual(app.client.blocking.queues.get("default").waiting[level], before - 1)

    def test_run_after_is_the_earliest_start(self) -> None:
        result = shop.rename.using(run_after=soon(3600)).enqueue(1, "x")
        record = app.client.blocking.jobs.get(result.id)
        self.assertEqual(record.state, "scheduled")
        assert record.due is not None
        self.assertLess(abs(record.due - soon(3600)), timedelta(seconds=30))
        self.assertEqual(default_task_backend.get_result(result.id).task, result.task)
        with self.assertRaisesMessage(InvalidTask, "at"):
            shop.rename.using(run_after=soon(86_400 * 5_000)).enqueue(1, "x")

    def test_with_enqueue_on_commit_a_rollback_enqueues_nothing(self) -> None:
        later = shop.rename.using(backend="later")
        with self.assertRaises(RuntimeError), transaction.atomic():
            lost = later.enqueue(1, "x")
            raise RuntimeError
        with transaction.atomic():
            result = later.enqueue(1, "x")
            self.assertIsNone(result.enqueued_at)
            with self.assertRaises(TaskResultDoesNotExist):
                result.refresh()
        self.assertIsNotNone(result.enqueued_at)
        self.assertEqual(later.get_result(result.id), result)
        with self.assertRaises(TaskResultDoesNotExist):
            later.get_result(lost.id)
        self.assertIsNotNone(later.enqueue(1, "x").enqueued_at)

    async def test_with_enqueue_on_commit_aenqueue_waits_too(self) -> None:
        later = shop.rename.using(backend="later")
        atomic = transaction.atomic()
        await sync_to_async(atomic.__enter__)()
        result = await later.aenqueue(1, "x")
        self.assertIsNone(result.enqueued_at)
        await sync_to_async(atomic.__exit__)(None, None, None)
        self.assertEqual((await later.aget_result(result.id)).status, TaskResultStatus.READY)

    def test_a_function_that_a_worker_would_not_find_is_refused(self) -> None:
        with self.assertRaisesMessage(InvalidTask, "django_tasks.plain is not a task"):
            shop.hidden.enqueue()

    async def test_a_task_of_another_backend_is_sent_here(self) -> None:
        result = await shop.elsewhere.using(backend="default").aenqueue()
        async with working():
            await ended(result)
        self.assertEqual(result.return_value, 5)

    def test_the_worker_lists_the_tasks_and_queues_of_its_backends(self) -> None:
        app.load()
        self.assertIn(shop.rename.module_path, app.tasks)
        self.assertNotIn(f"{shop.__name__}.plain", app.tasks)
        self.assertIn("mail", app.queues)

    def test_options_of_a_task_are_those_of_its_backend_unless_it_sets_them(self) -> None:
        backends = {"default": {"BACKEND": BACKEND, "OPTIONS": {"retries": 2, "timeout": 9}}}
        with override_settings(TASKS=backends):
            self.assertEqual(task_backends["default"].task_options(shop.rename), {"retries": 2, "timeout": 9})
            own = JsqTask(func=shop.rename.func, retries=0)
            self.assertEqual(task_backends["default"].task_options(own), {"retries": 0, "timeout": 9})
            with self.assertRaisesMessage(InvalidTask, "retries"):
                JsqTask(func=shop.rename.func, retries=-1)

    def test_a_queue_that_jsq_does_not_have_is_refused(self) -> None:
        with override_settings(TASKS={"default": {"BACKEND": BACKEND, "QUEUES": []}}):
            with self.assertRaisesMessage(InvalidTask, "dead"):
                task(queue_name="dead")(shop.rename.func)
            self.assertEqual(shop.rename.using(queue_name="any").queue_name, "any")

    def test_the_check_names_wrong_settings(self) -> None:
        for wrong, text in (
            ({"OPTIONS": {"retry": 3}}, "unknown option 'retry'"),
            ({"QUEUES": ["dead"]}, "jsq.E003"),
            ({"OPTIONS": {"namespace": "other"}}, "a project has one App"),
        ):
            default = {"BACKEND": BACKEND, **wrong}
            more = {"BACKEND": BACKEND, "OPTIONS": {"namespace": "one"}}
            with (
                self.subTest(wrong),
                override_settings(TASKS={"default": default, "more": more}),
                self.assertRaisesMessage(SystemCheckError, text),
            ):
                call_command("check")

    def test_options_may_name_the_server_and_the_namespace(self) -> None:
        options = {"url": "nats://there:4222", "namespace": "shop"}
        with override_settings(TASKS={"default": {"BACKEND": BACKEND, "OPTIONS": options}}):
            there = task_backends["default"].app
            self.assertEqual((there.namespace, there.client.login.url), ("shop", "nats://there:4222"))


def soon(seconds: float) -> datetime:
    """A time some seconds from now."""
    return datetime.now(UTC) + timedelta(seconds=seconds)
