"""The parts that the integrations of Starlette, FastAPI and Litestar share; this module needs none of them.

`jsq_lifespan` connects an App for the life of a server. `JobStatus` answers requests for the state of a job,
as JSON or as a stream of server-sent events.
"""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict

from jsq.app import App
from jsq.client.handle import JobHandle
from jsq.embedded import EmbeddedWorker
from jsq.errors import BadName, BrokerUnavailable, JobNotFound, JsqError, UsageError, WrongState
from jsq.lifespan import read_state
from jsq.model.durations import Duration, seconds
from jsq.model.job import JobRecord
from jsq.settings import WorkerArguments

log = logging.getLogger("jsq.worker")

ServerLifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]
"""A lifespan of a web application, in the form of Starlette, FastAPI and Litestar."""

JobRule: TypeAlias = Callable[[JobRecord], bool | Awaitable[bool]]
"""Decides whether the client of one request may see a job."""

READ_LIMIT = 5.0
"""Seconds that a request waits for the record of a job; then the answer is 503."""

RETRY_AFTER = "5"
"""Seconds after which a client should repeat a request that was answered with 503."""

HEARTBEAT = 15.0
"""Seconds without an event after which a comment keeps the stream open; proxies often allow 30 or 60 s."""


# -- lifespan ----------------------------------------------------------------------------------------------


class WebWorker(WorkerArguments, total=False):
    """The settings of a worker in a web process: its queues, and those of `WorkerSettings`."""

    queues: Sequence[str] | Mapping[str, int] | None


def jsq_lifespan(
    app: App,
    lifespan: ServerLifespan | None = None,
    *,
    worker: bool | WebWorker = False,
    connect: bool = True,
) -> Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]:
    """A lifespan that connects an App before the first request, and disconnects it after the last one.

    It closes the connection of this event loop. That of blocking calls is closed at the end of the process.

    `lifespan` is one of your own. It is entered after the App has connected, and left before it disconnects.
    Its state is kept. `worker=True` runs a worker in this process, inside both; a dictionary gives its
    settings: `worker={"concurrency": 4, "queues": ["mail"]}`. Without `connect`, the first submit
    connects, so the server starts also while NATS is out of reach.

    A worker that fails does not end the server: the error is logged as `worker failed`, `is_ready` of the
    worker is false, and the error is raised at the end of the lifespan.
    """

    @asynccontextmanager
    async def running(server: Any) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(app.client.connection.disconnect)
            if connect:
                await app.connect()
            server.state.jsq = app
            yielded = None if lifespan is None else await stack.enter_async_context(lifespan(server))
            if worker is not False:
                server.state.jsq_worker = await start_worker(app, {} if worker is True else worker, stack)
            yield {**read_state(yielded), "jsq": app}

    return running


async def start_worker(app: App, settings: WebWorker, stack: AsyncExitStack) -> EmbeddedWorker:
    """Start a worker that the stack stops. It is entered in another task, which its failure cannot cancel."""
    worker = await asyncio.create_task(app.working(**settings).__aenter__())
    stack.push_async_exit(worker)
    watching = asyncio.create_task(log_failure(worker))
    stack.callback(watching.cancel)
    return worker


async def log_failure(worker: EmbeddedWorker) -> None:
    """Log the error of a worker when it fails."""
    try:
        await worker.wait()
    except Exception as error:  # the worker may raise what a lifespan of the user raises
        log.error("worker failed", exc_info=error, extra={"worker": worker.name})


def app_of(*states: Any) -> App:
    """The App that a lifespan has stored in one of the states. Raises `UsageError`."""
    found = next((one for state in states if (one := getattr(state, "jsq", None)) is not None), None)
    if not isinstance(found, App):
        raise UsageError("the server has no App: give it lifespan=jsq_lifespan(app), or set server.state.jsq")
    return found


# -- the status of a job -----------------------------------------------------------------------------------


def allow_anyone(request: object, job: JobRecord) -> bool:
    """The rule by which everyone who knows the id of a job may see it."""
    return True


class JobView(BaseModel):
    """The public state of a job. `final` means that it has ended; `text` is that of its last progress."""

    model_config = ConfigDict(frozen=True)

    id: str
    state: str
    final: bool
    attempt: int
    progress: float | None
    text: str
    reason: str
    submitted: datetime | None
    started: datetime | None
    ended: datetime | None


class JobResultView(JobView):
    """The same with the result of the job, or with the error of its last attempt."""

    result: Any = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class StatusAnswer:
    """An answer to a request, which the integration of a framework turns into a response of its own."""

    body: bytes | AsyncIterator[bytes]
    status: int = 200
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


NO_STORE = {"Cache-Control": "no-store"}
STREAM_HEADERS = NO_STORE | {"X-Accel-Buffering": "no"}
"""For nginx, which would otherwise hold events back until its buffer is full."""


