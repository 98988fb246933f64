"""Log lines with the trace and the span that were active when they were written."""

import logging

from opentelemetry.trace import format_span_id, format_trace_id, get_current_span


class TraceIds(logging.Filter):
    """Adds `trace_id` and `span_id` to each record while a span is active. It passes every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        span = get_current_span().get_span_context()
        if span.is_valid and not hasattr(record, "trace_id"):
            record.trace_id = format_trace_id(span.trace_id)
            record.span_id = format_span_id(span.span_id)
        return True


def add_trace_ids() -> None:
    """Add the ids to the lines that the handlers of jsq write in this process. May be called again.

    Other handlers stay as they are: the program that owns them decides about their lines.
    """
    for handler in logging.getLogger().handlers:
        own = type(handler).__module__.startswith("jsq.")
        if own and not any(isinstance(one, TraceIds) for one in handler.filters):
            handler.addFilter(TraceIds())
