"""FastAPI: dependencies for the App and its client, and a router for the state and progress of a job.

The lifespan is that of `jsq.contrib.starlette`.
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from jsq.app import App
from jsq.client.client import Client
from jsq.contrib.asgi import HEARTBEAT, JobResultView, JobRule, JobStatus, JobView, WebWorker, jsq_lifespan
from jsq.contrib.starlette import get_app, get_client, get_worker, response_of
from jsq.model.durations import Duration
from jsq.model.job import JobRecord

try:
    from fastapi import APIRouter, Depends, Header, Response
except ImportError:
    raise ImportError("jsq.contrib.fastapi needs one more package: pip install fastapi") from None

__all__ = [
    "AppDependency",
    "ClientDependency",
    "JobRule",
    "WebWorker",
    "allow_everyone",
    "get_app",
    "get_client",
    "get_worker",
    "jsq_lifespan",
    "status_router",
]

AppDependency: TypeAlias = Annotated[App, Depends(get_app)]
"""A parameter of an endpoint that receives the App."""

ClientDependency: TypeAlias = Annotated[Client, Depends(get_client)]
"""A parameter of an endpoint that receives the client of the App."""

Answers: TypeAlias = dict[int | str, dict[str, Any]]
"""The answers of an endpoint, as its OpenAPI document lists them."""

ERRORS: Answers = {
    404: {"description": "There is no such job, or the client may not see it."},
    503: {"description": "NATS is out of reach."},
}
STREAM_ANSWERS: Answers = {
    200: {"content": {"text/event-stream": {}}, "description": "Server-sent events: states as JSON."},
    204: {"description": "The client has the last event already."},
    **ERRORS,
}
CANCEL_ERRORS: Answers = {409: {"description": "The job has ended with another outcome."}}


def allow_everyone() -> JobRule:
    """A dependency for `status_router`: everyone who knows the id of a job may see it."""
    return is_any_job


def is_any_job(job: JobRecord) -> bool:
    return True


def status_router(
    app: App,
    prefix: str = "/jobs",
    *,
    authorize: Callable[..., Any],
    include_result: bool = False,
    cancel: bool = False,
    heartbeat: Duration = HEARTBEAT,
) -> APIRouter:
    """A router for the state of a job, `GET /jobs/{id}`, and for its events, `GET /jobs/{id}/events`.

    `authorize` is a FastAPI dependency that returns a function. The function gets the record of the job, and
    returns whether the client may see it; see `JobRule`. It has no default, because an id may be guessed.
    `allow_everyone` shows every job. The other arguments are those of `jsq.contrib.starlette.status_routes`.
    """
    status = JobStatus(app, include_result=include_result, heartbeat=heartbeat)
    router = APIRouter(prefix=prefix, tags=["jobs"])
    view = JobResultView if include_result else JobView
    found: Answers = {200: {"model": view}, **ERRORS}
    rule_dependency = Depends(authorize)

    @router.get("/{id}", responses=found, response_model=None, name="job_status")
    async def job_status(id: str, rule: Annotated[JobRule, rule_dependency]) -> Response:
        """The state of a job."""
        return response_of(await status.show(id, rule))

    @router.get("/{id}/events", responses=STREAM_ANSWERS, response_model=None, name="job_events")
    async def job_events(
        id: str,
        rule: Annotated[JobRule, rule_dependency],
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        """The state of a job as server-sent events, until the job ends."""
        return response_of(await status.stream(id, rule, last_event_id))

    if cancel:

        @router.delete("/{id}", responses={**found, **CANCEL_ERRORS}, response_model=None, name="job_cancel")
        async def job_cancel(id: str, rule: Annotated[JobRule, rule_dependency]) -> Response:
            """Cancel a job."""
            return response_of(await status.cancel(id, rule))

    return router