class JobStatus:
    """Answers requests for the state of the jobs of an App.

    A job that a rule hides is answered like one that does not exist. With `include_result` the answers have
    results and errors of jobs. `heartbeat` is the time between two comments in a silent stream. Raises
    `BadOption`.
    """

    def __init__(self, app: App, *, include_result: bool = False, heartbeat: Duration = HEARTBEAT) -> None:
        self._app = app
        self._include_result = include_result
        self._heartbeat = seconds("heartbeat", heartbeat, least=0.01) or HEARTBEAT

    async def show(self, id: str, rule: JobRule) -> StatusAnswer:
        """The state of a job as JSON."""
        found = await self._find(id, rule)
        return found if isinstance(found, StatusAnswer) else StatusAnswer(self._json(found), headers=NO_STORE)

    async def stream(self, id: str, rule: JobRule, last_event: str | None) -> StatusAnswer:
        """The state of a job as server-sent events: the state now, then each change until the job ends.

        A client that reconnects after the last event is answered with 204, which ends its attempts.
        """
        found = await self._find(id, rule)
        if isinstance(found, StatusAnswer):
            return found
        if found.ended and last_event is not None and last_event == str(found.sequence):
            return StatusAnswer(b"", 204, headers=NO_STORE)
        body = self._events(self._app.client.jobs.handle(id, found.queue))
        return StatusAnswer(body, media_type="text/event-stream", headers=STREAM_HEADERS)

    async def cancel(self, id: str, rule: JobRule) -> StatusAnswer:
        """Cancel a job, and answer with its state; 409 if it has ended with another outcome."""
        found = await self._find(id, rule)
        if isinstance(found, StatusAnswer):
            return found
        try:
            record = await self._app.client.jobs.handle(id, found.queue).cancel()
        except WrongState:
            return refusal(409, "the job has ended")
        except BrokerUnavailable:
            return unavailable()
        return StatusAnswer(self._json(record), headers=NO_STORE)

    async def _find(self, id: str, rule: JobRule) -> JobRecord | StatusAnswer:
        try:
            async with asyncio.timeout(READ_LIMIT):
                found = await self._app.client.jobs.get(id)
        except (JobNotFound, BadName):
            return refusal(404, "no such job")
        except (BrokerUnavailable, TimeoutError):
            return unavailable()
        allowed = rule(found)
        if inspect.isawaitable(allowed):
            allowed = await allowed
        return found if allowed is True else refusal(404, "no such job")

    def _json(self, record: JobRecord) -> bytes:
        values = {name: getattr(record, name, None) for name in JobResultView.model_fields}
        values["final"] = record.ended is not None
        kind = JobResultView if self._include_result else JobView
        return kind.model_validate(values).model_dump_json().encode()

    async def _events(self, job: JobHandle[Any]) -> AsyncIterator[bytes]:
        """The bytes of the stream. The subscription ends with this generator, also if a client leaves."""
        feed = RecordFeed(job)
        try:
            while (found := await feed.next(self._heartbeat)) is not None:
                for record in found:
                    yield b"id: %d\ndata: %b\n\n" % (record.sequence, self._json(record))
                if not found:
                    yield b": heartbeat\n\n"
        finally:
            feed.close()


class RecordFeed:
    """Follows a job in a task of its own, so that a stream can end at any moment.

    If the reader is slow, a later report of progress replaces an earlier one.
    """

    def __init__(self, job: JobHandle[Any]) -> None:
        self._waiting: list[JobRecord] = []
        self._changed = asyncio.Event()
        self._following = asyncio.create_task(self._follow(job))
        self._following.add_done_callback(lambda _: self._changed.set())

    async def next(self, limit: float) -> list[JobRecord] | None:
        """The records since the last call; empty after `limit` seconds without one, None at the end."""
        if not self._waiting and not self._following.done():
            with suppress(TimeoutError):
                async with asyncio.timeout(limit):
                    await self._changed.wait()
        found, self._waiting = self._waiting, []
        self._changed.clear()
        return None if not found and self._following.done() else found

    def close(self) -> None:
        """End the subscription. It ends a moment later, in its own task."""
        self._following.cancel()

    async def _follow(self, job: JobHandle[Any]) -> None:
        with suppress(JsqError):  # the stream ends; a client that reconnects gets the reason as a status
            async for record in job.follow():
                if self._waiting and self._waiting[-1].state == record.state:
                    self._waiting.pop()
                self._waiting.append(record)
                self._changed.set()


def refusal(status: int, detail: str, headers: Mapping[str, str] = NO_STORE) -> StatusAnswer:
    """An answer without a job. Its JSON has the form of FastAPI's errors."""
    return StatusAnswer(b'{"detail":"%b"}' % detail.encode(), status, headers=headers)


def unavailable() -> StatusAnswer:
    """The answer while NATS is out of reach."""
    detail = "the state of jobs is not available now"
    return refusal(503, detail, NO_STORE | {"Retry-After": RETRY_AFTER})
