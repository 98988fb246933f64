"""Starlette: a lifespan that connects an App, and routes for the state and progress of a job.

`jsq.contrib.fastapi` has the same for FastAPI.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

from jsq.app import App
from jsq.client.client import Client
from jsq.contrib.asgi import HEARTBEAT, JobStatus, StatusAnswer, WebWorker, allow_anyone, app_of, jsq_lifespan
from jsq.embedded import EmbeddedWorker
from jsq.model.durations import Duration
from jsq.model.job import JobRecord

try:
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route
except ImportError:
    raise ImportError("jsq.contrib.starlette needs one more package: pip install starlette") from None

__all__ = [
    "AuthorizeRequest",
    "WebWorker",
    "allow_anyone",
    "get_app",
    "get_client",
    "get_worker",
    "jsq_lifespan",
    "status_routes",
]

AuthorizeRequest: TypeAlias = Callable[[Request, JobRecord], bool | Awaitable[bool]]
"""Decides whether a request may see a job, or cancel it if the method is DELETE."""


def get_app(connection: HTTPConnection) -> App:
    """The App of the server that handles a request. Raises `UsageError` without `jsq_lifespan`."""
    return app_of(connection.state, getattr(connection.scope.get("app"), "state", None))


def get_client(connection: HTTPConnection) -> Client:
    """The client of that App: to submit jobs by the names of their tasks, and to manage them."""
    return get_app(connection).client


def get_worker(connection: HTTPConnection) -> EmbeddedWorker | None:
    """The worker in this process; None without `jsq_lifespan(app, worker=True)`."""
    found = getattr(getattr(connection.scope.get("app"), "state", None), "jsq_worker", None)
    return found if isinstance(found, EmbeddedWorker) else None


def status_routes(
    app: App,
    prefix: str = "/jobs",
    *,
    authorize: AuthorizeRequest,
    include_result: bool = False,
    cancel: bool = False,
    heartbeat: Duration = HEARTBEAT,
) -> list[Route]:
    """Routes for the state of a job, `GET /jobs/{id}`, and for its events, `GET /jobs/{id}/events`.

    `authorize` decides for each request and job; it has no default, because an id may be guessed.
    `allow_anyone` shows every job. A job that is not shown is answered with 404. With `include_result` the
    answers have the results and the errors of jobs. With `cancel` there is `DELETE /jobs/{id}`.
    `heartbeat` is the time between two comments in a silent stream. Raises `BadOption`.
    """
    status = JobStatus(app, include_result=include_result, heartbeat=heartbeat)

    async def job_status(request: Request) -> Response:
        id, rule = request.path_params["id"], partial(authorize, request)
        return response_of(await (status.cancel if request.method == "DELETE" else status.show)(id, rule))

    async def job_events(request: Request) -> Response:
        id, rule = request.path_params["id"], partial(authorize, request)
        return response_of(await status.stream(id, rule, request.headers.get("last-event-id")))

    methods = ["GET", "DELETE"] if cancel else ["GET"]
    state = Route(f"{prefix}/{{id}}", job_status, methods=methods, name="job_status")
    events = Route(f"{prefix}/{{id}}/events", job_events, name="job_events")
    events.methods = {"GET"}  # a HEAD, which Starlette adds, would wait for the end of the job
    return [state, events]


def response_of(answer: StatusAnswer) -> Response:
    """The response of an answer."""
    headers = dict(answer.headers)
    if isinstance(answer.body, bytes):
        return Response(answer.body, answer.status, headers, answer.media_type)
    return StreamingResponse(answer.body, answer.status, headers, answer.media_type)
