"""Database connections around jobs: none that is broken or too old is used, and none stays open unnoticed.

Django does the same around requests. A connection belongs to the thread that opened it, so it is checked in
the thread of the job.
"""

from collections.abc import Callable
from typing import Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.db import close_old_connections, connections, reset_queries

from jsq.context import Context
from jsq.middleware import CallNext, Middleware


class DatabaseConnections(Middleware):
    """Closes the connections of Django that are broken, or older than `CONN_MAX_AGE`, around each job.

    The App of `jsq.contrib.django` has it already. Add it to an App of your own that uses Django's ORM. The
    synchronous calls of a coroutine function (`sync_to_async`, `aget()`, ...) run in a thread of the job, and
    their connections end with the job.
    """

    async def around(self, ctx: Context, call: CallNext) -> Any:
        async with ThreadSensitiveContext() as threads:
            try:
                return await call()
            finally:
                if threads in SyncToAsync.context_to_thread_executor:
                    await sync_to_async(connections.close_all)()

    def around_sync(self, ctx: Context, call: Callable[[], Any]) -> Any:
        return with_connections(call)


def with_connections(call: Callable[[], Any]) -> Any:
    """Make a call in this thread between two checks of its connections; returns its result."""
    reset_queries()
    close_old_connections()
    try:
        return call()
    finally:
        close_old_connections()
