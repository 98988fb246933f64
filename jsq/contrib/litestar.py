"""Litestar: dependencies for the App and its client, and a router for the state and progress of a job.

The lifespan is the one that Starlette uses: `Litestar(lifespan=[jsq_lifespan(app)])`.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

from jsq.app import App
from jsq.contrib.asgi import (
    HEARTBEAT,
    JobRule,
    JobStatus,
    StatusAnswer,
    WebWorker,
    allow_anyone,
    jsq_lifespan,
)
from jsq.model.durations import Duration
from jsq.model.job import JobRecord

try:
    from litestar import Request, Response, Router, delete, get
    from litestar.di import Provide
    from litestar.response import Stream
except ImportError:
    raise ImportError("jsq.contrib.litestar needs one more package: pip install litestar") from None

__all__ = [
    "AuthorizeConnection",
    "WebWorker",
    "allow_anyone",
    "jsq_dependencies",
    "jsq_lifespan",
    "status_handlers",
]

AuthorizeConnection: TypeAlias = Callable[[Request[Any, Any, Any], JobRecord], bool | Awaitable[bool]]
"""Decides whether a request may see a job, or cancel it if the method is DELETE."""


def jsq_dependencies(app: App) -> dict[str, Provide]:
    """The dependencies `jsq_app` and `jsq_client`, for `Litestar(dependencies=...)`."""
    return {
        "jsq_app": Provide(lambda: app, sync_to_thread=False),
        "jsq_client": Provide(lambda: app.client, sync_to_thread=False),
    }


def status_handlers(
    app: App,
    path: str = "/jobs",
    *,
    authorize: AuthorizeConnection,
    include_result: bool = False,
    cancel: bool = False,
    heartbeat: Duration = HEARTBEAT,
) -> Router:
    """A router for the state of a job, `GET /jobs/{id}`, and for its events, `GET /jobs/{id}/events`.

    The arguments are those of `jsq.contrib.starlette.status_routes`.
    """
    status = JobStatus(app, include_result=include_result, heartbeat=heartbeat)

    def asked(request: Request[Any, Any, Any]) -> tuple[str, JobRule]:
        return str(request.path_params["id"]), partial(authorize, request)

    @get("/{id:str}", name="job_status")
    async def job_status(request: Request[Any, Any, Any]) -> Response[Any]:
        """The state of a job."""
        return litestar_response(await status.show(*asked(request)))

    @get("/{id:str}/events", name="job_events")
    async def job_events(request: Request[Any, Any, Any]) -> Response[Any]:
        """The state of a job as server-sent events, until the job ends."""
        last_event = request.headers.get("last-event-id")
        return litestar_response(await status.stream(*asked(request), last_event))

    @delete("/{id:str}", name="job_cancel", status_code=200)
    async def job_cancel(request: Request[Any, Any, Any]) -> Response[Any]:
        """Cancel a job."""
        return litestar_response(await status.cancel(*asked(request)))

    handlers = [job_status, job_events, *((job_cancel,) if cancel else ())]
    return Router(path, route_handlers=handlers, tags=["jobs"])


def litestar_response(answer: StatusAnswer) -> Response[Any]:
    """The response of an answer."""
    given: dict[str, Any] = {
        "status_code": answer.status,
        "media_type": answer.media_type,
        "headers": dict(answer.headers),
    }
    if isinstance(answer.body, bytes):
        return Response(answer.body, **given)
    return Stream(answer.body, **given)
