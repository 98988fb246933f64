"""The page of the admin: the queues, the jobs by their state, and one job, which can be retried or cancelled.

`jsq.view_jobs` is the permission to see it, `jsq.manage_jobs` that to retry and to cancel.
"""

import contextlib
import json
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.views.decorators.http import require_POST

from jsq.client.client import BlockingClient
from jsq.contrib.django.models import Jobs
from jsq.contrib.django.project import project_app
from jsq.errors import BadName, BrokerError, JobError, JobNotFound, UsageError
from jsq.model.job_filter import ALL_STATES
from jsq.model.revision import FINAL_STATES

SHOWN_JOBS = 50
SHOWN_FIELDS = (
    *("id", "task", "queue", "state", "attempt", "worker", "reason", "error", "text", "key", "tags"),
    *("submitted", "started", "ended", "due", "expires", "fallback", "result_dropped"),
)
"""The fields of a record that the page of a job shows, if they have a value."""

READ_ERRORS = (BrokerError, UsageError)


@admin.register(Jobs)
class JobsAdmin(admin.ModelAdmin):  # type: ignore[misc]  # Django has no types
    """The pages of the jobs. They read the server of jsq, and no table."""

    def has_module_permission(self, request: Any) -> bool:
        """Whether the index of the admin lists the jobs."""
        return self.has_view_permission(request)

    def has_view_permission(self, request: Any, obj: Any = None) -> bool:
        """Whether the user may see jobs."""
        return bool(request.user.has_perm("jsq.view_jobs"))

    def has_add_permission(self, request: Any) -> bool:
        """No job is added here."""
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        """Whether the user may retry and cancel jobs."""
        return bool(request.user.has_perm("jsq.manage_jobs"))

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        """No job is deleted here."""
        return False

    def get_urls(self) -> list[Any]:
        """The overview, the page of a job, and its actions."""
        wrap = self.admin_site.admin_view
        return [
            path("", wrap(self.overview), name="jsq_jobs_changelist"),
            path("<path:object_id>/retry/", wrap(require_POST(self.retry)), name="jsq_jobs_retry"),
            path("<path:object_id>/cancel/", wrap(require_POST(self.cancel)), name="jsq_jobs_cancel"),
            path("<path:object_id>/change/", wrap(self.job_page), name="jsq_jobs_change"),
        ]

    # -- pages -------------------------------------------------------------------------------------------

    def overview(self, request: Any) -> HttpResponse:
        """The queues, and the newest jobs that match the form."""
        self._check(request, self.has_view_permission(request))
        if wanted := request.GET.get("id", "").strip():
            return HttpResponseRedirect(job_url(self, wanted))
        state, queue = request.GET.get("state", ""), request.GET.get("queue", "")
        found: dict[str, Any] = {"queues": [], "jobs": [], "workers": []}
        try:
            found |= read_overview(blocking_client(), state or None, queue or None)
        except READ_ERRORS as error:
            messages.error(request, str(error))
        chosen = {"states": ALL_STATES, "state": state, "queue": queue, "shown": SHOWN_JOBS}
        return self._page(request, "change_list.html", "Jobs", {**found, **chosen})

    def job_page(self, request: Any, object_id: str) -> HttpResponse:
        """One job: its record and its attempts."""
        self._check(request, self.has_view_permission(request))
        handle = find_handle(unquote(object_id))
        try:
            record, attempts = handle.status(), handle.attempts()
        except JobNotFound as error:
            raise Http404(str(error)) from error
        except READ_ERRORS as error:
            messages.error(request, str(error))
            return HttpResponseRedirect(reverse("admin:jsq_jobs_changelist"))
        fields = [(name, getattr(record, name)) for name in SHOWN_FIELDS if getattr(record, name)]
        may_change = self.has_change_permission(request)
        has_ended = record.state in FINAL_STATES
        values = {
            "record": record,
            "fields": fields,
            "attempts": attempts,
            "arguments": shown_json(record.arguments) if record.has_arguments else "",
            "result": shown_json(record.result) if record.has_result else "",
            "retry_url": job_url(self, record.id, "retry") if may_change and has_ended else "",
            "cancel_url": job_url(self, record.id, "cancel") if may_change and not has_ended else "",
        }
        return self._page(request, "change_form.html", f"Job {record.id}", values)

    # -- actions -----------------------------------------------------------------------------------------

    def retry(self, request: Any, object_id: str) -> HttpResponse:
        """Run a job that has ended again."""
        self._check(request, self.has_change_permission(request))
        handle = find_handle(unquote(object_id))
        with self._reported(request, handle.id, "Retried"):
            handle.retry(again=handle.status().state != "failed")
        return HttpResponseRedirect(job_url(self, handle.id))

    def cancel(self, request: Any, object_id: str) -> HttpResponse:
        """Cancel a job."""
        self._check(request, self.has_change_permission(request))
        handle = find_handle(unquote(object_id))
        with self._reported(request, handle.id, "Cancelled"):
            handle.cancel()
        return HttpResponseRedirect(job_url(self, handle.id))

    # -- inside ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _reported(self, request: Any, id: str, done: str) -> Any:
        """Show the end of an action, and note it in the log of the admin."""
        try:
            yield
        except JobNotFound as error:
            raise Http404(str(error)) from error
        except (*READ_ERRORS, JobError) as error:
            messages.error(request, str(error))
        else:
            self.log_change(request, Jobs(id=id), f"{done}.")
            messages.success(request, f"{done} job {id}.")

    def _check(self, request: Any, allowed: bool) -> None:
        if not allowed:
            raise PermissionDenied

    def _page(self, request: Any, template: str, title: str, values: dict[str, Any]) -> HttpResponse:
        context = {**self.admin_site.each_context(request), "opts": self.opts, "title": title, **values}
        return TemplateResponse(request, f"admin/jsq/jobs/{template}", context)


def blocking_client() -> BlockingClient:
    """The client of the project's App."""
    return project_app().client.blocking


def find_handle(id: str) -> Any:
    """The handle of a job by its id. Raises `Http404` for a text that is no id."""
    try:
        return blocking_client().jobs.handle(id)
    except BadName as error:
        raise Http404(str(error)) from error


def read_overview(client: BlockingClient, state: str | None, queue: str | None) -> dict[str, Any]:
    """The queues, the live workers, and the newest jobs, the newest first."""
    jobs = client.jobs.list(limit=SHOWN_JOBS, state=state, queue=queue)
    queues = [(one, sum(one.waiting.values()) + one.waiting_for_key) for one in client.queues.stats()]
    linked = [(one, quote(one.id)) for one in reversed(jobs)]
    return {"queues": queues, "workers": client.admin.workers(), "jobs": linked}


def job_url(pages: JobsAdmin, id: str, page: str = "change") -> str:
    """The address of a page or an action of a job."""
    found = reverse(f"admin:jsq_jobs_{page}", args=(quote(id),), current_app=pages.admin_site.name)
    return str(found)


def shown_json(value: Any) -> str:
    """A value of a record as text."""
    return json.dumps(value, indent=2, ensure_ascii=False)
