"""Sentry: failed jobs are its errors, with the tags, breadcrumbs and trace of their job.

The function of each job runs in an isolation scope of its own. The worker reports an error only when the
failure is recorded and final, with the scope of the last attempt. The SDK sends what is left when the process
exits (its option `shutdown_timeout`).
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from jsq.context import Context
from jsq.errors import JobExpired, JobFailed
from jsq.middleware import CallNext, Middleware
from jsq.model.job import Job

try:
    import sentry_sdk
    from sentry_sdk.scope import Scope, add_global_event_processor, use_isolation_scope
    from sentry_sdk.utils import event_from_exception
except ImportError:
    raise ImportError("the middleware Sentry needs one more package: pip install 'jsq[sentry]'") from None

JOB_LOGGER = "jsq.job"
MECHANISM = {"type": "jsq", "handled": False}

TITLE = "Traceback (most recent call last):"
"""The line before the frames of an exception. The last exception of a chain is the one that was raised."""

MOST_KEPT = 1_000
"""Scopes of failed attempts, and ids of reported jobs, that are kept until their outcome is logged."""

_frame = re.compile(r'^[ |]*File "(.+)", line (\d+), in (.+)\n(?:[ |]+(\S.*)\n)?', re.MULTILINE)


class Sentry(Middleware):
    """Reports jobs that failed for good to Sentry, under the name of their task.

    The events have the tags `job`, `task`, `queue` and `attempt`. With `retries`, failures that are retried
    are reported too, as warnings. Call `sentry_sdk.init` in the module of the App, so that child processes
    call it too. A job whose submitter has an active span continues its trace.
    """

    def __init__(self, *, retries: bool = False) -> None:
        self._retries = retries
        self._scopes: dict[str, Scope] = {}
        self._reported: dict[str, None] = {}
        add_global_event_processor(self._drop_log_line)

    def submitting(self, job: Job) -> Job:
        if sentry_sdk.get_current_span() is None:
            return job
        trace = {"sentry-trace": sentry_sdk.get_traceparent(), "baggage": sentry_sdk.get_baggage()}
        carried = {name: value for name, value in trace.items() if value}
        return replace(job, headers={**job.headers, **carried})

    async def around(self, ctx: Context, call: CallNext) -> Any:
        job = ctx.job
        with sentry_sdk.isolation_scope() as scope:
            describe_job(scope, job)
            transaction = sentry_sdk.continue_trace(
                dict(ctx.headers), op="queue.process", name=job.task, source="task", origin="auto.queue.jsq"
            )
            with sentry_sdk.start_transaction(transaction):
                try:
                    return await call()
                except BaseException:
                    keep(self._scopes, job.id, scope)
                    raise

    async def failed(self, job: Job, error: BaseException) -> None:
        self._report(job, error, "warning" if isinstance(error, JobExpired) else "error")

    async def retrying(self, job: Job, error: BaseException) -> None:
        if self._retries:
            self._report(job, error, "warning")

    async def settled(self, job: Job) -> None:
        self._scopes.pop(job.id, None)

    def _report(self, job: Job, error: BaseException, level: str) -> None:
        scope = self._scopes.pop(job.id, None)
        if scope is None:  # the function ran in another process
            scope = Scope.get_isolation_scope().fork()
            describe_job(scope, job)
        with use_isolation_scope(scope):
            event, hint = describe_failure(error)
            sentry_sdk.capture_event(event | {"level": level}, hint=hint)
        keep(self._reported, job.id, None)

    def _drop_log_line(self, event: Any, hint: Mapping[str, Any]) -> Any:
        """Drop the event that the logging integration makes of the log line of a reported job."""
        record = hint.get("log_record")
        if record is None or record.name != JOB_LOGGER or not record.msg.startswith("job "):
            return event
        with suppress(KeyError):
            del self._reported[record.__dict__["job"]]
            return None
        return event


def describe_job(scope: Scope, job: Job) -> None:
    """Give a scope the name and the tags of a job, and no breadcrumbs of another one."""
    scope.clear_breadcrumbs()
    scope.set_transaction_name(job.task, source="task")
    for name, value in {"job": job.id, "task": job.task, "queue": job.queue, "attempt": job.attempt}.items():
        scope.set_tag(name, str(value))


def keep(kept: dict[str, Any], id: str, value: object) -> None:
    """Keep the last `MOST_KEPT` values: an attempt that loses its lease has no outcome here."""
    kept[id] = value
    while len(kept) > MOST_KEPT:
        del kept[next(iter(kept))]


def describe_failure(error: BaseException) -> tuple[Any, dict[str, Any]]:
    """The event of an exception, and the hint for it."""
    if isinstance(error, JobFailed) and error.__traceback__ is None:  # rebuilt from the record
        return recorded_event(error), {}
    options = sentry_sdk.get_client().options
    return event_from_exception(error, client_options=options, mechanism=MECHANISM)


def recorded_event(error: JobFailed) -> Any:
    """The event of an exception of another process, from the text that it sent."""
    kind, _, message = error.error.partition(": ")
    frames = [
        {
            "abs_path": file,
            "filename": file.rpartition("/")[2],
            "function": function,
            "lineno": int(line),
            "in_app": True,
        }
        | ({"context_line": source} if source else {})
        for file, line, function, source in _frame.findall(f"{error.traceback.rpartition(TITLE)[2]}\n")
    ]
    trace = {"stacktrace": {"frames": frames}} if frames else {}
    return {"exception": {"values": [{"type": kind, "value": message, "mechanism": MECHANISM} | trace]}}
