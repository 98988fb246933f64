"""Log lines with the trace and the span that were active when they were written."""

import logging
from collections import OrderedDict

from opentelemetry.trace import SpanContext, format_span_id, format_trace_id, get_current_span

MOST_SPANS = 1_000
"""Spans of ended attempts that are kept for the line about their outcome."""

_ended: OrderedDict[str, SpanContext] = OrderedDict()


class TraceIds(logging.Filter):
    """Adds `trace_id` and `span_id` to each record while a span is active. It passes every record.

    The line about the outcome of a job is written when its span has ended; it gets the ids of that span.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if hasattr(record, "trace_id"):
            return True
        span = get_current_span().get_span_context()
        if not span.is_valid:
            ended = _ended.get(getattr(record, "job", "")) if record.name == "jsq.job" else None
            if ended is None:
                return True
            span = ended
        record.trace_id = format_trace_id(span.trace_id)
        record.span_id = format_span_id(span.span_id)
        return True


def note_span(job: str, span: SpanContext) -> None:
    """Note the span of the last attempt of a job, for the line about its outcome."""
    _ended[job] = span
    if len(_ended) > MOST_SPANS:
        _ended.popitem(last=False)


def add_trace_ids() -> None:
    """Add the ids to the lines that the handlers of jsq write in this process. May be called again.

    Other handlers stay as they are: the program that owns them decides about their lines.
    """
    for handler in logging.getLogger().handlers:
        own = type(handler).__module__.startswith("jsq.")
        if own and not any(isinstance(one, TraceIds) for one in handler.filters):
            handler.addFilter(TraceIds())
