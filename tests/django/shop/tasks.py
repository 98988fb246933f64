"""The tasks of the app, on the App of the project."""

import os
from typing import Any

import django
from asgiref.sync import sync_to_async
from django.db import connection

from jsq import Context
from jsq.contrib.django import app
from tests.django.shop.models import Order

if django.VERSION >= (6,):
    from tests.django.shop import django_tasks as django_tasks

held: list[Any] = []
"""The connections that tasks have used, in a worker of this process."""


@app.task
def pack(order: int) -> str:
    """Change an order; keeps the connection of its thread."""
    found = Order.objects.get(pk=order)
    found.state = "packed"
    found.save()
    held.append(connections_of_thread())
    return str(found.name)


@app.task
async def count() -> int:
    """Count the orders from a coroutine function."""
    held.append(await sync_to_async(connections_of_thread)())
    return int(await Order.objects.acount())


@app.task(executor="process")
def count_in_child() -> tuple[int, int, bool]:
    """Count the orders in a child process; returns its process, the number, and whether it was connected."""
    was_connected = connection.connection is not None
    return os.getpid(), Order.objects.count(), was_connected


@app.task(retries=0)
def fail(ctx: Context, text: str) -> None:
    """Fail."""
    raise ValueError(f"{text} in attempt {ctx.attempt}")


def connections_of_thread() -> object:
    """The connection of this thread, behind the proxy."""
    connection.ensure_connection()
    return connection.connection is not None and connection._connections[connection._alias]
