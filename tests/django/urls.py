"""The addresses of the project: those of the admin, and of jobs."""

from typing import Any

from django.contrib import admin
from django.urls import include, path

from jsq import JobRecord
from jsq.contrib.django import job_urls


def knows(request: Any, job: JobRecord) -> bool:
    """Whether the session of a request knows a job."""
    return job.id in request.session.get("jobs", ())


async def always(request: Any, job: JobRecord) -> bool:
    """Allow every request."""
    return True


urlpatterns = [
    path("admin/", admin.site.urls),
    path("jobs/", include(job_urls(authorize=knows, include_result=True, cancel=True))),
    path("all/", include(job_urls(authorize=always))),
]
