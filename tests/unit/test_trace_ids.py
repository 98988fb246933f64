"""The log lines of jsq have the ids of the active span."""

import contextlib
import logging
from collections.abc import Iterator

import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from jsq.telemetry.logging import LineHandler, TextLines
from jsq.telemetry.trace_ids import add_trace_ids

SPAN = NonRecordingSpan(SpanContext(0xA, 0xB, is_remote=False, trace_flags=TraceFlags(1)))


@contextlib.contextmanager
def logging_to_stderr() -> Iterator[LineHandler]:
    """A handler of jsq on the root logger, with the ids."""
    handler = LineHandler()
    handler.setFormatter(TextLines())
    root = logging.getLogger()
    root.addHandler(handler)
    add_trace_ids()
    try:
        yield handler
    finally:
        root.removeHandler(handler)


def test_a_line_within_a_span_has_its_ids(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr(), use_span(SPAN):
        logging.getLogger("shop").warning("sold out", extra={"item": 7})

    line = capsys.readouterr().err
    assert line.endswith(f"WARNING sold out item=7 trace_id={10:032x} span_id={11:016x}\n")


def test_a_line_without_a_span_has_no_ids(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr():
        logging.getLogger("shop").warning("sold out")

    assert capsys.readouterr().err.endswith("WARNING sold out\n")


def test_a_line_of_a_child_process_keeps_the_ids_that_it_came_with(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with logging_to_stderr(), use_span(SPAN):
        logging.getLogger("shop").warning("sold out", extra={"trace_id": "t", "span_id": "s"})

    assert capsys.readouterr().err.endswith("WARNING sold out trace_id=t span_id=s\n")


def test_the_ids_are_added_once_and_to_no_handler_of_another_program() -> None:
    other = logging.StreamHandler()
    logging.getLogger().addHandler(other)
    try:
        with logging_to_stderr() as handler:
            add_trace_ids()
            assert (len(handler.filters), other.filters) == (1, [])
    finally:
        logging.getLogger().removeHandler(other)
