"""Addresses for the state and the progress of a job."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from asgiref.sync import async_to_sync, sync_to_async
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.http import require_http_methods

from jsq.contrib.asgi import HEARTBEAT, JobRule, JobStatus, StatusAnswer, refusal
from jsq.contrib.django.project import project_app
from jsq.model.durations import Duration
from jsq.model.job import JobRecord

DjangoRule: TypeAlias = Callable[[Any, JobRecord], bool | Awaitable[bool]]
"""Decides whether a request may see a job. It may use the ORM."""


def job_urls(
    *,
    authorize: DjangoRule,
    include_result: bool = False,
    cancel: bool = False,
    heartbeat: Duration = HEARTBEAT,
) -> list[Any]:
    """Addresses for the state of a job, `ID/`, and for its server-sent events, `ID/events/`.

    `path("jobs/", include(job_urls(authorize=owns)))`. `authorize` decides for each request and job. A job
    that is not shown is answered with 404. With `include_result` the answers have the results and the errors
    of jobs. With `cancel`, `DELETE ID/` cancels a job. `heartbeat` is the time between two comments in a
    silent stream. The events need a server with ASGI. Raises `BadOption`.
    """
    status = JobStatus(project_app(), include_result=include_result, heartbeat=heartbeat)

    @require_http_methods(["GET", "DELETE"] if cancel else ["GET"])
    def job_status(request: Any, id: str) -> HttpResponse:
        portal, seen = project_app().client.connection.portal, list[JobRecord]()
        answer = portal.run(status.show(id, noting(seen)))
        if seen and not is_allowed(authorize, request, seen[0]):
            answer = refusal(404, "no such job")
        elif seen and request.method == "DELETE":
            answer = portal.run(status.cancel(id, noting([])))
        return response_to(answer)

    @require_http_methods(["GET"])
    async def job_events(request: Any, id: str) -> HttpResponse:
        async def rule(record: JobRecord) -> bool:
            return await sync_to_async(is_allowed)(authorize, request, record)

        return response_to(await status.stream(id, rule, request.headers.get("last-event-id")))

    return [
        path("<str:id>/", job_status, name="job_status"),
        path("<str:id>/events/", job_events, name="job_events"),
    ]


def noting(seen: list[JobRecord]) -> JobRule:
    """A rule that allows every job, and notes it: the view decides in its own thread."""

    def rule(record: JobRecord) -> bool:
        seen.append(record)
        return True

    return rule


def is_allowed(authorize: DjangoRule, request: Any, record: JobRecord) -> bool:
    """Whether a request may see a job, by a plain function or a coroutine function."""
    if inspect.iscoroutinefunction(authorize):
        return async_to_sync(authorize)(request, record) is True
    return authorize(request, record) is True


def response_to(answer: StatusAnswer) -> Any:
    """The response of an answer."""
    kind: Any = HttpResponse if isinstance(answer.body, bytes) else StreamingHttpResponse
    return kind(answer.body, status=answer.status, content_type=answer.media_type, headers=answer.headers)
