"""Awaits the coroutines, futures and other awaitables that plain functions return.

A decorator that is a plain function hides the coroutine function below it. Its call runs in a thread, because
it may as well block, and what it returns is awaited on the loop of the worker, which cancels it at a timeout.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeGuard, TypeVar

from jsq.errors import BadResult
from jsq.executors.base import FunctionEnd, Raised, Returned
from jsq.model.outcome import Failed, Fault, Outcome, success_without_result

T = TypeVar("T")


def is_awaitable(value: object) -> TypeGuard[Awaitable[Any]]:
    """Whether a value is to be awaited. Unlike `inspect.isawaitable`, this asks no abstract class."""
    return hasattr(type(value), "__await__")


async def awaited(value: Awaitable[T]) -> T:
    """Await a value, in a coroutine."""
    return await value


async def end_of(value: Awaitable[Any]) -> FunctionEnd:
    """Await a value, and return how that ended."""
    try:
        return Returned(await value)
    except BaseException as error:  # a user's coroutine may raise anything
        return Raised(error)


def call_with_loop(call: Callable[[], Any]) -> Any:
    """Call a function that may make a future in this thread, which needs an event loop; return its result.

    A coroutine is returned as it is, because it is not bound to this loop.
    """
    with asyncio.Runner() as runner:
        runner.get_loop()  # becomes the event loop of the thread, but does not run: the function may block
        value = call()
        return runner.run(awaited(value)) if asyncio.isfuture(value) else value


def close_awaitable(value: object) -> None:
    """Close a coroutine that nothing will await, which avoids Python's warning."""
    if inspect.iscoroutine(value):
        value.close()


def end_without_result(name: str, value: object, error: BadResult) -> Outcome:
    """The outcome of a function whose returned value cannot be stored: a success without it.

    A coroutine function that returns an awaitable has failed, because it has left its work undone.
    """
    if not is_awaitable(value):
        return success_without_result(error)
    close_awaitable(value)
    text = f"{name} returned a {type(value).__name__} that it did not await; write `return await ...`"
    return Failed("bad_result", Fault(f"BadResult: {text}"))
