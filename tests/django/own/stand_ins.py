"""`JsqBackend` in place of the two backends of Django, and the worker of the second one."""

import asyncio
import functools
import threading
from collections.abc import Sequence
from typing import Any

from asgiref.sync import sync_to_async
from django.tasks.exceptions import TaskResultDoesNotExist
from django.tasks.signals import task_finished

from jsq import Context, Middleware
from jsq.contrib.django import JsqBackend
from jsq.contrib.django.project import DjangoApp, build_app, project_app
from jsq.middleware import CallNext
from jsq.worker import Worker

gate = threading.Event()
finished: set[str] = set()
changed = threading.Condition()


class Gate(Middleware):
    """Holds a task until the signal of its enqueue is sent: the tests compare the order of log lines."""

    async def around(self, ctx: Context, call: CallNext) -> Any:
        await asyncio.to_thread(gate.wait)
        return await call()


class WithoutWorker(JsqBackend):
    """As the dummy backend: tasks wait. `results` and `clear` are those of the dummy backend."""

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self.before = set(self._ids())

    @property
    def results(self) -> Sequence[Any]:
        """The results of this test, the oldest first."""
        return [self.get_result(id) for id in self._ids() if id not in self.before]

    def get_result(self, result_id: str) -> Any:
        """A result; one that was cleared does not exist."""
        if result_id in self.before:
            raise TaskResultDoesNotExist(result_id)
        return super().get_result(result_id)

    def clear(self) -> None:
        """Forget the jobs so far."""
        self.before = set(self._ids())

    def _ids(self) -> list[str]:
        """The ids of all jobs; the tests ask for them on an event loop too."""
        client = self.app.client
        return [job.id for job in client.connection.portal.run(client.jobs.list(limit=None))]


class WithWorker(JsqBackend):
    """As the immediate backend: `enqueue` waits for the end of the task."""

    @property
    def app(self) -> DjangoApp:
        """An App with a namespace of its own, so that the worker takes no task of the other backend."""
        return worker_app()

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Submit a task, and wait until it has ended."""
        gate.clear()
        try:
            result = super().enqueue(task, args, kwargs)
        finally:
            gate.set()
        with changed:
            assert changed.wait_for(lambda: result.id in finished, 20), "the task has not ended"
        result.refresh()
        return result

    async def aenqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """As `enqueue`."""
        return await sync_to_async(self.enqueue, thread_sensitive=False)(task, args, kwargs)


@functools.cache
def worker_app() -> DjangoApp:
    """The App of the worker."""
    return build_app({"namespace": f"{project_app().namespace}-worker", "middleware": [Gate()]})


def note_finished(sender: Any, task_result: Any, **_: Any) -> None:
    """Wake the caller that waits for a task."""
    if sender is WithWorker:
        with changed:
            finished.add(task_result.id)
            changed.notify_all()


class WorkerThread:
    """A worker in a thread of this process."""

    def __init__(self) -> None:
        self.worker = Worker(worker_app(), queues=["default", "queue-1"])
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        """Run the worker until it is stopped."""

        async def run() -> None:
            self.loop = asyncio.get_running_loop()
            await self.worker.run()
            await self.worker.app.close()

        asyncio.run(run())

    def __enter__(self) -> None:
        task_finished.connect(note_finished)
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        gate.set()
        self.loop.call_soon_threadsafe(self.worker.stop)
        self.thread.join(30)
