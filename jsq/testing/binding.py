"""Binds an App to the server and the namespace of one test, and leaves nothing behind.

An App is a module-level object, and tasks, schedules and handles refer to its connection. So the App keeps
its connection, and the connection uses another server and another namespace during the test.
"""

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

from jsq.app import App
from jsq.broker import Broker
from jsq.client.client import Client
from jsq.client.connection import Connection
from jsq.discovery import import_named_module
from jsq.errors import UsageError
from jsq.settings import TEST_NAMESPACE, TEST_URL
from jsq.testing.recording import record_submits
from jsq.testing.servers import JsqServer, environment
from jsq.testing.submits import Submits
from jsq.testing.worker import JsqWorker

Bindable: TypeAlias = App | Client

CLOSE_WAIT_SECONDS = 10.0
"""Seconds for which the end of a test waits until another thread has closed a connection."""


class Binding:
    """The Apps and Clients of one test, which use a namespace of its own.

    `item` is the test as pytest knows it. If it is a coroutine function, the context managers that `during`
    makes are entered around its code, on its event loop. `worker` is that of the fixture `jsq_worker`.
    """

    def __init__(self, apps: Sequence[Bindable], server: JsqServer, item: object = None) -> None:
        self.server = server
        self.is_async = inspect.iscoroutinefunction(getattr(item, "obj", None))
        self._item: Any = item
        self.namespace = server.new_namespace()
        self.submits = Submits()
        self.worker: JsqWorker | None = None
        self.during: list[Callable[[], AbstractAsyncContextManager[object]]] = []
        self._apps = apps
        self._guards: list[tuple[asyncio.AbstractEventLoop, AsyncIterator[None]]] = []

    @property
    def app(self) -> App:
        """The App of the test: the first one that was named."""
        found = self._apps[0]
        assert isinstance(found, App), "read_apps has checked it"
        return found

    @contextlib.contextmanager
    def bound(self) -> Iterator[None]:
        """Bind the Apps until the end of the block; then close their connections, and delete the streams."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.server.remove_namespace, self.namespace)
            variables = {TEST_URL: self.server.url, TEST_NAMESPACE: self.namespace}
            stack.enter_context(environment(variables))
            for app in self._apps:
                stack.enter_context(self._bind(app))
            stack.enter_context(self._around_test())
            yield

    @contextlib.contextmanager
    def _around_test(self) -> Iterator[None]:
        """Run the function of the test inside `during`, and close its connections on its event loop."""
        item = self._item
        if not self.is_async:
            yield
            return
        function = item.obj

        @functools.wraps(function)
        async def inside(*args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(self.close_here)
                for enter in self.during:
                    await stack.enter_async_context(enter())
                await function(*args, **kwargs)

        item.obj = inside
        try:
            yield
        finally:
            item.obj = function

    async def close_here(self) -> None:
        """Close the connections that were opened on the running event loop."""
        loop = asyncio.get_running_loop()
        for app in self._apps:
            await connection_of(app).disconnect()
        for one, guard in self._guards:
            if one is loop:
                await guard.aclose()  # type: ignore[attr-defined]  # it is a generator
        self._guards = [(one, guard) for one, guard in self._guards if one is not loop]

    # -- inside ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _bind(self, app: Bindable) -> Iterator[None]:
        connection = connection_of(app)
        forget_templates(app)
        with connection.bound(self.server.login, self.namespace), restored(app, self.namespace):
            connection.opened = self._opened
            try:
                yield
            finally:
                self._close_all(connection)
                del connection.opened
        forget_templates(app)

    async def _opened(self, broker: Broker) -> None:
        """Record the submits of a broker, and close it with its event loop at the latest."""
        record_submits(broker, self.submits)
        guard = closed_with_loop(broker)
        await anext(guard)
        self._guards.append((asyncio.get_running_loop(), guard))

    def _close_all(self, connection: Connection) -> None:
        """Close the brokers of all event loops. Needs no running event loop."""
        for loop in connection.open_loops:
            if loop.is_running():
                asyncio.run_coroutine_threadsafe(self.close_here(), loop).result(CLOSE_WAIT_SECONDS)
            else:
                loop.run_until_complete(self.close_here())
        connection.portal.stop()


async def closed_with_loop(broker: Broker) -> AsyncIterator[None]:
    """Close a broker when its event loop ends.

    A loop that ends closes its open asynchronous generators: a runner of tests gives no other sign.
    """
    try:
        yield
    finally:
        await broker.close()


def connection_of(app: Bindable) -> Connection:
    return app.client.connection if isinstance(app, App) else app.connection


@contextlib.contextmanager
def restored(app: Bindable, namespace: str) -> Iterator[None]:
    """Set the namespace of an App; at the end undo that, and what was declared or overridden since."""
    if not isinstance(app, App):
        yield
        return
    before, app.namespace = app.namespace, namespace
    with contextlib.ExitStack() as stack:
        for mapping in (app.tasks, app.aliases, app.declared, app.schedules):
            stack.enter_context(unchanged(mapping))
        for held in (app.queue_middleware, app.overrides, app.written_schedules):
            stack.enter_context(unchanged(held))
        for functions in (app.lifespan.starts, app.lifespan.stops):
            stack.enter_context(unchanged(functions))
        stack.callback(setattr, app, "namespace", before)
        yield


@contextlib.contextmanager
def unchanged(held: Any) -> Iterator[None]:
    """Restore the content of a list or a dictionary at the end of the block."""
    before = held.copy()
    try:
        yield
    finally:
        held.clear()
        (held.extend if isinstance(held, list) else held.update)(before)


def forget_templates(app: Bindable) -> None:
    """Have the tasks of an App make their messages again: these name the namespace."""
    for task in app.tasks.values() if isinstance(app, App) else ():
        task.forget_template()


def read_apps(given: object) -> list[Bindable]:
    """The Apps and Clients that a test names, as objects or as paths such as `shop.tasks:app`.

    The first one must be an App. Raises `UsageError`.
    """
    listed = list(given) if isinstance(given, list | tuple) else [given]
    found: list[Any] = [load_bindable(one) if isinstance(one, str) else one for one in listed if one]
    if not found:
        raise UsageError(
            "jsq_app needs an App: set jsq_app = shop.tasks:app in the pytest options, or mark the test with "
            '@pytest.mark.jsq(app="shop.tasks:app")'
        )
    for one in found:
        if not isinstance(one, App | Client):
            raise UsageError(f"jsq_app must name an App or a Client, got {type(one).__name__}")
    if not isinstance(found[0], App):
        raise UsageError("the first object that jsq_app names must be an App, got a Client")
    for one in found:
        if isinstance(one, App):
            one.load()
    return found


def load_bindable(path: str) -> Any:
    """The object at `module:name`. Raises `UsageError`."""
    name, _, attribute = path.strip().partition(":")
    found: Any = import_named_module(name)
    for part in (attribute or "app").split("."):
        found = getattr(found, part, None)
    if found is None:
        raise UsageError(f"module {name} has no {attribute or 'app'}; write jsq_app = module:app")
    return found
