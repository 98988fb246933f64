"""Traces of jobs by OpenTelemetry: a middleware that continues the trace of the submit in the task.

The names and attributes are those of the semantic conventions for messaging. The context of the trace is in
the headers of the job, as the propagator of the process writes it. Retries have the same parent as the first
attempt, so all attempts of a job are in one trace, and each links to the one before it.

The API of OpenTelemetry records nothing until the application sets a provider of the SDK.
"""

import contextlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opentelemetry.context import Context as TraceContext
from opentelemetry.context import attach, detach, get_current
from opentelemetry.propagate import extract, inject
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TracerProvider,
    get_current_span,
    get_tracer,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import jsq
from jsq.client.submit_hooks import log_failed
from jsq.context import Context
from jsq.errors import BadName, BadOption, JobExpired, JsqError
from jsq.middleware import CallNext, Middleware
from jsq.model.job import Job
from jsq.model.options import check_headers
from jsq.model.outcome import describe_error
from jsq.model.signals import Snooze
from jsq.telemetry.trace_ids import add_trace_ids, note_span

ATTEMPT_HEADER = "attempt-traceparent"
"""The header with the span of the last attempt, for the link of the next one."""

MOST_ENDS = 1_000
"""Ends of functions that are kept until their jobs are settled."""

_w3c = TraceContextTextMapPropagator()


class Tracing(Middleware):
    """Spans for the submit, the run and the settling of jobs: `App(middleware=[Tracing()])`.

    `tracer_provider` replaces the global provider. Put this middleware first, so that its spans contain the
    others. While a span is active, the log lines of jsq have its ids.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        self._tracer = get_tracer("jsq", jsq.__version__, tracer_provider)
        self._submits: dict[str, Span] = {}
        self._ends: OrderedDict[str, int] = OrderedDict()
        self._outcomes: dict[str, str] = {}
        add_trace_ids()

    # -- in the submitting process -----------------------------------------------------------------------

    def submitting(self, job: Job) -> Job:
        """Start the span of the submit, and put its context into the headers of the job."""
        own = attributes(job, "send") | {"messaging.message.id": job.id}
        return self._start_submit([job], own)[0]

    def submitting_many(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Start one span for a bulk submit: all its jobs continue from it."""
        if len(jobs) < 2:
            return [self.submitting(job) for job in jobs]
        own = attributes(jobs[0], "send") | {"messaging.batch.message_count": len(jobs)}
        return self._start_submit(jobs, own)

    def submit_ended(self, jobs: Sequence[Job], error: BaseException | None) -> None:
        span = self._submits.pop(jobs[0].id, None) if jobs else None
        if span is not None:
            if error is not None:
                note_error(span, error)
            span.end()

    def _start_submit(self, jobs: Sequence[Job], own: dict[str, Any]) -> Sequence[Job]:
        """Start a span, and give its context to the jobs. Returns the jobs themselves if that fails."""
        try:
            return self._give_context(jobs, own)
        except Exception as error:  # a propagator or a span processor of the user may raise anything
            log_failed(self, "submitting", jobs[0], error)
            return jobs

    def _give_context(self, jobs: Sequence[Job], own: dict[str, Any]) -> list[Job]:
        """Start a span for a submit. Outside of a span, it continues the trace of the job's headers."""
        first = jobs[0]
        active = get_current_span().get_span_context().is_valid
        parent = None if active else extract(first.headers, get_current())
        span = self._tracer.start_span(f"send {first.queue}", parent, SpanKind.PRODUCER, own)
        if span.is_recording():
            self._submits[first.id] = span
        carrier: dict[str, str] = {}
        inject(carrier, set_span_in_context(span, parent))
        return [with_headers(job, carrier) for job in jobs]

    # -- where the function runs -------------------------------------------------------------------------

    async def around(self, ctx: Context, call: CallNext) -> Any:
        """Run the function in a span whose parent is the span of the submit."""
        try:
            span, inside = self._start_attempt(ctx)
        except Exception as error:  # as above: the job is worth more than its trace
            log_failed(self, "around", ctx.job, error)
            return await call()
        token = attach(inside)
        try:
            if span.is_recording():
                await announce(ctx, inside)
            return await call()
        except BaseException as error:
            note_error(span, error)
            raise
        finally:
            detach(token)
            span.end()
            remember(self._ends, ctx.id, time.time_ns())

    def _start_attempt(self, ctx: Context) -> tuple[Span, TraceContext]:
        """Start the span of an attempt, or of the call of a batch; returns it with its context."""
        parent: TraceContext = extract(ctx.headers)
        own: dict[str, Any] = {"messaging.client.id": ctx.worker, "jsq.waited": ctx.waited}
        if ctx.batch:
            own |= {"messaging.batch.message_count": len(ctx.batch)}
        else:
            own |= {"messaging.message.id": ctx.id, "jsq.attempt": ctx.attempt}
        span = self._tracer.start_span(
            f"process {ctx.task}",
            parent,
            SpanKind.CONSUMER,
            attributes(ctx.job, "process") | own,
            links_of(ctx),
        )
        return span, set_span_in_context(span, parent)

    # -- in the worker, after the outcome is recorded ----------------------------------------------------

    async def succeeded(self, job: Job, result: Any) -> None:
        self._outcomes[job.id] = "succeeded"

    async def failed(self, job: Job, error: BaseException) -> None:
        self._outcomes[job.id] = "expired" if isinstance(error, JobExpired) else "failed"

    async def retrying(self, job: Job, error: BaseException) -> None:
        self._outcomes[job.id] = "retrying"

    async def cancelled(self, job: Job) -> None:
        self._outcomes[job.id] = "cancelled"

    async def settled(self, job: Job) -> None:
        """Make the span of the settling: from the end of the function until the outcome is recorded."""
        outcome, ended = self._outcomes.pop(job.id, ""), self._ends.pop(job.id, None)
        attempt = read_span(job.headers.get(ATTEMPT_HEADER, ""))
        if attempt is None:
            return
        note_span(job.id, attempt)
        own = {"messaging.message.id": job.id} | ({"jsq.outcome": outcome} if outcome else {})
        span = self._tracer.start_span(
            f"settle {job.queue}",
            set_span_in_context(NonRecordingSpan(attempt), extract(job.headers)),
            SpanKind.CLIENT,
            attributes(job, "settle") | own,
            start_time=ended,
        )
        span.end()


