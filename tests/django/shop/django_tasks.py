"""Tasks of Django 6. The module `tasks` of the app imports them."""

import threading
from datetime import datetime
from typing import Any

from django.tasks import task

import jsq
from tests.django.shop.models import Order

open_gate = threading.Event()


class Declined(Exception):
    """An error of the app."""


@task
def rename(order: int, name: str) -> str:
    """Use the ORM."""
    Order.objects.filter(pk=order).update(name=name)
    return name


@task(queue_name="mail", priority=10)
async def echo(*args: Any, **kwargs: Any) -> list[Any]:
    """Return the arguments."""
    return [list(args), kwargs]


@task
def decline(reason: str) -> None:
    """Fail."""
    raise Declined(reason)


@task(takes_context=True)
def tell_context(context: Any, more: int = 0) -> list[Any]:
    """Return what the context knows."""
    result = context.task_result
    job = jsq.current_job()
    return [result.id, context.attempt, result.args, result.status, job.id, job.attempt]


@task
def wait_for_gate() -> None:
    """Run until the test opens the gate."""
    jsq.current_job().progress(0.5, "waiting")
    open_gate.wait(20)


@task(takes_context=True)
def fail_twice(context: Any) -> list[Any]:
    """Fail in the first two attempts, with different errors."""
    if context.attempt == 1:
        raise Declined("first")
    if context.attempt == 2:
        raise KeyError("second")
    result = context.task_result
    return [context.attempt, len(result.worker_ids), [one.exception_class_path for one in result.errors]]


@task
def at_noon(moment: str) -> str:
    """Take an annotated argument as it is."""
    return type(moment).__name__


@task(backend="immediate")
def elsewhere() -> int:
    """A task of another backend."""
    return 5


@task
def return_object() -> object:
    """Return what is no JSON."""
    return datetime.now


def plain() -> None:
    """A function that is no task under its name."""


hidden = task(plain)


@task
def wait_with(*args: Any, **kwargs: Any) -> None:
    """As `wait_for_gate`, with arguments."""
    open_gate.wait(20)