def attributes(job: Job, operation: str) -> dict[str, Any]:
    """The attributes of each span about a job, by the semantic conventions for messaging."""
    return {
        "messaging.system": "jsq",
        "messaging.destination.name": job.queue,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "jsq.task": job.task,
    }


def note_error(span: Span, error: BaseException) -> None:
    """Record the exception of an attempt. A snooze is no error."""
    if isinstance(error, Snooze):
        return
    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR, describe_error(error).error))
    with contextlib.suppress(Exception):  # the text of a user's exception may raise anything
        span.record_exception(error)


def links_of(ctx: Context) -> list[Link]:
    """The links of an attempt: to the attempt before it, or to the submits of all jobs of a batch."""
    if ctx.batch:
        submits = [get_current_span(extract(job.headers)).get_span_context() for job in ctx.batch]
        return [Link(span) for span in {span.span_id: span for span in submits if span.is_valid}.values()]
    earlier = read_span(ctx.headers.get(ATTEMPT_HEADER, ""))
    return [] if earlier is None else [Link(earlier)]


async def announce(ctx: Context, inside: TraceContext) -> None:
    """Give the next attempt of the job, and the worker, the span of this one."""
    carrier: dict[str, str] = {}
    _w3c.inject(carrier, inside)
    with contextlib.suppress(JsqError):  # the attempt runs without the link, too
        await ctx.add_header(ATTEMPT_HEADER, carrier["traceparent"])


def read_span(traceparent: str) -> SpanContext | None:
    """The span that a header names; None for a header that names none."""
    found = get_current_span(_w3c.extract({"traceparent": traceparent})).get_span_context()
    return found if found.is_valid else None


def with_headers(job: Job, added: dict[str, str]) -> Job:
    """The job with more headers; without them if it may not have so many. It is worth more than its trace."""
    headers = {**job.headers, **added}
    if headers == job.headers:
        return job
    try:
        check_headers(headers)
    except (BadName, BadOption):
        return job
    return replace(job, headers=headers)


def remember(ends: "OrderedDict[str, int]", id: str, moment: int) -> None:
    """Note when the function of a job ended. A process that does not settle the job forgets it later."""
    ends[id] = moment
    if len(ends) > MOST_ENDS:
        ends.popitem(last=False)
